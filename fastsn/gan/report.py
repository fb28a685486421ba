"""Curves and samples of one or several runs: PNG files and one HTML page that shows them.

Everything comes from the runs' own files, so a report can be made again, elsewhere and later.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, flatten, read_config
from fastsn.gan.measure.evaluation import best_value
from fastsn.gan.run.folder import RunDirError
from fastsn.gan.run.jsonl import read_rows

__all__ = ["RunFiles", "read_run", "report"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder says."""

    name: str
    path: Path
    config: Config
    log: Rows
    diagnostics: Rows
    metrics: Rows
    events: Rows

    @property
    def last_samples(self) -> Path | None:
        """The newest sample grid."""
        return max((self.path / "samples").glob("step-*.png"), default=None)


def read_run(path: Path) -> RunFiles:
    """The files of a run.

    Raises:
        RunDirError: the folder is missing, not a run's, or has logged nothing yet.
    """
    if not (path / "config.yaml").is_file():
        raise RunDirError(f"{path}: expected the folder of a run, got no config.yaml in it")
    tables = {
        name: read_rows(path / f"{name}.jsonl")
        for name in ("log", "diagnostics", "metrics", "events")
    }
    if not tables["log"]:
        raise RunDirError(f"{path}: expected rows in log.jsonl, got a run that has logged nothing")
    return RunFiles(path.resolve().name, path, read_config(path / "config.yaml"), **tables)


def report(runs: Sequence[Path], out: Path) -> Path:
    """Writes the report of ``runs`` to the folder ``out``.

    Returns:
        The page, ``out/index.html``.

    Raises:
        RunDirError: a folder is not a run's, or two have one name.
        ConfigError: matplotlib is missing.
    """
    read = [read_run(path) for path in runs]
    names = [run.name for run in read]
    if len(set(names)) < len(names):
        raise RunDirError(f"expected runs with different names, got {', '.join(sorted(names))}")
    if out.exists() and not out.is_dir():
        raise RunDirError(f"{out}: expected a folder for the report, got a file")
    from fastsn.gan.figures import FIGURES, save_figure

    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for figure in FIGURES:
        file = f"{figure.name}.png"
        if save_figure(figure, read, out / file):
            pictures.append((figure.title, file))
    for run in read:
        if run.last_samples is not None:
            file = f"samples-{run.name}.png"
            shutil.copyfile(run.last_samples, out / file)
            pictures.append((f"Samples of {run.name}, {run.last_samples.stem}", file))
    page = out / "index.html"
    page.write_text(_page(read, pictures), encoding="utf-8")
    return page


def _page(runs: Sequence[RunFiles], pictures: Sequence[tuple[str, str]]) -> str:
    title = "fastsn: " + ", ".join(run.name for run in runs)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;"
        "border-bottom:1px solid #ddd}td.n{text-align:right}img{max-width:100%}"
        "img.s{image-rendering:pixelated;min-width:30em}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        _table("Runs", _summary(runs)),
        _table("Metrics", _last_metrics(runs)),
        _table("Options that differ", _options(runs)),
    ]
    for caption, file in pictures:
        kind = ' class="s"' if file.startswith("samples-") else ""
        caption, file = html.escape(caption), html.escape(file, quote=True)
        parts.append(f'<h2>{caption}</h2><img{kind} src="{file}" alt="{caption}">')
    return "\n".join([*filter(None, parts), "</body></html>", ""])


def _summary(runs: Sequence[RunFiles]) -> Rows:
    rows = []
    for run in runs:
        last = run.log[-1]
        rates = sorted(row["steps_per_s"] for row in run.log)
        ends = [row for row in run.events if row["event"] == "stop"]
        rows.append(
            {
                "run": run.name,
                "iterations": f"{last['step']} of {run.config.train.steps}",
                "resumed": sum(row["event"] == "resume" for row in run.events),
                "stopped": ends[-1].get("why", ends[-1]["reason"]) if ends else "not yet",
                "loss of D": last["loss_d"],
                "loss of G": last["loss_g"],
                "iterations / s, median": rates[len(rates) // 2],
                "memory, MiB": last["memory_mib"],
            }
        )
    return rows


def _last_metrics(runs: Sequence[RunFiles]) -> Rows:
    """The last and, beside it, the best row of each number, with the protocol as it was stored."""
    rows: Rows = []
    for run in runs:
        if not run.metrics:
            continue
        last = run.metrics[-1]
        for name, value in last.items():
            if not isinstance(value, float):
                continue
            best, at = best_value(run.metrics, name)
            rows.append(
                {"run": run.name, "number": name, "last": value, "best": best, "at step": at}
            )
        protocol = last.get("protocol")
        if protocol is not None:
            rows.append({"run": run.name, "number": "protocol", "last": json.dumps(protocol)})
    return rows


def _options(runs: Sequence[RunFiles]) -> Rows:
    trees = [dict(flatten(run.config.to_dict())) for run in runs]
    return [
        {"option": name, **{run.name: tree[name] for run, tree in zip(runs, trees, strict=True)}}
        for name in trees[0]
        if len({repr(tree[name]) for tree in trees}) > 1
    ]


def _table(title: str, rows: Rows) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>"]
    for row in rows:
        cells = []
        for name in names:
            value = row.get(name, "")
            number = isinstance(value, (int, float))
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            cells.append(f"<td{' class=n' if number else ''}>{html.escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])
