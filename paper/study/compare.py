"""Two groups of runs, or one against zero: effect, interval, Welch's or Student's p, all
permutations' p."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean, variance

from paper.statistics import Test, critical, t_test, welch

__all__ = ["Part", "Result", "compare", "permuted", "shares_below"]

#: Of intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Part:
    """What a claim says of one value of two groups, or of one.

    Attributes:
        what: the value, in words.
        names: of the groups.
        a: values of the first.
        b: of the second; None: the mean of the first is compared with 0.
        sign: of the first mean less the second as the paper has it; 0: the paper says nothing.
        log: whether the values are logarithms, so that effects are ratios.
        distance: whether it is made of distances, which the second classifier has as well.
        failed: runs without such a value; they count against the claim.
    """

    what: str
    names: tuple[str, ...]
    a: Sequence[float]
    b: Sequence[float] | None
    sign: int
    log: bool = True
    distance: bool = True
    failed: int = 0


@dataclass(frozen=True)
class Result:
    """A part, tested.

    Attributes:
        effect: first mean less the second.
        low, high: its interval.
        p: two-sided.
        permutation: p of all permutations of the labels, or of all signs.
        agrees: whether the effect has the part's sign.
    """

    part: Part
    effect: float
    low: float
    high: float
    p: float
    permutation: float
    agrees: bool


def compare(part: Part) -> Result | None:
    """The part, tested; None where a group has fewer than two values."""
    groups = [part.a] if part.b is None else [part.a, part.b]
    if min(map(len, groups)) < 2:
        return None
    test = t_test(part.a) if part.b is None else welch(part.a, part.b)
    effect = fmean(part.a) - (0.0 if part.b is None else fmean(part.b))
    half = _error(groups) * critical(test.df, 1 - CONFIDENCE)
    agrees = effect * part.sign > 0 and not part.failed
    return Result(
        part,
        effect,
        effect - half,
        effect + half,
        1.0 if part.failed else test.p,
        permuted(part),
        agrees,
    )


def _error(groups: Sequence[Sequence[float]]) -> float:
    return math.sqrt(sum(variance(values) / len(values) for values in groups))


def permuted(part: Part) -> float:
    """Share of all ways to deal the values out (or to choose signs) with an effect as large."""
    if part.b is None:
        found = [abs(fmean(signed)) for signed in _signed(part.a)]
        observed = abs(fmean(part.a))
    else:
        found = [abs(fmean(a) - fmean(b)) for a, b in _deals(part.a, part.b)]
        observed = abs(fmean(part.a) - fmean(part.b))
    return sum(effect >= observed * (1 - 1e-12) for effect in found) / len(found)


def shares_below(a: Sequence[float], b: Sequence[float], level: float) -> float:
    """Share of all ways to deal the values out anew where Welch's p is below a level."""
    tests: list[Test] = [welch(*groups) for groups in _deals(a, b)]
    return sum(test.p < level for test in tests) / len(tests)


def _deals(a: Sequence[float], b: Sequence[float]) -> Iterator[tuple[list[float], list[float]]]:
    values = [*a, *b]
    for chosen in combinations(range(len(values)), len(a)):
        mine = set(chosen)
        yield (
            [values[i] for i in chosen],
            [value for i, value in enumerate(values) if i not in mine],
        )


def _signed(values: Sequence[float]) -> Iterator[list[float]]:
    for signs in product((1, -1), repeat=len(values)):
        yield [sign * value for sign, value in zip(signs, values, strict=True)]
