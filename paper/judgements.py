"""What the recorded runs say of the paper's claims: one function for each kind of claim.

Arms and scales are those of the figures (:mod:`.registry`), found by their options.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from paper.arms import SMALL, SMALL_LECUN
from paper.evidence import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNTESTED,
    Evidence,
    Outcome,
    best,
    compare,
    course,
    joined,
    last,
    layers,
    over,
    shown,
)
from paper.ratios import NEAR, ratios_of
from paper.ratios import near_diagonal as share_near_diagonal
from paper.records import Record, layer_values, values
from paper.statistics import Mean

#: What the evidence says of a claim; raises :class:`.evidence.Missing` where runs are missing.
Judge = Callable[[Evidence], Outcome]
#: Label, preset and options of some runs.
Runs = tuple[str, str, Mapping[str, float]]


def difference(
    first: Runs,
    second: Runs,
    of: Callable[[Record, str], float],
    value: str,
    what: str,
) -> Judge:
    """The claim that a value of the first arm is larger than of the second."""

    def judge(evidence: Evidence) -> Outcome:
        means = [
            (label, over(evidence.runs(preset, **options), of, value))
            for label, preset, options in (first, second)
        ]
        return compare(means[0], means[1], what)

    return judge


def all_of(*judges: Judge) -> Judge:
    """The claim that is all of these."""
    return lambda evidence: joined(*(judge(evidence) for judge in judges))


NONE: Runs = ("no normalization", "cifar10_none", {})
SN: Runs = ("SN", "cifar10_sn", {})
BSN: Runs = ("BSN", "cifar10_bsn", {})
STRICT: Runs = ("SN_Conv", "cifar10_sn_conv", {"norm__scale": 1.0})
STRICT_SCALED: Runs = ("SN_Conv times 1.75", "cifar10_sn_conv", {})
BSSN: Runs = ("BSSN times 1.4", "cifar10_bssn", {"norm__scale": 1.4})
STABLE: Runs = ("stable", "cifar10_wgan_gp", {})
EXPLODING: Runs = ("exploding", "cifar10_wgan_gp_explode", {})
VANISHING: Runs = ("vanishing", "cifar10_wgan_gp_vanish", {})


# Exploding gradients


def _by_moment(of: Callable[[Sequence[float]], float]) -> Callable[[Record, str], float]:
    """Geometric mean over the run of something of all layers at one moment."""

    def value(record: Record, name: str) -> float:
        points = layer_values(record, name).values()
        moments = zip(*([v for _, v in layer] for layer in points), strict=True)
        return math.exp(statistics.fmean(math.log(of(moment)) for moment in moments))

    return value


def without_and_with_sn(of: Callable[[Sequence[float]], float], what: str) -> Judge:
    """Figures 2 and 12: the MNIST network with a gradient penalty, and with strict SN."""
    return difference(
        ("without SN", "mnist_none", {}),
        ("with strict SN", "mnist_sn_conv", {}),
        _by_moment(of),
        "output_grad_norm",  # of D(x), as in the figures: one loss has a penalty, the other none
        what,
    )


def near_diagonal(evidence: Evidence) -> Outcome:
    """Figure 3: ratios of gradient norms and inverse ratios of spectral norms."""
    runs = [
        evidence.run("mnist_sn_conv", 0, norm__spread=0.5, norm__spread_seed=seed)
        for seed in range(1, 7)
    ]
    points = [point for record in runs for point in ratios_of(record)]
    near = share_near_diagonal(points)
    text = (
        f"{near:.0%} of {len(points)} points of {len(runs)} random scalings lie within a factor "
        f"{NEAR:g} of the diagonal"
    )
    return Outcome(SUPPORTED if near > 0.5 else NOT_SUPPORTED, text)


#: Appendix I, Figures 10 and 11.
explosion = all_of(
    difference(EXPLODING, STABLE, course, "grad_norm", "gradient norm"),
    difference(STABLE, EXPLODING, last, "score", "last score"),
)
vanishing = all_of(
    difference(STABLE, VANISHING, last, "grad_norm", "last gradient norm"),
    difference(STABLE, VANISHING, last, "score", "last score"),
)


# Vanishing gradients


def variance_bound(evidence: Evidence) -> Outcome:
    """Figure 7: Eq. (3) throughout training."""
    runs = evidence.runs("cifar10_sn")
    ratios = [
        variance / bound
        for record in runs
        for variance, bound in zip(
            layers(record, "variance"), layers(record, "variance_bound"), strict=True
        )
    ]
    # A layer with one output is at its bound, and sigma is a power iteration's.
    above = sum(ratio > 1.01 for ratio in ratios)
    text = (
        f"{above} of {len(ratios)} (run, layer, moment) are more than 1 % above the bound, the "
        f"largest at {max(ratios):.4g} times it"
    )
    return Outcome(SUPPORTED if above == 0 else NOT_SUPPORTED, text)


def _drift(record: Record, name: str) -> float:
    """By how much a value has grown since the first look at it."""
    points = values(record, name)
    return points[-1][1] - points[0][1]


def _fall(record: Record, name: str) -> float:
    """By what factor a value has fallen since the first look at it."""
    points = values(record, name)
    return points[0][1] / points[-1][1]


#: Appendix L.2, Figures 16 to 18.
unnormalized_drifts = all_of(
    difference(
        ("without", *NONE[1:]),
        ("with SN", *SN[1:]),
        _drift,
        "log_variance_product",
        "growth of the log of the product of variances",
    ),
    difference(
        ("without", *NONE[1:]),
        ("with SN", *SN[1:]),
        _fall,
        "grad_norm",
        "fall of the gradient norm, as a factor",
    ),
)


def conv_norm_is_larger(evidence: Evidence) -> Outcome:
    """Appendix L.3, Figures 20 and 21."""
    ratios, outside = [], 0
    for preset, options in (("cifar10_sn", {}), ("cifar10_sn_conv", {"norm__scale": 1.0})):
        for record in evidence.runs(preset, **options):
            ratios += layers(record, "conv_ratio")
            low, high = layers(record, "conv_ratio_lower"), layers(record, "conv_ratio_upper")
            outside += sum(
                not a * (1 - 1e-4) <= ratio <= b * (1 + 1e-4)
                for a, ratio, b in zip(low, layers(record, "conv_ratio"), high, strict=True)
            )
    text = (
        f"of {len(ratios)} (run, layer, moment), ratios {min(ratios):.3g} to {max(ratios):.3g}; "
        f"{outside} outside the bounds of Tsuzuku et al."
    )
    return Outcome(SUPPORTED if min(ratios) > 1 and not outside else NOT_SUPPORTED, text)


def _sweep(
    evidence: Evidence, method: str, scales: Sequence[float], pick: str
) -> dict[float, Mean]:
    means = {}
    of = best if pick == "best" else last
    for scale in scales:
        plain = method == "ssn" and scale == 1
        options = {} if plain else {"norm__scale": scale}
        runs = evidence.runs("cifar10_sn" if plain else f"cifar10_{method}", **options)
        means[scale] = over(runs, of, "score")
    return means


def _scores(means: dict[float, Mean]) -> str:
    return ", ".join(f"{scale:g}: {shown(mean)}" for scale, mean in means.items())


def shifted(evidence: Evidence) -> Outcome:
    """Figure 6: the best scale of SN_Conv is larger than that of SN."""
    sn, strict = (_sweep(evidence, method, SMALL, "last") for method in ("ssn", "sn_conv"))
    tops = [max(means, key=lambda scale: means[scale].mean) for means in (sn, strict)]
    text = (
        f"best at {tops[0]:g} for SN and at {tops[1]:g} for SN_Conv; last score by scale: "
        f"SN {_scores(sn)}; SN_Conv {_scores(strict)}"
    )
    return Outcome(SUPPORTED if tops[1] > tops[0] else NOT_SUPPORTED, text)


def restored(evidence: Evidence) -> Outcome:
    """Figures 4 to 6: SN_Conv times 1.75 is as SN: closer to it than SN_Conv is."""
    texts, verdict = [], SUPPORTED
    for value, of, what in (("score", last, "last score"), ("grad_norm", course, "gradient norm")):
        sn, strict, scaled = (
            over(evidence.runs(preset, **options), of, value)
            for _, preset, options in (SN, STRICT, STRICT_SCALED)
        )
        error = math.hypot(sn.stderr or 0.0, scaled.stderr or 0.0)
        alike = abs(sn.mean - scaled.mean) <= 2 * error
        nearer = abs(sn.mean - scaled.mean) < abs(sn.mean - strict.mean)
        if not (alike and nearer):
            verdict = NOT_SUPPORTED
        texts.append(f"{what}: SN {shown(sn)}, SN_Conv {shown(strict)}, times 1.75 {shown(scaled)}")
    return Outcome(verdict, "; ".join(texts))


# Extensions


def two_modes(evidence: Evidence) -> Outcome:
    """Figure 8: two good scales with a worse one between them."""
    texts, verdict = [], SUPPORTED
    for title, method, scales in (("SSN", "ssn", SMALL), ("LeCun", "lecun", SMALL_LECUN)):
        means = _sweep(evidence, method, scales, "best")
        if not _has_valley(list(means.values())):
            verdict = NOT_SUPPORTED
        texts.append(f"best score of {title} by scale {_scores(means)}")
    return Outcome(verdict, "; ".join(texts))


def _has_valley(means: Sequence[Mean]) -> bool:
    """A mean that is lower than some before and some after it, each by two standard errors."""

    def lower(a: Mean, b: Mean) -> bool:
        return b.mean - a.mean > 2 * math.hypot(a.stderr or 0.0, b.stderr or 0.0)

    return any(
        any(lower(mean, before) for before in means[:i])
        and any(lower(mean, after) for after in means[i + 1 :])
        for i, mean in enumerate(means)
    )


def better(good: Runs, other: Runs) -> Judge:
    """Better best score and best distance, as in Table 1."""
    return all_of(
        difference(good, other, best, "score", "best score"),
        difference(other, good, best, "distance", "best distance"),
    )


def scaling_helps(evidence: Evidence) -> Outcome:
    """Table 1: the best scale of SSN against SN."""
    means = _sweep(evidence, "ssn", SMALL, "best")
    top = max(means, key=lambda scale: means[scale].mean)
    if top == 1:
        return Outcome(NOT_SUPPORTED, f"scale 1 is the best (best score {_scores(means)})")
    return compare(
        (f"SSN times {top:g}", means[top]), ("SN", means[1.0]), "best score, at the best scale"
    )


def _first(record: Record, name: str) -> float:
    return values(record, name)[0][1]


#: Appendices P to R: BSN is behind SN at first and before it at the end.
slow_start = all_of(
    difference(SN, BSN, _first, "score", "first score"),
    difference(BSN, SN, last, "score", "last score"),
)


def untested(why: str) -> Judge:
    return lambda evidence: Outcome(UNTESTED, why)
