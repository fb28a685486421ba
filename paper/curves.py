"""Curves over iterations: of the network or its evaluations, and of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastsn.gan.plotting import Sheet, colour, curve, legend, limits, mark_end, set_log
from paper.captions import Runs, failures, layer_titles, row, value_title
from paper.catalog import Plot
from paper.records import Record, diverged, layer_values, values
from paper.statistics import Mean, average

Points = list[tuple[int, float]]
#: A linear axis whose values differ by more becomes logarithmic: one run that explodes would hide
#: all others.
SPAN = 200.0
BOUNDS = {"conv_ratio_lower": "bounds", "conv_ratio_upper": "bounds"}


def curves(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """A curve per arm: mean of the seeds, and their standard error as a band."""
    (axes,) = sheet.panels(1)
    drawn = {arm: average([values(record, plot.value) for record in runs[arm]]) for arm in runs}
    below = _scale(axes, [value for points in drawn.values() for value in reach(points)], plot.log)
    same = len({len(records) for records in runs.values()}) == 1
    for index, (arm, points) in enumerate(drawn.items()):
        label = arm.label if same else f"{arm.label} (n = {len(runs[arm])})"
        _mean(axes, points, label, index)
        sheet.rows += [_row(arm.label, point) for point in points]
        for record in runs[arm]:
            _end(axes, record, values(record, plot.value), arm.label, index, sheet)
    sheet.notes += failures(runs, cross=True, last=plot.value if any(drawn.values()) else "")
    if not any(drawn.values()):
        sheet.notes.append(f"None of these runs has a value of {plot.value}.")
    elif below:
        sheet.notes.append("Values of zero lie on the lower end of the axis.")
    if axes.get_yscale() == "log" and not plot.log:
        sheet.notes.append("The axis is logarithmic, for values far above the others.")
    axes.set_xlabel("iteration")
    axes.set_ylabel(value_title(plot.value, next(iter(runs.values()))[0].config))
    legend(axes)


def layer_curves(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """A panel per arm with a curve per layer, or a panel per layer with a curve per arm.

    Bounds are dashed, in the colour of what they bound; where there is one curve in a panel, in the
    next colour.
    """
    titles = layer_titles(runs)
    # {(arm's label, layer's title): (mean, its bounds, of the single runs)}
    drawn: dict[tuple[str, str], tuple[list[Mean], list[list[Mean]], list[Points]]] = {}
    for arm, records in runs.items():
        found = [layer_values(record, plot.value) for record in records]
        others = [[layer_values(record, bound) for record in records] for bound in plot.bounds]
        for name in dict.fromkeys(name for layers in found for name in layers):
            single = [layers.get(name, []) for layers in found]
            bounds = [average([layers.get(name, []) for layers in of]) for of in others]
            drawn[arm.label, titles[name]] = (average(single), bounds, single)
    arms = list(dict.fromkeys(label for label, _ in drawn))
    layers = list(dict.fromkeys(title for _, title in drawn))
    by_arm = plot.panels == "arms"
    panels, lines = (arms, layers) if by_arm else (layers, arms)
    if not panels:
        sheet.panels(1)
        sheet.notes.append(f"None of these runs has a value of {plot.value}.")
        return
    size = (5.4, 3.6) if by_arm else (3.1, 2.5)
    grid = sheet.panels(len(panels), size, 2 if by_arm else 4, same_y=plot.log)
    records_of = {arm.label: records for arm, records in runs.items()}
    for panel, axes in zip(panels, grid, strict=True):
        inside = [(line, (panel, line) if by_arm else (line, panel)) for line in lines]
        inside = [(name, key) for name, key in inside if key in drawn]
        # Logarithmic panels share their axis.
        keys = drawn.keys() if plot.log else [key for _, key in inside]
        every = [value for key in keys for value in reach(drawn[key][0])]
        every += [m.mean for key in keys for bound in drawn[key][1] for m in bound]
        _scale(axes, every, plot.log)
        for name, key in inside:
            index = lines.index(name)
            mean, bounds, single = drawn[key]
            _mean(axes, mean, name, index)
            sheet.rows += [_row(key[0], point, layer=key[1]) for point in mean]
            alone = len(lines) == 1
            for which, bound in zip(plot.bounds, bounds, strict=True):
                label = BOUNDS.get(which, "bound") if alone else "_"
                xs, ys = [m.x for m in bound], [m.mean for m in bound]
                curve(axes, xs, ys, label, index + alone, dashed=True)
                kind = {"layer": key[1], "bound": which}
                sheet.rows += [_row(key[0], point, "bound", **kind) for point in bound]
            for record, points in zip(records_of[key[0]], single, strict=True):
                _end(axes, record, points, key[0], index, sheet, layer=key[1])
        axes.set_title(panel)
        if not by_arm:
            axes.tick_params(labelsize=7.5)
    _frame(plot, runs, sheet, grid, by_arm)


def _frame(plot: Plot, runs: Runs, sheet: Sheet, panels: Sequence[Any], by_arm: bool) -> None:
    """Names of the axes at the edges of the grid, and one legend at its upper right."""
    title = value_title(plot.value, next(iter(runs.values()))[0].config)
    across = sheet.across
    for index, axes in enumerate(panels):
        if index % across == 0:
            axes.set_ylabel(title)
        if index + across >= len(panels):
            axes.set_xlabel("iteration")
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if len(entries) > 1:
        panels[min(across, len(panels)) - 1].legend(
            entries.values(), entries.keys(), loc="upper left", bbox_to_anchor=(1, 1), frameon=False
        )
    if by_arm and plot.bounds:
        sheet.notes.append("Dashed: the bounds of the layers.")
    sheet.notes += failures(runs, cross=True)


def reach(points: Sequence[Mean]) -> list[float]:
    """What an axis must show of means: the values, and of their bands all but what is far below."""
    lows = [max(m.low, m.mean / 3) if m.mean > 0 else m.low for m in points]
    return [*(m.mean for m in points), *(m.high for m in points), *lows]


def _mean(axes: Any, points: Sequence[Mean], label: str, index: int) -> None:
    """A mean with its band; dotted where fewer runs are left than at the beginning."""
    if not points:
        return
    most = max(point.n for point in points)
    # A run may also lack a value in between: dotted from there on is still true.
    whole = next((i for i, point in enumerate(points) if point.n < most), None)
    xs, ys = [point.x for point in points], [point.mean for point in points]
    curve(axes, xs, ys, label, index, whole=whole)
    if any(point.stderr for point in points):
        low, high = [point.low for point in points], [point.high for point in points]
        if axes.get_yscale() == "log":  # a band that reaches below zero goes on to the axis
            low = [max(value, 1e-3 * y) if y > 0 else y for value, y in zip(low, ys, strict=True)]
        axes.fill_between(xs, low, high, color=colour(index), alpha=0.2, linewidth=0)


def _scale(axes: Any, shown: Sequence[float], log: bool) -> bool:
    """Sets the y axis; returns whether values lie below it."""
    positive = [value for value in shown if value > 0]
    if not log and len(positive) == len(shown) and positive:
        log = max(positive) > SPAN * sorted(positive)[len(positive) // 2]
    below = log and set_log(axes, shown)
    limits(axes, shown)
    return below


def _end(
    axes: Any, record: Record, points: Points, label: str, index: int, sheet: Sheet, **more: str
) -> None:
    """The cross of a run that diverged, at its last finite value."""
    if not diverged(record):
        return
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    step, value = finite[-1] if finite else (record.events[-1]["step"], math.nan)
    if finite:
        mark_end(axes, step, value, index)
    cells = {"x": step, "mean": value, "stderr": None, "run": record.name}
    sheet.rows.append(row(label, "diverged", 1, **cells, **more))


def _row(label: str, point: Mean, kind: str = "mean", **more: str) -> dict[str, object]:
    return row(label, kind, point.n, x=point.x, mean=point.mean, stderr=point.stderr, **more)
