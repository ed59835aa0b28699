"""The work of an import: all rows are read and checked before the first is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rewards.errors import DataError, LedgerError
from rewards.importers.detect import detect, make_source
from rewards.importers.events import ReadEvent, placed, read_events, renumbered
from rewards.importers.fields import Fields, Options
from rewards.importers.files import InputFile, check_unchanged, find_files, fingerprint
from rewards.importers.order import Numbering, Places, check_dense, joined
from rewards.importers.prepare import DEFAULTS, Prepared, constant_values, prepare
from rewards.importers.source import Source
from rewards.importers.staging import Staging

if TYPE_CHECKING:
    from rewards.ledger import Ledger
    from rewards.writer import Writer

# A file whose rows take no more than this is read once; a larger one is read again when it is written.
_KEPT = 256 << 20


@dataclass(frozen=True)
class Request:
    """What to import.

    files: files, folders and globs. form: as `detect.FORMATS`. weights: of TRL's reward functions.
    """

    run_id: str
    files: Sequence[str | Path]
    form: str = "auto"
    options: Options = field(default_factory=Options)
    events: Path | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


class Import:
    """One import: `check` reads everything and writes nothing, `write` writes what was checked."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.began = time.monotonic()
        paths = find_files(request.files)
        self.form = detect(paths) if request.form == "auto" else request.form
        reserved = set(request.options.columns.values()) | request.options.drop
        self.source: Source = make_source(paths, self.form, request.weights, reserved)
        self.files: list[InputFile] = [fingerprint(path) for path in self.source.files]
        self.fields = Fields(request.options)
        self.constants = constant_values(dict(request.options.constants))
        self.events: list[ReadEvent] = []
        self.foreign_events = 0
        if request.events is not None:
            self.events, self.foreign_events = read_events(request.events)
        self.numbering = Numbering()
        self.superseded = 0
        self.pipeline: str = DEFAULTS["pipeline"]
        self.defaults: dict[str, str] = {}
        self._kept: list[pa.Table] | None = None

    # -- reading -------------------------------------------------------------------------------------------------------

    def prepared(self) -> Iterator[Prepared]:
        """The rows that count, stretch by stretch, in the order of the files."""
        for chunk in self.source.chunks():
            if chunk.count:
                yield prepare(chunk, self.fields, self.constants)

    def check(self, staging: Staging) -> None:
        """Reads all rows and events once; stages them sorted where they do not stand in the order of their sessions.

        Raises: DataError for the first thing that does not fit, at its place.
        """
        wanted = frozenset(event.session for event in self.events if event.session is not None and event.step is None)
        numbering = Numbering(wanted)
        kept, size = list[pa.Table](), 0
        for rows in self.prepared():
            if not numbering.rows:
                self.pipeline = rows.columns["pipeline"][0].as_py()
            self._note_defaults(rows)
            numbers = numbering.number(rows)
            if size <= _KEPT and numbering.ordered:
                kept.append(_table(rows, numbering, numbers))
                size += kept[-1].nbytes
            else:
                kept.clear()
        where = str(self.source.files[0]) if len(self.source.files) == 1 else f"{len(self.source.files)} files"
        if not numbering.rows:
            raise DataError(f"{where}: no rows; there is nothing to import")
        self.fields.check_used(where)
        self.numbering = numbering
        if not numbering.ordered:
            self._stage(staging, wanted)
        elif kept:
            self._kept = kept
        for chunk in self.source.superseded():
            self.superseded += prepare(chunk, self.fields, self.constants).count
        self.events = placed(self.events, self.numbering.steps, numbering.sessions)
        check_unchanged(self.files)

    def _note_defaults(self, rows: Prepared) -> None:
        for name, text in DEFAULTS.items():
            if name not in self.fields.given and name not in self.constants:
                self.defaults[name] = text
        if "session" not in rows.columns:
            self.defaults["session"] = "the order of the rows"
        if "step" not in rows.columns:
            self.defaults["step"] = "the session's number"
        if "prompt_id" not in rows.columns:
            number = "the session's number"
            self.defaults["prompt_id"] = f"row_id, else {number}" if "row_id" in rows.columns else number

    def _stage(self, staging: Staging, wanted: frozenset[int]) -> None:
        numbering, places = Numbering(wanted), Places()
        sessions, steps, owners = [], [], []
        for rows in self.prepared():
            numbers = numbering.number(rows)
            table = _table(rows, numbering, numbers)
            staging.add(table, numbers.session, numbering.rows - rows.count)
            places.add(rows.count, rows.at)
            sessions.append(numbers.session[numbers.train])
            steps.append(numbers.step[numbers.train])
            owners.append(numbers.train.nonzero()[0] + numbering.rows - rows.count)
        owner = joined(owners)
        check_dense(joined(sessions), joined(steps), lambda row: places(int(owner[row])))
        staging.close()
        self.numbering.steps = numbering.steps

    # -- writing -------------------------------------------------------------------------------------------------------

    def tables(self, staging: Staging) -> Iterator[pa.Table]:
        """All rows that count as the ledger's columns, steps never going backwards."""
        if not self.numbering.ordered:
            yield from staging.sorted()
            return
        if self._kept is not None:
            yield from self._kept
            return
        numbering = Numbering()
        for rows in self.prepared():
            yield _table(rows, numbering, numbering.number(rows))

    def older_tables(self) -> Iterator[pa.Table]:
        """The rows that a resumed process scored anew."""
        for chunk in self.source.superseded():
            rows = prepare(chunk, self.fields, self.constants)
            yield pa.table({name: array for name, array in rows.columns.items() if name != "session"})

    def write(self, ledger: Ledger, staging: Staging) -> None:
        """Writes rows and events.

        Raises: LedgerError when something could not be written; the run then says that it stopped.
        """
        resume_step = self.source.resume_step
        tables = self.tables(staging)
        if resume_step is None:
            with self._attempt(ledger, None) as writer:
                for table in tables:
                    writer.append_table(table)
            return
        late: list[pa.Table] = []
        with _recorded(ledger.writer(self.request.run_id)) as writer:
            older = "what a resumed process scored anew, kept for audit"
            writer.event("attempt_started", self._announcement(older), 0).wait()
            for table in tables:
                early = pc.less_equal(table["step"], resume_step)
                late.append(table.filter(pc.invert(early)))
                if pc.any(early).as_py():
                    writer.append_table(table.filter(early))
            for table in self.older_tables():
                writer.append_table(table)
            position = writer.checkpoint(resume_step)
        with self._attempt(ledger, position) as writer:
            for table in late:
                if table.num_rows:
                    writer.append_table(table)

    @contextmanager
    def _attempt(self, ledger: Ledger, position: dict[str, Any] | None) -> Iterator[Writer]:
        with _recorded(ledger.writer(self.request.run_id, resume=position)) as writer:
            # Durable before the first row: it is what says that a run which never came to its end was an import.
            writer.event("attempt_started", self._announcement(), position["step"] if position else 0).wait()
            yield writer
            check_unchanged(self.files)
            self._write_events(writer)
            last = self.numbering.last_step
            writer.event("attempt_ended", {"status": "imported", "steps": last}, last)

    def _write_events(self, writer: Writer) -> None:
        numbers: dict[int, int] = {}
        for event in self.events:
            ticket = writer.event(event.kind, renumbered(event.payload, numbers), event.step)
            if event.number is not None:
                ticket.wait()
                numbers[event.number] = ticket.result.seq

    def _announcement(self, statement: str | None = None) -> dict[str, Any]:
        options = self.request.options
        return {
            "stage": "import",
            "pipeline": self.pipeline,
            "import": {
                "format": self.form,
                "files": [file.describe() for file in self.files],
                "rows": self.numbering.rows,
                "mapped": dict(options.columns),
                "constants": dict(options.constants),
                "dropped": sorted(options.drop),
                "defaults": self.defaults,
                "notes": list(self.source.notes.values()),
                "cannot_contain": list(self.source.limits),
            },
            "statement": statement,
        }


def _table(rows: Prepared, numbering: Numbering, numbers: Any) -> pa.Table:
    columns = {name: array for name, array in rows.columns.items() if name != "session"}
    if "prompt_id" not in columns:
        columns["prompt_id"] = numbering.prompt_ids(rows, numbers)
    columns["step"] = pa.array(numbers.step)
    return pa.table(columns)


@contextmanager
def _recorded(writer: Writer) -> Iterator[Writer]:
    """Closes the writer; a failure on the way stands in the run."""
    with writer:
        try:
            yield writer
        except BaseException as error:
            _say_stopped(writer, error)
            raise


def _say_stopped(writer: Writer, error: BaseException) -> None:
    try:
        writer.event("stopped", {"reason": f"the import failed: {error or type(error).__name__}", "exit_code": 2})
        writer.flush()
    except LedgerError:
        return  # what cannot be recorded cannot be recorded either; the run stays open
