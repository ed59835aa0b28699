"""Prompts and completions, standard or conversational, as the ledger keeps them."""

import hashlib
from typing import Any

from rewards.errors import DataError
from rewards.text import completion_text


def texts_of(arguments: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The prompts and completions of a call as text.

    Raises: DataError naming the row that is no text, or when there are not as many prompts as completions.
    """
    prompts, completions = arguments.get("prompts"), arguments.get("completions")
    if prompts is None or completions is None:
        raise DataError("a reward function was called without `prompts` and `completions`; nothing can be recorded")
    if len(prompts) != len(completions) or not len(completions):
        raise DataError(f"a reward function was called with {len(prompts)} prompts and {len(completions)} completions")
    responses = []
    for row, completion in enumerate(completions):
        try:
            responses.append(completion_text(completion))
        except TypeError as error:
            raise DataError(f"completion {row} of {len(completions)}: {error}") from error
    return [prompt_text(prompt, row) for row, prompt in enumerate(prompts)], responses


def prompt_text(prompt: Any, row: int = 0) -> str:
    """The words of a prompt: a lone user turn as its content, other messages as `role: content` lines."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt):
        raise DataError(f"prompt {row} is {type(prompt).__name__}, neither a string nor a list of messages")
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return _content(prompt[0])
    return "\n".join(f"{turn.get('role')}: {_content(turn)}" for turn in prompt)


def _content(turn: dict[str, Any]) -> str:
    # What an assistant says is read as what anybody says: text, or the text parts among others.
    return completion_text([{"role": "assistant", "content": turn.get("content")}])


def prompt_id(text: str) -> str:
    """Short digest by which sessions of the same prompt are found."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
