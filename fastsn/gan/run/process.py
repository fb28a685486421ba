"""What a run changes about its process while it lasts: signals and torch's global switches."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from fastsn.gan.config import SpeedConfig

__all__ = ["Asked", "settings", "until_asked"]


#: What asks a run to save and to stop; a second SIGINT ends it at once.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Asked(threading.Event):
    """Set when a run is asked to stop.

    Attributes:
        by: ``"SIGTERM"`` and so on; what other programs set has no other name.
    """

    by = "SIGTERM"


@contextlib.contextmanager
def until_asked(asked: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event, ``asked`` or a new one, that :data:`SIGNALS` set instead of ending the process."""
    event = Asked() if asked is None else asked
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        if not event.is_set():
            event.by = signal.Signals(number).name  # type: ignore[attr-defined]
        event.set()

    # What the caller ignores, as nohup does SIGHUP, stays ignored.
    mine = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in mine}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def settings(speed: SpeedConfig, device: torch.device) -> Iterator[None]:
    """torch's global switches for this run, put back afterwards."""
    if device.type != "cuda":
        yield
        return
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    mode = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    cuda.allow_tf32 = cudnn.allow_tf32 = speed.tf32
    cudnn.benchmark = not speed.deterministic
    if speed.deterministic:
        # An operation without a deterministic version says so once, and is used all the same.
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill
