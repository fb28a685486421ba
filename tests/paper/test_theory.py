"""The checks of the paper's theorems: what holds, what does not, and that a check can fail."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastsn.gan.plotting import Sheet, drawing
from paper import theory
from paper.records import RecordError
from paper.theory import CHECKS, Row, Verdict, proposition3, theorem2, verdicts
from paper.theory.check import draw_panels, generator, judge, summary
from paper.theory.networks import (
    KINDS,
    OUTPUTS,
    evaluate,
    gradient_norms,
    random_net,
)
from paper.theory.variance import DISTRIBUTIONS

#: Per check, whether each of its parts holds, and whether the paper prints it.
HOLDS = {
    "theorem1": [(True, True), (True, False), (False, False), (True, False), (True, False)],
    "theorem2": [(True, True), (True, True)],
    "theorem3": [(False, True), (True, False), (True, False), (True, True)],
    "proposition1": [(True, True), (True, True), (False, False), (True, False)],
    "proposition2": [(True, True), *[(False, False)] * 4],
    "proposition3": [(True, True), (True, True), (True, False), (False, True), (False, False)],
    "tsuzuku": [(True, True), (False, True), (True, False)],
}


@pytest.fixture(scope="module")
def smoke() -> dict[str, list[Row]]:
    return {name: check.rows("smoke", 0) for name, check in CHECKS.items()}


@pytest.mark.parametrize("name", list(HOLDS))
def test_verdicts(name: str, smoke: dict[str, list[Row]]) -> None:
    rows = json.loads(json.dumps(smoke[name], allow_nan=False))
    verdict = CHECKS[name].verdict(rows)
    assert verdict == CHECKS[name].verdict(smoke[name])
    assert [(part.holds, part.printed) for part in verdict.parts] == HOLDS[name]
    assert verdict.holds == all(holds for holds, printed in HOLDS[name] if printed)
    for part in (verdict, *verdict.parts):
        assert part.checked > 0 and part.statement
        # worst is above 1, and a case is named, exactly where the statement fails
        assert (part.worst > 1 + 1e-9) is not part.holds
        assert (part.counterexample is None) is part.holds
    for part in verdict.parts:
        if part.counterexample:
            assert any(row.items() <= part.counterexample.items() for row in rows)


def test_every_check_is_here() -> None:
    assert set(CHECKS) == set(HOLDS)
    for name, check in CHECKS.items():
        assert check.title and check.source, name


@pytest.mark.parametrize("name", list(HOLDS))
def test_same_rows_for_the_same_seed(name: str, smoke: dict[str, list[Row]]) -> None:
    torch.rand(3)  # the state of torch's own generator plays no part
    assert CHECKS[name].rows("smoke", 0) == smoke[name]
    assert CHECKS[name].rows("smoke", 1) != smoke[name]
    with pytest.raises(ValueError, match="expected a size in .*'full', 'small', 'smoke'"):
        CHECKS[name].rows("tiny", 0)


@pytest.mark.parametrize("name", list(HOLDS))
def test_rows_are_kept_and_figures_drawn_of_them(name: str, tmp_path: Path) -> None:
    theory.run([name], "smoke", tmp_path / "rows")
    kept = (tmp_path / "rows" / f"{name}.jsonl.gz").read_bytes()
    theory.run([name], "smoke", tmp_path / "rows")  # only what is not there
    assert (tmp_path / "rows" / f"{name}.jsonl.gz").read_bytes() == kept
    for turn in (1, 2):
        theory.draw(name, tmp_path / "rows", tmp_path / f"{turn}.png")
    with Image.open(tmp_path / "1.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # type: ignore[arg-type]
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    (verdict,) = verdicts(tmp_path / "rows").values()
    assert theory.table(verdict).count("| yes |") + theory.table(verdict).count("| no |") > 0
    (tmp_path / "rows" / f"{name}.jsonl.gz").write_bytes(kept[: len(kept) // 2])
    with pytest.raises(RecordError, match=f"{name}.jsonl.gz: expected rows of {name}"):
        verdicts(tmp_path / "rows")


def test_what_breaks_a_bound_is_marked() -> None:
    rows = copy.deepcopy(CHECKS["theorem2"].rows("smoke", 0))
    for row in rows:
        row["value"] *= 100
    sheet = Sheet()
    with drawing():
        draw_panels(sheet, CHECKS["theorem2"].panels(rows))
        names = [text.get_text() for text in sheet._figure.axes[0].get_legend().get_texts()]
    assert "worst above it" in names


def times(column: str, factor: float) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        if row.get(column) is not None:
            row[column] *= factor

    return change


def shrink_large(row: Row) -> None:
    if row["constant"] is not None and max(row["m"], row["n"]) >= 32:
        row["constant"] *= 0.1


def one_nan(row: Row) -> None:
    if (row["kind"], row["layer"], row["claim"]) == ("aligned", 1, "dense"):
        row["value"] = math.nan


@pytest.mark.parametrize(
    ("name", "part", "change"),
    [
        ("theorem1", 0, times("at_equal", 2.0)),
        ("theorem1", 1, times("minimum", 2.0)),
        ("theorem1", 3, times("rule_error", 1e4)),
        ("theorem1", 4, times("eq2", 1.001)),
        ("theorem2", 0, times("upper", 0.5)),
        ("theorem2", 1, shrink_large),
        ("theorem3", 1, times("upper", 0.5)),
        ("theorem3", 2, times("proven", 0.5)),
        ("proposition1", 0, times("upper", 0.5)),
        ("proposition1", 0, one_nan),
        ("proposition1", 1, times("upper", 0.5)),
        ("proposition1", 3, times("with_alpha", 0.5)),
        ("proposition2", 0, times("value", 1e5)),
        ("proposition3", 0, times("upper", 0.5)),
        ("proposition3", 1, times("corollary", 0.5)),
        ("tsuzuku", 0, times("upper", 0.5)),
        ("tsuzuku", 2, times("lower", 2.0)),
    ],
)
def test_a_wrong_bound_is_found(
    name: str, part: int, change: Callable[[Row], None], smoke: dict[str, list[Row]]
) -> None:
    assert CHECKS[name].verdict(smoke[name]).parts[part].holds
    rows = copy.deepcopy(smoke[name])
    for row in rows:
        change(row)
    found = CHECKS[name].verdict(rows).parts[part]
    assert not found.holds
    assert found.counterexample is not None


def test_a_wrong_formula_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bound2, bound3 = theorem2.theorem2_bound, proposition3.proposition3_bound
    monkeypatch.setattr(theorem2, "theorem2_bound", lambda m, n: bound2(m, n) / 2)
    verdict = CHECKS["theorem2"].verdict(CHECKS["theorem2"].rows("smoke", 0))
    assert not verdict.holds and verdict.worst == pytest.approx(2.0)
    assert verdict.counterexample is not None and verdict.counterexample["family"] == "one row"
    monkeypatch.setattr(
        proposition3,
        "proposition3_bound",
        lambda *args: tuple(bound * 0.99 for bound in bound3(*args)),
    )
    verdict = CHECKS["proposition3"].verdict(CHECKS["proposition3"].rows("smoke", 0))
    assert not verdict.parts[0].holds
    assert verdict.parts[0].worst == pytest.approx(1 / 0.99)


def variance_over_printed_bound(shape: tuple[int, ...], random: torch.Generator) -> float:
    w = torch.randn(shape, dtype=torch.float64, generator=random)
    sides = (w.flatten(1), w.transpose(0, 1).flatten(1))
    sigma = sum(torch.linalg.matrix_norm(side, 2) for side in sides) / 2
    k = math.prod(shape[2:])
    return float((w / sigma).square().mean()) * k * (shape[0] + shape[1]) / 2


def test_the_counterexamples_of_theorem_3(smoke: dict[str, list[Row]]) -> None:
    random = torch.Generator().manual_seed(1)
    for shape, expected in (((64, 3, 7, 7), 1.11), ((100, 1, 10, 10), 1.41)):
        assert variance_over_printed_bound(shape, random) == pytest.approx(expected, abs=0.02)
        (row,) = (
            row
            for row in smoke["theorem3"]
            if (row["c_out"], row["c_in"], *row["kernel"]) == shape
            and row["distribution"] == "Gaussian"
        )
        assert row["value"] / row["upper"] == pytest.approx(expected, abs=0.02)
        # where the proof goes wrong: not before step 3, and by this factor after it
        assert row["value"] <= row["step_1"] <= row["step_2"] / 2 <= row["step_3"] / 2
        total = shape[0] + shape[1]
        factor = total**2 / (shape[0] * shape[1])
        assert row["step_3"] / row["upper"] == pytest.approx(factor)
    verdict = CHECKS["theorem3"].verdict(smoke["theorem3"])
    assert verdict.counterexample is not None
    assert (verdict.counterexample["c_out"], verdict.counterexample["c_in"]) == (100, 1)
    assert 1.4 < verdict.worst < 1.45


def test_other_counterexamples(smoke: dict[str, list[Row]]) -> None:
    def failed(name: str, part: int) -> Row:
        found = CHECKS[name].verdict(smoke[name]).parts[part].counterexample
        assert found is not None
        return found

    # constant kernels: as many times the bound as the kernel has taps, under the root
    row = failed("proposition1", 2)
    assert row["kind"] == "constant" and row["value"] / row["upper"] == pytest.approx(3.0)
    # D = w_2 w_1 x has the mixed derivative x
    row = failed("proposition3", 3)
    assert row["depth"] > 1 and row["output"] == "identity" and row["value"] > 0.1
    row = failed("tsuzuku", 1)
    assert not row["full_patch"] and row["padding"] > 0 and row["ratio"] < 0.9
    row = failed("theorem1", 2)
    assert row["at_equal"] > 1.01 * row["minimum"]


def test_equation_2_holds_in_the_set_and_nowhere_else(smoke: dict[str, list[Row]]) -> None:
    for row in smoke["theorem1"]:
        if row["claim"] == "in the set":
            assert row["eq2_equal"] == pytest.approx(1.0, abs=1e-9)
        else:
            assert row["eq2_equal"] > 1.001
        if row["t"] == row["t_minimum"]:
            assert row["value"] == pytest.approx(row["minimum"])
    kinds = {row["kind"] for row in smoke["theorem1"] if row["claim"] == "in the set"}
    assert kinds == {"aligned", "raised norms"}


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks(kind: str) -> None:
    weights, x = random_net(kind, [5, 6, 4, 1], generator(0, kind))
    assert [tuple(weight.shape) for weight in weights] == [(6, 5), (4, 6), (1, 4)]
    for weight in weights:
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0)
    if kind == "aligned":
        assert float(evaluate(weights, x, 0.0, "identity")) == pytest.approx(float(x.norm()))
        assert gradient_norms(weights, x, 0.2) == pytest.approx([float(x.norm())] * 3)
        assert all(float(torch.linalg.svdvals(weight)[1]) > 0.3 for weight in weights[:-1])
    with pytest.raises(ValueError, match="expected a kind in .* got 'Cauchy'"):
        random_net("Cauchy", [2, 1], generator(0))


def test_outputs_have_the_constants_they_state() -> None:
    z = torch.linspace(-8, 8, 16001, dtype=torch.float64)
    for output in OUTPUTS.values():
        values = output.function(z)
        step = float(z[1] - z[0])
        slopes = values.diff() / step
        assert float(slopes.abs().max()) == pytest.approx(output.lipschitz, rel=1e-4)
        bend = float((slopes.diff() / step).abs().max())
        assert bend == pytest.approx(output.hessian, rel=1e-3, abs=1e-6)


def test_distributions() -> None:
    variances = {"Gaussian": 1.0, "uniform": 1 / 3, "Laplace": 2.0, "Rademacher": 1.0}
    for name, draw in DISTRIBUTIONS.items():
        values = draw((200, 500), generator(0, name))
        assert values.dtype == torch.float64 and bool(values.isfinite().all())
        assert float((values > 0).double().mean()) == pytest.approx(0.5, abs=0.01)
        if name in variances:
            assert float(values.square().mean()) == pytest.approx(variances[name], rel=0.03)
        else:  # the median of |t| with 2 degrees of freedom
            assert float(values.abs().median()) == pytest.approx(math.sqrt(2 / 3), rel=0.02)


def test_judging() -> None:
    rows: list[Row] = [{"value": 1.0, "upper": 2.0}, {"value": 3.0, "upper": 4.0}]
    good = judge("below", rows, holds="why", fails="not")
    assert good == Verdict("below", True, 2, 0.75, None, "why")
    swapped = judge("above", rows, "upper", "value", printed=False)
    assert not swapped.holds and swapped.worst == 2.0 and swapped.counterexample == rows[0]
    # equality up to rounding is no breach
    assert judge("equal", [{"value": 1 + 1e-12, "upper": 1.0}]).holds
    assert not judge("more", [{"value": 1 + 1e-6, "upper": 1.0}]).holds
    with pytest.raises(ValueError, match="expected rows for 'nothing', got none"):
        judge("nothing", [])
    # a summary goes by what the paper prints
    both = summary("all", [good, swapped])
    assert both.holds and both.checked == 2 and both.worst == 0.75
    assert both.parts == (good, swapped)
    failed = summary("all", [good, judge("above", rows, "upper", "value", fails="no")])
    assert failed.parts[1].note == "no" and "above (up to 2.00 times it)" in failed.note
    assert not failed.holds and failed.worst == 2.0 and failed.counterexample == rows[0]
