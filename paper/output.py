"""Everything that is drawn from records: figures with their numbers, tables, and one page.

::

    OUT/SIZE/runs/      records
        SIZE/theory/    rows of the theory checks, NAME.jsonl.gz
        SIZE/figures/   fig5.png, and fig5.jsonl: the numbers drawn
        SIZE/README.md  the claims, and all figures and tables
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsn.gan.plotting import Sheet, drawing
from fastsn.gan.run.checkpoint import replace_file
from fastsn.gan.run.jsonl import read_rows
from paper import claims, curves, points, theory
from paper.captions import Runs, check_protocols, counted, missing, row, subtitle, title_of
from paper.catalog import EXPERIMENTS, NAMES, Arm, Experiment, arms_of, runs_of
from paper.evidence import Evidence
from paper.numbers import of_sample_sheet
from paper.records import Record, read_records
from paper.tables import table
from paper.theory.check import Verdict

#: How each kind of plot is drawn: on a sheet, whose rows and notes it also writes.
KINDS = {
    function.__name__: function
    for function in (
        *(curves.curves, curves.layer_curves, points.bars, points.layer_bars, points.norm_ratios),
        *(points.samples, points.sweep, points.table, points.variance_scatter),
    )
}
#: Of these there is a table in Markdown, too; of options there is nothing else.
TABLES = ("table", "options")


@dataclass(frozen=True)
class Found:
    """The records of an experiment's arms.

    Attributes:
        runs: the arms that have any; arms may share runs.
        recorded: how many runs that is.
        planned: of how many.
        whole: whether each arm has one, or needs none.
    """

    runs: Runs
    recorded: int
    planned: int
    whole: bool


def found(experiment: Experiment, size: str, records: Mapping[str, Record]) -> Found:
    """An arm with fewer seeds than it is planned with will do; figures say how many there are."""
    runs: dict[Arm, list[Record]] = {}
    planned: set[str] = set()
    whole = True
    for arm in arms_of(experiment, size):
        configs = runs_of(arm, size)
        planned |= {config.run_name() for config in configs}
        mine = [
            records[config.run_name()]
            for config in configs
            if config.run_name() in records
            and records[config.run_name()].config.train.steps == config.train.steps
        ]
        whole &= bool(mine or not configs)
        if mine:
            runs[arm] = mine
    recorded = {record.name for mine in runs.values() for record in mine}
    return Found(runs, len(recorded), len(planned), whole)


def draw(experiment: Experiment, records: Runs, size: str, path: Path) -> list[dict[str, Any]]:
    """Draws an experiment as the PNG file ``path``.

    Args:
        experiment: what is drawn, and how.
        records: the runs of its arms; arms that are missing or have none are left out, and named.
        size: of the runs, one of :data:`.catalog.SIZES`.
        path: of the file.

    Returns:
        The numbers drawn: rows with ``series``, ``kind``, ``x``, ``mean``, ``stderr`` (None for one
        run), ``n`` runs, and what else tells the points of the plot apart, such as ``layer``. Rows
        of the ``kind`` ``"diverged"`` are runs whose numbers end there; ``"not run"`` has a row for
        each arm without runs; ``"note"`` has the sentences under the picture.

    Raises:
        ValueError: there are no runs at all.
        RecordError: runs that were evaluated by different protocols.
        ConfigError: matplotlib is missing.
    """
    sheet, plot = Sheet(), experiment.plot
    runs = {arm: list(records[arm]) for arm in experiment.arms if records.get(arm)}
    if not runs:
        raise ValueError(f"{experiment.name}: expected runs of at least one arm, got none")
    check_protocols(experiment.name, runs, by_series=plot.kind == "table")
    with drawing():
        KINDS[plot.kind](plot, runs, sheet)
        if plot.kind == "samples":
            sheet.notes += _of_paper(experiment)
        sheet.notes += missing(experiment, runs, size)
        sheet.save(path, title_of(experiment), subtitle(experiment, runs, size))
    absent = [arm for arm in arms_of(experiment, size) if arm not in runs]
    sheet.rows += [row(arm.series or arm.label, "not run", 0, label=arm.label) for arm in absent]
    sheet.rows += [row("", "note", 0, text=note) for note in sheet.notes]
    return sheet.rows


def _of_paper(experiment: Experiment) -> list[str]:
    """A note of what the paper's caption of a sheet of samples states."""
    names = {"score": "inception score", "distance": "FID"}
    stated = of_sample_sheet(experiment.number)
    said = [f"{names[value]} {number:.2f}" for value, number in stated.items()]
    return [f"The paper's samples, of {NAMES[experiment.data]}: {', '.join(said)}."]


