"""The theory checks as experiments: rows that are kept, figures and verdicts drawn from them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fastsn.gan.run.jsonl import read_rows
from paper.outputs import Drawn, Results, write_rows, write_text
from paper.records import RecordError
from paper.theory.checks import Row, TheoryCheck, Verdict

__all__ = ["draw_checks", "run_checks", "verdicts"]


def run_checks(checks: Iterable[TheoryCheck], scale: str, out: Results) -> None:
    """Keeps the rows of the checks that have none yet."""
    for check in checks:
        path = out.theory / f"{check.name}.jsonl"
        if not path.exists():
            write_rows(path, check.run(scale, 0))


def draw_checks(checks: Iterable[TheoryCheck], source: Results, out: Results) -> list[Drawn]:
    """Draws the checks whose rows are kept.

    Raises:
        RecordError: they are damaged.
    """
    done = []
    for check in checks:
        path, file = source.theory / f"{check.name}.jsonl", None
        if path.exists():
            file = out.tables / f"{check.name}.md"
            out.figures.mkdir(parents=True, exist_ok=True)
            try:
                rows = read_rows(path)
                verdict = check.verdict(rows)
                for suffix in (".png", ".svg"):
                    check.draw(rows, out.figures / f"{check.name}{suffix}")
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{path}: expected rows of {check.name}, got: {error}") from error
            write_text(file, _verdict(check, verdict))
        done.append(Drawn(check.name, check.title, check.source, 0, 0, file))
    return done


def verdicts(checks: Iterable[TheoryCheck], source: Results) -> dict[str, Verdict]:
    """The verdicts of the checks whose rows are kept, by where the paper states them."""
    paths = {check: source.theory / f"{check.name}.jsonl" for check in checks}
    return {
        check.source: check.verdict(read_rows(path))
        for check, path in paths.items()
        if path.exists()
    }


def _verdict(check: TheoryCheck, verdict: Verdict) -> str:
    """As Markdown: what was checked, how near to its bound it came, and what speaks against it."""
    lines = [
        f"**{check.source}: {check.title}**",
        "",
        "| statement | stated in the paper | cases | largest value / bound | holds |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for one in verdict.parts or (verdict,):
        printed, holds = ("yes" if flag else "no" for flag in (one.printed, one.holds))
        statement = one.statement.replace("|", "\\|")
        lines.append(f"| {statement} | {printed} | {one.checked:,} | {one.worst:.6g} | {holds} |")
    notes = [verdict.note, *(f"{one.statement}: {one.note}" for one in verdict.parts if one.note)]
    lines += ["", *(f"- {note}" for note in notes if note)]
    for one in verdict.parts or (verdict,):
        if one.counterexample is not None:
            lines.append(f"- counterexample to {one.statement}: {_case(one.counterexample)}")
    return "\n".join([*lines, ""])


def _case(row: Row) -> str:
    return f"`{json.dumps(row, ensure_ascii=False)}`"
