"""The built-in model: a small Llama-like causal LM with random weights, and a tokenizer made from given texts.

Both are ordinary transformers objects: `save_pretrained` writes a folder that AutoModelForCausalLM and AutoTokenizer
read. Nothing here touches the global random state.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rewards.errors import ConfigError
from rlhf.config import ModelSection

CONTEXT_LENGTH = 1024
PAD, EOS = "<|pad|>", "<|eos|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")

# A turn opens with its role's token and ends where the next one opens; only an answer ends with <|eos|>, which is what
# the model must learn to emit. Contents are kept to the character. The generation markers give assistant masks.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('the built-in chat template knows the roles system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a piece of its own, with turn tokens and a chat template.

    Any text can be encoded: the 256 bytes are always pieces. The same texts give the same tokenizer. `vocab_size`
    counts the special tokens; texts with too few different words give fewer pieces.

    Raises: ConfigError when there is no text or no room for the bytes.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise ConfigError("the built-in model's tokenizer is made from the data, and the data holds no text")
    special = [PAD, EOS, *TURNS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise ConfigError(
            f"model.tiny_vocab_size is {vocab_size}; bytes and special tokens need {len(alphabet) + len(special)}"
        )
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=list(TURNS),
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(section: ModelSection, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Randomly initialised Llama-like model with tied embeddings, in float32, for that tokenizer.

    Raises: ConfigError when the width of a head is odd.
    """
    hidden, heads = section.tiny_hidden_size, section.tiny_num_heads
    if (hidden // heads) % 2:
        raise ConfigError(
            f"model.tiny_hidden_size {hidden} over model.tiny_num_heads {heads} makes heads of odd width "
            f"{hidden // heads}; rotary positions turn pairs of numbers and need an even one"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=section.tiny_num_layers,
        num_attention_heads=heads,
        num_key_value_heads=section.tiny_num_kv_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=section.attn_implementation,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
