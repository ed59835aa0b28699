"""Sampling completions: a decoding loop over the model's key-value cache with one random number a row and step.

A completion is a function of the weights, its prompt and its seed: which rows share the batch changes it by float
rounding only. (transformers' `generate` draws from one global stream, so that every row depends on all the others.)
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.errors import ConfigError, DataError, RunStopped
from rlhf.models import flat
from rlhf.models.policy import Policy
from rlhf.reference.policy import quiet

# Rows that have ended still cost time; below this share of live rows the batch is rebuilt without them.
_COMPACT_BELOW = 0.7


@dataclass(frozen=True)
class Generation:
    """One completion.

    Shapes: ids, the sampled tokens, the end token included; logps, one per id. Units: nats, under the policy at the
    sampling temperature over the full vocabulary (top_p changes what is drawn, not what is reported). finished: the
    last id is an end token; False where `max_new_tokens` cut the completion.
    """

    ids: list[int]
    logps: list[float]
    finished: bool


def generate(  # noqa: PLR0913 - every argument is needed to say what a completion depends on
    policy: Policy,
    prompts_ids: Sequence[Sequence[int]],
    *,
    num_return: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seeds: Sequence[int],
    eos_id: int | Collection[int],
    pad_id: int,
    greedy: bool = False,
    rows_per_batch: int = 128,
) -> list[Generation]:
    """`num_return` completions of every prompt, those of prompt i at places i * num_return and following.

    seeds: one per completion (ignored by `greedy`, which takes the likeliest token; `temperature` then only scales the
    reported logps). Each prompt is read once and its cache shared by its completions; up to `rows_per_batch` rows are
    decoded together. Runs without gradient, in eval mode, in the caller's autocast context.

    Raises: ValueError for arguments out of range; DataError for an empty prompt; ConfigError where prompt and
    completion do not fit the model's context; RunStopped when the model's logits are not finite.
    """
    if not prompts_ids:
        raise ValueError("no prompts to complete")
    if len(seeds) != len(prompts_ids) * num_return:
        raise ValueError(f"{len(prompts_ids)} prompts x {num_return} completions need as many seeds, got {len(seeds)}")
    if num_return < 1 or max_new_tokens < 1 or rows_per_batch < 1:
        raise ValueError("num_return, max_new_tokens and rows_per_batch must be at least 1")
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be positive and top_p in (0, 1], got {temperature} and {top_p}")
    if greedy and top_p != 1:
        raise ValueError("greedy decoding draws nothing: top_p cannot apply")
    _check_lengths(policy, prompts_ids, max_new_tokens)

    eos_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    decoder = _Decoder(policy.model, eos_ids, pad_id, _Sampler(temperature, top_p, greedy), max_new_tokens)
    uniforms = None if greedy else _uniforms(seeds, max_new_tokens)
    # Prompts of about the same length share a batch: less padding, and no completion depends on it.
    order = sorted(range(len(prompts_ids)), key=lambda i: len(prompts_ids[i]))
    batches = _batches(order, prompts_ids, max(1, rows_per_batch // num_return), decoder.pads)
    results: dict[int, Generation] = {}
    with quiet(policy):
        for chosen in batches:
            rows = [i * num_return + g for i in chosen for g in range(num_return)]
            draws = None if uniforms is None else torch.from_numpy(uniforms[rows])
            results.update(zip(rows, decoder.run([prompts_ids[i] for i in chosen], num_return, draws), strict=True))
    return [results[row] for row in range(len(seeds))]


def _batches(order: list[int], prompts_ids: Sequence[Sequence[int]], size: int, pads: bool) -> list[list[int]]:
    """Prompts that are decoded together; of one length each where the model cannot take padding."""
    runs = [order] if pads else [list(run) for _, run in groupby(order, key=lambda i: len(prompts_ids[i]))]
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


class _Sampler:
    """Inverse-CDF sampling of one token a row."""

    def __init__(self, temperature: float, top_p: float, greedy: bool) -> None:
        self.temperature, self.top_p, self.greedy = temperature, top_p, greedy

    def __call__(self, logits_BV: Tensor, u_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens and their logps. Shapes: u_B float64 in [0, 1), None when greedy."""
        logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        logps_BV = torch.log_softmax(logits_BV if self.temperature == 1 else logits_BV / self.temperature, dim=-1)
        if u_B is None:
            logps_B, tokens_B = logps_BV.max(dim=-1)
            if not bool(torch.isfinite(logps_B).all()):
                raise _not_finite()
            return tokens_B, logps_B
        probs_BV, ids_BV = logps_BV.exp(), None
        if self.top_p < 1:
            probs_BV, ids_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        # The running sum is float64, in which u * mass is below the mass for every u < 1: the first entry that exceeds
        # it exists and has a positive probability.
        cdf_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
        mass_B1 = cdf_BV[:, -1:]
        if ids_BV is not None:
            # The nucleus: likeliest tokens first, up to and with the one that reaches top_p.
            last_B1 = (cdf_BV < self.top_p * mass_B1).sum(dim=-1, keepdim=True)
            mass_B1 = cdf_BV.gather(-1, last_B1)
        if not bool(torch.isfinite(mass_B1).all()):
            raise _not_finite()
        tokens_B1 = torch.searchsorted(cdf_BV, u_B[:, None] * mass_B1, right=True)
        if ids_BV is not None:
            tokens_B1 = ids_BV.gather(-1, tokens_B1)
        return tokens_B1[:, 0], logps_BV.gather(-1, tokens_B1)[:, 0]


