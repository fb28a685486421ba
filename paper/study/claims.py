"""The claims of ``paper/protocol.md``, and their verdicts by its rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paper.statistics import holm
from paper.study.compare import Part, Result, compare
from paper.study.evidence import OF_DISTANCES, SCALES, Evidence

__all__ = ["CLAIMS", "LEVEL", "Claim", "Outcome", "judge"]

#: Of the p values after Holm's correction, and of the second classifier's before any.
LEVEL = 0.05
#: Values in words.
WORDS = {
    "end": "distance",
    "late end": "distance late in training",
    "late change": "late change of the distance",
    "first": "distance at the first evaluation",
    "peak": "lowest distance",
    "gradient": "gradient norm",
    "fall": "fall of the gradient norm",
    "largest": "gradient norm of the largest layer",
    "spread": "largest layer over smallest",
    "growth": "growth of the log of the product of variances",
}


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        primary: its family.
        statement: in our words.
        source: where the paper makes it.
        parts: what must hold, of the evidence.
    """

    primary: bool
    statement: str
    source: str
    parts: Callable[[Evidence], list[Part]]


@dataclass(frozen=True)
class Outcome:
    """A claim, judged: its parts by the first classifier and by the second, and both p."""

    claim: Claim
    verdict: str
    results: Sequence[Result]
    again: Sequence[Result]
    p: float | None
    corrected: float | None


def judge(evidence: Evidence) -> list[Outcome]:
    """All claims; each family is corrected by itself."""
    outcomes = [_tested(claim, evidence) for claim in CLAIMS]
    for primary in (True, False):
        family = [o for o in outcomes if o.claim.primary == primary and o.p is not None]
        corrected = holm([o.p for o in family if o.p is not None])
        for outcome, p in zip(family, corrected, strict=True):
            outcomes[outcomes.index(outcome)] = replace(
                outcome, corrected=p, verdict=_verdict(outcome, p)
            )
    return outcomes


def _tested(claim: Claim, evidence: Evidence) -> Outcome:
    found = [compare(part) for part in claim.parts(evidence)]
    results = [result for result in found if result is not None]
    if len(results) < len(found):
        return Outcome(claim, "too few seeds", results, [], None, None)
    second = [
        compare(part) for part in claim.parts(replace(evidence, second=True)) if part.distance
    ]
    again = [result for result in second if result is not None]
    return Outcome(claim, "", results, again, _p(results), None)


def _p(results: Sequence[Result]) -> float:
    """Of one part its own, whichever its direction; of several the largest, 1 if one disagrees."""
    if len(results) > 1 and not all(result.agrees for result in results):
        return 1.0
    return max(result.p for result in results)


def _verdict(outcome: Outcome, corrected: float) -> str:
    results, again = outcome.results, outcome.again
    if corrected >= LEVEL:
        return "not shown"
    if results[0].part.sign == 0:
        return "differs"
    if not all(result.agrees for result in results):
        return "contrary"
    if all(result.agrees and result.p < LEVEL for result in again):
        return "supported"
    return "by one classifier only"


# Kinds of parts


def part(
    evidence: Evidence,
    setting: str,
    arms: tuple[str, str],
    value: str,
    sign: int,
    seeds: Sequence[int] | None = None,
) -> Part:
    """A value of two arms; ``sign`` -1 says that the paper has the first one lower."""
    seeds = evidence.seeds if seeds is None else seeds
    values = [evidence.values(setting, arm, value, seeds) for arm in arms]
    failed = sum(not math.isfinite(v) for group in values for v in group)
    a, b = ([v for v in group if math.isfinite(v)] for group in values)
    return Part(WORDS[value], arms, a, b, sign, value != "growth", value in OF_DISTANCES, failed)


def lower(setting: str, arm: str, other: str, value: str = "end") -> Callable[..., list[Part]]:
    return lambda evidence: [part(evidence, setting, (arm, other), value, -1)]


def chosen(setting: str, method: str) -> Callable[[Evidence], list[Part]]:
    """The method at the scale that seed 0 chooses, against SN, on the other seeds."""

    def parts(evidence: Evidence) -> list[Part]:
        arm = SCALES[method][evidence.chosen(setting, method)] if 0 in evidence.seeds else method
        others = [seed for seed in evidence.seeds if seed]
        if not others:
            return [Part(WORDS["end"], (arm, "SN"), [], [], -1)]
        return [part(evidence, setting, (arm, "SN"), "end", -1, others)]

    return parts


