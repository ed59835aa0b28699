"""All views against a model in plain Python: several writers, mixed commits, crashes, resumes, forks, redactions."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Ledger, compaction
from rewards.writer import Writer
from tests.rewards.ledger_files import orphans
from tests.rewards.ledger_rows import row, scratch

RECORDS = ("append", "mixed", "eval", "append", "event", "zombie")
LIVES = ("checkpoint", "checkpoint", "resume", "resume", "fork", "restart", "join", "close", "crash")
FILES = ("seal", "compact", "redact")
# Each action: (what, a number to choose with).
ACTIONS = st.lists(st.tuples(st.sampled_from(RECORDS + LIVES + FILES), st.integers(0, 10**6)), max_size=25)

Row = dict[str, Any]


class Attempt:
    """What one attempt recorded."""

    def __init__(self, run: str, number: int, parent: "Attempt | None", resume: int | None, seqs: dict[int, int]):
        self.run, self.number, self.parent, self.resume = run, number, parent, resume
        self.start, self.seqs = dict(seqs), dict(seqs)  # writer -> its last row: of the parent, and now
        self.step = resume or 0
        self.rows: list[Row] = []
        self.events: list[tuple[int, int]] = []


def live_rows(newest: Attempt) -> list[Row]:
    """The rule, in ten lines: what counts of an attempt's run."""
    rows: list[Row] = []
    limit, after, here = float("inf"), None, newest
    while here is not None:
        if here.run == newest.run:
            cut = None if after is None or after.run != here.run else after.start
            rows += [
                r for r in here.rows if r["step"] <= limit and (cut is None or r["seq"] <= cut.get(r["writer"], 0))
            ]
        limit = min(limit, float("inf") if here.resume is None else here.resume)
        after, here = here, here.parent
    return rows


def live_events(newest: Attempt) -> list[int]:
    """The events that count, by the same rule without the numbers of rows."""
    found: list[int] = []
    limit, here = float("inf"), newest
    while here is not None:
        if here.run == newest.run:
            found += [n for step, n in here.events if step <= limit]
        limit = min(limit, float("inf") if here.resume is None else here.resume)
        here = here.parent
    return sorted(found)


