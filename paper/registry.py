"""All experiments and theory checks by name, in the paper's order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastsn.gan.config import Config, ConfigError
from paper import catalog_gradients, catalog_quality
from paper.scales import arms_of, runs_of
from paper.spec import Experiment
from paper.theory.checks import CHECKS, TheoryCheck

__all__ = ["EXPERIMENTS", "find", "names", "plan"]


def _order(experiment: Experiment) -> tuple[str, int]:
    kind = experiment.name.rstrip("0123456789")
    return kind, int(experiment.name.removeprefix(kind))


#: Name -> experiment.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in sorted(
        (*catalog_gradients.EXPERIMENTS, *catalog_quality.EXPERIMENTS), key=_order
    )
}


def names() -> list[str]:
    """Of all experiments, then of all theory checks."""
    return [*EXPERIMENTS, *CHECKS]


def find(wanted: Sequence[str]) -> tuple[list[Experiment], list[TheoryCheck]]:
    """The experiments and the theory checks of these names.

    Raises:
        ConfigError: there is none of a name; the message lists all.
    """
    for name in wanted:
        if name not in EXPERIMENTS and name not in CHECKS:
            raise ConfigError(
                f"experiment: expected all, or names of {', '.join(names())}; got {name!r}"
            )
    distinct = dict.fromkeys(wanted)
    return (
        [EXPERIMENTS[name] for name in distinct if name in EXPERIMENTS],
        [CHECKS[name] for name in distinct if name in CHECKS],
    )


def plan(experiments: Iterable[Experiment], scale: str) -> dict[str, Config]:
    """The runs that experiments need at a scale, by name, each once."""
    return {
        config.run_name(): config
        for experiment in experiments
        for arm in arms_of(experiment, scale)
        for config in runs_of(arm, scale)
    }
