"""Draws an experiment: a picture as PNG and SVG, and the numbers in it as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paper.canvas import Sheet, drawing
from paper.captions import Runs, missing, row, subtitle, title_of
from paper.draw_curves import curves, layer_curves
from paper.draw_layers import layer_bars, norm_ratios
from paper.draw_options import options
from paper.draw_samples import samples
from paper.draw_sweeps import bars, sweep, table_bars, variance_scatter
from paper.numbers import of_sample_sheet
from paper.records import Record
from paper.scales import NAMES, arms_of
from paper.spec import (
    Arm,
    Bars,
    Curves,
    Experiment,
    LayerBars,
    LayerCurves,
    NormRatios,
    Options,
    Samples,
    Sweep,
    Table,
    VarianceScatter,
)

__all__ = ["draw"]

#: How each kind of plot is drawn: on a sheet, whose rows and notes it also writes.
KINDS: dict[type, Callable[[Any, Runs, Sheet], None]] = {
    Bars: bars,
    Curves: curves,
    LayerBars: layer_bars,
    LayerCurves: layer_curves,
    NormRatios: norm_ratios,
    Samples: samples,
    Sweep: sweep,
    Table: table_bars,
    VarianceScatter: variance_scatter,
}


def draw(
    experiment: Experiment, records: Mapping[Arm, Sequence[Record]], scale: str, path: Path
) -> list[dict[str, Any]]:
    """Draws an experiment as ``path.png`` and ``path.svg``.

    Args:
        experiment: what is drawn, and how.
        records: the runs of its arms; arms that are missing or have none are left out, and named.
        scale: of the runs, one of :data:`.scales.SCALES`.
        path: without the ending.

    Returns:
        The numbers drawn: rows with ``series``, ``kind``, ``x``, ``mean``, ``stderr`` (None for one
        run), ``n`` runs, and what else tells the points of the plot apart, such as ``layer``. Rows
        of the ``kind`` ``"diverged"`` are runs whose numbers end there; ``"not run"`` has a row for
        each arm without runs; ``"note"`` has the sentences under the picture.

    Raises:
        ValueError: there are no runs at all.
        ConfigError: matplotlib is missing.
    """
    sheet = Sheet()
    runs = {arm: list(records[arm]) for arm in experiment.arms if records.get(arm)}
    if isinstance(experiment.plot, Options):
        with drawing():
            options(experiment, experiment.plot, sheet, scale)
            sheet.save(path, title_of(experiment), experiment.source)
        return sheet.rows
    if not runs:
        raise ValueError(f"{experiment.name}: expected runs of at least one arm, got none")
    with drawing():
        KINDS[type(experiment.plot)](experiment.plot, runs, sheet)
        if isinstance(experiment.plot, Samples):
            sheet.notes += _paper(experiment)
        sheet.notes += missing(experiment, runs, scale)
        sheet.save(path, title_of(experiment), subtitle(experiment, runs, scale))
    absent = [arm for arm in arms_of(experiment, scale) if arm not in runs]
    sheet.rows += [row(arm.series or arm.label, "not run", 0, label=arm.label) for arm in absent]
    sheet.rows += [row("", "note", 0, text=note) for note in sheet.notes]
    return sheet.rows


def _paper(experiment: Experiment) -> list[str]:
    """A note of what the paper's caption of a sheet of samples states."""
    number = int(experiment.name.removeprefix("fig"))
    names = {"score": "inception score", "distance": "FID"}
    found = [f"{names[value]} {stated:.2f}" for value, stated in of_sample_sheet(number).items()]
    return [f"The paper's samples, of {NAMES[experiment.data]}: {', '.join(found)}."]
