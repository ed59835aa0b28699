"""Models, tokenizer and rows that both sides read, and the tokens that both must make of them.

Runs in a process of its own, so that the one that measures never loads torch.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "S": {"vocab": 4_096, "hidden": 256, "layers": 5, "heads": 4, "kv_heads": 2, "intermediate": 688},
    "M": {"vocab": 32_000, "hidden": 384, "layers": 11, "heads": 6, "kv_heads": 2, "intermediate": 1_024},
}
PARAMETERS = {"S": 4_676_352, "M": 29_598_336}
LONGEST = 4_096
SEED = 7
PAD, EOS = "<|pad|>", "<|eos|>"
TURN = "\n\nAssistant:"


def read_pairs(path: Path) -> list[dict[str, str]]:
    """HH transcripts as prompt, chosen, rejected: the prompt ends where the last turn that both share begins."""
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            sides = zip(row["chosen"], row["rejected"], strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], sides))
            cut = row["chosen"].rfind(TURN, 0, shared)
            if cut < 0:
                continue
            cut += len(TURN)
            chosen, rejected = row["chosen"][cut:], row["rejected"][cut:]
            if chosen.strip() and rejected.strip() and chosen != rejected:
                pairs.append({"prompt": row["chosen"][:cut], "chosen": chosen, "rejected": rejected})
    return pairs


def build_model(folder: Path, size: str, texts: Iterable[str]) -> None:
    """A randomly initialised model with its tokenizer; for TRL's reward trainer also the classifier with our head."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

    sizes = SIZES[size]
    tokenizer = _tokenizer(texts, sizes["vocab"])
    config = LlamaConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(SEED)
    model = LlamaForCausalLM(config)
    count = sum(p.numel() for p in model.parameters())
    if count != PARAMETERS[size]:
        raise SystemExit(f"the model of size {size} has {count:,} parameters, expected {PARAMETERS[size]:,}")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside / "policy")
    config.num_labels = 1
    classifier = LlamaForSequenceClassification(config)
    classifier.model.load_state_dict(model.model.state_dict())
    classifier.score.weight.data.copy_(_our_head(model))
    classifier.save_pretrained(aside / "classifier")
    for name in ("policy", "classifier"):
        tokenizer.save_pretrained(aside / name)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _our_head(model: Any) -> Any:
    """What `rlhf reward` starts its head with: two random heads would be two trainings."""
    from rlhf.models.heads import RewardModel

    own = [p for name, p in RewardModel(model, seed=SEED).named_parameters() if not name.startswith("model.")]
    if len(own) != 1:
        raise SystemExit(f"a reward model has {len(own)} parameters of its own, expected its head alone")
    return own[0].detach().reshape(1, -1)


def _tokenizer(texts: Iterable[str], vocab: int) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=LONGEST,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def fitting(pairs: Sequence[dict[str, str]], tokenizer: Any, stage: str, max_length: int) -> list[dict[str, str]]:
    """Rows that both sides keep. TRL's reward trainer drops what is longer than max_length, ours cuts it."""

    def lengths(texts: list[str]) -> list[list[int]]:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"])

    heads = lengths([pair["prompt"] for pair in pairs])
    wholes = [lengths([pair["prompt"] + pair[side] for pair in pairs]) for side in ("chosen", "rejected")]
    kept = []
    for pair, head, chosen, rejected in zip(pairs, heads, *wholes, strict=True):
        if any(whole[: len(head)] != head for whole in (chosen, rejected)) or len(head) >= max_length:
            continue
        if chosen[:max_length] == rejected[:max_length]:
            continue
        if stage == "reward" and max(len(chosen), len(rejected)) + 1 > max_length:
            continue
        kept.append(pair)
    return kept


def as_rows(stage: str, pairs: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """`count` rows of a stage; SFT takes the chosen answers."""
    if stage != "sft":
        return list(pairs[:count])
    return [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs[:count]]


def uniform_rows(stage: str, tokenizer: Any, length: int, count: int) -> list[dict[str, str]]:
    """Synthetic rows of exactly `length` tokens a sequence, half of them prompt."""
    import random

    # A word of the vocabulary with its space is one token wherever it stands.
    words = sorted(token for token in tokenizer.get_vocab() if token[:1] == "Ġ" and token[1:].isalpha())
    words = [" " + token[1:] for token in words if token[1:].isascii()]
    draw = random.Random(SEED)

    def text(tokens: int) -> str:
        return "".join(draw.choice(words) for _ in range(tokens))

    rows = []
    for _ in range(count):
        prompt, answer = text(length // 2), length - length // 2 - 1  # and the end token
        if stage == "sft":
            rows.append({"prompt": prompt, "completion": text(answer)})
        else:
            rows.append({"prompt": prompt, "chosen": text(answer), "rejected": text(answer)})
    return rows


Sequences = list[tuple[list[int], list[bool]]]


def our_batches(stage: str, path: Path, tokenizer: Any, batch: int, steps: int, max_length: int) -> list[Sequences]:
    """Ids and masks of every step as the stage takes them from the file: chosen texts first."""
    from rlhf.config import DataSection
    from rlhf.data import tokenise
    from rlhf.data.holdout import load_records
    from rlhf.data.mixture import EpochOrder

    records, _ = load_records(DataSection(dataset_name=str(path)), stage, "train", SEED)
    make = tokenise.prepare_demonstrations if stage == "sft" else tokenise.prepare_pairs
    samples, report = make(records, tokenizer, max_length=max_length)  # type: ignore[operator]
    if report.dropped_count:
        raise SystemExit(f"rows that one side drops: {report.lines()}")
    order = EpochOrder(len(samples), batch, SEED)
    found = []
    for step in range(1, steps + 1):
        taken = [samples[i] for i in order.indices(step)]
        if stage == "sft":
            sequences = [sample.tokens for sample in taken]
        else:
            sequences = [sample.chosen for sample in taken] + [sample.rejected for sample in taken]
        found.append([(tokens.ids.tolist(), tokens.mask.tolist()) for tokens in sequences])
    return found


def in_order(rows: Sequence[dict[str, str]], batch: int, steps: int) -> list[dict[str, str]]:
    """The rows as our stage's order takes them, for a trainer that goes through its file from the first to the last."""
    from rlhf.data.mixture import EpochOrder

    order = EpochOrder(len(rows), batch, SEED)
    return [rows[i] for step in range(1, steps + 1) for i in order.indices(step)]


def digest(batches: Iterable[Sequences], *, masks: bool) -> str:
    """SHA-256 of the ids, and of the masks where both sides have some."""
    found = hashlib.sha256()
    for sequences in batches:
        for ids, mask in sequences:
            found.update(json.dumps([ids, [int(m) for m in mask]] if masks else ids).encode())
    return found.hexdigest()


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
