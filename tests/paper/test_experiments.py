"""The paper's experiments: that all are there with its values, run, are recorded and drawn."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny import events, run, tiny

from fastsn.gan.config import Config
from fastsn.gan.run.jsonl import read_rows
from fastsn.gan.sweep import jobs as sweep_jobs
from paper import theory
from paper.__main__ import main
from paper.catalog import EXPERIMENTS, SIZES, arms_of, config_of, plan, runs_of
from paper.records import (
    SUFFIX,
    RecordError,
    layer_values,
    read_record,
    record_run,
    value_of,
    values,
)
from paper.runs import Sources

#: The numbers of the paper's figures and tables that have results.
FIGURES = [
    *(2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    *(12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23),
    *(24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35),
    *(36, 37, 38, 39),
    *(40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50),
    *(51, 52, 53, 54),
    *(55, 56, 57, 58, 59, 60),
    *(61, 62, 63, 64),
    *(65, 66),
    *(67, 68, 69, 70, 71, 72, 73, 74),
]
TABLES = [1, 6, 7]
STATEMENTS = ["theorem1", "theorem2", "theorem3"]
STATEMENTS += ["proposition1", "proposition2", "proposition3", "tsuzuku"]

#: Appendix P.
SSN_SCALES = [0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]
SSN_SCALES += [3.8, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 9.0, 10.0]


def full(name: str) -> list[Config]:
    return [*plan([EXPERIMENTS[name]], "full").values()]


def option(runs: list[Config], name: str) -> list[object]:
    section, _, key = name.partition(".")
    return sorted({getattr(getattr(config, section), key) for config in runs})


# What there is


def test_every_figure_table_and_statement_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    for name in [*(f"fig{n}" for n in FIGURES), *(f"table{n}" for n in TABLES), *STATEMENTS]:
        assert listed.count(name) == 1, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_the_one_of_its_name(name: str) -> None:
    experiment = EXPERIMENTS[name]
    kind, number = ("Figure", name[3:]) if name.startswith("fig") else ("Table", name[5:])
    assert experiment.name == name
    assert experiment.source.endswith(f", {kind} {number}")
    assert len(set(experiment.arms)) == len(experiment.arms)
    for scale in SIZES:
        assert arms_of(experiment, scale), scale


# The paper's values


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    sets = ("mnist", "cifar10", "stl10", "celeba", "imagenet")
    (folder / "weights.pth").write_bytes(b"not looked into")
    return Sources({name: str(folder) for name in sets}, str(folder / "weights.pth"))


@pytest.mark.parametrize("scale", SIZES)
def test_all_configurations_can_be_run(scale: str, sources: Sources) -> None:
    runs = plan(EXPERIMENTS.values(), scale)
    for name, config in runs.items():
        ready = sources.into(config)
        assert ready.run_name() == name
        assert (ready.data.root is None) == (scale != "full")
    # One name stands for one length as well, which is no part of it.
    lengths: dict[str, int] = {}
    for experiment in EXPERIMENTS.values():
        for name, config in plan([experiment], scale).items():
            assert lengths.setdefault(name, config.train.steps) == config.train.steps


@pytest.mark.parametrize(
    ("name", "runs", "steps", "seeds"),
    [
        ("fig2", 2 * 5, 93_750, 5),
        ("fig4", 3 * 5, 400_000, 5),
        ("fig6", (27 + 28) * 5, 400_000, 5),
        ("fig9", 2 * 5, 400_000, 5),
        ("fig24", 6 * 5 * 5, 400_000, 5),
        ("fig36", 5 * 5, 400_000, 5),
        ("fig41", 2 * 5, 800_000, 5),
        ("fig49", 2 * 5, 400_000, 5),
        ("fig51", 5 * 5, 400_000, 5),
        ("fig60", 2 * 5, 400_000, 5),
        ("fig65", 5 + 7 * 3, 500_000, 5),  # Table 1: three seeds but for SN
        ("fig73", 3, 500_000, 3),
    ],
)
def test_runs_lengths_and_seeds(name: str, runs: int, steps: int, seeds: int) -> None:
    configs = full(name)
    assert len(configs) == runs
    assert option(configs, "train.steps") == [steps]
    assert option(configs, "train.seed") == [*range(seeds)]


def test_scales() -> None:
    sweep = EXPERIMENTS["fig6"]
    assert sweep.plot.kind == "sweep"
    lists = {
        series: [arm.x for arm in arms_of(sweep, "full") if arm.series == series]
        for series in ("SN", "SN_Conv")
    }
    assert lists == {"SN": SSN_SCALES, "SN_Conv": sorted([*SSN_SCALES, 1.75])}
    table = EXPERIMENTS["table1"]
    found: dict[tuple[str, str], list[float | None]] = {}
    for arm in arms_of(table, "full"):
        found.setdefault((arm.series, arm.label), []).append(arm.x)
    assert found["CIFAR10", "SSN"] == SSN_SCALES
    assert found["CIFAR10", "BSSN"] == SSN_SCALES[:19]
    for data in ("STL10", "CelebA"):
        for method in ("SSN", "BSSN"):
            assert found[data, method] == [0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6]
    for method in ("SSN", "BSSN"):
        assert found["ILSVRC2012", method] == [1.0, 1.2, 1.4, 1.6]
    assert all(found[data, method] == [1.0] for data, method in found if "SS" not in method)


@pytest.mark.parametrize("scale", SIZES)
def test_scale_one_takes_the_runs_without_scale(scale: str) -> None:
    for arm in arms_of(EXPERIMENTS["fig6"], scale):
        if arm.series == "SN":
            methods = {config.norm.method for config in runs_of(arm, scale)}
            assert methods == ({"sn"} if arm.x == 1 else {"ssn"})


def test_hyper_parameters(tmp_path: Path) -> None:
    """Table 7, and its rows in the order of figures 27 to 35."""
    assert main(["draw", "table7", "--size=full", f"--out={tmp_path}"]) == 0
    text = (tmp_path / "full/README.md").read_text(encoding="utf-8")
    cells = [
        line.strip("| ").split(" | ")[1:] for line in text.splitlines() if line.startswith("| h")
    ]
    assert [[float(cell) for cell in row] for row in cells] == [
        [1e-4, 1e-4, 0.5, 0.9, 5],
        [1e-4, 1e-4, 0.5, 0.999, 1],
        [2e-4, 2e-4, 0.5, 0.999, 1],
        [1e-4, 2e-4, 0.5, 0.999, 1],
        [2e-4, 1e-4, 0.5, 0.999, 1],
    ]
    for first, figures in (
        (28, ("fig28", "fig43", "fig57")),
        (30, ("fig30", "fig45", "fig58")),
        (32, ("fig32", "fig47", "fig59")),
        (34, ("fig34", "fig49", "fig60")),
        (9, ("fig9", "fig41", "fig56")),
    ):
        rates = {28: (1e-4, 2e-4, 1), 30: (2e-4, 1e-4, 1), 32: (2e-4, 2e-4, 1)}
        rates |= {34: (1e-4, 1e-4, 5), 9: (1e-4, 1e-4, 1)}
        for name in figures:
            optims = {(c.optim.lr_g, c.optim.lr_d, c.optim.n_dis) for c in full(name)}
            assert optims == {rates[first]}, name


def test_gradient_penalties_and_random_scales() -> None:
    penalties = {
        arm.label: (config.loss.gradient_penalty, config.optim.lr_g, config.optim.lr_d)
        for arm in EXPERIMENTS["fig10"].arms
        for config in [config_of(arm, "full", 0)]
    }
    assert penalties == {
        "stable": (10.0, 1e-4, 2e-4),
        "exploding gradients": (10.0, 1e-3, 1e-3),
        "vanishing gradients": (50.0, 1e-3, 1e-3),
    }
    for name, mean, loss in (
        ("fig3", 1, "wgan"),
        ("fig14", 1.75, "hinge"),
        ("fig15", 1.75, "hinge"),
    ):
        runs = full(name)
        assert {(c.norm.method, c.norm.scale, c.loss.name) for c in runs} == {
            ("sn_conv", mean, loss)
        }
        assert option(runs, "norm.spread_seed") == [*range(1, 11)]
        assert {c.norm.spread for c in runs} == {0.5}


# Everything at smoke scale


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all results at smoke scale in ``results``, and its runs in ``runs``."""
    folder = tmp_path_factory.mktemp("smoke")
    assert main(command(folder, "run")) == 0
    return folder


