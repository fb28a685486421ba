"""The figures of a report: one table of them, and one way to draw each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsn.gan.config import ConfigError
from fastsn.gan.measure.diagnostics import WHOLE

if TYPE_CHECKING:
    from fastsn.gan.report import RunFiles

__all__ = ["FIGURES", "Curve", "Figure", "save_figure"]


#: The label of a curve that the legend leaves out: a bound, beside what it bounds.
HIDDEN = "_"


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        label: in the legend; "" is the run alone.
        thing: what it is about: curves of a run with the same one have the same colour.
        steps, values: its points.
        dashed: tells it from the other curves of its thing.
    """

    label: str
    thing: str
    steps: list[int]
    values: list[float]
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: of its file.
        title: over it.
        panels: titles of its panels, and the curves of a run in each.
        log: logarithmic values.
    """

    name: str
    title: str
    panels: Sequence[tuple[str, Curves]]
    log: bool = False


#: The curves of a run in one panel.
Curves = Callable[["RunFiles"], list[Curve]]


def _logged(solid: str, dashed: str = "") -> Curves:
    """Columns of the log, labelled by the ends of their names."""

    def curves(run: RunFiles) -> list[Curve]:
        return [
            curve
            for name in filter(None, (solid, dashed))
            for curve in _curve(
                name.rpartition("_")[2] if dashed else "", "", run.log, name, name == dashed
            )
        ]

    return curves


def _whole(name: str) -> Curves:
    def curves(run: RunFiles) -> list[Curve]:
        return _curve("", "", [row for row in run.diagnostics if row["layer"] == WHOLE], name)

    return curves


def _by_layer(name: str, *bounds: str) -> Curves:
    """A curve per layer, and dashed ones for its bounds."""

    def curves(run: RunFiles) -> list[Curve]:
        found = []
        layers = dict.fromkeys(row["layer"] for row in run.diagnostics)
        for layer in (layer for layer in layers if layer != WHOLE):
            rows = [row for row in run.diagnostics if row["layer"] == layer]
            found += _curve(layer, layer, rows, name)
            for bound in bounds:
                found += _curve(HIDDEN, layer, rows, bound, dashed=True)
        return found

    return curves


def _metrics(*prefixes: str) -> Curves:
    def curves(run: RunFiles) -> list[Curve]:
        names = [name for row in run.metrics[:1] for name in row if name.startswith(prefixes)]
        return [
            curve
            for name in names
            if not name.endswith("_std")
            for curve in _curve(name, name, run.metrics, name)
        ]

    return curves


def _curve(
    label: str, thing: str, rows: list[dict[str, Any]], name: str, dashed: bool = False
) -> list[Curve]:
    # Rows hold what is not finite as a string, which float reads.
    known = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
    if not known:
        return []
    steps, values = zip(*known, strict=True)
    return [Curve(label, thing, list(steps), list(values), dashed)]


FIGURES = (
    Figure(
        "losses",
        "Losses and scores",
        (
            ("loss (D; dashed: G)", _logged("loss_d", "loss_g")),
            ("mean score (dashed: generated)", _logged("score_real", "score_fake")),
        ),
    ),
    Figure(
        "metrics",
        "Metrics",
        (("distance", _metrics("fid_", "frechet_")), ("score", _metrics("is_", "score_"))),
    ),
    Figure(
        "gradients",
        "Gradient norms",
        (
            ("by all weights of D", _whole("grad_norm")),
            ("by D's input, mean over images", _whole("input_grad_norm")),
        ),
        log=True,
    ),
    Figure(
        "layers",
        "Layers of the discriminator",
        (
            ("gradient norm", _by_layer("grad_norm")),
            ("parameter variance (dashed: its bound)", _by_layer("variance", "variance_bound")),
        ),
        log=True,
    ),
    Figure(
        "norms",
        "Spectral norms",
        (
            ("sigma over its exact value", _by_layer("ratio")),
            ("norm of the convolution (dashed: bounds)", _by_layer("conv_norm", "conv_upper")),
        ),
        log=True,
    ),
    Figure("speed", "Speed", (("iterations per second", _logged("steps_per_s")),)),
)

#: A colour blind safe cycle (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")


def save_figure(figure: Figure, runs: Sequence[RunFiles], path: Path) -> bool:
    """Draws a figure; returns False, and writes nothing, where the runs have nothing for it.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ConfigError(
            f"expected the package matplotlib, got: {error}: pip install 'fastsn[gan]'"
        ) from error
    drawn = [
        (title, [(run, curve) for run in runs for curve in curves(run)])
        for title, curves in figure.panels
    ]
    drawn = [(title, lines) for title, lines in drawn if lines]
    if not drawn:
        return False
    # Not pyplot: it keeps state, and picks a window system.
    canvas = Canvas(figsize=(5.2 * len(drawn), 3.6), layout="constrained")
    panels = canvas.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (title, lines) in zip(panels, drawn, strict=True):
        things = list(dict.fromkeys((run.name, curve.thing) for run, curve in lines))
        for run, curve in lines:
            label = curve.label if len(runs) == 1 else f"{run.name} {curve.label}".strip()
            axes.plot(
                curve.steps,
                curve.values,
                "--" if curve.dashed else "-",
                marker="." if len(curve.steps) < 30 else "",
                color=COLOURS[things.index((run.name, curve.thing)) % len(COLOURS)],
                linewidth=1.3,
                label="_" if curve.label == HIDDEN else label,
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration", fontsize=9)
        axes.tick_params(labelsize=8, which="both")
        axes.grid(alpha=0.25)
        if figure.log and all(value > 0 for _, curve in lines for value in curve.values):
            axes.set_yscale("log")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7)
    canvas.savefig(path, dpi=90, metadata={"Software": ""})
    return True
