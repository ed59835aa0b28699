"""Which knobs each loss on pairs takes, and what a configuration may not combine. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

PreferenceLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo_sum",
    "ipo_mean",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "cpo",
    "simpo",
    "alphapo",
    "orpo",
]
FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

_SOFT = {"label_smoothing", "preference_column"}
_SEPARATE = {"beta", "ld_alpha", "use_weighting", "differentials"}
_MARGIN = _SEPARATE | {"f_divergence_type", "margin_column"}
_FREE = {"use_weighting", "differentials", "margin_column"}

KNOBS: dict[PreferenceLoss, frozenset[str]] = {
    "sigmoid": frozenset(_MARGIN | _SOFT),
    "sigmoid_norm": frozenset(_MARGIN | _SOFT),
    "hinge": frozenset(_MARGIN),
    "ipo_sum": frozenset(_MARGIN | {"preference_column"}),
    "ipo_mean": frozenset(_MARGIN | {"preference_column"}),
    "exo_pair": frozenset(_MARGIN | _SOFT),
    "nca_pair": frozenset(_SEPARATE),
    "robust": frozenset(_MARGIN | {"label_smoothing"}),
    "bco_pair": frozenset(_SEPARATE),
    "sppo_hard": frozenset(_SEPARATE),
    # Sorted over the batch: a loss belongs to two pairs at once, so that no pair has an offset, a gain or a weight.
    "aot": frozenset({"beta", "ld_alpha", "label_smoothing"}),
    "aot_unpaired": frozenset({"beta", "ld_alpha", "label_smoothing"}),
    "apo_zero": frozenset(_SEPARATE),
    "apo_down": frozenset(_SEPARATE),
    "discopop": frozenset(_MARGIN | {"discopop_tau"}),
    "sft": frozenset(),
    "cpo": frozenset(_FREE | _SOFT | {"cpo_beta", "cpo_alpha"}),
    "simpo": frozenset(_FREE | _SOFT | {"simpo_beta", "simpo_gamma"}),
    "alphapo": frozenset(_FREE | _SOFT | {"simpo_beta", "simpo_gamma", "alphapo_alpha"}),
    "orpo": frozenset(_FREE | {"orpo_lambda"}),
}
"""What each loss takes; every other knob beside it is an error."""

OF_ALL = frozenset(
    {"f_divergence_type", "ld_alpha", "use_weighting", "differentials", "margin_column", "preference_column"}
)
"""Knobs that change what every loss of the list sees: each must take them. The others need one loss that does."""

REFERENCE_FREE: dict[str, str] = {
    "cpo": "cpo_beta",
    "simpo": "simpo_beta",
    "alphapo": "simpo_beta",
    "orpo": "orpo_lambda",
}
"""Losses that compare with no reference, and what they have in the place of beta."""

COUPLED = frozenset({"aot", "aot_unpaired"})
"""Losses that sort the whole batch."""

RENAMED: dict[str, str] = {
    "ipo": "`ipo` names two losses: `ipo_sum` (log-ratios summed over the tokens, the paper's eq. 17) and `ipo_mean` "
    "(averaged over the tokens, TRL's `ipo`); the target 1 / (2 beta) is another gap in each",
    "cdpo": "`cdpo` is `sigmoid` with `label_smoothing` above 0",
}


def takers(knob: str) -> list[str]:
    """The losses that take a knob."""
    return [name for name in get_args(PreferenceLoss) if knob in KNOBS[name]]


def misplaced(knob: str, losses: Iterable[PreferenceLoss]) -> str | None:
    """Why a knob does not belong beside these losses; None where it does.

    `sft` stands beside the others as a term of its own, which no knob of a comparison touches.
    """
    compared = [name for name in losses if name != "sft"]
    without = [name for name in compared if knob not in KNOBS[name]]
    if not without or (knob not in OF_ALL and len(without) < len(compared)):
        return None
    known = ", ".join(takers(knob))
    return f"does not apply to `{'`, `'.join(without)}`: leave it out, or use one of {known}"


def untouched(knob: str, losses: Iterable[PreferenceLoss]) -> list[str]:
    """The losses beside one that takes the knob, which go without it."""
    return [name for name in losses if name != "sft" and knob not in KNOBS[name]]
