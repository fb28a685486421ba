"""The folder of a run: what is in it, who may write there, and where a run goes on.

::

    RUN/config.yaml         all options
        data.json           fingerprint of the real images: name, number, shape, hash
        environment.json    versions, device, processor
        events.jsonl        starts, resumes, checkpoints refused, and why the run stopped
        log.jsonl           losses and speed
        diagnostics.jsonl   norms, variances and bounds, one row per layer and moment
        metrics.jsonl       evaluations, with their protocol
        samples/            step-00001000.png
        checkpoints/        step-00001000.pt, best.pt
        tensorboard/
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

import fastsn
from fastsn.gan.config import Config, ConfigError, differences, read_config
from fastsn.gan.run import checkpoint
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.jsonl import JsonLines, read_rows

__all__ = ["RunBusyError", "RunDir", "RunDirError", "environment", "other_data"]

#: The files with rows that belong to steps, and lose those after the step a run goes on from.
TABLES = ("log.jsonl", "diagnostics.jsonl", "metrics.jsonl")


class RunDirError(ValueError):
    """A run folder that cannot be used; the message names it."""


class RunBusyError(RunDirError):
    """Another process is at work in the run."""


class RunDir:
    """The folder of one run.

    Args:
        path: need not exist; nothing is written before :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def check(
        self, config: Config, data: Mapping[str, Any] | None = None, *, resume: bool = True
    ) -> None:
        """Raises if ``config`` cannot be trained here; changes nothing.

        Args:
            config: all options.
            data: fingerprint of the images (:attr:`.Images.fingerprint`), where it is known.
            resume: whether a run may be there.

        Raises:
            ConfigError: the run there has other options, or was trained on other images; the
                message lists the differences.
            RunDirError: the path is something else, or a run is there and ``resume`` is False.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"{self.path}: expected a folder for the run, got a file")
        file = self.path / "config.yaml"
        if not file.exists():
            # A run killed at its very beginning has left these.
            found = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
            ours = {name for name in found if name.endswith(".tmp")} | {"lock", "data.json"}
            if found - ours:
                raise RunDirError(
                    f"{self.path}: expected an empty folder or a run, got other files"
                )
            self.check_place()
            return
        if not resume:
            raise RunDirError(
                f"{self.path}: expected no run with --resume false, got one: "
                "choose another folder or remove it"
            )
        theirs = read_config(file)
        changed = differences(config, theirs)
        if data is not None:
            changed += self._other_data(data, theirs, config)
        if changed:
            listed = "\n  ".join(changed)
            raise ConfigError(
                f"{self.path}: expected the options and the images of the run that is there (its "
                f"-> yours):\n  {listed}\nchoose another folder, or give the run's own options"
            )
        self.check_place()

    def _other_data(self, data: Mapping[str, Any], theirs: Config, mine: Config) -> list[str]:
        """Lines of what differs between the images of the run and these."""
        file = self.path / "data.json"
        if not file.exists():  # of an earlier version
            if theirs.data.root == mine.data.root:
                return []
            return [f"data.root: {theirs.data.root!r} -> {mine.data.root!r}"]
        try:
            stored = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunDirError(f"{file}: expected a fingerprint of images, got: {error}") from None
        return other_data(data, stored)

    def check_place(self) -> None:
        """Raises RunDirError if the folder can be neither made nor written; changes nothing."""
        folder = self.path
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise RunDirError(f"{self.path}: expected a folder to write in, got no permission")

    def open(self) -> None:
        """Makes the folder and locks it against other processes."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise RunDirError(f"{self.path}: cannot write the run: {error.strerror}") from error

    def begin(self, config: Config, data: Mapping[str, Any], step: int) -> None:
        """Writes the options and the images' fingerprint, and drops what was written after
        ``step``."""
        try:
            self._write("data.json", json.dumps(data) + "\n")
            self._write("config.yaml", config.to_yaml())
            self._write("environment.json", json.dumps(environment(), indent=2) + "\n")
            self.checkpoints.mkdir(exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            for folder in (self.path, self.checkpoints, self.samples):
                checkpoint.remove_temporary(folder)
            self._rewind(step)
        except OSError as error:
            where = error.filename or self.path
            raise RunDirError(f"{where}: cannot write the run: {error.strerror}") from error

    def _write(self, name: str, text: str) -> None:
        checkpoint.replace_file(self.path / name, text.encode())

    def _acquire(self) -> None:
        lock = open(self.path / "lock", "a+")  # noqa: SIM115 - held as long as the run
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise RunBusyError(
                f"{self.path}: expected no other process in the run, got one at work ({owner})"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The last checkpoint that can be read, and why later ones cannot.

        Returns:
            ``(state, refusals)``; no state if the run has no checkpoint yet.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        found = checkpoint.candidates(self.checkpoints)
        refusals: list[str] = []
        for step, path in found:
            try:
                state = checkpoint.load(path)
            except CheckpointError as error:
                refusals.append(str(error))
                continue
            if state["step"] != step:
                refusals.append(f"{path}: expected step {step}, got {state['step']}")
                continue
            return state, refusals
        if refusals:
            raise CheckpointError(
                f"{self.path}: expected a checkpoint to go on from, got none that can be read:\n  "
                + "\n  ".join(refusals)
            )
        return None, []

    def _rewind(self, step: int) -> None:
        """Drops what was written after ``step``: rows and sample grids; puts checkpoints that were
        refused out of the way."""
        for name in TABLES:
            try:
                rows = read_rows(self.path / name, ("step",))
            except ValueError as error:
                raise RunDirError(str(error)) from None
            kept = [row for row in rows if row["step"] <= step]
            self._write(name, "".join(json.dumps(row) + "\n" for row in kept))
        for path in self.samples.glob("step-*.png"):
            number = path.stem.removeprefix("step-")
            if number.isdecimal() and int(number) > step:
                path.unlink()
        for later, path in checkpoint.candidates(self.checkpoints):
            if later > step:
                path.rename(path.with_name(f"{path.name}.refused"))

    def table(self, name: str) -> JsonLines:
        """One of :data:`TABLES`, to append to."""
        return JsonLines(self.path / name)

    def record(self, event: str, step: int, **details: Any) -> None:
        """A row of ``events.jsonl``, on the disk before this returns."""
        row = {"event": event, "step": step, "time": round(time.time(), 3), **details}
        with contextlib.closing(JsonLines(self.path / "events.jsonl")) as events:
            events.write(row)
            events.sync()


def other_data(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Lines ``data: hash 1f.. -> 2e..`` of the differences of two fingerprints."""
    return [
        f"data: {name} {theirs.get(name)!r} -> {mine[name]!r}"
        for name in mine
        if mine[name] != theirs.get(name)
    ]


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on beside its options."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fastsn": fastsn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "command": sys.argv,
    }
