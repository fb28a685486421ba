"""Layers at one moment, and the ratios of their gradients and norms."""

from __future__ import annotations

import math
from typing import Any

from paper.canvas import Sheet, colour, legend, limits, reach, set_log
from paper.captions import (
    Runs,
    divergences,
    full_label,
    joined,
    layer_titles,
    row,
    value_title,
)
from paper.picks import at_moment
from paper.ratios import NEAR, Ratio, near_diagonal, ratios_of
from paper.records import layer_values
from paper.spec import LayerBars, NormRatios
from paper.statistics import mean_of

__all__ = ["layer_bars", "norm_ratios"]


def layer_bars(plot: LayerBars, runs: Runs, sheet: Sheet) -> None:
    """A group of bars per layer, a bar per arm; standard errors on top."""
    titles = layer_titles(runs)
    (axes,) = sheet.panels(1, (6.4, 3.6))
    found: dict[tuple[str, str], Any] = {}
    steps = []
    for arm, records in runs.items():
        at: dict[str, list[tuple[int, float]]] = {}
        for record in records:
            moment = plot.moment * record.config.train.steps
            for name, points in layer_values(record, plot.value).items():
                point = at_moment(points, moment)
                at.setdefault(titles[name], []).extend([point] if point else [])
        for layer, points in at.items():
            steps += [step for step, _ in points]
            mean = mean_of(value for _, value in points)
            if mean.n:
                found[arm.label, layer] = mean
                at_step = joined(step for step, _ in points)
                sheet.rows.append(
                    row(
                        arm.label,
                        "mean",
                        mean.n,
                        x=points[0][0],
                        mean=mean.mean,
                        stderr=mean.stderr,
                        layer=layer,
                        steps=at_step,
                    )
                )
    arms = [arm.label for arm in runs]
    layers = list(dict.fromkeys(titles.values()))
    layers = [layer for layer in layers if any((arm, layer) in found for arm in arms)]
    if plot.log:
        every = reach([*found.values()])
        set_log(axes, every)
        limits(axes, [*every, min(every, default=1.0) / 2])  # bars have no other beginning
    width = 0.8 / len(arms)
    same = len({len(records) for records in runs.values()}) == 1
    for index, (arm, records) in enumerate(runs.items()):
        places = [i for i, layer in enumerate(layers) if (arm.label, layer) in found]
        means = [found[arm.label, layers[i]] for i in places]
        axes.bar(
            [i + (index - (len(arms) - 1) / 2) * width for i in places],
            [mean.mean for mean in means],
            width * 0.92,
            yerr=[math.nan if mean.stderr is None else mean.stderr for mean in means],
            label=arm.label if same else f"{arm.label} (n = {len(records)})",
            color=colour(index),
            error_kw={"linewidth": 1, "capsize": 2},
        )
    axes.set_xticks(range(len(layers)), layers)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(value_title(plot.value, next(iter(runs.values()))[0].config))
    if steps:
        first, last = min(steps), max(steps)
        axes.set_title(f"at iteration {first:,}" + (f" to {last:,}" if last > first else ""))
    sheet.notes += divergences(runs)
    legend(axes)


def norm_ratios(plot: NormRatios, runs: Runs, sheet: Sheet) -> None:
    """A point per run, moment and layer, on logarithmic axes of equal units, and the diagonal."""
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
    for index, layer in enumerate(layer for layer in layers[1:]):
        series = f"{layer} / {layers[0]}"
        if series in points:
            xs = [ratio.norms for ratio in points[series]]
            ys = [ratio.gradients for ratio in points[series]]
            options: dict[str, Any] = {"s": 14, "alpha": 0.65, "linewidths": 0, "label": series}
            axes.scatter(xs, ys, color=colour(index), **options)
    axes.plot([low, high], [low, high], "--", color="#555555", linewidth=1, label="diagonal")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(r"$\Vert w_1 \Vert_{sp}\,/\,\Vert w_i \Vert_{sp}$")
    axes.set_ylabel(r"$\Vert\nabla_{w_i} D\Vert_F\,/\,\Vert\nabla_{w_1} D\Vert_F$")
    legend(axes)
    if every:
        shares = [f"{series} {near_diagonal(some):.0%}" for series, some in points.items()]
        total = near_diagonal(together)
        sheet.notes.append(
            f"Within a factor of {NEAR:g} of the diagonal: {total:.0%} of "
            f"{len(every) // 2:,} points ({', '.join(shares)})."
        )
    sheet.notes += divergences(runs)
