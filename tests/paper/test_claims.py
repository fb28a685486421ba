"""Claims: verdicts from made-up runs, where it is known what they have to be."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import pytest

from paper import claims
from paper.catalog import Arm, config_of, seeds_of
from paper.claims import CLAIMS, judge_all, page
from paper.evidence import Evidence, Group, Missing, compare
from paper.records import Record, RecordError
from paper.statistics import fit, holm, t_test, welch

SUPPORTED, NOT_SUPPORTED, UNTESTED = "supported", "not supported", "not testable here"
HOLDS, FAILS = "check holds", "check fails"
LAYERS = ("convs.0.weight", "convs.1.weight", "fc.weight")


def runs(
    preset: str,
    *,
    score: Sequence[float] = (1.0, 2.0),
    distance: Sequence[float] = (200.0, 100.0),
    gradients: Sequence[Sequence[float]] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    variance: Sequence[float] = (0.1, 0.1),
    log_variance: Sequence[float] = (-9.0, -9.0),
    conv_ratio: float = 1.5,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> dict[str, Record]:
    """Runs of all seeds, a little apart: the values at two moments, for three layers."""
    found = {}
    for seed in range(seeds_of("small")) if seeds is None else seeds:
        arm = Arm("", f"paper/{preset}", {k.replace("__", "."): v for k, v in options.items()})
        config = config_of(arm, "small", seed)
        more = 1 + 0.01 * seed
        diagnostics: list[dict[str, Any]] = []
        for i, step in enumerate((100, 200)):
            diagnostics += [
                {
                    "step": step,
                    "layer": layer,
                    "norm": "SN",
                    "grad_norm": gradient * more,
                    "output_grad_norm": gradient * more,
                    "variance": variance[i],
                    "variance_bound": 1.0,
                    "sigma": 1.0,
                    "scale": 1.0,
                    "sigma_0": 1.0,
                    "conv_norm": conv_ratio,
                    "conv_lower": 1.0,
                    "conv_upper": 3.0,
                }
                for layer, gradient in zip(LAYERS, gradients[i], strict=True)
            ]
            diagnostics.append(
                {
                    "step": step,
                    "layer": "all",
                    "grad_norm": sum(gradients[i]) * more,
                    "log_variance_product": log_variance[i] * more,
                }
            )
        metrics = [
            {"step": step, "score_2k_s10": score[i] * more, "frechet_2k_2k": distance[i] * more}
            for i, step in enumerate((100, 200))
        ]
        name = config.run_name()
        found[name] = Record(name, config, {}, [], diagnostics, metrics, [], None)
    return found


def outcome(statement: str, *groups: dict[str, Record]) -> claims.Outcome:
    """Of one claim, as if it were the only one."""
    (claim,) = [claim for claim in CLAIMS if claim[0].startswith(statement)]
    records = {name: record for group in groups for name, record in group.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "CLAIMS", (claim,))
        (found,) = judge_all(Evidence("small", records), {})
    return found


def verdict(statement: str, *groups: dict[str, Record]) -> str:
    return outcome(statement, *groups).verdict


# Statistics


def test_welch_and_holm_are_those_of_the_textbooks() -> None:
    a, b = [3.0, 4.0, 8.0, 9.0], [1.0, 2.0, 2.5]
    test = welch(a, b)
    squares = [stdev(values) ** 2 / len(values) for values in (a, b)]
    assert test.t == pytest.approx((fmean(a) - fmean(b)) / math.sqrt(sum(squares)))
    df = sum(squares) ** 2 / (squares[0] ** 2 / 3 + squares[1] ** 2 / 2)
    assert test.df == pytest.approx(df)
    # The tail of the density, summed up.
    factor = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(math.pi * df)
    step = 1e-3
    inside = [
        (1 + ((i + 0.5) * step) ** 2 / df) ** (-(df + 1) / 2) for i in range(int(test.t / step))
    ]
    assert test.p == pytest.approx(1 - 2 * factor * step * math.fsum(inside), abs=1e-3)
    # Student's t has closed forms for 1 and for 2 degrees of freedom.
    assert t_test([1.0, 3.0]).p == pytest.approx(1 - 2 / math.pi * math.atan(2.0))
    three = t_test([1.0, 2.0, 4.0])
    assert three.p == pytest.approx(1 - three.t / math.sqrt(2 + three.t**2))
    assert t_test([1.0, 1.0]).p == 0 and t_test([0.0, 0.0]).p == 1
    assert welch([1, 1], [1, 1]).p == 1 and welch([2, 2], [1, 1]).p == 0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1, 1]
    assert fit([0, 1, 2], [1, 3, 5]) == (2, 1) and math.isnan(fit([1, 1], [1, 2])[0])


def test_p_values_of_chance_are_uniform() -> None:
    draw = random.Random(0)
    ps = [
        welch([draw.gauss(0, 1) for _ in range(3)], [draw.gauss(0, 3) for _ in range(4)]).p
        for _ in range(2000)
    ]
    assert sum(p < 0.05 for p in ps) / len(ps) < 0.07  # Welch's test is a little careful


def group(name: str, *values: float) -> Group:
    return Group(name, [], values)


def test_differences_say_n_and_p() -> None:
    low, high, wide = (
        group("b", 1.0, 1.1, 1.2),
        group("a", 2.0, 2.1, 2.2),
        group("a", 0.1, 1.2, 2.6),
    )
    found = compare(high, low, "x")
    assert found.agrees and found.p is not None and found.p < 0.001
    assert "a 2.1 ± 0.058 (n = 3), b 1.1" in found.text and "p = 0.00026" in found.text
    assert compare(low, high, "x").p == 1 and not compare(low, high, "x").agrees
    chance = compare(wide, low, "x")
    assert chance.agrees and chance.p is not None and chance.p > 0.5
    assert compare(group("a", 1.0), low, "x").agrees is None


def test_runs_that_failed_count_against_what_is_claimed_of_them() -> None:
    low, high = group("b", 1.0, 1.1, 1.2), group("a", 2.0, 2.1, 2.2)
    lost = group("c", 5.0, 5.1, math.nan)
    # As a score they are the worst there is; as a gradient norm, the largest.
    assert compare(lost, low, "score").agrees is False
    assert "1 of 3 failed" in compare(lost, low, "score").text
    assert compare(high, group("c", 0.5, 0.6, math.nan), "score").agrees
    assert compare(lost, low, "norm", failure="high", log=True).agrees
    assert compare(high, group("c", 0.5, 0.6, math.inf), "norm", failure="high").agrees is False
    assert compare(group("z", 1.0, 0.0), low, "norm", failure="high", log=True).agrees is False


def test_claims_are_corrected_together() -> None:
    records = {**runs("cifar10_sn", score=(1, 2)), **runs("cifar10_none", score=(1, 1.95))}
    (alone,) = [outcome("SN makes better", records)]
    assert "of 1 claims" in alone.evidence
    together = judge_all(Evidence("small", records), {})
    (among,) = [one for one in together if one.statement.startswith("SN makes better")]
    number = lambda text: float(text.rpartition(": ")[2].rstrip(")").lstrip("<"))  # noqa: E731
    assert number(among.evidence) > number(alone.evidence)


def test_missing_runs_are_untested_and_named() -> None:
    for one in judge_all(Evidence("small", {}), {}):
        assert one.verdict == UNTESTED and one.evidence
    assert "not run: cifar10_sn" in page(judge_all(Evidence("small", runs("cifar10_none")), {}))
    with pytest.raises(Missing):
        Evidence("small", {}).run("cifar10_sn", 0)


CASES = [
    ("SN makes better", {}, {"score": (1, 2)}, {"score": (1, 1.2)}, ("cifar10_sn", "cifar10_none")),
    (
        "Without SN some layers",
        {},
        {"gradients": ((1, 1, 90), (1, 1, 90))},
        {},
        ("mnist_none", "mnist_sn_conv"),
    ),
    (
        "With SN the gradients",
        {},
        {"gradients": ((1, 5, 90), (1, 5, 90))},
        {"gradients": ((50, 60, 70), (50, 60, 70))},
        ("mnist_none", "mnist_sn_conv"),
    ),
    (
        "Exploding",
        {},
        {"score": (1, 2)},
        {"score": (1, 1), "gradients": ((9, 9, 9), (9, 9, 9))},
        ("cifar10_wgan_gp", "cifar10_wgan_gp_explode"),
    ),
    (
        "Vanishing",
        {},
        {"score": (1, 2)},
        {"score": (1, 1), "gradients": ((1, 1, 1), (0.1, 0.1, 0.1))},
        ("cifar10_wgan_gp", "cifar10_wgan_gp_vanish"),
    ),
    (
        "Without SN the variances",
        {},
        {"log_variance": (-9, -5), "gradients": ((9, 9, 9), (1, 1, 1))},
        {},
        ("cifar10_none", "cifar10_sn"),
    ),
    (
        "BSN makes",
        {},
        {"score": (1, 3), "distance": (99, 50)},
        {},
        ("cifar10_bsn", "cifar10_sn"),
    ),
    (
        "BSN is slower",
        {},
        {"score": (0.5, 3)},
        {},
        ("cifar10_bsn", "cifar10_sn"),
    ),
]


@pytest.mark.parametrize(
    ("statement", "shared", "first", "second", "presets"), CASES, ids=[case[0] for case in CASES]
)
def test_pairs_of_arms(
    statement: str,
    shared: dict[str, Any],
    first: dict[str, Any],
    second: dict[str, Any],
    presets: tuple[str, str],
) -> None:
    one, other = presets
    assert verdict(statement, runs(one, **first), runs(other, **second)) == SUPPORTED
    assert verdict(statement, runs(one, **second), runs(other, **first)) == NOT_SUPPORTED
    assert verdict(statement, runs(one, **first)) == UNTESTED


def test_strict_normalization() -> None:
    sn, scaled = runs("cifar10_sn"), runs("cifar10_sn_conv")
    weak = {"score": (1.0, 1.2), "gradients": ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1))}
    strict = runs("cifar10_sn_conv", norm__scale=1.0, **weak)
    assert verdict("SN_Conv makes worse", sn, strict) == SUPPORTED
    assert verdict("SN_Conv's gradients", sn, strict) == SUPPORTED
    assert verdict("SN_Conv times 1.75", sn, strict, scaled) == SUPPORTED
    far = runs("cifar10_sn_conv", **weak)
    assert verdict("SN_Conv times 1.75", sn, runs("cifar10_sn_conv", norm__scale=1.0), far) == (
        NOT_SUPPORTED
    )


def sweep(method: str, scores: dict[float, float]) -> list[dict[str, Record]]:
    return [
        runs("cifar10_sn", score=(1, score))
        if (method, scale) == ("ssn", 1.0)
        else runs(f"cifar10_{method}", score=(1, score), norm__scale=scale)
        for scale, score in scores.items()
    ]


def test_sweeps() -> None:
    scales = (0.5, 1.0, 1.4, 1.75, 2.5, 4.0)
    early = dict(zip(scales, (1.5, 3.0, 2.0, 1.5, 1.2, 1.1), strict=True))
    late = dict(zip(scales, (1.1, 1.5, 2.0, 3.0, 2.0, 1.5), strict=True))
    shift = "SN_Conv is a shifted"
    assert verdict(shift, *sweep("ssn", early), *sweep("sn_conv", late)) == SUPPORTED
    assert verdict(shift, *sweep("ssn", late), *sweep("sn_conv", early)) == NOT_SUPPORTED
    assert verdict("Scaling improves", *sweep("ssn", late)) == SUPPORTED
    assert verdict("Scaling improves", *sweep("ssn", early)) == NOT_SUPPORTED
    lecun = dict(zip((0.2, 0.5, 0.8, 1.2, 1.6, 2.0), (3, 2.5, 1.5, 2.5, 3, 2), strict=True))
    two = dict(zip(scales, (3.0, 2.0, 1.5, 2.0, 3.0, 2.0), strict=True))
    modes = "Good scales come in two modes"
    assert verdict(modes, *sweep("ssn", two), *sweep("lecun", lecun)) == SUPPORTED
    assert verdict(modes, *sweep("ssn", early), *sweep("lecun", lecun)) == NOT_SUPPORTED


SCALES = dict.fromkeys((0.5, 1.0, 1.4, 1.75, 2.5, 4.0), 1.5)
STRICT = [
    runs("cifar10_sn"),
    runs("cifar10_sn_conv"),
    runs("cifar10_sn_conv", norm__scale=1.0),
]


@pytest.mark.parametrize(
    ("statement", "groups"),
    [
        ("SN makes better", [runs("cifar10_sn"), runs("cifar10_none")]),
        ("SN_Conv times 1.75", STRICT),
        ("SN_Conv is a shifted", [*sweep("ssn", SCALES), *sweep("sn_conv", SCALES)]),
        ("Scaling improves", sweep("ssn", {**SCALES, 1.4: 2.0})),
        ("Good scales", sweep("ssn", SCALES)),
    ],
)
def test_numbers_of_different_protocols_are_not_compared(
    statement: str, groups: list[dict[str, Record]]
) -> None:
    """Nor averaged, nor is the best of them taken: one run is enough."""
    groups = copy.deepcopy(groups)
    outcome(statement, *groups)
    *others, last = [record for group in groups for record in group.values()]
    for hash_, records in (("a", others), ("b", [last])):
        for row in (row for record in records for row in record.metrics):
            row["protocol"] = {"real_hash": hash_}
    with pytest.raises(RecordError, match=r"score.*: expected runs that were evaluated alike"):
        outcome(statement, *groups)


def test_layers_and_their_bounds() -> None:
    """They follow from algebra: checks of the program, and no evidence."""
    below = "SN keeps every layer's variance"
    assert verdict(below, runs("cifar10_sn")) == HOLDS
    assert verdict(below, runs("cifar10_sn", variance=(0.1, 1.1))) == FAILS
    larger = "The convolution's norm"
    for ratio, expected in ((1.5, HOLDS), (3.5, FAILS), (0.9, FAILS)):
        strict = runs("cifar10_sn_conv", norm__scale=1.0)
        assert verdict(larger, runs("cifar10_sn", conv_ratio=ratio), strict) == expected


def scalings(ratio: Callable[[random.Random, float], float]) -> list[dict[str, Record]]:
    """Runs whose layers have random norms, and gradients by ``ratio`` of each inverse norm."""
    draw, found = random.Random(1), []
    for seed in range(1, 7):
        norms = [math.exp(draw.gauss(0, 0.5)) for _ in LAYERS]
        gradients = [[ratio(draw, norms[0] / norm) for norm in norms] for _ in range(2)]
        options = {"norm__spread": 0.5, "norm__spread_seed": seed, "seeds": [0]}
        records = runs("mnist_sn_conv", gradients=gradients, **options)
        for record in records.values():
            for row in record.diagnostics:
                if row["layer"] != "all":
                    row["conv_norm"] = norms[LAYERS.index(row["layer"])]
        found.append(records)
    return found


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (lambda draw, x: x * math.exp(draw.gauss(0, 0.02)), SUPPORTED),
        # All of these lie within a factor of 2 of the diagonal, or nearly so.
        (lambda draw, x: math.exp(draw.gauss(0, 0.02)), NOT_SUPPORTED),
        (lambda draw, x: 1.0, NOT_SUPPORTED),
        (lambda draw, x: math.exp(draw.gauss(0, 0.5)), NOT_SUPPORTED),
        (lambda draw, x: 1 / x, NOT_SUPPORTED),
        (lambda draw, x: 0.0, UNTESTED),
    ],
)
def test_gradients_follow_norms_by_slope_and_correlation(
    ratio: Callable[[random.Random, float], float], expected: str
) -> None:
    assert verdict("Ratios of gradient norms", *scalings(ratio)) == expected


def test_the_norms_of_another_run_explain_nothing() -> None:
    """The control: with the records' norms given to other runs the claim falls."""
    groups = scalings(lambda draw, x: x * math.exp(draw.gauss(0, 0.02)))
    records = [record for group in groups for record in group.values()]
    norms = [[row.get("conv_norm") for row in record.diagnostics] for record in records]
    for record, others in zip(records, [*norms[1:], norms[0]], strict=True):
        for row, norm in zip(record.diagnostics, others, strict=True):
            row["conv_norm"] = norm
    assert verdict("Ratios of gradient norms", *groups) == NOT_SUPPORTED


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_odd_numbers_do_not_stop_the_judging(value: float) -> None:
    records: dict[str, Record] = {}
    for preset in ("cifar10_sn", "cifar10_none", "cifar10_bsn", "mnist_none", "mnist_sn_conv"):
        odd: dict[str, Any] = {
            "score": (value, value),
            "distance": (value, value),
            "variance": (value, value),
        }
        odd |= {"log_variance": (value, value), "gradients": ((value,) * 3, (value,) * 3)}
        records |= runs(preset, **odd)
    for name in ("ssn", "sn_conv"):
        for scale in (0.5, 1.0, 1.4, 1.75, 2.5, 4.0):
            records |= runs(f"cifar10_{name}", score=(value, value), norm__scale=scale)
    for one in judge_all(Evidence("small", records), {}):
        assert one.verdict != SUPPORTED and one.evidence
