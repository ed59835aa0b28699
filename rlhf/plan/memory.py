"""From trials on shallow models to the peak of a stage: linear in what a batch holds, linear in layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from rlhf.ops import readout
from rlhf.plan.sizes import Size
from rlhf.plan.trial import Trial

Vector = NDArray[np.float64]


PASSING = ("activations", "temporary", "caches and distributions of sampling")


@dataclass(frozen=True)
class Moment:
    """What is there at one point of a step. Units: bytes; terms by name."""

    name: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        """Of all terms."""
        return sum(self.terms.values())

    def holding(self, share: float, prepared: float = 0.0) -> Moment:
        """With what the allocator holds on to beside what a step allocates anew, and what matrix products prepare."""
        held = share * sum(value for name, value in self.terms.items() if name in PASSING)
        shapes = {"prepared matrix shapes": prepared} if prepared else {}
        return Moment(self.name, {**self.terms, "held by the allocator": held, **shapes})


@dataclass(frozen=True)
class Line:
    """A quantity at one batch size after another: bytes = coefficients . features, for every number of layers."""

    features: Callable[[Size], list[float]]
    coefficients: Vector

    def __call__(self, size: Size) -> float:
        """Bytes at this size."""
        return float(np.asarray(self.features(size), dtype=np.float64) @ self.coefficients)


@dataclass(frozen=True)
class Model:
    """What the parts of a stage take with all layers. Units: bytes."""

    weights: float
    gradients: float
    moments: float
    standing: float
    late: float
    forward: Line
    transient: Line
    sampling: Line | None
    misfit: float

    def peak(self, size: Size, process: float, *, accumulated: bool, sampled: Size | None = None) -> Moment:
        """The most that a step needs with a micro-batch of this size, and what it consists of.

        process: what is there before a model is; accumulated: gradients of earlier micro-batches are there in the
        forward pass; sampled: what is sampled before it.
        """
        there = {
            "process": process,
            "weights": self.weights,
            "optimizer moments": self.moments,
            "reference and other copies": self.standing,
        }
        held = {"gradients": self.gradients} if accumulated else {}
        moments = [
            Moment(
                "the backward pass begins",
                {**there, **held, "activations": self.forward(size), "temporary": self.transient(size)},
            ),
            Moment(
                "the backward pass ends",
                {**there, "gradients": self.gradients, "temporary": max(0.0, self.late - self.gradients)},
            ),
        ]
        if self.sampling is not None and sampled is not None:
            # The gradients of the step before are let go of where the forward pass begins, which is after sampling.
            cached = {"gradients": self.gradients, "caches and distributions of sampling": self.sampling(sampled)}
            moments.append(Moment("answers are sampled", {**there, **cached}))
        return max(moments, key=lambda moment: moment.total)


def fit(
    few: Sequence[Trial],
    more: Sequence[Trial],
    depths: tuple[int, int, int],
    vocabulary: int,
    device: str = "cpu",
    logit_bytes: int = 4,
) -> Model:
    """few, more: trials with the first and the second number of layers; the third is what the model has.

    logit_bytes: of one logit, which are kept up to a number of bytes.

    Raises: ValueError without a trial of either.
    """
    if not few or not more:
        raise ValueError("two numbers of layers are needed to tell a layer from the rest")
    low, high, layers = depths

    def deep(quantity: Callable[[Sequence[Trial]], Vector]) -> Vector:
        one, two = quantity(few), quantity(more)
        return np.maximum(one + (two - one) * (layers - low) / (high - low), 0.0)

    def number(value: Callable[[Trial], float]) -> float:
        return float(deep(lambda trials: np.asarray([value(min(trials, key=lambda t: t.size.tokens))]))[0])

    kept, block = readout.KEEP // (logit_bytes * vocabulary), readout.block_of(device) // vocabulary

    def forward_features(size: Size) -> list[float]:
        return [1.0, size.tokens, size.attended, min(size.scored, kept)]

    def transient_features(size: Size) -> list[float]:
        return [1.0, size.tokens, size.attended, min(size.scored, block)]

    def sampling_features(size: Size) -> list[float]:
        return [1.0, size.whole, size.texts]

    lines, misfits = [], []
    for features, value in (
        (forward_features, lambda trial: float(trial.forward)),
        (transient_features, lambda trial: float(trial.transient)),
        (sampling_features, lambda trial: float(trial.sampling)),
    ):
        lines.append(Line(features, deep(lambda trials, f=features, v=value: _solve(trials, f, v))))  # type: ignore[misc]
        misfits += [_misfit(trials, features, value) for trials in (few, more)]
    sampled = any(trial.sampling > trial.size.whole * 64 for trial in (*few, *more))
    return Model(
        weights=number(lambda trial: trial.weights),
        gradients=number(lambda trial: trial.gradients),
        moments=number(lambda trial: trial.moments),
        standing=number(lambda trial: trial.standing),
        late=number(lambda trial: trial.late),
        forward=lines[0],
        transient=lines[1],
        sampling=lines[2] if sampled else None,
        misfit=max(misfits[:2]),
    )


def _solve(trials: Sequence[Trial], features: Callable[[Size], list[float]], value: Callable[[Trial], float]) -> Vector:
    """Least squares with no negative coefficient: nothing frees memory by being there."""
    matrix = np.asarray([features(trial.size) for trial in trials], dtype=np.float64)
    scale = np.maximum(matrix.max(axis=0), 1.0)
    solution, _ = nnls(matrix / scale, np.asarray([value(trial) for trial in trials], dtype=np.float64))
    return np.asarray(solution / scale, dtype=np.float64)


def _misfit(trials: Sequence[Trial], features: Callable[[Size], list[float]], value: Callable[[Trial], float]) -> float:
    """Largest deviation from the line, relative to the largest trial."""
    line = Line(features, _solve(trials, features, value))
    most = max(value(trial) for trial in trials) or 1.0
    return max(abs(line(trial.size) - value(trial)) for trial in trials) / most


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` for which `fits` holds, which holds for all smaller ones; 0: for none."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
