"""Sweeps over Ray: killed, stopped and restarted, with the numbers of runs made one by one.

``make test-sweep`` runs these; ``make test`` leaves them out, and needs no Ray.
"""

from __future__ import annotations

import dataclasses
import fcntl
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
from fastsn.gan.sweep import run_jobs
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


def twelve() -> list[Config]:
    return grid(base(), {"norm.method": ["none", "sn", "bsn"], "optim.lr_d": [1e-3, 2e-3]}, 2)


def two_processors() -> None:
    """However many the machine has: with one for each run, they would all end at once."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


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
            preexec_fn=two_processors,
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
        logged = sweep.steps() + moments.randint(1, 2 * STEPS // EVERY)
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


def held(run: Path) -> bool:
    """Whether a process is at work in the run."""
    with open(run / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def caught(sweep: Sweep) -> tuple[Path, int]:
    """A run on its way, and the process that trains it, which is stopped."""
    while True:
        for run in filter(held, runs(sweep.root)):
            process = int((run / "lock").read_text().split()[1])
            os.kill(process, signal.SIGSTOP)
            if held(run) and events(run)[-1:] in (["start"], ["resume"]):
                return run, process
            os.kill(process, signal.SIGCONT)  # it ended just before
        assert sweep.process.poll() is None, "the sweep ended before a run was caught"
        time.sleep(0.02)


def test_a_killed_worker_is_replaced(
    tmp_path: Path, alone: tuple[Path, list[dict[str, Any]]]
) -> None:
    """As by a machine without memory."""
    sweep = Sweep(tmp_path)
    sweep.wait_for_work(0)
    victim, process = caught(sweep)
    os.kill(process, signal.SIGKILL)
    output = sweep.end()
    assert sweep.process.returncode == 0, output
    begun = [event for event in events(victim) if event in ("start", "resume")]
    assert len(begun) >= 2 and events(victim)[-1] == "stop"
    root, wanted = alone
    assert table(sweep.root) == wanted
    for row in wanted:
        assert_same_run(sweep.root / row["run"], root / row["run"])


def test_sigterm_saves(tmp_path: Path) -> None:
    """Runs without an end, so that there is something to stop; then one of them gets its end."""
    sweep = Sweep(tmp_path, "--train.steps=1000000")
    sweep.wait_for_work(0)
    sweep.process.send_signal(signal.SIGTERM)
    output = sweep.end()
    assert sweep.process.returncode == 0, output
    found = {row["run"]: row for row in table(sweep.root)}
    assert {row["status"] for row in found.values()} <= {"stopped", "waiting"}
    stopped = [job for job in twelve() if found[job.run_name()]["status"] == "stopped"]
    for job in stopped:
        last = read_rows(sweep.root / job.run_name() / "events.jsonl")[-1]
        assert last["reason"] == "SIGTERM" and last["step"] == found[job.run_name()]["step"]
    assert [path.name for path in sweep.root.glob(".*")] == []
    steps = found[stopped[0].run_name()]["step"] + EVERY
    train = dataclasses.replace(stopped[0].train, steps=steps)
    job = dataclasses.replace(stopped[0], train=train)
    for root in (sweep.root, tmp_path / "alone"):  # whoever trains, the numbers stay
        (row,) = run_jobs([job], root, show=False)
        assert row["status"] == "finished"
    assert_same_run(sweep.root / job.run_name(), tmp_path / "alone" / job.run_name())


def test_too_much_is_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--cpus_per_run=4096")
    output = sweep.end()
    assert sweep.process.returncode == 2 and "cpus_per_run: expected at most" in output
    assert not sweep.root.exists()
