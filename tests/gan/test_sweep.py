"""Sweeps without Ray: which runs they stand for, what is done again and what is not, the table."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import assert_same_run, events, rows, run, tiny

from fastsn.gan import cli
from fastsn.gan.config import Config, ConfigError
from fastsn.gan.data.images import DataError
from fastsn.gan.loop.trainer import Trainer
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.folder import RunDir, RunDirError
from fastsn.gan.run.jsonl import read_rows
from fastsn.gan.sweep import jobs, run_jobs, state
from fastsn.gan.sweep.options import grid, parse_varied
from fastsn.gan.sweep.state import State, state_of
from fastsn.gan.sweep.table import Table

DIVERGES: dict[str, dict[str, Any]] = {
    "norm": {"method": "none", "update": "forward"},
    "loss": {"name": "wgan"},
    "optim": {"lr_d": 1e30},
}


def short(seed: int = 0, **sections: dict[str, Any]) -> Config:
    """A run of 6 steps."""
    train = {"steps": 6, "seed": seed, **sections.pop("train", {})}
    log = {"every": 2, "samples_every": 0, **sections.pop("log", {})}
    return tiny(train=train, log=log, **{"checkpoint": {"every": 2}, **sections})


def done(wanted: list[Config], root: Path) -> list[str]:
    return [row["status"] for row in run_jobs(wanted, root, show=False)]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that are trained, as they are."""
    names: list[str] = []
    train = state.train

    def noted(config: Config, path: Path, **options: Any) -> Any:
        names.append(path.name)
        return train(config, path, **options)

    monkeypatch.setattr(state, "train", noted)
    return names


# What is run


def test_values_have_their_options_types() -> None:
    varied = parse_varied(
        [
            "norm.method=none,sn",
            "norm.scale=[1, 1.5]",
            "optim.lr_d=1e-4",
            "optim.reuse_z=true,false",
            "data.resolution=null,32",
        ]
    )
    assert varied == {
        "norm.method": ["none", "sn"],
        "norm.scale": [1.0, 1.5],
        "optim.lr_d": [1e-4],
        "optim.reuse_z": [True, False],
        "data.resolution": [None, 32],
    }
    assert type(varied["norm.scale"][0]) is float


def test_a_grid_is_every_combination_with_every_seed() -> None:
    varied = {"norm.method": ["sn", "bsn"], "optim.lr_d": [1e-4, 2e-4]}
    found = grid(tiny(train={"seed": 5}), varied, 3)
    options = [(j.norm.method, j.optim.lr_d, j.train.seed) for j in found]
    assert options == [
        (method, lr, seed) for method in ("sn", "bsn") for lr in (1e-4, 2e-4) for seed in (5, 6, 7)
    ]
    assert len({job.run_name() for job in found}) == 12
    assert grid(tiny(), {}) == [tiny()]


def test_a_combination_that_cannot_be_is_named() -> None:
    varied = {"norm.method": ["bssn", "sn"], "norm.scale": [1.0, 2.0]}
    with pytest.raises(ConfigError, match=r"norm\.scale: .*\(at norm.method=sn, norm.scale=2.0\)"):
        grid(tiny(), varied)


