"""Samples of the best run."""

from __future__ import annotations

import textwrap
from typing import Any

from paper.canvas import Sheet
from paper.captions import Runs, full_label, row, value_title
from paper.picks import BETTER, pick
from paper.records import Record
from paper.spec import Arm, Samples

__all__ = ["samples"]


def samples(plot: Samples, runs: Runs, sheet: Sheet) -> None:
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
    assert record.samples is not None
    from matplotlib.image import imread

    picture = imread(record.samples)
    height, width = picture.shape[:2]
    sheet.resize(5.6, 5.6 * height / width + 0.3)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}
    axes.imshow(picture, **grey)
    title = value_title(plot.value, record.config)
    last = record.events[-1]["step"] if record.events else record.config.train.steps
    said = f"{full_label(arm)}, seed {record.config.train.seed}: {title} {value:.2f}"
    axes.set_title(textwrap.fill(said, 84))
    cells = {"label": arm.label, "run": record.name, "stderr": None}
    sheet.rows.append(row(arm.series, "best", 1, x=step, mean=value, **cells))
    sheet.notes.append(
        f"Best of {len(found)} runs, at iteration {step:,}; the samples are of iteration {last:,}."
    )
