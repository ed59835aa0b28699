"""When to seal: in the background of a writer, when it closes, and on demand."""

import sys
import threading
from pathlib import Path

from rewards import compaction, seal
from rewards.catalog import DATABASE, TAILS, Chain, read_chains, read_lineage, upgrade
from rewards.errors import LedgerError
from rewards.sqlite import snapshot

_KEEP_SECONDS = 3600.0  # replaced files stay so long for whoever reads them, unless somebody seals by hand


class Sealer:
    """Seals one writer's rows whenever `every` of them wait, in a thread of its own. every: None never seals.

    What goes wrong here loses nothing: rows leave the tail only when they are safe in the tables. It is said on stderr,
    once, and tried again with the next rows.
    """

    def __init__(self, root: Path, place: tuple[int, int], every: int | None) -> None:
        self._root = root
        self._place = place
        self._every = every
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self._failed = False

    def committed(self, rows: int) -> None:
        """Counts rows that became durable; starts to seal when enough wait."""
        self._waiting += rows
        busy = self._thread is not None and self._thread.is_alive()
        if self._every is not None and self._waiting >= self._every and not busy:
            self._waiting = 0
            self._thread = threading.Thread(target=self._seal, name="ledger seal", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is about to end: the next seal takes the rows
                self._thread = None

    def finish(self) -> None:
        """Seals what is left, after the last commit; gives room back and puts small files together."""
        if self._thread is not None:
            self._thread.join()
        if self._every is not None and (self._waiting or self._failed):
            self._seal(last=True)

    def _is_mine(self, chain: Chain) -> bool:
        return (chain.attempt.id, chain.identity.writer) == self._place

    def _seal(self, last: bool = False) -> None:
        try:
            with seal.lock(self._root):
                seal.recover(self._root)
                seal.seal_chains(self._root, self._is_mine)
                if last:
                    compaction.compact(self._root)
                    compaction.vacuum(self._root, _KEEP_SECONDS)
                    for path in (self._root / TAILS).glob(f"{self._place[0]:06d}-{self._place[1]:03d}.db"):
                        compaction.shrink_tail(path)
        except Exception as error:  # of whatever kind: training goes on without it
            if not self._failed:
                said = error if isinstance(error, LedgerError) else f"{type(error).__name__}: {error}"
                print(
                    f"warning: {self._root}: sealing stopped, rows stay safe in the tail: {said}; `rewards seal` "
                    "tries again",
                    file=sys.stderr,
                )
            self._failed = True
        else:
            self._failed = False


def seal_all(root: Path, vacuum: bool = True) -> dict[str, int]:
    """Seals every chain. See `Ledger.seal`."""
    with seal.lock(root):
        seal.recover(root)
        upgrade(root)
        moved = seal.seal_chains(root, lambda chain: True, always_publish=True)
        replaced = compaction.compact(root)
        deleted = compaction.vacuum(root) if vacuum else 0
        with snapshot(root / DATABASE) as ledger:
            chains = read_chains(ledger, root, read_lineage(ledger))
        for chain in chains:
            compaction.shrink_tail(chain.path)
    return {"rows": moved, "compacted": replaced, "deleted": deleted}
