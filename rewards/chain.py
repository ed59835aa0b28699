"""The hash chain: what is hashed, byte by byte, so that another program can recompute it.

A commit is a batch of rows of one writer: h_n = SHA-256(h_(n-1) | preamble | columns). Values are hashed, never file
bytes, so moving rows to another file format changes nothing. Every variable-length part is preceded by its length as
8 little-endian bytes, so no two batches have the same encoding. A test spells the bytes of one commit out.

What a chain cannot show without a head kept elsewhere: that a whole chain was rewritten from some commit on with
all its later hashes, that the end of the chain was cut after the last checkpoint, or that commits were added to it.
The last commits of a writer that was killed may have no head yet; until somebody stores it, when they are sealed or
the run goes on, only a checksum speaks for their bytes.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from rewards.canonical import canonical, sources_of

_COMMIT_V1 = b"reward ledger commit 1"  # without the time of the commit
_COMMIT = b"reward ledger commit 2"
_EVENT = b"reward ledger event 1"
_GENESIS = b"reward ledger genesis 1"
_SALT = b"reward ledger salt 1"
_TEXT = b"reward ledger text 1"

SALT_BYTES = 16

EVENTS_CHAIN = "events"
EVENTS_GENESIS = hashlib.sha256(_GENESIS + b"events").hexdigest()


def chain_name(run_id: str, attempt: int, writer: int) -> str:
    """The name of a writer's chain. The last two parts are numbers, so two chains never share a name."""
    return f"{run_id}/{attempt}/{writer}"


def genesis(run_id: str, attempt: int, writer: int) -> str:
    """Where the chain of a writer without a parent starts."""
    return hashlib.sha256(_GENESIS + _frames(run_id, attempt, writer)).hexdigest()


def ledger_head(heads: Mapping[str, str]) -> str:
    """One hash for the whole ledger: SHA-256 of the sorted (chain, head) pairs."""
    return hashlib.sha256(b"".join(_frames(name, heads[name]) for name in sorted(heads))).hexdigest()


def text_hash(salt: bytes, column: str, text: str) -> bytes:
    """The salted hash that stands for a text in the chain."""
    return hashlib.sha256(_TEXT + _frames(salt, column) + text.encode()).digest()


def text_salt(secret: bytes, column: str, place: int) -> bytes:
    """The salt of a text: nobody who has other salts of the commit, but not its secret, can work it out."""
    return hashlib.sha256(_SALT + _frames(secret, column, place)).digest()[:SALT_BYTES]


def text_hashes(column: str, salts: Sequence[bytes | None], texts: Sequence[bytes | None]) -> list[bytes | None]:
    """`text_hash` of many texts of one column, given as UTF-8; null for null. Salts have SALT_BYTES bytes."""
    sha256 = hashlib.sha256
    before = _TEXT + b"s" + SALT_BYTES.to_bytes(8, "little")
    after = _frames(column)
    if None in texts or None in salts:
        return [
            None if text is None or salt is None else sha256(before + salt + after + text).digest()
            for salt, text in zip(salts, texts, strict=True)
        ]
    pairs = zip(salts, texts, strict=True)
    return [sha256(before + salt + after + text).digest() for salt, text in pairs]  # type: ignore[operator]


def event_hash(previous: str, fields: Iterable[Any]) -> str:
    """The next head of the chain of events; fields are text, whole numbers or None."""
    return hashlib.sha256(_EVENT + bytes.fromhex(previous) + _frames(*fields)).hexdigest()


class ChainHasher:
    """Heads of consecutive commits of one writer over columns that hold the rows of many.

    identity: run, attempt, writer. columns: every stored column, hashes of texts included, `seq` left out: rows are
    numbered first_seq, first_seq + 1, ...
    """

    def __init__(self, identity: tuple[str, int, int], columns: Mapping[str, pa.Array]) -> None:
        self._identity = _frames(*identity)
        self._sources = sources_of(columns)

    def commit(self, previous: str, time: int | None, first_seq: int, start: int, stop: int) -> str:
        """The head after the commit whose rows are `start` to `stop` of the columns.

        time: of the commit, in microseconds since 1970; None for a commit of schema version 1.
        """
        kind, when = (_COMMIT_V1, b"") if time is None else (_COMMIT, _frames(time))
        preamble = (kind, bytes.fromhex(previous), self._identity, _frames(first_seq, stop - start), when)
        return hashlib.sha256(b"".join((*preamble, *canonical(self._sources, start, stop)))).hexdigest()


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _frames(*values: Any) -> bytes:
    parts = []
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, int):
            parts.append(b"i" + value.to_bytes(8, "little", signed=True))
        else:
            data = value if isinstance(value, bytes) else value.encode()
            parts.append(b"s" + _frame(data))
    return b"".join(parts)
