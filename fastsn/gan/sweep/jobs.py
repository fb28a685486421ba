"""The runs of a sweep, done one after another or handed to Ray."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, ConfigError, DataConfig, flatten, validate
from fastsn.gan.data.sets import load
from fastsn.gan.run.folder import RunDir, RunDirError
from fastsn.gan.run.process import until_asked
from fastsn.gan.run.ranks import Ranks
from fastsn.gan.sweep.state import SETTLED, State, attempt, failure, state_of
from fastsn.gan.sweep.table import Launch, Table

__all__ = ["distinct", "run_jobs"]

#: Seconds to wait for runs that other processes hold: what a killed sweep leaves behind on a
#: cluster ends by itself in that time, another sweep does not.
PATIENCE = 60.0
#: Seconds between two looks at them.
PAUSE = 5.0


def distinct(jobs: Sequence[Config]) -> dict[str, Config]:
    """The runs by name, each once, in the order of ``jobs``.

    Raises:
        ConfigError: options that no run can have, or jobs that ask different things of one run.
    """
    configs: dict[str, Config] = {}
    for job in jobs:
        config = configs.setdefault(job.run_name(), validate(job))
        if config != job:
            mine, theirs = (dict(flatten(c.to_dict())) for c in (config, job))
            name = next(name for name in mine if mine[name] != theirs[name])
            raise ConfigError(
                f"{name}: expected one value for the run {job.run_name()}, got {mine[name]!r} and "
                f"{theirs[name]!r}: it does not make another run"
            )
    if not configs:
        raise ConfigError("the sweep: expected at least one run, got none")
    return configs


def run_jobs(
    jobs: Sequence[Config],
    root: Path,
    *,
    ray: str | None = None,
    gpus_per_run: float = 0,
    cpus_per_run: float = 1,
    show: bool = True,
) -> list[dict[str, Any]]:
    """Finishes runs in ``root/<name>/``, and writes ``root/results.jsonl`` and ``results.csv``.

    Finished runs are left alone, partial ones go on from their checkpoint, so a sweep that is
    killed is simply started again. A run that diverges or fails stops no other; SIGTERM, SIGINT and
    SIGHUP let those at work save, and stop. What the folder's results say of other runs stays.

    Args:
        jobs: the runs, in folders of their names; one that is there several times is done once.
        root: folder of the runs; on a cluster all machines see it under this name.
        ray: None: one run after another in this process. ``"local"``: by a Ray started on this
            machine. ``"auto"`` or an address: by the Ray cluster that is there.
        gpus_per_run: GPUs of a run under Ray; 0.25 puts four runs on one.
        cpus_per_run: CPUs of a run under Ray, and its number of threads. What a run computes on
            the CPU may depend on that in its last bits.
        show: progress on standard error.

    Returns:
        Rows as :meth:`.table.Table.rows` describes them, in the order of ``jobs``.

    Raises:
        ConfigError, DataError, RunDirError: nothing was written.
        OSError: the results cannot be written.
        KeyboardInterrupt: SIGINT has stopped the sweep.
    """
    configs = distinct(jobs)
    _check(ray, gpus_per_run, cpus_per_run, configs)
    root = root.resolve()
    if root.exists() and not root.is_dir():
        raise RunDirError(f"{root}: expected a folder for the sweep, got a file")
    RunDir(root).check_place()
    table = Table(root, configs)
    for name, data in _fingerprints(configs, root).items():
        table.set(name, state_of(configs[name], root / name, data), data)
    pending = [name for name, state in table.states.items() if state.status not in SETTLED]
    if show and len(pending) < len(configs):
        sys.stderr.write(f"{len(configs) - len(pending)} of {len(configs)} runs are done already\n")
    with until_asked() as stop, contextlib.ExitStack() as stack:
        launch: Launch = one_by_one
        if pending and ray is not None:
            from fastsn.gan.sweep.on_ray import cluster

            launch = stack.enter_context(cluster(ray, gpus_per_run, cpus_per_run))
        try:
            root.mkdir(parents=True, exist_ok=True)
            table.write()
        except OSError as error:
            raise RunDirError(f"{root}: cannot write the sweep: {error.strerror}") from error
        _until_settled(table, pending, launch, stop, show)
        if stop.is_set() and getattr(stop, "by", "") == "SIGINT":
            raise KeyboardInterrupt
    rows = table.rows()
    return [rows[job.run_name()] for job in jobs]


def _fingerprints(configs: Mapping[str, Config], root: Path) -> dict[str, Mapping[str, Any] | None]:
    """Of the images of runs that have been begun, which must be the same ones, by their names."""
    known: dict[DataConfig, Mapping[str, Any]] = {}
    found: dict[str, Mapping[str, Any] | None] = {}
    for name, config in configs.items():
        found[name] = None
        if (root / name / "config.yaml").exists():
            if config.data not in known:
                known[config.data] = load(config.data).fingerprint
            found[name] = known[config.data]
    return found


def _until_settled(
    table: Table, pending: list[str], launch: Launch, stop: threading.Event, show: bool
) -> None:
    end = None
    while pending and not stop.is_set():
        launch(table, pending, stop, show)
        pending = [name for name in pending if table.states[name].status == "busy"]
        if pending:
            now = time.monotonic()
            end = now + PATIENCE if end is None else end
            if now >= end:
                return
            stop.wait(PAUSE)


def _check(ray: str | None, gpus: float, cpus: float, configs: dict[str, Config]) -> None:
    if Ranks.from_environment().size > 1:
        raise ConfigError("the sweep: expected one process, got several: start it without torchrun")
    if not 0 <= gpus <= 1:
        raise ConfigError(f"gpus_per_run: expected between 0 and 1, got {gpus}")
    if not 0 < cpus < float("inf"):
        raise ConfigError(f"cpus_per_run: expected a positive number, got {cpus}")
    if ray is None:
        if gpus:
            raise ConfigError(f"gpus_per_run: expected 0 without ray, got {gpus}")
        return
    if find_spec("ray") is None or find_spec("pyarrow") is None:  # Tune needs both
        raise ConfigError(
            "ray: expected the package ray[tune], got none: pip install 'fastsn[sweep]'"
        )
    if not gpus and any(config.train.device == "cuda" for config in configs.values()):
        raise ConfigError("gpus_per_run: expected more than 0 with train.device 'cuda', got 0")


def one_by_one(table: Table, names: Sequence[str], stop: threading.Event, show: bool) -> None:
    """Runs in this process."""
    for number, name in enumerate(names, start=1):
        if stop.is_set():
            return
        if show:
            sys.stderr.write(f"[{number} of {len(names)}] {name}\n")
        config, path = table.configs[name], table.root / name
        table.set(name, State("running", table.states[name].step))
        table.write()
        try:
            state = attempt(config, path, stop, table.data.get(name), show=show)
        except Exception as error:  # such as too little memory: the others may have enough
            traceback.print_exc()
            state = failure(config, path, error)
        table.set(name, state)
        table.write()
        if show and state.reason:
            sys.stderr.write(f"{name}: {state.status}: {state.reason}\n")