def command(folder: Path, *words: str) -> list[str]:
    where = (f"--out={folder / 'results'}", f"--runs={folder / 'runs'}")
    return [*words, "--size=smoke", *where]


@pytest.mark.slow
def test_every_run_is_recorded_once(smoke: Path) -> None:
    planned = plan(EXPERIMENTS.values(), "smoke")
    records = (smoke / "results/smoke/runs").glob(f"*{SUFFIX}")
    recorded = {path.name.removesuffix(SUFFIX) for path in records}
    assert recorded == planned.keys()
    for name in planned:
        assert events(smoke / "runs/smoke" / name) == ["start", "stop"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPERIMENTS, *theory.CHECKS])
def test_every_experiment_is_drawn(smoke: Path, name: str) -> None:
    results = smoke / "results/smoke"
    page = (results / "README.md").read_text(encoding="utf-8")
    options = name in EXPERIMENTS and EXPERIMENTS[name].plot.kind == "options"
    if not options:
        with Image.open(results / f"figures/{name}.png") as picture:
            assert min(picture.size) > 150
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 5
        assert page.count(f"](figures/{name}.png)") == 1
    if name in EXPERIMENTS:
        one = EXPERIMENTS[name]
        assert f"## {one.source.rpartition(', ')[2]}: {one.title}" in page
        if not options:
            numbers = read_rows(results / f"figures/{name}.jsonl")
            assert [row for row in numbers if row["kind"] not in ("note", "not run")]
            assert not [row for row in numbers if row["kind"] == "not run"]
    assert "Not drawn" not in page


