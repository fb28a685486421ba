"""All experiments by name, in the paper's order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastsn.gan.config import Config, ConfigError
from fastsn.gan.experiments import catalog_gradients, catalog_quality
from fastsn.gan.experiments.scales import arms_of, runs_of
from fastsn.gan.experiments.spec import Experiment

__all__ = ["EXPERIMENTS", "find", "plan"]


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


def find(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names.

    Raises:
        ConfigError: there is none of a name; the message lists all.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise ConfigError(
                f"experiment: expected names of {', '.join(EXPERIMENTS)}; got {name!r}"
            )
    return [EXPERIMENTS[name] for name in dict.fromkeys(names)]


def plan(experiments: Iterable[Experiment], scale: str) -> dict[str, Config]:
    """The runs that experiments need at a scale, by name, each once."""
    return {
        config.run_name(): config
        for experiment in experiments
        for arm in arms_of(experiment, scale)
        for config in runs_of(arm, scale)
    }
