"""Runs the sides in turn, each in a process of its own, and makes figures of what they report."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_bench.machine import busy_seconds, children_seconds

SCRIPTS = Path(__file__).resolve().parents[1]
# Steps that are not counted on either side, and how many of S in half precision: a processor prepares each shape of
# a matrix when it first meets it, for two milliseconds and more, which is no steady state.
WARM_UP, HALF_WARM_UP = 2, 20
PARITY = 5  # first steps whose losses are compared
LEARNING_RATES = {"sft": 1e-3, "reward": 1e-4, "dpo": 1e-4}


class Failed(Exception):
    """A child process that ended with an error; the message is its last line."""


@dataclass(frozen=True)
class Plan:
    """One comparison. batch: rows of a step (pairs; their chosen answers in SFT)."""

    stage: str
    size: str
    dtype: str
    device: str
    threads: int
    batch: int
    steps: int
    max_length: int
    learning_rate: float
    data: Path
    model: Path
    length: int | None = None
    warm_up: int = WARM_UP

    def spec(self, folder: Path) -> dict[str, Any]:
        """What a child is told."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}
        return {**plain, "folder": str(folder)}


@dataclass
class Runs:
    """The runs of one side: per run its step ends, losses, peak and seconds of a reference pass."""

    tokens: list[int]
    found: list[dict[str, Any]] = field(default_factory=list)
    warm_up: int = WARM_UP

    @property
    def rates(self) -> list[float]:
        """Effective tokens per second of each run, without its first steps."""
        return self.rates_after(self.warm_up)

    def rates_after(self, steps: int) -> list[float]:
        """The same without the first `steps` of them."""
        return [sum(self.tokens[steps:]) / (run["ends"][-1] - run["ends"][steps - 1]) for run in self.found]

    @property
    def rate(self) -> float:
        """Median over the runs."""
        return statistics.median(self.rates)

    @property
    def step_seconds(self) -> list[float]:
        """Of every counted step of every run."""
        return [
            after - before
            for run in self.found
            for before, after in zip(run["ends"][self.warm_up - 1 :], run["ends"][self.warm_up :], strict=False)
        ]

    @property
    def peak(self) -> float:
        """Median of the runs' peaks, in bytes."""
        return statistics.median(run["peak_bytes"] for run in self.found)

    @property
    def reference_seconds_per_token(self) -> float | None:
        """Of the pass over all rows, each once; None where there was none."""
        seconds = [run["reference_seconds"] for run in self.found if run.get("reference_seconds") is not None]
        return statistics.median(seconds) / sum(self.tokens) if seconds else None

    @property
    def first_epoch_rate(self) -> float | None:
        """With the reference pass over a token charged to its first step."""
        extra = self.reference_seconds_per_token
        return None if extra is None else 1 / (1 / self.rate + extra)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "tokens_per_second": self.rate,
            "tokens_per_second_first_epoch": self.first_epoch_rate,
            "runs": [round(rate, 1) for rate in self.rates],
            "step_seconds": statistics.median(self.step_seconds),
            "peak_bytes": self.peak,
            "peak_bytes_runs": [run["peak_bytes"] for run in self.found],
            "reference_seconds_per_token": self.reference_seconds_per_token,
            "losses": self.found[0]["losses"],
            "other_processes_cpus": [run["others"] for run in self.found],
        }


def child(role: str, spec: dict[str, Any], name: str) -> dict[str, Any]:
    """Runs one role to its end; adds what other processes used meanwhile, in CPUs."""
    folder = Path(spec["folder"])
    told, result = folder / f"{name}.spec.json", folder / f"{name}.result.json"
    told.write_text(json.dumps({**spec, "name": name, "result": str(result)}))
    threads = str(spec["threads"])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        # Ours asks for this itself; without it a side's threads wait for each other by spinning, and a process beside
        # it would cost the peer half its speed and us little.
        "GOMP_SPINCOUNT": "1000",
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH")])),
    }
    busy, own, began = busy_seconds(), children_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "peer_bench.child", role, str(told)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(f"{name}: {lines[-1] if lines else f'exit {done.returncode}'}")
    found: dict[str, Any] = json.loads(result.read_text())
    now = busy_seconds()
    used = None if busy is None or now is None else now - busy - (children_seconds() - own)
    found["others"] = None if used is None else round(max(0.0, used) / seconds, 2)
    found["wall"] = seconds
    return found


