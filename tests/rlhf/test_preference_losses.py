"""Every loss on pairs and every knob of one, value and gradient, against numpy through the stage's own code."""

from typing import Any, get_args

import numpy as np
import pytest
import torch

from rlhf.config import DPOTrainSection
from rlhf.config.pair_losses import KNOBS, OF_ALL, REFERENCE_FREE, PreferenceLoss
from rlhf.objectives import OBJECTIVES
from rlhf.objectives.log_ratio import divergence_scores, on_policy_weights, response_sums
from rlhf.objectives.pair_rewards import aot, aot_unpaired
from rlhf.objectives.preference import exo_pair, robust
from rlhf.stages.pair_objective import PairObjective, RunningMean
from tests.rlhf.preference_world import N, World, expected, slopes

LOSSES = [name for name in get_args(PreferenceLoss) if name != "sft"]
EXACT = 1e-10


def section(*names: str, **knobs: Any) -> DPOTrainSection:
    """A train section; what a loss cannot do without is set."""
    if {"exo_pair", "robust"} & set(names):
        knobs.setdefault("label_smoothing", 0.1)
    return DPOTrainSection(loss_type=list(names), **knobs)


def assert_equals_numpy(world: World, train: DPOTrainSection, shift: float = 0.0, **batch: bool) -> None:
    (name,) = train.loss_type
    made = world.batch(**batch)
    judged, logps_BT = world.judge(train, made, shift)
    judged.losses[name].sum().backward()
    assert logps_BT.grad is not None
    value = expected(world, name, train, made, world.logps, shift)
    assert np.abs(judged.losses[name].detach().numpy() - value).max() < EXACT
    slope = slopes(lambda logps: expected(world, name, train, made, logps, shift), world.logps)
    assert np.abs(logps_BT.grad.numpy() - slope).max() < EXACT
    assert np.abs(slope[world.mask]).max() > 1e-3
    assert np.abs(slope[~world.mask]).max() == 0.0


def fits(name: str, knob: str) -> bool:
    return knob in KNOBS[name]  # type: ignore[index]


@pytest.fixture(params=[0, 1])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_numpy(world: World, name: str) -> None:
    knobs = {"beta": 0.4} if fits(name, "beta") else {}
    margin, gain = fits(name, "margin_column"), fits(name, "differentials")
    assert_equals_numpy(world, section(name, **knobs), margin=margin, gain=gain)


@pytest.mark.parametrize("name", [name for name in LOSSES if fits(name, "label_smoothing")])
def test_with_label_smoothing_value_and_gradient_equal_numpy(world: World, name: str) -> None:
    train = section(name, label_smoothing=0.2)
    assert_equals_numpy(world, train, margin=fits(name, "margin_column"), gain=fits(name, "differentials"))


@pytest.mark.parametrize("name", [name for name in LOSSES if fits(name, "preference_column")])
def test_with_soft_labels_value_and_gradient_equal_numpy(world: World, name: str) -> None:
    assert_equals_numpy(world, DPOTrainSection(loss_type=[name]) if name != "exo_pair" else section(name), soft=True)


@pytest.mark.parametrize("name", [name for name in LOSSES if fits(name, "f_divergence_type")])
@pytest.mark.parametrize(
    "knobs",
    [
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.7},
    ],
)
def test_with_another_divergence_value_and_gradient_equal_numpy(name: str, knobs: dict[str, Any]) -> None:
    assert_equals_numpy(World(), section(name, **knobs))


@pytest.mark.parametrize("name", [name for name in LOSSES if fits(name, "ld_alpha")])
def test_with_ld_dpo_value_and_gradient_equal_numpy(name: str) -> None:
    world = World()
    train = section(name, ld_alpha=0.3)
    assert_equals_numpy(world, train, margin=fits(name, "margin_column"), gain=fits(name, "differentials"))


