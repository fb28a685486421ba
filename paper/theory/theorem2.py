"""Theorem 2: the variance of entries of random matrices over their spectral norm."""

from __future__ import annotations

from collections.abc import Sequence

from fastsn.analysis import (
    parameter_variance,
    spectral_norm_exact,
    theorem2_bound,
    theorem2_lower_bound,
)
from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, summary
from paper.theory.variance import (
    DISTRIBUTIONS,
    constant_panel,
    constant_verdict,
    draws,
    moments,
)

_MATRICES: dict[str, list[tuple[str, int, int]]] = {
    "smoke": [
        ("square", 4, 4), ("square", 32, 32), ("1 : 4", 2, 8), ("1 : 4", 16, 64),
        ("4 : 1", 64, 16), ("2 x n", 2, 3), ("2 x n", 2, 64), ("one row", 1, 5),
    ],
    "small": [
        *(("square", n, n) for n in (3, 4, 8, 16, 32, 64, 128)),
        *(("1 : 4", n, 4 * n) for n in (2, 4, 8, 16, 32, 64)),
        *(("4 : 1", 4 * n, n) for n in (2, 8, 32)),
        *(("2 x n", 2, n) for n in (3, 4, 8, 32, 128, 512)),
        ("one row", 1, 5),
    ],
}  # fmt: skip
_MATRICES["full"] = [
    *(("square", n, n) for n in (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)),
    *(("1 : 4", n, 4 * n) for n in (2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512)),
    *(("4 : 1", 4 * n, n) for n in (2, 4, 8, 16, 32, 64, 128, 256, 512)),
    *(("2 x n", 2, n) for n in (3, 4, 6, 8, 16, 32, 64, 128, 512, 2048, 8192)),
    *(("one row", 1, n) for n in (1, 2, 5, 64, 1024)),
    *(("one row", n, 1) for n in (2, 64)),
]


def _rows(size: str, seed: int) -> list[Row]:
    """A row per shape and distribution.

    ``value`` is the estimate of ``Var(a_ij / ||A||)`` from ``draws`` matrices (by symmetry the mean
    over draws and entries of the square), ``stderr`` its standard error, ``largest`` the largest of
    a single draw, ``upper`` the bound of the theorem. For Gaussian entries ``constant`` is the
    largest ``L`` for which the lower bound holds.
    """
    check_size(size)
    rows = []
    for family, m, n in _MATRICES[size]:
        for name, draw in DISTRIBUTIONS.items():
            random = generator(seed, "theorem2", m, n, name)
            matrices = (draw((m, n), random) for _ in range(draws(size, m * n * min(m, n))))
            values = [parameter_variance(a, spectral_norm_exact(a)) for a in matrices]
            row: Row = {"family": family, "m": m, "n": n, "distribution": name}
            row |= moments(values) | {"upper": theorem2_bound(m, n), "constant": None}
            if name == "Gaussian" and min(m, n) >= 2 and max(m, n) >= 3:
                row["constant"] = row["value"] / theorem2_lower_bound(m, n, constant=1.0)
            rows.append(row)
    return rows


def _verdict(rows: Sequence[Row]) -> Verdict:
    closest = min(row["value"] / row["upper"] for row in rows if row["constant"] is not None)
    return summary(
        "Theorem 2: SN bounds the variance of random entries from both sides",
        [
            judge(
                "Var(a_ij / ||A||) <= 1 / max(m, n), for i.i.d. symmetric entries",
                rows,
                "largest",
                holds="It holds for each single draw, not just in the mean: the squared entries "
                "sum to at most min(m, n) ||A||^2. A single row or column attains it.",
            ),
            constant_verdict(
                "Var(a_ij / ||A||) >= L / (max(m, n) log min(m, n)), Gaussian entries, one L for "
                "all sizes",
                rows,
                _extent,
                "The best L over all sizes is {smallest:.2f}, that of a small one, and {last:.2f} "
                "at the largest: L does not fall with the size, because the variance is at least "
                f"{closest:.2f} of the upper bound everywhere, without a logarithm.",
            ),
        ],
    )


def _extent(row: Row) -> float:
    return max(row["m"], row["n"])


def _panels(rows: Sequence[Row]) -> list[Panel]:
    return [
        Panel(
            "Var(a / ||A||) over 1 / max(m, n)", "max(m, n)", "variance / upper bound", rows,
            _extent, lambda row: row["value"] / row["upper"], lambda row: row["distribution"],
            (1.0, "upper bound"), log="x", top=1.4,
        ),
        constant_panel(rows, _extent, "max(m, n)"),
    ]  # fmt: skip


CHECK = Check(
    "Variance of random entries under SN", "Theorem 2, section 4", _rows, _panels, _verdict
)
