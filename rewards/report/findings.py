"""The page's first sections: what needs attention, and what the record supports and what not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.analysis.recalibration_spill import SESSIONS
from rewards.analysis.recalibration_verdicts import LEVEL
from rewards.report.cells import Markup, count, counted, join, nothing, number, paragraph, section, table, tag

Data = Mapping[str, Any]
TITLES = {"critical": "Critical", "warning": "Warning", "note": "Note"}


def alarms(data: Data) -> Markup:
    """Alerts of the analysis, the worst first."""
    found = data["analysis"]["alerts"]
    if not found:
        return section("alarms", "What needs attention", nothing("no section of the analysis raises an alarm"))
    rows = [
        tag(
            "li",
            join([tag("strong", f"{TITLES[alert['severity']]}. ", class_=alert["severity"]), alert["text"]]),
        )
        for alert in found
    ]
    return section("alarms", "What needs attention", tag("ul", join(rows), class_="statements"))


def claims(data: Data) -> Markup:
    """Question by question: what can be said, or why nothing can."""
    rows = [[question, _answer(said, why)] for question, said, why in _claims(data["analysis"])]
    return section(
        "claims",
        "What can be claimed, and what cannot",
        table("By question", ["question", "what the record supports"], rows, numeric=False),
        paragraph(
            "An effect is an excess over the other categories, never a cause; where a figure could not have been found "
            "at this size, the smallest one that could is given instead."
        ),
    )


def _answer(said: object, why: object) -> Markup:
    return join([said]) if said else tag("span", f"Nothing: {str(why or 'not on record').rstrip('.')}.", class_="none")


def _claims(found: Data) -> Iterator[tuple[str, object, object]]:
    plateau, segments = found["plateau"], found["segmentation"]
    yield "Did the reward converge?", plateau.get("verdict"), plateau.get("why")
    yield "Were there phases?", segments.get("verdict"), segments.get("why")
    for place, change in enumerate(found["recalibrations"], start=1):
        yield (
            f"What did R{place} do to compliance?",
            _changed(change),
            change.get("why") or (change.get("excess") or {}).get("why"),
        )
    dose = found["dose_response"]
    if found["recalibrations"]:
        yield "Do larger changes do more?", dose.get("verdict"), dose.get("why")
    forks = found["forks"]
    for fork in forks.get("forks") or []:
        what = f"Fork at session {count(fork['event'].get('session'))}: {fork['meaning']}"
        yield what, f"{fork['verdict']}.", None
    if found["recalibrations"] and not forks.get("forks"):
        yield "What is the total effect of a recalibration?", None, forks.get("why")
    over = found["overoptimization"]
    gold, length = over.get("proxy_gold") or {}, over.get("length") or {}
    yield "Did the reward rise while gold fell?", gold.get("verdict"), gold.get("why") or over.get("why")
    yield "Does the reward pay for length?", length.get("verdict"), length.get("why") or over.get("why")
    collapse = found["behaviour"].get("collapse") or {}
    yield "Did diversity collapse?", collapse.get("verdict"), found["behaviour"].get("why")
    yield "Was a transition too fast?", *_transition(found["transitions"])


def _changed(change: Data) -> Markup | None:
    excess = change.get("excess") or {}
    if excess.get("points") is None or excess.get("points_low") is None:
        return None
    adjusted = excess.get("p_adjusted")
    covers = excess["points_low"] <= 0 <= excess["points_high"]
    found = _points(excess["points"], (excess["points_low"], excess["points_high"]), f"n {count(excess['n_treated'])}")
    said = "An excess effect. "
    if adjusted is None or adjusted >= LEVEL:
        reason = "covers 0" if covers else f"leaves out 0, adjusted it does not (p {number(adjusted)})"
        said = f"No effect is claimed: the interval {reason}. "
    least = "" if change.get("mde_points") is None else f" Smallest detectable: {change['mde_points']:.0f} points."
    return join([said, found, least])


def _transition(found: Sequence[Data]) -> tuple[object, object]:
    told = [row["verdict"] for row in found if row.get("alarm")]
    if told:
        return " ".join(told), None
    looked = [row["outcome"] for row in found if row.get("fraction") is not None]
    if looked:
        return f"No alarm for {', '.join(looked)}.", None
    return None, "; ".join(sorted({row["why"] for row in found if row.get("why")})) or None


def effects(found: Sequence[Data]) -> Markup:
    """The plain before-and-after figure beside the one that holds up, for every change and outcome."""
    rows: list[Sequence[object]] = []
    for place, change in enumerate(found, start=1):
        for outcome in change.get("outcomes") or []:
            rows.append(
                [f"R{place} {change['category']}: {outcome.get('label') or outcome['outcome']}", *_effect(outcome)]
            )
    if not rows:
        return Markup("")
    head = ["", "plain difference", "excess effect", "adjusted p", "smallest detectable", "trend before"]
    return table("Effects of the recalibrations, percentage points", head, rows, numeric=False)


def spills(found: Sequence[Data]) -> Markup:
    """Whether each change also moved the categories that it is compared with."""
    if all(change["spill"]["source"] is None for change in found):
        return Markup("")
    rows = [[f"R{place} {change['category']}", *_spill(change["spill"])] for place, change in enumerate(found, start=1)]
    head = ["", "before", "after", "after / before", "read from"]
    return table("Spill on the categories that each change is compared with", head, rows, numeric=False)


def _spill(found: Data) -> list[object]:
    if found["ratio"] is None:
        return ["–", "–", _refused(found["why"]), ""]  # noqa: RUF001
    notes = [] if found["low"] is None else [f"{found['low']:.2f} to {found['high']:.2f}"]
    if found["n_groups"] is not None:
        notes.append(f"n {count(found['n_groups']['before'])} and {count(found['n_groups']['after'])} mixed groups")
    ratio = join([tag("span", f"{found['ratio']:.2f}", class_="value"), tag("span", ", ".join(notes), class_="ci")])
    source = "their sessions" if found["source"] == SESSIONS else f"the steps' record, since {found['why']}"
    return [number(found["before"]), number(found["after"]), ratio, source]


def _effect(outcome: Data) -> list[object]:
    naive, excess, before = outcome["naive"], outcome["excess"], outcome.get("pretrend") or {}
    return [
        _refused(naive.get("refused") or naive.get("why"))
        if naive.get("difference") is None
        else _points(
            100 * naive["difference"],
            None if naive.get("low") is None else (100 * naive["low"], 100 * naive["high"]),
            f"n {count(naive['n_before'])} and {count(naive['n_after'])}; misleads, see below",
        ),
        _refused(excess.get("why") or outcome.get("why"))
        if excess.get("points") is None
        else _points(
            excess["points"],
            None if excess.get("points_low") is None else (excess["points_low"], excess["points_high"]),
            f"n {count(excess['n_treated'])} and {count(excess['n_controls'])}",
        ),
        number(excess.get("p_adjusted")),
        "–" if outcome.get("mde_points") is None else f"{outcome['mde_points']:.1f} points",  # noqa: RUF001
        "differs: the estimate leans on a straight line"
        if before.get("flag")
        else (_refused(before["why"]) if before.get("why") else "no difference seen"),
    ]


def _refused(why: object) -> Markup:
    return tag("span", why or "not given", class_="none")


def _points(value: float, limits: tuple[float, float] | None, note: str) -> Markup:
    between = "" if limits is None else f"{limits[0]:+.1f} to {limits[1]:+.1f}, "
    return join([tag("span", f"{value:+.1f} points", class_="value"), tag("span", f"{between}{note}", class_="ci")])


def forked(found: Data) -> Markup:
    """Every outcome of every fork: means over paired seeds, the first one named beforehand."""
    parts = []
    for fork in found.get("forks") or []:
        treated, control = fork["arms"][:2]
        rows = [
            [
                f"{row['outcome']} in {row['of']}, {row['window']}" + (" (named beforehand)" if row["primary"] else ""),
                _difference(row),
                number(row.get("p_adjusted")),
                _scaled(row, row["mde"]).lstrip("+"),
            ]
            for row in sorted(fork["outcomes"], key=lambda row: not row["primary"])
        ]
        caption = (
            f"Fork at session {count(fork['event'].get('session'))}, {treated} minus {control}: {fork['meaning']}, "
            f"{counted(fork['n_pairs'], 'pair')} of seeds, {count(fork['steps_after'])} steps after the event"
        )
        parts.append(table(caption, ["", "difference", "adjusted p", "smallest detectable"], rows, numeric=False))
    return join(parts)


def _difference(row: Data) -> Markup:
    if row["estimate"] is None:
        return _refused(row["why"])
    note = f"{_scaled(row, row['low'])} to {_scaled(row, row['high'])}, " if row["low"] is not None else ""
    value = tag("span", _scaled(row, row["estimate"]), class_="value")
    return join([value, tag("span", f"{note}n {counted(row['n_pairs'], 'pair')}", class_="ci")])


def _scaled(row: Data, value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{100 * value:+.2f} points" if row["unit"] == "points" else f"{value:+.4f}"
