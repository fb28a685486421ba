"""The paper's claims, and what the recorded runs say of each.

Groups of runs are compared by Welch's t over seeds, two-sided, and the p values are corrected for
the number of claims by Holm's method. A claim is supported where the corrected p is below
:data:`LEVEL` and the difference goes the paper's way. What follows from algebra is a check of the
program, and no evidence. Verdicts and their texts are computed from the records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fastsn.gan.report import markdown_table
from paper.catalog import read
from paper.evidence import (
    Evidence,
    Finding,
    Group,
    Missing,
    all_of,
    best,
    check_alike,
    compare,
    course,
    fall,
    first,
    group,
    growth,
    last,
    layers,
    middle,
    shown,
)
from paper.points import Ratio, ratios_of
from paper.records import Record, layer_values
from paper.statistics import fit, holm, t_test, welch
from paper.theory.check import Verdict

SUPPORTED, NOT_SUPPORTED, UNTESTED = "supported", "not supported", "not testable here"
HOLDS, FAILS = "check holds", "check fails"
#: Of the corrected p values.
LEVEL = 0.05

#: Name, preset and options of some runs.
Runs = tuple[str, str, Mapping[str, float]]
NONE: Runs = ("no normalization", "cifar10_none", {})
SN: Runs = ("SN", "cifar10_sn", {})
BSN: Runs = ("BSN", "cifar10_bsn", {})
STRICT: Runs = ("SN_Conv", "cifar10_sn_conv", {"norm__scale": 1.0})
STRICT_SCALED: Runs = ("SN_Conv times 1.75", "cifar10_sn_conv", {})
BSSN: Runs = ("BSSN times 1.4", "cifar10_bssn", {"norm__scale": 1.4})
STABLE: Runs = ("stable", "cifar10_wgan_gp", {})
EXPLODING: Runs = ("exploding", "cifar10_wgan_gp_explode", {})
VANISHING: Runs = ("vanishing", "cifar10_wgan_gp_vanish", {})
MNIST_NONE: Runs = ("without SN", "mnist_none", {})
MNIST_STRICT: Runs = ("with strict SN", "mnist_sn_conv", {})

#: What the evidence says of a claim; raises :class:`Missing` where runs are missing.
Judge = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Outcome:
    """What is said of a statement of the paper."""

    statement: str
    source: str
    verdict: str
    evidence: str


def judge_all(evidence: Evidence, theory: Mapping[str, Verdict]) -> list[Outcome]:
    """All claims, with their p values corrected together, and all theory checks that were run."""
    found = [(statement, source, _judge(judge, evidence)) for statement, source, judge in CLAIMS]
    tested = [one.p for _, _, one in found if one.p is not None]
    corrected = iter(holm(tested))
    outcomes = []
    for statement, source, one in found:
        p = None if one.p is None else next(corrected)
        text = one.text
        if p is not None:
            text += f" (p by Holm, of {len(tested)} claims: {shown(p)})"
        outcomes.append(Outcome(statement, source, _verdict(one, p), text))
    for verdict in theory.values():
        for part in verdict.parts or (verdict,):
            if part.printed:
                source = verdict.statement.partition(":")[0]
                outcomes.append(
                    Outcome(part.statement, source, HOLDS if part.holds else FAILS, _cases(part))
                )
    return outcomes


def page(outcomes: Iterable[Outcome]) -> str:
    """As a table in Markdown."""
    said = f"""A claim is supported where Welch's t over seeds, two-sided, has p < {LEVEL:g} after
