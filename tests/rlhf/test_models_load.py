"""From a configuration to a model: sources, adapters, tokenizers, errors of one line."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.config import ModelSection
from rlhf.models.generate import generate
from rlhf.models.load import load_policy
from rlhf.models.tiny import build_tokenizer

TEXTS = ["What is 12 plus 30? It is 42.", "The harbour was quiet; nobody could say why."]
SMALL = {"tiny_hidden_size": 32, "tiny_num_layers": 1, "tiny_vocab_size": 300}
LORA = {"use_peft": True, "lora_dropout": 0.0}


def tiny(seed=0, **changes):
    return load_policy(ModelSection(**{**SMALL, **changes}), texts=TEXTS, seed=seed)


def logps(policy):
    ids = torch.tensor([[7, 8, 9, 10, 1]])
    on = torch.ones_like(ids, dtype=torch.bool)
    mask = on.clone()
    mask[:, 0] = False
    with torch.no_grad():
        return policy.eval()(TokenBatch(ids, on, mask)).logps_BT


def shake(policy, seed=3):
    """Move what is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return policy


def test_tiny_is_made_from_texts_and_seed_in_the_asked_precision():
    policy, tokenizer = tiny(dtype="float64")
    assert next(policy.parameters()).dtype == torch.float64
    assert policy.config.vocab_size == len(tokenizer)
    assert torch.equal(logps(policy), logps(tiny(dtype="float64")[0]))
    assert not torch.equal(logps(policy), logps(tiny(seed=1, dtype="float64")[0]))
    with pytest.raises(ConfigError, match="`tiny` makes its tokenizer from training data"):
        load_policy(ModelSection(), seed=0)


def test_a_saved_policy_is_read_from_its_folder(tmp_path, capfd):
    policy, tokenizer = tiny()
    shake(policy).save(tmp_path, tokenizer)
    read, reader = load_policy(ModelSection(model_name_or_path=str(tmp_path)), seed=9)
    assert torch.equal(logps(read), logps(policy))
    assert reader.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    half, _ = load_policy(ModelSection(model_name_or_path=str(tmp_path), dtype="bfloat16"), seed=9)
    assert next(half.parameters()).dtype == torch.bfloat16
    assert capfd.readouterr().err == ""


def test_a_new_adapter_depends_on_its_seed_alone_and_changes_nothing_at_first():
    state = torch.get_rng_state()
    one, _ = tiny(**LORA)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    same, _ = tiny(**LORA)
    torch.set_rng_state(state)
    assert torch.equal(logps(one), logps(tiny()[0]))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    trained = [name for name, parameter in one.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_knobs_of_the_adapter_reach_it():
    section = {**LORA, "lora_r": 3, "lora_alpha": 5.0, "lora_dropout": 0.25, "lora_target_modules": ["k_proj"]}
    config = tiny(**section)[0].model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (3, 5.0, 0.25, {"k_proj"})
    with pytest.raises(ConfigError, match=r"model\.lora_target_modules: .*nowhere"):
        tiny(**LORA, lora_target_modules=["nowhere"])


def test_an_adapter_over_the_built_in_model_brings_its_base(tmp_path):
    policy, tokenizer = tiny(dtype="float64", **LORA)
    shake(policy).save(tmp_path, tokenizer)
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "base" / "model.safetensors").is_file()
    read, _ = load_policy(ModelSection(model_name_or_path=str(tmp_path), dtype="float64"), seed=9)
    assert not read.has_adapter
    torch.testing.assert_close(logps(read), logps(policy))


def test_an_adapter_is_read_with_the_base_it_names(tmp_path):
    base, tokenizer = tiny(dtype="float64")
    base.save(tmp_path / "sft", tokenizer)
    section = ModelSection(model_name_or_path=str(tmp_path / "sft"), dtype="float64", **LORA)
    policy, tokenizer = load_policy(section, seed=1)
    shake(policy).save(tmp_path / "dpo", tokenizer)
    assert not (tmp_path / "dpo" / "base").exists()
    section = ModelSection(model_name_or_path=str(tmp_path / "dpo"), dtype="float64")
    torch.testing.assert_close(logps(load_policy(section, seed=2)[0]), logps(policy))


