"""A comparison in words: what got worse, or the smallest regression that would have been found."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.analysis.paired import ALPHA
from rewards.counted import counted


def verdict(found: Mapping[str, Any]) -> str:
    """What the comparison comes to; without a regression also the smallest one that it would have found."""
    if found["worse"]:
        return f"Regression in {_listed(found['worse'])}. " + " ".join(_changes(found))
    told = f"No regression found in `{found['metric']}` over {counted(found['prompts'], 'prompt')}. {_smallest(found)}"
    if found["difference"]["p"] is not None and found["difference"]["p"] < ALPHA and _improved(found):
        told = f"Better: {_change('the mean', found['difference'])}. {told}"
    return told


def _improved(found: Mapping[str, Any]) -> bool:
    limit = found["difference"]["high" if found["better"] == "less" else "low"]
    return limit is not None and (limit < 0 if found["better"] == "less" else limit > 0)


def _changes(found: Mapping[str, Any]) -> list[str]:
    named = {"mean": ("The mean", found["difference"]), "worst 5 %": ("The worst 5 %", found["tails"]["cvar_5"])}
    named |= {f"slice {row['category']}": (f"Slice {row['category']}", row) for row in found["slices"]}
    return [f"{_change(*named[name])}." for name in found["worse"]]


def _change(what: str, row: Mapping[str, Any]) -> str:
    interval = "" if row["low"] is None else f" (95 % interval {row['low']:+.3g} to {row['high']:+.3g})"
    p = row.get("p_adjusted") if row.get("p_adjusted") is not None else row["p"]
    adjusted = "adjusted p" if row.get("p_adjusted") is not None else "p"
    return (
        f"{what} changed by {row['estimate']:+.3g}{interval}, {adjusted} = {p:.2g}, n = {counted(row['n'], 'prompt')}"
    )


def _smallest(found: Mapping[str, Any]) -> str:
    """The smallest change for the worse that is found in 4 of 5 cases."""
    way = "rise" if found["better"] == "less" else "drop"
    parts = [_detectable("the mean", found["difference"])]
    slices = [row for row in found["slices"] if row["mde"] is not None]
    if slices:
        ends = sorted(row["mde"] for row in slices)
        parts.append(f"{ends[0]:.3g} to {ends[-1]:.3g} in a slice (before the adjustment for {len(slices)} of them)")
    untested = len(found["slices"]) - len(slices)
    if untested:
        parts.append(f"nothing in {untested} of {len(found['slices'])} slices, which are too small or all alike")
    parts.append(_detectable("the worst 5 %", found["tails"]["cvar_5"]))
    return f"The smallest {way} that this comparison finds in 4 of 5 cases: {'; '.join(parts)}."


def _detectable(what: str, row: Mapping[str, Any]) -> str:
    if row["mde"] is not None:
        return f"{row['mde']:.3g} of {what}"
    return f"unknown of {what} ({row['why'] or 'it changed by the same amount in most resamples'})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"the {name}" if not name.startswith("slice") else name for name in names)
