"""Dynamic fine-tuning against its formula and TRL, noise on embeddings against its paper's formula."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from rlhf.batch import TokenBatch
from rlhf.config import ModelSection
from rlhf.models.noise import EmbeddingNoise
from rlhf.models.policy import Policy
from rlhf.models.tiny import build_model, build_tokenizer
from rlhf.objectives.sft import dft, nll
from rlhf.reference.policy import quiet

WIDTH, ALPHA = 16, 5.0


# --- dynamic fine-tuning ---


def test_dft_weights_each_token_by_its_probability_and_its_slope_by_the_logits_is_that_of_the_probability() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(3, 7)) * 2
    ids = rng.integers(7, size=3)
    logits = torch.tensor(raw, requires_grad=True)
    logps_BT = torch.log_softmax(logits, dim=-1)[torch.arange(3), torch.from_numpy(ids)][None]
    loss_BT = dft(logps_BT, torch.tensor([[True, True, False]]))
    loss_BT.sum().backward()
    p = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    chosen = p[np.arange(3), ids]
    assert loss_BT.detach().numpy()[0] == pytest.approx([*(-chosen * np.log(chosen))[:2], 0.0], abs=1e-12)
    # d(-p)/dx = -p (onehot - p): of the weight itself, which is detached, nothing flows.
    expected = -chosen[:, None] * (np.eye(7)[ids] - p)
    expected[2] = 0
    assert logits.grad is not None and np.abs(logits.grad.numpy() - expected).max() < 1e-12


def test_dft_never_exceeds_1_over_e_and_is_nll_where_the_token_is_certain() -> None:
    logps_BT = torch.linspace(-12, 0, 401, dtype=torch.float64)[None]
    mask_BT = torch.ones_like(logps_BT, dtype=torch.bool)
    loss_BT = dft(logps_BT, mask_BT)
    assert float(loss_BT.max()) == pytest.approx(1 / math.e, abs=1e-3) and float(loss_BT.max()) <= 1 / math.e
    assert bool((loss_BT <= nll(logps_BT, mask_BT)).all())
    assert float(loss_BT[0, -1]) == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_sft_loss_and_gradient_equal_trls(tmp_path: Path, loss_type: str) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed: `pip install rlhf-ledger[trl]`")
    datasets = pytest.importorskip("datasets", reason="TRL reads data sets of this library")
    rows = [{"prompt": f"What is {i} plus {i}?", "completion": f" It is {2 * i}." + "." * i} for i in range(1, 5)]
    tokenizer = build_tokenizer([text for row in rows for text in row.values()], 300)
    model = tiny_model(tokenizer)
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(
            output_dir=str(tmp_path),
            loss_type=loss_type,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, dict(batch))
    expected = gradients(model, theirs)
    mask_BT = batch["labels"] != -100
    assert 0 < int(mask_BT.sum()) < int(batch["attention_mask"].sum())
    tokens = TokenBatch(batch["input_ids"], batch["attention_mask"].bool(), mask_BT, tuple("abcd"))
    logps_BT = Policy(model)(tokens).logps_BT
    ours = {"nll": nll, "dft": dft}[loss_type](logps_BT, mask_BT).sum() / mask_BT.sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for a, b in zip(gradients(model, ours), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=2e-6)


def tiny_model(tokenizer: Any) -> Any:
    section = ModelSection(tiny_hidden_size=WIDTH, tiny_num_layers=2, tiny_num_heads=2, tiny_num_kv_heads=1)
    return build_model(section, tokenizer, 0)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


# --- noise on embeddings ---


def batch_of(lengths: list[int], width: int | None = None) -> TokenBatch:
    ids_BT = torch.arange(len(lengths) * (width or max(lengths))).view(len(lengths), -1) % 97
    attention_BT = torch.arange(ids_BT.shape[1]) < torch.tensor(lengths)[:, None]
    return TokenBatch(ids_BT, attention_BT, attention_BT, tuple(f"row {i}" for i in range(len(lengths))))


def noise_of(tokens: TokenBatch, *, step: int = 1, seed: int = 0, given: Tensor | None = None) -> Tensor:
    """What is added to the embeddings of the batch, padded, or of the ids that are given."""
    embeddings = nn.Embedding(97, WIDTH)
    noise = EmbeddingNoise(embeddings, ALPHA, seed)
    ids = tokens.ids_BT if given is None else given
    with noise.of(tokens, step):
        noisy = embeddings(ids)
    noise.remove()
    return (noisy - embeddings(ids)).detach()


@pytest.mark.parametrize("lengths", [[400, 100, 25], [300]])
def test_noise_is_uniform_up_to_alpha_over_the_root_of_own_length_times_width(lengths: list[int]) -> None:
    tokens = batch_of(lengths)
    added = noise_of(tokens)
    for row, length in enumerate(lengths):
        bound = ALPHA / math.sqrt(length * WIDTH)
        here = added[row, :length].double().numpy().ravel()
        assert np.abs(here).max() <= bound * (1 + 1e-5)
        # Against the uniform distribution itself, and by its second moment; of the row's own length, no other's.
        assert stats.kstest(here, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
        assert here.var() == pytest.approx(bound**2 / 3, rel=0.15)
        assert not added[row, length:].any()


def test_the_expected_norm_of_a_texts_noise_is_alpha_over_root_3_whatever_its_length() -> None:
    for length in (20, 80, 320):
        norms = [float(noise_of(batch_of([length]), step=step).norm()) for step in range(1, 30)]
        assert np.mean(norms) == pytest.approx(ALPHA / math.sqrt(3), rel=0.02)


def test_of_one_text_without_padding_the_bound_is_that_of_transformers() -> None:
    hook = pytest.importorskip("transformers.integrations.neftune").neftune_post_forward_hook
    embeddings = nn.Embedding(97, WIDTH)
    embeddings.neftune_noise_alpha = ALPHA  # type: ignore[assignment]
    tokens = batch_of([300])
    clean = embeddings(tokens.ids_BT)
    theirs = (hook(embeddings, (), clean) - clean).detach()
    assert float(noise_of(tokens).abs().max()) == pytest.approx(float(theirs.abs().max()), rel=2e-3)
    # Beside a longer text theirs shrinks, ours does not.
    padded = batch_of([300, 1200])
    clean = embeddings(padded.ids_BT)
    theirs = (hook(embeddings, (), clean) - clean).detach()[0]
    assert float(theirs.abs().max()) == pytest.approx(ALPHA / math.sqrt(1200 * WIDTH), rel=2e-3)
    assert float(noise_of(padded)[0].abs().max()) == pytest.approx(ALPHA / math.sqrt(300 * WIDTH), rel=2e-3)


def test_a_texts_noise_does_not_depend_on_padding_layout_or_neighbours() -> None:
    tokens = batch_of([7, 3, 5], width=12)
    padded = noise_of(tokens)
    flat = noise_of(tokens, given=tokens.ids_BT[tokens.attention_BT][None])
    assert torch.allclose(flat[0], padded[tokens.attention_BT], atol=1e-6)
    # A flat batch that is filled up has none where nobody reads.
    filled = noise_of(tokens, given=torch.cat([tokens.ids_BT[tokens.attention_BT], torch.tensor([5, 9])])[None])
    assert torch.allclose(filled[:, :-2], flat, atol=1e-6) and not filled[:, -2:].any()
    alone = noise_of(tokens.select(1, 2))
    assert torch.allclose(alone[0], padded[1], atol=1e-6)


def test_noise_is_the_steps_the_rows_and_the_seeds_own() -> None:
    tokens = batch_of([40, 40])
    first = noise_of(tokens)
    # Differences of float32 embeddings: the noise itself is the same to the bit.
    assert torch.allclose(first, noise_of(tokens), atol=1e-6)
    for other in (noise_of(tokens, step=2), noise_of(tokens, seed=1), first.flip(0)):
        correlation = np.corrcoef(first.flatten().numpy(), other.flatten().numpy())[0, 1]
        assert abs(correlation) < 0.15


def test_a_policy_that_is_evaluated_or_outside_a_training_pass_has_no_noise() -> None:
    tokenizer = build_tokenizer(["a few words to make pieces of"], 300)
    policy = Policy(tiny_model(tokenizer)).train()
    tokens = TokenBatch(torch.arange(2, 20).view(2, 9), torch.ones(2, 9).bool(), torch.ones(2, 9).bool(), ("a", "b"))
    tokens.mask_BT[:, 0] = False
    clean = policy(tokens).logps_BT
    noise = EmbeddingNoise(policy.model.get_input_embeddings(), ALPHA, 0)
    with noise.of(tokens, 1):
        noisy = policy(tokens).logps_BT
        assert not torch.equal(noisy, clean)
        with quiet(policy):
            assert torch.equal(policy(tokens).logps_BT, clean)
    assert torch.equal(policy(tokens).logps_BT, clean)


def test_tokens_that_are_not_the_batchs_own_are_refused() -> None:
    tokens = batch_of([4, 2])
    with pytest.raises(ValueError, match="their noise is not known"):
        noise_of(tokens, given=tokens.ids_BT[tokens.attention_BT].flip(0)[None])
