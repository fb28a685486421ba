"""The study's page and figures, from its records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fastsn.gan.plotting import Sheet, colour, drawing, legend
from fastsn.gan.report import markdown_table
from fastsn.gan.run.checkpoint import replace_file
from fastsn.gan.run.jsonl import read_rows
from paper.evidence import shown
from paper.study.claims import Outcome, judge
from paper.study.compare import Result
from paper.study.controls import controls
from paper.study.evidence import END, SCALES, Evidence, whole_seeds
from paper.study.plan import runs, seeds, titles
from paper.study.records import Entry, read_entries

__all__ = ["RECORDS", "REPEATED", "SAMPLED", "SHOWN", "write_report"]

RECORDS, REPEATED = "runs.jsonl.gz", "repeated.jsonl"
#: Setting, seed and arms whose last samples are shown.
SAMPLED = ("A", 0)
SHOWN = ("none", "SN", "BSN", "SN_Conv 1", "SN_Conv 1.75")


def write_report(folder: Path, number_of_seeds: int) -> Path:
    """Writes ``README.md`` and the figures beside the records in a folder.

    Raises:
        RecordError: the records are damaged.
    """
    entries = read_entries(folder / RECORDS)
    whole = whole_seeds(entries, number_of_seeds)
    evidence = Evidence([e for e in entries if e.seed in whole], whole)
    parts = ["# The study", _state(entries, whole, number_of_seeds)]
    if whole:
        outcomes = judge(evidence)
        for primary, title in ((True, "Primary claims"), (False, "Secondary claims")):
            rows = [_claim(o) for o in outcomes if o.claim.primary == primary]
            parts += [f"## {title}", markdown_table(rows)]
        with drawing():
            parts += _figures(evidence, outcomes, folder)
        for setting, title in titles().items():
            parts += [f"## {setting}: {title}", markdown_table(_arms(evidence, setting))]
        parts += ["## Controls", _controls(evidence, folder)]
    shown = [arm for arm in SHOWN if (folder / "samples" / f"{arm}.png").is_file()]
    if shown:
        parts.append("## Last samples of seed 0 in setting A")
    for arm in shown:
        parts += [f"{arm}:", f"![samples of {arm}](<samples/{arm}.png>)"]
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "README.md"
    replace_file(page, ("\n\n".join(parts) + "\n").encode())
    return page


def _state(entries: Sequence[Entry], whole: Sequence[int], number_of_seeds: int) -> str:
    total = len(list(runs(number_of_seeds)))
    diverged = [entry.name for entry in entries if entry.diverged]
    done = len(whole) >= seeds()
    state = "All seeds of the protocol are done." if done else "**Not final.**"
    return (
        f"{state} {len(entries)} of {total} runs are recorded; {len(whole)} whole seeds of "
        f"{number_of_seeds}, on which all tests rest. Diverged: {', '.join(diverged) or 'none'}. "
        "What is asked, measured and tested, and what the verdicts mean, is in "
        "[the protocol](../../protocol.md), written before the runs. Distances are in the features "
        "of small classifiers, so no FIDs. Made by `python -m paper.study report`."
    )


def _claim(outcome: Outcome) -> dict[str, Any]:
    return {
        "claim": outcome.claim.statement,
        "where": outcome.claim.source,
        "here": f"**{outcome.verdict}**",
        "effect, 95 % interval": "; ".join(map(_effect, outcome.results)),
        "p by Holm": "" if outcome.corrected is None else shown(outcome.corrected),
        "by the second classifier": "; ".join(map(_short, outcome.again)),
    }


def _effect(result: Result) -> str:
    part = result.part
    n = " and ".join(str(len(group)) for group in (part.a, part.b) if group is not None)
    failed = f", {part.failed} failed" if part.failed else ""
    return (
        f"{part.what}, {' against '.join(part.names)}: {_amounts(result)}, n = {n}{failed}, "
        f"p {shown(result.p)}, of permutations {shown(result.permutation)}"
    )


def _short(result: Result) -> str:
    return f"{_amounts(result)}, p {shown(result.p)}"


def _amounts(result: Result) -> str:
    effect, low, high = (
        _amount(value, result.part.log) for value in (result.effect, result.low, result.high)
    )
    return f"{effect} ({low} to {high})"


def _amount(value: float, log: bool) -> str:
    if not log:
        return f"{value:+.3g}"
    if abs(value) < math.log(3):
        return f"{100 * math.expm1(value):+.0f} %"
    return f"x {math.exp(min(value, 700)):.3g}"


def _arms(evidence: Evidence, setting: str) -> list[dict[str, Any]]:
    arms = dict.fromkeys(run.arm for run in runs(1) if run.setting == setting)
    second = Evidence(evidence.entries, evidence.seeds, second=True)
    rows = []
    for arm in arms:
        mine = [evidence.entry(setting, arm, seed) for seed in evidence.seeds]
        rows.append(
            {
                "arm": arm,
                "n": len(mine),
                "diverged": sum(entry.diverged for entry in mine),
                "distance": _spread(evidence.values(setting, arm, "end", evidence.seeds)),
                "second distance": _spread(second.values(setting, arm, "end", evidence.seeds)),
                "precision": _at_end(mine, "second", "precision"),
                "recall": _at_end(mine, "second", "recall"),
                "score": _at_end(mine, "first", "score"),
                "kernel distance": _at_end(mine, "first", "kernel"),
            }
        )
    return rows


def _spread(logs: Sequence[float]) -> str:
    """Geometric mean, and the factor of one standard deviation."""
    text = f"{math.exp(fmean(logs)):.4g}"
    return text if len(logs) < 2 else f"{text} x/÷ {math.exp(stdev(logs)):.2f}"


def _at_end(entries: Iterable[Entry], part: str, name: str) -> str:
    """Mean over runs of the last three evaluations; runs that did not come so far are left out."""
    found = [getattr(entry, part).get(name, {}) for entry in entries]
    values = [fmean(s[step] for step in END) for s in found if all(step in s for step in END)]
    return f"{fmean(values):.3g}" if values else "none"


def _controls(evidence: Evidence, folder: Path) -> str:
    rows = [
        {"control": one.name, "should be": one.wanted, "is": one.found}
        for one in controls(evidence)
    ]
    for row in read_rows(folder / REPEATED, ("run", "equal")):
        text = f"Run {row['run']} trained again: its record has equal bytes"
        rows.append({"control": text, "should be": "yes", "is": "yes" if row["equal"] else "no"})
    return markdown_table(rows) if rows else "None yet."


# Figures


def _figures(evidence: Evidence, outcomes: Sequence[Outcome], folder: Path) -> list[str]:
    made = []
    for name, title, draw in (
        ("late", "Distance by iteration, SN and BSN", _late),
        ("scales", "Distance at the end by scale", _scales),
        ("effects", "Effects on the distance, with 95 % intervals", _effects),
    ):
        sheet = Sheet()
        draw(sheet, evidence, outcomes)
        if not sheet.rows:
            continue
        figures = folder / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        sheet.save(figures / f"{name}.png", title)
        lines = "".join(json.dumps(row) + "\n" for row in sheet.rows)
        replace_file(figures / f"{name}.jsonl", lines.encode())
        made.append(f"![{title}](figures/{name}.png)")
    return made


def _late(sheet: Sheet, evidence: Evidence, outcomes: Sequence[Outcome]) -> None:
    panels = sheet.panels(2, (4.6, 3.2))
    for axes, setting in zip(panels, ("A", "B"), strict=True):
        for index, arm in enumerate(("SN", "BSN")):
            for seed in evidence.seeds:
                series = evidence.entry(setting, arm, seed).first["distance"]
                known = [(s, d) for s, d in series.items() if math.isfinite(d) and d > 0]
                steps, values = [s for s, _ in known], [d for _, d in known]
                label = arm if seed == evidence.seeds[0] else None
                axes.plot(steps, values, color=colour(index), label=label, alpha=0.7, linewidth=1)
                sheet.rows += [
                    {"setting": setting, "arm": arm, "seed": seed, "step": s, "distance": d}
                    for s, d in known
                ]
        axes.set_yscale("log")
        axes.set_title(f"{setting}: {titles()[setting]}", fontsize=7)
        axes.set_xlabel("iteration")
        axes.set_ylabel("distance")
        legend(axes)


def _scales(sheet: Sheet, evidence: Evidence, outcomes: Sequence[Outcome]) -> None:
    panels = sheet.panels(3, (3.8, 3.0))
    for axes, setting in zip(panels, ("A", "B", "M"), strict=True):
        for index, (method, arms) in enumerate(SCALES.items()):
            scales = sorted(arms)
            logs = [evidence.values(setting, arms[x], "end", evidence.seeds) for x in scales]
            for x, values in zip(scales, logs, strict=True):
                points = [math.exp(v) for v in values]
                axes.plot([x] * len(points), points, ".", color=colour(index), alpha=0.5)
                sheet.rows.append(
                    {"setting": setting, "method": method, "scale": x, "mean": fmean(values)}
                )
            means = [math.exp(fmean(values)) for values in logs]
            axes.plot(scales, means, color=colour(index), label=method)
        axes.set_yscale("log")
        axes.set_title(f"{setting}: {titles()[setting]}", fontsize=6.5)
        axes.set_xlabel("scale")
        axes.set_ylabel("distance")
        legend(axes)


def _effects(sheet: Sheet, evidence: Evidence, outcomes: Sequence[Outcome]) -> None:
    """A line for each part of a claim: both classifiers, one above the other."""
    pairs = [
        (outcome, pair)
        for outcome in outcomes
        for pair in zip(
            [one for one in outcome.results if one.part.distance], outcome.again, strict=False
        )
    ]
    if not pairs:
        return
    (axes,) = sheet.panels(1, (9.0, 0.26 * len(pairs) + 0.6))
    for place, (outcome, pair) in enumerate(pairs):
        statement, part = outcome.claim.statement, pair[0].part
        names = " against ".join(part.names)
        for number, result in enumerate(pair):
            y, style = -place - 0.3 * number, {"color": colour(number)}
            axes.plot([result.low, result.high], [y, y], **style)
            axes.plot([result.effect], [y], "o", **style)
            ends = {"effect": result.effect, "low": result.low, "high": result.high}
            row = {"claim": statement, "part": f"{part.what}, {names}", "classifier": number + 1}
            sheet.rows.append(row | {name: float(f"{x:.6g}") for name, x in ends.items()})
        label = f"{statement}\n{names}: {part.what}"
        place_of = axes.get_yaxis_transform()
        axes.text(1.01, -place - 0.15, label, fontsize=5.5, va="center", transform=place_of)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([])
    axes.set_xlabel("logarithm of the ratio; blue: first classifier, orange: second")