def draw_all(
    experiments: Sequence[Experiment],
    checks: Iterable[str],
    size: str,
    source: Path,
    out: Path,
) -> list[str]:
    """Draws the experiments whose arms all have a record, the checks whose rows are kept, and the
    page of all that is drawn.

    Args:
        experiments, checks: what is drawn anew.
        size: of the runs.
        source: folder of the records and rows, ``results/SIZE``.
        out: folder of the figures.

    Returns:
        A line for each, for people.

    Raises:
        RecordError: a record is damaged.
    """
    records = read_records(source / "runs")
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    lines = []
    for one in experiments:
        mine = found(one, size, records)
        counts = f"{mine.recorded} of {mine.planned} runs recorded, " if mine.planned else ""
        file: Path | None = out / "README.md" if one.plot.kind == "options" else None
        if mine.whole and mine.runs:
            file = figures / f"{one.name}.png"
            rows = draw(one, mine.runs, size, file)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            replace_file(file.with_suffix(".jsonl"), text.encode())
        lines.append(f"{one.name}: {counts}{file or 'not drawn'}")
    verdicts = theory.verdicts(source / "theory")
    for name in checks:
        file = figures / f"{name}.png" if name in verdicts else None
        if file is not None:
            theory.draw(name, source / "theory", file)
        lines.append(f"{name}: {file or 'not drawn'}")
    parts = _page(size, records, verdicts, out)
    replace_file(out / "README.md", ("\n\n".join(parts) + "\n").encode())
    return lines


# The page


def _page(
    size: str, records: Mapping[str, Record], verdicts: Mapping[str, Verdict], out: Path
) -> Iterator[str]:
    yield f"# The paper's experiments at size {size}"
    yield (
        f"Made of {counted(len(records), 'recorded run')}. {_environments(records)} The numbers of "
        "each figure are in the file beside it. Written by `python -m paper draw`."
    )
    yield "## Claims"
    yield claims.page(claims.judge_all(Evidence(size, records), verdicts))
    absent = []
    for one in EXPERIMENTS.values():
        picture = out / "figures" / f"{one.name}.png"
        mine = found(one, size, records)
        if picture.is_file() or one.plot.kind == "options":
            yield f"## {title_of(one)}"
            yield f"Paper: {one.source}. {_runs(mine)}".strip()
            yield from _picture(picture, title_of(one))
            if one.plot.kind in TABLES and (mine.runs or one.plot.kind == "options"):
                yield table(one, mine.runs, size).strip()
        else:
            absent.append(f"- {title_of(one)}")
    for name, verdict in verdicts.items():
        check = theory.CHECKS[name]
        yield f"## {check.source}: {check.title}"
        yield from _picture(out / "figures" / f"{name}.png", check.title)
        yield theory.table(verdict)
    if absent:
        yield "## Not drawn at this size"
        yield "\n".join(absent)


def _picture(picture: Path, title: str) -> Iterator[str]:
    if picture.is_file():
        yield f"![{title}](figures/{picture.name})"
    numbers = picture.with_suffix(".jsonl")
    if numbers.is_file():
        notes = [row["text"] for row in read_rows(numbers) if row.get("kind") == "note"]
        if notes:
            yield " ".join(notes)


def _runs(mine: Found) -> str:
    return f"{mine.recorded} of {counted(mine.planned, 'run')} recorded." if mine.planned else ""


def _environments(records: Mapping[str, Record]) -> str:
    """The versions and machines of the runs, each once."""
    said: dict[str, None] = {}
    for record in records.values():
        of = record.environment
        gpus = ", ".join(dict.fromkeys(of.get("gpus") or [])) or "CPU"
        versions = ", ".join(f"{name} {of.get(name)}" for name in ("fastsn", "torch", "python"))
        said.setdefault(f"{versions}, {gpus}")
    return "; ".join(said) + "." if said else ""
