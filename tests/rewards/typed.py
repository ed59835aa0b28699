"""Commands as they are typed, and what they answer."""

import json
from typing import Any

import pytest

from rewards.cli import main


def document(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> Any:
    """What a command prints on stdout, as one JSON document; anything that JSON does not know fails."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code

    def unknown(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(capsys.readouterr().out, parse_constant=unknown)


def printed(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> str:
    """What a command prints for people on stdout."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line with which a command refuses its arguments."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    return said.err
