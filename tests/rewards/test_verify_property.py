"""Any ledger verifies as it was written, and no longer when any one stored value of it was changed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Ledger
from tests.rewards import tampering
from tests.rewards.ledger_rows import row, scratch
from tests.rewards.sample_ledgers import filled

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "event", "checkpoint", "resume", "join", "seal", "redact"]),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=10,
)
TEXTS: list[dict[str, Any]] = [
    {"response": None},
    {"prompt": "the same"},
    {"prompt": "", "rejected": "änderung"},
    {"response": None, "components": []},
    {"advantage": float("nan"), "components": None},
]


def play(root: Path, actions: list[tuple[str, int]]) -> None:
    with Ledger.open(root, create=True) as ledger:
        writers, positions, redactable = [ledger.writer("r", seal_rows=None)], [], []
        step = 0
        for what, n in actions:
            writer = writers[n % len(writers)]
            if what == "append":
                step += 1
                rows = [row(i, ("train", "eval")[(n + i) % 4 == 3], **TEXTS[(n + i) % 5]) for i in range(1 + n % 4)]
                writer.append(step, rows if n % 7 else [filled()]).wait()
                if n % 7 == 0 or rows[0]["response"] is not None:
                    redactable.append((writer, step))
            elif what == "event":
                writer.event("check_in", {"n": n, "text": "ä"}).wait()
            elif what == "checkpoint":
                for other in writers:
                    other.flush()
                positions.append(writers[0].checkpoint(step))
            elif what == "resume" and positions:
                writers = [ledger.writer("r", resume=positions[n % len(positions)], seal_rows=None)]
            elif what == "join":
                writers.append(ledger.writer("r", len(writers), writers[0].attempt, seal_rows=None))
            elif what == "seal":
                ledger.seal()
            elif what == "redact" and redactable:
                one, at = redactable.pop()
                table = ledger.sessions("r", live=False).to_pylist()
                places = [
                    r["seq"] for r in table if (r["attempt"], r["writer"], r["step"]) == (one.attempt, one.writer, at)
                ]
                ledger.redact("r", one.attempt, one.writer, min(places), ["response"], reason="a name", by="ana")


def check(actions: list[tuple[str, int]], data: st.DataObject, changes: int) -> None:
    with scratch() as folder:
        play(folder / "ledger", actions)
        found = Ledger.open(folder / "ledger").verify()
        assert found.problems == ()
        values = tampering.stored_values(folder / "ledger")
        for _ in range(changes):
            target = values[data.draw(st.integers(0, len(values) - 1), label="which of the stored values")]
            shutil.copytree(folder / "ledger", folder / "copy")
            tampering.change_value(folder / "copy", target)
            assert not Ledger.open(folder / "copy").verify(found.head).ok, target
            assert not Ledger.open(folder / "copy").verify().ok, target
            shutil.rmtree(folder / "copy")


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS, st.data())
def test_any_one_value_that_was_changed_is_found(actions: list[tuple[str, int]], data: st.DataObject) -> None:
    check(actions, data, changes=3)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS, st.data())
def test_any_one_value_that_was_changed_is_found_in_many_ledgers(
    actions: list[tuple[str, int]], data: st.DataObject
) -> None:
    check(actions, data, changes=6)
