"""What may be said of a recalibration, in words with their numbers."""

from collections.abc import Mapping
from typing import Any

from rewards.analysis.recalibration_spill import MOST_SPILL, RECORDED, SESSIONS
from rewards.counted import counted

LEVEL = 0.05

Data = Mapping[str, Any]


def outcome_verdict(found: Data, tests: int) -> str:
    """One outcome. tests: how many comparisons of the run share the adjusted p.

    found: an outcome with its adjusted p, and the record's claim about it, if any.
    """
    said = f"{found['label'][:1].upper()}{found['label'][1:]}: {_honest(found, tests)}"
    return f"{said} {_claim(found)}" if found.get("claim") else said


def supported(found: Data) -> bool:
    """Whether an excess effect stands after adjustment for all comparisons of the run."""
    adjusted = found["excess"]["p_adjusted"]
    return adjusted is not None and adjusted < LEVEL


def spill_refusal(found: Data) -> str:
    """Why there is no comparison with the other categories. found: the event's `spill`."""
    before, after = ("none" if found[side] is None else f"{found[side]:.2f}" for side in ("before", "after"))
    if found["source"] == RECORDED:
        far = "a ratio more than .05 from 1" if found["before"] is not None else "more than .05 from 1"
        said = f"the recorded spill after the event is {after}, before it {before}, {far}"
    else:
        said = (
            "what the schedule does to the pull of their advantages (spill) went from "
            f"{before} before the event to {after} after it, {_times(found)}, more than .05 from 1"
        )
    return f"refused: the change also moved the other categories, so they are no controls: {said}"


def spill_caveat(found: Data) -> str | None:
    """What must be said beside a comparison that was not refused: a spill that is not excluded, or not on record."""
    if found["source"] is None:
        return f"Whether it also moved the others (spill) is not known: {found['why']}."
    if found["source"] != SESSIONS:
        return f"Its spill on the others is not measured on their sessions: {found['why']}."
    if found["low"] is not None and 1 - MOST_SPILL <= found["low"] <= found["high"] <= 1 + MOST_SPILL:
        return None
    return (
        f"That it moved the others by more than .05 (spill) is not excluded: {found['before']:.2f} before and "
        f"{found['after']:.2f} after, {_times(found)}."
    )


def _times(found: Data) -> str:
    """The ratio of a measured spill with what it rests on."""
    interval = "no interval" if found["low"] is None else f"95 % interval {found['low']:.2f} to {found['high']:.2f}"
    before, after = found["n_groups"]["before"], found["n_groups"]["after"]
    return f"{found['ratio']:.2f} times ({interval}; {before:,} and {after:,} mixed groups)"


def event_verdict(entry: Data) -> str:
    """One recalibration: its first outcome, and what of the others its trigger watched, somebody claims, or stands."""
    outcomes = entry["outcomes"]
    if not outcomes:
        unheard = " The record claims an effect of it; that cannot be looked at." if entry["claim"] else ""
        return f"No effect can be estimated: {entry['why']}.{unheard}"
    watched = f"phrase: {(entry['trigger'] or {}).get('phrase')}"
    others = [found for found in outcomes[1:] if supported(found) or found["outcome"] == watched or found["claim"]]
    said = [found["verdict"] for found in (outcomes[0], *others)]
    more = len(outcomes) - 1 - len(others)
    if more:
        said.append(f"Of {counted(more, 'other outcome')} no effect is claimed.")
    if entry["triggered"]:
        said.append("It was triggered by a high window: no before-and-after figure is given (regression to the mean).")
    if entry["claim_judged"] is False:
        said.append("The record's claim about it names no outcome that is on record: it cannot be looked at.")
    if not entry["spill_refused"]:
        said += filter(None, [spill_caveat(entry["spill"])])
    if entry["same_window"]:
        said.append(f"In the same window: {'; '.join(entry['same_window'])}.")
    if entry.get("randomised_delay") is None:
        said.append("Only a fork with and without it, or a randomised delay, would identify its total effect.")
    else:
        said.append(f"Its delay was randomised ({entry['randomised_delay']}); one event is one draw.")
    return " ".join(said)


def _honest(found: Data, tests: int) -> str:
    honest = found["excess"]
    if honest["estimate"] is None:
        return f"no excess effect is given: {honest['why']}."
    interval = f"{honest['points_low']:+.1f} to {honest['points_high']:+.1f} points"
    sizes = f"{counted(honest['n_treated'], 'session')} of the category against {honest['n_controls']:,} of others"
    tested = f"p {honest['p']:.3f}, {honest['p_adjusted']:.3f} over {counted(tests, 'comparison')}"
    drifted = found["pretrend"]["flag"]
    if supported(found):
        said = (
            f"an excess effect of {honest['points']:+.1f} points ({interval}; {sizes}; {tested}): what the category "
            "did beyond the others, not the whole of what the event did."
        )
        if drifted:
            said += " The category drifted against them before the event, and a straight line was taken for that drift."
        return said
    power = f"this run could have found {found['mde_points']:.0f} points or more ({sizes})"
    if honest["low"] <= 0 <= honest["high"]:
        said = f"{power}; the interval, {interval}, covers 0: no effect claimed."
    else:
        said = f"{power}; the interval, {interval}, leaves out 0, adjusted it does not ({tested}): no effect claimed."
    without = found["without_trend"]
    if drifted and without["p"] is not None and without["p"] < LEVEL:
        said += (
            f" Without the trend term the estimate would be {without['points']:+.1f} points with p {without['p']:.3f}, "
            "but the category drifted against the others before the event."
        )
    return said


def _claim(found: Data) -> str:
    claim, honest = found["claim"], found["excess"]
    said = f"The record claims {claim.get('as_recorded') or format(claim['points'], '+g') + ' points'}"
    said += f" in {counted(claim['sessions'], 'session')}" if claim.get("sessions") else ""
    said += "; this run cannot support it"
    reasons = []
    if honest["estimate"] is not None:
        inside = honest["points_low"] <= claim["points"] <= honest["points_high"]
        if supported(found) and inside:
            return f"{said.partition(';')[0]}; the interval holds that, as an excess over the other categories."
        zero = " and 0" if inside and honest["low"] <= 0 <= honest["high"] else ""
        reasons.append(f"the interval holds it{zero}" if inside else "it lies outside the interval")
    rate = honest["rate_before"]
    if rate is not None and not 0 <= 100 * rate + claim["points"] <= 100:
        reasons.append(f"the rate before was {100 * rate:.1f} %, so such a change is not possible")
    least = found["mde_points_down" if claim["points"] < 0 else "mde_points_up"]
    if least is not None and abs(claim["points"]) < least:
        reasons.append(f"it is less than the {least:.0f} points that could have been found in that direction")
    needed, plain = claim.get("category_sessions_needed"), found["naive"]["mde_points"]
    if needed is not None and plain is not None and abs(claim["points"]) < plain:
        reasons.append(
            f"even a plain comparison of {found['naive']['n_before']} and "
            f"{counted(found['naive']['n_after'], 'session')} of the category finds {plain:.0f} points or more, "
            f"and {abs(claim['points']):g} need "
            f"{needed:,} a side, if sessions are independent"
        )
    return f"{said}: {'; '.join(reasons)}." if reasons else f"{said}."