@pytest.mark.parametrize("name", [name for name in LOSSES if fits(name, "use_weighting")])
def test_with_wpo_value_and_gradient_equal_numpy(name: str) -> None:
    world = World()
    assert_equals_numpy(world, section(name, use_weighting=True), margin=fits(name, "margin_column"))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("discopop", {"discopop_tau": 0.7}),
        ("cpo", {"cpo_beta": 0.7, "cpo_alpha": 0.0}),
        ("simpo", {"simpo_beta": 1.3, "simpo_gamma": 0.9}),
        ("alphapo", {"simpo_beta": 1.3, "simpo_gamma": 0.9, "alphapo_alpha": -0.5}),
    ],
)
def test_with_a_knob_of_its_own_value_and_gradient_equal_numpy(world: World, name: str, knobs: dict[str, Any]) -> None:
    assert_equals_numpy(world, section(name, **knobs))


def test_bco_subtracts_the_mean_reward_from_both_texts_before_the_gain_divides(world: World) -> None:
    assert_equals_numpy(world, section("bco_pair", beta=0.4), shift=0.35, margin=False)


# --- what a knob changes ---

OTHER: dict[str, Any] = {
    "beta": 0.3,
    "label_smoothing": 0.3,
    "f_divergence_type": "js_divergence",
    "ld_alpha": 0.2,
    "use_weighting": True,
    "discopop_tau": 0.5,
    "cpo_beta": 0.3,
    "cpo_alpha": 0.5,
    "simpo_beta": 1.0,
    "simpo_gamma": 1.5,
    "alphapo_alpha": 0.9,
    "orpo_lambda": 0.5,
}
IN_THE_BATCH = {"margin_column": "margin", "differentials": "gain", "preference_column": "soft"}


@pytest.mark.parametrize(("name", "knob"), [(name, knob) for name in LOSSES for knob in sorted(KNOBS[name])])
def test_each_knob_that_a_loss_takes_changes_its_loss(name: str, knob: str) -> None:
    world = World()

    def total(on: bool) -> float:
        knobs = {knob: OTHER[knob]} if on and knob in OTHER else {}
        train = section(name, **knobs)
        batch = {key: on and IN_THE_BATCH.get(knob) == key for key in ("margin", "gain", "soft")}
        made = world.batch(**batch)
        objective = PairObjective(train)
        judged, _ = world.judge(train, made)
        sums, parts = objective.sums(judged), objective.denominators(made)
        return float(sum(sums[key].coefficient * sums[key].total.detach() / parts[key] for key in sums))

    assert abs(total(True) - total(False)) > 1e-6


def test_the_table_knows_every_loss_and_every_knob_in_it_is_one() -> None:
    known = set(DPOTrainSection.model_fields) | set(IN_THE_BATCH)
    assert set(KNOBS) == set(get_args(PreferenceLoss)) == set(LOSSES) | {"sft"}
    assert set().union(*KNOBS.values()) <= known and set().union(*KNOBS.values()) == set(OTHER) | set(IN_THE_BATCH)
    assert known >= OF_ALL
    assert set(LOSSES) <= set(OBJECTIVES)
    assert {name for name in LOSSES if "beta" not in KNOBS[name]} == set(REFERENCE_FREE)


# --- combinations ---


def test_several_losses_are_added_with_their_weights_and_the_likelihood_of_the_chosen_text_per_token() -> None:
    world = World()
    train = section("sigmoid", "nca_pair", "sft", loss_weights=[0.8, 0.2, 1.5], beta=0.3)
    made = world.batch(margin=False)
    judged, _ = world.judge(train, made)
    objective = PairObjective(train)
    sums, parts = objective.sums(judged), objective.denominators(made)
    assert parts == {"sigmoid": N, "nca_pair": N, "nll": float(world.mask[:N].sum())}
    total = sum(sums[key].coefficient * float(sums[key].total.detach()) / parts[key] for key in sums)
    one = expected(world, "sigmoid", train, made, world.logps).mean()
    other = expected(world, "nca_pair", train, made, world.logps).mean()
    nll = -world.logps[:N][world.mask[:N]].mean()
    assert total == pytest.approx(0.8 * one + 0.2 * other + 1.5 * nll, abs=EXACT)