def late_fall(setting: str) -> Callable[[Evidence], list[Part]]:
    """SN's late change is above 0, and above BSN's."""

    def parts(evidence: Evidence) -> list[Part]:
        both = part(evidence, setting, ("SN", "BSN"), "late change", 1)
        return [replace(both, names=("SN",), b=None), both]

    return parts


def together(*claims: Callable[[Evidence], list[Part]]) -> Callable[[Evidence], list[Part]]:
    return lambda evidence: [part for claim in claims for part in claim(evidence)]


def larger(setting: str, arm: str, other: str, value: str) -> Callable[[Evidence], list[Part]]:
    return lambda evidence: [part(evidence, setting, (arm, other), value, 1)]


def changed(arm: str) -> Callable[[Evidence], list[Part]]:
    """Whether vectors that advance at every forward make a difference."""
    return lambda evidence: [part(evidence, "A", (f"{arm}, vectors per forward", arm), "end", 0)]


TABLE_1, LATE_WORDS = "section 5.3, Table 1", "SN gets worse late in training, BSN does not"
CLAIMS: tuple[Claim, ...] = (
    Claim(True, "BSSN makes better samples than SN", TABLE_1, chosen("A", "BSSN")),
    Claim(True, "BSN makes better samples than SN", TABLE_1, lower("A", "BSN", "SN")),
    Claim(True, "SSN makes better samples than SN", TABLE_1, chosen("A", "SSN")),
    Claim(True, LATE_WORDS, "section 5.3, Figure 9", late_fall("A")),
    Claim(
        False,
        "SN makes better samples than no normalization",
        "appendix L.2, Figure 19",
        lower("A", "SN", "none"),
    ),
    Claim(
        False,
        "SN_Conv makes worse samples than SN",
        "section 4, Figure 4",
        lower("A", "SN", "SN_Conv 1"),
    ),
    Claim(
        False,
        "SN_Conv's gradients are smaller than SN's",
        "section 4, Figure 5",
        larger("A", "SN", "SN_Conv 1", "gradient"),
    ),
    Claim(
        False,
        "Times 1.75, SN_Conv has better samples and larger gradients",
        "section 4, Figures 4 and 5",
        together(
            lower("A", "SN_Conv 1.75", "SN_Conv 1"),
            larger("A", "SN_Conv 1.75", "SN_Conv 1", "gradient"),
        ),
    ),
    Claim(
        False,
        "BSN is slower than SN at first and better in the end",
        "appendix P.3",
        together(lower("A", "SN", "BSN", "first"), lower("A", "BSN", "SN", "late end")),
    ),
    Claim(
        False,
        "BSN's best samples are better than SN's best",
        "section 5.3",
        lower("A", "BSN", "SN", "peak"),
    ),
    Claim(
        False,
        "With learning rates 0.0002, BSN makes better samples than SN",
        "appendix N, Figure 26",
        lower("B", "BSN", "SN"),
    ),
    Claim(
        False,
        "With learning rates 0.0002, BSSN makes better samples than SN",
        "section 5.3",
        chosen("B", "BSSN"),
    ),
    Claim(
        False,
        f"With learning rates 0.0002, {LATE_WORDS}",
        "appendix P.3, Figure 33",
        late_fall("B"),
    ),
    Claim(
        False,
        "With n_dis 5, BSN makes better samples than SN",
        "appendix N, Figure 26",
        lower("C", "BSN", "SN"),
    ),
    Claim(
        False,
        "With n_dis 5, BSSN times 1.4 makes better samples than SN",
        "section 5.3",
        lower("C", "BSSN 1.4", "SN"),
    ),
    Claim(
        False,
        "In the MNIST network, BSN makes better samples than SN",
        "section 5.3",
        lower("M", "BSN", "SN"),
    ),
    Claim(
        False,
        "In the MNIST network, BSSN makes better samples than SN",
        "section 5.3",
        chosen("M", "BSSN"),
    ),
    Claim(
        False,
        "Without SN, the layer with the largest gradient has a larger one than with strict SN",
        "section 3, Figure 2",
        larger("W", "none", "SN_Conv 1", "largest"),
    ),
    Claim(
        False,
        "Without SN, the gradients of different layers are less alike",
        "appendix J, Figure 12",
        larger("W", "none", "SN_Conv 1", "spread"),
    ),
    Claim(
        False,
        "Without SN, the variances grow more and the gradient falls more",
        "appendix L.2, Figures 16 to 18",
        together(larger("A", "none", "SN", "growth"), larger("A", "none", "SN", "fall")),
    ),
    Claim(False, "Vectors that advance at every forward change SN", "none", changed("SN")),
    Claim(False, "Vectors that advance at every forward change BSN", "none", changed("BSN")),
)
