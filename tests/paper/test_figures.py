"""Figures, tables and the page of experiments, from records whose numbers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image
from records import record

from fastsn.gan.plotting import Sheet
from paper.catalog import EXPERIMENTS, Arm, Experiment, Plot
from paper.numbers import of_sample_sheet, of_table, same_name
from paper.output import KINDS, draw
from paper.records import Record, RecordError
from paper.statistics import average, mean_of
from paper.tables import table

SN = Arm("SN", "paper/cifar10_sn")
NONE = Arm("without SN", "paper/cifar10_none")

Records = Mapping[Arm, Sequence[Record]]


def experiment(plot: Plot, *arms: Arm, name: str = "fig99") -> Experiment:
    return Experiment(name, "What is shown", "section 9, Figure 99", "cifar10", arms, plot)


def drawn(of: Experiment, records: Records, folder: Path) -> list[dict[str, Any]]:
    """The rows of a picture that is there and not blank."""
    rows = draw(of, records, "small", folder / "one.png")
    with Image.open(folder / "one.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 20
    assert f">{of.source.rpartition(', ')[2]}: What is shown<" in text(folder)
    json.dumps(rows, allow_nan=False)
    return rows


#: The texts of the last picture, as ``>one<>other<``.
SHOWN = {"last": ""}


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    save = Sheet.save

    def saved(sheet: Sheet, *arguments: Any) -> None:
        save(sheet, *arguments)
        texts = [found.get_text() for found in sheet._figure.findobj(Text)]
        SHOWN["last"] = "".join(f">{' '.join(found.split())}<" for found in texts)

    monkeypatch.setattr(Sheet, "save", saved)


def text(folder: Path) -> str:
    return SHOWN["last"]


def notes(rows: list[dict[str, Any]]) -> str:
    return " ".join(row["text"] for row in rows if row["kind"] == "note")


def of_kind(rows: list[dict[str, Any]], kind: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows if row["kind"] == kind]


# Statistics


def test_mean_and_standard_error() -> None:
    mean = mean_of([1.0, 2.0, 6.0])
    assert (mean.mean, mean.n) == (3.0, 3)
    assert mean.stderr == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert mean_of([5.0]).stderr is None and mean_of([5.0, math.nan, math.inf]).n == 1
    assert mean_of([]).n == 0 and math.isnan(mean_of([]).mean)
    large = mean_of([1e308, 1.5e308])
    assert large.mean == pytest.approx(1.25e308) and large.stderr == pytest.approx(0.25e308)


def test_runs_share_a_grid_of_steps() -> None:
    often = [(step, 1.0) for step in range(10, 70, 10)]
    seldom = [(20, 3.0), (40, 5.0)]
    means = average([often, seldom])
    # Steps that a run lacks count only after its end.
    assert [(m.x, m.mean, m.n) for m in means] == [
        (20, 2.0, 2),
        (40, 3.0, 2),
        (50, 1.0, 1),
        (60, 1.0, 1),
    ]
    assert [(m.x, m.n) for m in average([[(1, 2.0), (2, math.nan), (3, 4.0)]])] == [(1, 1), (3, 1)]


# Curves


def test_curves_are_means_with_standard_errors(tmp_path: Path) -> None:
    runs = {
        SN: [record(f"s{i}", i, score={50: 1.0 + i, 100: 2.0 + 2 * i}) for i in range(3)],
        NONE: [record("n", score={50: 1.5, 100: 1.0})],
    }
    rows = drawn(experiment(Plot("curves", "score"), SN, NONE), runs, tmp_path)
    assert of_kind(rows, "mean", "series", "x", "mean", "stderr", "n") == [
        ("SN", 50, 2.0, pytest.approx(1 / math.sqrt(3)), 3),
        ("SN", 100, 4.0, pytest.approx(2 / math.sqrt(3)), 3),
        ("without SN", 50, 1.5, None, 1),
        ("without SN", 100, 1.0, None, 1),
    ]
    shown = text(tmp_path)
    assert ">SN (n = 3)<" in shown and ">without SN (n = 1)<" in shown
    said = "Fashion-MNIST in place of CIFAR10, width 1/8, 1,500 iterations, learning rates x 2"
    assert f"{said}, 1 to 3 seeds" in shown
    assert "classifier" in shown and "(not IS)" in shown  # never called an inception score


def test_the_same_records_make_the_same_files(tmp_path: Path) -> None:
    runs = {arm: [record("a", score={50: 1.0, 100: 2.0})] for arm in (SN, NONE)}
    for name in ("one", "two"):
        draw(experiment(Plot("curves", "score"), SN, NONE), runs, "small", tmp_path / f"{name}.png")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("one", "two")}) == 1


def test_runs_that_diverge_end_in_a_cross_and_a_note(tmp_path: Path) -> None:
    fine = {50: {"grad_norm": 2.0}, 100: {"grad_norm": 4.0}}
    lost = {50: {"grad_norm": 4.0}, 75: {"grad_norm": "inf"}}
    runs = {
        SN: [
            record("a", whole={**fine, 75: {"grad_norm": 3.0}}),
            record("b", whole=lost, diverged_at=80),
        ],
        NONE: [record("c", whole={50: {"grad_norm": "nan"}}, diverged_at=60)],
    }
    rows = drawn(experiment(Plot("curves", "grad_norm", log=True), SN, NONE), runs, tmp_path)
    assert of_kind(rows, "mean", "series", "x", "mean", "n") == [
        ("SN", 50, 3.0, 2),
        ("SN", 75, 3.0, 1),
        ("SN", 100, 4.0, 1),
    ]
    assert of_kind(rows, "diverged", "series", "x", "mean", "run") == [
        ("SN", 50, 4.0, "b"),
        ("without SN", 60, None, "c"),
    ]
    assert "SN: 1 of 2 runs diverged (cross), at iteration 80." in notes(rows)
    assert "without SN: 1 of 1 run diverged (cross), at iteration 60." in notes(rows)
    assert "diverged" in text(tmp_path)


def test_arms_that_were_not_run_are_named(tmp_path: Path) -> None:
    elsewhere = Arm("large", "paper/cifar10_bsn", sizes=("full",))
    rows = drawn(
        experiment(Plot("curves", "score"), SN, NONE, elsewhere),
        {SN: [record("a", score={50: 1.0, 100: 2.0})], NONE: []},
        tmp_path,
    )
    assert of_kind(rows, "not run", "label", "n") == [("without SN", 0)]
    assert "Not run yet: without SN." in notes(rows)
    assert "2 of the 3 settings of full size" in notes(rows)
    with pytest.raises(ValueError, match="fig99: expected runs of at least one arm, got none"):
        draw(experiment(Plot("curves", "score"), SN), {SN: []}, "small", tmp_path / "none")
    assert not (tmp_path / "none.png").exists()


def test_no_value_is_said(tmp_path: Path) -> None:
    rows = drawn(experiment(Plot("curves", "score"), SN), {SN: [record("a")]}, tmp_path)
    assert "None of these runs has a value of score." in notes(rows)


def test_one_arm_that_explodes_hides_no_other(tmp_path: Path) -> None:
    runs = {
        SN: [record("a", score={50: 1.0, 100: 2.0}, distance={50: 1.0, 100: 2.0})],
        NONE: [record("b", score={50: 1.0, 100: 2.0}, distance={50: 3.0, 100: 1e9})],
    }
    rows = drawn(experiment(Plot("curves", "distance"), SN, NONE), runs, tmp_path)
    assert "The axis is logarithmic" in notes(rows)
    runs[NONE] = [record("b", distance={50: 3.0, 100: 9.0})]
    rows = draw(
        experiment(Plot("curves", "distance"), SN, NONE), runs, "small", tmp_path / "other.png"
    )
    assert "logarithmic" not in notes(rows)


@pytest.mark.parametrize("panels", ["arms", "layers"])
def test_layer_curves_and_their_bounds(panels: str, tmp_path: Path) -> None:
    def run(name: str, factor: float) -> Record:
        cells = [
            {"conv_norm": 2.0 * factor, "sigma_0": 2.0, "conv_lower": 2.0, "conv_upper": 6.0},
            {"conv_norm": 8.0 * factor, "sigma_0": 4.0, "conv_lower": 4.0, "conv_upper": 8.0},
            {"conv_norm": None, "sigma_0": 1.0},
        ]
        return record(name, layers={50: cells, 100: cells})

    plot = Plot(
        "layer_curves", "conv_ratio", bounds=("conv_ratio_lower", "conv_ratio_upper"), panels=panels
    )
    runs = {SN: [run("a", 1.0), run("b", 1.5)]}
    rows = drawn(experiment(plot, SN), runs, tmp_path)
    means = of_kind(rows, "mean", "layer", "x", "mean", "stderr", "n")
    assert means == [
        ("layer 1", 50, 1.25, pytest.approx(0.25), 2),
        ("layer 1", 100, 1.25, pytest.approx(0.25), 2),
        ("layer 2", 50, 2.5, pytest.approx(0.5), 2),
        ("layer 2", 100, 2.5, pytest.approx(0.5), 2),
    ]
    bounds = {(r["layer"], r["bound"]): r["mean"] for r in rows if r["kind"] == "bound"}
    assert bounds == {
        ("layer 1", "conv_ratio_lower"): 1.0,
        ("layer 1", "conv_ratio_upper"): 3.0,
        ("layer 2", "conv_ratio_lower"): 1.0,
        ("layer 2", "conv_ratio_upper"): 2.0,
    }
    shown = text(tmp_path)
    assert ">layer 1<" in shown and ">layer 2<" in shown and ">layer 3<" not in shown


# Layers


def test_layer_bars_are_of_one_moment(tmp_path: Path) -> None:
    def run(name: str, add: float) -> Record:
        layers = {
            step: [{"grad_norm": step + add}, {"grad_norm": 2 * step + add}] for step in (40, 60)
        }
        return record(name, layers=layers)

    runs = {SN: [run("a", 0.0), run("b", 2.0)], NONE: [run("c", 1000.0)]}
    rows = drawn(
        experiment(Plot("layer_bars", "grad_norm", moment=0.45, log=True), SN, NONE), runs, tmp_path
    )
    assert of_kind(rows, "mean", "series", "layer", "x", "mean", "stderr", "n") == [
        ("SN", "layer 1", 40, 41.0, pytest.approx(1.0), 2),
        ("SN", "layer 2", 40, 81.0, pytest.approx(1.0), 2),
        ("without SN", "layer 1", 40, 1040.0, None, 1),
        ("without SN", "layer 2", 40, 1080.0, None, 1),
    ]
    assert ">at iteration 40<" in text(tmp_path)


def test_norm_ratios_are_of_the_weights_as_used(tmp_path: Path) -> None:
    cells = [
        {"norm": "SN_Conv", "output_grad_norm": 2.0, "conv_norm": 6.0, "sigma": 3.0, "scale": 0.5},
        {"norm": "SN_Conv", "output_grad_norm": 6.0, "conv_norm": 2.0, "sigma": 2.0, "scale": 0.25},
        # A linear layer has no norm as a convolution, and an unnormalized one is used as it is.
        {"norm": "none", "output_grad_norm": 1.0, "conv_norm": None, "sigma_0": 2.0},
    ]
    rows = drawn(
        experiment(Plot("norm_ratios"), SN),
        {SN: [record("a", layers={50: cells, 100: cells})]},
        tmp_path,
    )
    assert of_kind(rows, "point", "series", "x", "mean", "step") == [
        ("layer 2 / layer 1", 4.0, 3.0, 50),
        ("layer 3 / layer 1", 0.5, 0.5, 50),
        ("layer 2 / layer 1", 4.0, 3.0, 100),
        ("layer 3 / layer 1", 0.5, 0.5, 100),
    ]
    assert "Of the logarithms of 4 points: slope 0.86, correlation 1.00" in notes(rows)
    assert ">diagonal<" in text(tmp_path)


# One number per run


def scaled(scale: float, series: str = "SSN") -> Arm:
    return Arm(f"{series} {scale}", "paper/cifar10_ssn", {"norm.scale": scale}, series, scale)


def test_sweeps(tmp_path: Path) -> None:
    arms = [scaled(2.0), scaled(1.0), scaled(4.0)]
    runs = {
        arms[0]: [record("a", score={50: 3.0, 100: 1.0}), record("b", score={50: 5.0, 100: 2.0})],
        arms[1]: [record("c", score={50: 1.0, 100: 2.0})],
        arms[2]: [record("d", score={50: "nan"}, diverged_at=60)],
    }
    for pick, means in (("best", (4.0, 2.0)), ("last", (1.5, 2.0))):
        plot = Plot("sweep", "score", x_label="scale", pick=pick)
        rows = drawn(experiment(plot, *arms), runs, tmp_path)
        errors = (pytest.approx(1.0), None) if pick == "best" else (pytest.approx(0.5), None)
        assert of_kind(rows, "mean", "x", "mean", "stderr", "n") == [
            (2.0, means[0], errors[0], 2),
            (1.0, means[1], errors[1], 1),
            (4.0, None, None, 0),
        ]
        assert of_kind(rows, "diverged", "x", "n") == [(4.0, 1)]
        assert "1 of 1 run diverged" in notes(rows) and ">SSN (n = 1 to 2)<" in text(tmp_path)


def test_only_evaluations_have_a_best_value(tmp_path: Path) -> None:
    arm = scaled(1.0)
    runs = {arm: [record("a", whole={50: {"grad_norm": 1.0}})]}
    with pytest.raises(ValueError, match="expected the 'last' value or the 'best' of score or"):
        draw(
            experiment(Plot("sweep", "grad_norm", x_label="scale", pick="best"), arm),
            runs,
            "small",
            tmp_path / "x.png",
        )
    bare = Arm("SN", "paper/cifar10_sn")
    with pytest.raises(ValueError, match="SN: expected an arm with x on a sweep, got none"):
        draw(
            experiment(Plot("sweep", "score", x_label="scale"), bare),
            {bare: [record("a")]},
            "small",
            tmp_path,
        )


def test_bars(tmp_path: Path) -> None:
    arms = [Arm(label, "paper/cifar10_sn", {}, row) for row in ("r1", "r2") for label in ("A", "B")]
    runs = {
        arm: [
            record(f"{i}{s}", distance={5: 9.0, 9: 1.0 * i + s}, score={5: 1, 9: 1}) for s in (0, 2)
        ]
        for i, arm in enumerate(arms)
    }
    rows = drawn(experiment(Plot("bars", "distance"), *arms), runs, tmp_path)
    assert of_kind(rows, "mean", "series", "label", "mean", "stderr") == [
        ("r1", "A", 1.0, pytest.approx(1.0)),
        ("r1", "B", 2.0, pytest.approx(1.0)),
        ("r2", "A", 3.0, pytest.approx(1.0)),
        ("r2", "B", 4.0, pytest.approx(1.0)),
    ]


def test_score_over_variances_at_the_best_score(tmp_path: Path) -> None:
    arms = [scaled(0.5), scaled(1.5), scaled(1.5, "LeCun")]
    variances = {40: {"log_variance_product": -50.0}, 100: {"log_variance_product": -40.0}}
    runs = {
        arm: [record(f"r{i}", score={45: 2.0 + i, 100: 1.0}, whole=variances)]
        for i, arm in enumerate(arms)
    }
    rows = drawn(experiment(Plot("variance_scatter"), *arms), runs, tmp_path)
    assert of_kind(rows, "point", "series", "x", "mean", "label") == [
        ("SSN", -50.0, 2.0, "0.5"),
        ("SSN", -50.0, 3.0, "1.5"),
        ("LeCun", -50.0, 4.0, "1.5"),
    ]
    assert ">0.5<" in text(tmp_path) and text(tmp_path).count(">1.5<") == 2


def test_samples_of_the_best_run(tmp_path: Path) -> None:
    picture = tmp_path / "samples.png"
    Image.effect_noise((60, 30), 100).save(picture)
    runs = {
        SN: [
            record("a", 0, score={50: 1.0}, distance={50: 7.0}, samples=picture),
            record("b", 1, score={50: 2.0}, distance={50: 9.0}, samples=picture),
        ],
        NONE: [record("c", score={50: 3.0}, distance={50: 1.0})],  # has no samples
    }
    for value, best in (("score", "b"), ("distance", "a")):
        of = experiment(Plot("samples", value), SN, NONE, name="fig38")
        rows = drawn(of, runs, tmp_path)
        assert of_kind(rows, "best", "run") == [(best,)]
        assert "The paper's samples, of CIFAR10: inception score 7.56, FID 28.64." in notes(rows)


# Tables


def test_every_kind_of_plot_can_be_drawn() -> None:
    known = {one.plot.kind for one in EXPERIMENTS.values()}
    assert known == {*KINDS, "options"} and len(KINDS) == 9


def test_the_table_has_the_papers_numbers_and_the_difference(tmp_path: Path) -> None:
    arms = (
        Arm("SN", "paper/cifar10_sn", {}, "CIFAR10"),
        Arm("SSN", "paper/cifar10_ssn", {"norm.scale": 1.4}, "CIFAR10", 1.4),
        Arm("SSN", "paper/cifar10_ssn", {"norm.scale": 2.0}, "CIFAR10", 2.0),
        Arm("BSN", "paper/cifar10_bsn", {}, "CIFAR10"),
    )
    runs = {
        arms[0]: [
            record(f"a{i}", i, score={50: 9.0, 100: 3.0 + i}, distance={50: 5.0, 100: 50.0})
            for i in range(3)
        ],
        arms[1]: [record("b", score={100: 4.5}, distance={100: 40.0})],
        arms[2]: [record("c", score={100: 4.25}, distance={100: 30.0})],
    }
    one = Experiment(
        "table1", "Methods", "section 5.3, Table 1", "cifar10", arms, Plot("table", table=1)
    )
    written = table(one, runs, "small")
    rows = {
        cells[0]: cells[1:]
        for line in written.splitlines()
        if line.startswith("|") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    assert rows["SN"] == [
        *("4.00 ± 0.58 (n = 3)", "9.00 ± 0.00 (n = 3)", "7.12 ± 0.07"),
        *("50.00 ± 0.00 (n = 3)", "5.00 ± 0.00 (n = 3)", "31.43 ± 0.90"),
    ]
    # Of several scales the best counts, for each value by itself.
    assert rows["SSN"][0] == "4.50 (n = 1)" and rows["SSN"][3] == "30.00 (n = 1)"
    assert "- SSN, score: best of 2 settings: norm.scale 1.4" in written
    assert "- SSN, distance: best of 2 settings: norm.scale 2.0" in written
    assert rows["Real data"] == ["", "", "11.26", "", "", "9.70"]
    assert "not IS" in rows["method"][0] and rows["method"][2] == "paper, IS ↑"
    for said in (
        "- data.name: cifar10 → fashion_mini",
        "- train.steps: 400,000 → 100",
        "- eval.extractor: inception → classifier",
        "- seeds: paper 5",
        "Not run yet: BSN (CIFAR10).",
    ):
        assert said in written
    found = draw(one, runs, "small", tmp_path / "table1.png")
    assert {(r["label"], r["value"], r["kind"]): r["mean"] for r in found if "value" in r} == {
        ("SN", "score", "last"): 4.0,
        ("SN", "score", "best"): 9.0,
        ("SN", "distance", "last"): 50.0,
        ("SN", "distance", "best"): 5.0,
        ("SSN", "score", "last"): 4.5,
        ("SSN", "score", "best"): 4.5,
        ("SSN", "distance", "last"): 30.0,
        ("SSN", "distance", "best"): 30.0,
    }


def test_the_papers_numbers_belong_to_experiments() -> None:
    """Every number is found by an arm of the experiment that it is a number of."""
    for number in (1, 6):
        arms = EXPERIMENTS[f"table{number}"].arms
        for method, data, _ in of_table(number):
            mine = {arm.label for arm in arms if same_name(arm.series, data)}
            assert method == "Real data" or any(same_name(method, label) for label in mine), method
    sheets = [one for one in EXPERIMENTS.values() if one.plot.kind == "samples"]
    assert len(sheets) == 20
    for one in sheets:
        assert of_sample_sheet(int(one.name.removeprefix("fig"))), one.name
    assert of_table(1)["BSSN", "imagenet", "distance"] == (69.04, 1.46)
    assert of_table(6)["SN (same gamma)", "celeba", "distance"] == (7.74, 0.11)
    assert of_table(7) == {}


def test_options_are_a_table_without_runs() -> None:
    one = EXPERIMENTS["table7"]
    written = table(one, {}, "full").splitlines()
    assert len(written) == 5 + 2
    assert "| h4 | 0.0001 | 0.0002 | 0.5 | 0.999 | 1 |" in written
    assert "0.0001 (here 0.0002)" in table(one, {}, "small")


# What is not comparable, and what failed


def test_numbers_of_different_protocols_are_not_drawn_together(tmp_path: Path) -> None:
    runs = {arm: [record(arm.label, score={50: 1.0, 100: 2.0})] for arm in (SN, NONE)}
    for number, arm in enumerate(runs):
        for row in runs[arm][0].metrics:
            row["protocol"] = {"real": "folder", "real_sha256": f"{number}", "n_real": 5}
    with pytest.raises(RecordError, match=r"fig99: .* alike, got real_sha256 '0' of SN and '1' of"):
        draw(experiment(Plot("curves", "score"), SN, NONE), runs, "small", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(RecordError, match="fig99: expected runs that were evaluated alike"):
        table(experiment(Plot("table", table=1), SN, NONE), runs, "small")
    for row in runs[NONE][0].metrics:  # an earlier version said less
        del row["protocol"]["real_sha256"]
    draw(experiment(Plot("curves", "score"), SN, NONE), runs, "small", tmp_path / "a.png")


def test_failed_runs_are_counted_and_shown(tmp_path: Path) -> None:
    arm = scaled(1.0)
    runs = {
        arm: [
            record("a", score={50: 1.0, 100: 2.0}),
            record("b", score={50: 1.0, 100: "nan"}),
            record("c", score={50: 1.0}, diverged_at=60),
        ]
    }
    plot = Plot("sweep", "score", x_label="scale")
    rows = drawn(experiment(plot, arm), runs, tmp_path)
    # The last finite value of a run that failed after it is not its value at the end.
    assert of_kind(rows, "mean", "mean", "n", "runs") == [(2.0, 1, 3)]
    assert "1 of 3 runs diverged (cross), at iteration 60." in notes(rows)
    assert "1 of 3 runs without a finite score at the end." in notes(rows)
    assert str(mean_of([2.0, math.nan, None])) == "2 (n = 1, 2 of 3 failed)"
    one = Experiment("table1", "T", "Table 1", "cifar10", (arm,), Plot("table", table=1))
    assert "2.00 (n = 1, 2 failed)" in table(one, runs, "small")


@pytest.mark.parametrize("value", [0.0, "nan", "inf", -1.0])
@pytest.mark.parametrize("name", KINDS)
def test_odd_numbers_do_not_stop_the_drawing(name: str, value: Any, tmp_path: Path) -> None:
    cells = dict.fromkeys(("grad_norm", "output_grad_norm", "conv_norm", "sigma_0"), value)
    cells |= {"log_variance_product": value, "sigma": value, "scale": value, "conv_lower": value}
    odd = record(
        "a",
        score={50: value, 100: value},
        distance={50: value, 100: value},
        whole={50: cells, 100: cells},
        layers={50: [cells] * 3, 100: [cells] * 3},
    )
    plot = Plot(name, "score" if name in ("curves", "sweep", "bars", "samples") else "grad_norm")
    for log in (False, True):
        one = experiment(Plot(name, plot.value, log=log, table=1), scaled(1.0))
        rows = draw(one, {scaled(1.0): [odd]}, "small", tmp_path / "a.png")
        json.dumps(rows, allow_nan=False)
