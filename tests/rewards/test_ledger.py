"""Writing and reading: what goes in comes out, what does not fit is refused by name, errors say what to do."""

import gc
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rewards import Ledger
from rewards.errors import LedgerError
from rewards.schema import arrow_schema
from rewards.writer import Writer
from tests.rewards.ledger_rows import RECALIBRATION, row, rows, scratch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        yield ledger


@pytest.fixture(scope="module")
def shared() -> Iterator[Writer]:
    """A writer to which nothing fits: the tests that use it leave nothing behind."""
    with scratch() as folder, Ledger.open(folder / "ledger", create=True) as ledger:
        writer = ledger.writer("r")
        yield writer
        writer.append(1, [row(2)])
        writer.flush()
        assert column(ledger, "prompt_id") == ["p2"] and column(ledger, "seq") == [1]
        assert ledger.events("r") == []


def column(ledger: Ledger, name: str, run: str = "r", **options: Any) -> list[Any]:
    return ledger.sessions(run, **options)[name].to_pylist()


def write(ledger: Ledger, *batch: dict[str, Any], step: int = 1) -> None:
    with ledger.writer("r") as writer:
        writer.append(step, list(batch))


# -- what goes in comes out -----------------------------------------------------------------------------------------


def test_rows_come_back_as_they_went_in(ledger: Ledger) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    full = row(
        3,
        time=when,
        arm="b",
        group_size=8,
        sample_seed=2**62,
        policy_version=4,
        trajectory_index=0.25,
        differential_pct=15.0,
        pivot=0.1,
        advantage=0.1,
        truncated=True,
        prompt="what\x00is\n2 + 2?",
        rejected="\N{SNOWMAN}",
        components=[
            {"name": "task", "raw": 0.1, "value": -0.0, "weight": 1, "role": "gold", "status": "ok", "latency_ms": 0.1},
            {"name": "none", "raw": None, "value": None, "status": "na", "scorer_id": "abc", "cost": 1e-3},
        ],
    )
    write(ledger, full)
    table = ledger.sessions("r", texts=True)
    assert table.schema.names == [*arrow_schema(texts=True).names, "session"]
    got = table.to_pylist()[0]
    assert got["components"][0]["raw"] == 0.1, "float64 survives to the last bit"
    assert got["advantage"] == np.float32(0.1), "float32 is rounded once, on the way in"
    assert got["components"][0]["latency_ms"] == np.float32(0.1)
    assert got["components"][1]["raw"] is None and got["components"][1]["scorer_id"] == "abc"
    for name in ("time", "arm", "prompt", "rejected", "response", "sample_seed", "compliant", "truncated", "pivot"):
        assert got[name] == full[name], name
    assert (got["run_id"], got["attempt"], got["writer"], got["seq"], got["step"]) == ("r", 1, 0, 1, 1)
    assert got["kl_nats"] is None, "what was not given is null"


def test_nan_and_infinity_are_neither_null_nor_lost(ledger: Ledger) -> None:
    values = [math.nan, math.inf, -math.inf, None, 0.0]
    components = [[{"name": "a", "raw": v}] for v in values]
    write(
        ledger,
        *(
            row(i, adjusted_reward=v, advantage=v, components=c)
            for i, (v, c) in enumerate(zip(values, components, strict=True))
        ),
    )
    for got in (
        column(ledger, "adjusted_reward"),
        column(ledger, "advantage"),
        [c[0]["raw"] for c in column(ledger, "components")],
    ):
        assert math.isnan(got[0]) and got[1:] == values[1:]
    assert ledger.verify().ok


def test_no_components_and_unknown_components_are_told_apart(ledger: Ledger) -> None:
    write(ledger, row(0, components=[]), row(1, components=None))
    assert column(ledger, "components") == [[], None]
    assert ledger.verify().ok


def test_numpy_scalars_and_whole_numbers_fit_where_they_mean_the_same(ledger: Ledger) -> None:
    batch = row(0, adjusted_reward=np.float32(0.5), baseline_reward=1, compliant=np.bool_(True), group_size=np.int64(8))
    write(ledger, batch | {"prompt_id": 17, "row_id": np.int32(4)})
    got = ledger.sessions("r").to_pylist()[0]
    assert (got["adjusted_reward"], got["baseline_reward"], got["compliant"], got["group_size"]) == (0.5, 1.0, True, 8)
    assert (got["prompt_id"], got["row_id"]) == ("17", "4"), "identifiers are text"


