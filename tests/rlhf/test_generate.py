"""Sampling: distribution, reported log-probabilities, independence of the batch, ends."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig

from rewards.errors import ConfigError, DataError, RunStopped
from rlhf.batch import TokenBatch
from rlhf.models.generate import generate
from rlhf.models.policy import Policy

VOCABULARY = 61
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
CONFIGS = {
    "llama": lambda v: LlamaConfig(vocab_size=v, **LLAMA, **SPECIAL),
    "sliding window": lambda v: MistralConfig(vocab_size=v, sliding_window=8, **LLAMA, **SPECIAL),
    "learned positions": lambda v: GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=96, **SPECIAL),
    "alibi, eager": lambda v: BloomConfig(vocab_size=v, hidden_size=32, n_layer=2, n_head=4, **SPECIAL),
    "soft cap, eager": lambda v: Gemma2Config(vocab_size=v, head_dim=8, sliding_window=64, **LLAMA, **SPECIAL),
}
PROMPTS = [[5, 6, 7], [8] * 2 + [40, 3, 9, 12, 4, 33, 2, 50], [11, 12, 13, 14, 3], [20, 21, 22]]
KNOBS = {"max_new_tokens": 20, "temperature": 0.8, "top_p": 1.0, "eos_id": {1, 5, 9}, "pad_id": 0}


def make_policy(name="llama", vocabulary=VOCABULARY, dtype=torch.float64, scale=3.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name](vocabulary), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return Policy(model)


def sample(policy, prompts=PROMPTS, num_return=3, seeds=None, **changes):
    seeds = list(range(len(prompts) * num_return)) if seeds is None else seeds
    return generate(policy, prompts, num_return=num_return, seeds=seeds, **{**KNOBS, **changes})


def p_value(counts, probabilities):
    return stats.chisquare(counts, probabilities / probabilities.sum() * counts.sum()).pvalue


def next_probabilities(policy, ids, temperature):
    with torch.no_grad():
        return torch.softmax(policy.model(torch.tensor([ids])).logits[0, -1].double() / temperature, -1).numpy()


def test_pairs_of_tokens_come_with_their_probabilities():
    policy, n = make_policy(vocabulary=6, scale=8.0), 6000
    drawn = sample(policy, [[2, 3]], n, max_new_tokens=2, temperature=1.3, eos_id=99, rows_per_batch=n)
    counts = np.zeros((6, 6))
    for generation in drawn:
        counts[tuple(generation.ids)] += 1
    first = next_probabilities(policy, [2, 3], 1.3)
    joint = np.array([[first[a] * p for p in next_probabilities(policy, [2, 3, a], 1.3)] for a in range(6)])
    assert first.max() / first.min() > 2
    assert p_value(counts.ravel(), joint.ravel()) > 0.01


def test_top_p_draws_from_the_renormalised_nucleus_only():
    policy, n = make_policy(vocabulary=6, scale=8.0), 4000
    drawn = sample(policy, [[2, 3]], n, max_new_tokens=1, temperature=1.0, top_p=0.7, eos_id=99, rows_per_batch=n)
    probabilities = next_probabilities(policy, [2, 3], 1.0)
    order = np.argsort(-probabilities)
    inside = order[: 1 + int(np.sum(np.cumsum(probabilities[order]) < 0.7))]
    counts = np.bincount([g.ids[0] for g in drawn], minlength=6)
    assert 1 < len(inside) < 6
    assert counts[np.setdiff1d(order, inside)].sum() == 0
    assert p_value(counts[inside], probabilities[inside]) > 0.01
    # What is reported stays the policy's own log-probability.
    assert {round(g.logps[0], 9) for g in drawn} == {round(float(np.log(probabilities[i])), 9) for i in inside}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_completion_depends_on_its_prompt_and_seed_and_not_on_the_batch(name):
    policy = make_policy(name)
    together = sample(policy)
    alone = [
        sample(policy, [PROMPTS[prompt]], 1, seeds=[3 * prompt + g])[0]
        for prompt in range(len(PROMPTS))
        for g in range(3)
    ]
    shuffled = sample(
        policy, PROMPTS[::-1], seeds=[3 * p + g for p in (3, 2, 1, 0) for g in range(3)], rows_per_batch=5
    )
    shuffled = [shuffled[3 * p + g] for p in (3, 2, 1, 0) for g in range(3)]
    assert len({tuple(g.ids) for g in together}) == len(together)
    assert len({len(g.ids) for g in together}) > 2
    for one, two, three in zip(together, alone, shuffled, strict=True):
        assert one.ids == two.ids == three.ids
        assert one.finished == two.finished == three.finished
        np.testing.assert_allclose(one.logps, two.logps, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.logps, three.logps, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_reported_logps_are_those_of_the_policys_forward_pass(dtype, tolerance):
    policy = make_policy(dtype=dtype).eval()
    drawn = sample(policy, top_p=0.9)
    texts = [PROMPTS[row // 3] + g.ids for row, g in enumerate(drawn)]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    attention, mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], attention[row, : len(text)] = torch.tensor(text), True
        mask[row, len(PROMPTS[row // 3]) : len(text)] = True
    with torch.no_grad():
        logps_BT = policy(TokenBatch(ids, attention, mask), temperature=0.8).logps_BT
    reported = torch.tensor(list(itertools.chain.from_iterable(g.logps for g in drawn)), dtype=torch.float64)
    torch.testing.assert_close(logps_BT[mask].double(), reported, rtol=0, atol=tolerance)


def test_an_end_token_cuts_the_completion_that_would_have_gone_on():
    policy = make_policy()
    endless, ended = sample(policy, eos_id=999), sample(policy)
    assert {g.finished for g in ended} == {True, False}
    for free, cut in zip(endless, ended, strict=True):
        assert (len(free.ids), free.finished) == (20, False)
        ends = [i for i, token in enumerate(free.ids) if token in (1, 5, 9)]
        length = ends[0] + 1 if ends else 20
        assert (cut.ids, cut.finished) == (free.ids[:length], bool(ends))
        assert len(cut.logps) == length


def test_fewer_new_tokens_give_a_prefix():
    policy = make_policy()
    for short, long in zip(sample(policy, max_new_tokens=4), sample(policy), strict=True):
        assert short.ids == long.ids[:4]
        assert short.finished == (long.finished and len(long.ids) <= 4)


def test_greedy_agrees_with_transformers():
    policy = make_policy()
    drawn = sample(policy, num_return=1, greedy=True, eos_id=1)
    for prompt, generation in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        expected = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        assert generation.ids == expected[0, len(prompt) :].tolist()


def test_an_adapter_is_sampled_as_its_merged_model():
    import peft

    policy = make_policy()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = peft.get_peft_model(policy.model, config)
    drawn = sample(Policy(adapted))
    merged = sample(Policy(adapted.merge_and_unload()))
    assert [g.ids for g in drawn] == [g.ids for g in merged]
    assert [g.ids for g in drawn] != [g.ids for g in sample(make_policy())]


def test_modes_and_gradients_are_as_before():
    policy = make_policy()
    policy.train()
    policy.model.model.layers[0].eval()
    sample(policy, max_new_tokens=2)
    assert policy.training
    assert not policy.model.model.layers[0].mlp.training
    assert policy.model.model.layers[1].mlp.training
    assert torch.is_grad_enabled()


def test_global_random_states_are_not_used():
    policy = make_policy()
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    sample(policy, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_diverged_weights_stop_the_run():
    policy = make_policy()
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    for greedy in (False, True):
        with pytest.raises(RunStopped, match="not finite"):
            sample(policy, greedy=greedy)


def test_what_cannot_be_sampled_is_refused():
    policy = make_policy()
    with pytest.raises(DataError, match="prompt 1 is empty"):
        sample(policy, [[3], []])
    with pytest.raises(ConfigError, match="a prompt of 10 tokens and 90 new ones do not fit the model's context of 96"):
        sample(policy, max_new_tokens=90)
    for changes, message in [
        ({"prompts": []}, "no prompts"),
        ({"seeds": [1]}, "4 prompts x 3 completions need as many seeds, got 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_p": 0.0}, "top_p in"),
        ({"greedy": True, "top_p": 0.9}, "top_p cannot apply"),
        ({"max_new_tokens": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample(policy, **changes)
