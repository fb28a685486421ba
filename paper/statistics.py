"""Means and standard errors over seeds, and the tests that claims are judged by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(frozen=True)
class Mean:
    """A mean over runs.

    Attributes:
        x: the iteration, or where else the runs are compared.
        mean: of the finite values; not finite if there is none.
        stderr: standard error ``s / sqrt(n)`` with ``s`` of ``n - 1``; None for one value.
        n: number of finite values.
        failed: number of runs without one: they diverged, or their number is not finite.
    """

    x: float
    mean: float
    stderr: float | None
    n: int
    failed: int = 0

    @property
    def low(self) -> float:
        return self.mean - (self.stderr or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.stderr or 0.0)

    def __str__(self) -> str:
        """``3.41 ± 0.02 (n = 3)``, with the failures."""
        lost = f", {self.failed} of {self.n + self.failed} failed" if self.failed else ""
        if not self.n:
            return f"none (n = 0{lost})"
        error = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        return f"{self.mean:.3g}{error} (n = {self.n}{lost})"


def mean_of(values: Iterable[float | None], x: float = 0.0) -> Mean:
    """Mean and standard error of the finite ones of some values; the others are failures."""
    values = list(values)
    known = [value for value in values if value is not None and math.isfinite(value)]
    n, failed = len(known), len(values) - len(known)
    if n == 0:
        return Mean(x, math.nan, None, 0, failed)
    # Numbers of runs that explode may have no sum and no square; a power of two rounds nothing.
    size = math.ldexp(1.0, math.frexp(max(map(abs, known)))[1] - 1)
    scaled = [value / size for value in known]
    mean = math.fsum(scaled) / n
    if n == 1:
        return Mean(x, mean * size, None, 1, failed)
    square = math.fsum((value - mean) ** 2 for value in scaled) / (n - 1)
    return Mean(x, mean * size, math.sqrt(square / n) * size, n, failed)


def average(curves: Sequence[Sequence[tuple[int, float]]]) -> list[Mean]:
    """Curves of several runs as one, on the grid of steps that they share.

    A step is on the grid if each run that came so far has a value there: a run that ended early
    takes no steps from the others, and one that was measured less often takes those it lacks. Where
    no run has a finite value there is no mean.
    """
    known = [dict(curve) for curve in curves if curve]
    means = []
    for step in sorted({step for curve in known for step in curve}):
        running = [curve for curve in known if max(curve) >= step]
        if all(step in curve for curve in running):
            mean = mean_of((curve[step] for curve in running), step)
            means += [mean] if mean.n else []
    return means


@dataclass(frozen=True)
class Test:
    """Student's t.

    Attributes:
        t: positive where the first mean is larger.
        df: degrees of freedom.
        p: two-sided.
    """

    t: float
    df: float
    p: float


def welch(a: Sequence[float], b: Sequence[float]) -> Test:
    """Welch's test of two means, whose variances may differ; of two values or more each."""
    parts = [variance(values) / len(values) for values in (a, b)]
    total, difference = sum(parts), fmean(a) - fmean(b)
    if total == 0:
        return _exact(difference, len(a) + len(b) - 2)
    df = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True)
    )
    return _test(difference / math.sqrt(total), df)


def t_test(values: Sequence[float], mean: float = 0.0) -> Test:
    """Whether the mean of two values or more is another than ``mean``."""
    error = math.sqrt(variance(values) / len(values))
    difference = fmean(values) - mean
    return _test(difference / error, len(values) - 1) if error else _exact(difference, 1)


def _exact(difference: float, df: float) -> Test:
    """Without any spread, a difference is one or is none."""
    t = math.copysign(math.inf, difference) if difference else 0.0
    return Test(t, df, 0.0 if difference else 1.0)


def _test(t: float, df: float) -> Test:
    return Test(t, df, _incomplete_beta(df / 2, 0.5, df / (df + t * t)))


def critical(df: float, level: float) -> float:
    """The ``t`` whose two-sided p is ``level``, by halving."""
    low, high = 0.0, 1.0
    while _test(high, df).p > level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _test(middle, df).p > level else (low, middle)
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where it converges fast
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 300):
        for number in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + number * d or tiny)
            c = 1 + number / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value / a


def holm(ps: Sequence[float]) -> list[float]:
    """The p values after Holm's correction for their number, in their order."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope of the least squares line, and correlation; nan where the xs, or the ys, are equal."""
    x, y = fmean(xs), fmean(ys)
    xx = math.fsum((a - x) ** 2 for a in xs)
    yy = math.fsum((b - y) ** 2 for b in ys)
    xy = math.fsum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return xy / xx if xx else math.nan, xy / math.sqrt(xx * yy) if xx and yy else math.nan
