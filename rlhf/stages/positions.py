"""Rows that are longer than the model has positions for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from rewards.errors import ConfigError
from rlhf.data.records import rows_of
from rlhf.data.tokenise import Tokens
from rlhf.models.policy import Policy

SHOWN = 3


def beyond_positions(policy: Policy, samples: Sequence[Any]) -> Iterator[str]:
    """A line about samples whose texts are longer than the model was made for, with the places of the first.

    Raises: ConfigError where positions are a table, in which there is nothing for the tokens beyond its end.
    """
    limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    long = [(sample.record.ref, length) for sample in samples if (length := _longest(sample)) > limit]
    if not long:
        return
    longest = max(length for _, length in long)
    places = ", ".join(ref for ref, _ in long[:SHOWN]) + (", ..." if len(long) > SHOWN else "")
    found = f"{len(long):,} of {rows_of(len(samples))} have up to {longest:,} tokens, the model has {limit:,} positions"
    if _has_table(policy, limit):
        raise ConfigError(f"{found} ({places}): set train.max_length={limit}")
    yield f"{found} ({places}); what is beyond them it was not made for: train.max_length={limit} cuts it"


def _longest(sample: Any) -> int:
    return max((len(part.ids) for part in vars(sample).values() if isinstance(part, Tokens)), default=0)


def _has_table(policy: Policy, limit: int) -> bool:
    """Whether there is an embedding besides the tokens' with a row per position; some models keep rows before them."""
    tokens = policy.model.get_input_embeddings()
    tables = [module for module in policy.modules() if isinstance(module, nn.Embedding) and module is not tokens]
    return any(limit <= table.num_embeddings <= limit + 8 for table in tables)
