"""What kind of head a reward model has, and how the numbers of its heads become the score that it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rewards.errors import ConfigError
from rlhf.ops.scores import Aggregation, aggregate_steps, expected_level

Kind = Literal["bradley_terry", "regression", "ordinal", "process"]
SCORE = "score"


@dataclass(frozen=True)
class HeadSpec:
    """The heads of a reward model: K members of an ensemble with A outputs each.

    attributes: what the outputs are called (regression, ordinal); weights: their share in the reported score; scale:
    the declared scale of every attribute; aggregation, separator: how a stepwise text becomes one score and what ends
    its steps (process); std_coefficient: how many standard deviations over the members the reported score is below
    their mean.
    """

    kind: Kind = "bradley_terry"
    members: int = 1
    attributes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    scale: tuple[float, float] | None = None
    aggregation: Aggregation | None = None
    separator: str | None = None
    std_coefficient: float = 0.0

    @property
    def outputs(self) -> int:
        """Numbers that one member gives."""
        return max(1, len(self.attributes))

    @property
    def thresholds(self) -> int:
        """Thresholds of an output: one less than there are levels, 0 unless ordinal."""
        return 0 if self.kind != "ordinal" or self.scale is None else round(self.scale[1] - self.scale[0])

    @property
    def reads(self) -> str:
        """Which tokens are read, in words."""
        return "each step's last token" if self.kind == "process" else "last real token"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it is saved beside the weights."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, described: dict[str, Any], where: object) -> HeadSpec:
        """The spec that `as_dict` described. Raises: ConfigError for a kind that this version does not know."""
        if described.get("kind") not in get_args(Kind):
            raise ConfigError(
                f"{where}: a head of kind `{described.get('kind')}` is unknown, known: {', '.join(get_args(Kind))}"
            )
        values = {name: described[name] for name in cls.__dataclass_fields__}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def differs(self, other: HeadSpec) -> str | None:
        """What keeps weights of one from being weights of the other, in words; null where nothing does."""
        for name in ("kind", "members", "attributes", "thresholds"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {_said(theirs)}, this model has {_said(mine)}"
        return None

    def values(self, heads_BKA: Tensor, thresholds_KAC: Tensor | None) -> Tensor:
        """Each attribute's score on the declared scale. Shapes: returns values_BKA."""
        assert self.scale is not None
        low, high = self.scale
        if thresholds_KAC is not None:
            return low + expected_level(heads_BKA, thresholds_KAC)
        return low + (high - low) * heads_BKA

    def members_scores(self, heads: Tensor, thresholds_KAC: Tensor | None, mask_BT: Tensor) -> Tensor:
        """The score of each member.

        Shapes: heads (B, K, A), of a process (X, K, 1) at the True positions of mask_BT; returns scores_BK.
        """
        if self.kind == "process":
            assert self.aggregation is not None
            return aggregate_steps(heads[..., 0], mask_BT, self.aggregation)
        if self.kind == "bradley_terry":
            return heads[..., 0]
        weights_A = torch.tensor(self.weights, dtype=heads.dtype, device=heads.device)
        return (self.values(heads, thresholds_KAC) * weights_A).sum(dim=-1)


def _said(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
