"""The study: its plan, its records, and its verdicts on records whose truth is known."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fastsn.gan.config import from_dict
from fastsn.gan.data.sets import ASSETS
from fastsn.gan.loop.training import train
from fastsn.gan.measure.features import load_extractor
from fastsn.gan.run.jsonl import JsonLines
from fastsn.gan.sweep.jobs import distinct
from paper.records import RecordError
from paper.statistics import critical, welch
from paper.study.__main__ import main
from paper.study.claims import Outcome, judge, part
from paper.study.compare import Part, compare, permuted, shares_below
from paper.study.controls import controls
from paper.study.evidence import SCALES, Evidence, whole_seeds
from paper.study.plan import Run, lot, runs
from paper.study.power import detectable, power
from paper.study.records import (
    SECOND,
    Entry,
    line_of,
    read_entries,
    record,
    write_entries,
)
from paper.study.report import RECORDS, write_report

SEEDS = 6
HEADLINE = "BSSN makes better samples than SN"

#: Logarithm of what a run's distances are multiplied by, by setting, arm and step.
Truth = Callable[[str, str, int], float]


def nothing(setting: str, arm: str, step: int) -> float:
    return 0.0


def entry(
    run: Run, truth: Truth = nothing, noise: float = 0.1, second: Truth | None = None
) -> Entry:
    """A run that never was, with distances from ``truth`` and noise between seeds."""
    draw = random.Random(f"{run.setting} {run.arm} {run.seed} {noise}")
    own = draw.gauss(0.0, noise)
    steps = range(1500, run.config.train.steps + 1, 1500)

    def series(of: Truth) -> dict[int, float]:
        base = {s: 3.0 + 1500 / s + own + of(run.setting, run.arm, s) for s in steps}
        return {s: math.exp(log) for s, log in base.items()}

    others = {
        name: dict.fromkeys(steps, 0.5) for name in ("score", "kernel", "precision", "recall")
    }
    network = {
        "grad_norm": {s: math.exp(own) for s in steps},
        "log_variance_product": {s: own * s for s in steps},
        "largest": {s: math.exp(own) for s in steps},
        "spread": {s: 1 + abs(own) for s in steps},
    }
    return Entry(
        run.setting,
        run.arm,
        run.seed,
        run.config.run_name(),
        run.config.train.steps,
        False,
        {"distance": series(truth), **others},
        {"distance": series(second or truth), **others},
        network,
        ("one", "other"),
    )


def evidence(*args: object, seeds: int = SEEDS, **options: object) -> Evidence:
    entries = [entry(run, *args, **options) for run in runs(seeds)]  # type: ignore[arg-type]
    return Evidence(entries, range(seeds))


def outcome(found: Iterable[Outcome], statement: str) -> Outcome:
    return next(one for one in found if one.claim.statement == statement)


# The plan


def test_plan_is_the_protocols() -> None:
    planned = list(runs())
    assert len(planned) == 6 * 52 and len(distinct([run.config for run in planned])) == 6 * 52
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)
    late = {(run.setting, run.arm) for run in planned if run.config.train.steps == 45_000}
    assert late == {(s, a) for s in "AB" for a in ("SN", "BSN")}
    for run in planned:
        config = run.config
        assert config.train.ema == 0 and config.optim.batch_d == config.optim.batch_g == 16
        assert config.data.name == "fashion_mini" and config.train.seed == run.seed
        assert config.train.steps >= 15_000 and config.eval.every == 1500
        assert config.checkpoint.every == 1500 and config.checkpoint.keep >= 30
        assert config.optim.n_dis == (5 if run.setting == "C" else 1)
        rate = {"A": 1e-4, "B": 2e-4, "C": 1e-4, "M": 1e-3, "W": 1e-3}[run.setting]
        assert config.optim.lr_g == config.optim.lr_d == rate
        penalty = 10.0 if (run.setting, run.arm) == ("W", "none") else 0.0
        assert config.loss.gradient_penalty == penalty
        assert config.loss.name == ("wgan" if run.setting == "W" else "hinge")
        forward = "vectors per forward" in run.arm
        assert config.norm.update == ("forward" if forward else "step")
        scale = run.arm.rpartition(" ")[2]
        assert config.norm.scale == (float(scale) if scale[0].isdigit() else 1.0)


def test_plan_has_not_changed_since_the_protocol() -> None:
    """Another option anywhere would be another run than those that were begun."""
    names = " ".join(run.config.run_name() for run in runs(SEEDS))
    digest = hashlib.blake2b(names.encode(), digest_size=8).hexdigest()
    assert digest == "847876c26e80584b"
    assert [run.config.run_name() for run in lot()] == [
        "fashion_mini-sn_conv-seed0-b2cbd2a5",
        "fashion_mini-ssn-seed0-3be5f438",
    ]


def test_choice_is_among_runs_that_there_are() -> None:
    planned = {(run.setting, run.arm) for run in runs(1)}
    for arms in SCALES.values():
        assert len(arms) == 6
        assert all((setting, arm) in planned for setting in "ABM" for arm in arms.values())
    assert len({run.config.run_name() for run in lot()}) == 2


# Statistics


def test_critical_values_of_students_t() -> None:
    assert critical(10, 0.05) == pytest.approx(2.228139, rel=1e-6)
    assert critical(5, 0.01) == pytest.approx(4.032143, rel=1e-6)
    assert critical(4.5, 0.05) == pytest.approx(2.659, rel=2e-3)


def test_interval_has_the_mean_and_ends_where_p_is_one_in_twenty() -> None:
    a, b = [1.0, 2.0, 3.5, 4.0], [2.5, 4.0, 6.0, 8.5, 5.0]
    found = compare(Part("x", ("a", "b"), a, b, -1))
    assert found is not None and found.agrees
    assert found.effect == pytest.approx(2.625 - 5.2)
    for end in (found.low, found.high):
        assert welch([value - end for value in a], b).p == pytest.approx(0.05, abs=1e-9)


def test_permutations() -> None:
    assert permuted(Part("x", ("a", "b"), [1, 2, 3], [4, 5, 6], -1)) == 2 / 20
    assert permuted(Part("x", ("a",), [1, 2, 3], None, 1)) == 2 / 8
    assert shares_below([1, 2, 3], [4, 5, 6], 0.05) == 2 / 20


@pytest.mark.slow
def test_power_is_that_of_a_known_case() -> None:
    # Two groups of 17 and one deviation have power 0.807 at 0.05 (Cohen's tables).
    assert power(17, 1.0, 0.05) == pytest.approx(0.807, abs=0.03)
    assert power(6, 0.0, 0.05) == pytest.approx(0.05, abs=0.02)
    assert power(5, 1.6, 0.05) > 2 * power(5, 1.6, 0.01)
    assert detectable(30, 0.05, 0.3) == 0.5


# Verdicts


def test_planted_differences_are_found_and_nothing_else() -> None:
    def truth(setting: str, arm: str, step: int) -> float:
        late = 0.5 if arm == "SN" and step > 30_000 else 0.0
        return {"BSSN 1.2": -0.9, "BSN": 0.7, "none": 1.0}.get(arm, 0.0) + late

    found = judge(evidence(truth))
    headline = outcome(found, HEADLINE)
    assert headline.verdict == "supported"
    (result,) = headline.results
    assert result.part.names == ("BSSN 1.2", "SN") and len(result.part.a) == len(result.part.b) == 5
    assert result.low < -0.9 < result.high
    assert outcome(found, "BSN makes better samples than SN").verdict == "contrary"
    assert outcome(found, "SN makes better samples than no normalization").verdict == "supported"
    late = outcome(found, "SN gets worse late in training, BSN does not")
    assert late.verdict == "supported" and len(late.results) == 2
    for statement in (
        "SSN makes better samples than SN",
        "SN_Conv makes worse samples than SN",
        "Vectors that advance at every forward change SN",
    ):
        assert outcome(found, statement).verdict == "not shown"


def test_what_the_second_classifier_does_not_see_is_said() -> None:
    def truth(setting: str, arm: str, step: int) -> float:
        return -0.9 if arm == "BSN" else 0.0

    found = outcome(judge(evidence(truth, second=nothing)), "BSN makes better samples than SN")
    assert found.verdict == "by one classifier only"


def test_both_parts_of_a_claim_must_hold() -> None:
    def both(setting: str, arm: str, step: int) -> float:  # BSN gets worse as well
        return 0.9 if step > 30_000 else 0.0

    found = outcome(judge(evidence(both)), "SN gets worse late in training, BSN does not")
    assert found.results[0].p < 1e-3 and found.verdict == "not shown"


def test_seed_0_chooses_and_is_not_tested() -> None:
    mine = evidence(noise=0.3)
    ends = {x: mine.values("A", arm, "end", [0])[0] for x, arm in SCALES["BSSN"].items()}
    scale = min(ends, key=lambda x: ends[x])
    assert mine.chosen("A", "BSSN") == scale
    assert replace(mine, second=True).chosen("A", "BSSN") == scale
    (result,) = outcome(judge(mine), HEADLINE).results
    assert result.part.a == mine.values("A", SCALES["BSSN"][scale], "end", range(1, SEEDS))
    assert result.part.b == mine.values("A", "SN", "end", range(1, SEEDS))


@pytest.mark.slow
def test_error_rate_of_the_chosen_scale() -> None:
    """Without any difference, choosing by seed 0 leaves Welch's test its level."""
    planned = [run for run in runs(SEEDS) if run.setting == "A"]
    rejected, draws = 0, 400
    for number in range(draws):
        noise = 0.1 + 1e-9 * number  # another seed of the noise
        wanted = ("SN", *SCALES["BSSN"].values())
        entries = [entry(run, noise=noise) for run in planned if run.arm in wanted]
        mine = Evidence(entries, range(SEEDS))
        arm = SCALES["BSSN"][mine.chosen("A", "BSSN")]
        result = compare(part(mine, "A", (arm, "SN"), "end", -1, range(1, SEEDS)))
        assert result is not None
        rejected += result.p < 0.05
    assert 0.02 < rejected / draws < 0.085


