"""The one way figures are drawn here, for ``fastsn report`` and for the paper: sheets of panels.

A sheet is written as a PNG file, the same bytes for the same numbers and the same matplotlib.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsn.gan.config import ConfigError
from fastsn.gan.run.checkpoint import replace_file

__all__ = [
    "BREACH",
    "GREY",
    "Sheet",
    "colour",
    "curve",
    "drawing",
    "legend",
    "limits",
    "mark_end",
    "set_log",
]

#: A colour blind safe cycle (Okabe and Ito), dark colours first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
#: Of what breaks a bound, and of what is said beside the data.
BREACH, GREY = "#C00000", "#555555"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
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
DPI = 100
#: Colours that a file keeps: enough for the palette and its edges, and a third of the bytes.
SHADES = 64
#: Relative differences that are not worth an axis of their own.
FLAT = 1e-2
#: Inches of a line of the title, and of the lines under it and of the notes.
LINE, NOTE = 0.21, 0.155


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib in this style, whatever the user's own.

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
    ) -> list[Any]:
        """Axes of ``n`` panels of ``size`` inches, ``columns`` in a row."""
        from matplotlib.figure import Figure

        lines = math.ceil(n / columns)
        self.across = math.ceil(n / lines)
        self._size = (size[0] * self.across, size[1] * lines)
        # Not pyplot: it keeps state, and picks a window system.
        self._figure = Figure(figsize=self._size, layout="constrained")
        axes = list(self._figure.subplots(lines, self.across, squeeze=False, sharey=same_y).flat)
        for unused in axes[n:]:
            unused.remove()
        return axes[:n]

    def resize(self, width: float, height: float) -> None:
        """Inches of all panels together, where their content tells them."""
        self._size = (width, height)

    def save(self, path: Path, title: str, subtitle: str = "") -> None:
        """Writes the file, whole or not at all."""
        from PIL import Image

        figure, (width, height) = self._figure, self._size
        columns = int(width * 16)
        head = textwrap.wrap(title, int(width * 12.6))
        under = textwrap.wrap(subtitle, columns)
        notes = [line for note in self.notes for line in textwrap.wrap(note, columns)]
        top = LINE * len(head) + NOTE * len(under) + 0.12
        bottom = NOTE * len(notes) + (0.08 if notes else 0.0)
        total = height + top + bottom
        figure.set_size_inches(width, total)
        figure.get_layout_engine().set(rect=(0, bottom / total, 1, height / total))
        at = total - 0.04
        for lines, step, options in (
            (head, LINE, {"fontsize": 10, "fontweight": "bold"}),
            (under, NOTE, {"fontsize": 8, "color": GREY}),
        ):
            for line in lines:
                figure.text(0.08 / width, at / total, line, va="top", **options)
                at -= step
        for index, note in enumerate(notes):
            y = (bottom - 0.02 - NOTE * index) / total
            figure.text(0.08 / width, y, note, va="top", fontsize=7.5, color=GREY)
        drawn, content = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, dpi=DPI, format="png")
        Image.open(drawn).convert("RGB").quantize(SHADES).save(content, "PNG", optimize=True)
        replace_file(path, content.getvalue())


# Parts of panels


def curve(
    axes: Any,
    xs: Sequence[float],
    ys: Sequence[float],
    label: str,
    index: int,
    *,
    dashed: bool = False,
    whole: int | None = None,
) -> None:
    """A line in the colour of its index, dotted from point number ``whole`` on."""
    # Dashes tell curves apart when colours come round again.
    dashes = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))[index // len(COLOURS) % 3]
    style: dict[str, Any] = {"color": colour(index), "markersize": 3}
    style["marker"] = "" if dashed or len(ys) >= 12 else "o"
    whole = len(ys) if whole is None else whole
    axes.plot(xs[:whole], ys[:whole], linestyle="--" if dashed else dashes, label=label, **style)
    if whole < len(ys):
        start = max(whole - 1, 0)
        axes.plot(xs[start:], ys[start:], linestyle=":", **style)


def mark_end(axes: Any, x: float, y: float, index: int, **options: Any) -> None:
    """The cross where a run diverged."""
    axes.plot(
        [x], [y], marker="X", markersize=8, color=colour(index), markeredgecolor="white", **options
    )


def set_log(axes: Any, values: Sequence[float]) -> bool:
    """A logarithmic axis; values that are not positive lie on its lower end.

    Returns:
        Whether there are such values. The axis stays linear if there are only such.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return False
    axes.set_yscale("log", nonpositive="clip")
    return len(positive) < len(values)


def limits(axes: Any, values: Sequence[float]) -> None:
    """Limits of the y axis: of a logarithmic one those of the values alone, so that no band
    stretches it; and wide ones for values that differ by rounding."""
    known = [value for value in values if math.isfinite(value)]
    if axes.get_yscale() == "log":
        known = [value for value in known if value > 0]
    if not known:
        return
    if axes.get_yscale() == "log":
        low, high = min(known), max(known)
        room = max(math.log10(high / low) * 0.06, 0.06)
        axes.set_ylim(low / 10**room, high * 10**room)
    elif max(known) - min(known) < FLAT * max(map(abs, known)):
        room = 10 * FLAT * abs(known[0])
        axes.set_ylim(known[0] - room, known[0] + room)


def legend(axes: Any, **options: Any) -> None:
    """A legend inside the panel, or beside it if it has many entries; its marks are opaque."""
    _, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    if len(labels) > 5 and not options:
        options = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    for handle in axes.legend(**options).legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
