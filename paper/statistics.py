"""Mean and standard error over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Mean", "average", "mean_of"]


@dataclass(frozen=True)
class Mean:
    """A mean over runs.

    Attributes:
        x: the iteration, or where else the runs are compared.
        mean: of the finite values; not finite if there is none.
        stderr: standard error ``s / sqrt(n)`` with ``s`` of ``n - 1``; None for one value.
        n: number of finite values.
    """

    x: float
    mean: float
    stderr: float | None
    n: int

    @property
    def low(self) -> float:
        return self.mean - (self.stderr or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.stderr or 0.0)


def mean_of(values: Iterable[float], x: float = 0.0) -> Mean:
    """Mean and standard error of the finite ones of some values."""
    known = [value for value in values if math.isfinite(value)]
    n = len(known)
    if n == 0:
        return Mean(x, math.nan, None, 0)
    # Numbers of runs that explode may have no sum and no square; a power of two rounds nothing.
    size = math.ldexp(1.0, math.frexp(max(map(abs, known)))[1] - 1)
    scaled = [value / size for value in known]
    mean = math.fsum(scaled) / n
    if n == 1:
        return Mean(x, mean * size, None, 1)
    square = math.fsum((value - mean) ** 2 for value in scaled) / (n - 1)
    return Mean(x, mean * size, math.sqrt(square / n) * size, n)


def average(curves: Sequence[Sequence[tuple[int, float]]]) -> list[Mean]:
    """Curves of several runs as one, on the grid of steps that they share.

    A step is on the grid if each run that came so far has a value there: a run that ended early
    takes no steps from the others, and one that was measured less often takes those it lacks. Where
    no run has a finite value there is no mean.
    """
    known = [dict(curve) for curve in curves if curve]
    steps = sorted({step for curve in known for step in curve})
    means = []
    for step in steps:
        running = [curve for curve in known if max(curve) >= step]
        if all(step in curve for curve in running):
            mean = mean_of((curve[step] for curve in running), step)
            means += [mean] if mean.n else []
    return means
