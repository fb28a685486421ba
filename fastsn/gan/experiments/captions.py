"""What figures and tables say of the runs they are made of: data, sizes, seeds, what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from fastsn.gan.config import Config
from fastsn.gan.experiments.records import Record
from fastsn.gan.experiments.spec import Arm, Experiment

__all__ = [
    "Runs",
    "counted",
    "data_title",
    "diverged",
    "divergences",
    "joined",
    "layer_titles",
    "missing",
    "row",
    "subtitle",
    "value_title",
]

#: The runs of the arms that have any.
Runs = Mapping[Arm, Sequence[Record]]

DATA = {
    "array": "images of a file",
    "celeba": "CelebA",
    "cifar10": "CIFAR10",
    "fashion_mini": "Fashion-MNIST (5,000 images)",
    "fashion_mnist": "Fashion-MNIST",
    "folder": "images of a folder",
    "imagenet": "ILSVRC2012",
    "mnist": "MNIST",
    "stl10": "STL10",
}
#: By the extractor: only Inception's numbers are IS and FID.
EVALUATIONS = {
    ("score", "inception"): "inception score",
    ("score", "classifier"): "classifier's score (not IS)",
    ("distance", "inception"): "FID",
    ("distance", "classifier"): "classifier's Fréchet distance (not FID)",
}
VALUES = {
    "conv_ratio": r"$\Vert$Conv$\Vert_{sp}$ / $\Vert w \Vert_{sp}$",
    "grad_norm": "gradient norm",
    "input_grad_norm": "gradient norm by the input",
    "log_variance_product": "log of the product of variances",
    "output_grad_norm": "gradient norm of D(x)",
    "variance": "parameter variance",
}
#: How many names a note lists before it only counts the others.
LISTED = 4


def data_title(name: str) -> str:
    return DATA.get(name, name)


def value_title(value: str, config: Config) -> str:
    """For an axis."""
    found = EVALUATIONS.get((value, config.eval.extractor))
    return found or VALUES.get(value, value.replace("_", " "))


def counted(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def joined(values: Iterable[Any]) -> str:
    """Different values, in the order they come."""
    return ", ".join(str(value) for value in dict.fromkeys(values))


def layer_titles(runs: Runs) -> dict[str, str]:
    """``layer 1`` and so on, by the names of the discriminator's weights.

    Layers of different networks that are drawn together go by their place.
    """
    titles: dict[str, str] = {}
    for records in runs.values():
        for record in records:
            names = dict.fromkeys(r["layer"] for r in record.diagnostics if r["layer"] != "all")
            for place, name in enumerate(names, start=1):
                titles.setdefault(name, f"layer {place}")
    return titles


def row(series: str, kind: str, n: int, **more: Any) -> dict[str, Any]:
    """A row of numbers drawn; what is not finite is None."""
    cells = {"series": series, "kind": kind, "n": n, **more}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in cells.items()
    }


def diverged(record: Record) -> bool:
    return any(event.get("reason") == "diverged" for event in record.events[-1:])


def divergences(runs: Runs) -> list[str]:
    """A note per arm with runs that diverged."""
    notes = []
    for arm, records in runs.items():
        steps = sorted(record.events[-1]["step"] for record in records if diverged(record))
        if steps:
            at = f"iteration {steps[0]:,}"
            if steps[-1] != steps[0]:
                at = f"iterations {steps[0]:,} to {steps[-1]:,}"
            part = f"{len(steps)} of {counted(len(records), 'run')}"
            notes.append(f"{full_label(arm)}: {part} diverged (cross), at {at}.")
    return notes


def full_label(arm: Arm) -> str:
    return " ".join(filter(None, (arm.series, arm.label if arm.label != arm.series else "")))


def missing(experiment: Experiment, runs: Runs) -> list[str]:
    """A note about the arms without runs, if there are any."""
    labels = [full_label(arm) for arm in experiment.arms if arm not in runs]
    if not labels:
        return []
    shown, rest = labels[:LISTED], len(labels) - LISTED
    more = f" and {rest} more of {len(experiment.arms)}" if rest > 0 else ""
    return [f"Not run: {', '.join(shown)}{more}."]


def subtitle(experiment: Experiment, runs: Runs) -> str:
    """Data, networks, iterations and seeds: ``Fashion-MNIST in place of CIFAR10, cnn32 at ...``."""
    configs = [record.config for records in runs.values() for record in records]
    data = joined(data_title(config.data.name) for config in configs)
    if {config.data.name for config in configs} != {experiment.data}:
        data += f" in place of {data_title(experiment.data)}"
    networks = joined(f"{c.model.name} at width {Fraction(c.model.width)}" for c in configs)
    steps = sorted({config.train.steps for config in configs})
    seeds = sorted({len(records) for records in runs.values()})
    iterations = " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1])))
    counts = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    parts = (
        data,
        networks,
        f"{iterations} iteration{'' if steps[-1] == 1 else 's'}",
        f"{counts} seed{'' if seeds[-1] == 1 else 's'}",
    )
    return ", ".join(parts)
