"""The choices of a KL penalty: named presets, and the combinations that are refused because they do not work.

Pure functions without a configuration object and without torch. What each form's gradient is, and where this is tested
by enumeration: `rlhf.reference.divergence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewards.errors import ConfigError

Estimator = Literal["k1", "k2", "k3", "full"]
Place = Literal["reward", "loss"]
Level = Literal["token", "sequence"]
Ratio = Literal["none", "live", "detached"]
Divergence = Literal["reverse", "forward", "js", "alpha"]
Preset = Literal["trl_grpo", "grpo_paper", "trl_rloo", "sequence_k2"]
ControllerKind = Literal["fixed", "adaptive", "dual"]
ScaleRewards = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class KLSettings:
    """How the divergence from the reference is estimated, where it enters, over what, and with which weight.

    ratio: what multiplies a loss term, pi / pi_old with a gradient (live), without one (detached), or nothing.
    divergence: which one, KL(policy || reference) but for estimator `full`; alpha: of divergence `alpha` only.
    """

    estimator: Estimator
    place: Place
    level: Level
    ratio: Ratio
    divergence: Divergence = "reverse"
    alpha: float | None = None

    @property
    def beta_unit(self) -> str:
        """Unit of the coefficient; the two levels differ by about the length of a text."""
        return f"per nat and {self.level}"


PRESETS: dict[Preset, KLSettings] = {
    "trl_grpo": KLSettings("k3", "loss", "token", "live"),
    "grpo_paper": KLSettings("k3", "loss", "token", "none"),
    "trl_rloo": KLSettings("k1", "reward", "sequence", "none"),
    "sequence_k2": KLSettings("k2", "loss", "sequence", "none"),
}
DEMONSTRATIONS = KLSettings("full", "loss", "token", "none", "forward")
"""The form that holds on text which the policy did not sample."""


def resolve(
    preset: Preset | None = None,
    *,
    estimator: Estimator | None = None,
    place: Place | None = None,
    level: Level | None = None,
    ratio: Ratio | None = None,
    divergence: Divergence | None = None,
    alpha: float | None = None,
    on_policy: bool = True,
) -> KLSettings:
    """The choices behind a preset, or as given.

    Left out, place is `loss`, level `token` (`sequence` in the reward), ratio `none`, divergence `reverse` (`forward`
    on demonstrations), alpha 1/2.

    Raises: ConfigError for a preset with a field beside it, without a preset or an estimator, and for a divergence or
    an alpha that changes nothing.
    """
    beside = {
        "estimator": estimator,
        "place": place,
        "level": level,
        "ratio": ratio,
        "divergence": divergence,
        "alpha": alpha,
    }
    given = [name for name, value in beside.items() if value is not None]
    if preset is not None:
        if given:
            raise ConfigError(f"preset `{preset}` fixes all choices: leave out {', '.join(given)}, or the preset")
        return PRESETS[preset]
    if estimator is None:
        raise ConfigError(f"set a preset ({', '.join(PRESETS)}) or an estimator (k1, k2, k3, full)")
    if divergence is not None and estimator != "full":
        raise ConfigError(
            f"`{estimator}` estimates KL(policy || reference): divergence `{divergence}` needs estimator `full`"
        )
    if alpha is not None and divergence != "alpha":
        raise ConfigError("alpha has no effect without divergence `alpha`")
    return KLSettings(
        estimator,
        place or "loss",
        level or ("sequence" if place == "reward" else "token"),
        ratio or "none",
        divergence or ("reverse" if on_policy or estimator != "full" else "forward"),
        0.5 if divergence == "alpha" and alpha is None else alpha,
    )


def refuse(
    settings: KLSettings,
    *,
    scale_rewards: ScaleRewards = "none",
    num_iterations: int = 1,
    top_p: float = 1.0,
    on_policy: bool = True,
) -> list[str]:
    """Warnings about a penalty that works with a reservation.

    Raises: ConfigError with the reason and a way out when it does not do what its name says.
    """
    if not on_policy:
        return _refuse_on_demonstrations(settings)
    if settings.place == "loss":
        _refuse_in_the_loss(settings)
        warnings = _stale_in_the_loss(settings) if num_iterations > 1 else []
    else:
        warnings = _refuse_in_the_reward(settings, scale_rewards, num_iterations)
    if top_p < 1 and settings.estimator != "full":
        warnings.append(
            f"{settings.estimator} is measured on texts of the nucleus (top_p {top_p:g}), which are not the policy's: "
            f"neither its value nor its gradient is the divergence's; use top_p 1, or estimator `full`"
        )
    return warnings


def _stale_in_the_loss(settings: KLSettings) -> list[str]:
    if settings.ratio != "none" or settings.estimator == "full":
        return []
    return [
        f"{settings.estimator} in the loss without a ratio has another gradient after the first inner step, when the "
        f"texts are an older policy's: use ratio `detached`{'' if settings.estimator == 'k2' else ' or `live`'}"
    ]


def _refuse_on_demonstrations(settings: KLSettings) -> list[str]:
    if settings.estimator != "full":
        raise ConfigError(
            f"`{settings.estimator}` estimates the divergence from samples of the policy; on demonstrations, which the "
            f"policy did not sample, it estimates something else: use estimator `full`"
        )
    if (settings.place, settings.level, settings.ratio) != ("loss", "token", "none"):
        raise ConfigError(
            "on demonstrations the divergence is summed over the vocabulary at each token, in the loss: leave out "
            "place, level and ratio"
        )
    if settings.divergence == "forward":
        return []
    return [
        f"divergence `{settings.divergence}` holds at each prefix of the demonstrations; over whole texts only "
        f"`forward` has a meaning there (texts of the reference give KL(reference || policy))"
    ]


def _refuse_in_the_loss(settings: KLSettings) -> None:
    if settings.estimator == "full" and settings.level == "token" and settings.ratio != "none":
        raise ConfigError(
            f"estimator `full` at level `token` samples nothing: ratio `{settings.ratio}` only adds noise, use `none`"
        )
    if settings.estimator == "k1" and settings.ratio != "live":
        raise ConfigError(
            f"k1 in the loss with ratio `{settings.ratio}` has zero expected gradient (the mean of grad log pi is 0): "
            f"use ratio `live`, estimator `k2`, or k1 with place `reward` and level `sequence`"
        )
    if settings.estimator == "k2" and settings.ratio == "live":
        raise ConfigError(
            "k2 with a live ratio gains the gradient k2 * grad log pi, which is no divergence's: use ratio `none` or "
            "`detached`, or k3 with a live ratio"
        )


def _refuse_in_the_reward(settings: KLSettings, scale_rewards: ScaleRewards, num_iterations: int) -> list[str]:
    if settings.estimator == "full":
        raise ConfigError("estimator `full` has no form in the reward: use k1, or place `loss`")
    if settings.level == "token":
        raise ConfigError("a penalty in the reward is one number a completion: use level `sequence`")
    if settings.ratio != "none":
        raise ConfigError(f"ratio `{settings.ratio}` weights a term of the loss and does nothing in the reward")
    if scale_rewards == "group":
        raise ConfigError(
            f"{settings.estimator} in the reward under `scale_rewards: group`: a group of equal rewards becomes "
            f"estimation noise of unit variance; use `scale_rewards: none` or `batch`, or place `loss`"
        )
    warnings = []
    if settings.estimator != "k1":
        warnings.append(f"{settings.estimator} in the reward does not have the gradient of the divergence; k1 has")
    if num_iterations > 1:
        warnings.append(
            f"{settings.estimator} in the reward is stale after the first of {num_iterations} inner steps: it is "
            f"measured once, on the policy that sampled"
        )
    return warnings
