"""Conversations and strings as pieces of text, each known to be scored or not, before anything is tokenised.

A piece boundary is where a completion begins or ends. The prompt's piece is exactly the text that the model is given
when it generates, so that training and generation agree on where the completion starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.errors import ConfigError, DataError
from rlhf.data.records import Message

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Piece:
    """A stretch of text. prompt: it belongs to what the model is given; answer: an assistant turn."""

    text: str
    prompt: bool
    answer: bool


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, checked once. notes: what people should know about it."""

    tokenizer: Any
    name: str
    notes: tuple[str, ...]

    def prompt(self, messages: Sequence[Message], ref: str) -> str:
        """The text that the model continues: with the header of its answer, or its own unfinished last turn.

        Raises: DataError where the template refuses or drops messages, or nobody is asked anything.
        """
        last = messages[-1]["role"]
        if last == "system":
            raise DataError(f"{ref}: the prompt ends with a system message: there is nothing to answer")
        text = self._render(
            messages, ref, add_generation_prompt=last != "assistant", continue_final=last == "assistant"
        )
        self._shows(messages, text, ref)
        return text

    def completion(self, prompt: Sequence[Message], completion: Sequence[Message], ref: str) -> list[Piece]:
        """Pieces of prompt and completion; of the completion only assistant turns are answers.

        Raises: DataError where the rendered prompt is not what the rendered whole begins with.
        """
        head = self.prompt(prompt, ref)
        pieces = self._answers([*prompt, *completion], ref, first=len(prompt), head=head)
        return [Piece(head, True, False), *_after(pieces, len(head))]

    def conversation(self, messages: Sequence[Message], ref: str) -> list[Piece]:
        """Pieces of a whole conversation, none of them a prompt; assistant turns are answers.

        Raises: DataError where there is no assistant turn or the template does not show where one is.
        """
        return self._answers(list(messages), ref, first=0, head="")

    def whole(self, messages: Sequence[Message], ref: str) -> list[Piece]:
        """A conversation as one piece, where no turn needs to be told from another."""
        text = self._render(messages, ref)
        self._shows(messages, text, ref)
        return [Piece(text, False, True)]

    def _answers(self, messages: list[Message], ref: str, first: int, head: str) -> list[Piece]:
        turns = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        if not turns:
            raise DataError(f"{ref}: no turn of the assistant: there is no token to score")
        if head == "" and _GENERATION.search(self.tokenizer.get_chat_template()):
            whole, spans = self._marked(messages, ref)
        else:
            whole, spans = self._by_prefixes(messages, turns, ref, {first: head} if head else {0: ""})
        self._shows(messages, whole, ref)
        pieces = _cut(whole, spans)
        if not any(piece.answer and piece.text for piece in pieces):
            raise DataError(f"{ref}: the chat template of {self.name} marks no token of the assistant's as an answer")
        return pieces

    def _marked(self, messages: list[Message], ref: str) -> tuple[str, list[tuple[int, int]]]:
        """Text and answer spans of a template that marks them itself ({% generation %})."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.tokenizer.get_chat_template()
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # a template raises whatever its author chose
            raise DataError(f"{ref}: the chat template of {self.name} refuses these messages: {error}") from error
        return texts[0], [tuple(span) for span in spans[0]]

    def _by_prefixes(
        self, messages: list[Message], turns: list[int], ref: str, known: dict[int, str]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Text and answer spans by what each assistant turn adds to the text before it.

        known: number of messages -> the text up to there, which is not rendered again.
        """
        whole = self._render(messages, ref)
        spans = []
        for turn in turns:
            before = known[turn] if turn in known else self._render(messages[:turn], ref, add_generation_prompt=True)
            after = whole if turn == len(messages) - 1 else self._render(messages[: turn + 1], ref)
            if not (whole.startswith(after) and after.startswith(before) and after.startswith(tuple(known.values()))):
                raise DataError(
                    f"{ref}: the chat template of {self.name} renders message {turn + 1} otherwise alone than within "
                    "the conversation, so that its tokens cannot be told from the rest: set "
                    "model.chat_template_path to a template that only appends"
                )
            spans.append((len(before), len(after)))
        return whole, spans

    def _shows(self, messages: Sequence[Message], text: str, ref: str) -> None:
        """Refuses a text that lacks what a user or the system says; thoughts in earlier answers may be left out."""
        for number, message in enumerate(messages, 1):
            said = (message.get("content") or "").strip()
            if message["role"] in ("system", "user") and said not in text:
                raise DataError(
                    f"{ref}: the chat template of {self.name} drops what message {number} ({message['role']}) says: "
                    "set model.chat_template_path to a template that shows it, or take such messages out of the data"
                )

    def _render(
        self, messages: Sequence[Message], ref: str, add_generation_prompt: bool = False, continue_final: bool = False
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final,
            )
            return str(text)
        except Exception as error:  # a template raises whatever its author chose
            raise DataError(f"{ref}: the chat template of {self.name} refuses these messages: {error}") from error


def open_chat(tokenizer: Any) -> Chat:
    """The tokenizer's chat template, after a probe that it shows what it is given.

    Raises: ConfigError where there is none, or where it drops the prompt or the answer.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if not tokenizer.chat_template:
        raise ConfigError(f"{name} has no chat template, but the data are conversations: set model.chat_template_path")
    chat = Chat(tokenizer, name, ())
    turns = [("user", "alpha"), ("assistant", "beta"), ("user", "gamma")]
    dialogue = [{"role": role, "content": content} for role, content in turns]
    prompt = chat._render(dialogue, "a test dialogue", add_generation_prompt=True)
    answered = chat._render([*dialogue, {"role": "assistant", "content": "delta"}], "a test dialogue")
    for text, words in ((prompt, ("alpha", "beta", "gamma")), (answered, ("delta",))):
        lost = [word for word in words if word not in text]
        if lost:
            what = "the answer" if words == ("delta",) else "a part of the prompt"
            raise ConfigError(
                f"the chat template of {name} drops {what} (of a test dialogue, `{lost[0]}`): "
                "set model.chat_template_path"
            )
    eos = tokenizer.eos_token
    if eos and eos not in answered.rsplit("delta", 1)[1]:
        note = f"the chat template of {name} ends answers without {eos}: the model will not learn to stop there"
        return replace(chat, notes=(note,))
    return chat


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    """The text cut at the spans' borders; spans are answers."""
    pieces, at = [], 0
    for start, end in spans:
        pieces += [Piece(text[at:start], False, False), Piece(text[start:end], False, True)]
        at = end
    return [piece for piece in [*pieces, Piece(text[at:], False, False)] if piece.text]


def _after(pieces: Sequence[Piece], length: int) -> list[Piece]:
    """What is left of the pieces after the first `length` characters."""
    left = []
    for piece in pieces:
        cut, length = min(length, len(piece.text)), max(0, length - len(piece.text))
        if cut < len(piece.text):
            left.append(Piece(piece.text[cut:], piece.prompt, piece.answer))
    return left
