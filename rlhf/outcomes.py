"""The table of outcomes that a pipeline ends with: held-out answers before and after each stage, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.ledger import Ledger

HIDDEN = ("response_tokens", "truncated")
ACCURACIES = {"heldout_pairs": "held-out pair accuracy", "heldout_labels": "held-out label accuracy"}


def outcome_table(ledger: Ledger, runs: Sequence[str]) -> str:
    """Held-out figures in the order of the stages, with 95 % intervals; then accuracies. Empty without figures."""
    columns: list[tuple[str, dict[str, Any]]] = []
    newest: dict[str, dict[str, str]] = {suite: {} for suite in ACCURACIES}
    for run in runs:
        for event in ledger.events(run, kind="evaluation"):
            payload = event["payload"]
            name = run.rsplit("/", 1)[-1]
            if payload["suite"] == "heldout_answers" and payload["when"] != "step":
                columns.append((f"{payload['when']} {name}", payload["metrics"]))
            elif payload["suite"] in newest and "accuracy" in payload["metrics"]:
                newest[payload["suite"]][name] = f"{name}: {_accuracy(payload['metrics']['accuracy'])}"
    lines = _grid(columns) if columns else []
    for suite, found in newest.items():
        lines += ["", ACCURACIES[suite], *found.values()] if found else []
    return "\n".join(lines)


def _grid(columns: list[tuple[str, dict[str, Any]]]) -> list[str]:
    names: list[str] = []
    for _, metrics in columns:
        # The share stands for the count it was made from.
        names += [n for n in metrics if n not in names and n not in HIDDEN and f"{n}_share" not in metrics]
    head = ["held-out answers", *(title for title, _ in columns)]
    body = [[name, *(_figure(metrics.get(name)) for _, metrics in columns)] for name in names]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _figure(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:.3f} (n {figure['n']})"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] (n {figure['n']})"


def _accuracy(figure: dict[str, Any]) -> str:
    return (
        f"{_figure(figure)}; two such sets tell differences of {100 * figure['detectable_difference']:.1f} points apart"
    )