def test_one_run_is_asked_for_one_thing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps: expected one value .* got 6 and 8"):
        run_jobs([short(), short(train={"steps": 8})], tmp_path / "runs")
    with pytest.raises(ConfigError, match="expected at least one run"):
        run_jobs([], tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


# What is done again, and what is not


def test_finished_runs_are_left_and_partial_ones_go_on(tmp_path: Path, trained: list[str]) -> None:
    first, second, third = short(0), short(1), short(2)
    run(first, tmp_path / first.run_name())
    run(short(1, train={"steps": 4}), tmp_path / second.run_name())  # its first part
    table = run_jobs([first, second, third, first], tmp_path, show=False)
    assert [row["run"] for row in table] == [
        job.run_name() for job in (first, second, third, first)
    ]
    assert {(row["status"], row["step"], row["steps"]) for row in table} == {("finished", 6, 6)}
    assert trained == [second.run_name(), third.run_name()]
    assert events(tmp_path / first.run_name()) == ["start", "stop"]
    assert events(tmp_path / second.run_name()) == ["start", "stop", "resume", "stop"]
    for job in (first, second, third):
        assert [row["step"] for row in rows(tmp_path / job.run_name())] == [2, 4, 6]
    run(second, tmp_path / "alone")
    assert_same_run(tmp_path / second.run_name(), tmp_path / "alone")
    assert done([first, second, third], tmp_path) == ["finished"] * 3
    assert trained == [second.run_name(), third.run_name()]


def test_a_longer_run_goes_on(tmp_path: Path, trained: list[str]) -> None:
    assert done([short()], tmp_path) == ["finished"]
    (row,) = run_jobs([short(train={"steps": 8})], tmp_path, show=False)
    assert (row["status"], row["step"]) == ("finished", 8) and len(trained) == 2
    assert done([short()], tmp_path) == ["finished"] and len(trained) == 2  # it has more


def test_a_diverged_run_stops_no_other_and_is_not_tried_again(
    tmp_path: Path, trained: list[str]
) -> None:
    wanted = [short(0, **DIVERGES), short(1)]
    bad, good = run_jobs(wanted, tmp_path, show=False)
    assert bad["status"] == "diverged" and "expected finite" in bad["reason"]
    assert good["status"] == "finished" and good["reason"] is None
    assert done(wanted, tmp_path) == ["diverged", "finished"]
    assert trained == [job.run_name() for job in wanted]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("No space left on device"), "No space left on device"),
        (DataError("data.root: expected files"), "data.root: expected files"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_run_stops_no_other_and_is_tried_again(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [short(0), short(1)]
    train = state.train

    def fails(config: Config, path: Path, **options: Any) -> Any:
        if config.train.seed == 0:
            raise error
        return train(config, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(state, "train", fails)
        bad, good = run_jobs(wanted, tmp_path, show=False)
    assert (bad["status"], bad["reason"]) == ("failed", reason)
    assert good["status"] == "finished"
    assert done(wanted, tmp_path) == ["finished", "finished"]


def test_other_options_in_a_folder_are_a_failure_of_that_run(tmp_path: Path) -> None:
    wanted = [short(0), short(1)]
    run(short(3), tmp_path / wanted[0].run_name())
    bad, good = run_jobs(wanted, tmp_path, show=False)
    assert bad["status"] == "failed" and "train.seed: 3 -> 0" in bad["reason"]
    assert good["status"] == "finished"


def test_a_run_of_another_process_is_left_to_it(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.0)
    monkeypatch.setattr(jobs, "PAUSE", 0.0)
    other = RunDir(tmp_path / short().run_name())
    other.open()
    try:
        busy, good = run_jobs([short(0), short(1)], tmp_path, show=False)
    finally:
        other.close()
    assert busy["status"] == "busy" and f"process {os.getpid()}" in busy["reason"]
    assert good["status"] == "finished"
    assert not (tmp_path / short().run_name() / "log.jsonl").exists()


def test_a_run_whose_other_process_ends_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers of a killed sweep do."""
    monkeypatch.setattr(jobs, "PAUSE", 0.05)
    other = RunDir(tmp_path / short().run_name())
    other.open()
    ends = threading.Timer(0.5, other.close)
    ends.start()
    assert done([short(0), short(1)], tmp_path) == ["finished", "finished"]
    ends.join()


def test_two_sweeps_share_the_runs(tmp_path: Path) -> None:
    wanted = [short(seed, train={"steps": 30}) for seed in range(3)]
    context = multiprocessing.get_context("fork")
    sweeps = [context.Process(target=_sweep, args=(wanted, tmp_path)) for _ in range(2)]
    for process in sweeps:
        process.start()
    for process in sweeps:
        process.join()
    assert [process.exitcode for process in sweeps] == [0, 0]
    for job in wanted:
        assert events(tmp_path / job.run_name()).count("start") == 1
        assert [row["step"] for row in rows(tmp_path / job.run_name())] == list(range(2, 31, 2))
    assert done(wanted, tmp_path) == ["finished"] * 3


def _sweep(wanted: list[Config], root: Path) -> None:
    torch.set_num_threads(1)
    jobs.PAUSE = 0.05
    assert done(wanted, root) == ["finished"] * 3


def test_sigterm_saves_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    wanted = [short(seed) for seed in range(3)]
    before = signal.getsignal(signal.SIGTERM)
    iterate = Trainer.iterate

    def interrupted(self: Trainer, *, hold: bool = False) -> None:
        iterate(self, hold=hold)
        if self.config.train.seed == 1 and self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", interrupted)
        table = run_jobs(wanted, tmp_path, show=False)
    assert [(row["status"], row["step"]) for row in table] == [
        ("finished", 6),
        ("stopped", 4),
        ("waiting", 0),
    ]
    assert signal.getsignal(signal.SIGTERM) is before
    assert done(wanted, tmp_path) == ["finished"] * 3
    assert trained == [wanted[i].run_name() for i in (0, 1, 1, 2)]


def test_sigint_saves_stops_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = Trainer.iterate

    def interrupted(self: Trainer, *, hold: bool = False) -> None:
        iterate(self, hold=hold)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([short(0), short(1)], tmp_path, show=False)
    assert [row["status"] for row in read_rows(tmp_path / "results.jsonl")] == [
        "stopped",
        "waiting",
    ]
    assert read_rows(tmp_path / short(0).run_name() / "events.jsonl")[-1]["reason"] == "SIGINT"


# Data


def pictures(folder: Path, shade: int) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        Image.new("L", (8, 8), shade + number).save(folder / f"{number}.png")
    return str(folder)


def test_runs_on_other_images_are_refused(tmp_path: Path, trained: list[str]) -> None:
    """Today's options and another data set: the run there is not this one, finished or not."""
    one, other = pictures(tmp_path / "one", 0), pictures(tmp_path / "other", 100)
    options = {"name": "folder", "root": one}
    root = tmp_path / "runs"
    job = short(data=options)
    assert done([job], root) == ["finished"]
    fingerprint = json.loads((root / job.run_name() / "data.json").read_text())
    assert fingerprint["images"] == 3 and fingerprint["shape"] == [1, 8, 8]
    (row,) = run_jobs([short(data={**options, "root": other})], root, show=False)
    assert row["status"] == "failed" and "data: hash" in row["reason"]
    assert one in (root / job.run_name() / "config.yaml").read_text()
    pictures(tmp_path / "one", 50)  # the files change
    (row,) = run_jobs([job], root, show=False)
    assert row["status"] == "failed" and "data: hash" in row["reason"]
    pictures(tmp_path / "moved", 0)  # the same images elsewhere are the same
    assert done([short(data={**options, "root": str(tmp_path / "moved")})], root) == ["finished"]
    assert len(trained) == 3 and len(events(root / job.run_name())) == 2


# The table


def test_a_sweep_in_a_used_folder_adds_its_rows(tmp_path: Path) -> None:
    first = run_jobs([short(0)], tmp_path, show=False)
    second = run_jobs([short(1, norm={"method": "sn"})], tmp_path, show=False)
    assert len(second) == 1
    assert read_rows(tmp_path / "results.jsonl") == [*first, *second]
    run_jobs([short(0), short(2)], tmp_path, show=False)
    seeds = [row["seed"] for row in read_rows(tmp_path / "results.jsonl")]
    assert sorted(seeds) == [0, 1, 2]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == [str(seed) for seed in seeds]
    (tmp_path / "results.jsonl").write_text("garbage\n")
    with pytest.raises(RunDirError, match=r"results.jsonl:1: expected a row .*move the file"):
        run_jobs([short(0)], tmp_path, show=False)
    assert (tmp_path / "results.jsonl").read_text() == "garbage\n"


def test_the_table_holds_last_and_best_values_with_their_protocol(tmp_path: Path) -> None:
    counts = {"n_real": 40, "n_fake": 30, "n_score": 30, "splits": 2}
    evaluated = {"eval": {"every": 3, "extractor": "classifier", **counts}}
    wanted = [short(0, **evaluated), short(1, **evaluated, norm={"method": "sn"})]
    table = run_jobs(wanted, tmp_path, show=False)
    lines = (tmp_path / "results.jsonl").read_text()
    assert table == [json.loads(line) for line in lines.splitlines()]
    for job, row in zip(wanted, table, strict=True):
        metrics = rows(tmp_path / job.run_name(), "metrics.jsonl")
        assert [found["step"] for found in metrics] == [3, 6]
        distances = [found["frechet_40_30"] for found in metrics]
        assert row["frechet_40_30"] == distances[-1]
        assert row["frechet_40_30_best"] == min(distances)
        scores = [found["score_30_s2"] for found in metrics]
        assert row["score_30_s2_best"] == max(scores)
        assert row["score_30_s2_best_step"] == [3, 6][scores.index(max(scores))]
        assert row["protocol"] == metrics[-1]["protocol"]
        assert "score_30_s2_std" not in row
    assert [(row["seed"], row["norm.method"]) for row in table] == [(0, "bssn"), (1, "sn")]
    assert "model.width" not in table[0]  # the same in all
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [json.loads(row["protocol"]) for row in read] == [row["protocol"] for row in table]
    for name in ("run", "status", "seed", "norm.method", "frechet_40_30", "score_30_s2_best_step"):
        assert [row[name] for row in read] == [str(row[name]) for row in table]


def test_values_that_are_not_finite_are_never_the_best(tmp_path: Path) -> None:
    job = short()
    folder = tmp_path / job.run_name()
    folder.mkdir()
    values = [4.0, 2.0, "nan"]
    lines = [json.dumps({"step": step, "fid_5k_10k": v}) for step, v in enumerate(values)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "fid']))
    table = Table(tmp_path, {job.run_name(): job})
    table.set(job.run_name(), State("running", 3))
    row = table.rows()[job.run_name()]
    assert (row["fid_5k_10k"], row["fid_5k_10k_best"], row["fid_5k_10k_best_step"]) == ("nan", 2, 1)


def test_a_folder_is_read_with_suspicion(tmp_path: Path) -> None:
    job = short()
    run(job, tmp_path / job.run_name())
    (tmp_path / job.run_name() / "events.jsonl").write_text("broken\n{}\n")
    found = state_of(job, tmp_path / job.run_name())
    assert found.status == "failed" and "events.jsonl:1" in found.reason
    with pytest.raises(RunDirError, match="expected a folder for the sweep, got a file"):
        run_jobs([job], tmp_path / job.run_name() / "events.jsonl")


# The command

TINY = [
    "--model.width=0.05",
    "--optim.batch_d=4",
    "--optim.batch_g=4",
    "--train.steps=4",
    "--train.device=cpu",
    "--log.every=2",
    "--log.tensorboard=false",
    "--log.diagnostics_every=0",
    "--log.n_samples=4",
]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--vary norm.scale", "--vary: expected OPTION=VALUE"),
        ("--vary norm.scael=1,2", "norm.scael: expected one of"),
        ("--vary nrom.scale=1,2", "nrom: expected one of"),
        ("--vary seed=1,2", "seed: expected one of"),
        ("--vary norm.scale=1,big", "norm.scale: expected float, got 'big'"),
        ("--vary norm.scale=", "norm.scale: expected one or more values"),
        ("--vary norm.scale=[1,2", "norm.scale: expected values"),
        ("--vary norm.scale=0,1", "norm.scale: expected float >0, got 0"),
        ("--vary norm.method=sn,batch", "norm.method"),
        ("--vary norm.method=sn,bssn --vary norm.scale=1,2", "at norm.method=sn, norm.scale=2.0"),
        ("--vary norm.scale=1 --vary norm.scale=2", "norm.scale: expected it once"),
        ("--vary train.steps=1,2", "train.steps: expected an option that makes another run"),
        ("--vary train.seed=1,2 --seeds 3", "--seeds"),
        ("--seeds 0", "seeds"),
        ("--seeds 999999999", "--seeds, --vary: expected between 1 and 100,000 runs in all"),
        ("--seeds many", "seeds"),
        ("--optim.lr_g -1", "optim.lr_g"),
        ("--gpus_per_run 0.5", "gpus_per_run: expected 0 without ray"),
        ("--gpus_per_run 2", "gpus_per_run: expected between 0 and 1"),
        ("--cpus_per_run 0", "cpus_per_run"),
        ("--ray local", "pip install 'fastsn[sweep]'"),
        ("--out file", "file"),
        ("--out /proc/fastsn", "/proc/fastsn"),
        ("--dry_run perhaps", "dry_run"),
    ],
)
def test_bad_input_is_named_and_nothing_written(
    line: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "find_spec", lambda name: None)  # a machine without Ray
    Path("file").write_text("a file")
    assert cli.main(["sweep", *TINY, *line.split()]) == 2
    output = capfd.readouterr()
    assert output.out == "" and output.err.startswith("fastsn: error: ")
    assert named in output.err and "Traceback" not in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = [*TINY, "--vary", "norm.method=sn,bsn", "--vary=norm.update=step", "--seeds=2"]
    assert cli.main(["sweep", *wanted, "--dry_run=true"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "4 runs, 16 of 16 iterations left"
    assert [line.partition(": ")[2] for line in lines[:-1]] == [
        f"norm.method={method}, train.seed={seed}" for method in ("sn", "bsn") for seed in (0, 1)
    ]
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["sweep", *wanted]) == 0
    assert capfd.readouterr().out == "4 runs: 4 finished: runs/results.csv\n"
    names = {line.split()[0] for line in lines[:-1]}
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").glob("*seed*")} == names
    assert cli.main(["sweep", *wanted, "--dry_run=true"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "4 runs, 0 of 16 iterations left"


def test_a_sweep_with_a_diverged_run_exits_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--norm.method=none",
        "--norm.update=forward",
        "--loss.name=wgan",
        f"--out={tmp_path}",
    ]
    assert cli.main(["sweep", *TINY, *options, "--vary=optim.lr_d=1e-4,1e30"]) == 1
    output = capfd.readouterr()
    assert output.out.startswith("2 runs: 1 diverged, 1 finished: ")
    assert "expected finite" in output.err
