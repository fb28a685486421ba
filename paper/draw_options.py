"""A table of options, drawn and in Markdown: from no runs at all."""

from __future__ import annotations

from typing import Any

from fastsn.gan.config import flatten
from paper.canvas import Sheet
from paper.scales import arms_of, config_of
from paper.spec import Experiment, Options

__all__ = ["options", "options_of"]


def options_of(experiment: Experiment, plot: Options, scale: str) -> list[dict[str, Any]]:
    """A row per arm: its label, and the options, as the paper's and where this scale has others."""
    rows = []
    for arm in arms_of(experiment, scale):
        paper, here = (dict(flatten(config_of(arm, size, 0).to_dict())) for size in ("full", scale))
        cells = {name: (paper[name], here[name]) for name in plot.names}
        rows.append({"setting": arm.label} | {name: _cell(*pair) for name, pair in cells.items()})
    return rows


def _cell(paper: Any, here: Any) -> str:
    return f"{paper:g}" if paper == here else f"{paper:g} (here {here:g})"


def options(experiment: Experiment, plot: Options, sheet: Sheet, scale: str) -> None:
    rows = options_of(experiment, plot, scale)
    (axes,) = sheet.panels(1, (7.2, 0.28 * (len(rows) + 1) + 0.1))
    axes.set_axis_off()
    table = axes.table(
        [list(row.values()) for row in rows],
        colLabels=list(rows[0]),
        loc="center",
        cellLoc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.3)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.4)
    sheet.rows += [{"series": row["setting"], "kind": "options", "n": 0, **row} for row in rows]
