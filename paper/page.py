"""One HTML page of a folder of results: figures, tables, captions, and the runs behind them."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastsn.gan.run.jsonl import read_rows
from paper.captions import counted, title_of
from paper.records import Record, read_record
from paper.registry import EXPERIMENTS, plan
from paper.scales import SCALES, setting
from paper.spec import Experiment

__all__ = ["page"]

STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:.8em 0}td,th{padding:.2em .7em;text-align:left;"
    "border-bottom:1px solid #ddd}td.n,th.n{text-align:right}img{max-width:100%}"
    "h2{margin-top:2em;border-top:1px solid #ddd;padding-top:.8em}.s{color:#555}"
    "nav a{margin-right:.8em}summary{cursor:pointer;color:#555}code{font-size:90%}"
)


def page(results: Path, out: Path) -> Path:
    """Writes one page about the results of a scale.

    Args:
        results: the folder of a scale, ``results/small``, with ``figures/`` (``NAME.png``,
            ``NAME.svg`` and the numbers drawn, ``NAME.jsonl``), ``tables/`` (``NAME.md``) and
            ``runs/`` (records). Figures that belong to no experiment are shown after the others.
        out: the page; it refers to the pictures where they are.

    Returns:
        ``out``.

    Raises:
        ValueError: the folder is not one of a scale.
        RecordError: a record is damaged.
    """
    scale = results.resolve().name
    if scale not in SCALES or not results.is_dir():
        raise ValueError(
            f"{results}: expected the folder of the results of {', '.join(SCALES[:-1])} or "
            f"{SCALES[-1]}, got {'another' if results.is_dir() else 'none'}"
        )
    records = {path.stem: read_record(path) for path in sorted((results / "runs").glob("*.jsonl"))}
    drawn = {path.stem for path in (results / "figures").glob("*.png")}
    drawn |= {path.stem for path in (results / "tables").glob("*.md")}
    shown = [experiment for experiment in EXPERIMENTS.values() if experiment.name in drawn]
    others = sorted(drawn - EXPERIMENTS.keys(), key=_natural)
    base = out.parent
    title = f"fastsn: results at scale {scale}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="s">Made of {counted(len(records), "recorded run")}. {_environments(records)}'
        " Each picture is also an SVG file, and its numbers are in the file beside it.</p>",
        "<nav>",
        *(f'<a href="#{name}">{name}</a>' for name in [*(e.name for e in shown), *others]),
        "</nav>",
    ]
    for experiment in shown:
        parts += _experiment(experiment, scale, results, base, records)
    for name in others:
        parts += [f'<h2 id="{name}">{html.escape(_spoken(name))}</h2>']
        parts += _content(name, _spoken(name), results, base)
    absent = [experiment for experiment in EXPERIMENTS.values() if experiment.name not in drawn]
    if absent:
        parts += ["<h2>Not drawn at this scale</h2><ul>"]
        parts += [f"<li>{html.escape(title_of(experiment))}</li>" for experiment in absent]
        parts += ["</ul>"]
    base.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*parts, "</body></html>", ""]), encoding="utf-8")
    return out


def _experiment(
    experiment: Experiment, scale: str, results: Path, base: Path, records: Mapping[str, Record]
) -> list[str]:
    planned = plan([experiment], scale)
    runs = [records[name] for name in planned if name in records]
    said = "; ".join(filter(None, (f"Paper: {experiment.source}", setting(experiment, scale))))
    title = title_of(experiment)
    return [
        f'<h2 id="{experiment.name}">{html.escape(title)}</h2>',
        f'<p class="s">{html.escape(said)}</p>',
        *_content(experiment.name, title, results, base),
        *_runs(runs, len(planned)),
    ]


def _content(name: str, title: str, results: Path, base: Path) -> list[str]:
    """Picture, notes and table, as far as there are any."""
    parts = []
    png, svg, numbers = (results / "figures" / f"{name}.{e}" for e in ("png", "svg", "jsonl"))
    if png.is_file():
        image = f'<img src="{_link(png, base)}" alt="{html.escape(title, quote=True)}">'
        parts.append(f'<a href="{_link(svg, base)}">{image}</a>' if svg.is_file() else image)
    if numbers.is_file():
        notes = [row["text"] for row in read_rows(numbers) if row.get("kind") == "note"]
        parts += [f'<p class="s">{html.escape(" ".join(notes))}</p>'] if notes else []
        parts.append(f'<p class="s"><a href="{_link(numbers, base)}">numbers</a></p>')
    table = results / "tables" / f"{name}.md"
    if table.is_file():
        parts += _of_markdown(table.read_text(encoding="utf-8").splitlines())
    return parts


def _runs(runs: Sequence[Record], planned: int) -> list[str]:
    if not planned:
        return []
    lines = [f"<details><summary>{len(runs)} of {counted(planned, 'run')}</summary><ul>"]
    for record in runs:
        end = record.events[-1]
        said = f"{end['reason']} at iteration {end['step']:,}"
        lines.append(f"<li><code>{html.escape(record.name)}</code> {html.escape(said)}</li>")
    return [*lines, "</ul></details>"]


def _environments(records: Mapping[str, Record]) -> str:
    """The versions and machines of the runs, each once."""
    said: dict[str, None] = {}
    for record in records.values():
        of: Mapping[str, Any] = record.environment
        gpus = ", ".join(dict.fromkeys(of.get("gpus") or [])) or "CPU"
        versions = ", ".join(f"{name} {of.get(name)}" for name in ("fastsn", "torch", "python"))
        said.setdefault(f"{versions}, {gpus}")
    return html.escape("; ".join(said) + ".") if said else ""


def _of_markdown(lines: Iterable[str]) -> list[str]:
    """The Markdown of :mod:`.tables`: paragraphs, lists, tables and bold text."""
    parts: list[str] = []
    block = ""  # what is open: "", "ul" or "table"
    for line in [*lines, ""]:
        kind = "table" if line.startswith("|") else "ul" if line.startswith("- ") else ""
        if kind != block:
            parts += [f"</{block}>"] if block else []
            parts += [f"<{kind}>"] if kind else []
        if kind == "table" and not re.fullmatch(r"[|\-: ]+", line):
            tag = "th" if block != "table" else "td"
            first, *cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
            rest = "".join(f'<{tag} class="n">{cell}</{tag}>' for cell in cells)
            parts.append(f"<tr><{tag}>{first}</{tag}>{rest}</tr>")
        elif kind == "ul":
            parts.append(f"<li>{html.escape(line[2:])}</li>")
        elif line and not kind:
            bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(line))
            parts.append(f"<p>{bold}</p>")
        block = kind
    return parts


def _link(path: Path, base: Path) -> str:
    return html.escape(Path(os.path.relpath(path, base)).as_posix(), quote=True)


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]
