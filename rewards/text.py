"""What a reward function reads: the text of a completion, and whether a sentence occurs in it."""

from typing import Any


def completion_text(completion: Any) -> str:
    """The response as one string: a standard completion itself, or the assistant's turns of a conversational one.

    Raises: TypeError for anything else.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and all(isinstance(turn, dict) for turn in completion):
        return "\n".join(_content(turn.get("content")) for turn in completion if turn.get("role") == "assistant")
    raise TypeError(f"a completion is a string or a list of messages, not {type(completion).__name__}")


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase occurs literally in the text, whatever the letter case and the white space."""
    return fold(phrase) in fold(text)


def fold(text: str) -> str:
    """The text without differences of letter case and white space."""
    return " ".join(text.casefold().split())


def _content(content: Any) -> str:
    if content is None:  # a turn that only calls tools
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # multi-part content: only its text parts can be read
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    raise TypeError(f"the content of a message is a string or a list of parts, not {type(content).__name__}")
