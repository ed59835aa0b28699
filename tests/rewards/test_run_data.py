"""One run as arrays: a ledger gives the same as a table, superseded rows and other runs stay out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rewards import Ledger
from rewards.analysis.data import RunData
from rewards.errors import LedgerError
from rewards.runs import choose_run, pipeline_kinds
from tests.rewards.simulated import as_table, fill, grpo_rows

RUN = "demo/grpo"


@pytest.fixture(scope="module")
def steps() -> list:
    return grpo_rows(sessions=1500)


@pytest.fixture(scope="module", params=["hot", "sealed"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, steps: list) -> Iterator[RunData]:
    with Ledger.open(tmp_path_factory.mktemp("data") / "ledger", create=True) as ledger:
        fill(ledger, steps, crash_at=15)
        if request.param == "sealed":
            ledger.seal()
        with RunData.read(ledger, RUN) as data:
            yield data


@pytest.fixture(scope="module")
def table(steps: list) -> RunData:
    return RunData.of_table(as_table(steps))


def test_a_resumed_run_in_a_ledger_reads_as_the_table_of_its_live_sessions(stored: RunData, table: RunData) -> None:
    assert stored.sessions == table.sessions == 1500
    assert (stored.steps == table.steps).all()
    assert stored.names == table.names
    assert (stored.codes == table.codes).all()
    assert stored.pipeline == table.pipeline == "grpo"


@pytest.mark.parametrize("name", ["baseline_reward", "adjusted_reward", "compliant", "kl_nats", "pivot", "no_such"])
def test_a_column_is_the_same_from_both_and_null_is_nan(stored: RunData, table: RunData, name: str) -> None:
    np.testing.assert_allclose(stored.column(name), table.column(name), rtol=1e-6)


def test_a_pivot_that_some_rows_lack_is_nan_there(stored: RunData) -> None:
    assert 0 < np.isnan(stored.column("pivot")).sum() < stored.sessions


@pytest.mark.parametrize("name", ["task", "unsolicited", "unsolicited_gold", "absent"])
@pytest.mark.parametrize("field", ["raw", "weight"])
def test_a_component_is_the_same_from_both(stored: RunData, table: RunData, name: str, field: str) -> None:
    np.testing.assert_allclose(stored.component(name, field), table.component(name, field))


def test_components_are_told_by_name_wherever_they_stand_in_the_list() -> None:
    def part(name: str, raw: float) -> dict:
        return {"name": name, "raw": raw, "value": raw, "weight": 1.0, "role": "optimised"}

    rows = [[part("a", 1.0), part("b", 2.0)], [part("b", 3.0)], [part("b", 4.0), part("a", 5.0)]]
    data = RunData.of_columns("r", [1, 1, 2], ["x", "y", None], {"components": rows})
    np.testing.assert_array_equal(data.component("a"), [1.0, np.nan, 5.0])
    np.testing.assert_array_equal(data.component("b"), [2.0, 3.0, 4.0])
    assert data.codes.tolist() == [0, 1, -1]


def test_roles_and_labels_are_the_same_from_both(stored: RunData, table: RunData) -> None:
    assert stored.component_roles == table.component_roles
    assert stored.labels("prompt_id") == table.labels("prompt_id")


def test_codes_are_equal_exactly_where_values_are(stored: RunData) -> None:
    groups, codes = stored.labels("group_id"), stored.codes_of("group_id")
    assert len(set(zip(groups, codes.tolist(), strict=True))) == len(set(groups)) == len(set(codes.tolist()))


def test_texts_are_those_of_the_asked_sessions(stored: RunData, table: RunData) -> None:
    assert stored.texts(100, 300) == table.texts(100, 300)
    with pytest.raises(ValueError, match="the run has 1 to 1500"):
        stored.texts(1400, 1501)


def test_a_kept_column_cannot_be_changed_by_who_reads_it(table: RunData) -> None:
    with pytest.raises(ValueError, match="read-only"):
        table.column("baseline_reward")[0] = 1.0


def test_an_unknown_run_is_named(tmp_path: Path) -> None:
    with (
        Ledger.open(tmp_path / "l", create=True) as ledger,
        pytest.raises(LedgerError, match="no run `nobody`"),
        RunData.read(ledger, "nobody"),
    ):
        pass


def test_a_run_without_sessions_has_empty_columns(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l", create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.event("attempt_started", {"pipeline": "grpo"})
        with RunData.read(ledger, "r") as data:
            assert data.sessions == 0
            assert data.pipeline == "grpo"
            assert data.column("baseline_reward").shape == (0,)
            assert data.names == ()


def test_an_arm_of_a_fork_is_never_the_run_that_is_taken_unasked(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l", create=True) as ledger:
        rows = [{"pipeline": "grpo", "split": "train", "prompt_id": "p", "baseline_reward": 1.0}] * 4
        for name, payload in (("r", {}), ("r@fork1-s1-with", {"fork_of": {"run_id": "r", "attempt": 1, "step": 1}})):
            with ledger.writer(name) as writer:
                writer.event("attempt_started", {"pipeline": "grpo"} | payload)
                writer.append(step=1, rows=rows)
        assert choose_run(ledger.runs(), pipeline_kinds(ledger.events(kind="attempt_started"))) == "r"
