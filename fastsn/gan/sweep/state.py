"""What became of a run, by its folder alone, and one attempt to finish it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, ConfigError
from fastsn.gan.data.images import DataError
from fastsn.gan.loop.training import Diverged, Stopped, train
from fastsn.gan.run import checkpoint
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.folder import RunBusyError, RunDir, RunDirError
from fastsn.gan.run.jsonl import read_rows

__all__ = ["SETTLED", "State", "attempt", "failure", "state_of"]

#: What another attempt would not change: a run diverges at the same step every time.
SETTLED = ("finished", "diverged")
#: What a run may end with that is no fault of the program.
EXPLAINED = (Stopped, ConfigError, DataError, RunDirError, CheckpointError, OSError)


@dataclass(frozen=True)
class State:
    """What became of a run.

    Attributes:
        status: ``finished``; ``diverged``; ``failed``, and worth another attempt; ``busy``: another
            process is at work in it; ``running``; ``stopped`` on its way; ``waiting``: not begun.
        step: iterations that are done and saved.
        reason: why it diverged, failed or is busy.
    """

    status: str
    step: int = 0
    reason: str = ""


def state_of(config: Config, path: Path, data: Mapping[str, Any] | None = None) -> State:
    """What the folder of a run says; whether a process is at work there, it does not.

    Args:
        config: of the run.
        path: of its folder.
        data: fingerprint of the images, where it is known: a run on others is a failed one.
    """
    try:
        RunDir(path).check(config, data)
        events = read_rows(path / "events.jsonl", ("event", "step"))
    except ValueError as error:  # other options, other files, a damaged table
        return State("failed", 0, str(error))
    saved = checkpoint.candidates(path / "checkpoints")
    step = saved[0][0] if saved else 0
    last: dict[str, Any] = events[-1] if events else {"event": "none"}
    if last["event"] == "stop":
        reason = last.get("reason")
        if reason == "finished" and last["step"] >= config.train.steps:
            return State("finished", last["step"])
        if reason in ("diverged", "failed"):
            return State(reason, step, str(last.get("why", "")))
    return State("stopped" if events else "waiting", step)


def attempt(
    config: Config,
    path: Path,
    stop: threading.Event,
    data: Mapping[str, Any] | None = None,
    *,
    show: bool,
) -> State:
    """Trains a run until its end, or until ``stop`` is set, unless that would change nothing.

    What is wrong with the run is told by the state; what else goes wrong is raised.
    """
    before = state_of(config, path, data)
    if before.status in SETTLED or stop.is_set():
        return before
    try:
        train(config, path, show=show, stop=stop)
    except RunBusyError as error:
        return dataclasses.replace(before, status="busy", reason=str(error))
    except EXPLAINED as error:
        return failure(config, path, error)
    return state_of(config, path)


def failure(config: Config, path: Path, error: Exception) -> State:
    """The state of a run that ended so."""
    status = "diverged" if isinstance(error, Diverged) else "failed"
    reason = str(error) if isinstance(error, EXPLAINED) else f"{type(error).__name__}: {error}"
    return dataclasses.replace(state_of(config, path), status=status, reason=reason)
