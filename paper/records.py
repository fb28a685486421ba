"""What is kept of a run: one small file of its options and rows, perhaps with its last samples.

Figures and tables are drawn from these files alone. The first line is an object: the
run's name, options, environment and the columns of its tables; every other line is a row of one
table, ``["log", 50, 1.31, ...]``, with null in columns that the row does not have.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, ConfigError, from_dict
from fastsn.gan.measure.diagnostics import WHOLE
from fastsn.gan.report import RunFiles, read_run
from fastsn.gan.run.checkpoint import replace_file

#: Of records' names.
SUFFIX = ".jsonl.gz"
#: What a damaged record may raise.
READING = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, ConfigError)
#: Rows of losses that are kept.
LOG_ROWS = 60
#: Rows of images that are kept of the last grid of samples.
SAMPLE_ROWS = 4
TABLES = ("log", "diagnostics", "metrics", "events")
#: Columns that tell of the machine and the moment, not of the run.
LEFT_OUT = frozenset({"steps_per_s", "images_per_s", "memory_mib", "time"})
#: Parts of the environment that numbers depend on; the rest names folders.
ENVIRONMENT = ("fastsn", "torch", "python", "platform", "threads", "gpus")
#: What begins the names of values that an extractor names by what it is.
BY_EXTRACTOR = {"score": ("is_", "score_"), "distance": ("fid_", "frechet_")}
#: Values of a layer that are quotients of two of its columns.
QUOTIENTS = {
    "conv_ratio": ("conv_norm", "sigma_0"),
    "conv_ratio_lower": ("conv_lower", "sigma_0"),
    "conv_ratio_upper": ("conv_upper", "sigma_0"),
}


Rows = list[dict[str, Any]]


class RecordError(ValueError):
    """A record that cannot be read, or a run that cannot be recorded; the message names it."""


@dataclass(frozen=True)
class Record:
    """What a run's record says.

    Attributes:
        name: :meth:`.Config.run_name`.
        config: all options, but for ``data.root`` and ``eval.weights``, which are None.
        environment: versions, processors and GPUs.
        log: at most :data:`LOG_ROWS` rows of losses.
        diagnostics: rows of :func:`fastsn.gan.measure.diagnostics.diagnose`, with ``step``.
        metrics: rows of evaluations, with ``step`` and ``protocol``.
        events: how the run ended: one row with ``event``, ``step``, ``reason`` and ``why``.
        samples: picture of the last samples, if any were drawn.
    """

    name: str
    config: Config
    environment: dict[str, Any]
    log: Rows
    diagnostics: Rows
    metrics: Rows
    events: Rows
    samples: Path | None


# Writing


def record_run(run: Path, out: Path, *, samples: bool = True) -> Path:
    """Records a run's folder as ``out/NAME.jsonl.gz``, and with ``samples`` as ``out/NAME.png``.

    The same run gives the same bytes, resumed or not.

    Returns:
        The first of the two files.

    Raises:
        RunDirError: the folder is not a run's.
        RecordError: the run has neither finished nor diverged.
    """
    files = read_run(run)
    end = ending(files)
    if end is None:
        raise RecordError(
            f"{run}: expected a run that has finished or diverged, got one that goes on"
        )
    tables = {
        "log": _thinned(files.log),
        "diagnostics": files.diagnostics,
        "metrics": files.metrics,
        "events": [end],
    }
    columns = {table: _columns(rows) for table, rows in tables.items()}
    config = replace(
        files.config,
        data=replace(files.config.data, root=None),
        eval=replace(files.config.eval, weights=None),
    )
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    name = config.run_name()
    head = {
        "name": name,
        "config": config.to_dict(),
        "environment": {name: environment.get(name) for name in ENVIRONMENT},
        "columns": columns,
    }
    lines: list[Any] = [head]
    for table, rows in tables.items():
        lines += [[table, *(_short(row.get(column)) for column in columns[table])] for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    if samples and files.last_samples is not None:
        replace_file(out / f"{name}.png", few_samples(files))
    path = out / f"{name}{SUFFIX}"
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    replace_file(path, gzip.compress(text.encode(), mtime=0))
    return path


def ending(files: RunFiles) -> dict[str, Any] | None:
    """The event a run ended with, if it has finished or diverged."""
    stops = [row for row in files.events if row["event"] == "stop"]
    if not stops:
        return None
    last = stops[-1]
    if last["reason"] == "finished" and last["step"] >= files.config.train.steps:
        return {name: last[name] for name in ("event", "step", "reason")} | {"why": None}
    if last["reason"] == "diverged":
        return {name: last[name] for name in ("event", "step", "reason", "why")}
    return None


def _thinned(rows: Rows) -> Rows:
    """Every n-th row, counted from the end, so that the last one stays."""
    return rows[:: -math.ceil(len(rows) / LOG_ROWS)][::-1]


def _columns(rows: Rows) -> list[str]:
    return [name for name in dict.fromkeys(n for row in rows for n in row) if name not in LEFT_OUT]


def _short(value: Any) -> Any:
    """Floats with six significant digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def few_samples(files: RunFiles) -> bytes:
    """The first rows of a run's last samples, as PNG; it must have some."""
    from PIL import Image

    with Image.open(str(files.last_samples)) as picture:
        columns = math.ceil(math.sqrt(files.config.log.n_samples))
        height = SAMPLE_ROWS * (picture.width + 1) // columns - 1
        part = picture.crop((0, 0, picture.width, min(height, picture.height)))
    content = io.BytesIO()
    part.save(content, format="PNG", optimize=True)
    return content.getvalue()


