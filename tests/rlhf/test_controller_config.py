"""Keys of the controller and of the divergence: what does not fit together is an error that names the way out."""

from typing import Any

import pytest

from rewards.config import load
from rewards.errors import ConfigError
from rlhf.config import RETIRED, STAGES
from rlhf.config_tables import known_elsewhere
from rlhf.stages.coefficient import Coefficient

REWARDED = "reward.reward_funcs=[a]"
ADAPTIVE = ["reference.beta=0.1", "reference.controller=adaptive", "reference.kl_target=3"]


def loaded(stage: str, *overrides: str) -> Any:
    needed = (REWARDED,) if stage == "grpo" else ()
    return load(STAGES[stage], None, (*needed, *overrides), retired=RETIRED, known_elsewhere=known_elsewhere(stage))


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["beta=0.1", "controller=adaptive"], "reference.kl_target", "needs one"),
        (["controller=dual", "kl_target=3"], "reference.controller", "set reference.beta above 0"),
        (["beta=0.1", "kl_target=3"], "reference.kl_target", "use adaptive or dual"),
        (["beta=0.1", "kl_gain=0.2"], "reference.kl_gain", "use adaptive or dual"),
        (["beta=0.1", "beta_min=0.05"], "reference.beta_min", "use adaptive or dual"),
        (["beta=0.1", "beta_max=0.5"], "reference.beta_max", "use adaptive or dual"),
        ([*ADAPTIVE, "beta_min=0.2"], "reference.beta", "outside beta_min"),
        ([*ADAPTIVE, "beta_max=0.05"], "reference.beta", "outside beta_min"),
        ([*ADAPTIVE, "kl_gain=5"], "reference.kl_gain", "less than 5"),
        ([*ADAPTIVE, "top_p=0.9"], "reference.controller", "use top_p 1, or reference.kl.estimator `full`"),
        (["beta=0.1", "kl={estimator: k3, divergence: js}"], "reference.kl.estimator", "needs estimator `full`"),
        (["beta=0.1", "kl={estimator: full, alpha: 0.3}"], "reference.kl.estimator", "without divergence `alpha`"),
        (["beta=0.1", "kl={preset: trl_grpo, divergence: js}"], "reference.kl.preset", "leave out divergence"),
        (["beta=0.1", "kl={estimator: full, divergence: alpha, alpha: 1}"], "reference.kl.alpha", "below 1"),
        (["use_bias_correction_kl=false"], "use_bias_correction_kl", "reference.kl.ratio"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_its_key(overrides: list[str], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded("grpo", *overrides)
    assert key in str(caught.value) and said in str(caught.value)


def test_a_controller_takes_any_penalty_whose_divergence_is_measured_on_own_texts_or_over_the_vocabulary() -> None:
    kinds = [["kl={preset: trl_grpo}"], ["kl={preset: trl_rloo}", "scale_rewards=none"], ["kl={estimator: full}"]]
    kinds += [["kl={estimator: full, divergence: js}", "top_p=0.9"]]
    for keys in kinds:
        for kind in ("adaptive", "dual"):
            assert loaded("grpo", *ADAPTIVE, f"controller={kind}", *keys).config.reference.controller == kind


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["top_p=0.9"], "texts of the nucleus"),
        (["num_iterations=2", "kl={preset: sequence_k2}"], "an older policy's: use ratio `detached`"),
        (["num_iterations=2", "kl={preset: grpo_paper}"], "use ratio `detached` or `live`"),
    ],
)
def test_what_holds_with_a_reservation_is_warned_about(overrides: list[str], said: str) -> None:
    warnings = loaded("grpo", "beta=0.1", *overrides).warnings
    assert any("reference.kl" in line and said in line for line in warnings)
    assert not loaded("grpo", "beta=0.1").warnings


def test_the_coefficient_its_target_and_their_units_are_told() -> None:
    assert Coefficient(loaded("grpo").config.reference).lines() == []
    assert Coefficient(loaded("grpo", "beta=0.1").config.reference).lines() == ["beta = 0.1 per nat and token"]
    keys = [*ADAPTIVE, "kl={preset: trl_rloo}", "scale_rewards=none"]
    first, second = Coefficient(loaded("grpo", *keys).config.reference).lines()
    assert first == "beta = 0.1 per nat and sequence"
    assert second.startswith("controller adaptive: to 3 nats per sequence, moved once a rollout; advantages take the")


def test_demonstrations_take_every_divergence_and_are_told_which_one_adds_up() -> None:
    for name in ("reverse", "js", "alpha"):
        found = loaded("sft", "kl_coefficient=1", f"kl={{estimator: full, divergence: {name}}}")
        assert found.config.reference.settings().divergence == name
        assert any(f"`{name}` holds at each prefix" in line for line in found.warnings)
    for keys in ([], ["kl={estimator: full}"], ["kl={estimator: full, divergence: forward}"]):
        found = loaded("sft", "kl_coefficient=1", *keys)
        assert found.config.reference.settings().divergence == "forward" and not found.warnings
