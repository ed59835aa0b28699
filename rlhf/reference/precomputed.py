"""The reference as a cached column: its log-probabilities of every scored text, computed once.

The column is valid for one model, one data set, one way of making tokens from it and one precision. These four are its
fingerprint; the file is named by it, so that a sweep shares one column and nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewards.errors import ConfigError, DataError
from rlhf.batch import TokenBatch
from rlhf.ops.compared import Distributions
from rlhf.reference.policy import Identified, Reference


@dataclass(frozen=True)
class Fingerprint:
    """What the column depends on.

    model: identity of the reference; data: digest of the rows; text: digest of tokenizer, chat template and
    truncation; precision: types of weights and of compute.
    """

    model: str
    data: str
    text: str
    precision: str

    @property
    def digest(self) -> str:
        """SHA-256 over all four."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def changes(self, other: Mapping[str, str]) -> list[str]:
        """Names of the parts that differ."""
        return [name for name, value in asdict(self).items() if other.get(name) != value]


def tokens_digest(batches: Iterable[TokenBatch]) -> str:
    """SHA-256 over the identifiers, tokens and masks of all rows, however they are padded or batched."""
    digest = hashlib.sha256()
    for batch in batches:
        for row, ids_T, real_T, mask_T in zip(batch.rows, batch.ids_BT, batch.attention_BT, batch.mask_BT, strict=True):
            digest.update(json.dumps([row, ids_T[real_T].tolist(), mask_T[real_T].int().tolist()]).encode())
    return digest.hexdigest()


class Precomputed(Identified):
    """Log-probabilities by row, for the tokens that the row's mask counts.

    Shapes: columns maps a row's identifier to a vector with one entry per counted token.
    """

    source = "precomputed"

    def __init__(self, columns: Mapping[str, Tensor], fingerprint: Fingerprint) -> None:
        self.columns = columns
        self.fingerprint = fingerprint

    @property
    def identity(self) -> str:
        """The fingerprint's digest."""
        return self.fingerprint.digest

    def logps(self, tokens: TokenBatch, temperature: float = 1.0) -> Tensor:
        """Log-probability of each counted token.

        Shapes: returns logps_BT, 0 where `tokens.mask_BT` is False.
        Raises: DataError for a row that is not in the column, or counts another number of tokens; ConfigError for a
        temperature, which one number per token cannot answer.
        """
        if temperature != 1.0:
            raise ConfigError(f"reference.source precomputed holds values of temperature 1, not of {temperature}")
        counts = tokens.mask_BT.sum(dim=1).tolist()
        for row, count in zip(tokens.rows, counts, strict=True):
            if row not in self.columns:
                raise DataError(f"row {row} is not among the {len(self.columns)} rows that were precomputed")
            if len(self.columns[row]) != count:
                raise DataError(
                    f"row {row} counts {count} tokens, {len(self.columns[row])} are precomputed: the text is cut or "
                    "masked in another way than when they were computed"
                )
        values_X = torch.cat([self.columns[row] for row in tokens.rows]).to(tokens.mask_BT.device)
        return values_X.new_zeros(tokens.mask_BT.shape).masked_scatter(tokens.mask_BT, values_X)

    def distributions(self, tokens: TokenBatch) -> Distributions:
        """Raises: ConfigError, always: one number per token is kept, no distribution."""
        raise ConfigError(
            "reference.source precomputed keeps one log-probability per token; a divergence over the full vocabulary "
            "needs distributions: use reference.source=frozen or adapter_off"
        )

    @classmethod
    def build(
        cls,
        reference: Reference,
        batches: Iterable[TokenBatch],
        fingerprint: Fingerprint,
        cache_dir: Path,
        announce: Callable[[str], None],
    ) -> Precomputed:
        """The cached column, or one pass of `reference` over `batches`, which is then cached; announces which.

        Every rank must see the whole column: let the main one go first.

        Raises: DataError when two rows share an identifier.
        """
        cached = cls.load(fingerprint, cache_dir)
        if cached is not None:
            announce(f"reference: {len(cached.columns)} rows from {_path(cache_dir, fingerprint)}")
            return cached
        announce(f"reference: {_why(fingerprint, cache_dir)}; computing")
        columns: dict[str, Tensor] = {}
        for batch in batches:
            logps_BT = reference.logps(batch)
            for row, logps_T, mask_T in zip(batch.rows, logps_BT, batch.mask_BT, strict=True):
                if row in columns:
                    raise DataError(f"row {row} occurs twice: every scored text needs an identifier of its own")
                columns[row] = logps_T[mask_T].cpu()
        if not columns:
            raise DataError("reference.source precomputed: there are no rows to compute")
        computed = cls(columns, fingerprint)
        computed.save(cache_dir)
        return computed

    @classmethod
    def load(cls, fingerprint: Fingerprint, cache_dir: Path) -> Precomputed | None:
        """The cached column of this fingerprint; None where there is none that can be read."""
        path = _path(cache_dir, fingerprint)
        if not path.is_file() or _stored(path) != asdict(fingerprint):
            return None
        with safe_open(path, framework="pt") as file:
            rows = json.loads(file.get_tensor("rows").numpy().tobytes())
            vectors = torch.split(file.get_tensor("logps"), file.get_tensor("lengths").tolist())
        return cls(dict(zip(rows, vectors, strict=True)), fingerprint)

    def save(self, cache_dir: Path) -> Path:
        """Writes the column aside and renames it: a file with the final name is always whole."""
        cache_dir.mkdir(parents=True, exist_ok=True)
        path = _path(cache_dir, self.fingerprint)
        # Another process of a sweep may write the same column now, perhaps on another machine: whoever is last has it.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        tensors = {
            "rows": torch.frombuffer(bytearray(json.dumps(list(self.columns)).encode()), dtype=torch.uint8),
            "lengths": torch.tensor([len(vector) for vector in self.columns.values()], dtype=torch.int64),
            "logps": torch.cat(list(self.columns.values())),
        }
        save_file(tensors, aside, metadata={"fingerprint": json.dumps(asdict(self.fingerprint))})
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        return path


def _path(cache_dir: Path, fingerprint: Fingerprint) -> Path:
    return cache_dir / f"logps-{fingerprint.digest[:16]}.safetensors"


def _stored(path: Path) -> dict[str, str] | None:
    """The fingerprint in a cache file; None when it is no such file or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            stored: dict[str, str] = json.loads(file.metadata()["fingerprint"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return stored


def _why(fingerprint: Fingerprint, cache_dir: Path) -> str:
    """Why nothing cached can be used."""
    path = _path(cache_dir, fingerprint)
    if path.exists():
        return f"{path} cannot be read"
    others = sorted(cache_dir.glob("logps-*.safetensors"), key=lambda p: p.stat().st_mtime)
    stored = _stored(others[-1]) if others else None
    if stored is None:
        return f"nothing is cached in {cache_dir}"
    return f"{others[-1]} was computed for another {' and '.join(fingerprint.changes(stored))}"
