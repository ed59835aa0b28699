"""Reward models: where the head reads, how it starts, what is saved."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.head_spec import HeadSpec
from rlhf.models.heads import HEAD_CONFIG, HEAD_WEIGHTS, RewardModel
from rlhf.models.load import load_reward_model
from rlhf.models.policy import Policy
from rlhf.models.tiny import build_tokenizer

ROWS = [[4, 9, 2, 7, 1], [3, 3, 8], [6, 1, 5, 30, 31, 32, 33, 1]]
SCORES, BOTH = frozenset({"scores"}), frozenset({"scores", "logps"})
HEADS = frozenset({"scores", "heads"})
SPECS = {
    "regression": HeadSpec("regression", 2, ("help", "length"), (0.75, -0.25), (1.0, 5.0)),
    "ordinal": HeadSpec("ordinal", 2, ("help",), (1.0,), (0.0, 4.0)),
    "ensemble": HeadSpec("bradley_terry", 3, std_coefficient=0.5),
    "process": HeadSpec("process", 2, aggregation="product", separator="\n"),
}


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
    assert both.divergence_BT is None


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
    described = json.loads((tmp_path / HEAD_CONFIG).read_text())
    found = [described[key] for key in ("format", "hidden_size", "reads", "kind", "members", "temperature")]
    assert found == [2, 32, "last real token", "bradley_terry", 1, None]
    assert read.identity() == model.identity()
    if not adapter:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(plain.state_dict()["lm_head.weight"], model.model.state_dict()["lm_head.weight"])


def test_folders_without_a_fitting_head_are_refused(tmp_path):
    policy_only, narrow, future = tmp_path / "policy", tmp_path / "narrow", tmp_path / "future"
    Policy(backbone()).save(policy_only)
    RewardModel(backbone(llama(hidden_size=16)), seed=0).save(narrow)
    RewardModel(backbone(), seed=0).save(future)
    (future / HEAD_CONFIG).write_text('{"format": 3}')
    model = RewardModel(backbone(), seed=0)
    for folder, message in [
        (policy_only, f"no reward model is saved here .*{HEAD_WEIGHTS}"),
        (narrow, "the head reads 16 numbers, the model gives 32"),
        (future, "format 3 is unknown, expected 2 or 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model.load_weights(folder)
    with pytest.raises(ConfigError, match="no reward model is saved here"):
        load_reward_model(policy_only)


# --- kinds of heads ---


def test_a_folder_of_the_first_format_still_loads(tmp_path):
    model, other = RewardModel(backbone(), seed=0).eval(), RewardModel(backbone(), seed=9).eval()
    model.save(tmp_path)
    save_file({"weight": model.head_weight.detach(), "offset": model.offset}, tmp_path / HEAD_WEIGHTS)
    (tmp_path / HEAD_CONFIG).write_text('{"format": 1, "hidden_size": 32, "reads": "last real token"}')
    other.load_weights(tmp_path)
    assert torch.equal(other(batch()).scores_B, model(batch()).scores_B)


def test_regression_reports_the_declared_weighting_of_attributes_on_their_scale():
    model = RewardModel(backbone(), seed=0, spec=SPECS["regression"]).eval()
    output = model(batch(), need=HEADS)
    assert output.heads.shape == (3, 2, 2)
    expected = (1.0 + 4.0 * output.heads).mul(torch.tensor([0.75, -0.25])).sum(-1).mean(1)
    torch.testing.assert_close(output.scores_B, expected)


def test_an_ordinal_score_is_the_expected_level_between_ascending_thresholds():
    model = RewardModel(backbone(), seed=0, spec=SPECS["ordinal"]).eval()
    model.set_thresholds(torch.tensor([[-1.0, 0.0, 0.5, 3.0]]))
    output = model(batch(), need=HEADS)
    torch.testing.assert_close(output.thresholds_KAC[1, 0], torch.tensor([-1.0, 0.0, 0.5, 3.0], dtype=torch.float64))
    members = [
        sum(1 / (1 + math.exp(t - output.heads[2, k, 0].item())) for t in (-1.0, 0.0, 0.5, 3.0)) for k in range(2)
    ]
    assert output.scores_B[2].item() == pytest.approx(sum(members) / 2)
    assert output.heads[2, 0, 0] != output.heads[2, 1, 0], "members start apart"


def test_an_ensemble_reports_its_mean_less_its_disagreement():
    model = RewardModel(backbone(), seed=0, spec=SPECS["ensemble"]).eval()
    output = model(batch(), need=HEADS)
    heads_BK = output.heads[..., 0]
    torch.testing.assert_close(output.scores_B, heads_BK.mean(1) - 0.5 * heads_BK.std(1, correction=0))


@pytest.mark.parametrize("left", [False, True])
def test_a_process_head_reads_every_marked_token_and_multiplies(left):
    model = RewardModel(backbone(), seed=0, spec=SPECS["process"]).eval()
    tokens = batch(left=left)
    ends = torch.zeros_like(tokens.mask_BT)
    places = [(0, 2), (0, 4), (1, 2), (2, 3), (2, 5), (2, 7)]
    for row, number in places:
        ends[row, number + (11 - len(ROWS[row]) if left else 0)] = True
    output = model(TokenBatch(tokens.ids_BT, tokens.attention_BT, ends), need=HEADS)
    assert output.heads.shape == (6, 2, 1)
    weight_KH = model.head_weight.view(2, 32)
    for x, (row, number) in enumerate(places):
        with torch.no_grad():
            states = model.model(torch.tensor([ROWS[row]]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(output.heads[x, :, 0], weight_KH @ states[0, number])
    p = torch.sigmoid(output.heads[..., 0])
    expected = torch.stack([p[0] * p[1], p[2], p[3] * p[4] * p[5]]).mean(1)
    torch.testing.assert_close(output.scores_B, expected)


def test_weight_decay_shrinks_no_head_and_no_threshold():
    model = RewardModel(backbone(), seed=0, spec=SPECS["ordinal"])
    assert {p.ndim for name, p in model.named_parameters() if not name.startswith("model.")} == {1}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("adapter", [False, True])
def test_every_kind_of_head_comes_back_with_its_score_and_identity(kind, adapter, tmp_path):
    tokenizer = build_tokenizer(["a quiet harbour"], 300)
    net = backbone(dtype=torch.float32)
    model = RewardModel(with_adapter(net) if adapter else net, seed=0, spec=SPECS[kind]).eval()
    if kind == "ordinal":
        model.set_thresholds(torch.tensor([[-1.0, 0.0, 0.5, 3.0]]))
    model.set_temperature({"value": 2.5, "low": 2.0, "high": None, "n": 40})
    before = model.identity()
    model.save(tmp_path, tokenizer)
    read, _ = load_reward_model(tmp_path)
    assert (read.spec, read.temperature) == (model.spec, model.temperature)
    assert torch.equal(read(batch()).scores_B, model(batch()).scores_B)
    assert read.identity() == before
    with torch.no_grad():
        read.head_weight[0] += 1e-3
    assert read.identity() != before


def test_weights_of_another_kind_of_head_are_refused_by_what_differs(tmp_path):
    RewardModel(backbone(), seed=0, spec=SPECS["ensemble"]).save(tmp_path)
    for spec, message in [
        (HeadSpec(), "its head has members 3, this model has 1"),
        (SPECS["ordinal"], "its head has kind bradley_terry, this model has ordinal"),
    ]:
        with pytest.raises(ConfigError, match=message):
            RewardModel(backbone(), seed=0, spec=spec).load_weights(tmp_path)
