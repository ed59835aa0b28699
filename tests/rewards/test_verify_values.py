"""`verify` finds a change of any stored value: every column, key, hash, text and salt, in every form of storage."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rewards import Ledger
from rewards.schema import COLUMNS, COMPONENT_COLUMNS, TEXT_HASHES
from tests.rewards import tampering
from tests.rewards.ledger_rows import row, scratch
from tests.rewards.sample_ledgers import filled, version_1
from tests.rewards.tampering import ENTRIES, ROW_COLUMNS, TEXTS

WRITERS = 24
KEYS = ("run_id", "attempt", "writer", "chain", "seq")
Cell = tuple[str, int, str]  # table, row, column

# Row 1 has a value everywhere, row 2 only where it must, row 3 is of the eval split.
ONE_A_TYPE = ("time", "group_id", "turn", "sample_seed", "compliant", "trajectory_index", "pivot", "components")
EVERYWHERE: list[Cell] = [
    *(("sessions", 1, column) for column in (*ROW_COLUMNS, *ENTRIES)),
    *(("sessions", 2, column) for column in ONE_A_TYPE),
    *(("texts", 1, column) for column in TEXTS),
    *(("texts", 2, column) for column in ("prompt", "prompt_salt")),
]
SEALED: list[Cell] = [
    *(("sessions", seq, column) for seq in (1, 2) for column in (*KEYS, *TEXT_HASHES, "block")),
    *(("sessions", seq, "position") for seq in (1, 3)),
    *(("texts", 1, column) for column in KEYS),
]


@pytest.fixture(scope="module")
def forms() -> Iterator[dict[str, Path]]:
    """A ledger of many writers with one commit each, hot and sealed."""
    with scratch() as folder:
        with Ledger.open(folder / "hot", create=True) as ledger:
            attempt = None
            for number in range(WRITERS):
                writer = ledger.writer("r", writer=number, attempt=attempt, seal_rows=None)
                attempt = writer.attempt
                writer.append(1, [filled(), row(2, time=8), row(3, "eval", time=9)])
        shutil.copytree(folder / "hot", folder / "sealed")
        assert Ledger.open(folder / "sealed").seal()["compacted"] > 0
        yield {"hot": folder / "hot", "sealed": folder / "sealed"}


@pytest.mark.parametrize(("form", "cells"), [("hot", EVERYWHERE), ("sealed", EVERYWHERE + SEALED)])
def test_a_change_of_any_one_value_is_found_and_its_commit_named(
    forms: dict[str, Path], form: str, cells: Sequence[Cell]
) -> None:
    assert {column.name for column in COLUMNS} <= {column for _, _, column in EVERYWHERE + SEALED}
    assert len(ENTRIES) == len(COMPONENT_COLUMNS)
    for start in range(0, len(cells), WRITERS):
        some = cells[start : start + WRITERS]
        with scratch() as folder:
            root = folder / "copy"
            shutil.copytree(forms[form], root)
            for writer, (table, seq, column) in enumerate(some):
                tampering.set_value(root, ("r", 1, writer), seq, column, table=table)
            problems = Ledger.open(root).verify().problems
        for writer in range(WRITERS):
            first = 2 * writer + 1  # every writer has two train sessions
            named = f"run r, attempt 1, writer {writer}, step 1, seq 1 to 3 (sessions {first} to {first + 1}): "
            found = any(problem.startswith(named) for problem in problems)
            assert found == (writer < len(some)), (some[writer] if writer < len(some) else writer, problems)


V1_CELLS = [
    *(("sessions", column) for column in (*ROW_COLUMNS, *ENTRIES[:3], *TEXT_HASHES)),
    *(("texts", column) for column in ("prompt", "response", "rejected", "prompt_salt")),
]


def test_a_change_of_any_one_value_of_tails_of_version_1_is_found_and_its_commit_named() -> None:
    named = {0: "step 2, seq 5 to 8 (sessions 8 to 11)", 1: "step 2, seq 4 to 6 (sessions 13 to 15)"}
    for start in range(0, len(V1_CELLS), 2):
        with scratch() as folder:
            root = version_1(folder).root
            some = V1_CELLS[start : start + 2]
            for writer, (table, column) in enumerate(some):
                tampering.set_value(root, ("alpha", 1, writer), (5, 4)[writer], column, table=table)
            problems = Ledger.open(root).verify().problems
        for writer, name in named.items():
            found = any(p.startswith(f"run alpha, attempt 1, writer {writer}, {name}: ") for p in problems)
            assert found == (writer < len(some)), (some, problems)
