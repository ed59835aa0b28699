"""Reward models: where the head reads, how it starts, what is saved."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.heads import HEAD_CONFIG, HEAD_WEIGHTS, RewardModel
from rlhf.models.load import load_reward_model
from rlhf.models.policy import Policy
from rlhf.models.tiny import build_tokenizer

ROWS = [[4, 9, 2, 7, 1], [3, 3, 8], [6, 1, 5, 30, 31, 32, 33, 1]]
SCORES, BOTH = frozenset({"scores"}), frozenset({"scores", "logps"})


def llama(**changes):
    return LlamaConfig(
        **{
            "vocab_size": 300,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
            **changes,
        }
    )


def backbone(config=None, dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config or llama(), dtype=dtype)


def with_adapter(model, seed=1):
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


def batch(*, left=False, width=11):
    ids = torch.full((len(ROWS), width), 1)
    attention, mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, text in enumerate(ROWS):
        start = width - len(text) if left else 0
        ids[row, start : start + len(text)] = torch.tensor(text)
        attention[row, start : start + len(text)] = True
        mask[row, start + 1 : start + len(text)] = True
    return TokenBatch(ids, attention, mask)


@pytest.mark.parametrize(
    "config", [llama(), llama(tie_word_embeddings=False), GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)]
)
@pytest.mark.parametrize("left", [False, True])
def test_the_score_reads_the_last_real_token(config, left):
    model = RewardModel(backbone(config), seed=0).eval()
    scores_B = model(batch(left=left)).scores_B
    for row, text in enumerate(ROWS):
        with torch.no_grad():
            states = model.model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(scores_B[row], states[0, -1] @ model.head_weight)


def test_scores_and_log_probabilities_come_from_one_pass_or_two_alike():
    model = RewardModel(backbone(), seed=0).eval()
    both = model(batch(), need=BOTH, temperature=0.7)
    assert torch.equal(both.scores_B, model(batch()).scores_B)
    expected = Policy(model.model).eval()(batch(), temperature=0.7).logps_BT
    torch.testing.assert_close(both.logps_BT, expected)
    assert both.entropy_BT is None


def test_the_head_starts_small_and_from_its_seed_alone():
    before = torch.get_rng_state()
    one, same, other = (RewardModel(backbone(), seed=seed).head_weight for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    wide = RewardModel(backbone(llama(hidden_size=256, num_attention_heads=4)), seed=0).head_weight
    assert 0.017 < wide.std().item() < 0.023


def test_scores_are_not_rounded_to_bfloat16():
    model = RewardModel(backbone(dtype=torch.bfloat16), seed=0).eval()
    assert model.head_weight.dtype == torch.float32
    assert model(batch()).scores_B.dtype == torch.float32
    full = RewardModel(backbone(dtype=torch.float32), seed=0).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert full(batch()).scores_B.dtype == torch.float32


def test_an_offset_is_subtracted_and_replaces_the_one_before():
    model = RewardModel(backbone(), seed=0).eval()
    raw_B = model(batch()).scores_B
    model.set_offset(5.0)
    model.set_offset(0.25)
    torch.testing.assert_close(model(batch()).scores_B, raw_B - 0.25)


def test_a_loss_on_scores_reaches_every_trained_parameter():
    for config in (llama(), llama(tie_word_embeddings=False)):
        model = RewardModel(backbone(config), seed=0)
        model(batch()).scores_B.pow(2).sum().backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []
    kept = RewardModel(backbone(llama(tie_word_embeddings=False)), seed=0, trains_language_head=True)
    kept(batch(), need=BOTH).logps_BT.sum().backward()
    assert kept.model.lm_head.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("adapter", [False, True])
def test_weights_head_and_offset_come_back_bit_for_bit(dtype, adapter, tmp_path):
    wrap = with_adapter if adapter else lambda model: model
    model = RewardModel(wrap(backbone(dtype=dtype)), seed=0).eval()
    other = RewardModel(wrap(backbone(dtype=dtype, seed=0 if adapter else 7)), seed=8).eval()
    model.set_offset(0.3)
    model.save(tmp_path)
    other.load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert torch.equal(model(batch()).scores_B, other(batch()).scores_B)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_saved_reward_model_is_an_ordinary_folder_and_scores_the_same_when_read(adapter, tmp_path):
    tokenizer = build_tokenizer(["a quiet harbour"], 300)
    model = RewardModel(with_adapter(backbone()) if adapter else backbone(), seed=0).eval()
    model.set_offset(-1.5)
    model.save(tmp_path, tokenizer)
    read, reader = load_reward_model(tmp_path, dtype="float64")
    assert not read.training
    assert read.has_adapter == adapter
    assert reader("a 12").input_ids == tokenizer("a 12").input_ids
    assert torch.equal(read(batch()).scores_B, model(batch()).scores_B)
    assert json.loads((tmp_path / HEAD_CONFIG).read_text()) == {
        "format": 1,
        "hidden_size": 32,
        "reads": "last real token",
    }
    if not adapter:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(plain.state_dict()["lm_head.weight"], model.model.state_dict()["lm_head.weight"])


def test_folders_without_a_fitting_head_are_refused(tmp_path):
    policy_only, narrow, future = tmp_path / "policy", tmp_path / "narrow", tmp_path / "future"
    Policy(backbone()).save(policy_only)
    RewardModel(backbone(llama(hidden_size=16)), seed=0).save(narrow)
    RewardModel(backbone(), seed=0).save(future)
    (future / HEAD_CONFIG).write_text('{"format": 2}')
    model = RewardModel(backbone(), seed=0)
    for folder, message in [
        (policy_only, f"no reward model is saved here .*{HEAD_WEIGHTS}"),
        (narrow, "the head reads 16 numbers, the model gives 32"),
        (future, "format 2 is unknown, expected 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model.load_weights(folder)
    with pytest.raises(ConfigError, match="no reward model is saved here"):
        load_reward_model(policy_only)
