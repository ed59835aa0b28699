"""The live view against a model in plain Python, over random histories of appends, crashes, resumes and forks."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Ledger
from tests.rewards.ledger_rows import row, scratch

# Each action: (what, a number to choose with).
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "append", "eval", "event", "checkpoint", "resume", "fork", "restart", "zombie"]
        ),
        st.integers(0, 10**6),
    ),
    max_size=25,
)


class Model:
    """Runs as lists of attempts; an attempt is (parent, resume step, rows); a row is (step, writer, seq, split, id)."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def claim(self, run: str, parent: Any = None, step: int | None = None, seq: int = 0) -> dict[str, Any]:
        attempt = {
            "run": run,
            "parent": parent,
            "resume": step,
            "rows": [],
            "events": [],
            "seq": seq,
            "step": step or 0,
        }
        self.runs.setdefault(run, []).append(attempt)
        return attempt

    def live(self, run: str, what: str) -> list[Any]:
        kept: list[Any] = []
        limit = float("inf")
        attempt: Any = self.runs[run][-1]
        while attempt is not None:
            if attempt["run"] == run:
                kept += [item for item in attempt[what] if item[0] <= limit]
            limit = min(limit, float("inf") if attempt["resume"] is None else attempt["resume"])
            attempt = attempt["parent"]
        return sorted(kept)


def play(ledger: Ledger, actions: list[tuple[str, int]]) -> Model:
    model = Model()
    writers, entries, positions = [ledger.writer("r0")], [model.claim("r0")], []
    for count, (what, n) in enumerate(actions):
        at = n % len(writers) if what == "zombie" else len(writers) - 1
        writer, entry = writers[at], entries[at]
        if what in ("append", "eval", "zombie"):
            entry["step"] += n % 2 or (entry["step"] <= (entry["resume"] or 0))
            size = 1 + n % 3
            split = "eval" if what == "eval" else "train"
            writer.append(entry["step"], [row(count, split) for _ in range(size)])
            for _ in range(size):
                entry["seq"] += 1
                entry["rows"].append((entry["step"], split, entry["seq"], f"p{count}"))
        elif what == "event":
            writer.event("check_in", {"n": count})
            entry["events"].append((entry["step"], count))
        elif what == "checkpoint":
            positions.append((writer.checkpoint(entry["step"]), entry, entry["seq"]))
        elif what == "restart":
            writers.append(ledger.writer(entry["run"]))
            entries.append(model.claim(entry["run"]))
        elif positions:
            position, parent, seq = positions[n % len(positions)]
            if what == "resume":
                run = parent["run"]
                writers.append(ledger.writer(run, resume=position))
            else:
                run = f"r{len(model.runs)}"
                writers.append(ledger.writer(run, fork_of=position))
            entries.append(model.claim(run, parent, position["step"], seq))
    for writer in writers:
        writer.flush()
    return model


def check(ledger: Ledger, model: Model) -> None:
    for run in model.runs:
        table = ledger.sessions(run)
        got = zip(*(table[name].to_pylist() for name in ("step", "split", "seq", "prompt_id")), strict=True)
        expected = model.live(run, "rows")
        assert sorted(got) == expected
        train = [(step, seq, prompt) for step, split, seq, prompt in expected if split == "train"]
        shown = [(r["step"], r["seq"], r["prompt_id"]) for r in table.to_pylist() if r["session"] is not None]
        assert shown == train
        assert table["session"].to_pylist() == [*range(1, len(train) + 1), *[None] * (len(expected) - len(train))]
        events = [(e["payload"]["n"]) for e in ledger.events(run, kind="check_in")]
        assert sorted(events) == sorted(n for _, n in model.live(run, "events"))
        everything = sum(len(attempt["rows"]) for attempt in model.runs[run])
        assert ledger.sessions(run, live=False).num_rows == everything
        (overview,) = [r for r in ledger.runs() if r["run_id"] == run]
        assert (overview["sessions"], overview["attempts"]) == (len(train), len(model.runs[run]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_the_live_view_equals_the_model(actions: list[tuple[str, int]]) -> None:
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            model = play(ledger, actions)
            check(ledger, model)
            head = ledger.head()
        verification = ledger.verify(anchor=head)
        assert verification.ok, verification.first_bad
        assert verification.head == head
