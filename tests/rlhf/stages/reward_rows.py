"""Rows for reward models of every kind: scored responses, rated completions, worked sums, written as JSON lines."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ["amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "ledge"]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Writes the rows; returns the keys that make a stage read them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.dataset_name={path}", "data.recipe_split=null", "data.max_rows=null"]


def responses(n: int = 24, each: int = 3) -> list[dict[str, Any]]:
    """Prompts with several responses, scored from 1 to 5 by the number of times a word is in them."""
    draw = random.Random(0)
    rows = []
    for i in range(n):
        counts = [draw.randint(0, 4) for _ in range(each)]
        texts = [" ".join([*draw.choices(WORDS[1:], k=4), *["amber"] * count]) for count in counts]
        rows.append({"prompt": f"Place {i}?", "responses": texts, "scores": [1 + count for count in counts]})
    return rows


def rated(n: int = 48) -> list[dict[str, Any]]:
    """Completions with two attributes, of which one is missing in every third row."""
    draw = random.Random(1)
    rows = []
    for i in range(n):
        text = " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))
        ratings = {"help": draw.randint(0, 4), "length": None if i % 3 == 0 else min(4, len(text.split()) // 2)}
        rows.append({"prompt": f"Say something {i}.", "completion": text, "category": ["a", "b"][i % 2], **ratings})
    return rows


def sums(n: int = 48) -> list[dict[str, Any]]:
    """Sums in steps, a third of which are wrong somewhere."""
    draw = random.Random(2)
    rows = []
    for i in range(n):
        total, steps, labels = 0, [], []
        for number in (draw.randint(1, 9) for _ in range(draw.randint(2, 4))):
            right = draw.random() > 0.3
            shown = total + number if right else total + number + draw.randint(1, 3)
            steps.append(f"{total} + {number} = {shown}")
            labels.append(right)
            total = shown
        rows.append({"prompt": f"Add up list {i}.", "completions": steps, "labels": labels})
    return rows