class _Decoder:
    """Prefill and token-by-token decoding of one batch of rows."""

    def __init__(
        self, model: nn.Module, eos_ids: tuple[int, ...], pad_id: int, sampler: _Sampler, max_new_tokens: int
    ) -> None:
        self.model, self.pad_id, self.sampler, self.max_new = model, pad_id, sampler, max_new_tokens
        self.device = next(model.parameters()).device
        self.eos = torch.tensor(eos_ids, device=self.device)
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(core.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.fixed: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self.fixed["logits_to_keep"] = 1
        sdpa = core.config._attn_implementation in ("sdpa", flat.NAME)
        # Eager attention takes its softmax in float32, where float64's mask value is -inf: padding would become NaN.
        self.pads = sdpa or next(core.parameters()).dtype != torch.float64
        # A ready 4D mask spares the model from building one at every step; only where each layer takes it as it is.
        self.ready_mask = sdpa and getattr(core, "_supports_attention_backend", False)

    def run(self, prompts: list[Sequence[int]], num_return: int, u_BT: Tensor | None) -> list[Generation]:
        """Completions of these prompts, `num_return` each. Shapes: u_BT (rows, max_new_tokens) or None."""
        n_rows, width = len(prompts) * num_return, max(map(len, prompts))
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        real_P = torch.arange(width, device=self.device) >= (width - lengths_P)[:, None]
        ids_P = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_P[row, width - len(prompt) :] = torch.tensor(prompt)
        padded = not bool(real_P.all())
        logits_P, cache = self._forward(
            ids_P.to(self.device), (real_P.cumsum(1) - 1).clamp_min(0), real_P, padded, None
        )

        prompt_of_row = torch.arange(len(prompts), device=self.device).repeat_interleave(num_return)
        if num_return > 1:
            cache.reorder_cache(prompt_of_row)
        state = _Rows(
            rows=torch.arange(n_rows, device=self.device),
            next_position=lengths_P[prompt_of_row],
            real=torch.cat([real_P, real_P.new_ones(len(prompts), self.max_new)], dim=1)[prompt_of_row],
            u=None if u_BT is None else u_BT.to(self.device),
        )
        logits = logits_P[prompt_of_row]
        tokens_BT = torch.zeros((n_rows, self.max_new), dtype=torch.long, device=self.device)
        logps_BT = torch.zeros((n_rows, self.max_new), dtype=torch.float64, device=self.device)
        length_B = torch.full((n_rows,), self.max_new, device=self.device)
        finished_B = torch.zeros(n_rows, dtype=torch.bool, device=self.device)
        live = torch.ones(n_rows, dtype=torch.bool, device=self.device)
        for t in range(self.max_new):
            tokens, logps = self.sampler(logits, None if state.u is None else state.u[:, t])
            tokens_BT[state.rows, t] = tokens
            logps_BT[state.rows, t] = logps.double()
            ended = torch.isin(tokens, self.eos) & live
            if bool(ended.any()):
                length_B[state.rows[ended]] = t + 1
                finished_B[state.rows[ended]] = True
                live = live & ~ended
                n_live = int(live.sum())
                if n_live == 0:
                    break
                if n_live <= _COMPACT_BELOW * len(live):
                    keep = live.nonzero()[:, 0]
                    cache.reorder_cache(keep)
                    state, tokens, live = state.take(keep), tokens[keep], live[keep]
            if t + 1 < self.max_new:
                positions = state.next_position[:, None] + t
                real = state.real[:, : width + t + 1]
                logits, cache = self._forward(tokens[:, None], positions, real, padded, cache)
        return [
            Generation(ids[:length], logps[:length], finished)
            for ids, logps, length, finished in zip(
                tokens_BT.tolist(), logps_BT.tolist(), length_B.tolist(), finished_B.tolist(), strict=True
            )
        ]

    def _forward(self, ids: Tensor, positions: Tensor, real: Tensor, padded: bool, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last position, and the cache."""
        inputs = dict(self.fixed, input_ids=ids, past_key_values=cache)
        if self.takes_positions:
            inputs["position_ids"] = positions
        if padded:
            plain = cache is not None and self.ready_mask and not any(cache.is_sliding) and not any(cache.is_linear)
            inputs["attention_mask"] = real[:, None, None, :] if plain else real.long()
        output = self.model(**inputs)
        if getattr(output, "past_key_values", None) is None:
            raise ConfigError(f"{type(self.model).__name__} returns no key-value cache: it cannot be sampled from here")
        return output.logits[:, -1], output.past_key_values


@dataclass(frozen=True)
class _Rows:
    """What the rows still in the batch need; `take` is a batch with fewer rows."""

    rows: Tensor
    next_position: Tensor
    real: Tensor
    u: Tensor | None

    def take(self, keep: Tensor) -> _Rows:
        u = None if self.u is None else self.u[keep]
        return _Rows(self.rows[keep], self.next_position[keep], self.real[keep], u)


def _uniforms(seeds: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One stream a seed: a counter-based generator keyed on it. Shapes: (len(seeds), count), in [0, 1)."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds])


def _not_finite() -> RunStopped:
    return RunStopped("sampling: the policy's logits are not finite; its weights have diverged")


def _check_lengths(policy: Policy, prompts_ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    for i, prompt in enumerate(prompts_ids):
        if len(prompt) == 0:
            raise DataError(f"prompt {i} is empty: there is nothing to complete")
    context = getattr(policy.config, "max_position_embeddings", None)
    longest = max(map(len, prompts_ids))
    if context is not None and longest + max_new_tokens > context:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of {context}"
        )
