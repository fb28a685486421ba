"""What a check of a theorem is, how its rows are judged, and how they are drawn."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastsn.gan.plotting import BREACH, GREY, Sheet, colour, legend

#: One case of a check: a flat dict of JSON's types. ``claim`` groups the cases of one statement.
Row = dict[str, Any]

#: ``full``: a dense grid, minutes. ``small``: tens of seconds. ``smoke``: a second or two.
SIZES = ("full", "small", "smoke")

#: Bounds that are attained are met up to rounding, in float64.
ROUNDING = 1e-9
#: The lowest value on logarithmic axes.
FLOOR = 1e-17
MARKERS = ("o", "s", "^", "v", "D", "P")


@dataclass(frozen=True)
class Verdict:
    """Whether a statement held in all cases that were looked at.

    Attributes:
        statement: with its conditions.
        holds: no case was found against it. No proof: these are numbers.
        checked: number of cases.
        worst: largest ratio of a value to its upper bound, or of a lower bound to its value: above
            1 the statement fails.
        counterexample: the case with that ratio, if the statement fails.
        note: what it means, in plain words.
        printed: whether it is a result as the paper prints it; else it is ours, a step of a proof,
            or the paper's result under other conditions.
        parts: of a summary, the verdicts it is made of.
    """

    statement: str
    holds: bool
    checked: int
    worst: float
    counterexample: Row | None = None
    note: str = ""
    printed: bool = True
    parts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Check:
    """A statement of the paper, checked on numbers, without training.

    Attributes:
        title: what it shows.
        source: where the paper states it.
        rows: ``(size, seed) -> rows``: the same rows for the same arguments.
        panels: of rows, how they are drawn.
        verdict: judges the rows, those read from a file as well.
    """

    title: str
    source: str
    rows: Callable[[str, int], list[Row]]
    panels: Callable[[Sequence[Row]], list[Panel]]
    verdict: Callable[[Sequence[Row]], Verdict]


def check_size(size: str) -> str:
    if size not in SIZES:
        raise ValueError(f"expected a size in {SIZES}, got {size!r}")
    return size


def generator(seed: int, *case: object) -> torch.Generator:
    """Random numbers of one case, that do not depend on what other cases there are."""
    return torch.Generator().manual_seed(zlib.crc32(repr((seed, *case)).encode()))


def of(rows: Sequence[Row], **cells: Any) -> list[Row]:
    """The rows with these cells."""
    return [row for row in rows if all(row[name] == value for name, value in cells.items())]


# Judging


def judge(
    statement: str,
    rows: Sequence[Row],
    value: str = "value",
    bound: str = "upper",
    *,
    holds: str = "",
    fails: str = "",
    printed: bool = True,
) -> Verdict:
    """The verdict on ``value <= bound`` in every row, by the names of columns.

    A lower bound is judged with the two exchanged. ``holds`` and ``fails`` are the notes for the
    one outcome and for the other.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError(f"expected rows for {statement!r}, got none")
    ratios = [_ratio(row[value], row[bound]) for row in rows]
    worst = max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else ratio)
    kept = worst <= 1 + ROUNDING
    found = None if kept else dict(rows[ratios.index(worst)])
    return Verdict(statement, kept, len(rows), worst, found, holds if kept else fails, printed)


def _ratio(value: float, bound: float) -> float:
    """A nan is no bound that held, and nothing but zero is below a bound of zero."""
    if bound == 0:
        return 0.0 if value == 0 else math.inf
    return value / bound


def times(verdict: Verdict) -> str:
    """``up to 1.42 times it``."""
    return f"up to {verdict.worst:.2f} times it"


def summary(statement: str, parts: Sequence[Verdict]) -> Verdict:
    """One verdict on what the paper prints: it holds if all of its printed parts do.

    ``checked``, ``worst`` and ``counterexample`` are those of the printed parts.
    """
    printed = [part for part in parts if part.printed]
    worst = max(printed, key=lambda part: part.worst)
    failing = [part for part in printed if not part.holds]
    note = (
        "No case against it."
        if not failing
        else "Cases against it: "
        + "; ".join(
            f"{part.statement} ({times(part)})" if part.worst < 1e6 else part.statement
            for part in failing
        )
    )
    return Verdict(
        statement,
        not failing,
        sum(part.checked for part in printed),
        worst.worst,
        worst.counterexample,
        note,
        parts=tuple(parts),
    )


