"""What a check of a theorem is, and how its rows are judged."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["SIZES", "Row", "TheoryCheck", "Verdict", "generator", "judge", "summary"]

#: One case of a check: a flat dict of JSON's types. ``claim`` groups the cases of one statement.
Row = dict[str, Any]

#: ``full``: a dense grid, minutes. ``small``: tens of seconds. ``smoke``: a second or two.
SIZES = ("full", "small", "smoke")

#: Bounds that are attained are met up to rounding, in float64.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """Whether a statement held in all cases that were looked at.

    Attributes:
        statement: with its conditions.
        holds: no case was found against it. No proof: these are numbers.
        checked: number of cases.
        worst: largest ratio of a value to its upper bound, or of a lower bound to its value: above
            1 the statement fails.
        counterexample: the case with that ratio, if the statement fails.
        note: what it means, in plain words.
        printed: whether it is a result as the paper prints it; else it is ours, a step of a proof,
            or the paper's result under other conditions.
        parts: of a summary, the verdicts it is made of.
    """

    statement: str
    holds: bool
    checked: int
    worst: float
    counterexample: Row | None = None
    note: str = ""
    printed: bool = True
    parts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class TheoryCheck:
    """A statement of the paper, checked on numbers, without training.

    Attributes:
        name: of the command, as ``theorem2``.
        title: what it shows.
        source: where the paper states it.
        run: ``(size, seed) -> rows``: the same rows for the same arguments.
        draw: ``(rows, path)``: writes the figure; the suffix of the path chooses PNG or SVG.
        verdict: judges the rows, those read from a file as well.
    """

    name: str
    title: str
    source: str
    run: Callable[[str, int], list[Row]]
    draw: Callable[[Sequence[Row], Path], None]
    verdict: Callable[[Sequence[Row]], Verdict]


def check_size(size: str) -> str:
    if size not in SIZES:
        raise ValueError(f"expected a size in {SIZES}, got {size!r}")
    return size


def generator(seed: int, *case: object) -> torch.Generator:
    """Random numbers of one case, that do not depend on what other cases there are."""
    return torch.Generator().manual_seed(zlib.crc32(repr((seed, *case)).encode()))


def judge(
    statement: str,
    rows: Sequence[Row],
    value: str = "value",
    bound: str = "upper",
    *,
    note: str = "",
    printed: bool = True,
) -> Verdict:
    """The verdict on ``value <= bound`` in every row, by the names of columns.

    A lower bound is judged with the two exchanged.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError(f"expected rows for {statement!r}, got none")
    ratios = [row[value] / row[bound] for row in rows]
    # A nan is no bound that held.
    worst = max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else ratio)
    holds = worst <= 1 + ROUNDING
    found = None if holds else dict(rows[ratios.index(worst)])
    return Verdict(statement, holds, len(rows), worst, found, note, printed)


def summary(statement: str, parts: Sequence[Verdict], note: str) -> Verdict:
    """One verdict on what the paper prints: it holds if all of its printed parts do.

    ``checked``, ``worst`` and ``counterexample`` are those of the printed parts.
    """
    printed = [part for part in parts if part.printed]
    worst = max(printed, key=lambda part: part.worst)
    return Verdict(
        statement,
        all(part.holds for part in printed),
        sum(part.checked for part in printed),
        worst.worst,
        worst.counterexample,
        note,
        parts=tuple(parts),
    )