class Player:
    """Plays actions on a ledger and in the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger.open(folder / "ledger", create=True)
        self.runs: dict[str, list[Attempt]] = {}
        self.writers: list[tuple[Attempt, dict[int, Writer]]] = []
        self.positions: list[tuple[dict[str, Any], Attempt, dict[int, int]]] = []
        self.count = 0
        self._claim("r0", None, None, {})

    def _claim(self, run: str, parent: Attempt | None, step: int | None, seqs: dict[int, int], **how: Any) -> None:
        attempts = self.runs.setdefault(run, [])
        attempts.append(Attempt(run, len(attempts) + 1, parent, step, seqs))
        self.writers.append((attempts[-1], {0: self.ledger.writer(run, seal_rows=3, **how)}))

    def play(self, what: str, n: int) -> None:
        self.count += 1
        at = n % len(self.writers) if what == "zombie" else -1
        attempt, writers = self.writers[at]
        if what in RECORDS and what != "event":
            self._record(what, n, attempt, writers)
        elif what == "event":
            writers[0].event("check_in", {"n": self.count})
            attempt.events.append((attempt.step, self.count))
        elif what == "checkpoint":
            for writer in writers.values():
                writer.flush()
            self.positions.append((writers[0].checkpoint(attempt.step), attempt, dict(attempt.seqs)))
        elif what == "join" and 1 not in writers:
            writers[1] = self.ledger.writer(attempt.run, writer=1, attempt=attempt.number, seal_rows=2)
            attempt.seqs.setdefault(1, 0)
        elif what == "restart":
            self._claim(attempt.run, None, None, {})
        elif what in ("resume", "fork") and self.positions:
            position, parent, seqs = self.positions[n % len(self.positions)]
            run = parent.run if what == "resume" else f"r{len(self.runs)}"
            self._claim(run, parent, position["step"], seqs, **{"resume" if what == "resume" else "fork_of": position})
        else:
            self._change_files(what, n)

    def _record(self, what: str, n: int, attempt: Attempt, writers: dict[int, Writer]) -> None:
        number = n // 7 % len(writers)
        attempt.step += n % 2 or (attempt.step <= (attempt.resume or 0))
        splits = {"eval": ["eval"], "mixed": ["eval", "train", "eval", "train"]}.get(what, ["train"] * (1 + n % 3))
        texts = [None if n % 5 == 0 else f"{self.count}.{i}" for i in range(len(splits))]
        rows = [row(self.count, split, response=text) for split, text in zip(splits, texts, strict=True)]
        writers[number].append(attempt.step, rows)
        for recorded in rows:
            attempt.seqs[number] = attempt.seqs.get(number, 0) + 1
            key = {"attempt": attempt.number, "writer": number, "seq": attempt.seqs[number], "step": attempt.step}
            attempt.rows.append(key | {name: recorded[name] for name in ("split", "prompt_id", "response")})

    def _change_files(self, what: str, n: int) -> None:
        self.flush()
        if what == "seal":
            self.ledger.seal(vacuum=bool(n % 2))
        elif what == "compact":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(compaction, "_FEW_FILES", 2)
                self.ledger.seal()
        elif what in ("close", "crash"):
            copy = self.folder / f"ledger after {self.count}"
            if what == "crash":  # what is on disk now is what a killed process leaves
                shutil.copytree(self.ledger.path, copy)
            self.ledger.close()
            if what == "crash":
                self.ledger = Ledger.open(copy)
            run = self.writers[-1][0].run
            self.writers = []
            known = [None, *(place for place in self.positions if place[1].run == run)]
            place = known[n % len(known)]
            if place is None:
                self._claim(run, None, None, {})
            else:
                self._claim(run, place[1], place[0]["step"], place[2], resume=place[0])
        elif what == "redact":
            run = sorted(self.runs)[n % len(self.runs)]
            told = [(a, r) for a in self.runs[run] for r in a.rows if r["response"] is not None]
            if told:
                attempt, taken = told[n % len(told)]
                place = (attempt.number, taken["writer"], taken["seq"])
                self.ledger.redact(run, *place, ["response"], reason="asked for", by="me")
                taken["response"] = None

    def flush(self) -> None:
        for _, writers in self.writers:
            for writer in writers.values():
                writer.flush()


def check(player: Player) -> None:
    player.flush()
    ledger = player.ledger
    with ledger.connect() as connection:
        views = {
            name: connection.sql(f"SELECT * FROM {name} ORDER BY run_id, attempt, writer, seq")
            .to_arrow_table()
            .to_pylist()
            for name in ("live", "sessions", "texts")
        }
    for run, attempts in player.runs.items():
        counting = [id(r) for r in live_rows(attempts[-1])]
        everything = [r | {"live": id(r) in counting} for attempt in attempts for r in attempt.rows]
        everything.sort(key=lambda r: (r["split"] != "train", r["step"], r["writer"], r["attempt"], r["seq"]))
        number = 0
        for r in everything:
            counts = r["live"] and r["split"] == "train"
            number += counts
            r["session"] = number if counts else None
        names = ["attempt", "writer", "seq", "step", "split", "prompt_id", "response", "live", "session"]
        assert ledger.sessions(run, live=False, texts=True).select(names).to_pylist() == everything
        live = [{name: r[name] for name in names if name != "live"} for r in everything if r["live"]]
        assert ledger.sessions(run, texts=True).select([n for n in names if n != "live"]).to_pylist() == live
        check_views({name: [r for r in rows if r["run_id"] == run] for name, rows in views.items()}, everything, live)
        events = sorted(e["payload"]["n"] for e in ledger.events(run, kind="check_in"))
        assert events == live_events(attempts[-1])
        (overview,) = [r for r in ledger.runs() if r["run_id"] == run]
        assert (overview["sessions"], overview["attempts"]) == (number, len(attempts))


def check_views(views: dict[str, list[Row]], everything: list[Row], live: list[Row]) -> None:
    def by_key(rows: list[Row], *names: str) -> dict[tuple[int, int, int], tuple[Any, ...]]:
        found = {(r["attempt"], r["writer"], r["seq"]): tuple(r[name] for name in names) for r in rows}
        assert len(found) == len(rows), "a row came twice"
        return found

    columns = ("step", "split", "prompt_id", "session")
    assert by_key(views["live"], *columns) == by_key(live, *columns)
    assert by_key(views["sessions"], *columns, "live") == by_key(everything, *columns, "live")
    told = by_key([r for r in views["texts"] if r["response"] is not None], "response")
    assert told == by_key([r for r in everything if r["response"] is not None], "response")


def play_all(actions: list[tuple[str, int]], when: Callable[[int], bool]) -> None:
    with scratch() as folder:
        player = Player(folder)
        try:
            for number, (what, n) in enumerate(actions):
                player.play(what, n)
                if when(number):
                    check(player)
            check(player)
            head = player.ledger.head()
            assert player.ledger.verify(anchor=head).problems == ()
            player.ledger.close()
            player.ledger.seal()
            check(player)
            assert player.ledger.verify(anchor=head).problems == () and orphans(player.ledger.path) == set()
        finally:
            with suppress(Exception):
                player.ledger.close()


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_all_views_equal_the_model(actions: list[tuple[str, int]]) -> None:
    play_all(actions, lambda number: False)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_all_views_equal_the_model_after_every_step(actions: list[tuple[str, int]]) -> None:
    play_all(actions, lambda number: True)