def test_arrow_tables_are_taken_as_they_are(ledger: Ledger) -> None:
    table = pa.table(
        {
            "pipeline": ["dpo", "dpo"],
            "split": pa.array(["train", "train"]).dictionary_encode(),
            "prompt_id": ["a", "b"],
            "adjusted_reward": pa.array([1, None], pa.float32()),
            "components": [[{"name": "margin", "raw": 0.5}], None],
            "response": ["x", None],
        }
    )
    with ledger.writer("r") as writer:
        writer.append(1, table).wait()
        writer.append(2, table.to_batches()[0]).wait()
    assert column(ledger, "adjusted_reward") == [1.0, None, 1.0, None]
    assert column(ledger, "response", texts=True) == ["x", None, "x", None]
    assert ledger.verify().ok


def test_arm_and_pipeline_id_of_the_writer_are_defaults(ledger: Ledger) -> None:
    with ledger.writer("r", arm="control", pipeline_id="demo") as writer:
        writer.append(1, [row(0), row(1, arm="other")])
    assert column(ledger, "arm") == ["control", "other"]
    assert column(ledger, "pipeline_id") == ["demo", "demo"]
    assert ledger.runs()[0]["pipeline_id"] == "demo"


def test_sessions_are_numbered_densely_over_train_rows_by_step_writer_and_seq(ledger: Ledger) -> None:
    zero = ledger.writer("r")
    one = ledger.writer("r", writer=1, attempt=zero.attempt)
    one.append(1, rows(10, 2))
    zero.append(2, rows(20, 2))
    zero.append(1, [row(30), row(31, "eval"), row(32)])
    one.append(2, rows(40, 1))
    ledger.close()
    table = ledger.sessions("r")
    assert table["session"].to_pylist() == [1, 2, 3, 4, 5, 6, 7, None]
    assert table["prompt_id"].to_pylist() == ["p30", "p32", "p10", "p11", "p20", "p21", "p40", "p31"]
    assert ledger.runs()[0]["sessions"] == 7


def test_texts_stay_out_unless_asked_for(ledger: Ledger) -> None:
    write(ledger, row(0))
    assert "response" not in ledger.sessions("r").schema.names
    assert column(ledger, "response", texts=True) == ["answer 0"]


def test_a_run_without_rows_has_an_empty_table(ledger: Ledger) -> None:
    ledger.writer("r").close()
    table = ledger.sessions("r", texts=True)
    assert table.num_rows == 0 and table.schema.names[-1] == "session"
    assert ledger.sessions("r", live=False).num_rows == 0


