"""The policy wrapper: padding, what it returns, adapters, saving and reading back."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
)

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models import flat, products
from rlhf.models import layout as layout_module
from rlhf.models.layout import Layout
from rlhf.models.policy import Policy
from rlhf.ops.compared import Beside
from rlhf.reference.divergence import reverse_kl

VOCABULARY = 53
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": None,
}
ROWS = [[4, 9, 2, 7, 1], [3, 3, 8], [6, 1, 5, 30, 31, 32, 33, 1]]
GROUPED = [[4, 9, 2, 7, 1], [4, 9, 12, 8], [3, 3, 8], [4, 9, 2, 30, 31, 32, 33, 34, 1]]


@pytest.fixture(autouse=True)
def every_common_token_is_shared(monkeypatch):
    monkeypatch.setattr(layout_module, "LEAST_SHARED", 1)


def llama(**changes):
    return LlamaConfig(**{**SIZES, "tie_word_embeddings": True, "pad_token_id": 1, "eos_token_id": 1, **changes})


def make_policy(config=None, dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(AutoModelForCausalLM.from_config(config or llama(), dtype=dtype))


def adapted(policy, seed=1, targets=("q_proj", "v_proj")):
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=list(targets), lora_dropout=0.0, init_lora_weights=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(peft.get_peft_model(policy.model, config))


def batch(rows=None, *, left=False, width=None, pad=1, group=None):
    rows = rows or (GROUPED if group else ROWS)
    width = width or max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    mask = attention.clone()
    for row, text in enumerate(rows):
        start = width - len(text) if left else 0
        ids[row, start : start + len(text)] = torch.tensor(text)
        attention[row, start : start + len(text)] = True
        mask[row, start + 1 : start + len(text)] = True
    return TokenBatch(ids, attention, mask, group_B=torch.tensor(group[: len(rows)]) if group else None)


def by_hand(policy, text, temperature=1.0):
    """Log-probabilities of text[1:], one row, no padding, from the model itself."""
    with torch.no_grad():
        logits = policy.model(torch.tensor([text])).logits[0] / temperature
    return torch.stack([torch.log_softmax(logits[t - 1], -1)[text[t]] for t in range(1, len(text))])


def same_weights(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


CONFIGS = {
    "tied": llama,
    "head of its own": lambda: llama(tie_word_embeddings=False),
    "learned positions": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "logits that are scaled": lambda: CohereConfig(**SIZES, logit_scale=0.5, pad_token_id=1, eos_token_id=1),
    "logits that are divided": lambda: GraniteConfig(**SIZES, logits_scaling=3.0, pad_token_id=1, eos_token_id=1),
    # Wide weights and a low cap: else no score comes near it.
    "soft caps": lambda: Gemma2Config(
        **SIZES,
        head_dim=8,
        sliding_window=3,
        attn_logit_softcapping=2.0,
        initializer_range=0.3,
        pad_token_id=1,
        eos_token_id=1,
    ),
    "sliding window and full attention": lambda: Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=3, sliding_window_pattern=2, pad_token_id=1, eos_token_id=1
    ),
    "sliding window": lambda: MistralConfig(**SIZES, sliding_window=3),
    "norms of queries": lambda: Qwen3Config(**SIZES, head_dim=8),
    "rotary parts": lambda: GPTNeoXConfig(
        **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, pad_token_id=1, eos_token_id=1
    ),
    "a head with a bias": lambda: PhiConfig(**SIZES, pad_token_id=1, eos_token_id=1),
    "positions with an offset": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_of_padded_rows_are_those_of_each_row_alone(name, left, temperature):
    policy = make_policy(CONFIGS[name]()).eval()
    tokens = batch(left=left, width=11)
    logps_BT = policy(tokens, temperature=temperature).logps_BT
    for row, text in enumerate(ROWS):
        torch.testing.assert_close(logps_BT[row][tokens.mask_BT[row]], by_hand(policy, text, temperature))
    assert torch.equal(logps_BT[~tokens.mask_BT], torch.zeros_like(logps_BT[~tokens.mask_BT]))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_read_of_counted_positions_is_that_of_their_logits(name, temperature):
    policy = make_policy(CONFIGS[name]()).eval()
    tokens = batch(group=[0, 0, 1, 0])
    need = frozenset({"logps", "entropy", "collision"})
    found = policy(tokens, need, temperature)
    logits_XV = policy(tokens, frozenset({"distributions"})).distributions.logits()
    logps_XV = torch.log_softmax(logits_XV / temperature, -1)
    ids_X = tokens.ids_BT[tokens.mask_BT]
    expected = {
        "logps_BT": logps_XV.gather(-1, ids_X[:, None])[:, 0],
        "entropy_BT": -(logps_XV.exp() * logps_XV).sum(-1),
        "collision_BT": (2 * logps_XV).exp().sum(-1).log(),
    }
    for field, values_X in expected.items():
        torch.testing.assert_close(getattr(found, field)[tokens.mask_BT], values_X)
        assert torch.equal(getattr(found, field)[~tokens.mask_BT].unique(), torch.zeros(1).double())


@pytest.mark.parametrize("name", [*CONFIGS, "an adapted head"])
def test_beside_another_model_a_policy_gives_the_divergence_of_their_logits_and_its_own_figures(name):
    config = CONFIGS.get(name, lambda: llama(tie_word_embeddings=False))
    policy, other = (make_policy(config(), seed=seed).eval() for seed in (0, 1))
    if name == "an adapted head":
        policy = adapted(policy, targets=("lm_head",)).eval()
        assert policy.shortcuts()[1] is None
    tokens, temperature = batch(group=[0, 0, 1, 0]), 0.7
    theirs = other(tokens, frozenset({"distributions"})).distributions
    need = frozenset({"logps", "entropy", "collision"})
    found = policy(tokens, need | {"divergence"}, temperature, Beside(theirs, reverse_kl))
    alone = policy(tokens, need, temperature)
    for field in ("logps_BT", "entropy_BT", "collision_BT"):
        torch.testing.assert_close(getattr(found, field), getattr(alone, field))
    own_XV = policy(tokens, frozenset({"distributions"})).distributions.logits()
    logp_XV, logq_XV = (torch.log_softmax(logits / temperature, -1) for logits in (own_XV, theirs.logits()))
    expected_X = (logp_XV.exp() * (logp_XV - logq_XV)).sum(-1)
    assert float(expected_X.min()) > 1e-5
    torch.testing.assert_close(found.divergence_BT[tokens.mask_BT], expected_X)
    assert torch.equal(found.divergence_BT[~tokens.mask_BT].unique(), torch.zeros(1).double())
    with pytest.raises(ValueError, match="a divergence is one from"):
        policy(tokens, need | {"divergence"})


def test_shortcuts_are_taken_only_where_they_change_nothing():
    expected = {"tied": (True, True), "logits that are scaled": (True, True), "learned positions": (True, True)}
    expected |= {"attends eagerly": (False, True), "soft caps": (True, True), "an adapted head": (True, False)}
    for name, (takes_flat, head_alone) in expected.items():
        policy = make_policy(CONFIGS[name]()) if name in CONFIGS else make_policy()
        if name == "attends eagerly":
            policy = make_policy(llama(attn_implementation="eager"))
        if name == "an adapted head":
            policy = adapted(make_policy(llama(tie_word_embeddings=False)), targets=("lm_head",))
        reach, form = policy.shortcuts()
        assert (reach > 0, form is not None) == (takes_flat, head_alone), name


@pytest.mark.parametrize("layout", ["left", "right", "shared"])
@pytest.mark.parametrize("name", CONFIGS)
def test_flat_rows_give_the_values_and_gradients_of_padded_rows(name, layout):
    results = []
    for is_flat in (True, False):
        policy = make_policy(CONFIGS[name](), dtype=torch.float32).eval()
        assert policy.shortcuts()[0] >= max(map(len, GROUPED))  # or both would be padded
        if not is_flat:
            policy._shortcuts = (0, None)
        tokens = batch(left=layout == "left", width=11, group=[0, 0, 1, 0] if layout == "shared" else None)
        output = policy(tokens, need=frozenset({"logps", "entropy"}))
        (output.logps_BT * torch.linspace(0.5, 2, output.logps_BT.numel()).view_as(output.logps_BT)).sum().backward()
        results.append([output.logps_BT, output.entropy_BT, *(p.grad for p in policy.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * max(1.0, float(two.detach().abs().max())))


def test_the_soft_cap_of_attention_is_seen_in_what_the_tests_of_it_compare():
    capped, free = make_policy(CONFIGS["soft caps"]()).eval(), make_policy(CONFIGS["soft caps"]()).eval()
    for module in free.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = None
    assert float((capped(batch()).logps_BT - free(batch()).logps_BT).detach().abs().max()) > 1e-3


def test_what_rows_of_a_group_begin_with_is_read_once():
    policy = make_policy().eval()
    tokens = batch(group=[0, 0, 1, 0])
    seen = []
    policy.model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    policy(tokens)
    shared, rows = 2, [row for row, group in zip(GROUPED, [0, 0, 1, 0], strict=True) if group == 0]
    assert all(row[:shared] == rows[0][:shared] for row in rows)
    assert seen[-1] == (1, sum(map(len, GROUPED)) - shared * (len(rows) - 1))


def test_texts_that_are_rows_at_once_and_one_by_one_attend_alike():
    policy = make_policy(dtype=torch.float32).eval()
    tokens = batch(group=[0, 0, 1, 0])
    layout = Layout.of(tokens, least_shared=1)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, len(layout.source_N), 8, generator=generator) for _ in range(3))
    for window in (None, 3):
        for softcap in (None, 2.0):
            call = flat._Call(0.3, window, softcap, 0.0)
            one = flat._by_text(layout, query, key, value, call)
            two = layout.together(flat._in_rows(layout, query, key, value, call))
            torch.testing.assert_close(one, two)
    assert policy.shortcuts()[0] > 0


@pytest.mark.parametrize("piece", [2, 192])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
def test_attention_in_half_precision_has_the_values_and_gradients_of_sdpa_within_its_digits(
    window, heads, piece, monkeypatch
):
    monkeypatch.setattr(products, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    layout = Layout.of(batch(group=[0, 0, 1, 0]), multiple=5)
    count, width = len(layout.source_N), 8
    leaves = [
        torch.randn(1, count, n, width, generator=generator).bfloat16().transpose(1, 2).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    ]
    upstream = torch.randn(1, count, heads[0], width, generator=generator).bfloat16()
    half = products.attend(layout, *leaves, 0.3, window)
    call = flat._Call(0.3, window, None, 0.0)
    exact = flat._by_text(layout, *(leaf.double() for leaf in leaves), call)
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=0.02)
    found = torch.autograd.grad(half, leaves, upstream)
    for one, two in zip(found, torch.autograd.grad(exact, leaves, upstream.double()), strict=True):
        torch.testing.assert_close(one.double(), two.double(), rtol=0.02, atol=0.03)


def test_half_precision_on_a_processor_gives_the_values_of_padded_rows_within_its_digits():
    policy = make_policy(dtype=torch.float32).eval()
    tokens = batch(group=[0, 0, 1, 0])
    exact = policy(tokens).logps_BT.detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = policy(tokens).logps_BT.detach()
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).abs().max()) < 0.05


def test_rows_beyond_a_sliding_window_are_flat_and_keep_their_values():
    for config in (
        MistralConfig(**SIZES, sliding_window=3),
        Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1, head_dim=8),
    ):
        policy = make_policy(config).eval()
        assert policy.shortcuts()[0] > 100
        tokens = batch(group=[0, 0, 1, 0])
        logps_BT = policy(tokens).logps_BT
        for row, text in enumerate(GROUPED):
            torch.testing.assert_close(logps_BT[row][tokens.mask_BT[row]], by_hand(policy, text))


def test_models_that_carry_a_state_along_the_row_are_given_padded_rows():
    policy = make_policy(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    assert policy.shortcuts()[0] == 0
    assert policy(batch()).logps_BT.shape == batch().ids_BT.shape


def test_another_attention_chosen_later_is_respected():
    policy = make_policy().eval()
    expected = policy(batch()).logps_BT
    for name in ("sdpa", "eager"):
        policy.model.set_attn_implementation(name)
        torch.testing.assert_close(policy(batch()).logps_BT, expected, rtol=1e-5, atol=1e-6)
    assert policy.config._attn_implementation == "eager"
    assert policy.shortcuts()[0] == 0


def test_a_model_left_with_the_flat_attention_is_otherwise_as_before(tmp_path):
    policy, untouched = make_policy().eval(), make_policy().eval()
    policy(batch())
    ids, attention = batch(left=True).ids_BT, batch(left=True).attention_BT.long()
    options = {"attention_mask": attention, "do_sample": False, "max_new_tokens": 8}
    assert torch.equal(policy.model.generate(ids, **options), untouched.model.generate(ids, **options))
    assert torch.equal(
        policy.model(ids, attention_mask=attention).logits, untouched.model(ids, attention_mask=attention).logits
    )
    policy.save(tmp_path)
    assert "flat" not in (tmp_path / "config.json").read_text()
    copied = copy.deepcopy(policy)
    assert torch.equal(copied(batch()).logps_BT, policy(batch()).logps_BT)


def test_gradients_do_not_depend_on_the_path_or_the_padding():
    gradients = []
    for need, tokens in [
        (frozenset({"logps"}), batch()),
        (frozenset({"logps", "entropy", "collision"}), batch(width=12)),
        (frozenset({"logps"}), batch(left=True)),
    ]:
        policy = make_policy()
        (policy(tokens, need=need).logps_BT * tokens.mask_BT).sum().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_the_end_token_is_learned_where_it_is_also_the_padding():
    # llama() pads with its end token 1; row 2 has it inside and at its end.
    policy = make_policy()
    assert policy.model.get_input_embeddings().padding_idx is None
    tokens = batch([ROWS[2]], width=12)
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach().clone())
    policy(tokens).logps_BT.sum().backward()
    assert policy.model.lm_head.weight.grad[1].abs().sum() > 0
    assert policy.model.model.embed_tokens.weight.grad[1].abs().sum() > 0
    before = policy(tokens).logps_BT[0, 7].item()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * parameter.grad
    assert policy(tokens).logps_BT[0, 7].item() > before


def test_what_is_not_there_cannot_be_asked_for():
    policy = make_policy()
    with pytest.raises(ValueError, match=r"Policy gives .* asked for \['scores'\]"):
        policy(batch(), need=frozenset({"scores"}))
    with pytest.raises(ValueError, match="asked for"):
        policy(batch(), need=frozenset())


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy().train()
        if checkpointing:
            policy.enable_gradient_checkpointing()
        policy(batch()).logps_BT.sum().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    assert policy.model.is_gradient_checkpointing
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_dropout_can_be_switched_off_the_adapters_too():
    import peft

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.5)
    policy = make_policy(config).train()
    assert not torch.equal(policy(batch()).logps_BT, policy(batch()).logps_BT)
    policy.disable_dropout()
    assert torch.equal(policy(batch()).logps_BT, policy(batch()).logps_BT)
    with_attention = make_policy(llama(attention_dropout=0.5)).train()
    assert not torch.equal(with_attention(batch()).logps_BT, with_attention(batch()).logps_BT)
    with_attention.disable_dropout()
    assert torch.equal(with_attention(batch()).logps_BT, with_attention(batch()).logps_BT)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.5, init_lora_weights=False)
    adapter = Policy(peft.get_peft_model(make_policy().model, lora)).train()
    assert not torch.equal(adapter(batch()).logps_BT, adapter(batch()).logps_BT)
    adapter.disable_dropout()
    assert torch.equal(adapter(batch()).logps_BT, adapter(batch()).logps_BT)


def test_adapter_off_is_the_model_before_the_adapter():
    plain = make_policy().eval()
    expected = plain(batch()).logps_BT.detach()
    policy = adapted(make_policy()).eval()
    assert policy.has_adapter
    on = policy(batch()).logps_BT
    with policy.disabled_adapter(), torch.no_grad():
        assert torch.equal(policy(batch()).logps_BT, expected)
    assert torch.equal(policy(batch()).logps_BT, on)
    assert not torch.equal(on, expected)
    on.sum().backward()
    trained = [name for name, parameter in policy.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)


def test_no_adapter_to_switch_off_is_an_error():
    with pytest.raises(ConfigError, match=r"needs model\.use_peft"), make_policy().disabled_adapter():
        pass


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_come_back_bit_for_bit_and_in_place(name, dtype, tmp_path, capfd):
    policy, other = make_policy(CONFIGS[name](), dtype), make_policy(CONFIGS[name](), dtype, seed=5)
    policy.save(tmp_path)
    places = [parameter.data_ptr() for parameter in other.parameters()]
    assert not same_weights(policy, other)
    other.load_weights(tmp_path)
    assert same_weights(policy, other)
    assert [parameter.data_ptr() for parameter in other.parameters()] == places
    tied = other.model.get_output_embeddings().weight is other.model.get_input_embeddings().weight
    assert tied == bool(other.config.tie_word_embeddings)
    assert capfd.readouterr().err == ""


def test_adapter_weights_come_back_bit_for_bit_and_nothing_else_is_saved(tmp_path):
    policy, other = adapted(make_policy()), adapted(make_policy(), seed=2)
    policy.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "base").exists()
    assert not same_weights(policy, other)
    other.load_weights(tmp_path)
    assert same_weights(policy, other)


def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path):
    make_policy(llama(hidden_size=16, intermediate_size=16)).save(tmp_path / "narrow")
    make_policy(llama(num_hidden_layers=1)).save(tmp_path / "shallow")
    make_policy(llama(num_hidden_layers=3)).save(tmp_path / "deep")
    adapted(make_policy(), targets=["k_proj"]).save(tmp_path / "adapter")
    full, adapter = make_policy(), adapted(make_policy())
    for policy, folder in [(full, "narrow"), (full, "shallow"), (full, "deep"), (adapter, "adapter")]:
        before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
        with pytest.raises(ConfigError, match="holds the weights of another model"):
            policy.load_weights(tmp_path / folder)
        assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
    for policy, folder in [(full, "adapter"), (adapter, "deep"), (full, "missing")]:
        with pytest.raises(ConfigError, match=r"no config\.json|no adapter_model|no such folder"):
            policy.load_weights(tmp_path / folder)
