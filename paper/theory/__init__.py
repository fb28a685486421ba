"""The paper's theorems and propositions, checked on random numbers; nothing is trained.

A check of inequalities proves none; what it finds against one is a counterexample. The rows are
kept, and verdicts and figures are made of them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from fastsn.gan.plotting import Sheet, drawing
from fastsn.gan.report import markdown_table
from fastsn.gan.run.checkpoint import replace_file
from paper.records import RecordError
from paper.theory import (
    proposition1,
    proposition2,
    proposition3,
    theorem1,
    theorem2,
    theorem3,
    tsuzuku,
)
from paper.theory.check import Check, Row, Verdict, draw_panels

CHECKS: dict[str, Check] = {
    "theorem1": theorem1.CHECK,
    "theorem2": theorem2.CHECK,
    "theorem3": theorem3.CHECK,
    "proposition1": proposition1.CHECK,
    "proposition2": proposition2.CHECK,
    "proposition3": proposition3.CHECK,
    "tsuzuku": tsuzuku.CHECK,
}


def run(names: Iterable[str], size: str, out: Path) -> None:
    """Keeps the rows of the checks that have none yet, ``out/NAME.jsonl.gz``."""
    for name in names:
        path = _path(name, out)
        if not path.exists():
            rows = CHECKS[name].rows(size, 0)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, gzip.compress(text.encode(), mtime=0))


def _path(name: str, folder: Path) -> Path:
    return folder / f"{name}.jsonl.gz"


def _rows(name: str, folder: Path) -> list[Row]:
    path = _path(name, folder)
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, EOFError, ValueError) as error:
        raise RecordError(f"{path}: expected rows of {name}, got: {error}") from error


def verdicts(folder: Path) -> dict[str, Verdict]:
    """The verdicts of the checks whose rows are kept.

    Raises:
        RecordError: they are damaged.
    """
    found = {}
    for name, check in CHECKS.items():
        if _path(name, folder).exists():
            try:
                found[name] = check.verdict(_rows(name, folder))
            except (KeyError, TypeError, ValueError) as error:
                raise RecordError(
                    f"{_path(name, folder)}: expected rows of {name}, got: {error}"
                ) from error
    return found


def draw(name: str, folder: Path, path: Path) -> None:
    """Draws the kept rows of a check as a PNG file."""
    check, rows, sheet = CHECKS[name], _rows(name, folder), Sheet()
    with drawing():
        draw_panels(sheet, check.panels(rows))
        sheet.save(path, f"{check.source}: {check.title}")


def table(verdict: Verdict) -> str:
    """As Markdown: what was checked, how near to its bound it came, and what speaks against it."""
    parts = verdict.parts or (verdict,)
    rows = [
        {
            "statement": part.statement,
            "stated in the paper": "yes" if part.printed else "no",
            "cases": f"{part.checked:,}",
            "largest value / bound": f"{part.worst:.6g}",
            "holds": "yes" if part.holds else "no",
        }
        for part in parts
    ]
    lines = [markdown_table(rows), ""]
    notes = [verdict.note, *(f"{one.statement}: {one.note}" for one in verdict.parts if one.note)]
    lines += [f"- {note}" for note in notes if note]
    for one in parts:
        if one.counterexample is not None:
            case = json.dumps(one.counterexample, ensure_ascii=False)
            lines.append(f"- counterexample to {one.statement}: `{case}`")
    return "\n".join(lines)
