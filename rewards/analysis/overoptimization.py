"""Over-optimisation: reward against distance per version of the signal, proxy against gold, and the pay for length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.analysis import gao, length_bias, proxy_gold
from rewards.analysis.convergence import step_bins
from rewards.analysis.data import RunData
from rewards.analysis.gold import NO_GOLD, golds, scorer_versions

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

# A bin's mean needs at least so many sessions with both KL and reward.
FEWEST_SESSIONS = 4
# A controller may change the schedule hundreds of times; the versions with the fewest sessions are only counted.
MOST_VERSIONS = 24
NO_KL = "no KL to the reference is on record (`kl_nats`): the distance from the reference is unknown"


def section(data: RunData) -> dict[str, Any]:
    """The whole section: `fits`, `proxy_gold`, `length`, and `why` where a part is missing."""
    found, prompts = golds(data), data.codes_of("prompt_id")
    series = [("baseline_reward", data.column("baseline_reward"), _optimised(data))]
    series += [(gold.name, gold.values, [gold.name]) for gold in found]
    missing = [] if np.isfinite(data.column("kl_nats")).any() else [NO_KL]
    missing += [] if found else [NO_GOLD]
    return {
        "fits": fits(data, series),
        "proxy_gold": proxy_gold.section(data, found, prompts),
        "length": length_bias.section(data, found, prompts),
        "why": "; ".join(missing) or None,
    }


def fits(data: RunData, rewards: Sequence[tuple[str, Floats, list[str]]]) -> list[dict[str, Any]]:
    """A fit in d = sqrt(KL) of each reward for every version of schedule, scorer and reference, in order of sessions.

    A new version is a new signal, and its points lie on another curve. Points are means of bins of whole steps, weighed
    by their sessions; the reward at d = 0 is estimated too, as a run does not record it; standard errors are widened
    for residuals that depend on each other. Still, points along one run are one draw: only several seeds (see
    `gao.peak_over_runs`) tell how far a peak moves from run to run.
    rewards: (name, one value a session with higher better, names of the components behind it).
    """
    kl = data.column("kl_nats")
    if not np.isfinite(kl).any():
        return []
    versions, labels = _versions(data)
    rows = []
    for name, values, behind in rewards:
        if not np.isfinite(values).any():
            continue
        groups = list(_groups(versions, labels, scorer_versions(data, behind)))
        largest = sorted(range(len(groups)), key=lambda place: -len(groups[place][1]))[:MOST_VERSIONS]
        for place in sorted(largest):
            version, sessions = groups[place]
            row = _fit(name, kl[sessions], values[sessions], data.steps, sessions)
            rows.append({"of": name, "version": version, **row})
        if len(groups) > MOST_VERSIONS:
            rows[-1]["versions_left_out"] = len(groups) - MOST_VERSIONS
    return rows


def _optimised(data: RunData) -> list[str]:
    return [name for name, role in data.component_roles.items() if role == "optimised"]


def _versions(data: RunData) -> tuple[Index, list[tuple[str | None, str | None]]]:
    """Number of the pair of schedule and reference of each session, and what each number stands for."""
    (schedule, schedules), (reference, references) = data.named("schedule_version"), data.named("reference_id")
    width = len(references) + 1
    pairs = (schedule.astype(np.int64) + 1) * width + reference + 1
    # Names are sorted, so place 0 stands for null in both.
    named: list[tuple[str | None, str | None]] = [
        (first, second) for first in (None, *schedules) for second in (None, *references)
    ]
    return pairs, named


def _groups(
    versions: Index, labels: Sequence[tuple[str | None, str | None]], scorers: Sequence[tuple[int, str | None]]
) -> Iterator[tuple[dict[str, str | None], Index]]:
    """(version, indices of its sessions), in order of the first session."""
    edges = [start for start, _ in scorers] + [len(versions)]
    found = []
    for (_, scorer), start, stop in zip(scorers, edges[:-1], edges[1:], strict=True):
        part = versions[start:stop]
        for number in np.flatnonzero(np.bincount(part)).tolist():
            schedule, reference = labels[number]
            sessions = start + np.flatnonzero(part == number)
            version = {"schedule_version": schedule, "scorer": scorer, "reference": reference}
            found.append((int(sessions[0]), version, sessions))
    for _, version, sessions in sorted(found, key=lambda entry: entry[0]):
        yield version, sessions


def _fit(name: str, kl: Floats, values: Floats, steps: NDArray[np.int64], sessions: Index) -> dict[str, Any]:
    points = _points(kl, values, steps[sessions], sessions)
    used = [point for point in points if point["kl_nats"] > 0]
    row: dict[str, Any] = {
        "n": len(sessions),
        "sessions": [int(sessions[0]) + 1, int(sessions[-1]) + 1],
        "points": used,
        "left_out": len(points) - len(used),
        **dict.fromkeys(("alpha", "beta", "offset", "peak_kl_nats", "past_peak")),
    }
    try:
        found = gao.fit(
            np.sqrt([point["kl_nats"] for point in used]),
            np.array([point["reward"] for point in used]),
            np.array([float(point["n"]) for point in used]),
            offset=True,
            dependent=True,
        )
    except ValueError as error:
        return row | {
            "refused": f"no fit: {error}",
            "verdict": f"Nothing can be said about a peak of `{name}`: {error}.",
        }
    row |= {"alpha": found.coefficient("alpha"), "beta": found.coefficient("beta"), "offset": found.offset}
    row |= {"peak_kl_nats": found.peak_kl(), "refused": found.refusal()}
    if row["peak_kl_nats"] is not None:
        finite = kl[np.isfinite(kl)]
        row["past_peak"] = float((finite > row["peak_kl_nats"]["estimate"]).mean())
    return row | {"verdict": _verdict(name, row)}


def _points(kl: Floats, values: Floats, steps: NDArray[np.int64], sessions: Index) -> list[dict[str, Any]]:
    bins = step_bins(steps)
    both = np.isfinite(kl) & np.isfinite(values)
    starts = np.array([found.start for found in bins])
    counts = np.add.reduceat(both.astype(np.int64), starts)
    sums = [np.add.reduceat(np.where(both, part, 0.0), starts) for part in (kl, values)]
    return [
        {
            "kl_nats": float(sums[0][place] / counts[place]),
            "reward": float(sums[1][place] / counts[place]),
            "n": int(counts[place]),
            "first_session": int(sessions[found.start]) + 1,
            "last_session": int(sessions[found.stop - 1]) + 1,
        }
        for place, found in enumerate(bins)
        if counts[place] >= FEWEST_SESSIONS
    ]


def _verdict(name: str, row: Mapping[str, Any]) -> str:
    points, beta = len(row["points"]), row["beta"]
    peak = row["peak_kl_nats"]
    if peak is not None:
        if peak["estimate"] < row["points"][0]["kl_nats"]:
            start = row["points"][0]["kl_nats"]
            return (
                f"`{name}` falls over the whole record, from {start:.3g} nats on: the peak, put at "
                f"{peak['estimate']:.3g} nats [{peak['low']:.3g}, {peak['high']:.3g}], came before ({points} points)."
            )
        return (
            f"`{name}` peaks at {peak['estimate']:.3g} nats [{peak['low']:.3g}, {peak['high']:.3g}] from the reference "
            f"and falls beyond, where {100 * row['past_peak']:.0f} % of its sessions lie ({points} points of one run)."
        )
    bend = f"bend {beta['estimate']:.3g} [{beta['low']:.3g}, {beta['high']:.3g}]"
    reason = str(row["refused"]).removeprefix("no peak: ")
    least = f"smallest detectable {beta['mde']:.3g}"
    return f"No peak of `{name}` is declared: {reason} ({bend}, {least}, {points} points of one run)."
