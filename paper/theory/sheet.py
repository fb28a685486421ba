"""The sheet that the figure of a check is drawn on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsn.gan.config import ConfigError
from fastsn.gan.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BOUND", "BREACH", "PALETTE", "breaches", "legend", "limit", "sheet"]

#: Of bounds, and of what breaks them.
BOUND, BREACH = "#000000", "#C00000"
PALETTE = tuple(colour for colour in COLOURS if colour != BOUND)

_STYLE: Any = {
    "svg.hashsalt": "fastsn",  # the same picture is the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "legend.fontsize": 8,
    "lines.markersize": 4.5,
}


@contextmanager
def sheet(path: Path, title: str, widths: tuple[float, ...], height: float = 4.0) -> Iterator[Any]:
    """Panels of ``widths`` inches side by side, written to ``path`` at the end.

    Yields:
        A list of axes.

    Raises:
        ConfigError: matplotlib is missing, or the suffix of ``path`` is neither .png nor .svg.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"expected the package matplotlib, got: {error}: pip install 'fastsn[gan]'"
        ) from error
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"expected a figure's path to end in .png or .svg, got {path}")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # Not pyplot: it keeps state, and picks a window system.
        figure = Figure(figsize=(sum(widths), height), layout="constrained")
        panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        yield list(panels)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        unnamed = {"Software": ""} if path.suffix == ".png" else {"Date": None, "Creator": None}
        figure.savefig(path, dpi=110, metadata=unnamed)


def limit(axes: Axes, y: float, label: str) -> None:
    """A bound, as a line across the panel."""
    axes.axhline(y, color=BOUND, linewidth=1.2, linestyle="--", label=label, zorder=3)


def breaches(axes: Axes, xs: list[float], ys: list[float], label: str) -> None:
    """Rings around the points that break a bound."""
    if xs:
        axes.plot(
            xs, ys, "o", markersize=9, markerfacecolor="none", markeredgecolor=BREACH,
            markeredgewidth=1.1, label=label, zorder=4,
        )  # fmt: skip


def legend(axes: Axes, **options: Any) -> None:
    """A legend whose marks are opaque, whatever the points are."""
    for handle in axes.legend(**options).legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
