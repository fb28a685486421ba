"""Small texts beside points, where they cover no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SIZE = 6.5
#: Where a text may begin, in points from its point: near places first.
PLACES = [
    (dx * reach, dy * reach)
    for reach in (1.0, 1.9, 3.0)
    for dx, dy in ((5, 0), (-5, 0), (0, 6), (0, -6), (4, 5), (4, -5), (-4, 5), (-4, -5))
]

Box = tuple[float, float, float, float]


def place_labels(axes: Axes, marks: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes ``(x, y, text, colour)`` beside their points.

    Each text takes the first place free of points and of the texts before it, or the one that
    covers least.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # the layout is known after this
    to_points = 72.0 / figure.dpi
    at = [axes.transData.transform((x, y)) * to_points for x, y, _, _ in marks]
    taken: list[Box] = [(x - 2.5, y - 2.5, x + 2.5, y + 2.5) for x, y in at]
    frame = [float(edge) * to_points for edge in axes.get_window_extent().extents]
    for (x, y), (data_x, data_y, text, shown) in zip(at, marks, strict=True):
        width, height = 0.62 * SIZE * len(text), 0.95 * SIZE
        best: tuple[float, float, float, Box] | None = None
        for dx, dy in PLACES:
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            low = y + dy - height / 2
            box = (left, low, left + width, low + height)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, frame)
            if best is None or cost < best[0]:
                best = (cost, dx, dy, box)
        assert best is not None
        _, dx, dy, box = best
        taken.append(box)
        axes.annotate(
            text,
            (data_x, data_y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="center",
            fontsize=SIZE,
            color=shown,
        )


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: Sequence[float]) -> float:
    """Large if a text would leave the panel."""
    inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
    return 0.0 if inside else 1e3
