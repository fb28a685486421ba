"""The sheet that a figure is drawn on: panels, legends, marks, title and notes, and its files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsn.gan.config import ConfigError
from paper.statistics import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Sheet", "colour", "drawing"]

#: A colour blind safe cycle (Okabe and Ito), dark colours first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fastsn",  # the same picture is the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "legend.fontsize": 7.5,
    "legend.framealpha": 0.8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "axes.formatter.limits": (-2, 5),
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": True,
    "image.interpolation": "nearest",
}
DPI = 110
#: Relative differences that are not worth an axis of their own.
FLAT = 1e-2
#: Inches of a line of the title, and of the lines under it and of the notes.
LINE, NOTE = 0.21, 0.155


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib in the figures' style, whatever the user's own.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            f"expected the package matplotlib, got: {error}: pip install 'fastsn[gan]'"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> Any:
    """Tells curves apart when colours come round again."""
    return ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))[index // len(COLOURS) % 3]


@dataclass
class Sheet:
    """What one figure is made of.

    Attributes:
        rows: the numbers drawn, for files and tests; finite, or None.
        notes: what the reader must be told: runs that are missing or diverged.
        across: panels in a row.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    across: int = 1
    _size: tuple[float, float] = (6.0, 3.7)
    _figure: Any = None

    def panels(
        self,
        n: int,
        size: tuple[float, float] = (6.0, 3.6),
        columns: int = 4,
        *,
        same_y: bool = False,
    ) -> list[Axes]:
        """``n`` panels of ``size`` inches, ``columns`` in a row, with one y axis or several."""
        from matplotlib.figure import Figure

        lines = math.ceil(n / columns)
        across = math.ceil(n / lines)
        self.across = across
        self._size = (size[0] * across, size[1] * lines)
        # Not pyplot: it keeps state, and picks a window system.
        self._figure = Figure(figsize=self._size, layout="constrained")
        grid = self._figure.subplots(lines, across, squeeze=False, sharey=same_y)
        axes = list(grid.flat)
        for unused in axes[n:]:
            unused.remove()
        return axes[:n]

    def resize(self, width: float, height: float) -> None:
        """Inches of all panels together, where their content tells them."""
        self._size = (width, height)

    def save(self, path: Path, title: str, subtitle: str) -> None:
        """Writes ``path.png`` and ``path.svg``, the same bytes for the same numbers."""
        figure, (width, height) = self._figure, self._size
        columns = int(width * 16)
        head = textwrap.wrap(title, int(width * 12.6))
        under = textwrap.wrap(subtitle, columns)
        notes = [line for note in self.notes for line in textwrap.wrap(note, columns)]
        top, bottom = LINE * len(head) + NOTE * len(under) + 0.12, NOTE * len(notes)
        bottom += 0.08 if notes else 0.0
        total = height + top + bottom
        figure.set_size_inches(width, total)
        figure.get_layout_engine().set(rect=(0, bottom / total, 1, height / total))
        at = total - 0.04
        for lines, step, options in (
            (head, LINE, {"fontsize": 10, "fontweight": "bold"}),
            (under, NOTE, {"fontsize": 8, "color": "#555555"}),
        ):
            for line in lines:
                figure.text(0.08 / width, at / total, line, va="top", **options)
                at -= step
        for index, note in enumerate(notes):
            y = (bottom - 0.02 - NOTE * index) / total
            figure.text(0.08 / width, y, note, va="top", fontsize=7.5, color="#555555")
        png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
        figure.savefig(png, dpi=DPI, metadata={"Software": ""})
        figure.set_layout_engine("none")  # it is laid out, which takes most of the time
        figure.savefig(svg, metadata={"Date": None, "Creator": None})


# Parts of panels


def line(axes: Axes, points: Sequence[Mean], label: str, index: int) -> None:
    """A mean with its band; dotted where fewer runs are left than at the beginning."""
    if not points:
        return
    most = max(point.n for point in points)
    whole = next((i for i, point in enumerate(points) if point.n < most), len(points))
    # A run may also lack a value in between: dotted from there on is still true.
    style: dict[str, Any] = {
        "color": colour(index),
        "marker": "o" if len(points) < 12 else "",
        "markersize": 3,
    }
    xs, ys = [point.x for point in points], [point.mean for point in points]
    axes.plot(xs[:whole], ys[:whole], linestyle=dashes(index), label=label, **style)
    if whole < len(points):
        start = max(whole - 1, 0)
        axes.plot(xs[start:], ys[start:], linestyle=":", **style)
    if any(point.stderr for point in points):
        low, high = [point.low for point in points], [point.high for point in points]
        if axes.get_yscale() == "log":  # a band that reaches below zero goes on to the axis
            low = [max(value, 1e-3 * y) if y > 0 else y for value, y in zip(low, ys, strict=True)]
        axes.fill_between(xs, low, high, color=colour(index), alpha=0.2, linewidth=0)


def mark_end(axes: Axes, x: float, y: float, index: int) -> None:
    """The cross where a run diverged."""
    axes.plot([x], [y], marker="X", markersize=8, color=colour(index), markeredgecolor="white")


def reach(points: Sequence[Mean]) -> list[float]:
    """What an axis must show of means: the values, and of their bands all but what is far below."""
    lows = [max(m.low, m.mean / 3) if m.mean > 0 else m.low for m in points]
    return [*(m.mean for m in points), *(m.high for m in points), *lows]


def set_log(axes: Axes, values: Sequence[float]) -> bool:
    """A logarithmic axis; values that are not positive lie on its lower end.

    Returns:
        Whether there are such values. The axis stays linear if there are only such.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return False
    axes.set_yscale("log", nonpositive="clip")
    return len(positive) < len(values)


def limits(axes: Axes, values: Sequence[float]) -> None:
    """Limits of the y axis: of a logarithmic one those of the values alone, so that no band
    stretches it; and wide ones for values that differ by rounding."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return
    if axes.get_yscale() == "log":
        known = [value for value in known if value > 0]
        low, high = min(known), max(known)
        room = max(math.log10(high / low) * 0.06, 0.06)
        axes.set_ylim(low / 10**room, high * 10**room)
    elif max(known) - min(known) < FLAT * max(map(abs, known)):
        room = 10 * FLAT * abs(known[0])
        axes.set_ylim(known[0] - room, known[0] + room)


def legend(axes: Axes, n: int = 0) -> None:
    """A legend inside the panel, or beside it if it has many entries."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    if len(labels) > 5:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    else:
        axes.legend()
