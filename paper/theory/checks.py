"""The paper's theorems and propositions, checked on random numbers; nothing is trained.

A check's way: its rows (:mod:`.theory_variance`, :mod:`.theory_gradients`,
:mod:`.theory_convnets`, :mod:`.theory_rescaling`, :mod:`.theory_theorem1`,
:mod:`.theory_convolutions`) -> its verdict and its figure. The bounds are those of
:mod:`fastsn.analysis`. A check of inequalities proves none; what it finds against one is a
counterexample.
"""

from __future__ import annotations

from paper.theory.convolutions import tsuzuku_rows, tsuzuku_verdict
from paper.theory.figures import draw_theorem2, draw_theorem3, draw_tsuzuku
from paper.theory.gradients import (
    proposition1_rows,
    proposition1_verdict,
    proposition3_rows,
    proposition3_verdict,
)
from paper.theory.network_figures import (
    draw_proposition1,
    draw_proposition2,
    draw_proposition3,
    draw_theorem1,
)
from paper.theory.rescaling import proposition2_rows, proposition2_verdict
from paper.theory.theorem1 import theorem1_rows, theorem1_verdict
from paper.theory.variance import (
    theorem2_rows,
    theorem2_verdict,
    theorem3_rows,
    theorem3_verdict,
)
from paper.theory.verdict import SIZES, Row, TheoryCheck, Verdict

__all__ = ["CHECKS", "SIZES", "Row", "TheoryCheck", "Verdict"]

CHECKS = {
    check.name: check
    for check in (
        TheoryCheck(
            "theorem1",
            "Equal spectral norms minimize the gradient norm",
            "Theorem 1, section 3",
            theorem1_rows,
            draw_theorem1,
            theorem1_verdict,
        ),
        TheoryCheck(
            "theorem2",
            "Variance of random entries under SN",
            "Theorem 2, section 4",
            theorem2_rows,
            draw_theorem2,
            theorem2_verdict,
        ),
        TheoryCheck(
            "theorem3",
            "Variance of random entries under BSN",
            "Theorem 3, section 5.1",
            theorem3_rows,
            draw_theorem3,
            theorem3_verdict,
        ),
        TheoryCheck(
            "proposition1",
            "Gradients by the normalized weights",
            "Proposition 1, section 3",
            proposition1_rows,
            draw_proposition1,
            proposition1_verdict,
        ),
        TheoryCheck(
            "proposition2",
            "Scales of product 1 do not change D",
            "Proposition 2, section 3",
            proposition2_rows,
            draw_proposition2,
            proposition2_verdict,
        ),
        TheoryCheck(
            "proposition3",
            "Hessians by the normalized weights",
            "Proposition 3 and corollary 1, appendix D",
            proposition3_rows,
            draw_proposition3,
            proposition3_verdict,
        ),
        TheoryCheck(
            "tsuzuku",
            "Norm of a convolution and of its reshaped kernel",
            "Corollary 1 of Tsuzuku et al. 2018, section 4",
            tsuzuku_rows,
            draw_tsuzuku,
            tsuzuku_verdict,
        ),
    )
}
