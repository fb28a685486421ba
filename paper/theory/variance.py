"""What Theorems 2 and 3 share: random entries, their moments, and constants of lower bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev

import torch
from torch import Tensor

from paper.theory.check import Panel, Row, Verdict, check_size, judge


def _uniform(shape: Sequence[int], random: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=random) * 2 - 1


def _gaussian(shape: Sequence[int], random: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=random)


def _laplace(shape: Sequence[int], random: torch.Generator) -> Tensor:
    u = _uniform(shape, random)
    return -u.sign() * torch.log1p(-u.abs())


def _rademacher(shape: Sequence[int], random: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=random).to(torch.float64) * 2 - 1


def _student_t2(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Two degrees of freedom: the raw entries have no variance, the normalized ones do."""
    # chi^2 of two degrees of freedom, over 2, is exponential
    waiting = -torch.log1p(-torch.rand(shape, dtype=torch.float64, generator=random))
    return _gaussian(shape, random) / waiting.clamp_min(1e-300).sqrt()


#: Symmetric with mean zero; the theorems ask for no more in their upper bounds.
DISTRIBUTIONS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {
    "Gaussian": _gaussian,
    "uniform": _uniform,
    "Laplace": _laplace,
    "Rademacher": _rademacher,
    "Student t, 2 d.o.f.": _student_t2,
}

#: Multiplications of singular value decompositions per case, and the least and most draws.
_BUDGET = {"full": (2e8, 6, 400), "small": (2e7, 5, 200), "smoke": (1e6, 4, 60)}


def draws(size: str, multiplications: int) -> int:
    budget, least, most = _BUDGET[check_size(size)]
    return int(min(most, max(least, budget / multiplications)))


def moments(values: Sequence[float]) -> Row:
    return {
        "draws": len(values),
        "value": fmean(values),
        "stderr": stdev(values) / math.sqrt(len(values)),
        "largest": max(values),
    }


def constant_verdict(
    statement: str, rows: Iterable[Row], extent: Callable[[Row], float], note: str
) -> Verdict:
    """Whether the constant of the larger half of the sizes is at least that of the smaller."""
    known = sorted((row for row in rows if row["constant"] is not None), key=extent)
    half = len(known) // 2
    least = min(row["constant"] for row in known[:half])
    judged = [{**row, "least_of_smaller": least} for row in known[half:]]
    numbers = {"smallest": min(row["constant"] for row in known), "last": known[-1]["constant"]}
    return judge(
        statement,
        judged,
        "least_of_smaller",
        "constant",
        holds=note.format(**numbers),
    )


def constant_panel(rows: Sequence[Row], extent: Callable[[Row], float], label: str) -> Panel:
    """The constant of a lower bound over the size: it must not fall to zero."""
    known = [row for row in rows if row["constant"] is not None]
    least = min(row["constant"] for row in known)
    return Panel(
        "Constant L of the lower bound (Gaussian)", label, "L", known, extent,
        lambda row: row["constant"], lambda row: row["family"], None, log="x",
        guide=(f"smallest: {least:.2f}", [min(map(extent, known)), max(map(extent, known))],
               [least, least]),
    )  # fmt: skip