# Reading


def read_record(path: Path) -> Record:
    """The record in a file that :func:`record_run` wrote.

    Raises:
        RecordError: it is missing or damaged.
    """
    try:
        text = gzip.decompress(path.read_bytes()).decode()
        head, *lines = [json.loads(line) for line in text.splitlines()]
        config = from_dict(head["config"])
        columns = {name: head["columns"][name] for name in TABLES}
        tables: dict[str, Rows] = {name: [] for name in TABLES}
        for name, *cells in lines:
            tables[name].append(dict(zip(columns[name], cells, strict=True)))
        if not tables["events"]:  # the last line
            raise ValueError("no row that says how the run ended")
        if config.run_name() != head["name"]:
            raise ValueError(f"options of {config.run_name()} under the name {head['name']}")
    except READING as error:
        raise RecordError(
            f"{path}: expected the record of a run, got: {type(error).__name__}: {error}"
        ) from error
    samples = path.with_name(f"{path.name.removesuffix(SUFFIX)}.png")
    return Record(
        head["name"],
        config,
        head["environment"],
        **tables,
        samples=samples if samples.is_file() else None,
    )


def read_records(folder: Path) -> dict[str, Record]:
    """All records in a folder, by the name of the run.

    Raises:
        RecordError: a record is damaged.
    """
    found = [read_record(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return {record.name: record for record in found}


# Values


def value_of(row: dict[str, Any], name: str) -> float | None:
    """A value of a row by the name it has in :mod:`paper.catalog`, perhaps not finite; None if the
    row has none.

    ``score`` and ``distance`` are the row's own, by whatever extractor. ``conv_ratio``,
    ``conv_ratio_lower`` and ``conv_ratio_upper`` are the convolution's norm, and its bounds, over
    the norm of the kernel reshaped to ``[c_out, c_in k k]``.
    """
    if name in QUOTIENTS:
        above, below = (value_of(row, part) for part in QUOTIENTS[name])
        return above / below if above is not None and below else None
    if name in BY_EXTRACTOR:
        found = (n for n in row if n.startswith(BY_EXTRACTOR[name]) and not n.endswith("_std"))
        name = next(found, name)
    value = row.get(name)
    return None if value is None else float(value)  # "nan" and "inf" are written as strings


def values(record: Record, name: str) -> list[tuple[int, float]]:
    """``(step, value)`` of the network or of the evaluations."""
    whole = [row for row in record.diagnostics if row["layer"] == WHOLE]
    return list(_known([*record.metrics, *whole], name))


def layer_values(record: Record, name: str) -> dict[str, list[tuple[int, float]]]:
    """``(step, value)`` of each layer that has the value, in the layers' order."""
    layers = dict.fromkeys(row["layer"] for row in record.diagnostics if row["layer"] != WHOLE)
    found = {
        layer: list(_known([row for row in record.diagnostics if row["layer"] == layer], name))
        for layer in layers
    }
    return {layer: points for layer, points in found.items() if points}


def _known(rows: Rows, name: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        value = value_of(row, name)
        if value is not None:
            yield row["step"], value


# One number of a run

#: Which end of a value is its good one.
BETTER = {"score": max, "distance": min}


def diverged(record: Record) -> bool:
    return any(event.get("reason") == "diverged" for event in record.events[-1:])


def pick(record: Record, value: str, which: str) -> tuple[int, float] | None:
    """The step and the value of a run; None where the run has failed, or has no such value.

    Args:
        which: ``"last"``, which must be finite, of a run that has not diverged; or ``"best"`` of
            the finite ones of the evaluations' ``score`` and ``distance``.
    """
    found = values(record, value)
    finite = [point for point in found if math.isfinite(point[1])]
    if which == "last":
        last = max(found, key=lambda point: point[0], default=None)
        return None if diverged(record) or last not in finite else last
    if which != "best" or value not in BETTER:
        raise ValueError(
            f"expected the 'last' value or the 'best' of {' or '.join(BETTER)}, "
            f"got the {which!r} of {value}"
        )
    return BETTER[value](finite, key=lambda point: point[1], default=None)


def at_moment(points: list[tuple[int, float]], step: float) -> tuple[int, float] | None:
    """The finite point nearest to a step, the earlier of two."""
    finite = [point for point in points if math.isfinite(point[1])]
    return min(finite, key=lambda point: (abs(point[0] - step), point[0]), default=None)
