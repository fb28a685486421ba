"""What is kept of the study's runs: one line for each, in one small file.

The second distance is of the samples that the first one was of: generators are read from the runs'
checkpoints, and ``z`` is drawn anew from the same seeds.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastsn.gan.config import Config, EvalConfig
from fastsn.gan.data.sets import load
from fastsn.gan.measure.diagnostics import WHOLE
from fastsn.gan.measure.metrics import Evaluator
from fastsn.gan.measure.sources import load_source
from fastsn.gan.report import RunFiles, read_run
from fastsn.gan.rng import Rng
from fastsn.gan.run.checkpoint import replace_file, step_path
from fastsn.gan.run.jsonl import read_rows, to_line
from paper.records import RecordError, ending, value_of
from paper.study.plan import Run

__all__ = [
    "SECOND",
    "Entry",
    "Series",
    "line_of",
    "measure_again",
    "read_entries",
    "record",
    "write_entries",
]

#: Weights of the second classifier.
SECOND = Path(__file__).parent / "second.pt"
#: Its rows, in a run's folder.
ROWS = "second.jsonl"
#: Values of evaluations that are kept, by both classifiers.
METRICS = ("distance", "score", "kernel", "precision", "recall")
#: Beginnings of their names in the rows.
BEGIN = {"kernel": "kernel_", "precision": "precision_", "recall": "recall_"}
#: Values of the whole network, from the diagnostics.
NETWORK = ("grad_norm", "log_variance_product")

#: Step -> value, which may be infinite or no number.
Series = dict[int, float]


@dataclass(frozen=True)
class Entry:
    """What is kept of one run.

    Attributes:
        setting, arm, seed: see :class:`paper.study.plan.Run`.
        name: of the run.
        steps: its planned length.
        diverged: whether it ended before that.
        first: values of its evaluations by :data:`METRICS`.
        second: the same by the second classifier, at some of those steps.
        network: :data:`NETWORK`, and of the layers' ``output_grad_norm`` the ``largest`` and the
            ``spread``, the largest over the smallest.
        protocols: of both distances.
    """

    setting: str
    arm: str
    seed: int
    name: str
    steps: int
    diverged: bool
    first: Mapping[str, Series]
    second: Mapping[str, Series]
    network: Mapping[str, Series]
    protocols: tuple[str, str]


# From a run's folder


def record(run: Run, folder: Path, weights: Path = SECOND) -> Entry | None:
    """The entry of a run in its folder; None if it goes on or has not begun.

    Raises:
        RunDirError: the folder is damaged.
        RecordError: a checkpoint that is needed is missing.
    """
    path = folder / run.config.run_name()
    if not (path / "config.yaml").exists() or not (path / "log.jsonl").exists():
        return None
    files = read_run(path)
    end = ending(files)
    if end is None or (end["reason"] == "finished" and end["step"] < run.config.train.steps):
        return None
    diverged = end["reason"] == "diverged"
    again = measure_again(run.config, files, weights, diverged=diverged)
    return Entry(
        run.setting,
        run.arm,
        run.seed,
        path.name,
        run.config.train.steps,
        diverged,
        _series(files.metrics, METRICS),
        _series(again, METRICS),
        {
            **_series([row for row in files.diagnostics if row["layer"] == WHOLE], NETWORK),
            **_layers(files),
        },
        (_protocol(files.metrics), _protocol(again)),
    )


def measure_again(
    config: Config, files: RunFiles, weights: Path, *, diverged: bool = False
) -> list[dict[str, Any]]:
    """Rows as of ``metrics.jsonl``, by other weights of the classifier, kept in the run's folder.

    At the first and the last three evaluations; of runs for late training at all of them. A run
    that has diverged may lack the checkpoint of its last evaluation.
    """
    steps = [row["step"] for row in files.metrics]
    wanted = steps if config.train.steps > 15_000 else sorted({*steps[:1], *steps[-3:]})
    options = EvalConfig(**{**vars(config.eval), "weights": str(weights)})
    known: dict[int, dict[str, Any]] = {}
    evaluator: Evaluator | None = None
    device = torch.device("cpu")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    for row in read_rows(files.path / ROWS, ("step", "protocol")):
        if row["protocol"]["extractor_sha256"] == sha256:
            known[row["step"]] = row
    for step in wanted:
        if step in known:
            continue
        evaluator = evaluator or Evaluator(options, load(config.data), device)
        path = step_path(files.path / "checkpoints", step)
        if not path.exists():
            if diverged:
                continue
            raise RecordError(f"{path}: expected the checkpoint of an evaluation, got none")
        generator = load_source(path, device).generator
        row = evaluator.generator(generator, Rng(config.train.seed, device), step)
        known[step] = {"step": step, **row}
        lines = "".join(to_line(known[step]) for step in sorted(known))
        replace_file(files.path / ROWS, lines.encode())
    return [known[step] for step in wanted if step in known]


def _series(rows: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Series]:
    found: dict[str, Series] = {name: {} for name in names}
    for row in rows:
        for name, series in found.items():
            value = _value(dict(row), name)
            if value is not None:
                series[row["step"]] = float(f"{value:.6g}")
    return found


def _value(row: dict[str, Any], name: str) -> float | None:
    if name in BEGIN:
        name = next((n for n in row if n.startswith(BEGIN[name]) and not n.endswith("_std")), name)
    return value_of(row, name)


def _layers(files: RunFiles) -> dict[str, Series]:
    steps: dict[int, list[float]] = {}
    for row in files.diagnostics:
        if row["layer"] != WHOLE and row.get("output_grad_norm") is not None:
            steps.setdefault(row["step"], []).append(float(row["output_grad_norm"]))
    spread = {step: max(v) / min(v) if min(v) else math.inf for step, v in steps.items()}
    return {
        "largest": {step: float(f"{max(v):.6g}") for step, v in steps.items()},
        "spread": {step: float(f"{v:.6g}") for step, v in spread.items()},
    }


def _protocol(rows: Iterable[Mapping[str, Any]]) -> str:
    found = {json.dumps(row["protocol"], sort_keys=True) for row in rows}
    if len(found) > 1:
        raise RecordError(f"expected one protocol in a run, got {sorted(found)}")
    return found.pop() if found else ""


# The file


def line_of(entry: Entry) -> str:
    """The line of an entry; the same entry, the same bytes."""
    plain = {**vars(entry), "protocols": list(entry.protocols)}
    for part in ("first", "second", "network"):
        plain[part] = {
            name: [
                [step, value if math.isfinite(value) else str(value)]
                for step, value in series.items()
            ]
            for name, series in plain[part].items()
        }
    return json.dumps(plain, separators=(",", ":")) + "\n"


def write_entries(entries: Iterable[Entry], path: Path) -> None:
    """Writes entries in the order of seed, setting and arm."""
    ordered = sorted(entries, key=lambda one: (one.seed, one.setting, one.arm))
    content = "".join(map(line_of, ordered)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, gzip.compress(content, 9, mtime=0))


def read_entries(path: Path) -> list[Entry]:
    """The entries of a file, none if there is no file.

    Raises:
        RecordError: it is damaged, or runs of one setting were measured by different protocols.
    """
    if not path.exists():
        return []
    entries = []
    try:
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            plain = json.loads(line)
            for part in ("first", "second", "network"):
                plain[part] = {
                    name: {int(step): float(value) for step, value in series}
                    for name, series in plain[part].items()
                }
            entries.append(Entry(**{**plain, "protocols": tuple(plain["protocols"])}))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: expected the study's records, got: {error}") from error
    check(entries)
    return entries


def check(entries: Iterable[Entry]) -> None:
    """Raises RecordError if runs of one setting were measured by different protocols."""
    known: dict[str, tuple[str, str]] = {}
    for entry in entries:
        mine = known.setdefault(entry.setting, entry.protocols)
        if all(entry.protocols) and mine != entry.protocols:
            raise RecordError(
                f"{entry.name}: expected the protocols of setting {entry.setting}, {mine}, "
                f"got {entry.protocols}"
            )