Holm's correction for the number of claims, and the difference goes the paper's way. Means have
standard errors. A check is true by algebra, or a theorem tried on random numbers: it tells whether
program and statement are right, and is no evidence from training."""
    rows = [
        {
            "claim": one.statement,
            "where": one.source,
            "here": f"**{one.verdict}**",
            "numbers": one.evidence,
        }
        for one in outcomes
    ]
    return f"{said}\n\n{markdown_table(rows)}"


def _judge(judge: Judge, evidence: Evidence) -> Finding:
    try:
        return judge(evidence)
    except Missing as missing:
        return Finding(f"not run: {missing}", None)


def _verdict(found: Finding, p: float | None) -> str:
    if found.agrees is None:
        return UNTESTED
    if found.check:
        return HOLDS if found.agrees else FAILS
    return SUPPORTED if found.agrees and (p is None or p < LEVEL) else NOT_SUPPORTED


def _cases(part: Verdict) -> str:
    # A bound that is 0 has no ratio: its checks take the smallest number that is not rounding.
    worst = f"at {part.worst:.4g} of its bound" if part.worst < 1e6 else "above a bound of 0"
    text = f"{part.checked:,} random cases, the worst {worst}"
    return text if part.counterexample is None else f"{text}; a counterexample is below"


# Kinds of claims


def difference(
    larger: Runs,
    smaller: Runs,
    of: Callable[[Record, str], float],
    value: str,
    what: str,
    *,
    failure: str = "low",
    log: bool = False,
) -> Judge:
    """That a value of the first arm is larger than of the second."""

    def judge(evidence: Evidence) -> Finding:
        one, other = (group(evidence, arm, of, value) for arm in (larger, smaller))
        return compare(one, other, what, failure=failure, log=log)

    return judge


def both(*judges: Judge) -> Judge:
    return lambda evidence: all_of([judge(evidence) for judge in judges])


def better(good: Runs, other: Runs) -> Judge:
    """Better best score and best distance, as in Table 1."""
    return both(
        difference(good, other, best, "score", "best score"),
        difference(other, good, best, "distance", "best distance", failure="high"),
    )


def gradients(
    larger: Runs,
    smaller: Runs,
    of: Callable[[Record, str], float] = course,
    what: str = "gradient norm",
    value: str = "grad_norm",
) -> Judge:
    return difference(larger, smaller, of, value, what, failure="high", log=True)


def untested(why: str) -> Judge:
    return lambda evidence: Finding(why, None)


def by_moment(of: Callable[[Sequence[float]], float]) -> Callable[[Record, str], float]:
    """Median over the run of something of all layers at one moment."""

    def value(record: Record, name: str) -> float:
        points = [*layer_values(record, name).values()]
        length = min(map(len, points), default=0)
        return middle([of([layer[i][1] for layer in points]) for i in range(length)])

    return value


def spread(norms: Sequence[float]) -> float:
    return max(norms) / min(norms) if min(norms) else math.inf


# Single claims


def ratios_follow_norms(evidence: Evidence) -> Finding:
    """Figure 3: the logarithms of the gradients' ratios over those of the inverse norms' ratios.

    Every run, with its own random scales, has a slope; they are tested against 0, and on the
    diagonal they are 1. The control is the same with the norms of another run: what it passes as
    well says nothing.
    """
    seeds = range(1, int(read("arms")["groups"]["spread"][0][evidence.size]) + 1)
    runs = [
        evidence.run("mnist_sn_conv", 0, norm__spread=0.5, norm__spread_seed=seed) for seed in seeds
    ]
    found = [ratios_of(record) for record in runs]
    slopes, correlation = _slopes(found, found)
    text = f"of {len(runs)} random scalings"
    if len(slopes) < len(runs) or len(slopes) < 2:
        return Finding(f"{text} {len(slopes)} have ratios that a line can be laid through", None)
    test = t_test(slopes)
    control, shuffled = _slopes([*found[1:], found[0]], found)
    blind = t_test(control) if len(control) > 1 else None
    passes = blind is not None and fmean(control) > 0.5 and blind.p < LEVEL
    text = (
        f"{text}, slope of the logarithms {fmean(slopes):.2f} on average, correlation "
        f"{correlation:.2f}, t = {test.t:.2f}, p = {shown(test.p)}; with the norms of another "
        f"scaling: slope {fmean(control) if control else math.nan:.2f}, correlation {shuffled:.2f}"
    )
    agrees = fmean(slopes) > 0.5 and correlation > 0.5 and not passes
    return Finding(text, agrees, test.p if agrees else 1.0)


def _slopes(
    norms: Sequence[Sequence[Ratio]], gradients: Sequence[Sequence[Ratio]]
) -> tuple[list[float], float]:
    """The slope of each run, and the correlation over all."""
    pairs = [
        [(math.log(n.norms), math.log(g.gradients)) for n, g in zip(ns, gs, strict=False)]
        for ns, gs in zip(norms, gradients, strict=True)
    ]
    slopes = [fit(*zip(*run, strict=True))[0] for run in pairs if len(run) > 2]
    every = [pair for run in pairs for pair in run]
    correlation = fit(*zip(*every, strict=True))[1] if len(every) > 2 else math.nan
    return [slope for slope in slopes if math.isfinite(slope)], correlation


def variance_bound(evidence: Evidence) -> Finding:
    """Figure 7: Eq. (3) throughout training, which holds for every matrix of spectral norm 1."""
    runs = evidence.runs("cifar10_sn")
    ratios = [
        variance / bound
        for record in runs
        for variance, bound in zip(
            layers(record, "variance"), layers(record, "variance_bound"), strict=True
        )
    ]
    # A layer with one output is at its bound, and sigma is a power iteration's.
    above = sum(not ratio <= 1.01 for ratio in ratios)
    text = (
        f"{above} of {len(ratios)} (run, layer, moment) are more than 1 % above the bound, the "
        f"largest at {max(ratios, default=math.nan):.4g} times it"
    )
    return Finding(text, above == 0 if ratios else None, check=True)


def conv_norm_is_larger(evidence: Evidence) -> Finding:
    """Appendix L.3, Figures 20 and 21: true of all layers that read a whole patch."""
    ratios, outside = [], 0
    for _, preset, options in (SN, STRICT):
        for record in evidence.runs(preset, **options):
            mine, low, high = (
                layers(record, f"conv_ratio{part}") for part in ("", "_lower", "_upper")
            )
            ratios += mine
            outside += sum(
                not a * (1 - 1e-4) <= ratio <= b * (1 + 1e-4)
                for a, ratio, b in zip(low, mine, high, strict=True)
            )
    if not ratios:
        return Finding("no convolution was measured", None)
    text = (
        f"of {len(ratios)} (run, layer, moment), ratios {min(ratios):.3g} to {max(ratios):.3g}; "
        f"{outside} outside the bounds of Tsuzuku et al."
    )
    return Finding(text, min(ratios) > 1 and not outside, check=True)


def sweep(evidence: Evidence, method: str, scales: str, pick: str) -> dict[float, Group]:
    """The score over a list of scales, ``"last"`` or ``"best"``."""
    groups = {}
    for scale in read("arms")["scales"][scales][evidence.size]:
        plain = method == "ssn" and scale == 1
        arm = (
            f"{scale:g}:",
            "cifar10_sn" if plain else f"cifar10_{method}",
            {} if plain else {"norm__scale": scale},
        )
        groups[scale] = group(evidence, arm, best if pick == "best" else last, "score")
    check_alike(f"{pick} score of {method}", groups.values())
    return groups


def scores(groups: Mapping[float, Group]) -> str:
    return ", ".join(map(str, groups.values()))


def shifted(evidence: Evidence) -> Finding:
    """Figure 6: the best scale of SN_Conv is larger than that of SN, seed by seed."""
    sn, strict = (sweep(evidence, *of, "last") for of in (("ssn", "ssn"), ("sn_conv", "conv")))
    tops = [
        Group(name, [record for one in groups.values() for record in one.runs], _tops(groups))
        for name, groups in (("SN_Conv", strict), ("SN", sn))
    ]
    found = compare(tops[0], tops[1], "best scale of each seed", log=True)
    text = f"{found.text}; last score by scale: SN {scores(sn)}; SN_Conv {scores(strict)}"
    return Finding(text, found.agrees, found.p)


def _tops(groups: Mapping[float, Group]) -> list[float]:
    """The scale with the best score, of each seed that has one."""
    by_seed = zip(*(group.values for group in groups.values()), strict=True)
    tops = []
    for found in by_seed:
        known = [(s, scale) for s, scale in zip(found, groups, strict=True) if math.isfinite(s)]
        tops.append(max(known)[1] if known else math.nan)
    return tops


def restored(evidence: Evidence) -> Finding:
    """Figures 4 and 5: SN_Conv times 1.75 is as SN: apart from SN_Conv, and nearer to SN."""
    findings = []
    for value, of, what, log in (
        ("score", last, "last score", False),
        ("grad_norm", course, "gradient norm", True),
    ):
        sn, strict, scaled = (
            group(evidence, arm, of, value) for arm in (SN, STRICT, STRICT_SCALED)
        )
        check_alike(what, (sn, strict, scaled))
        text = f"{what}: {sn}, {strict}, {scaled}"
        groups = [
            [math.log(v) if log else v for v in one.finite if v > 0] for one in (sn, strict, scaled)
        ]
        if any(one.failed for one in (sn, scaled)) or min(map(len, groups)) < 2:
            findings.append(Finding(f"{text}: failed runs, or too few", False, 1.0))
            continue
        test = welch(groups[2], groups[1])
        near = abs(fmean(groups[2]) - fmean(groups[0]))
        agrees = near < abs(fmean(groups[1]) - fmean(groups[0])) / 2
        text += f"; from SN_Conv: t = {test.t:.2f}, p = {shown(test.p)}"
        findings.append(Finding(text, agrees, test.p if agrees else 1.0))
    return all_of(findings)


def two_modes(evidence: Evidence) -> Finding:
    """Figure 8: two good scales with a worse one between them."""
    findings = []
    for title, method, scales in (("SSN", "ssn", "ssn"), ("LeCun", "lecun", "lecun")):
        groups = sweep(evidence, method, scales, "best")
        p = _valley([group.finite for group in groups.values()])
        findings.append(Finding(f"best score of {title} by scale {scores(groups)}", p < 1, p))
    return all_of(findings)


def _valley(found: Sequence[Sequence[float]]) -> float:
    """p of the clearest mean that is lower than one before and one after it, corrected for the
    number of triples by Bonferroni's method; 1 where there is none."""
    n = len(found)
    triples = [(a, b, c) for a in range(n) for b in range(a + 1, n) for c in range(b + 1, n)]
    ps = [1.0]
    for a, b, c in triples:
        if min(len(found[a]), len(found[b]), len(found[c])) < 2:
            continue
        tests = [welch(found[side], found[b]) for side in (a, c)]
        if all(test.t > 0 for test in tests):
            ps.append(max(test.p for test in tests) * len(triples))
    return min(1.0, *ps)


