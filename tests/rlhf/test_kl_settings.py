"""Presets of the KL penalty, and every combination of its four choices: accepted, warned about or refused."""

import itertools
import re
from typing import Any, get_args

import pytest

from rewards.errors import ConfigError
from rlhf.config.kl import Estimator, Level, Place, Ratio
from rlhf.reference.settings import DEMONSTRATIONS, PRESETS, KLSettings, refuse, resolve

ALL = [
    KLSettings(*choice) for choice in itertools.product(*(get_args(kind) for kind in (Estimator, Place, Level, Ratio)))
]


def refused(settings: KLSettings, **situation: Any) -> bool:
    try:
        refuse(settings, **situation)
    except ConfigError:
        return True
    return False


def test_the_presets_are_what_their_names_promise() -> None:
    assert {name: tuple(vars(settings).values())[:4] for name, settings in PRESETS.items()} == {
        "trl_grpo": ("k3", "loss", "token", "live"),
        "grpo_paper": ("k3", "loss", "token", "none"),
        "trl_rloo": ("k1", "reward", "sequence", "none"),
        "sequence_k2": ("k2", "loss", "sequence", "none"),
    }
    assert {(settings.divergence, settings.alpha) for settings in PRESETS.values()} == {("reverse", None)}


def test_no_preset_is_refused_where_it_is_meant_to_be_used() -> None:
    assert [refuse(settings) for settings in PRESETS.values()] == [[], [], [], []]


def test_a_preset_fixes_all_four_choices() -> None:
    assert resolve("trl_rloo") == PRESETS["trl_rloo"]
    with pytest.raises(ConfigError, match="fixes all choices: leave out estimator, ratio"):
        resolve("trl_grpo", estimator="k3", ratio="live")


def test_an_estimator_alone_goes_to_the_loss_per_token_without_a_ratio() -> None:
    assert resolve(estimator="k3") == PRESETS["grpo_paper"]
    with pytest.raises(ConfigError, match=r"set a preset .* or an estimator"):
        resolve(place="loss", level="token", ratio="none")


def test_in_the_loss_k1_without_a_live_ratio_k2_with_one_and_a_ratio_on_an_exact_sum_are_refused() -> None:
    in_the_loss = [settings for settings in ALL if settings.place == "loss"]
    assert len(in_the_loss) == 24
    wrong = {(s.estimator, s.ratio) for s in in_the_loss if refused(s) and s.estimator != "full"}
    assert wrong == {("k1", "none"), ("k1", "detached"), ("k2", "live")}
    noise = {(s.level, s.ratio) for s in in_the_loss if refused(s) and s.estimator == "full"}
    assert noise == {("token", "live"), ("token", "detached")}


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_in_the_reward_group_standardisation_tokens_a_ratio_and_the_full_vocabulary_are_refused(
    scale_rewards: str,
) -> None:
    in_the_reward = [settings for settings in ALL if settings.place == "reward"]
    accepted = {(s.estimator, s.level, s.ratio) for s in in_the_reward if not refused(s, scale_rewards=scale_rewards)}
    sampled = {(k, "sequence", "none") for k in ("k1", "k2", "k3")}
    assert accepted == (set() if scale_rewards == "group" else sampled)


def test_group_standardisation_does_not_matter_to_a_penalty_in_the_loss() -> None:
    assert refuse(PRESETS["trl_grpo"], scale_rewards="group", num_iterations=4) == []


def test_a_penalty_in_the_reward_is_one_number_a_completion() -> None:
    assert resolve(estimator="k1", place="reward") == PRESETS["trl_rloo"]
    with pytest.raises(ConfigError, match="use level `sequence`"):
        refuse(resolve(estimator="k1", place="reward", level="token"))


def test_a_penalty_in_the_reward_is_stale_after_the_first_inner_step() -> None:
    assert refuse(PRESETS["trl_rloo"], num_iterations=1) == []
    (warning,) = refuse(PRESETS["trl_rloo"], num_iterations=4)
    assert "stale after the first of 4 inner steps" in warning


def test_k2_and_k3_in_the_reward_are_warned_about() -> None:
    for estimator in ("k2", "k3"):
        (warning,) = refuse(resolve(estimator=estimator, place="reward"))
        assert "does not have the gradient of the divergence" in warning


def test_on_demonstrations_only_the_full_vocabulary_in_the_loss_is_accepted() -> None:
    found = [s for s in ALL if not refused(s, on_policy=False)]
    assert found == [KLSettings("full", "loss", "token", "none")]
    with pytest.raises(ConfigError, match="which the policy did not sample"):
        refuse(PRESETS["trl_grpo"], on_policy=False)


def test_the_divergence_of_demonstrations_is_forward_and_of_own_texts_reverse_unless_another_is_named() -> None:
    assert resolve(estimator="full", on_policy=False) == DEMONSTRATIONS
    assert resolve(estimator="full").divergence == "reverse"
    assert refuse(DEMONSTRATIONS, on_policy=False) == []
    for name in ("reverse", "js", "alpha"):
        settings = resolve(estimator="full", divergence=name, on_policy=False)  # type: ignore[arg-type]
        (warning,) = refuse(settings, on_policy=False)
        assert f"`{name}` holds at each prefix" in warning


def test_a_divergence_is_for_the_full_vocabulary_and_alpha_for_divergence_alpha() -> None:
    assert resolve(estimator="full", divergence="alpha").alpha == 0.5
    assert resolve(estimator="full", divergence="alpha", alpha=0.2).alpha == 0.2
    with pytest.raises(ConfigError, match="divergence `js` needs estimator `full`"):
        resolve(estimator="k3", divergence="js")
    with pytest.raises(ConfigError, match="alpha has no effect without divergence `alpha`"):
        resolve(estimator="full", divergence="js", alpha=0.3)
    with pytest.raises(ConfigError, match="leave out divergence"):
        resolve("trl_grpo", divergence="js")


def test_a_nucleus_makes_every_sampled_estimate_one_of_other_texts() -> None:
    for settings in [s for s in ALL if not refused(s)]:
        warned = [line for line in refuse(settings, top_p=0.9) if "which are not the policy's" in line]
        assert len(warned) == (settings.estimator != "full")


def test_inner_steps_make_a_sampled_penalty_without_a_ratio_stale() -> None:
    for settings in [s for s in ALL if not refused(s) and s.place == "loss"]:
        stale = settings.ratio == "none" and settings.estimator != "full"
        found = refuse(settings, num_iterations=2)
        assert len(found) == stale
        assert not stale or "an older policy's: use ratio `detached`" in found[0]


@pytest.mark.parametrize(
    ("settings", "situation", "reason", "way_out"),
    [
        (resolve(estimator="k1"), {}, "zero expected gradient", "ratio `live`"),
        (resolve(estimator="k2", ratio="live"), {}, r"k2 \* grad log pi", "`none` or `detached`"),
        (PRESETS["trl_rloo"], {"scale_rewards": "group"}, "noise of unit variance", "`scale_rewards: none`"),
        (PRESETS["grpo_paper"], {"on_policy": False}, "estimates something else", "use estimator `full`"),
    ],
)
def test_every_refusal_is_one_line_with_its_reason_and_a_way_out(
    settings: KLSettings, situation: dict[str, Any], reason: str, way_out: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        refuse(settings, **situation)
    assert re.search(re.escape(way_out), str(caught.value))
    assert "\n" not in str(caught.value)


def test_beta_has_the_unit_of_its_level() -> None:
    assert PRESETS["trl_grpo"].beta_unit == "per nat and token"
    assert PRESETS["trl_rloo"].beta_unit == "per nat and sequence"
