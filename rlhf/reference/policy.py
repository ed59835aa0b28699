"""Where the reference's log-probabilities come from: a frozen copy, the policy without its adapter, or a cached column.

References that move stand in `following`.

All sources answer the same two questions about a batch of tokens, without gradients and with dropout off, and carry an
identity that a checkpoint keeps: a run cannot be resumed against another reference than the one it started with.
Nothing here knows a model class: a policy is a module called as `policy(tokens, need, temperature)`.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.ops.compared import Distributions
from rlhf.ops.logprobs import PolicyOutput

Context = Callable[[], AbstractContextManager[Any]]


class Reference(Protocol):
    """The reference policy, whatever it is made of."""

    @property
    def identity(self) -> str:
        """Hash of what determines the reference's answers."""

    @property
    def origin(self) -> str:
        """Identity at the start of the run; another one only where the reference moves."""

    def logps(self, tokens: TokenBatch, temperature: float = 1.0) -> Tensor:
        """Log-probability of each token under softmax(logits / temperature), without gradient.

        Shapes: returns logps_BT; what stands outside `tokens.mask_BT` has no meaning.
        """

    def distributions(self, tokens: TokenBatch) -> Distributions:
        """What a policy is compared with at the counted tokens, in row order, without gradient.

        Raises: ConfigError when the source keeps no distributions.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the reference."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares with a checkpoint.

        Raises: ConfigError naming both identities when this is another reference.
        """


class Identified(ABC):
    """The part of a source that checkpoints see."""

    source: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hash of what determines the reference's answers."""

    @property
    def origin(self) -> str:
        """Identity at the start of the run: the same, as nothing here moves."""
        return self.identity

    def state_dict(self) -> dict[str, Any]:
        """Source and identity; the weights are read again from where they came from."""
        return {"source": self.source, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares with a checkpoint.

        Raises: ConfigError naming both identities when this is another reference.
        """
        if state["identity"] != self.identity:
            raise ConfigError(
                f"the checkpoint's reference ({state['source']}) is {state['identity']}, this one ({self.source}) is "
                f"{self.identity}: resume with the model, data and reference.source that the run started with"
            )


class _Live(Identified):
    """A reference that is computed by a model that is there."""

    def __init__(self, policy: nn.Module, context: Context = nullcontext) -> None:
        self.policy = policy
        self._context = context

    def shard_like(self, policy: nn.Module) -> None:
        """Passes go through `policy` from now on: the same model, with its parameters cut over ranks."""
        # Of whole parameters; it is remembered.
        assert self.identity
        self.policy = policy

    def logps(self, tokens: TokenBatch, temperature: float = 1.0) -> Tensor:
        """See `Reference.logps`."""
        logps_BT = self._output(tokens, "logps", temperature).logps_BT
        assert logps_BT is not None
        return logps_BT

    def distributions(self, tokens: TokenBatch) -> Distributions:
        """See `Reference.distributions`."""
        found = self._output(tokens, "distributions", 1.0).distributions
        assert found is not None
        return found

    def _output(self, tokens: TokenBatch, need: str, temperature: float) -> PolicyOutput:
        with quiet(self.policy), self._context():
            output: PolicyOutput = self.policy(tokens, frozenset({need}), temperature)
        return output


class FrozenCopy(_Live):
    """A model of its own that never learns.

    `policy` is frozen in place: give a model that nothing trains, or use `FrozenCopy.of`. `context` is entered around
    every pass: the autocast of the trained policy, so that both compute in one precision.
    """

    source = "frozen"

    def __init__(self, policy: nn.Module, context: Context = nullcontext) -> None:
        super().__init__(policy.requires_grad_(False).eval(), context)

    @classmethod
    def of(cls, policy: nn.Module, context: Context = nullcontext) -> FrozenCopy:
        """A copy of the policy as it is now."""
        return cls(copy.deepcopy(policy), context)

    @cached_property
    def identity(self) -> str:
        """Hash of the names, types, shapes and bytes of all parameters."""
        return model_identity(self.policy)


class AdapterOff(_Live):
    """The policy itself with its adapter switched off: the model that the adapter was put on.

    Raises: ConfigError when the policy has no adapter, or trains what the reference is made of.
    """

    source = "adapter_off"

    def __init__(self, policy: nn.Module, context: Context = nullcontext) -> None:
        super().__init__(policy, context)
        self._base = _base_parameters(policy)
        moving = [name for name, parameter in self._base if parameter.requires_grad]
        if moving:
            raise ConfigError(
                f"reference.source adapter_off: {moving[0]} is trained and would move the reference "
                f"({len(moving)} such parameters); use reference.source=frozen"
            )

    @cached_property
    def identity(self) -> str:
        """Hash of the names, types, shapes and bytes of the parameters under the adapter."""
        return _hash(self._base)

    def shard_like(self, policy: nn.Module) -> None:
        """See `_Live.shard_like`; the whole parameters are let go of."""
        super().shard_like(policy)
        self._base = []

    def _output(self, tokens: TokenBatch, need: str, temperature: float) -> PolicyOutput:
        with self.policy.disabled_adapter():  # type: ignore[operator]
            return super()._output(tokens, need, temperature)


@contextmanager
def quiet(policy: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards every module is in the mode in which it was."""
    training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def model_identity(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of the parameters; tied ones count once."""
    return _hash(list(model.named_parameters()))


def _hash(parameters: list[tuple[str, nn.Parameter]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _base_parameters(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the adapted model that are not the adapter's own."""
    adapted = next((module for module in policy.modules() if hasattr(module, "peft_config")), None)
    if adapted is None:
        raise ConfigError("reference.source adapter_off needs model.use_peft: there is no adapter to switch off")
    own: set[int] = set()
    for module in adapted.modules():
        # peft's layers and wrappers list their children that belong to adapters.
        for name in getattr(module, "adapter_layer_names", ()):
            part = getattr(module, name, None)
            own.update(id(p) for p in part.parameters()) if isinstance(part, nn.Module) else own.add(id(part))
    return [(name, parameter) for name, parameter in adapted.named_parameters() if id(parameter) not in own]
