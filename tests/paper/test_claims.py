"""Claims: verdicts from made-up runs, where it is known what they have to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from paper.claims import CLAIMS, judge, table
from paper.evidence import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNTESTED,
    Evidence,
    compare,
)
from paper.records import Record
from paper.scales import config_of, seeds_of
from paper.spec import Arm
from paper.statistics import mean_of

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


def verdict(statement: str, *groups: dict[str, Record]) -> str:
    (claim,) = [claim for claim in CLAIMS if claim.statement.startswith(statement)]
    records = {name: record for group in groups for name, record in group.items()}
    return judge(claim, Evidence("small", records)).verdict


def test_differences_are_judged_in_standard_errors() -> None:
    low, high, wide = mean_of([1.0, 1.1, 1.2]), mean_of([2.0, 2.1, 2.2]), mean_of([0.1, 1.2, 2.6])
    assert compare(("a", high), ("b", low), "x").verdict == SUPPORTED
    assert compare(("a", low), ("b", high), "x").evidence.endswith("the opposite")
    outcome = compare(("a", wide), ("b", low), "x")
    assert outcome.verdict == NOT_SUPPORTED and outcome.evidence.endswith("standard errors")
    assert "2.1 ± 0.058 (3)" in compare(("a", high), ("b", low), "x").evidence


def test_missing_runs_are_untested_and_named() -> None:
    for claim in CLAIMS:
        outcome = judge(claim, Evidence("small", {}))
        assert outcome.verdict == UNTESTED and outcome.evidence
    assert "not run: cifar10_sn" in table(Evidence("small", runs("cifar10_none")))


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


def test_layers_and_their_bounds() -> None:
    below = "SN keeps every layer's variance"
    assert verdict(below, runs("cifar10_sn")) == SUPPORTED
    assert verdict(below, runs("cifar10_sn", variance=(0.1, 1.1))) == NOT_SUPPORTED
    larger = "The convolution's norm"
    for ratio, expected in ((1.5, SUPPORTED), (3.5, NOT_SUPPORTED), (0.9, NOT_SUPPORTED)):
        strict = runs("cifar10_sn_conv", norm__scale=1.0)
        assert verdict(larger, runs("cifar10_sn", conv_ratio=ratio), strict) == expected


@pytest.mark.parametrize(("last", "expected"), [(1.5, SUPPORTED), (9.0, NOT_SUPPORTED)])
def test_points_near_the_diagonal(last: float, expected: str) -> None:
    gradients = ((1.0, 1.2, last), (1.0, 0.8, 1 / last))
    options = {"norm__spread": 0.5, "seeds": [0], "gradients": gradients}
    scalings = [runs("mnist_sn_conv", norm__spread_seed=seed, **options) for seed in range(1, 7)]
    assert verdict("Discriminators lie near", *scalings) == (
        expected if last < 2 else NOT_SUPPORTED
    )
