"""The sections of the page, each from its part of the report's data."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.analysis.behaviour_texts import CHARACTERS
from rewards.report.cells import (
    Markup,
    count,
    counted,
    end,
    escape,
    estimate,
    join,
    nothing,
    number,
    paragraph,
    section,
    span,
    table,
    tag,
)
from rewards.report.charts import Spec, figure

Data = Mapping[str, Any]


def overview(data: Data) -> Markup:
    """First thousand sessions against the last."""
    window = data["summary"]["window"]
    if not window:
        return section("overview", "First and last sessions", nothing("fewer than two sessions"))
    behaviour, kl, ends = data["behaviour"], data["reference"]["kl_nats"], data["convergence"]["ends"]
    measures = [
        (f"Mean baseline {data['convergence']['unit']}", ends["baseline"], "measure"),
        ("Training pairs ranked right (margin above 0)", ends["ranked_right"], "share"),
        ("Answers with unsolicited content, penalised families", behaviour["unsolicited"], "share"),
        ("Answers with unsolicited content, never penalised", behaviour["unsolicited"]["gold"], "share"),
        ("Distinct answers", behaviour["diversity"], "share"),
        ("Two answers to one prompt differ", behaviour["within_prompt"], "share"),
        ("Distinct words and marks", behaviour["vocabulary"], "types"),
        ("Distinct word pairs", behaviour["distinct_2"], "share"),
    ]
    rows: list[Sequence[object]] = []
    absent: dict[str, list[str]] = {}
    for name, pair, unit in measures:
        if pair["first"] is None and pair["last"] is None:
            absent.setdefault(pair["why"], []).append(name[0].lower() + name[1:])
        else:
            picture = span(pair) if unit == "share" else ""
            rows.append([_measured(name, pair), end(pair, "first", unit), end(pair, "last", unit), picture])
    if kl["first"]["value"] is None and kl["last"]["value"] is None:
        absent.setdefault(data["kl"]["why"] or kl["first"]["why"], []).append("KL to the reference")
    else:
        rows.append(["KL to the reference, nats a session", estimate(kl["first"]), estimate(kl["last"]), ""])
    width, parts = count(window), []
    if rows:
        head = ["", f"first {width}", f"last {width}", "0 to 100 %: first hollow, last filled"]
        parts.append(table(f"First and last {width} sessions", head, rows))
    # That a sampled run has no pairs, or a run of pairs no answers, is no gap in the record.
    parts += [
        nothing(f"{', '.join(names)}: {why}") for why, names in absent.items() if why != "its sessions are not pairs"
    ]
    note = "Intervals are 95 %; n counts sessions."
    if behaviour["diversity"]["first"] is not None:
        note = (
            f"Task part: {behaviour['task_part']}. Richness is what a sample of fixed size is expected to hold, so "
            "that longer or more answers do not look richer; both ends have as many answers of each category, so that "
            f"a changed mixture does not move it; of texts {count(CHARACTERS)} characters are read from either end. "
            f"{note} For two answers to one prompt it counts prompts."
        )
    return section("overview", "First and last sessions", *parts, paragraph(note))


def _measured(name: str, pair: Data) -> Markup:
    drawn = f"{count(pair['sample'])} {pair['drawn']}" if pair.get("sample") else None
    return join([name, tag("span", f"in {drawn}", class_="ci") if drawn else ""])


def stages(data: Data) -> Markup:
    """Held-out outcomes before and after each stage."""
    columns = [
        (stage["stage"], found) for stage in data["stages"] for found in stage["evaluations"] if found.get("metrics")
    ]
    title = "Outcomes by stage, on held-out prompts"
    if not columns:
        return section("stages", title, nothing("no evaluation before or after a stage"))
    parts: list[object] = []
    for suite in dict.fromkeys(found["suite"] for _, found in columns):
        taken = [(stage, found) for stage, found in columns if found["suite"] == suite]
        head, mine = ["", *(f"{found['when']} {stage}" for stage, found in taken)], [found for _, found in taken]
        names = list(dict.fromkeys(name for found in mine for name in found.get("metrics") or {}))
        rows: list[Sequence[object]] = [
            [name, *(_metric((found.get("metrics") or {}).get(name)) for found in mine)] for name in names
        ]
        parts.append(table(f"Suite {suite}", head, rows))
        parts.append(_stage_slices(mine, head))
    return section("stages", title, *parts)


def _stage_slices(evaluations: Sequence[Data], head: Sequence[object]) -> Markup:
    """The same by category, folded away: a row for every category and figure."""
    rows: list[Sequence[object]] = []
    for name in dict.fromkeys(name for found in evaluations for name in found.get("by_category") or {}):
        inside = [(found.get("by_category") or {}).get(name) or {} for found in evaluations]
        for metric in dict.fromkeys(key for found in inside for key in found):
            rows.append([f"{name}: {metric}", *(_metric(found.get(metric)) for found in inside)])
    if not rows:
        return Markup("")
    return tag("details", join([tag("summary", "By category"), table("By category", head, rows)]))


def _metric(found: Data | None) -> Markup:
    if not found:
        return escape(None)
    return estimate(found)


def convergence(data: Data, specs: Mapping[str, Spec]) -> Markup:
    """Reward over the run, its spread, and what its change is made of."""
    found, change = data["convergence"], data["convergence"]["change"]
    if found["why"]:
        return section("convergence", "Convergence", nothing(found["why"]))
    parts: list[object] = [
        figure(
            "reward", specs.get("reward"), f"Mean {found['unit']} by bin of whole steps, baseline with 95 % interval"
        ),
        figure("spread", specs.get("spread"), "Spread of the baseline inside each bin"),
    ]
    if "reward" not in specs:
        parts.append(nothing("a curve needs two bins of at least 32 sessions each"))
        parts.append(paragraph("Mean baseline of the run's one bin: ", estimate(found["bins"][0]["baseline"])))
    if change.get("why"):
        parts.append(nothing(change["why"]))
    else:
        rows: list[Sequence[object]] = [
            ["Change of the adjusted mean", estimate(change["adjusted"])],
            ["made by the policy and its prompts: baseline", estimate(change["baseline"])],
            [_under("inside the categories: policy"), number(change["policy"])],
            [_under("by a changed mixture of categories"), number(change["mixture"])],
            ["made by the schedule: adjusted minus baseline", estimate(change["schedule"])],
        ]
        caption = f"From the first bin (n {count(change['first_n'])}) to the last (n {count(change['last_n'])})"
        parts.append(table(caption, ["", "difference of means"], rows))
    return section("convergence", "Convergence", *parts)


def _under(text: str) -> Markup:
    return tag("div", text, class_="sub")


def behaviour(data: Data, specs: Mapping[str, Spec]) -> Markup:
    """Unsolicited content over the run, and richness by category."""
    found = data["behaviour"]
    parts: list[object] = []
    if "unsolicited" in specs:
        parts.append(figure("unsolicited", specs["unsolicited"], "Answers with unsolicited content, 95 % interval"))
    rows: list[Sequence[object]] = []
    names = (("distinct answers", "diversity", "share"), ("two answers differ", "within_prompt", "share"))
    measures = (*names, ("distinct words", "vocabulary", "types"))
    for category, found_here in found["by_category"].items():
        cells = [end(found_here[name], side, unit) for _, name, unit in measures for side in ("first", "last")]
        drawn = [found_here[name]["sample"] for name in ("diversity", "vocabulary")]
        note = tag("span", f"{counted(drawn[0], 'answer')}, {counted(drawn[1], 'word')} drawn", class_="ci")
        rows.append([join([category, note]), *cells])
    if rows:
        head = ["category", *(f"{title}, {side}" for title, _, _ in measures for side in ("first", "last"))]
        parts.append(table("Richness by category, first and last sessions", head, rows))
    if not parts:
        looked = (found["unsolicited"], found["unsolicited"]["gold"], found["vocabulary"])
        reasons = dict.fromkeys(row["why"] for row in looked)
        parts.append(nothing("; ".join(why for why in reasons if why) or "no category is in both ends of the run"))
    return section("behaviour", "Behaviour", *parts)


def categories(data: Data) -> Markup:
    """Reward, compliance and classification by category."""
    rows: list[Sequence[object]] = []
    labelled: list[Sequence[object]] = []
    for row in data["categories"]:
        if "first" not in row:
            continue
        name, ends = row["category"] or "no category", (row["first"], row["last"])
        rewards = [estimate(found["baseline"]) for found in ends]
        rows.append([name, *rewards, *(estimate(found["compliant"], "share") for found in ends)])
        labels = [{c["classification"]: c for c in found["classifications"]} for found in ends]
        for label in sorted(set(labels[0]) | set(labels[1])):
            labelled.append([f"{name}: {label}", *_classified([found.get(label) for found in labels])])
    if not rows:
        return section("categories", "Reward by category", nothing("fewer than two sessions"))
    head = ["category", "reward, first", "reward, last", "compliant, first", "compliant, last"]
    width = count(data["summary"]["window"])
    parts: list[object] = [table(f"Baseline reward and compliance, first and last {width} sessions", head, rows)]
    if labelled:
        head = ["category: classification", "share, first", "share, last", "reward, first", "reward, last"]
        parts.append(table(f"Classifications, first and last {width} sessions", head, labelled))
    else:
        parts.append(nothing("no session is classified"))
    return section("categories", "Reward by category", *parts)


def _classified(ends: Sequence[Data | None]) -> list[Markup]:
    shares = [estimate(found["share"], "share") if found else escape("none seen") for found in ends]
    return [*shares, *(estimate(found["baseline"]) if found else escape(None) for found in ends)]


def divergence(data: Data, specs: Mapping[str, Spec]) -> Markup:
    """KL against reward, and what the reference was."""
    parts: list[object] = []
    if data["kl"]["why"]:
        parts.append(nothing(data["kl"]["why"]))
    parts.append(figure("kl-reward", specs.get("kl-reward"), "Reward against KL to the reference, one point a bin"))
    parts.append(figure("kl", specs.get("kl"), "KL to the reference over the run, 95 % interval"))
    found = data["reference"]
    if found["why"]:
        parts.append(nothing(found["why"]))
    else:
        rows = [[tag("code", row["reference_id"]), count(row["sessions"])] for row in found["ids"]]
        parts.append(table("Reference", ["identity", "sessions"], rows))
    if found["pivots"]:
        rows = [
            [
                row["category"],
                row["component"] or "whole reward",
                number(row["value"]),
                number(row["standard_error"]),
                count(row["n"]),
            ]
            for row in found["pivots"]
        ]
        head = ["category", "component", "pivot", "standard error", "n"]
        parts.append(table("Pivots: the reward that a differential leaves in place", head, rows))
    return section("divergence", "KL and reference", *parts)
