"""The paper's claims, and what the recorded runs say of each.

A claim about numbers of runs is supported where the difference goes the paper's way by more than
two standard errors over seeds, and not supported otherwise. What needs data, networks or lengths
that have not been run is not testable here. Nothing is typed in: the verdicts are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from paper.evidence import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNTESTED,
    Evidence,
    Missing,
    Outcome,
    course,
    last,
)
from paper.judgements import (
    BSN,
    BSSN,
    NONE,
    SN,
    STRICT,
    Judge,
    better,
    conv_norm_is_larger,
    difference,
    explosion,
    near_diagonal,
    restored,
    scaling_helps,
    shifted,
    slow_start,
    two_modes,
    unnormalized_drifts,
    untested,
    vanishing,
    variance_bound,
    without_and_with_sn,
)
from paper.theory.checks import Verdict

__all__ = ["CLAIMS", "Claim", "judge", "table"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        statement: in our words.
        source: where the paper makes it.
        judge: what the evidence says; it may raise :class:`.evidence.Missing`.
    """

    statement: str
    source: str
    judge: Judge


def judge(claim: Claim, evidence: Evidence) -> Outcome:
    """The claim's outcome; untested where its runs have not been recorded."""
    try:
        return claim.judge(evidence)
    except Missing as missing:
        return Outcome(UNTESTED, f"not run: {missing}")


def table(evidence: Evidence) -> str:
    """All claims, and all theory checks that have been run, as a table in Markdown."""
    rows = [(claim.statement, claim.source, judge(claim, evidence)) for claim in CLAIMS]
    rows += [
        (part.statement, source, _proved(part))
        for source, verdict in evidence.theory.items()
        for part in verdict.parts or (verdict,)
        if part.printed
    ]
    lines = ["| claim | where | here | numbers |", "| --- | --- | --- | --- |"]
    for statement, source, outcome in rows:
        cells = (statement, source, f"**{outcome.verdict}**", outcome.evidence)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _proved(verdict: Verdict) -> Outcome:
    """A theorem's verdict: no number of cases proves it, one disproves it."""
    # A bound that is 0 has no ratio: its checks take the smallest number that is not rounding.
    worst = f"at {verdict.worst:.4g} of its bound" if verdict.worst < 1e6 else "above a bound of 0"
    text = f"{verdict.checked:,} random cases, the worst {worst}"
    if verdict.counterexample is not None:
        text += "; a counterexample is in the table of the check"
    return Outcome(SUPPORTED if verdict.holds else NOT_SUPPORTED, text)


CLAIMS = (
    Claim(
        "Without SN some layers have very large gradients; SN keeps them small",
        "section 3, Figs. 2, 12, 13",
        without_and_with_sn(max, "gradient norm of D(x) of the layer with the largest"),
    ),
    Claim(
        "With SN the gradients of different layers are similar",
        "appendix J, Fig. 12",
        without_and_with_sn(lambda norms: max(norms) / min(norms), "largest layer over smallest"),
    ),
    Claim("Discriminators lie near the diagonal of Eq. (2)", "section 3, Fig. 3", near_diagonal),
    Claim("Exploding gradients go with bad samples", "appendix I, Figs. 10, 11", explosion),
    Claim("Vanishing gradients go with bad samples", "appendix I, Figs. 10, 11", vanishing),
    Claim(
        "SN makes better samples than no normalization",
        "appendix L.2, Fig. 19",
        difference(SN, NONE, last, "score", "last score"),
    ),
    Claim(
        "SN keeps every layer's variance below Eq. (3) throughout training",
        "section 4, Fig. 7",
        variance_bound,
    ),
    Claim(
        "Without SN the variances grow and the gradient falls",
        "appendix L.2, Figs. 16-18",
        unnormalized_drifts,
    ),
    Claim(
        "SN_Conv makes worse samples than SN",
        "section 4, Fig. 4",
        difference(SN, STRICT, last, "score", "last score"),
    ),
    Claim(
        "SN_Conv's gradients vanish where SN's do not",
        "section 4, Fig. 5",
        difference(SN, STRICT, course, "grad_norm", "gradient norm"),
    ),
    Claim(
        "SN_Conv times 1.75 has the score and the gradients of SN",
        "section 4, Figs. 4, 5",
        restored,
    ),
    Claim("SN_Conv is a shifted version of SN", "section 4, Fig. 6", shifted),
    Claim(
        "The convolution's norm is larger than the reshaped kernel's, and within its bounds",
        "appendix L.3, Figs. 20, 21",
        conv_norm_is_larger,
    ),
    Claim("Good scales come in two modes", "section 5.2, Fig. 8", two_modes),
    Claim("Scaling improves SN", "section 5.3, Table 1 (SSN)", scaling_helps),
    Claim("BSN makes better samples than SN", "section 5.3, Table 1", better(BSN, SN)),
    Claim("BSSN makes better samples than SN", "section 5.3, Table 1", better(BSSN, SN)),
    Claim("BSN is slower than SN at first and better in the end", "appendices P-R", slow_start),
    Claim(
        "SN's samples get worse late in training, BSN's do not",
        "section 5.3, Fig. 9",
        untested("needs runs of hundreds of thousands of iterations"),
    ),
    Claim(
        "The scores and distances of Tables 1 and 6",
        "section 5.3, appendix N",
        untested("needs CIFAR10, STL10, CelebA, ImageNet and Inception's weights"),
    ),
    Claim(
        "On ImageNet BSN without a scale has vanishing gradients, and BSSN has not",
        "section 5.3, appendix S",
        untested("needs ImageNet and the 128x128 network at full size"),
    ),
)