@pytest.mark.parametrize(
    ("train", "comparison", "likelihood"),
    [
        (section("cpo", cpo_alpha=0.7), 1.0, 0.7),
        (section("cpo", cpo_alpha=0.0), 1.0, None),
        (section("orpo", orpo_lambda=0.3), 0.3, 1.0),
        (section("simpo"), 1.0, None),
        (section("simpo", "sft", loss_weights=[2.0, 0.5]), 2.0, 0.5),
    ],
)
def test_the_likelihood_has_the_coefficient_of_its_paper(
    train: DPOTrainSection, comparison: float, likelihood: float | None
) -> None:
    coefficients = PairObjective(train).coefficients
    assert coefficients == {
        train.loss_type[0]: comparison,
        **({"nll": likelihood} if likelihood is not None else {}),
    }


def test_the_margin_of_a_session_is_that_of_the_first_loss_that_compares(world: World) -> None:
    made = world.batch(gain=False, margin=False)
    first, _ = world.judge(section("sft", "sigmoid_norm", "sigmoid"), made)
    ratios = world.ratios(world.logps)
    means = ratios / world.mask.sum(1)
    assert np.abs(first.z_N.detach().numpy() - 0.1 * (means[:N] - means[N:])).max() < EXACT
    assert first.parts.log_ratio_B is not None
    assert np.abs(first.parts.log_ratio_B.numpy() - ratios).max() < EXACT
    weighted, _ = world.judge(section("sigmoid", ld_alpha=0.0), made)
    assert weighted.parts.log_ratio_B is not None
    assert np.abs(weighted.parts.log_ratio_B.numpy() - ratios).max() < EXACT  # of the text, not of what LD-DPO counts


# --- gains ---

WITH_TARGET = ("ipo_sum", "ipo_mean", "sppo_hard")
GAPS = [name for name in LOSSES if fits(name, "differentials") and name not in ("apo_zero", "apo_down")]


def best_rewards(name: str, gain: float, agreement: float, offset: float = 0.0) -> tuple[float, float]:
    """The rewards of two texts at which the loss of labels that agree with a share `agreement` is smallest."""
    gain_N, rewards = torch.tensor([gain], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    knobs: dict[str, Any] = {"ipo_sum": {"beta": 0.4}, "ipo_mean": {"beta": 0.4}, "sppo_hard": {"beta": 0.4}}.get(
        name, {}
    )
    knobs |= {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.05}}.get(name, {})
    knobs |= {"bco_pair": {"delta": 0.2}, "discopop": {"discopop_tau": 2.0}}.get(name, {})
    rewards.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [rewards], max_iter=2000, tolerance_grad=1e-15, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        a, b = rewards[:1], rewards[1:]
        m = torch.tensor([offset], dtype=torch.float64)
        if name in ("nca_pair", "bco_pair", "sppo_hard"):
            kept, flipped = OBJECTIVES[name](a, b, gain_N, **knobs), OBJECTIVES[name](b, a, gain_N, **knobs)
        else:
            kept, flipped = OBJECTIVES[name](a - b, m, gain_N, **knobs), OBJECTIVES[name](b - a, -m, gain_N, **knobs)
        total = (agreement * kept + (1 - agreement) * flipped).sum()
        total.backward()
        return total

    optimiser.step(loss)
    return float(rewards[0].detach()), float(rewards[1].detach())


@pytest.mark.parametrize("name", [name for name in GAPS if name not in ("hinge", "simpo", "alphapo")])
@pytest.mark.parametrize("d", [-0.3, 0.15, 0.5])
def test_the_best_gap_of_noisy_labels_widens_by_exactly_one_plus_d(name: str, d: float) -> None:
    a, b = best_rewards(name, 1.0, 0.8)
    wide_a, wide_b = best_rewards(name, 1.0 + d, 0.8)
    assert a - b > 0.05
    assert wide_a - wide_b == pytest.approx((1 + d) * (a - b), rel=1e-6)


