"""The reward ledger: open, write, read, verify. A ledger is a folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rewards import catalog, events, notes, query, reading, redact, sealer, sizes, view
from rewards.catalog import DATABASE
from rewards.chain import EVENTS_CHAIN, chain_name, ledger_head
from rewards.claims import Claim, claim
from rewards.errors import LedgerError
from rewards.filesystem import check_local
from rewards.lineage import Position
from rewards.sqlite import connect_writable, snapshot, translated
from rewards.verify import Verification, verify_ledger
from rewards.writer import Writer

if TYPE_CHECKING:
    import duckdb

_STABLE_READS = 20


class Ledger:
    """A ledger's folder. Reading opens the files anew each time, so that other processes' rows show at once."""

    def __init__(self, path: Path) -> None:
        """Use `Ledger.open`."""
        self.path = path
        self._writers: list[Writer] = []

    def __repr__(self) -> str:
        """As one would write it to open the ledger again."""
        return f"Ledger.open({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | os.PathLike[str], create: bool = False) -> "Ledger":
        """The ledger in a folder; with `create` made there if it is not.

        Raises: LedgerError when the folder is missing, is no ledger, or cannot be written where it must be.
        """
        root = Path(path).absolute()  # a later change of the working folder must not lead elsewhere
        if create and not (root / DATABASE).exists():
            catalog.create(root)
        try:
            catalog.check(root)
        except LedgerError:
            if not create:
                raise
            catalog.create(root)  # another process may be at it: its database exists and is still empty
            catalog.check(root)
        return cls(root)

    def writer(
        self,
        run_id: str,
        writer: int = 0,
        attempt: int | None = None,
        resume: dict[str, Any] | None = None,
        fork_of: dict[str, Any] | tuple[str, int, int] | None = None,
        arm: str | None = None,
        *,
        pipeline_id: str | None = None,
        seal_rows: int | None = 100_000,
    ) -> Writer:
        """A writer of a run. Writer 0 with attempt=None claims the next attempt; other writers join with attempt=.

        resume: the position that `Writer.checkpoint` returned: this attempt continues there, and what the parent
        recorded above that step no longer counts. fork_of: a position, or (run, attempt, step), of another run: this
        run starts there and takes nothing from it. arm, pipeline_id: defaults of these columns; a resumed attempt
        keeps its parent's. seal_rows: how many rows may wait in the tail before they are sealed in the background; they
        are sealed when the writer closes, too. None: neither.
        Raises: LedgerError when the place is taken or the position is not one of this ledger.
        """
        _check_names(run_id, writer, attempt, arm, pipeline_id)
        if seal_rows is not None and (type(seal_rows) is not int or seal_rows < 1):
            raise LedgerError(f"seal_rows is {seal_rows!r}, neither None nor a whole number from 1")
        if resume is not None and fork_of is not None:
            raise LedgerError("resume= and fork_of= exclude each other: a fork that continues uses resume= alone")
        wanted = Claim(
            run_id,
            writer,
            attempt,
            None if resume is None else Position.read(resume),
            _read_fork(fork_of),
            arm,
            pipeline_id,
        )
        check_local(self.path)
        database = self.path / DATABASE
        with translated(database, "open a writer"):
            connection = connect_writable(database)
        try:
            claimed, tail = claim(connection, self.path, wanted)
        except BaseException:
            connection.close()
            raise
        opened = Writer(self.path, connection, claimed, tail, seal_rows)
        self._writers = [w for w in self._writers if not w.closed] + [opened]
        return opened

    def sessions(
        self, run_id: str, live: bool = True, texts: bool = False, *, damaged: list[str] | None = None
    ) -> pa.Table:
        """The sessions of a run, as of now: train rows by (step, writer, seq), then the eval rows.

        The column `session` numbers the live train rows from 1 and is null elsewhere. texts: with `prompt`,
        `response`, `rejected`. live=False: superseded rows too, and a column `live`.
        damaged: an empty list, to get what a damaged ledger still has of the run: files and commits that cannot be read
        are left out, and a line about each is added to the list. The others keep their numbers.
        Raises: LedgerError for an unknown run; without `damaged`, naming the file, when anything of the run is damaged
        or missing.
        """
        return view.session_table(self.path, run_id, live, texts, damaged)

    def events(self, run_id: str | None = None, kind: str | None = None, live: bool = True) -> list[dict[str, Any]]:
        """Events in the order of their commits: run_id, attempt, seq, step, time (ISO, UTC), kind, payload.

        The ledger's own (attempt_claimed, writer_joined) are left out unless asked for by kind.
        Raises: LedgerError for an unknown run or kind.
        """
        return view.event_list(self.path, run_id, kind, live)

    def runs(self) -> list[dict[str, Any]]:
        """One dict a run, in the order of first claims.

        Keys: run_id, pipeline_id, attempts, newest_attempt, sessions (live, train), steps (the highest with such a
        session), started, ended (ISO, UTC; null while nothing says so), status (as the newest attempt's end says;
        `stopped`; or `open`: still running, or killed).
        """
        return view.run_list(self.path)

    def head(self) -> str:
        """One hash for everything the ledger holds: keep it elsewhere and pass it to `verify` later."""
        heads = self._heads()
        for _ in range(_STABLE_READS):
            again = self._heads()
            if again == heads:
                break
            heads = again  # the files were read while something was written between them
        return ledger_head(heads)

    def _heads(self) -> dict[str, str]:
        heads = {}
        with snapshot(self.path / DATABASE) as ledger:
            if ledger.execute("SELECT 1 FROM events LIMIT 1").fetchone():
                heads[EVENTS_CHAIN] = events.head(ledger)
            chains = catalog.read_chains(ledger, self.path, catalog.read_lineage(ledger))
        for chain in chains:
            place = catalog.place_at(chain)
            if place.seq >= chain.identity.first_seq:
                heads[chain_name(*chain.identity.key)] = place.head
        return heads

    def verify(self, anchor: str | None = None) -> Verification:
        """Recomputes every hash from what is stored.

        anchor: a head that was handed out earlier (`head()`, or a position's `head`, `event_head` or a writer's): it
        must occur in the history. Without one, a chain rewritten with all its later hashes, or cut after the last
        checkpoint, cannot be told from one that is whole.
        """
        return verify_ledger(self.path, anchor)

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """A DuckDB connection with views of the ledger as of now.

        `live` (the sessions that count, with `session`), `sessions` (superseded ones too, with `live`), `texts`,
        `events`, `attempts`, `blocks`, `runs`. The caller closes it. A file that is deleted under it (`seal` does that
        with files that it has put together) ends it with an error of DuckDB's: connect again.
        """
        return reading.retried(lambda: query.connect(self.path))

    def sizes(self) -> dict[str, int]:
        """Bytes of ledger.db, tails, sessions and texts; hot_rows and sealed_rows; files: of the sealed tables."""
        return sizes.measure(self.path)

    def note(self, kind: str, payload: Mapping[str, Any], run_id: str, *, step: int | None = None) -> dict[str, Any]:
        """Records an event of somebody who is no writer: an annotation, a review, a decision. Durable on return.

        Returns the event as `events` shows it: its `seq` is its number in the ledger. Works while training writes.
        Raises: LedgerError for an unknown run or kind, or a missing key.
        """
        return notes.add(self.path, kind, payload, run_id, step)

    def redact(
        self,
        run_id: str,
        attempt: int,
        writer: int,
        seq: int,
        columns: Sequence[str] = (),
        *,
        reason: str,
        by: str,
    ) -> dict[str, Any]:
        """Takes texts of a row out of the ledger for good; returns the event that says so.

        attempt, writer, seq: the row, as `sessions` shows it. columns: of prompt, response, rejected; empty for all.
        The row and the hash of the text stay, so `verify` holds. Copies made elsewhere are not reached.
        Raises: LedgerError when there is no such row or text.
        """
        return redact.redact(self.path, redact.Row(run_id, attempt, writer, seq), columns, reason, by)

    def seal(self, *, vacuum: bool = True) -> dict[str, int]:
        """Moves all hot rows into the Delta tables and puts small files together; safe while others read and write.

        vacuum: deletes files that no table needs any more. Returns rows (moved), compacted and deleted (files).
        Raises: LedgerError when the tables cannot be written; rows that were not moved are safe in the tails.
        """
        return sealer.seal_all(self.path, vacuum)

    def close(self) -> None:
        """Closes the writers that were opened here and are still open.

        Raises: LedgerError when something handed over could not be written; the others are closed all the same.
        """
        failures = []
        for writer in self._writers:
            try:
                if not writer.closed:
                    writer.close()
            except LedgerError as error:
                failures.append(error)
        self._writers = []
        if failures:
            raise failures[0]

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_fork(fork_of: Any) -> Position | tuple[str, int, int] | None:
    if fork_of is None or isinstance(fork_of, dict):
        return None if fork_of is None else Position.read(fork_of)
    if not isinstance(fork_of, tuple | list) or [type(part) for part in fork_of] != [str, int, int]:
        raise LedgerError(f"fork_of is {fork_of!r}, neither a position nor (run, attempt, step)")
    run_id, attempt, step = fork_of
    return run_id, attempt, step


def _check_names(run_id: Any, writer: Any, attempt: Any, arm: Any, pipeline_id: Any) -> None:
    for name, value in {"run_id": run_id, "arm": arm, "pipeline_id": pipeline_id}.items():
        if value is None and name != "run_id":
            continue
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise LedgerError(f"{name} is {value!r}; give a name in printable characters")
    if not isinstance(writer, int) or isinstance(writer, bool) or writer < 0:
        raise LedgerError(f"writer is {writer!r}, not a whole number from 0")
    if writer > 0 and attempt is None:
        raise LedgerError(f"writer {writer} joins an attempt: pass attempt=, as writer 0 got it from the ledger")
    if attempt is not None and (not isinstance(attempt, int) or isinstance(attempt, bool) or attempt < 1):
        raise LedgerError(f"attempt is {attempt!r}, not a whole number from 1")
