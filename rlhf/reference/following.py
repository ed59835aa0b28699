"""References that follow the policy: an exponential moving average, and a copy that is mixed with it now and then.

Kept are copies of the trained parameters alone, under LoRA the adapter's. For a pass they take the policy's place and
give it back, so that the frozen rest of the model is in memory once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.ops.logprobs import PolicyOutput
from rlhf.ops.shards import cut_like, full, own_part
from rlhf.reference.policy import Context, _Live, model_identity


class Following(_Live):
    """A reference that becomes `share` of the policy plus the rest of itself after every `every`-th optimizer step.

    share: for source `ema` 1 - decay, with `every` 1; for `synced` TRL's ref_model_mixup_alpha. The average is kept in
    float32 where the weights are narrower: in bfloat16 a share of 1 % would be rounded away.

    identity is a chain: SHA-256 of the identity before, source, step and share. It costs nothing, and tells references
    of one run apart; two runs from one start that trained differently have the same chain.

    Source: EMA as anchor: Ramé et al. 2024, WARP (2406.16768); mixing every n steps: Gorbatovski et al. 2024, TR-DPO
    (2404.09656), `soft` for share < 1 and `hard` for 1.
    Raises: ConfigError when the policy trains nothing.
    """

    def __init__(
        self, policy: nn.Module, source: str, share: float, every: int = 1, context: Context = nullcontext
    ) -> None:
        super().__init__(policy, context)
        self.source, self.share, self.every = source, share, every
        self._origin = model_identity(policy)
        self._identity = self._origin
        self._weights = {
            name: parameter.detach().to(_kept(parameter.dtype), copy=True)
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad
        }
        if not self._weights:
            raise ConfigError(f"reference.source {source}: the policy trains no parameter that could be followed")
        self._pairs = self._paired()

    @property
    def identity(self) -> str:
        """Hash of the start and of every move since."""
        return self._identity

    @property
    def origin(self) -> str:
        """Hash of the parameters that the policy, and with it the reference, started with."""
        return self._origin

    def moved(self, step: int) -> dict[str, Any] | None:
        """Called after each optimizer step: moves where it is time to, and returns what is to be recorded of it.

        Of an average, which moves after every step, the first move is recorded: the others are a function of it.
        """
        if step % self.every:
            return None
        with torch.no_grad():
            for parameter, weight in self._pairs:
                # The operations and their order are TRL's, so that both give the same numbers.
                weight.mul_(1.0 - self.share).add_(own_part(parameter).to(weight.dtype), alpha=self.share)
        before, self._identity = self._identity, chained(self._identity, self.source, step, self.share)
        if self.source == "ema" and before != self._origin:
            return None
        return {
            "source": self.source,
            "share": self.share,
            "every": self.every,
            "reference_id": self._identity[:16],
            "before": before[:16],
        }

    def state_dict(self) -> dict[str, Any]:
        """The whole weights, on the CPU; every rank must call it where parameters are cut over ranks."""
        weights = {
            name: full(_like(parameter, weight)).cpu()
            for name, (parameter, weight) in zip(self._weights, self._pairs, strict=True)
        }
        return {"source": self.source, "identity": self._identity, "origin": self._origin, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint; before the policy's parameters are cut over ranks.

        Raises: ConfigError when the checkpoint has another source, another start, or follows other parameters.
        """
        if state["source"] != self.source or state["origin"] != self._origin:
            raise ConfigError(
                f"the checkpoint's reference ({state['source']}) started as {state.get('origin', state['identity'])}, "
                f"this one ({self.source}) as {self._origin}: resume with the model and reference.source that the run "
                "started with"
            )
        saved: dict[str, Tensor] = state["weights"]
        if saved.keys() != self._weights.keys():
            other = sorted(saved.keys() ^ self._weights.keys())
            raise ConfigError(f"the checkpoint's reference follows other parameters ({len(other)}, first {other[0]})")
        for name, weight in self._weights.items():
            weight.copy_(saved[name])
        self._identity = state["identity"]

    def shard_like(self, policy: nn.Module) -> None:
        """See `_Live.shard_like`; the kept weights are cut in the same way."""
        super().shard_like(policy)
        parameters = dict(policy.named_parameters())
        for name, weight in self._weights.items():
            self._weights[name] = own_part(cut_like(weight, parameters[name])).clone()
        self._pairs = self._paired()

    def _paired(self) -> list[tuple[nn.Parameter, Tensor]]:
        parameters = dict(self.policy.named_parameters())
        return [(parameters[name], weight) for name, weight in self._weights.items()]

    def _output(self, tokens: TokenBatch, need: str, temperature: float) -> PolicyOutput:
        with self._in_the_policys_place():
            return super()._output(tokens, need, temperature)

    @contextmanager
    def _in_the_policys_place(self) -> Iterator[None]:
        kept = []
        with torch.no_grad():
            for parameter, weight in self._pairs:
                own = own_part(parameter)
                if isinstance(parameter, DTensor):
                    # What is gathered for a pass is read from this memory: only its content can be exchanged.
                    kept.append(own.clone())
                    own.copy_(weight)
                else:
                    kept.append(own)
                    parameter.data = weight.to(own.dtype)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), own in zip(self._pairs, kept, strict=True):
                    if isinstance(parameter, DTensor):
                        own_part(parameter).copy_(own)
                    else:
                        parameter.data = own


def chained(before: str, source: str, step: int, share: float) -> str:
    """The identity after a move at `step`."""
    return hashlib.sha256(f"{before} {source} {step} {share!r}".encode()).hexdigest()


def _like(parameter: Tensor, weight: Tensor) -> Tensor:
    """A rank's part as a part of something whole, where the parameter is."""
    if not isinstance(parameter, DTensor):
        return weight
    mesh, placements, shape, stride = parameter.device_mesh, parameter.placements, parameter.shape, parameter.stride()
    return DTensor.from_local(weight, mesh, placements, shape=shape, stride=stride)


def _kept(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
