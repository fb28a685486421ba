"""Runs of a sweep beside each other, by Ray Tune. The only module that imports Ray.

Tune knows resources, places and restarts processes. What it remembers of trials is thrown away: a
worker looks at the run's folder first, and the folder says what became of the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from fastsn.gan.config import Config, ConfigError, from_dict
from fastsn.gan.run.process import until_asked
from fastsn.gan.sweep.state import State, attempt, state_of
from fastsn.gan.sweep.table import Launch, Table

__all__ = ["cluster"]

#: How often a run begins anew whose process dies under it: killed, out of memory, node lost.
RETRIES = 3
#: Seconds between a worker's looks for the file that asks it to stop.
LOOK = 0.5
#: Bytes of Ray's store of objects on this machine, near its minimum: runs share none.
STORE = 100 * 2**20
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run without a GPU sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, not only Tune's part of it
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@contextlib.contextmanager
def cluster(address: str, gpus: float, cpus: float) -> Iterator[Launch]:
    """A Ray that is started here, or joined, as long as the context lasts.

    Args:
        address: ``"local"``, or of a cluster that is there.
        gpus: of a run.
        cpus: of a run.

    Raises:
        ConfigError: no cluster is there, or no machine of it could hold a run.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with tempfile.TemporaryDirectory(prefix="fastsn-", ignore_cleanup_errors=True) as folder:
        if address == "local":
            # Ray would write one into the home directory, for all programs there.
            if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            options |= {"include_dashboard": False, "object_store_memory": STORE}
            options |= {"_temp_dir": folder}
        try:
            ray.init(address=address, **options)
        except Exception as error:  # of many kinds, Exception itself among them
            ray.shutdown()
            raise ConfigError(f"ray: expected a cluster at {address!r}, got: {error}") from error
        try:
            _check_room(address, gpus, cpus)
            yield functools.partial(_launch, gpus=gpus, cpus=cpus, storage=folder)
        finally:
            ray.shutdown()


def _check_room(address: str, gpus: float, cpus: float) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most_cpus = max(node.get("CPU", 0) for node in nodes)
    most_gpus = max(node.get("GPU", 0) for node in nodes)
    # other clusters may grow when they are asked to
    if address == "local" and cpus > most_cpus:
        raise ConfigError(f"cpus_per_run: expected at most {most_cpus:g}, got {cpus:g}")
    if address == "local" and gpus > most_gpus:
        raise ConfigError(f"gpus_per_run: expected at most {most_gpus:g}, got {gpus:g}")
    if most_gpus and not gpus:
        sys.stderr.write("the machines have GPUs, and runs get none: see gpus_per_run\n")


def _launch(
    table: Table,
    names: Sequence[str],
    stop: threading.Event,
    show: bool,
    *,
    gpus: float,
    cpus: float,
    storage: str,
) -> None:
    asked = table.root / f".stop-{uuid.uuid4().hex}"
    tasks = [
        {
            "name": name,
            "config": _absolute(table.configs[name]).to_dict(),
            "path": str(table.root / name),
            "asked": str(asked),
            "threads": max(1, int(cpus)),
            "data": table.data.get(name),
        }
        for name in names
    ]
    desk = _Desk(table, names, asked, show)
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": cpus, "gpu": gpus}),
        param_space={"task": tune.grid_search(tasks)},
        tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=_folder),
        run_config=tune.RunConfig(
            storage_path=storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[desk],
            stop=desk,
        ),
    )
    over = threading.Event()
    messenger = threading.Thread(target=_pass_on, args=(stop, over, asked), daemon=True)
    messenger.start()
    try:
        with until_asked(stop):  # Ray has put its own handler in the place of the sweep's
            tuner.fit()
    finally:
        over.set()
        messenger.join()
        asked.unlink(missing_ok=True)
    for name in desk.left:  # the sweep stopped before they ended, or began
        table.set(name, state_of(table.configs[name], table.root / name))
    table.write()


def _absolute(config: Config) -> Config:
    """With paths that mean the same in a worker, whose working directory is another."""
    root, weights = config.data.root, config.eval.weights
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=root and str(Path(root).absolute())),
        eval=dataclasses.replace(config.eval, weights=weights and str(Path(weights).absolute())),
    )


def _pass_on(stop: threading.Event, over: threading.Event, asked: Path) -> None:
    """Tells workers, wherever they are, that the sweep was asked to stop: by a file."""
    while not over.wait(LOOK):
        if stop.is_set():
            asked.touch()
            return


def _trial(parameters: dict[str, Any]) -> dict[str, Any]:
    """One attempt at one run, in a process of its own."""
    task = parameters["task"]
    torch.set_num_threads(task["threads"])
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(Path(task["asked"]), stop), daemon=True)
    watch.start()
    try:
        config, path = from_dict(task["config"]), Path(task["path"])
        state = attempt(config, path, stop, task["data"], show=False)
    finally:
        stop.set()
        watch.join()
    return dataclasses.asdict(state)


def _watch(asked: Path, stop: threading.Event) -> None:
    while not asked.exists():
        if stop.wait(LOOK):
            return
    stop.set()


def _folder(trial: Any) -> str:
    return trial.trial_id


class _Desk(tune.Callback, tune.Stopper):
    """Where Tune reports what happens, and asks whether to go on."""

    def __init__(self, table: Table, names: Sequence[str], asked: Path, show: bool) -> None:
        self.table, self.total, self.asked, self.show = table, len(names), asked, show
        self.left = list(names)
        self.saving: set[str] | None = None
        self.over = False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["task"]["name"]
        self.table.set(name, State("running", self.table.states[name].step))
        self.table.write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        if result and "status" in result:  # else the sweep stopped before its turn
            self._note(trial, State(result["status"], result["step"], result["reason"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or trial.get_error() or "its process died"
        reason = f"given up after {RETRIES + 1} attempts: {' '.join(str(error).split())}"
        name = trial.config["task"]["name"]
        state = state_of(self.table.configs[name], self.table.root / name)
        self._note(trial, dataclasses.replace(state, status="failed", reason=reason))

    def _note(self, trial: Any, state: State) -> None:
        name = trial.config["task"]["name"]
        self.table.set(name, state)
        self.table.write()
        self.left.remove(name)
        if self.show:
            reason = f": {state.reason}" if state.reason else ""
            done = self.total - len(self.left)
            sys.stderr.write(f"[{done} of {self.total}] {name}: {state.status}{reason}\n")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Over, once it was asked to stop, when the runs that were at work have saved."""
        if not self.asked.exists():
            return
        running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
        self.saving = running if self.saving is None else self.saving & running
        self.over = not self.saving

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.over
