"""Sweeps over Ray: killed, stopped and restarted, with the numbers of runs made one by one.

``make test-sweep`` runs these; ``make test`` leaves them out, and needs no Ray.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same_run, events, rows, tiny

from fastsn.gan.config import Config
from fastsn.gan.run.jsonl import read_rows
from fastsn.gan.sweep import Job, run_jobs
from fastsn.gan.sweep.options import grid

pytestmark = pytest.mark.sweep

STEPS, EVERY = 60, 5


def base(**sections: dict[str, Any]) -> Config:
    return tiny(
        train={"steps": STEPS},
        log={"every": EVERY, "samples_every": STEPS},
        eval={
            "every": STEPS // 2,
            "extractor": "classifier",
            "n_real": 40,
            "n_fake": 30,
            "n_score": 30,
            "splits": 2,
        },
        **sections,
    )


def twelve() -> list[Job]:
    return grid(base(), {"norm.method": ["none", "sn", "bsn"], "optim.lr_d": [1e-3, 2e-3]}, 2)


class Sweep:
    """``fastsn sweep`` of :func:`twelve` in a process of its own."""

    def __init__(self, tmp_path: Path, *more: str) -> None:
        self.root = tmp_path / "runs"
        file = tmp_path / "base.yaml"
        file.write_text(base().to_yaml())
        command = [sys.executable, "-m", "fastsn.gan.cli", "sweep", f"--config={file}"]
        command += ["--vary=norm.method=none,sn,bsn", "--vary=optim.lr_d=1e-3,2e-3", "--seeds=2"]
        self.process = subprocess.Popen(
            [*command, f"--out={self.root}", "--ray=local", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def begun(self) -> int:
        """How often runs were begun or gone on with, by this sweep and those before it."""
        found = [event for run in runs(self.root) for event in events(run)]
        return sum(event in ("start", "resume") for event in found)

    def steps(self) -> int:
        return sum(len(read_rows(run / "log.jsonl")) for run in runs(self.root))

    def wait_for_work(self, before: int) -> None:
        """Returns when the sweep trains."""
        while self.begun() == before:
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.02)

    def end(self) -> str:
        output, _ = self.process.communicate()
        return output


def runs(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("fashion_mini-*") if (path / "config.yaml").exists())


def table(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The twelve runs made one by one, without Ray."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("alone")
    yield root, run_jobs(twelve(), root, show=False)


def test_two_kills_leave_no_trace(tmp_path: Path, alone: tuple[Path, list[dict[str, Any]]]) -> None:
    """SIGKILL of the sweep at random moments while it trains; its workers die or are waited for."""
    moments = random.Random(0)
    for kill in range(2):
        sweep = Sweep(tmp_path)
        before = sweep.begun()
        sweep.wait_for_work(before)
        # some way into the runs, however fast the machine is
        logged = sweep.steps() + moments.randint(1, 3 * STEPS // EVERY)
        while sweep.steps() < logged:
            assert sweep.process.poll() is None, "the sweep ended before it was killed twice"
            time.sleep(0.02)
        sweep.process.kill()
        sweep.end()
        finished = [events(run).count("stop") for run in runs(tmp_path / "runs")]
        assert sum(finished) < 12, f"the sweep was done before kill {kill + 1}"
    sweep = Sweep(tmp_path)
    output = sweep.end()
    assert sweep.process.returncode == 0, output
    root, wanted = alone
    assert table(tmp_path / "runs") == wanted
    assert len(runs(tmp_path / "runs")) == 12 == len({row["run"] for row in wanted})
    for row in wanted:
        mine = tmp_path / "runs" / row["run"]
        assert events(mine)[-1] == "stop" and events(mine).count("stop") == 1
        assert events(mine).count("start") >= 1
        assert [found["step"] for found in rows(mine)] == list(range(EVERY, STEPS + 1, EVERY))
        assert_same_run(mine, root / row["run"])
    before = [(run, (run / "events.jsonl").stat().st_mtime_ns) for run in runs(tmp_path / "runs")]
    again = Sweep(tmp_path)
    assert "12 of 12 runs are done already" in again.end()
    assert before == [(run, (run / "events.jsonl").stat().st_mtime_ns) for run, _ in before]


def test_sigterm_saves_and_a_killed_worker_is_replaced(
    tmp_path: Path, alone: tuple[Path, list[dict[str, Any]]]
) -> None:
    sweep = Sweep(tmp_path)
    sweep.wait_for_work(0)
    # the process of a run is killed under it, as by a machine without memory
    victim = next(run for run in runs(sweep.root) if (run / "lock").read_text())
    os.kill(int((victim / "lock").read_text().split()[1]), signal.SIGKILL)
    while events(victim).count("start") + events(victim).count("resume") < 2:
        assert sweep.process.poll() is None, sweep.end()
        time.sleep(0.02)
    sweep.process.send_signal(signal.SIGTERM)
    output = sweep.end()
    assert sweep.process.returncode == 0, output
    rows_now = table(sweep.root)
    assert {row["status"] for row in rows_now} <= {"finished", "stopped", "waiting"}
    assert {"stopped", "waiting"} & {row["status"] for row in rows_now}
    for row in rows_now:
        if row["status"] == "stopped":
            last = read_rows(sweep.root / row["run"] / "events.jsonl")[-1]
            assert last["reason"] == "SIGTERM" and last["step"] == row["step"]
    assert [path.name for path in sweep.root.glob(".*")] == []
    assert_same_run_after_rest(sweep.root, *alone)


def assert_same_run_after_rest(root: Path, wanted_root: Path, wanted: list[dict[str, Any]]) -> None:
    """One run that Ray left undone, finished without it: whoever trains, the numbers stay."""
    states = {row["run"]: row["status"] for row in table(root)}
    order = ("stopped", "waiting", "finished")
    job = min(twelve(), key=lambda job: order.index(states[job.name]))
    (row,) = run_jobs([job], root, show=False)
    assert row["status"] == "finished"
    assert_same_run(root / job.name, wanted_root / job.name)


def test_too_much_is_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--cpus_per_run=4096")
    output = sweep.end()
    assert sweep.process.returncode == 2 and "cpus_per_run: expected at most" in output
    assert not sweep.root.exists()
