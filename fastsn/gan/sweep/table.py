"""The results of a sweep: ``results.jsonl`` and ``results.csv``, a row per run."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, flatten
from fastsn.gan.measure.evaluation import best_value
from fastsn.gan.run.checkpoint import replace_file
from fastsn.gan.run.folder import RunDirError
from fastsn.gan.run.jsonl import read_rows, to_line
from fastsn.gan.sweep.state import State

__all__ = ["Launch", "Table", "varied_options"]


class Table:
    """Rows of a sweep's runs, in its order.

    Args:
        root: folder of the sweep, with the runs' folders in it.
        configs: the runs by name.
    """

    def __init__(self, root: Path, configs: Mapping[str, Config]) -> None:
        self.root, self.configs = root, dict(configs)
        self.states: dict[str, State] = {}
        #: Fingerprints of the images of runs that had been begun.
        self.data: dict[str, Mapping[str, Any] | None] = {}
        self._read_others()  # what cannot be added to is told at once
        self._varied = varied_options(self.configs)
        self._rows: dict[str, dict[str, Any]] = {}

    def _read_others(self) -> dict[str, dict[str, Any]]:
        """Rows of runs that are not this sweep's, which stay in the files."""
        try:
            rows = read_rows(self.root / "results.jsonl", ("run",))
        except ValueError as error:
            raise RunDirError(
                f"{error}: move the file away, and the sweep writes its own"
            ) from None
        return {row["run"]: row for row in rows if row["run"] not in self.configs}

    def set(self, name: str, state: State, data: Mapping[str, Any] | None = None) -> None:
        """Reads what a run has brought so far."""
        if data is not None:
            self.data[name] = data
        self.states[name] = state
        self._rows[name] = self._row(name, state)

    def rows(self) -> dict[str, dict[str, Any]]:
        """By the runs' names: run, status, step, steps, seed, the options that vary, for each
        number of ``metrics.jsonl`` its last value, its best (``_best``) and the best's step
        (``_best_step``), protocol and reason."""
        return {name: self._rows[name] for name in self.configs if name in self._rows}

    def _row(self, name: str, state: State) -> dict[str, Any]:
        config = self.configs[name]
        row: dict[str, Any] = {
            "run": name,
            "status": state.status,
            "step": state.step,
            "steps": config.train.steps,
            "seed": config.train.seed,
        }
        options = dict(flatten(config.to_dict()))
        row |= {option: options[option] for option in self._varied}
        try:
            metrics = read_rows(self.root / name / "metrics.jsonl", ("step",))
        except ValueError as error:  # damaged; the run itself refuses to go on then
            metrics, state = [], State(state.status, state.step, str(error))
        for number in dict.fromkeys(key for found in metrics for key in found):
            values = [found[number] for found in metrics if number in found]
            if number.endswith("_std") or not any(isinstance(value, float) for value in values):
                continue
            best, step = best_value(metrics, number)
            row |= {number: values[-1], f"{number}_best": best, f"{number}_best_step": step}
        protocols = [found["protocol"] for found in metrics if "protocol" in found]
        row["protocol"] = protocols[-1] if protocols else None
        row["reason"] = state.reason or None
        return row

    def write(self) -> None:
        """Replaces both files by those rows, after the ones of other runs that were there.

        Raises:
            OSError: the disk is full, and so on; the files are as they were.
        """
        with open(self.root / "results.lock", "w") as lock:  # another sweep may write as well
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._write([*self._read_others().values(), *self.rows().values()])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        replace_file(self.root / "results.jsonl", "".join(map(to_line, rows)).encode())
        text = io.StringIO()
        # runs without evaluations lack the columns of those with
        names = dict.fromkeys(name for row in rows for name in row)
        ordered = [name for name in names if name not in ("protocol", "reason")]
        writer = csv.DictWriter(text, [*ordered, "protocol", "reason"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            protocol = row.get("protocol") and json.dumps(row["protocol"], sort_keys=True)
            writer.writerow({**row, "protocol": protocol})
        replace_file(self.root / "results.csv", text.getvalue().encode())


#: Attempts the runs named until it is asked to stop, and tells the table what became of them;
#: the last argument is whether it shows progress.
Launch = Callable[[Table, Sequence[str], threading.Event, bool], None]


def varied_options(configs: Mapping[str, Config]) -> list[str]:
    """The options in which the runs differ; not the seed, which has a column of its own."""
    trees = [dict(flatten(config.to_dict())) for config in configs.values()]
    return [
        name
        for name in trees[0]
        if name != "train.seed" and len({repr(tree[name]) for tree in trees}) > 1
    ]
