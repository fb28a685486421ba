"""Values of the study's runs that claims are judged by."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from paper.study.plan import runs
from paper.study.records import Entry, Series

__all__ = ["SCALES", "Evidence", "whole_seeds"]

#: Arms that seed 0 chooses from, by method and scale.
SCALES = {
    method: {1.0: plain, **{x: f"{method} {x:g}" for x in (0.7, 1.2, 1.4, 1.8, 2.4)}}
    for method, plain in (("SSN", "SN"), ("BSSN", "BSN"))
}
#: Iterations of the last three evaluations, of usual and of late values.
END, LATE = (12_000, 13_500, 15_000), (42_000, 43_500, 45_000)
#: Values that are made of distances: they have one by each classifier.
OF_DISTANCES = ("end", "late end", "late change", "first", "peak")


def whole_seeds(entries: Iterable[Entry], number_of_seeds: int) -> list[int]:
    """The seeds of which every run is recorded."""
    recorded = Counter(entry.seed for entry in entries)
    planned = len(list(runs(1)))
    return [seed for seed in range(number_of_seeds) if recorded[seed] == planned]


@dataclass(frozen=True)
class Evidence:
    """Entries of whole seeds.

    Attributes:
        entries: of the runs.
        seeds: those that tests use.
        second: whether distances are those of the second classifier.
    """

    entries: Sequence[Entry]
    seeds: Sequence[int]
    second: bool = False

    def entry(self, setting: str, arm: str, seed: int) -> Entry:
        """The entry of a run."""
        return self._by_run[setting, arm, seed]

    @cached_property
    def _by_run(self) -> dict[tuple[str, str, int], Entry]:
        return {(entry.setting, entry.arm, entry.seed): entry for entry in self.entries}

    def values(self, setting: str, arm: str, value: str, seeds: Sequence[int]) -> list[float]:
        """A value of an arm's runs; one that is not finite says that the run has none.

        Args:
            value: ``end``, ``late end``, ``first`` and ``peak`` are logarithms of distances,
                ``late change`` a difference of two; ``gradient``, ``fall``, ``largest`` and
                ``spread`` are logarithms of gradient norms or of their ratios, ``growth`` is that
                of the logarithm of the product of the layers' variances.
        """
        return [self._value(self.entry(setting, arm, seed), value) for seed in seeds]

    def chosen(self, setting: str, method: str) -> float:
        """The scale with which seed 0 has the lowest distance, by the first classifier."""
        mine = Evidence(self.entries, self.seeds)
        arms = SCALES[method]
        return min(arms, key=lambda scale: mine.values(setting, arms[scale], "end", [0])[0])

    def _value(self, entry: Entry, value: str) -> float:
        if value in OF_DISTANCES:
            distances = self._distances(entry)
            if value == "first":
                return distances[min(distances)]
            if value == "peak":
                return min(distances.values())
            end, late = (
                fmean(distances[step] for step in steps) if steps[-1] in distances else math.nan
                for steps in (END, LATE)
            )
            return {"end": end, "late end": late, "late change": late - end}[value]
        if entry.diverged:
            return math.nan
        return _of_network(entry, value)

    def _distances(self, entry: Entry) -> Series:
        """Logarithms of distances by step; those a run has not reached are the setting's worst."""
        part = entry.second if self.second else entry.first
        logs = {step: math.log(d) for step, d in part["distance"].items() if _usable(d)}
        steps = [*part["distance"]]
        if entry.diverged or len(logs) < len(steps):
            worst = max(self._all_logs(entry.setting))
            wanted = range(1500, entry.steps + 1, 1500)
            logs = {step: logs.get(step, worst) for step in {*steps, *wanted}}
        return logs

    def _all_logs(self, setting: str) -> list[float]:
        parts = [e.second if self.second else e.first for e in self.entries if e.setting == setting]
        return [math.log(d) for part in parts for d in part["distance"].values() if _usable(d)]


def _usable(distance: float) -> bool:
    return math.isfinite(distance) and distance > 0


def _of_network(entry: Entry, value: str) -> float:
    if value == "growth":
        series = [*entry.network["log_variance_product"].values()]
        return series[-1] - series[0] if series else math.nan
    name = {"gradient": "grad_norm", "fall": "grad_norm"}.get(value, value)
    logs = [math.log(v) if v > 0 else -math.inf for v in entry.network[name].values()]
    if not logs:
        return math.nan
    return logs[0] - logs[-1] if value == "fall" else statistics.median(logs)
