"""What has one number per run or layer: bars, sweeps, ratios, scatters; and sheets of samples."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastsn.gan.measure.diagnostics import WHOLE
from fastsn.gan.plotting import GREY, Sheet, colour, legend, limits, mark_end, set_log
from paper.captions import Runs, failures, full_label, joined, layer_titles, row, value_title
from paper.catalog import Arm, Plot
from paper.curves import reach
from paper.labels import place_labels
from paper.records import (
    BETTER,
    Record,
    at_moment,
    diverged,
    layer_values,
    pick,
    value_of,
    values,
)
from paper.statistics import Mean, fit, mean_of
from paper.tables import cells_of


def layer_bars(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """A group of bars per layer, a bar per arm; standard errors on top."""
    titles = layer_titles(runs)
    (axes,) = sheet.panels(1, (6.4, 3.6))
    found: dict[str, dict[str, Mean]] = {arm.label: {} for arm in runs}
    steps = []
    for arm, records in runs.items():
        at: dict[str, list[tuple[int, float]]] = {}
        for record in records:
            moment = plot.moment * record.config.train.steps
            for name, points in layer_values(record, plot.value).items():
                point = at_moment(points, moment)
                at.setdefault(titles[name], []).extend([point] if point else [])
        for layer, points in at.items():
            mean = mean_of(value for _, value in points)
            if mean.n:
                steps += [step for step, _ in points]
                found[arm.label][layer] = mean
                cells = {"x": points[0][0], "mean": mean.mean, "stderr": mean.stderr}
                more = {"layer": layer, "steps": joined(step for step, _ in points)}
                sheet.rows.append(row(arm.label, "mean", mean.n, **cells, **more))
    layers = [
        layer
        for layer in dict.fromkeys(titles.values())
        if any(layer in means for means in found.values())
    ]
    if plot.log:
        every = reach([mean for means in found.values() for mean in means.values()])
        set_log(axes, every)
        limits(axes, [*every, min(every, default=1.0) / 2])  # bars have no other beginning
    same = len({len(records) for records in runs.values()}) == 1
    labels = [a.label if same else f"{a.label} (n = {len(r)})" for a, r in runs.items()]
    _bars(axes, layers, [*zip(labels, found.values(), strict=True)])
    axes.set_ylabel(value_title(plot.value, next(iter(runs.values()))[0].config))
    if steps:
        first, last = min(steps), max(steps)
        axes.set_title(f"at iteration {first:,}" + (f" to {last:,}" if last > first else ""))
    sheet.notes += failures(runs)
    legend(axes)


def _bars(axes: Any, groups: Sequence[str], bars: Sequence[tuple[str, dict[str, Mean]]]) -> None:
    """A bar for each label in each group that it has, with its standard error."""
    width = 0.8 / max(len(bars), 1)
    for index, (label, found) in enumerate(bars):
        places = [i for i, group in enumerate(groups) if group in found]
        means = [found[groups[i]] for i in places]
        axes.bar(
            [i + (index - (len(bars) - 1) / 2) * width for i in places],
            [mean.mean for mean in means],
            width * 0.92,
            yerr=[math.nan if mean.stderr is None else mean.stderr for mean in means],
            label=label,
            color=colour(index),
            error_kw={"linewidth": 1, "capsize": 2},
        )
    axes.set_xticks(range(len(groups)), [textwrap.fill(group, 14) for group in groups])
    axes.grid(axis="x", visible=False)


def bars(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """The best value of each arm: a group per series, a bar per label."""
    found: dict[str, dict[str, Mean]] = {}
    for arm, records in runs.items():
        picked = [pick(record, plot.value, "best") for record in records]
        mean = mean_of(point[1] if point else None for point in picked)
        found.setdefault(arm.label, {})[arm.series] = mean
        cells = {"label": arm.label, "x": None, "mean": mean.mean, "stderr": mean.stderr}
        sheet.rows.append(row(arm.series, "mean", mean.n, **cells))
    (axes,) = sheet.panels(1, (6.8, 3.4))
    _bars(axes, list(dict.fromkeys(arm.series for arm in runs)), [*found.items()])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.set_ylabel(f"best {value_title(plot.value, next(iter(runs.values()))[0].config)}")
    sheet.notes += failures(runs)


def table(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """Our numbers of a table: a panel per value, a group per data set, a bar per method."""
    panels = sheet.panels(len(BETTER), (5.2, 3.4), 2)
    config = next(iter(runs.values()))[0].config
    for value, axes in zip(BETTER, panels, strict=True):
        found: dict[str, dict[str, Mean]] = {}
        for (label, series), cell in cells_of(value, runs).items():
            found.setdefault(label, {})[series] = cell.last
            for kind, mean in (("last", cell.last), ("best", cell.best)):
                numbers = {"mean": mean.mean, "stderr": mean.stderr, "arm": cell.arm}
                more = {"label": label, "value": value, "x": None, **numbers}
                sheet.rows.append(row(series, kind, mean.n, **more))
        _bars(axes, list(dict.fromkeys(arm.series for arm in runs)), [*found.items()])
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        axes.set_ylabel(f"{value_title(value, config)} at the end")
    sheet.notes += failures(runs, last="score")


def sweep(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """A line per series over the arms' ``x``, standard errors as bars."""
    (axes,) = sheet.panels(1)
    series: dict[str, list[tuple[Mean, int, int]]] = {}  # mean, runs, diverged ones
    for arm, records in runs.items():
        if arm.x is None:
            raise ValueError(f"{full_label(arm)}: expected an arm with x on a sweep, got none")
        points = [pick(record, plot.value, plot.pick) for record in records]
        mean = mean_of((point[1] if point else None for point in points), arm.x)
        lost = sum(map(diverged, records))
        series.setdefault(arm.series, []).append((mean, len(records), lost))
        cells = {"x": arm.x, "mean": mean.mean, "stderr": mean.stderr}
        sheet.rows.append(row(arm.series, "mean", mean.n, **cells, runs=len(records)))
        if lost:
            sheet.rows.append(row(arm.series, "diverged", lost, x=arm.x, mean=mean.mean))
    for index, (name, found) in enumerate(series.items()):
        found.sort(key=lambda point: point[0].x)
        counts = sorted({n for _, n, _ in found})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        known = [mean for mean, _, _ in found if mean.n]
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
        for mean, _, lost in found:
            # Without a number of its own the cross lies on the axis.
            y, place = (mean.mean, axes.transData) if mean.n else (0.02, axes.get_xaxis_transform())
            if lost:
                mark_end(axes, mean.x, y, index, transform=place, clip_on=False)
    title = value_title(plot.value, next(iter(runs.values()))[0].config)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(f"best {title}" if plot.pick == "best" else f"{title} at the end")
    sheet.notes += failures(runs, cross=True, last="" if plot.pick == "best" else plot.value)
    legend(axes)


