"""Tables for people."""

from __future__ import annotations

import statistics
from typing import Any

# What must be reached: (stage, size, dtype) -> ratios of effective tokens per second, and of peak memory.
MUST: dict[tuple[str, str, str], dict[str, float]] = {
    ("dpo", "S", "fp32"): {"steady": 6.0, "first_epoch": 4.5, "peak_memory": 0.45},
    ("dpo", "M", "fp32"): {"steady": 6.0, "first_epoch": 4.5, "peak_memory": 0.25},
    ("dpo", "S", "bf16"): {"steady": 9.0},
    ("dpo", "M", "bf16"): {"steady": 9.0},
    ("reward", "S", "fp32"): {"steady": 3.2},
    ("reward", "S", "bf16"): {"steady": 3.0},
    ("sft", "S", "fp32"): {"steady": 3.0},
    ("sft", "M", "fp32"): {"steady": 4.0},
}
LOSS_DIFFERENCE = 1e-5
LENGTHS_RATIO = 1.6

SKIPPED = {
    "all": ["padding: every row is filled up to the longest of its batch and computed there"],
    "sft": [
        "metrics of every step over all scored tokens: entropy, accuracy of the most likely token",
        "the head at prompt tokens, which no loss asks for",
    ],
    "reward": ["the prompt a second time: both answers of a pair have it in common"],
    "dpo": [
        "metrics of every step over all scored tokens: entropy, accuracy of the most likely token, mean logits",
        "the head at prompt tokens, and at completion tokens once more in the backward pass",
        "the prompt a second time: both answers of a pair have it in common",
        "a forward pass of the reference in every step; ours is made once and charged under first_epoch",
    ],
}
KEPT = "What only ours does: every session and every step goes to the ledger, inside the time shown."


def print_comparison(document: dict[str, Any]) -> None:
    """Speed, memory, parity, noise, and what the peer does that we skip."""
    plan = document["plan"]
    stage, size, dtype = plan["stage"], plan["size"], plan["dtype"]
    print(
        f"{stage} {size} {dtype} on {document['hardware'].get('gpu') or document['hardware']['cpu']}, "
        f"{plan['threads']} threads; {plan['batch']} rows a step, {document['tokens_per_step']:,.0f} tokens "
        f"({document['scored_per_step']:,.0f} scored, {document['padding_pct']:.0f} % padding when padded); "
        f"{plan['repeats']} runs a side of {plan['steps']} steps, the first {plan['warm_up']} not counted\n"
    )
    print(
        f"{'':16}  {'tok/s':>9}  {'runs':>24}  {'step s':>7}  {'first epoch':>11}  {'peak GB':>7}  {'others CPU':>10}"
    )
    for name, side in document["sides"].items():
        runs = " ".join(f"{rate:,.0f}" for rate in side["runs"])
        first = side["tokens_per_second_first_epoch"]
        others = [value for value in side["other_processes_cpus"] if value is not None]
        print(
            f"{name:16}  {side['tokens_per_second']:>9,.0f}  {runs:>24}  {side['step_seconds']:>7.3f}  "
            f"{'' if first is None else f'{first:,.0f}':>11}  {side['peak_bytes'] / 1e9:>7.2f}  "
            f"{'' if not others else f'{statistics.mean(others):.2f}':>6}"
        )
    print()
    must = MUST.get((stage, size, dtype), {}) if plan["device"] == "cpu" else {}
    for name, value in document["ratio"].items():
        if value is not None:
            print(_held(f"ratio.{name}", f"{value:.2f}", value, must.get(name), at_most=name == "peak_memory"))
    difference = document["loss_difference"]
    limit = LOSS_DIFFERENCE if dtype == "fp32" else None
    print(_held("loss_difference", f"{difference:.1e}", difference, limit, at_most=True))
    for name, curve in document["losses"].items():
        print(f"  loss {name:5} " + " ".join(f"{value:.6f}" for value in curve))
    if not document["noise"]["quiet"]:
        print(f"NOISY: other processes used up to {document['noise']['other_processes_cpus_max']} CPU meanwhile")
    print("\nWhat TRL does at these steps that ours does not:")
    for line in [*SKIPPED["all"], *SKIPPED[stage]]:
        print(f"  - {line}")
    print(KEPT)


def _held(name: str, shown: str, value: float, must: float | None, *, at_most: bool) -> str:
    if must is None:
        return f"{name:34} {shown:>9}"
    holds = value <= must if at_most else value >= must
    return f"{name:34} {shown:>9}  must be {'<=' if at_most else '>='} {must:g}: {'pass' if holds else 'FAIL'}"


def print_lengths(document: dict[str, Any]) -> None:
    """Step time by length."""
    plan = document["plan"]
    print(f"step time against length, {plan['size']} {plan['dtype']}, {plan['threads']} threads\n")
    for stage, found in document["stages"].items():
        print(f"{stage:8}{'length':>8}  {'tokens':>8}  {'step s':>8}  {'peak GB':>8}")
        for length, seconds in found["step_seconds"].items():
            tokens, peak = found["tokens_per_step"][length], found["peak_bytes"][length] / 1e9
            print(f"{'':8}{length:>8}  {tokens:>8,}  {seconds:>8.3f}  {peak:>8.2f}")
        ratio = found["ratio"]["slowest_to_fastest"]
        print(_held(f"{stage}: slowest to fastest", f"{ratio:.2f}", ratio, LENGTHS_RATIO, at_most=True) + "\n")