# Drawing


@dataclass(frozen=True)
class Panel:
    """Points of rows, in a colour per series; what lies above the limit has a red ring.

    Attributes:
        title, x_label, y_label: as they say.
        rows: what is drawn.
        x: of a row; texts are places in the order of the rows.
        y: of a row.
        by: its series.
        limit: a bound, drawn across the panel, and its name; None: there is none.
        log: which axes are logarithmic.
        lines: rows with the same value of this are joined.
        guide: another curve ``(label, xs, ys)``.
        top: of the y axis.
    """

    title: str
    x_label: str
    y_label: str
    rows: Sequence[Row]
    x: Callable[[Row], Any]
    y: Callable[[Row], float]
    by: Callable[[Row], str]
    limit: tuple[float, str] | None = (1.0, "bound")
    log: str = "y"
    lines: Callable[[Row], Any] | None = None
    guide: tuple[str, Sequence[float], Sequence[float]] | None = None
    top: float | None = None


def draw_panels(sheet: Sheet, panels: Sequence[Panel]) -> None:
    """Draws them side by side."""
    for axes, panel in zip(sheet.panels(len(panels), (5.4, 4.1)), panels, strict=True):
        _draw(axes, panel)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        legend(axes, loc="best")


def _draw(axes: Any, panel: Panel) -> None:
    rows = [row for row in panel.rows if math.isfinite(panel.y(row))]
    names = list(dict.fromkeys(map(panel.by, rows)))
    places = list(dict.fromkeys(map(panel.x, rows)))
    worded = any(isinstance(place, str) for place in places)
    if "x" in panel.log:
        axes.set_xscale("log")
    if "y" in panel.log:
        axes.set_yscale("log")
    above: list[tuple[float, float]] = []
    for index, name in enumerate(names):
        shift = index - (len(names) - 1) / 2  # so that series do not hide each other
        found = [row for row in rows if panel.by(row) == name]
        groups: dict[Any, list[tuple[float, float]]] = {}
        for row in found:
            x = places.index(panel.x(row)) + 0.6 / len(names) * shift if worded else panel.x(row)
            x = x * 1.02**shift if "x" in panel.log and panel.lines is None else x
            y = max(panel.y(row), FLOOR) if "y" in panel.log else panel.y(row)
            groups.setdefault(panel.lines(row) if panel.lines else None, []).append((x, y))
            if panel.limit and y > panel.limit[0] * (1 + ROUNDING):
                above.append((x, y))
        style: dict[str, Any] = {"marker": MARKERS[index % 6], "alpha": 0.5, "markeredgewidth": 0}
        style["linestyle"] = ""
        if panel.lines:
            style = {"alpha": 0.5, "linewidth": 0.9}
        for number, points in enumerate(groups.values()):
            label = "_" if number else name
            axes.plot(*zip(*points, strict=True), color=colour(index), label=label, **style)
    if worded:
        axes.set_xticks(range(len(places)), [str(p).replace(", ", ",\n") for p in places])
    if panel.guide:
        label, xs, ys = panel.guide
        axes.plot(xs, ys, color=GREY, linewidth=1.2, label=label)
    if panel.limit:
        style = {"color": "black", "linewidth": 1.2, "linestyle": "--", "label": panel.limit[1]}
        axes.axhline(panel.limit[0], zorder=3, **style)
    if above and panel.lines is None:
        x, y = max(above, key=lambda point: point[1])
        ring = {"markerfacecolor": "none", "markeredgecolor": BREACH, "markersize": 9}
        axes.plot([x], [y], "o", label="worst above it", zorder=4, **ring)
    if panel.top:
        axes.set_ylim(axes.get_ylim()[0] if "y" in panel.log else 0, panel.top)
