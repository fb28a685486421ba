"""What figures and tables say of the runs they are made of: data, sizes, seeds, what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastsn.gan.config import Config
from paper.catalog import NAMES, Arm, Experiment, arms_of, setting
from paper.records import Record, RecordError, diverged, pick

#: The runs of the arms that have any.
Runs = Mapping[Arm, Sequence[Record]]

#: By the extractor: only Inception's numbers are IS and FID.
EVALUATIONS = {
    ("score", "inception"): "inception score",
    ("score", "classifier"): "classifier's score (not IS)",
    ("distance", "inception"): "FID",
    ("distance", "classifier"): "classifier's Fréchet distance (not FID)",
}
VALUES = {
    "conv_ratio": r"$\Vert$Conv$\Vert_{sp}$ / $\Vert w \Vert_{sp}$",
    "grad_norm": "gradient norm of D's loss",
    "input_grad_norm": "gradient norm by the input",
    "log_variance_product": "log of the product of variances",
    "output_grad_norm": "gradient norm of D(x)",
    "variance": "parameter variance",
}
#: How many names a note lists before it only counts the others.
LISTED = 4


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


def failures(runs: Runs, *, cross: bool = False, last: str = "") -> list[str]:
    """A note per arm with runs that diverged, which a cross may mark, or whose ``last`` value is
    not finite."""
    notes = []
    for arm, records in runs.items():
        steps = sorted(record.events[-1]["step"] for record in records if diverged(record))
        if steps:
            at = f"iteration {steps[0]:,}"
            if steps[-1] != steps[0]:
                at = f"iterations {steps[0]:,} to {steps[-1]:,}"
            mark = " (cross)" if cross else ""
            part = f"{len(steps)} of {counted(len(records), 'run')}"
            notes.append(f"{full_label(arm)}: {part} diverged{mark}, at {at}.")
        lost = [r for r in records if last and not diverged(r) and pick(r, last, "last") is None]
        if lost:
            part = f"{len(lost)} of {counted(len(records), 'run')}"
            notes.append(f"{full_label(arm)}: {part} without a finite {last} at the end.")
    return notes


def full_label(arm: Arm) -> str:
    """An arm's label, with what its series and place on it add: ``SN (CIFAR10)``."""
    more = [arm.series] if arm.series and arm.label.split()[0] not in arm.series else []
    if arm.x is not None and f"{arm.x:g}" not in arm.label:
        more.append(f"{arm.x:g}")
    return f"{arm.label} ({', '.join(more)})" if more else arm.label


def missing(experiment: Experiment, runs: Runs, size: str) -> list[str]:
    """Notes about arms that this size leaves out, and about arms without runs."""
    planned = arms_of(experiment, size)
    notes = []
    if len(planned) < len(experiment.arms):
        notes.append(
            f"At this size {len(planned)} of the {len(experiment.arms)} settings of full size "
            "are run."
        )
    labels = [full_label(arm) for arm in planned if arm not in runs]
    if labels:
        shown, rest = labels[:LISTED], len(labels) - LISTED
        more = f" and {rest} more of {len(planned)}" if rest > 0 else ""
        notes.append(f"Not run yet: {', '.join(shown)}{more}.")
    return notes


def title_of(experiment: Experiment) -> str:
    """``Figure 5: ...``."""
    return f"{experiment.source.rpartition(', ')[2]}: {experiment.title}"


def subtitle(experiment: Experiment, runs: Runs, size: str) -> str:
    """Data, size and seeds."""
    seeds = sorted({len(records) for records in runs.values()})
    counts = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    data = setting(experiment, size) or f"{NAMES[experiment.data]}, at full size"
    return f"{data}, {counts} seed{'' if seeds[-1] == 1 else 's'}"


def check_protocols(where: str, runs: Runs, *, by_series: bool = False) -> None:
    """Numbers of evaluations that are not comparable are not drawn together.

    Raises:
        RecordError: two of the runs were evaluated by different protocols.
    """
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for arm, record, protocol in _protocols(runs):
        name, other = first.setdefault(arm.series if by_series else "", (record.name, protocol))
        # Records of earlier versions say less of the real images.
        unlike = [key for key in protocol.keys() & other.keys() if protocol[key] != other[key]]
        if unlike:
            key = sorted(unlike)[0]
            raise RecordError(
                f"{where}: expected runs that were evaluated alike, got {key} {other[key]!r} of "
                f"{name} and {protocol[key]!r} of {record.name}"
            )


def _protocols(runs: Runs) -> Iterator[tuple[Arm, Record, dict[str, Any]]]:
    for arm, records in runs.items():
        for record in records:
            for metrics in record.metrics:
                yield arm, record, metrics.get("protocol") or {}
