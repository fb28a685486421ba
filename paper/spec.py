"""What an experiment is: its runs, what is measured in them, and how that is drawn. Data alone.

Values are named as the runs name them. Of the network (:func:`fastsn.gan.measure.diagnostics.diagnose`, row
``all``): ``grad_norm``, ``output_grad_norm``, ``input_grad_norm``, ``log_variance_product``. Of the
evaluations: ``score`` and ``distance``, whose real names depend on the extractor. Per layer:
``grad_norm``, ``output_grad_norm``, ``variance``, ``conv_ratio`` (norm of the convolution over that
of the reshaped kernel), and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Arm",
    "Bars",
    "Curves",
    "Experiment",
    "LayerBars",
    "LayerCurves",
    "NormRatios",
    "Options",
    "Plot",
    "Samples",
    "Sweep",
    "Table",
    "VarianceScatter",
]


@dataclass(frozen=True)
class Arm:
    """One curve or point of a figure: runs with the same options and several seeds.

    Attributes:
        label: in the legend.
        preset: what the runs start from, as ``paper/cifar10_sn``.
        options: changes to it by dotted name, as ``{"norm.scale": 1.75}``.
        series: the line, or group of bars, it belongs to, where arms are parts of those; else "".
        x: where it is on that line.
        sizes: the scales of :data:`.scales.SCALES` that it is run at.
        seeds: at most this many at any scale; 0: it is no run, only options to be shown.
    """

    label: str
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    series: str = ""
    x: float | None = None
    sizes: tuple[str, ...] = ("full", "small", "smoke")
    seeds: int | None = None


@dataclass(frozen=True)
class Curves:
    """A value of the network or of the evaluations over iterations: mean and standard error of the
    seeds, a curve per arm."""

    value: str
    log: bool = False


@dataclass(frozen=True)
class LayerCurves:
    """A value of each layer over iterations: a panel per arm, a curve per layer, mean and standard
    error.

    Attributes:
        bounds: values drawn dashed, in the colour of their layer.
        panels: ``"arms"``, or ``"layers"``: a panel per layer with a curve per arm (Figure 2).
    """

    value: str
    bounds: tuple[str, ...] = ()
    log: bool = False
    panels: str = "arms"


@dataclass(frozen=True)
class LayerBars:
    """A value of each layer at one moment: a group of bars per layer, a bar per arm.

    Attributes:
        moment: part of the iterations, in (0, 1].
    """

    value: str
    moment: float
    log: bool = False


@dataclass(frozen=True)
class Sweep:
    """A value over :attr:`Arm.x`: a line per :attr:`Arm.series`, standard errors as bars.

    Attributes:
        pick: ``"last"`` value of a run, or ``"best"``.
    """

    value: str
    x_label: str
    pick: str = "last"
    log_x: bool = False


@dataclass(frozen=True)
class NormRatios:
    """Ratios of the layers' gradient norms over inverse ratios of their spectral norms (Figure 3).

    A point per run, moment and layer ``i > 1``: ``|dD/dW_i| / |dD/dW_1|`` over
    ``||W_1|| / ||W_i||``, of the weights as the layers use them.
    """


@dataclass(frozen=True)
class VarianceScatter:
    """Score over the logarithm of the product of the layers' variances, at each run's best score; a
    colour per :attr:`Arm.series`, points marked by :attr:`Arm.x` (Figure 23)."""


@dataclass(frozen=True)
class Bars:
    """Best value of each arm as bars with standard errors: a group per :attr:`Arm.series`, a bar
    per label (Figures 24 to 26)."""

    value: str


@dataclass(frozen=True)
class Samples:
    """Samples of the run with the best value over all arms and seeds."""

    value: str


@dataclass(frozen=True)
class Table:
    """Mean and standard error per method and data set, with the paper's own numbers beside them.

    :attr:`Arm.label` is the row, :attr:`Arm.series` the data set; of several arms with the same of
    both, the one with the best mean counts, as in the paper.

    Attributes:
        number: of the table in the paper, for its numbers in ``paper.yaml``.
    """

    number: int
    values: tuple[str, ...] = ("score", "distance")


@dataclass(frozen=True)
class Options:
    """Options of the arms, a row for each, from no runs at all (Table 7)."""

    names: tuple[str, ...]


Plot = (
    Curves
    | LayerCurves
    | LayerBars
    | Sweep
    | NormRatios
    | VarianceScatter
    | Bars
    | Samples
    | Table
    | Options
)


@dataclass(frozen=True)
class Experiment:
    """One figure or table of the paper.

    Attributes:
        name: ``fig5``, ``table1``.
        title: what it shows, in our words.
        source: where it is in the paper.
        data: the paper's data set, as ``cifar10``.
        arms: the runs.
        plot: how they are drawn.
    """

    name: str
    title: str
    source: str
    data: str
    arms: tuple[Arm, ...]
    plot: Plot
