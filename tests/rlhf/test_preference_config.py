"""What a configuration of `rlhf dpo` may combine: the table of losses and knobs, walked through the loader."""

from typing import Any, get_args

import pytest

from rewards.config import Loaded, load
from rewards.errors import ConfigError
from rlhf.config import DPOConfig
from rlhf.config.pair_losses import KNOBS, REFERENCE_FREE, PreferenceLoss, takers

LOSSES = [name for name in get_args(PreferenceLoss) if name != "sft"]
SETTINGS = {
    "beta": ("train.beta", "0.1"),
    "label_smoothing": ("train.label_smoothing", "0.2"),
    "f_divergence_type": ("train.f_divergence_type", "js_divergence"),
    "ld_alpha": ("train.ld_alpha", "0.5"),
    "use_weighting": ("train.use_weighting", "true"),
    "discopop_tau": ("train.discopop_tau", "0.5"),
    "cpo_beta": ("train.cpo_beta", "0.5"),
    "cpo_alpha": ("train.cpo_alpha", "0.5"),
    "simpo_beta": ("train.simpo_beta", "1"),
    "simpo_gamma": ("train.simpo_gamma", "1"),
    "alphapo_alpha": ("train.alphapo_alpha", "0.5"),
    "orpo_lambda": ("train.orpo_lambda", "0.5"),
    "margin_column": ("reward.margin_column", "m"),
    "preference_column": ("reward.preference_column", "p"),
    "differentials": ("reward.differentials", "[{category: c, differential: 0.2}]"),
}


def loaded(*overrides: str) -> Loaded[Any]:
    return load(DPOConfig, None, overrides)


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*overrides)
    return str(caught.value).splitlines()


def needed(name: str, knob: str) -> list[str]:
    """What a loss cannot do without."""
    smooth = name == "robust" or (name == "exo_pair" and knob != "preference_column")
    return ["label_smoothing=0.1"] if smooth and knob != "label_smoothing" else []


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("knob", SETTINGS)
def test_a_loss_takes_the_knobs_of_its_table_and_refuses_every_other_by_name(name: str, knob: str) -> None:
    path, value = SETTINGS[knob]
    overrides = [f"loss_type={name}", f"{path}={value}", *needed(name, knob)]
    if knob in KNOBS[name]:  # type: ignore[index]
        result = loaded(*overrides)
        assert result.warnings == ()
        return
    (line,) = refusal(*overrides)
    assert line.startswith(f"command line: {path}: ")
    assert f"`{name}`" in line
    if knob == "beta":
        assert f"`{name}` has train.{REFERENCE_FREE[name]}" in line
    else:
        assert all(taker in line for taker in takers(knob))


def test_the_walk_sees_every_knob_of_the_table() -> None:
    assert set(SETTINGS) == set().union(*KNOBS.values())


def test_beta_at_its_default_value_is_refused_too_beside_losses_that_have_their_own() -> None:
    (line,) = refusal("loss_type=orpo", "beta=0.1")
    assert "train.orpo_lambda" in line
    assert loaded().config.train.reference_beta == 0.1
    assert loaded("loss_type=simpo").config.opens_reference() is False
    assert loaded("loss_type=[sft, simpo]").config.opens_reference() is False
    assert loaded("loss_type=[sft, hinge]").config.opens_reference() is True


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["loss_type=ipo"], "train.loss_type", "`ipo_sum` (log-ratios summed"),
        (["loss_type=[sigmoid, ipo]"], "train.loss_type", "TRL's `ipo`"),
        (["loss_type=cdpo"], "train.loss_type", "`sigmoid` with `label_smoothing` above 0"),
        (["loss_type=[sigmoid, sigmoid]"], "train.loss_type[1]", "stands in the list twice"),
        (["loss_type=sft"], "train.loss_type", "use `rlhf sft`"),
        (["loss_type=[sigmoid, simpo]"], "train.loss_type", "use one kind"),
        (["loss_type=[cpo, sft]"], "train.loss_type", "see train.cpo_alpha"),
        (["loss_type=[orpo, sft]"], "train.loss_type", "see train.orpo_lambda"),
        (["loss_type=[sigmoid, hinge]", "loss_weights=[1]"], "train.loss_weights", "1 weights for 2 losses"),
        (["loss_type=[sigmoid, hinge]", "loss_weights=[1, 0]"], "train.loss_weights[1]", "leave the loss out"),
        (["f_alpha_divergence_coef=0.3"], "train.f_alpha_divergence_coef", "without `f_divergence_type: alpha"),
        (
            ["f_divergence_type=alpha_divergence", "f_alpha_divergence_coef=1"],
            "train.f_alpha_divergence_coef",
            "use `f_divergence_type: reverse_kl`",
        ),
        (["loss_type=robust"], "train.loss_type", "is `sigmoid`"),
        (["loss_type=exo_pair"], "train.loss_type", "set train.label_smoothing"),
        (["label_smoothing=0.1", "preference_column=p"], "train.label_smoothing", "beside reward.preference_column"),
        (["loss_type=aot", "gradient_accumulation_steps=2"], "train.loss_type", "train.gradient_accumulation_steps=1"),
        (["loss_type=aot_unpaired", "world_size=2"], "train.loss_type", "one micro-batch on one rank"),
        (["loss_type=apo_zero", "source=none"], "reference.source", "`apo_zero` compares with a reference"),
        (["loss_type=simpo", "source=frozen"], "reference.source", "`simpo` compares with no reference"),
        (["loss_type=cpo", "reference_model=x"], "reference.reference_model", "`cpo` compares with no reference"),
        # What changes the input of all losses must mean something to all of them.
        (["loss_type=[sigmoid, nca_pair]", "margin_column=m"], "reward.margin_column", "`nca_pair`"),
        (["loss_type=[sigmoid, apo_down]", "f_divergence_type=forward_kl"], "train.f_divergence_type", "`apo_down`"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_key_with_a_way_out(overrides: list[str], key: str, said: str) -> None:
    lines = refusal(*overrides)
    assert any(line.startswith(f"command line: {key}: ") and said in line for line in lines), lines


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss_type=[sigmoid, bco_pair, sft]", "loss_weights=[0.8, 0.2, 1]"],
        ["loss_type=[sigmoid, sft]", "margin_column=m", "label_smoothing=0.1"],
        ["loss_type=exo_pair", "preference_column=p"],
        ["loss_type=orpo", "source=none"],
        ["loss_type=aot", "world_size=1"],
        ["loss_type=[discopop, hinge]", "discopop_tau=0.1"],
    ],
)
def test_what_can_be_combined_is_accepted_without_a_warning(overrides: list[str]) -> None:
    assert loaded(*overrides).warnings == ()


def test_label_smoothing_beside_a_loss_that_does_not_take_it_is_told() -> None:
    (warning,) = loaded("loss_type=[sigmoid, ipo_mean]", "label_smoothing=0.1").warnings
    assert warning == "command line: train.label_smoothing: does not reach `ipo_mean`"