def compare(plan: Plan, folder: Path, repeats: int, *, precompute: bool) -> dict[str, Any]:
    """The document of one comparison."""
    folder.mkdir()
    spec = plan.spec(folder)
    case = child("case", spec, "case")
    spec |= {"tokens": case["tokens"], "digest": case["digest"]}
    names = ["ours", "trl", *(["trl_precomputed"] if precompute else [])]
    sides = {name: Runs(case["tokens"], warm_up=plan.warm_up) for name in names}
    for repeat in range(1, repeats + 1):
        for side, runs in sides.items():
            role = "ours" if side == "ours" else "peer"
            run = child(role, {**spec, "precompute": side == "trl_precomputed"}, f"{side}-{repeat}")
            runs.found.append(run)
            rate = f"{runs.rates[-1]:,.0f} tok/s, peak {run['peak_bytes'] / 1e9:.2f} GB"
            print(
                f"{side} {repeat}/{repeats}: {rate}, others {run['others']} CPU, {run['wall']:.0f} s", file=sys.stderr
            )
    return _document(case, sides)


def _document(case: dict[str, Any], sides: dict[str, Runs]) -> dict[str, Any]:
    ours, peer = sides["ours"], sides["trl"]
    first = ours.first_epoch_rate
    ratio = {
        "steady": ours.rate / peer.rate,
        "steady_best_runs": max(ours.rates) / max(peer.rates),
        "from_step_3": statistics.median(ours.rates_after(WARM_UP)) / statistics.median(peer.rates_after(WARM_UP)),
        "first_epoch": None if first is None else first / peer.rate,
        "peak_memory": ours.peak / peer.peak,
    }
    cached = sides.get("trl_precomputed")
    if cached is not None:
        cached_first = cached.first_epoch_rate
        ratio["steady_peer_precomputed"] = ours.rate / cached.rate
        if first is not None and cached_first is not None:
            ratio["first_epoch_peer_precomputed"] = first / cached_first
    losses = [side.found[0]["losses"][:PARITY] for side in (ours, peer)]
    others = [run["others"] for runs in sides.values() for run in runs.found if run["others"] is not None]
    return {
        "ratio": ratio,
        "loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "losses": {"ours": losses[0], "trl": losses[1]},
        "tokens_per_step": statistics.mean(case["tokens"]),
        "scored_per_step": statistics.mean(case["scored"]),
        "padding_pct": case["padding_pct"],
        "noise": {"other_processes_cpus_max": max(others, default=None), "quiet": max(others, default=9.0) < 0.1},
        "sides": {name: runs.document() for name, runs in sides.items()},
    }


def lengths(plans: dict[int, Plan], folder: Path, repeats: int) -> dict[str, Any]:
    """Our step time at each length, interleaved."""
    folder.mkdir()
    specs, runs = {}, {}
    for length, plan in plans.items():
        own = folder / str(length)
        own.mkdir()
        specs[length] = plan.spec(own)
        case = child("case", specs[length], "case")
        runs[length] = Runs(case["tokens"])
    for repeat in range(1, repeats + 1):
        for length, spec in specs.items():
            runs[length].found.append(child("ours", spec, f"ours-{repeat}"))
            seconds = statistics.median(runs[length].step_seconds)
            print(f"length {length} {repeat}/{repeats}: {seconds:.3f} s a step", file=sys.stderr, flush=True)
    seconds_by = {length: statistics.median(found.step_seconds) for length, found in runs.items()}
    return {
        "step_seconds": seconds_by,
        "tokens_per_step": {length: found.tokens[0] for length, found in runs.items()},
        "peak_bytes": {length: found.peak for length, found in runs.items()},
        "ratio": {"slowest_to_fastest": max(seconds_by.values()) / min(seconds_by.values())},
    }