def scaling_helps(evidence: Evidence) -> Finding:
    """Table 1: the best scale of SSN against SN, corrected for the choice of the scale."""
    groups = sweep(evidence, "ssn", "ssn", "best")
    means = {scale: fmean(one.finite) for scale, one in groups.items() if one.finite}
    top = max(means, key=lambda scale: means[scale], default=1.0)
    if top == 1:
        return Finding(f"scale 1 is the best (best score {scores(groups)})", False, 1.0)
    found = compare(
        Group(f"SSN times {top:g}", groups[top].runs, groups[top].values),
        Group("SN", groups[1.0].runs, groups[1.0].values),
        f"best score, at the best of {len(groups)} scales",
    )
    if found.p is None:
        return found
    return Finding(found.text, found.agrees, min(1.0, found.p * (len(groups) - 1)))


LARGEST = by_moment(max)
#: Statement in our words, where the paper makes it, and how it is judged.
CLAIMS: tuple[tuple[str, str, Judge], ...] = (
    (
        "Without SN some layers have very large gradients; SN keeps them small",
        "section 3, Figs. 2, 12, 13",
        gradients(
            MNIST_NONE,
            MNIST_STRICT,
            LARGEST,
            "gradient norm of D(x) of the layer with the largest",
            "output_grad_norm",  # of D(x), as in the figures: one loss has a penalty, one none
        ),
    ),
    (
        "With SN the gradients of different layers are similar",
        "appendix J, Fig. 12",
        gradients(
            MNIST_NONE,
            MNIST_STRICT,
            by_moment(spread),
            "largest layer over smallest",
            "output_grad_norm",
        ),
    ),
    (
        "Ratios of gradient norms are inverse to those of spectral norms, Eq. (2)",
        "section 3, Fig. 3",
        ratios_follow_norms,
    ),
    (
        "Exploding gradients go with bad samples",
        "appendix I, Figs. 10, 11",
        both(
            gradients(EXPLODING, STABLE),
            difference(STABLE, EXPLODING, last, "score", "last score"),
        ),
    ),
    (
        "Vanishing gradients go with bad samples",
        "appendix I, Figs. 10, 11",
        both(
            gradients(STABLE, VANISHING, last, "last gradient norm"),
            difference(STABLE, VANISHING, last, "score", "last score"),
        ),
    ),
    (
        "SN makes better samples than no normalization",
        "appendix L.2, Fig. 19",
        difference(SN, NONE, last, "score", "last score"),
    ),
    (
        "SN keeps every layer's variance below Eq. (3) throughout training",
        "section 4, Fig. 7",
        variance_bound,
    ),
    (
        "Without SN the variances grow and the gradient falls",
        "appendix L.2, Figs. 16-18",
        both(
            difference(
                ("without", *NONE[1:]),
                ("with SN", *SN[1:]),
                growth,
                "log_variance_product",
                "growth of the log of the product of variances",
            ),
            difference(
                ("without", *NONE[1:]),
                ("with SN", *SN[1:]),
                fall,
                "grad_norm",
                "fall of the gradient norm, as a factor",
                log=True,
            ),
        ),
    ),
    (
        "SN_Conv makes worse samples than SN",
        "section 4, Fig. 4",
        difference(SN, STRICT, last, "score", "last score"),
    ),
    (
        "SN_Conv's gradients vanish where SN's do not",
        "section 4, Fig. 5",
        gradients(SN, STRICT),
    ),
    (
        "SN_Conv times 1.75 has the score and the gradients of SN",
        "section 4, Figs. 4, 5",
        restored,
    ),
    ("SN_Conv is a shifted version of SN", "section 4, Fig. 6", shifted),
    (
        "The convolution's norm is larger than the reshaped kernel's, and within its bounds",
        "appendix L.3, Figs. 20, 21",
        conv_norm_is_larger,
    ),
    ("Good scales come in two modes", "section 5.2, Fig. 8", two_modes),
    ("Scaling improves SN", "section 5.3, Table 1 (SSN)", scaling_helps),
    ("BSN makes better samples than SN", "section 5.3, Table 1", better(BSN, SN)),
    ("BSSN makes better samples than SN", "section 5.3, Table 1", better(BSSN, SN)),
    (
        "BSN is slower than SN at first and better in the end",
        "appendices P-R",
        both(
            difference(SN, BSN, first, "score", "first score"),
            difference(BSN, SN, last, "score", "last score"),
        ),
    ),
    (
        "SN's samples get worse late in training, BSN's do not",
        "section 5.3, Fig. 9",
        untested("needs runs of hundreds of thousands of iterations"),
    ),
    (
        "The scores and distances of Tables 1 and 6",
        "section 5.3, appendix N",
        untested("needs CIFAR10, STL10, CelebA, ImageNet and Inception's weights"),
    ),
    (
        "On ImageNet BSN without a scale has vanishing gradients, and BSSN has not",
        "section 5.3, appendix S",
        untested("needs ImageNet and the 128x128 network at full size"),
    ),
)