def test_diverged_runs_are_the_worst_and_told() -> None:
    mine = evidence()
    first = next(e for e in mine.entries if (e.setting, e.arm, e.seed) == ("A", "BSN", 1))
    kept = {s: d for s, d in first.first["distance"].items() if s <= 6000}
    broken = replace(
        first,
        diverged=True,
        first={**first.first, "distance": kept},
        second={**first.second, "distance": kept},
    )
    entries = [broken if e is first else e for e in mine.entries]
    other = Evidence(entries, mine.seeds)
    logs = [math.log(d) for e in entries if e.setting == "A" for d in e.first["distance"].values()]
    assert other.values("A", "BSN", "end", [1]) == [pytest.approx(max(logs))]
    assert math.isnan(other.values("A", "BSN", "gradient", [1])[0])
    lost = part(other, "A", ("SN", "BSN"), "gradient", 1)
    found = compare(lost)
    assert lost.failed == 1 and found is not None and found.p == 1.0 and not found.agrees


def test_whole_seeds_alone_are_tested() -> None:
    entries = [entry(run) for run in runs(2)]
    assert whole_seeds(entries, 6) == [0, 1]
    assert whole_seeds(entries[:-1], 6) == [0]
    (few,) = {one.verdict for one in judge(Evidence(entries[:52], [0]))}
    assert few == "too few seeds"


