"""Pieces of text as token ids, such that a prompt has the same ids in training as when the model is given it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from rewards.errors import ConfigError
from rlhf.data.chat import Chat, Piece, open_chat
from rlhf.data.records import Record, is_messages


class Tokeniser:
    """Encodes pieces of text; knows the tokenizer's special tokens and, once asked for, its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        self._chat: Chat | None = None
        self.prefix = self._special_prefix()
        # SentencePiece gives every text a space in front: a piece that continues another must not get one.
        self._newline = self.encode(["\n"])[0]
        alone, after = self.encode(["a", "\na"])
        self._adds_space = alone != after[len(self._newline) :] and after[: len(self._newline)] == self._newline

    def _special_prefix(self) -> list[int]:
        """What the tokenizer puts before every text (bos, or nothing)."""
        for probe in ("a", "1", "."):
            bare = self.encode([probe])[0]
            full = list(self.tokenizer(probe)["input_ids"])
            if bare and bare in (full[i : i + len(bare)] for i in range(len(full))):
                return full[: next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)]
        raise ConfigError(f"{self.name}: its special tokens cannot be told from the tokens of a text")

    @property
    def chat(self) -> Chat:
        """The chat template, checked at first use."""
        if self._chat is None:
            self._chat = open_chat(self.tokenizer)
        return self._chat

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about the chat template, where one was used."""
        return self._chat.notes if self._chat else ()

    @property
    def eos(self) -> int:
        """The token that ends a string's completion.

        Raises: ConfigError where the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"{self.name} has no eos token: a model cannot learn where an answer ends without one")
        return int(self.tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any special token added."""
        if not texts:
            return []
        return list(self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])

    def prompts(self, records: Sequence[Record]) -> list[list[int]]:
        """What the model is given for each record: the same ids as at the start of its training sequences."""
        texts = [
            self.chat.prompt(r.prompt, r.ref) if isinstance(r.prompt, list) else str(r.prompt or "") for r in records
        ]
        encoded = self.encode(texts)
        return [
            ids if is_messages(r.prompt) else self._with_prefix(ids) for r, ids in zip(records, encoded, strict=True)
        ]

    def sequences(self, rows: Sequence[tuple[Sequence[Piece], bool]]) -> list[tuple[list[list[int]], bool]]:
        """Ids piece by piece, and whether the pieces were encoded apart, for rows of (pieces, is a plain string)."""
        joined = [_prefixes(pieces) for pieces, _ in rows]
        # Both sides of a pair share their prompt: no text is encoded twice.
        texts = list(dict.fromkeys(text for steps in joined for text in steps))
        known = dict(zip(texts, self.encode(texts), strict=True))
        encoded = [[known[text] for text in steps] for steps in joined]
        apart = [i for i, steps in enumerate(encoded) if not _each_begins_the_next(steps)]
        tails = list(dict.fromkeys(piece.text for i in apart for piece in rows[i][0][1:]))
        continued = dict(zip(tails, self._encode_continued(tails), strict=True))
        redone = {i: [encoded[i][0], *(continued[piece.text] for piece in rows[i][0][1:])] for i in apart}
        out = []
        for i, (_, plain) in enumerate(rows):
            parts = redone.get(i) or [
                now[len(before) :] for before, now in zip([[], *encoded[i]], encoded[i], strict=False)
            ]
            if plain:
                parts = [self._with_prefix(parts[0]), *parts[1:]]
                # A text that spells out its own end does not get a second one.
                parts[-1] = parts[-1] if parts[-1][-1:] == [self.eos] else [*parts[-1], self.eos]
            out.append((parts, i in redone))
        return out

    def _encode_continued(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that continue another text, without the space that SentencePiece gives a beginning."""
        alone = self.encode(texts)
        if not self._adds_space:
            return alone
        cut = len(self._newline)
        after = self.encode(["\n" + text for text in texts])
        return [ids[cut:] if ids[:cut] == self._newline else single for ids, single in zip(after, alone, strict=True)]

    def _with_prefix(self, ids: list[int]) -> list[int]:
        return ids if self.prefix and ids[: len(self.prefix)] == self.prefix else [*self.prefix, *ids]


def _prefixes(pieces: Sequence[Piece]) -> list[str]:
    texts, text = [], ""
    for piece in pieces:
        text += piece.text
        texts.append(text)
    return texts


def _each_begins_the_next(steps: list[list[int]]) -> bool:
    return all(b[: len(a)] == a for a, b in itertools.pairwise(steps))