# -- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"adjusted_rewrad": 1.0}, "row 1: unknown column `adjusted_rewrad`"),
        ({"adjusted_reward": "high"}, "row 1: column `adjusted_reward` is str, not a number"),
        ({"adjusted_reward": True}, "row 1: column `adjusted_reward` is bool, not a number"),
        ({"compliant": 1}, "row 1: column `compliant` is int, not true or false"),
        ({"group_size": 2.0}, "row 1: column `group_size` is float, not a whole number"),
        ({"group_size": 2**40}, "row 1: column `group_size`: '1099511627776' does not fit in int32"),
        ({"category": 3}, "row 1: column `category` is int, not text"),
        ({"prompt_id": 3.0}, "row 1: column `prompt_id` is float, not text"),
        ({"response": ["x"]}, "row 1: column `response` is list, not text"),
        ({"response": "\ud800"}, "row 1: column `response`"),
        ({"time": datetime(2026, 1, 1)}, "row 1: column `time` is datetime, not a datetime with a time zone"),
        ({"split": "test"}, "row 1: column `split` is 'test', not one of train, eval"),
        ({"split": None}, "row 1: column `split` is missing"),
        ({"components": {"name": "a"}}, "row 1: column `components` is dict, not a list"),
        ({"components": ["a"]}, "row 1: column `components` holds str, not dicts"),
        ({"components": [{"name": "a", "role": "boss"}]}, "row 1, column `components`, .*`role` is 'boss', not one of"),
        ({"components": [{"name": "a"}, {"raw": 1.0}]}, "row 1, column `components`, .*`name` is missing"),
        ({"components": [{"name": "a", "raw": "1"}]}, "row 1, column `components`, .*`raw` is str, not a number"),
        ({"components": [{"name": "a", "wieght": 1}]}, "row 1: unknown key `wieght` in column `components`"),
        ({"session": 4}, "row 1: unknown column `session`"),
        ({"seq": 4}, "row 1: column `seq` is filled by the ledger"),
        ({"step": 4}, "row 1: column `step` is filled by the ledger"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_of_its_batch_is_kept(
    shared: Writer, bad: dict[str, Any], said: str
) -> None:
    with pytest.raises(LedgerError, match=said):
        shared.append(1, [row(0), row(1) | bad])


@pytest.mark.parametrize("given", [[], pa.table({"split": pa.array([], pa.string())})])
def test_appending_nothing_is_an_error(shared: Writer, given: Any) -> None:
    with pytest.raises(LedgerError, match="no rows"):
        shared.append(1, given)


@pytest.mark.parametrize("given", [{"split": "train"}, "rows", None, [1], 3])
def test_rows_of_another_kind_are_refused(shared: Writer, given: Any) -> None:
    with pytest.raises(LedgerError, match="not a"):
        shared.append(1, given)


@pytest.mark.parametrize("missing", ["pipeline", "split", "prompt_id"])
def test_required_columns_are_required(shared: Writer, missing: str) -> None:
    with pytest.raises(LedgerError, match=f"column `{missing}` is missing"):
        shared.append(1, [{k: v for k, v in row(0).items() if k != missing}])


@pytest.mark.parametrize("step", [-1, 1.5, True, "1", None])
def test_a_step_is_a_whole_number_from_zero(shared: Writer, step: Any) -> None:
    with pytest.raises(LedgerError, match="step is"):
        shared.append(step, [row(0)])


def test_later_changes_to_a_row_change_nothing(ledger: Ledger) -> None:
    batch = [row(0)]
    with ledger.writer("r") as writer:
        writer.append(1, batch)
        batch[0]["adjusted_reward"] = 99.0
        batch[0]["components"][0]["raw"] = 99.0
    assert column(ledger, "adjusted_reward") == [0.0]
    assert column(ledger, "components")[0][0]["raw"] == 0.0


# -- events ---------------------------------------------------------------------------------------------------------


def test_events_come_back_in_order_with_everything_they_said(ledger: Ledger) -> None:
    payload = {
        "loss": math.nan,
        "up": math.inf,
        "n": np.int64(3),
        "x": np.float32(0.5),
        "list": np.arange(2),
        "path": Path("a/b"),
    }
    with ledger.writer("r") as writer:
        writer.event("step_stats", payload, step=1)
        writer.event("recalibration", RECALIBRATION)
    first, second = ledger.events("r")
    assert list(first) == ["run_id", "attempt", "seq", "step", "time", "kind", "payload"]
    assert math.isnan(first["payload"].pop("loss"))
    assert first["payload"] == {"up": math.inf, "n": 3, "x": 0.5, "list": [0, 1], "path": "a/b"}
    assert second["payload"] == RECALIBRATION and second["step"] is None
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert first["seq"] < second["seq"]
    assert ledger.events(kind="recalibration") == [second]
    assert ledger.events("r", kind="pause") == []


@pytest.mark.parametrize(
    ("kind", "payload", "said"),
    [
        ("recalibrated", {}, "unknown event kind `recalibrated`"),
        ("attempt_claimed", {}, "unknown event kind"),
        ("recalibration", {"category": "a"}, "has no `op`"),
        ("pivot_set", {"category": "a"}, "has no `value`"),
        ("annotation", {"label": "a"}, "has no `annotator`"),
        ("step_stats", [1], "payload is list, not a dict"),
        ("step_stats", {"a": [{"b": object()}]}, r"payload.a\[0\].b is object"),
        ("step_stats", {(1, 2): 3}, "has the key"),
        ("step_stats", {"$float": 3}, "has the key"),
        ("step_stats", {"a": "\ud800"}, "no valid Unicode"),
    ],
)
def test_an_event_that_does_not_fit_is_refused(shared: Writer, kind: str, payload: Any, said: str) -> None:
    with pytest.raises(LedgerError, match=said):
        shared.event(kind, payload)


# -- the way to disk ------------------------------------------------------------------------------------------------


def test_a_ticket_is_durable_once_waited_for(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    ticket = writer.append(1, rows(0, 3))
    ticket.wait()
    assert ticket.done()
    assert column(ledger, "seq") == [1, 2, 3], "another connection sees it while the writer is open"
    event = writer.event("pause", {})
    writer.flush()
    assert event.done()
    writer.close()
    writer.close()


def test_what_waits_is_written_in_one_transaction(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from rewards.tail import TailWriter

    gate, calls, write = threading.Event(), [], TailWriter.commit

    def slow(tail: TailWriter, batches: Any) -> None:
        calls.append(len(batches))
        gate.wait(10)
        write(tail, batches)

    monkeypatch.setattr(TailWriter, "commit", slow)
    with ledger.writer("r") as writer:
        for step in range(1, 11):
            writer.append(step, rows(step, 2))
        gate.set()
    assert sum(calls) == 10 and len(calls) <= 3
    assert column(ledger, "step") == sorted(list(range(1, 11)) * 2)
    assert ledger.verify().ok


def test_a_writer_that_is_not_closed_writes_at_exit(tmp_path: Path) -> None:
    code = (
        "from rewards import Ledger; from tests.rewards.ledger_rows import rows\n"
        f"w = Ledger.open({str(tmp_path / 'l')!r}, create=True).writer('r')\n"
        "for s in range(1, 40): w.append(s, rows(0, 8))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert Ledger.open(tmp_path / "l").sessions("r").num_rows == 39 * 8


def test_a_failure_of_a_writer_that_nobody_closes_is_printed(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = ledger.writer("r")
    full_disk(writer)
    writer.append(1, rows(0, 400, prompt="x" * 500))
    ledger._writers.clear()
    del writer
    gc.collect()
    assert "400 session rows handed over last were not written" in capsys.readouterr().err


def test_a_closed_writer_refuses(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    writer.close()
    with pytest.raises(LedgerError, match="is closed"):
        writer.append(1, [row(0)])


def test_a_forked_process_is_told_to_join_on_its_own(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    writer.append(1, [row(0)]).wait()
    child = os.fork()
    if child == 0:
        try:
            writer.append(1, [row(1)])
        except LedgerError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    writer.append(1, [row(2)])
    writer.close()
    assert column(ledger, "prompt_id") == ["p0", "p2"] and ledger.verify().ok


def full_disk(writer: Any) -> None:
    """The next write to the tail meets a full disk."""
    tail = writer._committer._sinks["rows"].__closure__[1].cell_contents
    pages = tail._connection.execute("PRAGMA page_count").fetchone()[0]
    tail._connection.execute(f"PRAGMA max_page_count={pages}")


@pytest.mark.parametrize("how", ["wait", "flush", "append", "event", "checkpoint", "close"])
def test_a_failed_write_surfaces_wherever_one_looks_next(ledger: Ledger, how: str) -> None:
    writer = ledger.writer("r")
    writer.append(1, rows(0, 4)).wait()
    full_disk(writer)
    ticket = writer.append(2, rows(4, 400, prompt="x" * 500))
    if how in ("append", "event"):
        ticket._done.wait()
    ways = {
        "wait": ticket.wait,
        "flush": writer.flush,
        "append": lambda: writer.append(3, [row(9)]),
        "event": lambda: writer.event("pause", {}),
        "checkpoint": lambda: writer.checkpoint(2),
        "close": writer.close,
    }
    with pytest.raises(LedgerError, match=r"tails/000001-000.db: .*full.*400 session rows.*resume from the last"):
        ways[how]()
    with pytest.raises(LedgerError, match="full"):
        writer.close()
    assert column(ledger, "step") == [1] * 4, "what was acknowledged is there, nothing else"
    assert ledger.verify().ok


def test_after_a_failed_write_nothing_later_is_written(ledger: Ledger) -> None:
    writer = ledger.writer("r")
    full_disk(writer)
    tickets = [writer.append(1, rows(0, 400, prompt="x" * 500)), writer.event("pause", {})]
    for ticket in tickets:
        with pytest.raises(LedgerError):
            ticket.wait()
    assert ledger.events("r") == []
    with pytest.raises(LedgerError, match="full"), writer:
        pass


def test_the_error_of_a_block_is_not_hidden_by_the_writers_own(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.writer("r") as writer:
        writer.append(1, [row(0)])
        raise ZeroDivisionError
    assert column(ledger, "prompt_id") == ["p0"]


def test_a_lock_held_by_another_process_is_waited_for(ledger: Ledger) -> None:
    with ledger.writer("r") as writer:
        other = sqlite3.connect(ledger.path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        ticket = writer.event("pause", {})
        with pytest.raises(TimeoutError):
            ticket.wait(0.3)
        other.execute("COMMIT")
        other.close()
        ticket.wait(20)
    assert [e["kind"] for e in ledger.events("r")] == ["pause"]


# -- opening --------------------------------------------------------------------------------------------------------


def test_opening_what_is_no_ledger_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"nowhere: no such folder.*create=True"):
        Ledger.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="file: is a file"):
        Ledger.open(tmp_path / "file", create=True)
    with pytest.raises(LedgerError, match=r"not a ledger \(it has no ledger.db\)"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="holds other files"):
        Ledger.open(tmp_path, create=True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "ledger.db").write_text("this is no database, however long it is " * 100)
    with pytest.raises(LedgerError, match=r"ledger.db: cannot .*no SQLite database"):
        Ledger.open(tmp_path / "odd")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "ledger.db").touch()
    with pytest.raises(LedgerError, match="no table of events"):
        Ledger.open(tmp_path / "empty")


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("CREATE TABLE accounts (name TEXT)")
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="a database of something else"):
        Ledger.open(tmp_path, create=True)
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("CREATE TABLE events (name TEXT)")
    with pytest.raises(LedgerError, match="another application's database"):
        Ledger.open(tmp_path)


def test_a_ledger_of_a_newer_version_is_refused(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path / "ledger.db") as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(LedgerError, match="newer version"):
        Ledger.open(ledger.path)


def test_creating_twice_is_harmless_even_at_once(tmp_path: Path) -> None:
    code = f"from rewards import Ledger; Ledger.open({str(tmp_path / 'l')!r}, create=True).writer('r').close()"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    ledger = Ledger.open(tmp_path / "l", create=True)
    assert ledger.runs()[0]["attempts"] == 3 and ledger.verify().ok


def test_a_missing_tail_is_named(ledger: Ledger) -> None:
    write(ledger, row(0))
    tail = next((ledger.path / "tails").glob("*.db"))
    tail.rename(tail.with_suffix(".away"))
    with pytest.raises(LedgerError, match=r"000001-000.db: .*missing; restore it"):
        ledger.sessions("r")


def test_an_unknown_run_or_kind_is_named_with_those_there_are(ledger: Ledger) -> None:
    write(ledger, row(0))
    with pytest.raises(LedgerError, match="no run `q`; the runs are: `r`"):
        ledger.sessions("q")
    with pytest.raises(LedgerError, match="no run `q`"):
        ledger.events("q")
    with pytest.raises(LedgerError, match="unknown event kind `oops`"):
        ledger.events("r", kind="oops")


def test_reading_works_where_nothing_can_be_written(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ledger, row(0))
    for path in ledger.path.rglob("*.db-*"):
        path.unlink()
    monkeypatch.setattr("rewards.sqlite.os.access", lambda path, mode: False)
    assert ledger.sessions("r").num_rows == 1 and ledger.verify().ok
    assert not list(ledger.path.rglob("*.db-*")), "nothing was written"


def test_names_of_runs_are_text_that_can_be_printed(ledger: Ledger) -> None:
    for bad in ("", " ", "a\nb", None, 3):
        with pytest.raises(LedgerError, match="run_id is"):
            ledger.writer(bad)  # type: ignore[arg-type]
    with ledger.writer("../../odd name/ü") as writer:
        writer.append(1, [row(0)])
    assert ledger.sessions("../../odd name/ü").num_rows == 1
    assert [p.name for p in (ledger.path / "tails").glob("*.db")] == ["000001-000.db"]


def test_runs_say_what_there_is(ledger: Ledger) -> None:
    with ledger.writer("demo/sft") as writer:
        writer.append(1, rows(0, 4))
        writer.append(2, [row(9, "eval")])
        writer.event("attempt_ended", {"status": "completed", "steps": 2}, step=2)
    with ledger.writer("demo/dpo") as writer:
        writer.event("stopped", {"reason": "NaN", "exit_code": 3})
    ledger.writer("demo/grpo").close()
    sft, dpo, grpo = ledger.runs()
    assert (sft["run_id"], sft["sessions"], sft["steps"], sft["status"]) == ("demo/sft", 4, 1, "completed")
    assert (sft["attempts"], sft["newest_attempt"]) == (1, 1)
    assert (dpo["status"], grpo["status"], grpo["ended"]) == ("stopped", "open", None)
    assert sft["started"] < sft["ended"]
    json.dumps([sft, dpo, grpo])
