"""Times of calls, taken side by side: in turns in one process, so that drift hits all alike."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = [
    "ALLOCATORS",
    "cpu_model",
    "device_seconds",
    "device_work",
    "empty_launch",
    "in_turns",
    "keep_freed_memory",
    "others_share",
    "seconds_of",
    "side_by_side",
    "synchronize",
    "threads",
]

Run = Callable[[], object]

#: Timed calls of a run per turn.
CALLS_PER_TURN = 3

#: What the allocator does with freed memory: as users start Python, or kept in the process.
ALLOCATORS = ("system", "kept")


def keep_freed_memory() -> None:
    """Keeps freed memory in the process from now on, as some allocators and settings do.

    By default glibc gives large freed results back to the system, and page faults are then part of
    what is measured. Where there is no ``mallopt`` nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, size in ((-1, 1 << 30), (-3, 1 << 30)):  # M_TRIM_ and M_MMAP_THRESHOLD
            mallopt(parameter, size)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Run, device: torch.device) -> float:
    """Wall time of one call, until its results are there."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    seconds = time.perf_counter() - start
    del result  # only now: freeing results is not what is measured
    return seconds


def device_seconds(run: Run, device: torch.device) -> float:
    """Time of one call on the device's own clock; wall time on a CPU."""
    if device.type != "cuda":
        return seconds_of(run, device)
    synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def empty_launch() -> None:
    """Enqueues a kernel that does nothing: what any launch costs a GPU at least."""
    torch.cuda._sleep(0)


def device_work(run: Run) -> list[str]:
    """Names of the kernels, copies and fills that a call makes the GPU do, after one unseen."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == on_gpu]


def in_turns(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    seconds: float = 2.0,
    min_rounds: int = 7,
    calls: int = CALLS_PER_TURN,
) -> dict[str, list[float]]:
    """Wall times of each run, in seconds; times at the same place are of the same round.

    In every round each run has one turn, and each round begins with another one. A turn begins with
    an untimed call, so that each run finds its own weights in the caches, not the other's.

    Args:
        runs: by name.
        device: where they run.
        seconds: how long to go on, about.
        min_rounds: at least so many rounds, however long they take.
        calls: timed calls per turn. Many in a row are as training has them: what one call leaves
            behind, in memory and caches, the next one finds.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    stop = time.perf_counter() + seconds
    with _without_gc():
        for i in itertools.count():
            if i >= min_rounds and time.perf_counter() > stop:
                break
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                runs[name]()
                times[name] += [seconds_of(runs[name], device) for _ in range(calls)]
    return times


def side_by_side(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    seconds: float = 2.0,
    min_rounds: int = 7,
    calls: int = CALLS_PER_TURN,
) -> dict[str, float]:
    """Median wall time of each run, in seconds, by :func:`in_turns`."""
    times = in_turns(runs, device, seconds=seconds, min_rounds=min_rounds, calls=calls)
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def _without_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def others_share() -> Callable[[], float]:
    """A function that says what share of the CPU time since now other processes used; 0 if unknown.

    Waiting for a processor slows what runs in many small parallel steps most, and that is torch: on
    a busy machine the ratios flatter fastsn.
    """

    def used() -> tuple[float, float]:
        stat = Path("/proc/stat")
        fields = stat.read_text().split()[1:9] if stat.exists() else [0] * 8
        ticks = [float(field) for field in fields]
        total, idle = sum(ticks), ticks[3] + ticks[4]
        mine = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK") if total else 0.0
        return total, total - idle - mine

    total, others = used()

    def share() -> float:
        now_total, now_others = used()
        return max(now_others - others, 0.0) / max(now_total - total, 1.0)

    return share


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs torch on ``count`` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_model() -> str:
    """The processor, as its maker calls it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
