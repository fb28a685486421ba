"""Theorem 3: the variance of entries of random kernels over the norm of BSN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from torch import Tensor

from fastsn.analysis import (
    bsn_variance_bound,
    parameter_variance,
    spectral_norm_exact,
    theorem3_bound,
    theorem3_lower_bound,
)
from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, summary
from paper.theory.variance import (
    DISTRIBUTIONS,
    constant_panel,
    constant_verdict,
    draws,
    moments,
)

#: ``(family, c_out, c_in, k_h, k_w)``
_EQUAL = "equal channels"
_WITHIN = "unequal, within the condition"
_BEYOND = "beyond the condition"
_KERNELS: dict[str, list[tuple[str, int, int, int, int]]] = {
    "smoke": [
        (_EQUAL, 2, 2, 3, 3), (_EQUAL, 16, 16, 3, 3), (_WITHIN, 16, 8, 3, 3),
        (_WITHIN, 64, 3, 7, 7), (_WITHIN, 100, 1, 10, 10), (_BEYOND, 64, 3, 3, 3),
    ],
}  # fmt: skip
_KERNELS["small"] = [
    *((_EQUAL, c, c, 3, 3) for c in (2, 4, 8, 16, 32, 64)),
    *((_EQUAL, c, c, 4, 4) for c in (3, 8, 32)),
    *((_WITHIN, 2 * c, c, 4, 4) for c in (2, 4, 8, 16, 32)),
    *((_WITHIN, c, 2 * c, 3, 3) for c in (4, 16)),
    (_WITHIN, 64, 3, 7, 7), (_WITHIN, 3, 64, 7, 7), (_WITHIN, 100, 1, 10, 10),
    (_WITHIN, 36, 4, 3, 3), (_WITHIN, 2, 1, 64, 64), (_WITHIN, 9, 1, 3, 3),
    *((_BEYOND, c, 3, 3, 3) for c in (32, 64, 128)), (_BEYOND, 1, 128, 4, 4),
]  # fmt: skip
_KERNELS["full"] = [
    *_KERNELS["small"],
    *((_EQUAL, c, c, 3, 3) for c in (3, 6, 12, 24, 48, 96, 128)),
    *((_EQUAL, c, c, 1, 1) for c in (4, 16, 64, 256)),
    *((_EQUAL, c, c, 5, 5) for c in (2, 16, 64)),
    *((_WITHIN, 2 * c, c, 3, 3) for c in (2, 8, 32, 64)),
    *((_WITHIN, 4 * c, c, 4, 4) for c in (2, 8, 32)),
    *((_WITHIN, 9 * c, c, 3, 3) for c in (2, 4, 8)),
    *((_WITHIN, c, 1, 16, 16) for c in (4, 16, 64, 256)),
    (_WITHIN, 1, 100, 10, 10), (_WITHIN, 64, 4, 4, 4), (_WITHIN, 2, 1, 4, 4),
    (_BEYOND, 256, 1, 3, 3), (_BEYOND, 512, 3, 4, 4), (_BEYOND, 3, 256, 3, 3),
]  # fmt: skip


def _rows(size: str, seed: int) -> list[Row]:
    """A row per kernel shape and distribution, as those of Theorem 2 with the sigma of BSN.

    ``upper`` is the bound as printed (None where the theorem's condition is not met), ``proven``
    :func:`fastsn.analysis.bsn_variance_bound`. ``step_1`` to ``step_3`` are the means over draws of
    what the proof (appendix G) compares in turn, over the number of weights: from above, the value
    should be at most step 1, equal after the first "=", at most step 3, which it calls equal to the
    printed bound.
    """
    check_size(size)
    rows = []
    for family, c_out, c_in, *kernel in _KERNELS[size]:
        shape = (c_out, c_in, *kernel)
        k = math.prod(kernel)
        count = draws(size, math.prod(shape) * (c_out + c_in))
        for name, draw in DISTRIBUTIONS.items():
            random = generator(seed, "theorem3", shape, name)
            values, steps = [], []
            for _ in range(count):
                weight = draw(shape, random)
                norms = spectral_norm_exact(weight, 0), spectral_norm_exact(weight, 1)
                values.append(parameter_variance(weight, fmean(norms)))
                steps.append(_proof_steps(weight, *norms))
            row: Row = {"family": family, "c_out": c_out, "c_in": c_in, "kernel": kernel}
            row |= {"distribution": name} | moments(values)
            meets = k >= max(c_out / c_in, c_in / c_out)
            row["upper"] = theorem3_bound(c_out, c_in, kernel) if meets else None
            row["proven"] = bsn_variance_bound(c_out, c_in, kernel)
            row["constant"] = None
            if name == "Gaussian" and meets and min(c_out, c_in) >= 2 and min(c_out, c_in) * k >= 3:
                row["constant"] = row["value"] / theorem3_lower_bound(c_out, c_in, kernel, 1.0)
            for index in (1, 2):
                row[f"step_{index}"] = fmean(step[index - 1] for step in steps)
            row["step_3"] = 2 * (c_out + c_in) / (c_out * c_in * k)
            rows.append(row)
    return rows


def _proof_steps(weight: Tensor, sigma_0: float, sigma_1: float) -> tuple[float, float]:
    """Both sides of the equation of appendix G that follows the singular values' definition."""
    square = parameter_variance(weight)
    return 4 * square / (sigma_0**2 + sigma_1**2), 2 * square * (sigma_0**-2 + sigma_1**-2)


def _verdict(rows: Sequence[Row]) -> Verdict:
    stated = [row for row in rows if row["upper"] is not None]
    return summary(
        "Theorem 3: BSN bounds the variance of random entries from both sides",
        [
            judge(
                "Var(w_ij / sigma_w) <= 2 / (c_in k + c_out k), for k >= max(c_out/c_in, "
                "c_in/c_out)",
                stated,
                fails="For unequal channel numbers. In appendix G the last '=' is wrong: 2 (c_out "
                "+ c_in) / (c_out c_in k) is not 2 / (c_in k + c_out k) but (c_out + c_in)^2 / "
                "(c_out c_in) times that, at least 4 times. The '=' before it is none either (its "
                "right side is at least twice its left), but errs on the safe side.",
            ),
            judge(
                "the same for equal channel numbers",
                [row for row in stated if row["c_out"] == row["c_in"]],
                "largest",
                holds="For each draw: our bound is then the same number.",
                printed=False,
            ),
            judge(
                "Var(w_ij / sigma_w) <= 4 / (n (r_0^-1/2 + r_1^-1/2)^2), without conditions",
                rows,
                "largest",
                "proven",
                holds="fastsn.analysis.bsn_variance_bound; r_d is the smaller side of unfold_d(w), "
                "n the number of weights. For each draw; under the condition it is 4 / (k "
                "(sqrt(c_in) + sqrt(c_out))^2), one to two times what the theorem states.",
                printed=False,
            ),
            constant_verdict(
                "Var(w_ij / sigma_w) >= L / (c_in k log c_out + c_out k log c_in), Gaussian "
                "entries",
                rows,
                _extent,
                "The best L over all sizes is {smallest:.2f}, and {last:.2f} at the largest: it "
                "does not fall with the size.",
            ),
        ],
    )


def _extent(row: Row) -> float:
    return max(row["c_out"], row["c_in"]) * math.prod(row["kernel"])


def _inequality(row: Row) -> float:
    return max(row["c_out"] / row["c_in"], row["c_in"] / row["c_out"])


def _panels(rows: Sequence[Row]) -> list[Panel]:
    stated = [row for row in rows if row["upper"] is not None]
    largest = max(map(_inequality, stated))
    ratios = [largest ** (step / 60) for step in range(61)]
    worst = max(stated, key=lambda row: row["value"] / row["upper"])
    # The chain of the proof, in numbers: each "=" should join values of the same height.
    chain = ("value", "step_1", "step_2", "step_3", "upper")
    named = ("Var", "<= step 1", "= step 2", "<= step 3", "= printed")
    steps = [
        {"step": n, "value": worst[c] / worst["upper"]} for n, c in zip(named, chain, strict=True)
    ]
    shape = (worst["c_out"], worst["c_in"], *worst["kernel"])
    return [
        Panel(
            "Var(w / sigma_w) over the printed bound", "ratio of the channel numbers",
            "variance / bound as printed", stated, _inequality,
            lambda row: row["value"] / row["upper"], lambda row: row["distribution"],
            (1.0, "bound as printed"), log="x", top=2.3,
            guide=(
                "bound that always holds", ratios, [2 * (1 + r) / (1 + r**0.5) ** 2 for r in ratios]
            ),
        ),
        Panel(
            f"Appendix G in numbers, kernel {shape}", "", "over the printed bound", steps,
            lambda row: row["step"], lambda row: row["value"], lambda row: "steps of the proof",
            None,
        ),
        constant_panel(rows, _extent, "max(c_in, c_out) k"),
    ]  # fmt: skip


CHECK = Check(
    "Variance of random entries under BSN", "Theorem 3, section 5.1", _rows, _panels, _verdict
)
