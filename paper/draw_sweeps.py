"""One number per run: over a scale, as bars, over the layers' variances."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from paper.canvas import Sheet, colour, legend, mark_end
from paper.captions import (
    Runs,
    diverged,
    divergences,
    full_label,
    row,
    value_title,
)
from paper.labels import place_labels
from paper.picks import at_moment, pick
from paper.records import values
from paper.spec import Bars, Sweep, Table, VarianceScatter
from paper.statistics import Mean, mean_of
from paper.tables import Cell, cells_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bars", "sweep", "table_bars", "variance_scatter"]


def sweep(plot: Sweep, runs: Runs, sheet: Sheet) -> None:
    """A line per series over the arms' ``x``, standard errors as bars."""
    (axes,) = sheet.panels(1)
    series: dict[str, list[tuple[Mean, int, int]]] = {}  # mean, runs, diverged ones
    for arm, records in runs.items():
        if arm.x is None:
            raise ValueError(f"{full_label(arm)}: expected an arm with x on a sweep, got none")
        points = [pick(record, plot.value, plot.pick) for record in records]
        mean = mean_of((point[1] for point in points if point), arm.x)
        lost = sum(map(diverged, records))
        series.setdefault(arm.series, []).append((mean, len(records), lost))
        cells = {"x": arm.x, "mean": mean.mean, "stderr": mean.stderr}
        sheet.rows.append(row(arm.series, "mean", mean.n, **cells, runs=len(records)))
        if lost:
            sheet.rows.append(row(arm.series, "diverged", lost, x=arm.x, mean=mean.mean))
    for index, (name, points_) in enumerate(series.items()):
        points_.sort(key=lambda point: point[0].x)
        counts = sorted({n for _, n, _ in points_})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        known = [mean for mean, _, _ in points_ if mean.n]
        axes.errorbar(
            [mean.x for mean in known],
            [mean.mean for mean in known],
            yerr=[math.nan if mean.stderr is None else mean.stderr for mean in known],
            label=f"{name} (n = {n})" if name else f"n = {n}",
            color=colour(index),
            marker="o",
            capsize=2.5,
            elinewidth=1,
        )
        for mean, _, lost in points_:
            # Without a number of its own the cross lies on the axis.
            at = (mean.mean, axes.transData) if mean.n else (0.02, axes.get_xaxis_transform())
            if lost:
                options: dict[str, Any] = {
                    "markersize": 9,
                    "markeredgecolor": "white",
                    "clip_on": False,
                }
                axes.plot([mean.x], [at[0]], "X", transform=at[1], color=colour(index), **options)
    if plot.log_x:
        from matplotlib.ticker import FuncFormatter, NullLocator

        axes.set_xscale("log")
        ticks = sorted({mean.x for points in series.values() for mean, _, _ in points})
        axes.set_xticks(_apart(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    title = value_title(plot.value, next(iter(runs.values()))[0].config)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(f"best {title}" if plot.pick == "best" else f"{title} at the end")
    sheet.notes += divergences(runs, cross=True)
    legend(axes)


def _apart(ticks: list[float]) -> list[float]:
    """Those of some positive numbers, from below, that have room on a logarithmic axis."""
    room = (ticks[-1] / ticks[0]) ** (1 / 14)
    shown: list[float] = []
    for tick in ticks:
        if not shown or tick >= shown[-1] * room:
            shown.append(tick)
    return shown


def bars(plot: Bars, runs: Runs, sheet: Sheet) -> None:
    """The best value of each arm: a group per series, a bar per label."""
    found: dict[tuple[str, str], Mean] = {}
    for arm, records in runs.items():
        points = [pick(record, plot.value, "best") for record in records]
        found[arm.series, arm.label] = mean_of(point[1] for point in points if point)
    (axes,) = sheet.panels(1, (6.8, 3.4))
    _grouped(axes, found)
    for (series, label), mean in found.items():
        cells = {"label": label, "x": None, "mean": mean.mean, "stderr": mean.stderr}
        sheet.rows.append(row(series, "mean", mean.n, **cells))
    axes.set_ylabel(f"best {value_title(plot.value, next(iter(runs.values()))[0].config)}")
    sheet.notes += divergences(runs)


def table_bars(plot: Table, runs: Runs, sheet: Sheet) -> None:
    """Our numbers of a table: a panel per value, a group per data set, a bar per method."""
    panels = sheet.panels(len(plot.values), (5.2, 3.4), 2)
    config = next(iter(runs.values()))[0].config
    for value, axes in zip(plot.values, panels, strict=True):
        cells: dict[tuple[str, str], Cell] = cells_of(value, runs)
        _grouped(axes, {(series, label): cell.last for (label, series), cell in cells.items()})
        axes.set_ylabel(f"{value_title(value, config)} at the end")
        for (label, series), cell in cells.items():
            for kind, mean in (("last", cell.last), ("best", cell.best)):
                numbers = {"mean": mean.mean, "stderr": mean.stderr, "arm": cell.arm}
                more = {"label": label, "value": value, "x": None, **numbers}
                sheet.rows.append(row(series, kind, mean.n, **more))
    sheet.notes += divergences(runs)


def _grouped(axes: Axes, found: dict[tuple[str, str], Mean]) -> None:
    groups = list(dict.fromkeys(series for series, _ in found))
    labels = list(dict.fromkeys(label for _, label in found))
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        places = [i for i, group in enumerate(groups) if (group, label) in found]
        means = [found[groups[i], label] for i in places]
        axes.bar(
            [i + (index - (len(labels) - 1) / 2) * width for i in places],
            [mean.mean for mean in means],
            width * 0.92,
            yerr=[math.nan if mean.stderr is None else mean.stderr for mean in means],
            label=label,
            color=colour(index),
            error_kw={"linewidth": 1, "capsize": 2},
        )
    axes.set_xticks(range(len(groups)), [textwrap.fill(group, 14) for group in groups])
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def variance_scatter(plot: VarianceScatter, runs: Runs, sheet: Sheet) -> None:
    """A point per run, at its best score: a colour per series, the arm's ``x`` beside it."""
    (axes,) = sheet.panels(1, (6.6, 4.2))
    names = list(dict.fromkeys(arm.series for arm in runs))
    marks: list[tuple[float, float, str, str]] = []
    for arm, records in runs.items():
        shown = colour(names.index(arm.series))
        for record in records:
            best = pick(record, "score", "best")
            variance = best and at_moment(values(record, "log_variance_product"), best[0])
            if best is None or variance is None:
                sheet.notes.append(f"{full_label(arm)}: {record.name} has no score or no variance.")
                continue
            text = arm.label if arm.x is None else f"{arm.x:g}"
            marks.append((variance[1], best[1], text, shown))
            if diverged(record):
                mark_end(axes, variance[1], best[1], names.index(arm.series))
            cells = {"label": text, "run": record.name, "step": best[0], "stderr": None}
            sheet.rows.append(row(arm.series, "point", 1, x=variance[1], mean=best[1], **cells))
    for index, name in enumerate(names):
        own = [mark for mark in marks if mark[3] == colour(index)]
        xs, ys = [mark[0] for mark in own], [mark[1] for mark in own]
        axes.scatter(xs, ys, s=16, color=colour(index), label=name)
    axes.margins(0.06)
    axes.set_xlabel(value_title("log_variance_product", next(iter(runs.values()))[0].config))
    axes.set_ylabel(f"best {value_title('score', next(iter(runs.values()))[0].config)}")
    legend(axes)
    place_labels(axes, marks)
    sheet.notes.append("The numbers are the scales.")
    sheet.notes += divergences(runs, cross=True)
