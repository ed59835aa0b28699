"""Reference-free objectives against numpy in float64, written from the papers, and TRL's experimental trainers."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from rlhf.config import ModelSection
from rlhf.models.tiny import build_model, build_tokenizer
from rlhf.objectives.preference import pair_margin
from rlhf.objectives.reference_free import (
    LENGTH_NORMALISED,
    OBJECTIVES,
    REWARDS,
    WITH_NLL,
    alpha_rewards,
    chosen_nll,
    log_odds,
    log_rewards,
    simpo,
)
from rlhf.ops.logprobs import aligned, token_logprobs
from rlhf.ops.masked import sequence_mean, sequence_sum

Array = NDArray[np.float64]
N, T = 3, 5
BETA, GAMMA, ALPHA = 1.7, 0.4, 0.25
EXACT = 1e-12


class Case:
    """Log-probabilities of the tokens of N pairs with a ragged mask, offsets and gains."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.logps = -rng.exponential(0.8, size=(2 * N, T)) - 1e-3
        starts, stops = rng.integers(1, 3, size=2 * N), rng.integers(3, T + 1, size=2 * N)
        self.mask = (np.arange(T) >= starts[:, None]) & (np.arange(T) < stops[:, None])
        self.offset = rng.normal(size=N)
        self.gain = 1 + rng.uniform(-0.5, 0.9, size=N)

    @property
    def sums(self) -> Array:
        return (self.logps * self.mask).sum(1)

    @property
    def means(self) -> Array:
        return self.sums / self.mask.sum(1)


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# Rewards and their slopes by the log-probability, from the papers' formulas.
BY_HAND: dict[str, Any] = {
    "cpo": (lambda s: BETA * s, lambda s: BETA + 0 * s),
    "simpo": (lambda a: BETA * a, lambda a: BETA + 0 * a),
    "alphapo": (lambda a: BETA * (1 - np.exp(a) ** -ALPHA) / ALPHA, lambda a: BETA * np.exp(a) ** -ALPHA),
    "orpo": (lambda a: np.log(np.exp(a) / (1 - np.exp(a))), lambda a: 1 / (1 - np.exp(a))),
}
KEYS: dict[str, tuple[Any, ...]] = {"cpo": (BETA,), "simpo": (BETA,), "alphapo": (BETA, ALPHA), "orpo": ()}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_loss_and_gradient_equal_numpy(case: Case, name: str) -> None:
    logps_BT, mask_BT = torch.tensor(case.logps, requires_grad=True), torch.from_numpy(case.mask)
    averaged = name in LENGTH_NORMALISED
    logps_B = (sequence_mean if averaged else sequence_sum)(logps_BT, mask_BT)
    z_N = pair_margin(REWARDS[name](logps_B, *KEYS[name]))
    extra = (GAMMA,) if name in ("simpo", "alphapo") else ()
    loss_N = OBJECTIVES[name](z_N, torch.from_numpy(case.offset), torch.from_numpy(case.gain), *extra)
    loss_N.sum().backward()

    reward, slope = BY_HAND[name]
    inputs = case.means if averaged else case.sums
    z = reward(inputs)[:N] - reward(inputs)[N:]
    u = (z - sum(extra) - case.offset) / case.gain
    assert np.abs(loss_N.detach().numpy() + case.gain * np.log(logistic(u))).max() < EXACT
    # A gain enters once as a weight and once below z: the slope by z has none.
    by_z = np.concatenate([-logistic(-u), logistic(-u)])
    lengths = case.mask.sum(1) if averaged else np.ones(2 * N)
    expected = (by_z * slope(inputs) / lengths)[:, None] * case.mask
    assert logps_BT.grad is not None and np.abs(logps_BT.grad.numpy() - expected).max() < EXACT


def test_alphapo_becomes_simpo_as_alpha_goes_to_0_and_loses_no_digits_on_the_way() -> None:
    means_B = torch.tensor([-0.3, -2.0, -7.0], dtype=torch.float64)
    limit = log_rewards(means_B, BETA)
    assert torch.equal(alpha_rewards(means_B, BETA, 0.0), limit)
    for alpha in (1e-4, 1e-8, 1e-12):
        # The next term of the series is alpha * log^2 / 2.
        expected = limit - BETA * alpha * means_B**2 / 2
        assert torch.allclose(alpha_rewards(means_B, BETA, alpha), expected, rtol=0, atol=100 * alpha**2 + 1e-14)