def test_the_next_stages_adapter_switched_off_is_the_policy_it_started_from(tmp_path):
    first, tokenizer = tiny(dtype="float64", **LORA)
    shake(first).save(tmp_path / "first", tokenizer)
    section = ModelSection(model_name_or_path=str(tmp_path / "first"), dtype="float64", **LORA)
    second, tokenizer = load_policy(section, seed=4)
    shake(second, seed=8)
    assert not torch.allclose(logps(second), logps(first))
    with second.disabled_adapter():
        torch.testing.assert_close(logps(second), logps(first))
    # Two adapters deep, the merged base lives in no folder: it travels with the second.
    second.save(tmp_path / "second", tokenizer)
    section = ModelSection(model_name_or_path=str(tmp_path / "second"), dtype="float64")
    torch.testing.assert_close(logps(load_policy(section, seed=5)[0]), logps(second))


def test_an_adapter_that_names_no_base_is_an_error(tmp_path):
    policy, tokenizer = tiny(**LORA)
    policy.save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="names no base model"):
        load_policy(ModelSection(model_name_or_path=str(tmp_path)), seed=0)


def test_without_peft_the_error_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"^model\.use_peft: needs peft; .*`pip install 'rlhf-ledger\[peft\]'`$"):
        tiny(**LORA)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no folder ./nowhere"),
        ("/tmp/no/such/folder", "there is no folder"),
        ("someone/no-such-model", "could not be had from the hub"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(name, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://no-such-host.invalid")
    monkeypatch.setattr("rlhf.models.load.getproxies", dict)
    with pytest.raises(ConfigError) as caught:
        load_policy(ModelSection(model_name_or_path=name), seed=0)
    assert str(caught.value).startswith("model.model_name_or_path: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_no_model_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.model_name_or_path: `.*` could not be read: .+$"):
        load_policy(ModelSection(model_name_or_path=str(tmp_path)), seed=0)


def test_damaged_or_incomplete_weights_are_one_line(tmp_path):
    policy, tokenizer = tiny()
    policy.save(tmp_path, tokenizer)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if "q_proj" not in k}, file, metadata={"format": "pt"})
    section = ModelSection(model_name_or_path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds no causal LM: .*q_proj\.weight is not in its weights"):
        load_policy(section, seed=0)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="could not be read"):
        load_policy(section, seed=0)


def word_tokenizer(**special):
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2, "[UNK]": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def test_without_a_pad_token_the_end_token_pads_and_that_is_said(tmp_path, caplog):
    tiny()[0].save(tmp_path, word_tokenizer(eos_token="</s>"))
    policy, tokenizer = load_policy(ModelSection(model_name_or_path=str(tmp_path)), seed=0)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert "has no pad token: rows are filled up with </s>, outside every mask" in caplog.text
    drawn = generate(
        policy,
        [[0, 1], [1]],
        num_return=1,
        max_new_tokens=3,
        temperature=1.0,
        top_p=1.0,
        seeds=[0, 1],
        eos_id=2,
        pad_id=tokenizer.pad_token_id,
    )
    assert all(len(g.ids) == len(g.logps) for g in drawn)


def test_a_tokenizer_without_an_end_token_is_an_error(tmp_path):
    tiny()[0].save(tmp_path, word_tokenizer(pad_token="a"))
    with pytest.raises(ConfigError, match="has no end token"):
        load_policy(ModelSection(model_name_or_path=str(tmp_path)), seed=0)


def test_a_chat_template_file_replaces_the_tokenizers(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    _, tokenizer = tiny(chat_template_path=str(path))
    chat = [{"role": "user", "content": "é"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "[user]é"
    with pytest.raises(ConfigError, match=r"model\.chat_template_path: there is no file"):
        tiny(chat_template_path=str(tmp_path / "none.jinja"))


def test_the_saved_tokenizer_keeps_its_template(tmp_path):
    policy, tokenizer = tiny()
    policy.save(tmp_path, tokenizer)
    _, read = load_policy(ModelSection(model_name_or_path=str(tmp_path)), seed=0)
    assert read.chat_template == tokenizer.chat_template == build_tokenizer(TEXTS, 300).chat_template
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == read.pad_token_id