@pytest.mark.slow
def test_what_is_recorded_is_not_run_again(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("expected no run")

    monkeypatch.setattr(sweep_jobs, "attempt", refuse)
    written = files(smoke / "results")
    assert main(command(smoke, "run", "fig4", "fig9")) == 0
    assert files(smoke / "results") == written
    # From the records alone, elsewhere: the same figures.
    records = smoke / "results"
    drawn = [f"--records={records}", f"--out={tmp_path / 'drawn'}", "--size=smoke"]
    drawn.append(f"--runs={tmp_path / 'none'}")
    assert main(["draw", "fig4", "table1", "theorem2", *drawn]) == 0
    for name in ("fig4.png", "fig4.jsonl", "table1.png", "theorem2.png"):
        theirs = records / "smoke/figures" / name
        assert (tmp_path / "drawn/smoke/figures" / name).read_bytes() == theirs.read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# One experiment


def test_a_partial_run_goes_on(tmp_path: Path) -> None:
    (config,) = plan([EXPERIMENTS["fig7"]], "smoke").values()
    folder = tmp_path / "runs/smoke" / config.run_name()
    run(replace(config, train=replace(config.train, steps=1)), folder)
    assert main(command(tmp_path, "run", "fig7")) == 0
    assert events(folder) == ["start", "stop", "resume", "stop"]
    record = read_record(tmp_path / f"results/smoke/runs/{config.run_name()}{SUFFIX}")
    assert record.events == [{"event": "stop", "step": 2, "reason": "finished", "why": None}]


def test_experiments_without_all_runs_are_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        *(
            (config, tmp_path / "runs/smoke" / name)
            for name, config in plan([EXPERIMENTS["fig7"]], "smoke").items()
        ).__next__()
    )
    assert main(command(tmp_path, "draw", "fig7", "fig9", "theorem1")) == 0
    said = capsys.readouterr()
    assert "fig9: 1 of 2 runs recorded, not drawn" in said.out
    assert "theorem1: not drawn" in said.out
    assert not said.err
    assert [path.name for path in (tmp_path / "results/smoke/figures").glob("*.png")] == [
        "fig7.png"
    ]


