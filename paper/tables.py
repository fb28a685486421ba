"""The paper's tables in Markdown: our numbers, the paper's beside them, and how the two differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastsn.gan.config import flatten
from fastsn.gan.report import markdown_table
from paper.captions import (
    Runs,
    check_protocols,
    failures,
    joined,
    missing,
    subtitle,
    title_of,
    value_title,
)
from paper.catalog import NAMES, Arm, Experiment, Plot, arms_of, config_of
from paper.numbers import of_table, paper_seeds, same_name
from paper.records import BETTER, Record, pick
from paper.statistics import Mean, mean_of

#: Options that change no result, or that runs of one arm differ in.
ASIDE = (
    "log.",
    "checkpoint.",
    "speed.",
    "eval.every",
    "eval.weights",
    "data.root",
    "train.seed",
    "train.device",
)


@dataclass(frozen=True)
class Cell:
    """One number of a table: the best of the arms with the same method and data set.

    Attributes:
        last: at the end of training; by its mean the arm was chosen.
        best: during training, of the same runs.
        arm: which it is.
        arms: among how many.
    """

    last: Mean
    best: Mean
    arm: str
    arms: int


def cells_of(value: str, runs: Runs) -> dict[tuple[str, str], Cell]:
    """By method and data set, :attr:`.Arm.label` and :attr:`.Arm.series`."""
    found: dict[tuple[str, str], list[tuple[Mean, Mean, Arm]]] = {}
    for arm, records in runs.items():
        last, best = (
            mean_of(
                point[1] if point else None for point in (pick(r, value, which) for r in records)
            )
            for which in ("last", "best")
        )
        found.setdefault((arm.label, arm.series), []).append((last, best, arm))
    cells = {}
    for key, arms in found.items():
        known = [one for one in arms if one[0].n] or arms[:1]
        last, best, arm = BETTER[value](known, key=lambda one: one[0].mean)
        cells[key] = Cell(last, best, _options(arm), len(arms))
    return cells


def _options(arm: Arm) -> str:
    return ", ".join(f"{name} {value}" for name, value in arm.options.items()) or arm.preset


def table(experiment: Experiment, records: Mapping[Arm, Sequence[Record]], size: str) -> str:
    """The table of an experiment that has one.

    Our numbers are mean ± standard error over ``n`` seeds, at the end of training and the best
    during it.

    Returns:
        Markdown: a table per data set, and the difference of protocol.

    Raises:
        ValueError: the experiment has no table, or there are no runs at all.
        RecordError: runs on one data set were evaluated by different protocols.
    """
    plot = experiment.plot
    if plot.kind == "options":
        return markdown_table(options_of(experiment, size)) + "\n"
    runs = {arm: list(records[arm]) for arm in experiment.arms if records.get(arm)}
    if not runs:
        raise ValueError(f"{experiment.name}: expected runs of at least one arm, got none")
    check_protocols(experiment.name, runs, by_series=True)
    paper = of_table(plot.table)
    lines = [f"**{title_of(experiment)}**", "", subtitle(experiment, runs, size), ""]
    cells = {value: cells_of(value, runs) for value in BETTER}
    for data in dict.fromkeys(arm.series for arm in experiment.arms):
        lines += _of_data(data, plot, runs, cells, paper)
    lines += _differences(runs)
    seeds = paper_seeds(plot.table)
    lines += [f"- seeds: paper {seeds}; here n"] if seeds else []
    notes = [*failures(runs, last="score"), *missing(experiment, runs, size)]
    lines += ["", *notes] if notes else []
    return "\n".join([*lines, ""])


def _of_data(
    data: str,
    plot: Plot,
    runs: Runs,
    cells: Mapping[str, Mapping[tuple[str, str], Cell]],
    paper: Mapping[tuple[str, str, str], tuple[float, ...]],
) -> list[str]:
    mine = [record for arm in runs if arm.series == data for record in runs[arm]]
    if not mine:
        return []
    used = joined(NAMES.get(record.config.data.name, record.config.data.name) for record in mine)
    theirs = {
        (method, value): numbers
        for (method, its_data, value), numbers in paper.items()
        if same_name(its_data, data)
    }
    head = ["method"]
    for value in BETTER:
        arrow = "↑" if BETTER[value] is max else "↓"
        title = value_title(value, mine[0].config)
        head += [f"{title} {arrow}: ours, at the end", "ours, best"]
        head += [f"paper, {'IS' if value == 'score' else 'FID'} {arrow}"] if theirs else []
    labels = list(dict.fromkeys(arm.label for arm in runs if arm.series == data))
    extra = [m for m, _ in theirs if not any(same_name(m, label) for label in labels)]
    rows = []
    for label in [*dict.fromkeys(extra), *labels]:
        row = [label]
        for value in BETTER:
            cell = cells[value].get((label, data))
            row += [_number(cell.last), _number(cell.best)] if cell else ["", ""]
            if theirs:
                row.append(_paper(label, value, theirs))
        rows.append(row)
    chosen = [
        f"{label}, {value}: best of {cell.arms} settings: {cell.arm}"
        for value in BETTER
        for (label, series), cell in cells[value].items()
        if series == data and cell.arms > 1
    ]
    title = f"{data} in the paper; ours: {used}"
    lines = [title, "", *_markdown(head, rows), ""]
    return [*lines, *(f"- {line}" for line in chosen), *([""] if chosen else [])]


def _paper(label: str, value: str, theirs: Mapping[tuple[str, str], tuple[float, ...]]) -> str:
    for (method, its_value), numbers in theirs.items():
        if its_value == value and same_name(method, label):
            return " ± ".join(f"{number:.2f}" for number in numbers)
    return ""


def _number(mean: Mean) -> str:
    if not mean.n:
        return f"none ({mean.failed} failed)" if mean.failed else "none"
    size = abs(mean.mean)
    digits = 2 if size < 100 else 1 if size < 1000 else 0
    error = "" if mean.stderr is None else f" ± {mean.stderr:,.{digits}f}"
    lost = f", {mean.failed} failed" if mean.failed else ""
    return f"{mean.mean:,.{digits}f}{error} (n = {mean.n}{lost})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _differences(runs: Runs) -> list[str]:
    """The options that the runs do not share with the paper's: Markdown, a line per option."""
    found: dict[str, list[str]] = {}
    for arm, records in runs.items():
        for record in records:
            theirs = dict(flatten(config_of(arm, "full", record.config.train.seed).to_dict()))
            for name, mine in flatten(record.config.to_dict()):
                if mine != theirs[name] and not name.startswith(ASIDE):
                    found.setdefault(name, []).append(f"{_shown(theirs[name])} → {_shown(mine)}")
    if not found:
        return ["The protocol is the paper's."]
    return [
        "Difference of protocol (paper's → ours):",
        "",
        *(f"- {name}: {'; '.join(dict.fromkeys(changes))}" for name, changes in found.items()),
    ]


def options_of(experiment: Experiment, size: str) -> list[dict[str, str]]:
    """A row per arm: its label, and the options, as the paper's and where this size has others."""
    rows = []
    for arm in arms_of(experiment, size):
        paper, here = (dict(flatten(config_of(arm, s, 0).to_dict())) for s in ("full", size))
        cells = {name: (paper[name], here[name]) for name in experiment.plot.names}
        rows.append({"setting": arm.label} | {name: _cell(*pair) for name, pair in cells.items()})
    return rows


def _cell(paper: float, here: float) -> str:
    return f"{paper:g}" if paper == here else f"{paper:g} (here {here:g})"


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return "default" if value is None else str(value)
