"""Formats that need translation: HH transcripts, ShareGPT, scored responses, prompts that both sides begin with."""

from __future__ import annotations

import math
import re
from typing import Any

from rlhf.data.records import Message, Text

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def looks_like_hh(text: object) -> bool:
    """Whether a string is a transcript in the form of the HH data."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def hh_messages(transcript: str) -> tuple[list[Message], int]:
    """Messages of a transcript, and how many turns were joined to the one before because both had one speaker.

    Raises: ValueError where text precedes the first speaker or there is none.
    """
    marks = list(_TURN.finditer(transcript))
    if not marks or transcript[: marks[0].start()].strip():
        raise ValueError("does not begin with `Human:` or `Assistant:`")
    messages: list[Message] = []
    joined = 0
    ends = [mark.start() for mark in marks[1:]] + [len(transcript)]
    for mark, end in zip(marks, ends, strict=True):
        role, content = _HH_ROLES[mark.group(1)], transcript[mark.end() : end].strip()
        if messages and messages[-1]["role"] == role:
            # Chat templates refuse two answers in a row; an empty turn joins without leaving a trace.
            messages[-1]["content"] = "\n\n".join(part for part in (messages[-1]["content"], content) if part)
            joined += 1
        else:
            messages.append({"role": role, "content": content})
    return messages, joined


def sharegpt_messages(turns: object) -> list[Message]:
    """Messages of ShareGPT turns `{from, value}`.

    Raises: ValueError naming the turn that cannot be read.
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError("must be a list of turns, each with `from` and `value`")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or "from" not in turn or not isinstance(turn.get("value"), str):
            raise ValueError(f"turn {number} must have `from` and a text `value`")
        role = _SHAREGPT_ROLES.get(str(turn["from"]).lower())
        if role is None:
            raise ValueError(f"turn {number} is from `{turn['from']}`; known are {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def split_shared(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt, chosen, rejected where both sides begin with the prompt.

    Departures from TRL's extract_prompt: words are not cut in two, every side keeps its last message even where one
    is the other's beginning (identical sides are counted later, not broken here), and completions begin with an answer.

    Raises: ValueError where the sides share no prompt.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("one side is text, the other a list of messages")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_strings(chosen, rejected)
    return _split_messages(chosen, rejected)  # type: ignore[arg-type]


def _split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    shortest = min(len(chosen), len(rejected))
    shared = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    while shared > 0 and not (chosen[shared - 1 : shared].isspace() or _word_ends(chosen, rejected, shared)):
        shared -= 1
    while shared > 0 and chosen[shared - 1] == " ":
        shared -= 1  # tokenizers attach a space to the word after it
    if shared == 0:
        raise ValueError("begin differently: there is no shared prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _word_ends(chosen: str, rejected: str, at: int) -> bool:
    """Whether cutting both strings at `at` leaves no word in two pieces."""
    return not (chosen[at - 1].isalnum() and (chosen[at : at + 1].isalnum() or rejected[at : at + 1].isalnum()))


def _split_messages(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    last = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(last) if chosen[i] != rejected[i]), last)
    while shared > 0 and not (chosen[shared]["role"] == rejected[shared]["role"] == "assistant"):
        shared -= 1
    if shared <= 0:
        raise ValueError("share no prompt before an answer of the assistant")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def best_and_worst(responses: list[Text], scores: list[float]) -> tuple[Text, Text] | None:
    """The responses with the highest and the lowest score (the first of equals), or None where all scores are equal.

    Raises: ValueError for lists of different length, fewer than two responses, a score that is no finite number.
    """
    if len(responses) != len(scores):
        raise ValueError(f"has {len(responses)} responses and {len(scores)} scores")
    if len(responses) < 2:
        raise ValueError("has fewer than two responses: a pair needs two")
    if not all(math.isfinite(score) for score in scores):
        raise ValueError("has a score that is not a finite number")
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return None if scores[best] == scores[worst] else (responses[best], responses[worst])


def drop_nulls(messages: list[Any]) -> list[Any]:
    """Messages without their null keys: parquet gives every message every key that any message has."""
    return [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in messages]
