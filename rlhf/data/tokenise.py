"""Records as token sequences, with the tokens that are scored, cut to max_length; every cut and loss is counted.

Where the prompt ends is where generation would begin: the sequence's first tokens are the prompt tokenised alone, as
the model is given it. The tokens of the whole text are used where they agree with that, which is nearly always; where
a token would span the border, prompt and completion are tokenised apart. Taking the prompt's length from another
tokenisation than the sequence's would shift every mask by the difference.

A string gets the special tokens that the tokenizer puts in front (bos) once, at its start, and eos at its end. A chat
template writes its own: nothing is added to a conversation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.errors import ConfigError, DataError
from rlhf.data.chat import Piece
from rlhf.data.encode import Tokeniser
from rlhf.data.gates import GateReport, Gates, check_records
from rlhf.data.records import Record, is_messages

_CHUNK = 2000  # rows tokenised at once: enough to keep the tokenizer's threads busy, little enough to hold in memory
TRUNCATED = "the end is cut off at max_length"
OTHER_LABEL = "cut off at max_length it is what an earlier row gives the other label"
MERGED = "a token would span the end of the prompt or of an answer: the pieces are tokenised apart"


@dataclass(frozen=True, eq=False)
class Tokens:
    """One sequence.

    Shapes: ids int32 [T]; mask bool [T], True where a token is scored, never at 0. The first prompt_length ids are the
    prompt. cut: tokens lost at the end.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    prompt_length: int
    cut: int = 0

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        """What the model is given."""
        return self.ids[: self.prompt_length]

    @property
    def completion_ids(self) -> NDArray[np.int32]:
        """What it is to say."""
        return self.ids[self.prompt_length :]

    @property
    def completion_mask(self) -> NDArray[np.bool_]:
        """Which tokens of the completion are scored."""
        return self.mask[self.prompt_length :]


@dataclass(frozen=True, eq=False)
class Sample:
    """A demonstration or a labelled completion."""

    row_id: str
    tokens: Tokens
    record: Record


@dataclass(frozen=True, eq=False)
class PairSample:
    """A pair; both sides begin with the same prompt_ids."""

    row_id: str
    chosen: Tokens
    rejected: Tokens
    record: Record


@dataclass(frozen=True, eq=False)
class PromptSample:
    """A prompt to be answered. prompt_ids: int32 [T]."""

    row_id: str
    prompt_ids: NDArray[np.int32]
    record: Record


def prepare_demonstrations(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
) -> tuple[list[Sample], GateReport]:
    """Samples of demonstrations, and what happened to the rest.

    completion_only_loss: null scores completions where a row has a prompt and all tokens but the first elsewhere;
    true also refuses rows without a prompt; false scores prompts too. assistant_only_loss: of conversations only the
    assistant's turns. Tokens beyond max_length are cut from the end.

    Raises: ConfigError where a setting does not fit the rows or the tokenizer; DataError naming a row without a token
    to score; DataError where no row is left.
    """
    gates, tokeniser = Gates(), Tokeniser(tokenizer)
    samples: list[Sample] = []
    full: dict[tuple[bytes, bool], bool] = {}
    for chunk in _chunks(check_records(records, gates)):
        rows = [(_demonstration(r, tokeniser, completion_only_loss, assistant_only_loss), r) for r in chunk]
        texts = [(pieces, not is_messages(r.completion)) for pieces, r in rows]
        for (pieces, record), (parts, apart) in zip(rows, tokeniser.sequences(texts), strict=True):
            scored = [_is_scored(piece, completion_only_loss, assistant_only_loss) for piece in pieces]
            tokens = _fit(pieces, parts, scored, max_length, record, gates)
            if tokens is not None:
                _remark(tokens, apart, record, gates)
                if record.label is not None and len(tokens.ids) == max_length:
                    _compare(tokens, record, full, gates)
                samples.append(Sample(record.row_id, tokens, record))
    return samples, _report(gates, len(samples), tokeniser)


def prepare_labelled(
    records: Sequence[Record], tokenizer: Any, *, max_length: int | None = None
) -> tuple[list[Sample], GateReport]:
    """Samples of labelled completions, of which the completion is scored; the label stays in the record.

    Rows that max_length makes equal under different labels, as the sides of a pair that differ late, are noted: they
    ask for opposite things.

    Raises: as prepare_demonstrations.
    """
    return prepare_demonstrations(records, tokenizer, max_length=max_length, completion_only_loss=True)


def prepare_pairs(
    records: Sequence[Record], tokenizer: Any, *, max_length: int | None = None
) -> tuple[list[PairSample], GateReport]:
    """Samples of pairs, and what happened to the rest; sides that max_length makes identical are dropped.

    Raises: as prepare_demonstrations.
    """
    gates, tokeniser = Gates(), Tokeniser(tokenizer)
    samples: list[PairSample] = []
    for chunk in _chunks(check_records(records, gates)):
        sides = [(_sides(r, tokeniser), r) for r in chunk]
        texts = [(side, not is_messages(r.chosen)) for both, r in sides for side in both]
        done = iter(tokeniser.sequences(texts))
        for (first, second), record in sides:
            (chosen_parts, apart), (rejected_parts, apart_too) = next(done), next(done)
            chosen = _fit(first, chosen_parts, [p.answer for p in first], max_length, record, gates)
            if chosen is None:
                continue
            rejected = _fit(second, rejected_parts, [p.answer for p in second], max_length, record, gates)
            if rejected is None:
                continue
            if np.array_equal(chosen.ids, rejected.ids):
                cut = chosen.cut or rejected.cut
                gates.drop(
                    "chosen and rejected are identical after truncation" if cut else "the same tokens on both sides",
                    record.ref,
                )
                continue
            _remark(chosen if chosen.cut else rejected, apart or apart_too, record, gates)
            samples.append(PairSample(record.row_id, chosen, rejected, record))
    return samples, _report(gates, len(samples), tokeniser)