def test_simpos_target_margin_is_an_offset_of_its_own_beside_the_pairs() -> None:
    z_N, ones_N = torch.tensor([0.2, 1.5]), torch.ones(2)
    apart = simpo(z_N, torch.full((2,), 0.3), ones_N, gamma=0.5)
    assert torch.allclose(apart, simpo(z_N, torch.full((2,), 0.8), ones_N, gamma=0.0))
    assert float(simpo(torch.tensor([0.5]), torch.zeros(1), torch.ones(1), 0.5)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_and_their_gradient_are_finite_from_near_0_to_near_1(dtype: torch.dtype) -> None:
    means_B = torch.tensor([-1e-9, -1e-4, -0.69, -0.7, -5.0, -80.0], dtype=dtype, requires_grad=True)
    odds_B = log_odds(means_B)
    odds_B.sum().backward()
    a = means_B.detach().double().numpy()
    assert np.allclose(odds_B.detach().numpy(), a - np.log(-np.expm1(a)), rtol=1e-6, atol=3e-7)
    assert means_B.grad is not None and np.allclose(means_B.grad.numpy(), -1 / np.expm1(a), rtol=1e-6)


def test_the_likelihood_term_counts_the_tokens_of_the_chosen_texts_only(case: Case) -> None:
    logps_BT, mask_BT = torch.tensor(case.logps, requires_grad=True), torch.from_numpy(case.mask)
    nll_NT = chosen_nll(logps_BT, mask_BT)
    nll_NT.sum().backward()
    assert np.abs(nll_NT.detach().numpy() + (case.logps * case.mask)[:N]).max() == 0
    assert logps_BT.grad is not None
    assert np.abs(logps_BT.grad.numpy()[:N] + case.mask[:N]).max() == 0 and not logps_BT.grad[N:].any()


@pytest.mark.parametrize("agreement", [0.6, 0.9])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gain_widens_the_best_gap_by_exactly_one_plus_d(name: str, agreement: float) -> None:
    """With a share `agreement` of noisy labels the best z - gamma is (1 + d) * logit(agreement)."""
    fixed = {"gamma": 0.0} if name in ("simpo", "alphapo") else {}
    natural = math.log(agreement / (1 - agreement))
    for d in (-0.3, 0.0, 0.5):
        gain_N, zero_N = torch.tensor([1 + d], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        z = torch.tensor([(1 + d) * natural], dtype=torch.float64, requires_grad=True)
        kept, flipped = (OBJECTIVES[name](x, zero_N, gain_N, **fixed) for x in (z, -z))
        (slope,) = torch.autograd.grad((agreement * kept + (1 - agreement) * flipped).sum(), z)
        assert abs(float(slope)) < EXACT


# --- TRL -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cpo", "simpo", "alphapo"])
def test_value_and_gradient_equal_trls_cpo_loss(case: Case, name: str, smoothing: float) -> None:
    pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")
    from trl.experimental.cpo import CPOTrainer

    inputs = case.means if name in LENGTH_NORMALISED else case.sums
    ours_B, theirs_B = (torch.tensor(inputs, requires_grad=True) for _ in range(2))
    settings = SimpleNamespace(
        alpha=ALPHA if name == "alphapo" else 0.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="sigmoid" if name == "cpo" else "simpo",
        simpo_gamma=GAMMA,
        beta=BETA,
        label_smoothing=smoothing,
    )
    theirs, chosen, rejected = CPOTrainer.cpo_loss(settings, theirs_B[:N], theirs_B[N:])
    rewards_B = REWARDS[name](ours_B, *KEYS[name])
    extra = () if name == "cpo" else (GAMMA,)
    ours = OBJECTIVES[name](pair_margin(rewards_B), torch.zeros(N), torch.ones(N), *extra, smoothing)
    theirs.sum().backward()
    ours.sum().backward()
    assert torch.allclose(ours, theirs, rtol=0, atol=EXACT)
    assert torch.allclose(rewards_B, torch.cat([chosen, rejected]), rtol=0, atol=EXACT)
    assert ours_B.grad is not None and torch.allclose(ours_B.grad, theirs_B.grad, rtol=0, atol=EXACT)


ROWS = [
    {"prompt": f"What is {i} plus {i}?", "chosen": f" It is {2 * i}.", "rejected": " I would rather not say" + "." * i}
    for i in range(1, 5)
]


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cpo", "simpo", "alphapo", "orpo"])
def test_loss_and_parameter_gradient_with_likelihood_term_equal_trls_trainer(name: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    tokenizer = build_tokenizer([text for row in ROWS for text in row.values()], 300)
    section = ModelSection(tiny_hidden_size=16, tiny_num_layers=2, tiny_num_heads=2, tiny_num_kv_heads=1)
    model = build_model(section, tokenizer, 0)
    keys: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "beta": BETA,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    if name == "orpo":
        kind, arguments = ORPOTrainer, ORPOConfig(**keys)
    else:
        loss = {"cpo": {"loss_type": "sigmoid", "cpo_alpha": 0.7}, "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0}}
        loss["alphapo"] = {**loss["simpo"], "alpha": ALPHA}
        kind, arguments = CPOTrainer, CPOConfig(simpo_gamma=GAMMA, **loss[name], **keys)
    trainer = kind(model, arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs, _ = trainer.get_batch_loss_metrics(model, batch)
    their_gradients = gradients(model, theirs)

    joined = trainer.concatenated_inputs(batch, padding_value=tokenizer.pad_token_id)
    attention_BT = joined["concatenated_attention_mask"].bool()
    mask_BT = joined["concatenated_labels"] != -100
    everything_BT = attention_BT & (torch.arange(mask_BT.shape[1]) > 0)
    ids_BT = joined["concatenated_input_ids"]
    logps_BT = token_logprobs(aligned(model(ids_BT, attention_mask=attention_BT.long()).logits), ids_BT)
    logps_B = (sequence_mean if name in LENGTH_NORMALISED else sequence_sum)(logps_BT, mask_BT)
    z_N = pair_margin(REWARDS[name](logps_B, *KEYS[name]))
    extra = (GAMMA,) if name in ("simpo", "alphapo") else ()
    ours = OBJECTIVES[name](z_N, torch.zeros(4), torch.ones(4), *extra).mean()
    if name in WITH_NLL:
        # ORPO's trainer counts the tokens of the prompts in its likelihood; CPO's does not.
        counted_BT = everything_BT if name == "orpo" else mask_BT
        likelihood = chosen_nll(logps_BT, counted_BT).sum() / counted_BT[:4].sum()
        ours = likelihood + BETA * ours if name == "orpo" else ours + 0.7 * likelihood
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    pairs = list(zip(gradients(model, ours), their_gradients, strict=True))
    assert pairs and all(torch.allclose(a, b, rtol=1e-4, atol=2e-6) for a, b in pairs)