def test_the_best_gap_of_the_hinge_widens_by_exactly_one_plus_d() -> None:
    z = torch.linspace(-3, 3, 600_001, dtype=torch.float64)
    for gain in (0.7, 1.0, 1.15, 1.5):
        ones = torch.ones_like(z)
        noisy = 0.8 * OBJECTIVES["hinge"](z, 0 * z, gain * ones) + 0.2 * OBJECTIVES["hinge"](-z, 0 * z, gain * ones)
        assert float(z[noisy.argmin()]) == pytest.approx(gain, abs=2e-5)


@pytest.mark.parametrize("name", ["simpo", "alphapo"])
def test_the_target_margin_of_simpo_is_an_offset_that_a_gain_does_not_widen(name: str) -> None:
    z = torch.linspace(-5, 5, 1_000_001, dtype=torch.float64)
    ones, best = torch.ones_like(z), []
    for gain in (1.0, 1.5):
        # A flipped label asks for the same margin the other way round, -gamma.
        kept = OBJECTIVES[name](z, 0 * z, gain * ones, gamma=0.5)
        flipped = OBJECTIVES[name](-z, -1.0 * ones, gain * ones, gamma=0.5)
        best.append(float(z[(0.8 * kept + 0.2 * flipped).argmin()]))
    assert best[1] - 0.5 == pytest.approx(1.5 * (best[0] - 0.5), abs=5e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if fits(name, "differentials")])
def test_with_a_gain_a_loss_is_the_same_curve_stretched(name: str) -> None:
    """L_d(r) = (1 + d) L_0(r / (1 + d)): whatever the labels, what was best at r is best at (1 + d) r."""
    rng = np.random.default_rng(0)
    r = torch.from_numpy(rng.normal(size=(2, 50)))
    gain, ones, zeros = torch.full((50,), 1.6).double(), torch.ones(50).double(), torch.zeros(50).double()
    knobs: dict[str, Any] = {"ipo_sum": {"beta": 0.4}, "ipo_mean": {"beta": 0.4}, "sppo_hard": {"beta": 0.4}}.get(
        name, {}
    )
    knobs |= {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.1}}.get(name, {})
    knobs |= {"simpo": {"gamma": 0.0}, "alphapo": {"gamma": 0.0}}.get(name, {})
    if name in ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"):
        wide, narrow = OBJECTIVES[name](*r, gain, **knobs), OBJECTIVES[name](*(r / 1.6), ones, **knobs)
    else:
        z = r[0] - r[1]
        wide, narrow = OBJECTIVES[name](z, zeros, gain, **knobs), OBJECTIVES[name](z / 1.6, zeros, ones, **knobs)
    assert torch.allclose(wide, 1.6 * narrow, rtol=1e-6, atol=1e-9)


def test_an_offset_moves_the_best_gap_by_itself_and_a_gain_leaves_the_slope_there() -> None:
    for name in ("sigmoid", "ipo_sum", "exo_pair", "robust", "discopop", "cpo", "orpo"):
        a, b = best_rewards(name, 1.5, 0.8)
        c, d = best_rewards(name, 1.5, 0.8, offset=0.25)
        assert (c - d) - (a - b) == pytest.approx(0.25, abs=1e-6)


# --- the pieces ---


def test_ipo_sum_ends_at_half_the_inverse_of_beta_and_soft_labels_shrink_the_target() -> None:
    z, zeros, ones = torch.tensor([0.5]).double(), torch.zeros(1), torch.ones(1)
    assert float(OBJECTIVES["ipo_sum"](z, zeros, ones, beta=0.25)) == 0.0
    h = torch.linspace(-4, 4, 800_001, dtype=torch.float64)
    soft = OBJECTIVES["ipo_sum"](0.25 * h, 0 * h, 1 + 0 * h, 0.25, torch.full_like(h, 0.3))
    assert float(h[soft.argmin()]) == pytest.approx((1 - 2 * 0.3) / (2 * 0.25), abs=1e-5)


