"""The built-in model and its tokenizer."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.errors import ConfigError
from rlhf.config import ModelSection
from rlhf.models.policy import without_progress_bars
from rlhf.models.tiny import build_model, build_tokenizer

TEXTS = [f"What is {i} plus {i + 3}? It is {2 * i + 3}." for i in range(60)]
TEXTS += ["The harbour was quiet; nobody there could say why.", 'Please call the tool {"name": "tide"}'] * 5
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " 1+1? "},
    {"role": "assistant", "content": " 2\n"},
    {"role": "user", "content": "And 24?"},
    {"role": "assistant", "content": "Twenty-four é."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, 400)


def test_same_texts_give_the_same_tokenizer_in_any_order(tokenizer):
    again = build_tokenizer(reversed(TEXTS), 400)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.slow
def test_tokenizer_does_not_depend_on_the_process():
    code = (
        "import hashlib; from rlhf.models.tiny import build_tokenizer;"
        "tokenizer = build_tokenizer([f'a quiet harbour {i} quite high' for i in range(9)], 290);"
        "print(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_every_digit_is_a_piece_of_its_own(tokenizer):
    assert tokenizer.tokenize("2024+13") == ["2", "0", "2", "4", "+", "1", "3"]


def test_any_text_survives_encoding_and_decoding(tokenizer):
    text = "  12  Übermut, 漢字 \U0001f30a 'n don't\n\t{}"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_vocabulary_has_the_asked_size_and_falls_short_only_for_lack_of_words():
    assert len(build_tokenizer(TEXTS, 320)) == 320
    assert len(build_tokenizer(["ab"], 320)) < 320


def test_chat_template_marks_answers_and_their_end_tokens(tokenizer):
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == " 2\n<|eos|>Twenty-four é.<|eos|>"
    assert tokenizer.decode(encoded["input_ids"]) == (
        "<|system|>Be short.<|user|> 1+1? <|assistant|> 2\n<|eos|><|user|>And 24?<|assistant|>Twenty-four é.<|eos|>"
    )


def test_a_prompt_with_generation_prompt_is_a_prefix_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:4], add_generation_prompt=True, tokenize=False)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith(prompt)


def test_unknown_roles_are_refused(tokenizer):
    with pytest.raises(Exception, match="knows the roles system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_no_text_and_no_room_for_bytes_are_errors():
    with pytest.raises(ConfigError, match="holds no text"):
        build_tokenizer(["", ""], 400)
    with pytest.raises(ConfigError, match=r"model\.tiny_vocab_size is 200"):
        build_tokenizer(TEXTS, 200)


def test_model_depends_on_its_seed_and_leaves_the_global_random_state_alone(tokenizer):
    before = torch.get_rng_state()
    one, same, other = (build_model(ModelSection(), tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_sizes_of_the_configuration_are_those_of_the_model(tokenizer):
    section = ModelSection(tiny_hidden_size=64, tiny_num_layers=2, tiny_num_heads=8, tiny_num_kv_heads=4)
    config = build_model(section, tokenizer, 0).config
    assert (config.hidden_size, config.num_hidden_layers) == (64, 2)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert (config.vocab_size, config.tie_word_embeddings) == (len(tokenizer), True)


def test_heads_of_odd_width_are_an_error(tokenizer):
    with pytest.raises(ConfigError, match="odd width 33"):
        build_model(ModelSection(tiny_hidden_size=132), tokenizer, 0)


def test_attention_implementation_is_the_asked_one(tokenizer):
    assert build_model(ModelSection(), tokenizer, 0).config._attn_implementation == "sdpa"
    model = build_model(ModelSection(attn_implementation="eager"), tokenizer, 0)
    assert model.config._attn_implementation == "eager"


def test_saved_folder_is_read_by_the_auto_classes(tokenizer, tmp_path, caplog):
    model = build_model(ModelSection(), tokenizer, 0)
    with without_progress_bars():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        loaded, reader = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert reader.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert reader.chat_template == tokenizer.chat_template
    assert (reader.pad_token, reader.eos_token) == ("<|pad|>", "<|eos|>")
    assert caplog.records == []
