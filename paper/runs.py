"""Trains what experiments still lack, as a sweep, and records it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, ConfigError, validate
from fastsn.gan.run.folder import RunDirError
from fastsn.gan.sweep import run_jobs
from fastsn.gan.sweep.state import SETTLED
from paper.catalog import EXPERIMENTS, plan
from paper.records import SUFFIX, RecordError, read_record, record_run

#: Data that comes with the package.
SHIPPED = ("fashion_mini",)


@dataclass(frozen=True)
class Sources:
    """Files that configurations of the full size need.

    Attributes:
        roots: folder or file of each data set, by ``data.name``.
        weights: Inception weights as torch-fidelity publishes them.
    """

    roots: Mapping[str, str | None] = field(default_factory=dict)
    weights: str | None = None

    def into(self, config: Config) -> Config:
        """The configuration with the files it needs.

        Raises:
            ConfigError: one is needed and was not given, or does not exist; the message names the
                option.
        """
        name = config.data.name
        if name not in SHIPPED:
            root = _existing(f"--roots.{name}", f"the images of {name}", self.roots.get(name))
            config = replace(config, data=replace(config.data, root=root))
        if config.eval.every and config.eval.extractor == "inception":
            weights = _existing("--weights", "Inception weights", self.weights)
            config = replace(config, eval=replace(config.eval, weights=weights))
        return validate(config)


def _existing(option: str, what: str, path: str | None) -> str:
    if path is None:
        raise ConfigError(f"{option}: expected the place of {what}, got none")
    if not Path(path).exists():
        raise ConfigError(f"{option}: expected the place of {what}, got {path}, which is not there")
    return path


def train_all(
    runs: Mapping[str, Config], folder: Path, records: Path, workers: Mapping[str, Any]
) -> list[str]:
    """Trains the runs that have no record, and records them.

    Args:
        runs: by name.
        folder: of the runs' folders; those that are finished there are only recorded, those begun
            go on.
        records: of the records.
        workers: options of :func:`fastsn.gan.sweep.run_jobs`: where, and how many at a time.

    Returns:
        A line for each run that did not end; an empty list also where SIGTERM stopped them all.
    """
    lacking = {name: run for name, run in runs.items() if not is_recorded(run, records)}
    if not lacking:
        return []
    rows = run_jobs([*lacking.values()], folder, **workers)
    ended = [row["run"] for row in rows if row["status"] in SETTLED]
    failed = [row for row in rows if row["status"] in ("failed", "busy")]
    if len(ended) + len(failed) < len(rows):
        sys.stderr.write("stopped; the same command goes on\n")
    return [
        *record_all(ended, folder, records),
        *(f"{folder / row['run']}: {row['status']}: {row['reason']}" for row in failed),
    ]


def record_all(runs: Iterable[str], folder: Path, records: Path) -> list[str]:
    """Records the runs of these names that have ended; a line for each that has not.

    Samples are kept of the runs that sheets of samples are chosen from.
    """
    sheets = [one for one in EXPERIMENTS.values() if one.plot.kind == "samples"]
    shown = plan(sheets, folder.name)
    problems = []
    for name in runs:
        try:
            record_run(folder / name, records, samples=name in shown)
        except (RunDirError, RecordError) as error:
            problems.append(str(error))
    return problems


def is_recorded(config: Config, records: Path) -> bool:
    """Whether there is a record of the whole run; one that is damaged is made again."""
    path = records / f"{config.run_name()}{SUFFIX}"
    if not path.exists():
        return False
    try:
        record = read_record(path)
    except RecordError as error:
        sys.stderr.write(f"{error}; the run is recorded again\n")
        return False
    return record.config.train.steps == config.train.steps
