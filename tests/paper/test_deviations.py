"""docs/deviations.md: that all that differs is in it, and that it says what the options are."""

from __future__ import annotations

from pathlib import Path

import pytest

from paper.catalog import EXPERIMENTS, SIZES, arms_of, config_of, plan, runs_of, seeds_of

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs/deviations.md").read_text("utf-8")


@pytest.mark.parametrize(
    "said",
    [
        "Figure 15",
        "STL10 with `n_dis` 1",
        "Loss of the variants with γ",
        "Learning rate on ImageNet",
        "1,008 scores",
        "the same samples",
        "EMA of the generator",
        "| batch |",
        "| `n_dis` |",
        "Seeds of Figures 65 and 66",
        "Row of Table 7 that Table 1 shows",
    ],
)
def test_every_deviation_is_listed(said: str) -> None:
    assert said in PAGE


def test_the_page_says_what_the_options_are() -> None:
    full = {name: [*plan([EXPERIMENTS[name]], "full").values()] for name in EXPERIMENTS}
    assert {run.train.steps for run in full["fig15"]} == {800_000}
    assert {run.optim.lr_d for run in full["fig65"]} == {0.0002}
    variants = [run for run in full["table6"] if "gamma" in run.norm.method]
    assert {(run.loss.name, run.loss.gradient_penalty) for run in variants} == {("wgan", 10.0)}
    assert {run.train.ema for runs in full.values() for run in runs} <= {0}
    small = [*plan(EXPERIMENTS.values(), "small").values()]
    assert {run.train.ema for run in small} == {0.99}
    assert {run.train.steps for run in small} == {1500}
    assert {run.optim.batch_d for run in small} == {16, 32}
    assert {run.model.width for run in small} == {1 / 4, 1 / 8, 1 / 16}
    assert {run.eval.n_real for run in small} == {2000} and seeds_of("small") == 3
    arms = {arm.label: len(runs_of(arm, "full")) for arm in arms_of(EXPERIMENTS["fig65"], "full")}
    assert arms.pop("SN (scale=1.0)") == 5 and {*arms.values()} == {3}
    row = config_of(EXPERIMENTS["table1"].arms[0], "full", 0).optim
    assert (row.lr_g, row.lr_d, row.n_dis) == (0.0001, 0.0001, 1)
    assert SIZES == ("full", "small", "smoke")
