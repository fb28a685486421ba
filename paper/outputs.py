"""Everything that is drawn from records: figures with their numbers, tables, a block of a README.

::

    OUT/SCALE/runs/      records
        SCALE/theory/    rows of the theory checks, NAME.jsonl
        SCALE/figures/   fig5.png, fig5.svg, and fig5.jsonl: the numbers drawn
        SCALE/tables/    table1.md; claims.md: what the records say of the paper's claims
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsn.gan.config import ConfigError
from paper.draw import draw
from paper.records import Record, read_record
from paper.scales import arms_of, runs_of
from paper.spec import Arm, Experiment, Options, Table
from paper.tables import table

__all__ = [
    "Drawn",
    "Results",
    "around_block",
    "draw_experiments",
    "read_records",
    "write_block",
    "write_rows",
    "write_text",
]

BEGIN, END = "<!-- experiments:begin -->", "<!-- experiments:end -->"


@dataclass(frozen=True)
class Results:
    """The folder of one scale's results."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def theory(self) -> Path:
        return self.path / "theory"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def tables(self) -> Path:
        return self.path / "tables"


@dataclass(frozen=True)
class Drawn:
    """What became of an experiment.

    Attributes:
        name, title, source: the experiment's.
        recorded: runs that have a record.
        planned: runs that the scale has.
        file: the figure or table, if it was drawn.
    """

    name: str
    title: str
    source: str
    recorded: int
    planned: int
    file: Path | None

    @property
    def line(self) -> str:
        """For people."""
        counts = f"{self.recorded} of {self.planned} runs recorded, " if self.planned else ""
        return f"{self.name}: {counts}{self.file or 'not drawn'}"


def draw_experiments(
    experiments: Iterable[Experiment], scale: str, source: Results, out: Results
) -> list[Drawn]:
    """Draws the experiments whose arms all have a record, from the records alone.

    An arm with fewer seeds than it is planned with will do; the figure says how many there are.

    Raises:
        RecordError: a record is damaged.
    """
    records = read_records(source)
    done = []
    for experiment in experiments:
        arms = tuple(arms_of(experiment, scale))
        found, recorded, planned = _of_arms(arms, scale, records)
        file = _draw(experiment, scale, found, out) if len(found) == len(arms) else None
        about = (experiment.name, experiment.title, experiment.source)
        done.append(Drawn(*about, recorded, planned, file))
    return done


def read_records(source: Results) -> dict[str, Record]:
    """All records of a scale, by the name of the run.

    Raises:
        RecordError: a record is damaged.
    """
    found = [read_record(path) for path in sorted(source.runs.glob("*.jsonl"))]
    return {record.name: record for record in found}


def _of_arms(
    arms: Sequence[Arm], scale: str, records: Mapping[str, Record]
) -> tuple[dict[Arm, list[Record]], int, int]:
    """The records of the arms that have any, or that have no runs; how many there are, and how many
    runs. Arms may share runs."""
    found: dict[Arm, list[Record]] = {}
    planned: set[str] = set()
    recorded: set[str] = set()
    for arm in arms:
        runs = {config.run_name(): config for config in runs_of(arm, scale)}
        planned |= runs.keys()
        mine = [
            records[name]
            for name, config in runs.items()
            if name in records and records[name].config.train.steps == config.train.steps
        ]
        recorded |= {record.name for record in mine}
        if mine or not runs:
            found[arm] = mine
    return found, len(recorded), len(planned)


def _draw(
    experiment: Experiment, scale: str, records: Mapping[Arm, Sequence[Record]], out: Results
) -> Path:
    out.figures.mkdir(parents=True, exist_ok=True)
    rows = draw(experiment, records, scale, out.figures / experiment.name)
    write_rows(out.figures / f"{experiment.name}.jsonl", rows)
    if isinstance(experiment.plot, (Table, Options)):
        text = table(experiment, records, scale)
        return write_text(out.tables / f"{experiment.name}.md", text)
    return out.figures / f"{experiment.name}.png"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> Path:
    """Writes a file, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def around_block(readme: Path) -> tuple[str, str]:
    """What stands before and after the marks of a README.

    Raises:
        ConfigError: there is no such file, or it has no marks.
    """
    try:
        head, rest = readme.read_text(encoding="utf-8").split(BEGIN)
        _, tail = rest.split(END)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--readme: expected a file with {BEGIN} and then {END}, got {readme}: {error}"
        ) from None
    return head, tail


def write_block(readme: Path, scale: str, claims: Path, done: Iterable[Drawn]) -> None:
    """Writes the claims, and a list of figures and tables, between the marks of a README.

    Raises:
        ConfigError: there is no such file, or it has no marks.
    """
    head, tail = around_block(readme)
    lines = [
        claims.read_text(encoding="utf-8").strip(),
        "",
        f"All of it at the scale `{scale}`; each figure says its data, networks, iterations and "
        "seeds.",
        "",
        "|  | shows | in the paper | runs |",
        "| --- | --- | --- | ---: |",
    ]
    for one in done:
        if one.file is not None:
            link = os.path.relpath(one.file, readme.parent)
            runs = one.recorded or ""
            lines.append(f"| [{one.name}]({link}) | {one.title} | {one.source} | {runs} |")
    block = "\n".join([BEGIN, "", *lines, "", END])
    write_text(readme, f"{head}{block}{tail}")
