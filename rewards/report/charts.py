"""What each chart of the page shows, as data for the page's own drawing code."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.analysis.constraint import AROUND
from rewards.report.cells import Markup, count, interval, join, number, table, tag

Spec = dict[str, Any]


def middle(place: Mapping[str, Any]) -> float:
    """The session in the middle of a bin."""
    return (int(place["first_session"]) + int(place["last_session"])) / 2


def where(place: Mapping[str, Any]) -> str:
    """A bin in words."""
    return (
        f"sessions {count(place['first_session'])} to {count(place['last_session'])}, "
        f"steps {count(place['first_step'])} to {count(place['last_step'])}"
    )


def series(name: str, bins: Sequence[Mapping[str, Any]], key: str, dashed: bool = False) -> dict[str, Any]:
    """A line over bins: [x, value, low, high, n, where]."""
    points = []
    for found in bins:
        part = found.get(key) or {}
        points.append(
            [middle(found), part.get("value"), part.get("low"), part.get("high"), part.get("n"), where(found)]
        )
    return {"name": name, "points": points, "dashed": dashed}


def line(x: str, y: str, lines: Sequence[dict[str, Any]], marks: Sequence[Mapping[str, Any]] = (), **more: Any) -> Spec:
    """Lines with bands over sessions or steps, and marks of events."""
    return {"kind": "line", "x": x, "y": y, "series": list(lines), "marks": list(marks), **more}


def specs(data: Mapping[str, Any]) -> dict[str, Spec]:
    """Every chart that the data can fill, by name."""
    found: dict[str, Spec] = {}
    curve, marks = data["convergence"]["bins"], _marks(data["convergence"]["marks"])
    if not data["convergence"]["why"] and len(curve) > 1:
        lines = [series("baseline", curve, "baseline"), series("adjusted", curve, "adjusted", dashed=True)]
        lines[1]["points"] = [[*point[:2], None, None, *point[4:]] for point in lines[1]["points"]]
        found["reward"] = line("session", "mean reward", lines, marks)
        spread = [[middle(row), row["baseline_sd"], None, None, row["baseline"]["n"], where(row)] for row in curve]
        named = {"name": "standard deviation of the baseline", "points": spread, "dashed": False}
        found["spread"] = line("session", "standard deviation", [named], marks, low=True, zero=True)
    unsolicited = data["unsolicited_curve"]
    if len(unsolicited) > 1 and any("unsolicited" in row or "unsolicited_gold" in row for row in unsolicited):
        lines = [
            series(name, unsolicited, key, dashed)
            for name, key, dashed in (
                ("penalised families", "unsolicited", False),
                ("families never penalised", "unsolicited_gold", True),
            )
            if key in unsolicited[0]
        ]
        found["unsolicited"] = line("session", "share of answers", lines, marks, share=True, zero=True)
    for place, phrase in enumerate(data["phrases"]):
        if len(phrase["bins"]) > 1:
            lines = [series(f"“{phrase['phrase']}” in {phrase['category']}", phrase["bins"], "share")]
            found[f"phrase-{place}"] = line("session", "share of sessions", lines, marks, share=True, zero=True)
    found |= _divergence(data["kl"]["bins"], marks) | _leverage(data)
    for spec in found.values():
        if spec["x"] == "session":  # one scale for all, so that marks stand under each other
            spec["range"] = [1, data["sessions"]]
    return found


def figure(name: str, spec: Spec | None, caption: str) -> Markup:
    """A chart, its caption, and its numbers as a table; nothing where the chart is not drawn."""
    if spec is None:
        return Markup("")
    stage = tag("div", "", class_="stage", data_chart=name)
    unit = "share" if spec.get("share") else "measure"
    rows: list[list[object]] = []
    for found in spec["series"]:
        for _, value, low, high, n, place in found["points"]:
            between = "" if low is None else interval(low, high, unit)
            rows.append([place, found["name"], number(value, unit), between, count(n)])
    numbers = table(f"Numbers of: {caption}", ["where", "line", spec["y"], "95 % interval", "n"], rows)
    behind = tag("details", join([tag("summary", "Numbers"), numbers]))
    return tag("figure", join([tag("figcaption", caption), stage, behind]))


def _marks(marks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    letters = {"recalibration": "R", "mixture": "M", "phase": "P"}
    seen: dict[str, int] = {}
    found = []
    for mark in marks:
        if mark["session"] is None:
            continue
        letter = letters[mark["kind"]]
        seen[letter] = seen.get(letter, 0) + 1
        what = {"R": "Recalibration", "M": "Mixture", "P": "Phase"}[letter]
        text = (
            f"{what} after session {count(mark['session'])} (step {count(mark['step'])}). {'; '.join(mark['labels'])}"
        )
        found.append({"x": mark["session"] + 0.5, "tag": f"{letter}{seen[letter]}", "kind": mark["kind"], "text": text})
    return found


def _divergence(bins: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]]) -> dict[str, Spec]:
    known = [row for row in bins if row["kl_nats"]["value"] is not None and row["baseline"]["value"] is not None]
    if len(known) < 2:
        return {}
    path = [
        [row["kl_nats"]["value"], row["baseline"]["value"], None, None, row["baseline"]["n"], where(row)]
        for row in known
    ]
    return {
        "kl": line("session", "KL, nats a session", [series("KL to the reference", bins, "kl_nats")], marks, low=True),
        "kl-reward": {
            "kind": "path",
            "x": "KL to the reference, nats a session",
            "y": "mean baseline reward",
            "series": [{"name": "bins in the order of training", "points": path, "dashed": False}],
            "marks": [],
        },
    }


def _leverage(data: Mapping[str, Any]) -> dict[str, Spec]:
    found = {}
    for category in dict.fromkeys(row["category"] for row in data["recalibrations"]):
        points = data["leverage"]["by_category"].get(category, [])
        if sum(point.get("leverage") is not None for point in points) < 2:
            continue
        lines = []
        for name in ("leverage", "spill"):
            values = [
                [
                    point["step"],
                    point.get(name),
                    point.get("low") if name == "leverage" else None,
                    point.get("high") if name == "leverage" else None,
                    point.get("n_groups"),
                    f"step {count(point['step'])}, n in groups",
                ]
                for point in points
                if point["step"] is not None
            ]
            label = f"leverage in {category}" if name == "leverage" else "spill on the other categories"
            lines.append({"name": label, "points": values, "dashed": name == "spill"})
        marks = [
            {
                "x": row["step"] + 0.5,
                "tag": f"R{place}",
                "kind": "recalibration",
                "text": f"Recalibration after step {count(row['step'])}",
            }
            for place, row in enumerate(data["recalibrations"], start=1)
            if row["step"] is not None and row["category"] == category
        ]
        known = [point["step"] for point in points if point["step"] is not None]
        # From shortly before the first change, so that the change itself is in the picture.
        start = min([*known, *(int(mark["x"]) - AROUND for mark in marks)])
        found[f"leverage-{category}"] = line("step", "leverage", lines, marks, range=[max(1, start), max(known)])
    return found