def test_controls() -> None:
    def learning(setting: str, arm: str, step: int) -> float:
        return -step / 15_000

    found = {one.name.split(":")[0]: one.found for one in controls(evidence(learning))}
    assert 0.0 <= float(found["Labels of SN and BSN (A) shuffled in all ways"]) < 0.12
    assert int(found["Every arm of A against itself, even seeds against odd"]) <= 3
    assert float(found["SN's first evaluation against its last"]) < 0.05


# Records


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run of two iterations, evaluated after both."""
    folder = tmp_path_factory.mktemp("study")
    config = from_dict(
        {
            "model": {"name": "mnist", "width": 0.0625},
            "optim": {"batch_d": 4, "batch_g": 4},
            "train": {"steps": 2, "seed": 3, "device": "cpu"},
            "log": {"every": 1, "samples_every": 0, "diagnostics_every": 1, "tensorboard": False},
            "checkpoint": {"every": 1, "keep": 10},
            "eval": {
                "every": 1,
                "extractor": "classifier",
                "n_real": 100,
                "n_fake": 100,
                "n_score": 100,
            },
        }
    )
    run = Run("A", "BSSN", 3, config)
    train(config, folder / config.run_name(), show=False)
    return run, folder


def test_record_of_a_run(trained: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = trained
    assert record(run, tmp_path) is None
    found = record(run, folder)
    assert found is not None and not found.diverged
    assert {*found.first["distance"]} == {*found.second["distance"]} == {1, 2}
    assert {"grad_norm", "log_variance_product", "largest", "spread"} == {*found.network}
    assert all(len(series) == 2 for series in found.network.values())
    assert found.first["distance"] != found.second["distance"]
    assert line_of(record(run, folder) or found) == line_of(found)
    path = tmp_path / RECORDS
    write_entries([found], path)
    content = path.read_bytes()
    (again,) = read_entries(path)
    assert again == found
    write_entries([again], path)
    assert path.read_bytes() == content


def test_second_distance_is_of_the_same_samples(trained: tuple[Run, Path], tmp_path: Path) -> None:
    """With the first classifier's weights it is the first distance."""
    run, folder = trained
    shutil.copytree(folder, tmp_path / "copy")
    record(run, tmp_path / "copy")  # rows of other weights are not taken for these
    found = record(run, tmp_path / "copy", ASSETS / "classifier.pt")
    assert found is not None and found.first == found.second


