"""Texts that a reward model scores, as token sequences: whole, or step by step with the token that ends each step.

The sequences are those of training: a string ends with the end token, a conversation as its template ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.errors import DataError
from rlhf.data.chat import Piece
from rlhf.data.encode import Tokeniser
from rlhf.data.gates import GateReport, Gates, check_records
from rlhf.data.records import Record, is_messages
from rlhf.data.tokenise import TRUNCATED, Tokens

_CHUNK = 2000


@dataclass(frozen=True, eq=False)
class StepSample:
    """A text with its steps. tokens.mask is True at each step's last token. Shapes: right bool [steps]."""

    row_id: str
    tokens: Tokens
    right: NDArray[np.bool_]
    record: Record


def prepare_steps(
    records: Sequence[Record], tokenizer: Any, *, max_length: int | None = None, separator: str = "\n"
) -> tuple[list[StepSample], GateReport]:
    """Samples of stepwise supervision, and what happened to the rest; steps beyond max_length are cut off.

    Raises: DataError where a chat template changes the steps, or no row is left.
    """
    gates, tokeniser = Gates(), Tokeniser(tokenizer)
    samples: list[StepSample] = []
    checked = check_records(records, gates)
    for start in range(0, len(checked), _CHUNK):
        chunk = checked[start : start + _CHUNK]
        steps = [[*(f"{step}{separator}" for step in r.columns["completions"][:-1]), _last(r)] for r in chunk]
        for record, tokens in zip(chunk, _tokens(tokeniser, chunk, steps), strict=True):
            if any(separator in step for step in record.columns["completions"]):
                gates.note("a step contains train.step_separator: a whole answer would be cut there too", record.ref)
            kept = len(tokens.ids) if max_length is None else min(len(tokens.ids), max_length)
            ends = int(tokens.mask[:kept].sum())
            if ends == 0:
                gates.drop("no step ends within max_length", record.ref)
                continue
            if kept < len(tokens.ids):
                gates.note(TRUNCATED, record.ref)
            cut = replace(tokens, ids=tokens.ids[:kept], mask=tokens.mask[:kept], cut=len(tokens.ids) - kept)
            right = np.asarray(record.columns["labels"][:ends], dtype=bool)
            samples.append(StepSample(record.row_id, cut, right, record))
    return samples, gates.report(len(samples))


def scored_texts(tokeniser: Tokeniser, records: Sequence[Record], separator: str | None = None) -> list[Tokens]:
    """Prompts with completions, which may be empty, as a reward model reads them; nothing is cut.

    separator: ends the steps of a completion; the mask is then True at their last tokens, else at the completion's.
    """
    texts = [_text(record) for record in records]
    return _tokens(tokeniser, records, [split_steps(text, separator) if separator else [text] for text in texts])


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of an answer, which together are the answer: each with the separator that ends it.

    A piece without a word belongs to the step before it, or to the first one.
    """
    parts = text.split(separator)
    pieces = [f"{part}{separator}" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
    steps: list[str] = []
    for piece in pieces:
        if steps and (not piece.strip() or not steps[-1].strip()):
            steps[-1] += piece
        else:
            steps.append(piece)
    return steps or [""]


def _last(record: Record) -> str:
    return str(record.columns["completions"][-1])


def _text(record: Record) -> str:
    completion = record.completion
    return str(completion[-1].get("content") or "") if isinstance(completion, list) else completion or ""


def _tokens(tokeniser: Tokeniser, records: Sequence[Record], steps: Sequence[list[str]]) -> list[Tokens]:
    rows = [(_pieces(tokeniser, r, parts), not is_messages(r.prompt)) for r, parts in zip(records, steps, strict=True)]
    found = []
    for record, (parts, _) in zip(records, tokeniser.sequences(rows), strict=True):
        if any(not part for part in parts[1:]):
            raise DataError(f"{record.ref}: a step without a token of its own cannot be scored")
        ids = np.asarray([token for part in parts for token in part], dtype=np.int32)
        mask = np.zeros(len(ids), dtype=bool)
        ends = np.cumsum([len(part) for part in parts])
        if ends[1] < 2:
            raise DataError(f"{record.ref}: no token to score: the text is at most one token long")
        mask[ends[1:] - 1] = True
        found.append(Tokens(ids, mask, int(ends[0])))
    return found


def _pieces(tokeniser: Tokeniser, record: Record, steps: list[str]) -> list[Piece]:
    if not isinstance(record.prompt, list):
        return [Piece(str(record.prompt or ""), True, False), *(Piece(step, False, True) for step in steps)]
    answer = "".join(steps)
    head, *rest = tokeniser.chat.completion(record.prompt, [{"role": "assistant", "content": answer}], record.ref)
    text = "".join(piece.text for piece in rest)
    if not text.startswith(answer):
        # Most templates strip what they are given; inside, a step must be what it was.
        steps = [steps[0].lstrip(), *steps[1:]] if len(steps) > 1 else [steps[0].strip()]
        steps[-1] = steps[-1].rstrip()
        answer = "".join(steps)
    if not text.startswith(answer):
        raise DataError(
            f"{record.ref}: the chat template of {tokeniser.name} changes the answer, so that its steps cannot be "
            "found in it: set model.chat_template_path to a template that does not"
        )
    return [head, *(Piece(step, False, True) for step in [*steps[:-1], steps[-1] + text[len(answer) :]])]
