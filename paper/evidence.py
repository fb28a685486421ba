"""What claims are judged by: values of recorded runs, compared by Welch's t over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper.captions import check_protocols
from paper.catalog import Arm, config_of, seeds_of
from paper.records import Record, diverged, layer_values, pick, values
from paper.statistics import mean_of, welch


class Missing(LookupError):
    """Runs that have not been recorded."""


@dataclass(frozen=True)
class Finding:
    """What runs say of a claim, before the correction for the number of claims.

    Attributes:
        text: the numbers.
        agrees: whether they go the claim's way; None: that cannot be said.
        p: of a test whose result goes the claim's way; 1 where it does not; None: there was none.
        check: true by algebra: it tells whether the program is right, and is no evidence.
    """

    text: str
    agrees: bool | None
    p: float | None = None
    check: bool = False


@dataclass(frozen=True)
class Evidence:
    """All that has been recorded at one size.

    Attributes:
        size: full, small or smoke.
        records: by the name of the run.
    """

    size: str
    records: Mapping[str, Record]

    def run(self, preset: str, seed: int, **options: Any) -> Record:
        """One recorded run of a preset; ``norm__scale=1.4`` sets ``norm.scale``.

        Raises:
            Missing: it has not been recorded.
        """
        changes = {name.replace("__", "."): value for name, value in options.items()}
        config = config_of(Arm(preset, f"paper/{preset}", changes), self.size, seed)
        if config.run_name() not in self.records:
            options_of = [f"{name}={value}" for name, value in changes.items()]
            raise Missing(" ".join([preset, *options_of, f"seed {seed}"]))
        return self.records[config.run_name()]

    def runs(self, preset: str, **options: Any) -> list[Record]:
        """The runs of a preset, one for each seed.

        Raises:
            Missing: one of them has not been recorded.
        """
        return [self.run(preset, seed, **options) for seed in range(seeds_of(self.size))]


@dataclass(frozen=True)
class Group:
    """Runs under one name, and a value of each; a value that is not finite is a failure."""

    name: str
    runs: Sequence[Record]
    values: Sequence[float]

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def failed(self) -> int:
        return len(self.values) - len(self.finite)

    def __str__(self) -> str:
        return f"{self.name} {mean_of(self.values)}"


# Values of runs; nan is a failure


def last(record: Record, name: str) -> float:
    """The value at the end of the run."""
    found = pick(record, name, "last")
    return math.nan if found is None else found[1]


def best(record: Record, name: str) -> float:
    """The best score (largest) or distance (smallest)."""
    found = pick(record, name, "best")
    return math.nan if found is None else found[1]


def course(record: Record, name: str) -> float:
    """Median over the run, as of a gradient norm."""
    return middle([value for _, value in values(record, name)])


def middle(found: Sequence[float]) -> float:
    """The median; nan where one is not finite, or there is none."""
    return statistics.median(found) if found and all(map(math.isfinite, found)) else math.nan


def layers(record: Record, name: str) -> list[float]:
    """All values of all layers at all moments."""
    return [value for points in layer_values(record, name).values() for _, value in points]


# Findings


def compare(
    larger: Group, smaller: Group, what: str, *, failure: str = "low", log: bool = False
) -> Finding:
    """Whether the first group's mean is larger than the second's, by Welch's t.

    Args:
        larger, smaller: as the claim has it.
        what: the value, in words.
        failure: whether a run without a finite value counts as ``"low"`` or as ``"high"`` as can
            be. Where that goes the claim's way it is told, and the other runs are tested; where it
            does not, the claim does not hold.
        log: the logarithms are tested; values of 0 are as low as can be.

    Raises:
        RecordError: the groups were evaluated by different protocols.
    """
    check_alike(what, (larger, smaller))
    text = f"{what}: {larger}, {smaller}"
    against = larger if failure == "low" else smaller
    if against.failed:
        return Finding(f"{text}: {against.failed} of {len(against.values)} failed", False, 1.0)
    a, b = larger.finite, smaller.finite
    if log:
        if min(a, default=1.0) <= 0:
            return Finding(f"{text}: {larger.name} has values of 0", False, 1.0)
        a, b = ([math.log(value) for value in group if value > 0] for group in (a, b))
    if min(len(a), len(b)) < 2:
        return Finding(f"{text}: a test needs two runs of each", None)
    test = welch(a, b)
    said = f"{text}; t = {test.t:.2f}, p = {shown(test.p)}"
    return Finding(said, test.t > 0, test.p if test.t > 0 else 1.0)


def check_alike(what: str, groups: Iterable[Group]) -> None:
    """Raises RecordError if runs of the groups were evaluated by different protocols."""
    check_protocols(what, {Arm("", "", {}, str(i)): g.runs for i, g in enumerate(groups)})


def shown(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "<0.0001"


def all_of(findings: Iterable[Finding]) -> Finding:
    """The finding on a claim that is all of these: as good as the worst of them."""
    found = list(findings)
    text = "; ".join(one.text for one in found)
    if any(one.agrees is None for one in found):
        return Finding(text, None)
    ps = [one.p for one in found if one.p is not None]
    return Finding(text, all(one.agrees for one in found), max(ps, default=None))


def group(
    evidence: Evidence,
    arm: tuple[str, str, Mapping[str, float]],
    of: Callable[[Record, str], float],
    value: str,
) -> Group:
    """A value of all runs of an arm: its name, preset and options."""
    name, preset, options = arm
    runs = evidence.runs(preset, **options)
    return Group(name, runs, [of(record, value) for record in runs])


def growth(record: Record, name: str) -> float:
    """By how much a value has grown since the first look at it."""
    found = values(record, name)
    return math.nan if diverged(record) or not found else found[-1][1] - found[0][1]


def fall(record: Record, name: str) -> float:
    """By what factor a positive value has fallen since the first look at it."""
    found = values(record, name)
    if diverged(record) or not found or not found[-1][1]:
        return math.nan
    return found[0][1] / found[-1][1]


def first(record: Record, name: str) -> float:
    found = values(record, name)
    return found[0][1] if found else math.nan