def prepare_prompts(
    records: Sequence[Record], tokenizer: Any, *, max_prompt_length: int | None = None
) -> tuple[list[PromptSample], GateReport]:
    """Prompts to be answered. A prompt above max_prompt_length is dropped and counted: a cut one asks something else.

    Raises: as prepare_demonstrations.
    """
    gates, tokeniser = Gates(), Tokeniser(tokenizer)
    samples: list[PromptSample] = []
    for chunk in _chunks(check_records(records, gates)):
        for record, ids in zip(chunk, tokeniser.prompts(chunk), strict=True):
            if max_prompt_length is not None and len(ids) > max_prompt_length:
                gates.drop(f"the prompt is longer than {max_prompt_length} tokens", record.ref)
            elif not ids:
                gates.drop("the prompt has no token", record.ref)
            else:
                samples.append(PromptSample(record.row_id, np.asarray(ids, dtype=np.int32), record))
    return samples, _report(gates, len(samples), tokeniser)


def _report(gates: Gates, kept: int, tokeniser: Tokeniser) -> GateReport:
    for note in tokeniser.notes:
        gates.note(note, tokeniser.name)
    return gates.report(kept)


def _chunks(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    for start in range(0, len(records), _CHUNK):
        yield records[start : start + _CHUNK]


def _demonstration(
    record: Record, tokeniser: Tokeniser, completion_only: bool | None, assistant_only: bool
) -> list[Piece]:
    prompt, completion = record.prompt, record.completion
    if prompt is None and completion_only:
        raise ConfigError(
            f"{record.ref}: completion_only_loss needs rows with a prompt, and this one has none; "
            "for conversations set assistant_only_loss instead"
        )
    if not isinstance(completion, list):
        if assistant_only:
            raise ConfigError(f"{record.ref}: assistant_only_loss needs conversations, and this row is plain text")
        head = [] if prompt is None else [Piece(str(prompt), True, False)]
        return [*head, Piece(str(completion), False, True)]
    if isinstance(prompt, list) and assistant_only and completion_only is False:
        return tokeniser.chat.conversation([*prompt, *completion], record.ref)
    if isinstance(prompt, list):
        return tokeniser.chat.completion(prompt, completion, record.ref)
    if assistant_only:
        return tokeniser.chat.conversation(completion, record.ref)
    return tokeniser.chat.whole(completion, record.ref)


def _is_scored(piece: Piece, completion_only: bool | None, assistant_only: bool) -> bool:
    if assistant_only:
        return piece.answer
    # Turns of others inside a completion are no part of what the model is to say.
    return completion_only is False or (piece.answer and not piece.prompt)


def _sides(record: Record, tokeniser: Tokeniser) -> tuple[list[Piece], list[Piece]]:
    if isinstance(record.prompt, list):
        chat, prompt = tokeniser.chat, record.prompt
        return (
            chat.completion(prompt, record.chosen, record.ref),  # type: ignore[arg-type]
            chat.completion(prompt, record.rejected, record.ref),  # type: ignore[arg-type]
        )
    head = Piece(str(record.prompt or ""), True, False)
    return [head, Piece(str(record.chosen), False, True)], [head, Piece(str(record.rejected), False, True)]


def _fit(
    pieces: Sequence[Piece],
    parts: Sequence[list[int]],
    scored: Sequence[bool],
    max_length: int | None,
    record: Record,
    gates: Gates,
) -> Tokens | None:
    """The sequence, its end cut at max_length; None, and counted, where nothing to score is left."""
    ids = [token for part in parts for token in part]
    mask = [flag for part, flag in zip(parts, scored, strict=True) for _ in part]
    mask[0:1] = [False]  # nothing precedes the first token: it has no probability
    prompt_length = sum(len(part) for part, piece in zip(parts, pieces, strict=True) if piece.prompt)
    if not any(mask):
        raise DataError(f"{record.ref}: no token to score: the text is at most one token long")
    kept = len(ids) if max_length is None else min(len(ids), max_length)
    if prompt_length >= kept:
        gates.drop("the prompt alone fills max_length", record.ref)
        return None
    if not any(mask[:kept]):
        gates.drop("no token to score within max_length", record.ref)
        return None
    return Tokens(
        np.asarray(ids[:kept], dtype=np.int32), np.asarray(mask[:kept], dtype=bool), prompt_length, len(ids) - kept
    )


def _remark(tokens: Tokens, apart: bool, record: Record, gates: Gates) -> None:
    if tokens.cut:
        gates.note(TRUNCATED, record.ref)
    if apart:
        gates.note(MERGED, record.ref)


def _compare(tokens: Tokens, record: Record, full: dict[tuple[bytes, bool], bool], gates: Gates) -> None:
    """Notes a labelled row that only max_length makes equal to an earlier one of the other label.

    full: of the rows before that fill max_length, by digest and label, whether one of them was cut.
    """
    digest, label = hashlib.blake2b(tokens.ids.tobytes(), digest_size=16).digest(), bool(record.label)
    if (digest, not label) in full and (tokens.cut or full[digest, not label]):
        gates.note(OTHER_LABEL, record.ref)
    full[digest, label] = full.get((digest, label), False) or tokens.cut > 0
