"""What claims are judged by: values of recorded runs, compared in standard errors over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paper.picks import pick
from paper.records import Record, layer_values, values
from paper.scales import config_of, seeds_of
from paper.spec import Arm
from paper.statistics import Mean, mean_of
from paper.theory.checks import Verdict

__all__ = ["NOT_SUPPORTED", "SUPPORTED", "UNTESTED", "Evidence", "Outcome", "compare", "shown"]

SUPPORTED, NOT_SUPPORTED, UNTESTED = "supported", "not supported", "not testable here"

#: A difference counts when it is larger than this many of its standard errors.
ERRORS = 2.0


@dataclass(frozen=True)
class Outcome:
    """What the runs say of a claim: one of the three verdicts, and the numbers behind it."""

    verdict: str
    evidence: str


class Missing(LookupError):
    """Runs that have not been recorded."""


@dataclass(frozen=True)
class Evidence:
    """All that has been recorded at one scale.

    Attributes:
        scale: full, small or smoke.
        records: by the name of the run.
        theory: verdict of each theory check that has been run, by where the paper states it.
    """

    scale: str
    records: Mapping[str, Record]
    theory: Mapping[str, Verdict] = field(default_factory=dict)

    def run(self, preset: str, seed: int, **options: Any) -> Record:
        """One recorded run of a preset; ``norm__scale=1.4`` sets ``norm.scale``.

        Raises:
            Missing: it has not been recorded.
        """
        changes = {name.replace("__", "."): value for name, value in options.items()}
        config = config_of(Arm(preset, f"paper/{preset}", changes), self.scale, seed)
        if config.run_name() not in self.records:
            options_of = [f"{name}={value}" for name, value in changes.items()]
            raise Missing(" ".join([preset, *options_of, f"seed {seed}"]))
        return self.records[config.run_name()]

    def runs(self, preset: str, **options: Any) -> list[Record]:
        """The runs of a preset, one for each seed.

        Raises:
            Missing: one of them has not been recorded.
        """
        return [self.run(preset, seed, **options) for seed in range(seeds_of(self.scale))]


def last(record: Record, name: str) -> float:
    """The last finite value; nan if there is none."""
    found = pick(record, name, "last")
    return math.nan if found is None else found[1]


def best(record: Record, name: str) -> float:
    """The best score (largest) or distance (smallest)."""
    found = pick(record, name, "best")
    return math.nan if found is None else found[1]


def course(record: Record, name: str) -> float:
    """Geometric mean over the run of a positive value, as a gradient norm."""
    logs = [math.log(v) for _, v in values(record, name) if v > 0 and math.isfinite(v)]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def over(runs: Iterable[Record], of: Callable[[Record, str], float], name: str) -> Mean:
    """Mean and standard error over runs."""
    return mean_of(of(record, name) for record in runs)


def layers(record: Record, name: str) -> list[float]:
    """All finite values of all layers at all moments."""
    found = layer_values(record, name)
    return [v for points in found.values() for _, v in points if math.isfinite(v)]


def shown(mean: Mean) -> str:
    """``3.41 ± 0.02 (3)``: mean, standard error and number of runs."""
    error = "" if mean.stderr is None else f" ± {mean.stderr:.2g}"
    return f"{mean.mean:.3g}{error} ({mean.n})"


def compare(larger: tuple[str, Mean], smaller: tuple[str, Mean], what: str) -> Outcome:
    """Whether the first mean is larger than the second, by more than :data:`ERRORS` standard
    errors of their difference."""
    (a, first), (b, second) = larger, smaller
    error = math.hypot(first.stderr or 0.0, second.stderr or 0.0)
    difference = first.mean - second.mean
    text = f"{what}: {a} {shown(first)}, {b} {shown(second)}"
    if first.n < 2 or second.n < 2:
        return Outcome(UNTESTED, f"{text}: a standard error needs two runs")
    if difference > ERRORS * error:
        return Outcome(SUPPORTED, text)
    close = abs(difference) <= ERRORS * error
    why = "no difference beyond two standard errors" if close else "the opposite"
    return Outcome(NOT_SUPPORTED, f"{text}: {why}")


def joined(*outcomes: Outcome) -> Outcome:
    """Supported if all are."""
    worst = max(outcomes, key=lambda outcome: outcome.verdict != SUPPORTED)
    return Outcome(worst.verdict, "; ".join(outcome.evidence for outcome in outcomes))