def variance_scatter(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """Score over the log of the product of the layers' variances, a point per run at its best
    score: a colour per series, the arm's ``x`` beside it (Figure 23)."""
    (axes,) = sheet.panels(1, (6.6, 4.2))
    names = list(dict.fromkeys(arm.series for arm in runs))
    marks: list[tuple[float, float, str, str]] = []
    for arm, records in runs.items():
        for record in records:
            best = pick(record, "score", "best")
            variance = best and at_moment(values(record, "log_variance_product"), best[0])
            if best is None or variance is None:
                sheet.notes.append(f"{full_label(arm)}: {record.name} has no score or no variance.")
                continue
            text = arm.label if arm.x is None else f"{arm.x:g}"
            marks.append((variance[1], best[1], text, colour(names.index(arm.series))))
            if diverged(record):
                mark_end(axes, variance[1], best[1], names.index(arm.series))
            cells = {"label": text, "run": record.name, "step": best[0], "stderr": None}
            sheet.rows.append(row(arm.series, "point", 1, x=variance[1], mean=best[1], **cells))
    for index, name in enumerate(names):
        own = [mark for mark in marks if mark[3] == colour(index)]
        xs, ys = [mark[0] for mark in own], [mark[1] for mark in own]
        axes.scatter(xs, ys, s=16, color=colour(index), label=name)
    axes.margins(0.06)
    config = next(iter(runs.values()))[0].config
    axes.set_xlabel(value_title("log_variance_product", config))
    axes.set_ylabel(f"best {value_title('score', config)}")
    legend(axes)
    place_labels(axes, marks)
    sheet.notes.append("The numbers are the scales.")
    sheet.notes += failures(runs, cross=True)


def samples(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """The last samples of the run with the best value over all arms and seeds."""
    found: list[tuple[float, int, Arm, Record]] = []
    for arm, records in runs.items():
        for record in records:
            best = pick(record, plot.value, "best")
            if best is not None and record.samples is not None:
                found.append((best[1], best[0], arm, record))
    (axes,) = sheet.panels(1, (5.6, 3.0))
    axes.set_axis_off()
    if not found:
        sheet.notes.append("None of these runs has samples and a finite value.")
        return
    value, step, arm, record = BETTER[plot.value](found, key=lambda run: run[0])
    from matplotlib.image import imread

    picture = imread(str(record.samples))
    height, width = picture.shape[:2]
    sheet.resize(5.6, 5.6 * height / width + 0.3)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}
    axes.imshow(picture, **grey)
    last = record.events[-1]["step"] if record.events else record.config.train.steps
    title = value_title(plot.value, record.config)
    said = f"{full_label(arm)}, seed {record.config.train.seed}: {title} {value:.2f}"
    axes.set_title(textwrap.fill(said, 84))
    cells = {"label": arm.label, "run": record.name, "stderr": None}
    sheet.rows.append(row(arm.series, "best", 1, x=step, mean=value, **cells))
    sheet.notes.append(
        f"Best of {len(found)} runs, at iteration {step:,}; the samples are of iteration {last:,}."
    )


# Ratios of gradient norms and of spectral norms: Eq. (2)


class Ratio(NamedTuple):
    """A layer beside the first one, at one moment.

    Attributes:
        step: the iteration.
        layer: name of its weight.
        norms: ``||W_1|| / ||W_i||``, of the linear maps with the weights that the layers use.
        gradients: ``|dD/dW_i| / |dD/dW_1|``, by those weights.
    """

    step: int
    layer: str
    norms: float
    gradients: float


def ratios_of(record: Record) -> list[Ratio]:
    """All layers but the first at all moments, where the four numbers are positive."""
    moments: dict[int, list[tuple[str, float, float]]] = {}
    for cells in record.diagnostics:
        gradient, norm = value_of(cells, "output_grad_norm"), _used_norm(cells)
        if cells["layer"] != WHOLE and gradient is not None and norm is not None:
            moments.setdefault(cells["step"], []).append((cells["layer"], gradient, norm))
    return [
        Ratio(step, layer, first[2] / norm, gradient / first[1])
        for step, (first, *others) in moments.items()
        for layer, gradient, norm in others
        if all(0 < part < math.inf for part in (*first[1:], gradient, norm))
    ]


def _used_norm(cells: dict[str, Any]) -> float | None:
    """Norm of a layer's linear map with the weight that it uses: ``scale / sigma`` times that of
    the raw weight."""
    raw = value_of(cells, "conv_norm")
    raw = value_of(cells, "sigma_0") if raw is None else raw
    sigma, scale = value_of(cells, "sigma"), value_of(cells, "scale")
    if raw is None or scale is None:
        return raw if cells.get("norm") == "none" else None
    return raw * scale / sigma if sigma else None


def norm_ratios(plot: Plot, runs: Runs, sheet: Sheet) -> None:
    """A point per run, moment and layer ``i > 1``, on logarithmic axes of equal units, and the
    diagonal (Figure 3)."""
    titles = layer_titles(runs)
    (axes,) = sheet.panels(1, (5.2, 4.6))
    layers = list(dict.fromkeys(titles.values()))
    points: dict[str, list[Ratio]] = {}
    for arm, records in runs.items():
        for record in records:
            for ratio in ratios_of(record):
                series = f"{titles[ratio.layer]} / {layers[0]}"
                points.setdefault(series, []).append(ratio)
                where = {"run": record.name, "arm": full_label(arm), "step": ratio.step}
                cells = {"x": ratio.norms, "mean": ratio.gradients, "stderr": None, **where}
                sheet.rows.append(row(series, "point", 1, **cells))
    axes.set_xscale("log")
    axes.set_yscale("log")
    together = [ratio for some in points.values() for ratio in some]
    every = [value for ratio in together for value in (ratio.norms, ratio.gradients)]
    low, high = (min(every) / 1.4, max(every) * 1.4) if every else (0.1, 10.0)
    for index, layer in enumerate(layers[1:]):
        found = points.get(f"{layer} / {layers[0]}", [])
        xs, ys = [ratio.norms for ratio in found], [ratio.gradients for ratio in found]
        label = f"{layer} / {layers[0]}" if found else "_"
        axes.scatter(xs, ys, s=14, alpha=0.65, linewidths=0, color=colour(index), label=label)
    axes.plot([low, high], [low, high], "--", color=GREY, linewidth=1, label="diagonal")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(r"$\Vert w_1 \Vert_{sp}\,/\,\Vert w_i \Vert_{sp}$")
    axes.set_ylabel(r"$\Vert\nabla_{w_i} D\Vert_F\,/\,\Vert\nabla_{w_1} D\Vert_F$")
    legend(axes)
    if every:
        logs = [[math.log(r.norms) for r in together], [math.log(r.gradients) for r in together]]
        slope, correlation = fit(*logs)
        sheet.notes.append(
            f"Of the logarithms of {len(together):,} points: slope {slope:.2f}, correlation "
            f"{correlation:.2f}; on the diagonal both are 1."
        )
    sheet.notes += failures(runs)