def test_robust_is_the_loss_of_clean_labels_in_the_mean_over_flipped_ones() -> None:
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    zeros, ones = 0 * z, 1 + 0 * z
    mean = 0.9 * robust(z, zeros, ones, 0.1) + 0.1 * robust(-z, zeros, ones, 0.1)
    assert torch.allclose(mean, OBJECTIVES["sigmoid"](z, zeros, ones), atol=1e-12)


def test_exo_is_0_where_the_policy_is_as_sure_as_the_label_and_refuses_a_label_that_is_certain() -> None:
    u, one, zero = torch.tensor([np.log(9.0)]), torch.ones(1), torch.zeros(1)
    assert float(exo_pair(u, zero, one, 0.1)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="exo_pair needs a label_smoothing"):
        exo_pair(u, zero, one, 0.0)


def test_aot_of_one_pair_is_dpo_and_does_not_care_which_reference_margin_belongs_to_which_pair() -> None:
    rng = np.random.default_rng(1)
    policy, reference = torch.from_numpy(rng.normal(size=(2, 6)))
    shuffled = reference[torch.randperm(6, generator=torch.Generator().manual_seed(0))]
    assert float(aot(policy, reference).sum()) == pytest.approx(float(aot(policy, shuffled).sum()), abs=1e-12)
    one = OBJECTIVES["sigmoid"](policy[:1] - reference[:1], torch.zeros(1), torch.ones(1))
    assert torch.allclose(aot(policy[:1], reference[:1]), one)
    assert torch.allclose(aot_unpaired(policy[:1], reference[:1]), one)


def test_alpha_divergence_goes_from_forward_to_reverse_and_keeps_its_digits_near_reverse() -> None:
    r = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.allclose(divergence_scores(r, "alpha_divergence", 0.0), divergence_scores(r, "forward_kl"))
    assert torch.allclose(divergence_scores(r, "alpha_divergence", 1 - 1e-9), r, atol=1e-8)
    assert torch.equal(divergence_scores(r, "alpha_divergence", 1.0), r)
    with pytest.raises(ValueError, match="unknown f-divergence `tv`"):
        divergence_scores(r, "tv")


def test_every_divergence_has_slope_1_where_policy_and_reference_agree() -> None:
    for kind in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"):
        r = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        score = divergence_scores(r, kind)
        score.sum().backward()
        assert r.grad is not None
        assert torch.allclose(score, torch.zeros(3).double(), atol=1e-15)
        # Jensen-Shannon's f is half the reverse KL's where the two agree.
        assert r.grad.tolist() == pytest.approx([0.5 if kind == "js_divergence" else 1.0] * 3)


def test_ld_alpha_1_is_the_plain_sum_and_0_sees_as_much_of_the_longer_text_as_of_the_shorter(world: World) -> None:
    logps, mask = torch.from_numpy(world.logps), torch.from_numpy(world.mask)
    assert torch.allclose(response_sums(logps, mask, 1.0), response_sums(logps, mask))
    ones = torch.ones_like(logps)
    counted = response_sums(ones, mask, 0.0)
    lengths = mask.sum(1)
    assert counted.tolist() == torch.minimum(lengths[:N], lengths[N:]).repeat(2).tolist()


def test_wpo_weighs_a_pair_1_whose_tokens_are_as_likely_as_the_policys_own() -> None:
    mask = torch.tensor([[False, True, True]] * 2)
    uniform = torch.full((2, 3), -np.log(8.0))
    assert on_policy_weights(uniform, uniform, mask).tolist() == pytest.approx([1.0])


def test_a_running_mean_is_the_mean_of_all_values_however_they_came() -> None:
    mean = RunningMean()
    for values in ([1.0, 3.0], [5.0], [2.0, 2.0, 5.0]):
        mean.add(float(np.mean(values)), len(values))
    assert (mean.mean, mean.count) == (pytest.approx(3.0), 6)