@pytest.mark.parametrize("scale", SIZES)
def test_a_dry_run_prints_every_run_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: str
) -> None:
    words = ["run", "fig6", f"--size={scale}", "--dry_run=true"]
    assert main([*words, f"--out={tmp_path / 'a'}", f"--runs={tmp_path / 'b'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    runs = plan([EXPERIMENTS["fig6"]], scale)
    assert [line.rpartition("/")[2] for line in lines] == [*runs]
    assert all(line.startswith("fastsn train --") for line in lines)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "fig99"], "got 'fig99'"),
        (["draw", "fig5", "nothing"], "got 'nothing'"),
        (["run", "fig5", "--size=large"], "size"),
        (["run", "fig5", "--size=full"], "--roots.cifar10: expected the place of the images of ci"),
        (["run", "fig65", "--size=full"], "--roots.imagenet: expected"),
        (["run", "fig5", "--size=full", "--roots.cifar10=/nowhere"], "got /nowhere, which is not"),
        (["run", "fig5", "--size=full", "--roots.cifar10=."], "--weights: expected the place of"),
        (["run", "fig5", "--size=smoke", "--gpus_per_run=1"], "gpus_per_run: expected 0 without"),
        (["run", "fig5", "--scale=small"], "scale"),
        (["run", "fig5", "--roots.mars=."], "mars"),
        (["nothing"], "nothing"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("paper: error: ") and said in error
    assert not [*tmp_path.iterdir()]


# Records


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny(
        train={"steps": 12},
        log={"every": 1, "diagnostics_every": 6, "samples_every": 6, "n_samples": 36},
        eval={
            "every": 6,
            "extractor": "classifier",
            **{"n_real": 50, "n_fake": 50, "n_score": 50, "splits": 2},
        },
        data={"resolution": 32},
        model={"name": "cnn32"},
    )
    folder = tmp_path_factory.mktemp("records") / config.run_name()
    run(config, folder)
    return folder


def edited(ran: Path, to: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """A copy of the run with other events."""
    for path in ran.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    rows = read_rows(ran / "events.jsonl")
    change(rows[-1])
    (to / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return to


def test_a_record_says_what_the_run_said(ran: Path, tmp_path: Path) -> None:
    path = record_run(ran, tmp_path)
    record = read_record(path)
    assert path == tmp_path / f"{record.config.run_name()}{SUFFIX}"
    assert record.name == ran.name == record.config.run_name()
    for mine, table in ((record.diagnostics, "diagnostics"), (record.metrics, "metrics")):
        theirs = read_rows(ran / f"{table}.jsonl")
        assert len(mine) == len(theirs) > 0
        for row, other in zip(mine, theirs, strict=True):
            for key, value in other.items():
                if isinstance(value, float):
                    value = pytest.approx(value, rel=1e-5)
                assert row[key] == value, key
    assert [row["step"] for row in record.log] == [*range(1, 13)]
    assert not {"steps_per_s", "images_per_s", "memory_mib"} & record.log[0].keys()
    assert "command" not in record.environment and record.environment["torch"]
    assert str(tmp_path.parent) not in gzip.decompress(path.read_bytes()).decode()
    assert record.samples is not None
    with (
        Image.open(record.samples) as mine,
        Image.open(ran / "samples/step-00000012.png") as theirs,
    ):  # 4 of 6 rows
        assert mine.size == (6 * 33 - 1, 4 * 33 - 1)
        assert mine.tobytes() == theirs.crop((0, 0, *mine.size)).tobytes()


def test_a_run_has_one_record(ran: Path, tmp_path: Path) -> None:
    first, second = record_run(ran, tmp_path / "a"), record_run(ran, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    record_run(ran, tmp_path / "c", samples=False)
    pictures = {name: [*(tmp_path / name).glob("*.png")] for name in "abc"}
    assert [len(found) for found in pictures.values()] == [1, 1, 0]
    assert pictures["a"][0].read_bytes() == pictures["b"][0].read_bytes()


def test_values_by_name(ran: Path, tmp_path: Path) -> None:
    record = read_record(record_run(ran, tmp_path))
    metrics = record.metrics
    assert values(record, "score") == [(row["step"], row["score_50_s2"]) for row in metrics]
    assert values(record, "distance") == [(row["step"], row["frechet_50_50"]) for row in metrics]
    assert value_of({"is_50k_s10_std": 0.1, "is_50k_s10": 7.5, "fid_5k_10k": 30.0}, "score") == 7.5
    assert value_of({"is_50k_s10": 7.5, "fid_5k_10k": 30.0}, "distance") == 30
    assert value_of({"grad_norm": "inf"}, "grad_norm") == float("inf")
    assert value_of({"grad_norm": None}, "grad_norm") is None
    assert [step for step, _ in values(record, "log_variance_product")] == [6, 12]
    variances = layer_values(record, "variance")
    assert len(variances) == 8 and all(len(points) == 2 for points in variances.values())
    ratios = {part: layer_values(record, f"conv_ratio{part}") for part in ("", "_lower", "_upper")}
    assert len(ratios[""]) == 7  # the last layer is no convolution
    for layer, points in ratios[""].items():
        for (_, ratio), (_, low), (_, high) in zip(
            points, ratios["_lower"][layer], ratios["_upper"][layer], strict=True
        ):
            assert low == pytest.approx(1)
            assert low <= ratio * 1.001 and ratio <= high * 1.001


def test_long_logs_are_thinned_to_their_end(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    edited(ran, folder, lambda row: None)
    rows = [{"step": step, "loss_d": 0.1} for step in range(1, 1001)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [row["step"] for row in read_record(record_run(folder, tmp_path)).log]
    assert 40 <= len(steps) <= 60 and steps[-1] == 1000
    assert len({b - a for a, b in zip(steps, steps[1:], strict=False)}) == 1


def test_runs_that_diverged_are_recorded_and_others_are_not(ran: Path, tmp_path: Path) -> None:
    for number, (end, recorded) in enumerate(
        [
            ({"reason": "diverged", "why": "step 7: nan", "step": 7}, True),
            ({"reason": "failed", "why": "the disk is full"}, False),
            ({"reason": "SIGTERM"}, False),
            ({"step": 11}, False),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        edited(ran, folder, lambda row, end=end: row.update(end))
        if recorded:
            (event,) = read_record(record_run(folder, tmp_path)).events
            assert event == {"event": "stop", **end}
        else:
            with pytest.raises(RecordError, match=f"{folder}: expected a run that has finished"):
                record_run(folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(text.splitlines()[1:]),
        lambda text: "\n".join(text.splitlines()[:-1]),
        lambda text: text.replace('"seed":0', '"seed":1', 1),
        lambda text: text.replace('"norm":', '"morn":', 1),
        lambda text: text.replace('["log",', '["lag",', 1),
        lambda text: text.replace('["log",', '["log",0,', 1),
        lambda text: "",
    ],
)
def test_a_damaged_record_is_refused(
    ran: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[str], str],
) -> None:
    path = record_run(ran, tmp_path / "results/smoke/runs")
    text = damage(gzip.decompress(path.read_bytes()).decode())
    check_damaged(path, gzip.compress(text.encode()))
    assert main(command(tmp_path, "draw", "fig7")) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"none"])
def test_a_damaged_file_is_refused(
    ran: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = record_run(ran, tmp_path)
    check_damaged(path, damage(path.read_bytes()))


def check_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"{path}: expected the record of a run"):
        read_record(path)
