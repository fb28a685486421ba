"""The README's benchmark plots, two for every result file: ``python -m benchmarks.report``.

How many times faster than torch each contender is, and what share it reaches of the speed that the
machine's memory allows. Bars in the SVG carry ids, so that a test can read their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from benchmarks.peers import CONTENDERS, MODES
from benchmarks.workloads import WORKLOADS

__all__ = ["PLOTS", "Plot", "bars", "device_name", "draw", "figure_of"]

MODES_DRAWN = ("forward", "forward_backward")

#: Contenders from top to bottom, with the colours of Okabe and Ito: told apart by the colour-blind,
#: and by their brightness. Who is not in a result file is left out.
COLORS = {
    "fastsn": "#0072b2",
    "fastsn-bsn": "#56b4e9",
    "torch": "#000000",
    "torch-graphs": "#999999",
    "stacked": "#009e73",
    "plain-bsn": "#e69f00",
    "plain-bsn-graphs": "#d55e00",
}
METHODS = {"sn": "SN", "bsn": "BSN"}


@dataclass(frozen=True)
class Plot:
    """One kind of plot.

    Attributes:
        against: the contender whose time over a bar's own is the bar's length.
        title: what that is.
        line: over the line at 1.
        percent: how lengths are written; else as multiples.
    """

    against: str
    title: str
    line: str
    percent: bool


PLOTS = {
    "speed-up": Plot(
        "torch", "Times faster than torch's parametrization (SN)", "as fast as torch", False
    ),
    "roofline": Plot(
        "traffic", "Share of the speed that memory allows SN", "the least memory traffic", True
    ),
}


def device_name(result: dict[str, Any]) -> str:
    """The device that a result file was recorded on."""
    machine = result["machine_info"]
    return machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"


def bars(result: dict[str, Any], plot: Plot) -> dict[tuple[str, str, str], float]:
    """Lengths of a plot's bars, by workload, mode and contender: all that the file has."""
    lengths = {}
    for entry in result["benchmarks"]:
        info = entry["extra_info"]
        key = (info["workload"], info["mode"], info["contender"])
        ratio = info.get("times_faster_than", {}).get(plot.against)
        if ratio is not None and info["contender"] in COLORS and info["mode"] in MODES_DRAWN:
            lengths[key] = float(ratio)
    return {key: lengths[key] for key in _order() if key in lengths}


def draw(result: dict[str, Any], name: str, path: Path) -> None:
    """Draws plot ``name`` of a result file; the same bytes for the same numbers and matplotlib."""
    settings = {"svg.hashsalt": "fastsn", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure_of(result, PLOTS[name]).savefig(path, metadata={"Date": None})


def figure_of(result: dict[str, Any], plot: Plot) -> Figure:
    """A plot of a result file."""
    lengths = bars(result, plot)
    if not lengths:
        raise ValueError(f"expected times against {plot.against!r} in the results, got none")
    workloads = [w for w in WORKLOADS if any(key[0] == w for key in lengths)]
    contenders = [c for c in COLORS if any(key[2] == c for key in lengths)]
    rows = len(workloads) * (len(contenders) + 1)
    figure = Figure(figsize=(9.5, 1.5 + 0.11 * len(contenders) + 0.21 * rows), layout="constrained")
    panels = figure.subplots(1, len(MODES_DRAWN), sharey=True, sharex=True)
    for axes, mode in zip(panels, MODES_DRAWN, strict=True):
        own = {(w, c): value for (w, m, c), value in lengths.items() if m == mode}
        _panel(axes, plot, mode, own, workloads, contenders)
    panels[0].set_xlim(0, 1.14 * max(*lengths.values(), 1))
    panels[0].set_ylim(rows - 1.4, -0.6)  # from the top down
    figure.suptitle(f"{plot.title}\n{device_name(result)}", fontsize=11)
    handles = [Patch(color=COLORS[c], label=_label(c)) for c in contenders]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panel(
    axes: Axes,
    plot: Plot,
    mode: str,
    own: dict[tuple[str, str], float],
    workloads: list[str],
    contenders: list[str],
) -> None:
    step = len(contenders) + 1
    for i, workload in enumerate(workloads):
        for j, contender in enumerate(contenders):
            if (workload, contender) not in own:
                continue
            value = own[workload, contender]
            (bar,) = axes.barh(i * step + j, value, height=0.86, color=COLORS[contender])
            bar.set_gid(f"bar.{workload}.{mode}.{contender}")
            text = f"{value:.0%}" if plot.percent else f"{value:.{int(value < 10)}f}x"
            axes.annotate(
                text, (value, i * step + j), (3, 0), textcoords="offset points", va="center",
                fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axes.axvline(1, color="#444444", linewidth=1, linestyle="--", zorder=0).set_gid(f"one.{mode}")
    axes.annotate(
        plot.line, (1, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="center", fontsize=8, color="#444444",
    )  # fmt: skip
    centers = [i * step + (len(contenders) - 1) / 2 for i in range(len(workloads))]
    axes.set_yticks(centers, [WORKLOADS[w].title.replace(", ", "\n", 1) for w in workloads])
    axes.tick_params(axis="y", length=0)
    if plot.percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(MODES[mode].title)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _label(contender: str) -> str:
    described = CONTENDERS[contender]
    return f"{METHODS[described.method]}: {described.title}"


def _order() -> Iterator[tuple[str, str, str]]:
    return ((w, mode, c) for w in WORKLOADS for mode in MODES_DRAWN for c in COLORS)