def test_diverged_run_without_its_last_checkpoint(
    trained: tuple[Run, Path], tmp_path: Path
) -> None:
    run, folder = trained
    path = tmp_path / run.config.run_name()
    shutil.copytree(folder / path.name, path)
    (path / "second.jsonl").unlink(missing_ok=True)
    (path / "checkpoints/step-00000002.pt").unlink()
    with pytest.raises(RecordError, match="expected the checkpoint"):
        record(run, tmp_path)
    with contextlib.closing(JsonLines(path / "events.jsonl")) as events:
        events.write({"event": "stop", "step": 2, "reason": "diverged", "why": "nan"})
    found = record(run, tmp_path)
    assert found is not None and found.diverged
    assert [*found.first["distance"]] == [1, 2] and [*found.second["distance"]] == [1]


def test_second_classifier_is_another() -> None:
    first, second = load_extractor("classifier"), load_extractor("classifier", SECOND)
    assert first.sha256 != second.sha256


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    one, other = [entry(run) for run in runs(2) if (run.setting, run.arm) == ("A", "SN")]
    write_entries([one, replace(other, protocols=("one", "third"))], tmp_path / RECORDS)
    with pytest.raises(RecordError, match="protocols of setting A"):
        read_entries(tmp_path / RECORDS)


# The page


@pytest.mark.slow
def test_page_and_figures(tmp_path: Path) -> None:
    write_entries([entry(run) for run in runs(3)][:-1], tmp_path / RECORDS)
    text = write_report(tmp_path, SEEDS).read_text(encoding="utf-8")
    assert "**Not final.** 155 of 312 runs are recorded; 2 whole seeds of 6" in text
    assert text.count("**not shown**") > 15 and HEADLINE in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("late", "scales", "effects") for kind in ("png", "jsonl")
    }
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_report(tmp_path, SEEDS)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert main(["list", "--seeds=1", *place]) == 0
    said = capsys.readouterr().out
    assert said.count("waiting") == 52 and "0 of 900,000 iterations" in said
    assert main(["record", *place]) == 0 and main(["report", *place]) == 0
    assert "0 of 312 runs" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert main(["lot"]) == 0
    assert capsys.readouterr().out.split()[-2:] == [run.config.run_name() for run in lot()]
