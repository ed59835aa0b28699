"""The live view against a model in plain Python: random histories of appends, resumes, forks, seals, redactions."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Ledger
from rewards.writer import Writer
from tests.rewards.ledger_rows import row, scratch

KINDS = (
    *("append", "append", "mixed", "eval", "event", "checkpoint", "resume", "fork", "restart", "zombie"),
    *("seal", "close", "redact"),
)

# Each action: (what, a number to choose with).
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 10**6),
    ),
    max_size=25,
)


class Model:
    """Runs as lists of attempts; an attempt is (parent, resume step, rows); a row is (step, writer, seq, split, id)."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.redacted: set[str] = set()

    def claim(self, run: str, parent: Any = None, step: int | None = None, seq: int = 0) -> dict[str, Any]:
        attempt = {
            "run": run,
            "parent": parent,
            "resume": step,
            "rows": [],
            "events": [],
            "seq": seq,
            "start": seq,
            "step": step or 0,
        }
        self.runs.setdefault(run, []).append(attempt)
        return attempt

    def live(self, run: str, what: str) -> list[Any]:
        kept: list[Any] = []
        limit, cut = float("inf"), float("inf")
        attempt: Any = self.runs[run][-1]
        while attempt is not None:
            if attempt["run"] == run:
                kept += [item for item in attempt[what] if item[0] <= limit and (what != "rows" or item[2] <= cut)]
            cut = attempt["start"]
            limit = min(limit, float("inf") if attempt["resume"] is None else attempt["resume"])
            attempt = attempt["parent"]
        return sorted(kept)


def play(ledger: Ledger, actions: list[tuple[str, int]]) -> Model:
    model = Model()
    writers, entries, positions = [ledger.writer("r0")], [model.claim("r0")], []
    for count, (what, n) in enumerate(actions):
        at = n % len(writers) if what == "zombie" else len(writers) - 1
        writer, entry = writers[at], entries[at]
        if what in ("append", "mixed", "eval", "zombie", "event", "checkpoint"):
            if not writer.closed:
                write(writer, entry, positions, (what, n, count))
        elif what == "seal":
            ledger.seal(vacuum=bool(n % 2))
        elif what == "close":
            writer.close()
        elif what == "redact":
            redact(ledger, model, entry["run"], n)
        elif what == "restart":
            writers.append(ledger.writer(entry["run"]))
            entries.append(model.claim(entry["run"]))
        elif positions and what in ("resume", "fork"):
            position, parent, seq = positions[n % len(positions)]
            if what == "resume":
                run = parent["run"]
                writers.append(ledger.writer(run, resume=position))
            else:
                run = f"r{len(model.runs)}"
                writers.append(ledger.writer(run, fork_of=position))
            entries.append(model.claim(run, parent, position["step"], seq))
    for writer in writers:
        if not writer.closed:
            writer.flush()
    return model


def write(writer: Writer, entry: dict[str, Any], positions: list[Any], action: tuple[str, int, int]) -> None:
    what, n, count = action
    if what == "event":
        writer.event("check_in", {"n": count})
        entry["events"].append((entry["step"], count))
    elif what == "checkpoint":
        positions.append((writer.checkpoint(entry["step"]), entry, entry["seq"]))
    else:
        entry["step"] += n % 2 or (entry["step"] <= (entry["resume"] or 0))
        size = 1 + n % 3
        splits = [("eval" if what == "eval" or (what == "mixed" and i % 2) else "train") for i in range(size)]
        writer.append(entry["step"], [row(count, split) for split in splits], durable=n % 3 == 0)
        for split in splits:
            entry["seq"] += 1
            entry["rows"].append((entry["step"], split, entry["seq"], f"p{count}"))


def redact(ledger: Ledger, model: Model, run: str, n: int) -> None:
    """Takes out the answer of some row, superseded or not."""
    rows = [r for r in ledger.sessions(run, live=False, texts=True).to_pylist() if r["response"] is not None]
    if rows:
        chosen = rows[n % len(rows)]
        place = {name: chosen[name] for name in ("attempt", "writer", "seq")}
        ledger.redact(run, **place, columns=["response"], reason="asked for", by="somebody")
        model.redacted.add(f"{run}/{chosen['attempt']}/{chosen['seq']}")


def check(ledger: Ledger, model: Model) -> None:
    for run in model.runs:
        table = ledger.sessions(run, texts=True)
        got = zip(*(table[name].to_pylist() for name in ("step", "split", "seq", "prompt_id")), strict=True)
        expected = model.live(run, "rows")
        assert sorted(got) == expected
        train = [(step, seq, prompt) for step, split, seq, prompt in expected if split == "train"]
        shown = [(r["step"], r["seq"], r["prompt_id"]) for r in table.to_pylist() if r["session"] is not None]
        assert shown == train
        assert table["session"].to_pylist() == [*range(1, len(train) + 1), *[None] * (len(expected) - len(train))]
        for r in table.to_pylist():
            gone = f"{run}/{r['attempt']}/{r['seq']}" in model.redacted
            assert r["response"] == (None if gone else f"answer {r['prompt_id'][1:]}")
        events = [(e["payload"]["n"]) for e in ledger.events(run, kind="check_in")]
        assert sorted(events) == sorted(n for _, n in model.live(run, "events"))
        everything = sum(len(attempt["rows"]) for attempt in model.runs[run])
        assert ledger.sessions(run, live=False).num_rows == everything
        (overview,) = [r for r in ledger.runs() if r["run_id"] == run]
        assert (overview["sessions"], overview["attempts"]) == (len(train), len(model.runs[run]))
        query = "SELECT session, step, seq, prompt_id FROM live WHERE run_id = ? AND split = 'train' ORDER BY session"
        with ledger.connect() as connection:
            told = connection.execute(query, [run]).fetchall()
        assert told == [(place, *content) for place, content in enumerate(train, start=1)]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_the_live_view_equals_the_model(actions: list[tuple[str, int]]) -> None:
    compare(actions)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_the_live_view_equals_the_model_over_many_histories(actions: list[tuple[str, int]]) -> None:
    compare(actions)


def compare(actions: list[tuple[str, int]]) -> None:
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            model = play(ledger, actions)
            check(ledger, model)
            head = ledger.head()
        verification = ledger.verify(anchor=head)
        assert verification.ok, verification.first_bad
        assert verification.head == head
