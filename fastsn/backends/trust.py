"""Which GPU kernels ``auto`` may take: those that passed :mod:`fastsn.backends.selftest` here.

A kernel earns its trust on the user's own card. The first eager call on a CUDA (or ROCm) device
tests the kernels that could serve it: Triton's in the process, and those that wait in grid
barriers, and could hang, in a child process that is killed when it takes too long. Where several
pass, the fastest one on this card serves weights of this size. Verdicts are kept in the user's
cache folder, under everything they depend on; a file lock lets one process of a node decide and all
others read what it found, the ranks of a job among them.

While a CUDA graph is captured, code is compiled, or a backward runs, nothing is tested: such a call
goes by what is known already.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from fastsn.backends import selftest
from fastsn.backends.verdicts import File, fingerprint
from fastsn.plan import SN, plan_of

__all__ = ["DEVICES", "NOBODY", "Verdict", "capturing", "forget", "refuse", "verdict"]

_log = logging.getLogger("fastsn")

#: Types of devices whose kernels must earn their trust.
DEVICES = {"cuda"}

#: Seconds for a child process to import torch and find its device; and for the test itself.
_START_LIMIT, _TEST_LIMIT = 180.0, 30.0

#: Where the larger sizes begin, in elements of all weights; and weights to time each size with.
_SIZES = {"small": 0, "medium": 1 << 20, "large": 1 << 23}
_TIMED = {"small": (8, (64, 64, 3, 3)), "medium": (8, (256, 256, 3, 3)),
          "large": (8, (512, 512, 3, 3))}  # fmt: skip
_FASTER = 0.95  # less than this of the time of the first in order, or it is noise


class Verdict(NamedTuple):
    """What ``auto`` takes, the fastest first, and why it passes over the others."""

    order: tuple[str, ...] = ()
    reasons: tuple[tuple[str, str], ...] = ()


NOBODY = Verdict()


@dataclass
class _Known:
    """What was found out about one device and dtype, as it is written to disk."""

    reasons: dict[str, list[str]] = field(default_factory=dict)  # none for a backend that passed
    fastest: dict[str, str] = field(default_factory=dict)  # by size
    refused: dict[str, str] = field(default_factory=dict)  # in this process only
    unsure: set[str] = field(default_factory=set)  # failed for want of room or time: not written

    def passed(self) -> list[str]:
        return [
            name for name, found in self.reasons.items() if not found and name not in self.refused
        ]

    def complete(self, size: str) -> bool:
        return len(self.passed()) < 2 or size in self.fastest

    def verdict(self, size: str) -> Verdict:
        first = self.fastest.get(size)
        order = sorted(self.passed(), key=lambda name: name != first)
        reasons = [(name, "; ".join(found)) for name, found in self.reasons.items() if found]
        return Verdict(tuple(order), (*reasons, *self.refused.items()))


_known: dict[tuple[torch.device, torch.dtype], _Known] = {}
_verdicts: dict[tuple[torch.device, torch.dtype, str], Verdict] = {}
_lock = threading.RLock()


def verdict(
    device: torch.device, dtype: torch.dtype, elements: int, backends: Iterable[Any]
) -> Verdict:
    """The verdict on ``backends`` for weights of so many elements, tested now if need be."""
    size = [name for name, least in _SIZES.items() if elements >= least][-1]
    found = _verdicts.get((device, dtype, size))
    return _decide(device, dtype, size, list(backends)) if found is None else found


def _decide(device: torch.device, dtype: torch.dtype, size: str, backends: list[Any]) -> Verdict:
    with _lock:
        key = device, dtype, size
        if key in _verdicts:  # another thread was first
            return _verdicts[key]
        obstacle = _obstacle(device)
        others = [_verdicts[each] for each in _verdicts if each[:2] == (device, dtype)]
        if obstacle and others:  # backward of a part of the weights, say: not worth a look at disk
            return others[0]
        able = [each for each in backends if not each.unsupported_reasons(device, dtype, None)]
        if not able:
            return _verdicts.setdefault(key, NOBODY)
        file = File(fingerprint(device, dtype))
        known = _known.setdefault((device, dtype), _Known())
        if obstacle:  # reading is allowed always
            _merge(known, file)
        else:
            with file.locked():
                _merge(known, file)
                _find_out(known, file, device, dtype, size, able)
        missing = [each.name for each in able if each.name not in known.reasons]
        if missing or not known.complete(size):
            now = known.verdict(size)
            why = f"its self-test on this device waits for a call outside of {obstacle}"
            return Verdict(now.order, (*now.reasons, *((name, why) for name in missing)))
        return _verdicts.setdefault(key, known.verdict(size))


def _merge(known: _Known, file: File) -> None:
    for name, found in file.read("reasons").items():
        known.reasons.setdefault(name, list(found))
    for size, name in file.read("fastest").items():
        known.fastest.setdefault(size, str(name))


def _find_out(
    known: _Known,
    file: File,
    device: torch.device,
    dtype: torch.dtype,
    size: str,
    backends: Sequence[Any],
) -> None:
    """Tests and times what is not known yet, and writes it down."""
    new = False
    for backend in backends:
        if backend.name in known.reasons:
            continue
        start, new = time.perf_counter(), True
        tested = _test_in_child if backend.trial == "child" else _test_here
        known.reasons[backend.name], sure = tested(backend, device, dtype)
        if not sure:
            known.unsure.add(backend.name)
        outcome = "; ".join(known.reasons[backend.name]) or "passed"
        _log.log(
            logging.WARNING if known.reasons[backend.name] else logging.INFO,
            "fastsn: self-test of %s for %s on %s: %s (%.1f s)",
            backend.name, dtype, device, outcome, time.perf_counter() - start,
        )  # fmt: skip
    passed = [backend for backend in backends if backend.name in known.passed()]
    if len(passed) > 1 and size not in known.fastest:
        new = True
        # Ranks that cannot read each other's times would choose differently, by chance.
        alone = file.writable() or not _has_ranks()
        known.fastest[size] = (_fastest(passed, device, dtype, size) if alone else passed[0]).name
    if new:
        reasons = {name: r for name, r in known.reasons.items() if name not in known.unsure}
        file.write({"reasons": reasons, "fastest": known.fastest})


def refuse(device: torch.device, dtype: torch.dtype, name: str, error: Exception) -> None:
    """Passes over a backend from now on, in this process: its launch was refused."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    with _lock:
        known = _known.setdefault((device, dtype), _Known())
        if name not in known.refused:
            known.refused[name] = f"a launch was refused: {first}"
            _log.warning("fastsn: %s on %s is passed over: %s", name, device, known.refused[name])
        for key in [key for key in _verdicts if key[:2] == (device, dtype)]:
            del _verdicts[key]


def forget(*, disk: bool = False) -> int:
    """Forgets all verdicts of this process, and with ``disk`` the files; how many those were."""
    with _lock:
        _known.clear()
        _verdicts.clear()
    return File.remove_all() if disk else 0


# When not to test


def capturing(device: torch.device) -> bool:
    """Whether this thread's stream on the device is being captured into a graph."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _obstacle(device: torch.device) -> str:
    """What is going on that a test must not disturb; ``""`` for nothing."""
    if torch.compiler.is_compiling() or torch._guards.TracingContext.try_get() is not None:
        return "compilation"
    if torch._C._get_tracing_state() is not None:
        return "a trace"
    if torch._C._current_graph_task_id() != -1:
        return "backward"
    if capturing(device):
        return "a CUDA graph's capture"
    # torch.compile's own graphs: memory that stays after their warm-up must be theirs
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is not None and device.type == "cuda":
        manager = trees.get_manager(device.index or 0, create_if_none_exists=False)
        if manager is not None and (manager.in_warmup or manager.in_recording):
            return "the warm-up of a CUDA graph"
    return ""


def _has_ranks() -> bool:
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
    return any(os.environ.get(name, "1") != "1" for name in sizes)


# Tests: what is wrong, and whether that is sure to be the backend's doing


def _test_here(backend: Any, device: torch.device, dtype: torch.dtype) -> tuple[list[str], bool]:
    try:
        return selftest.failures(backend, device, dtype), True
    except torch.OutOfMemoryError:
        return ["its self-test found no room in the device's memory"], False


def child_command(
    backend: str, device: torch.device, dtype: torch.dtype, result: Path
) -> list[str]:
    """The command that tests a backend and writes what is wrong to ``result``, as JSON."""
    options = ["--backend", backend, "--device", str(device), "--dtype", str(dtype)[6:]]
    return [sys.executable, "-m", "fastsn", "selftest", *options, "--result", str(result)]


def _test_in_child(
    backend: Any, device: torch.device, dtype: torch.dtype
) -> tuple[list[str], bool]:
    """The test in a process of its own, which may hang or crash."""
    with TemporaryDirectory(prefix="fastsn-") as folder:
        result = Path(folder) / "result"
        command = child_command(backend.name, device, dtype, result)
        # as this process finds its modules, whatever lies in the folder it was started from
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            with open(Path(folder) / "output", "w+b") as output:
                code = _wait(
                    subprocess.Popen(
                        command, cwd=Path(__file__).parents[2], env=environment,
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    ), selftest.started(result).exists,
                )  # fmt: skip
                output.seek(0)
                said = output.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return [f"its self-test's process did not start: {error}"], False
        started = selftest.started(result).exists()
        found = selftest.read_result(result)
        if found is not None:
            return found, True
        if code is None and started:
            limit = f"{_TEST_LIMIT:.0f} s"
            return [f"its self-test hung: it was ended after {limit}"], True
        if code is None:
            return [f"its self-test's process was not ready after {_START_LIMIT:.0f} s"], False
        last = f" ({said[-1]})" if said else ""
        return [f"its self-test's process ended with code {code}{last}"], False


def _wait(process: subprocess.Popen[bytes], started: Callable[[], bool]) -> int | None:
    """The exit code, or None for a process that took too long and was killed."""
    deadline, ready = time.monotonic() + _START_LIMIT, False
    try:
        while process.poll() is None:
            if not ready and started():
                ready, deadline = True, time.monotonic() + _TEST_LIMIT
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return process.returncode
    finally:
        if process.poll() is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver may hold on to it: let it
                process.wait(5)


# Times


def _fastest(backends: Sequence[Any], device: torch.device, dtype: torch.dtype, size: str) -> Any:
    """The one that takes least time, or the first where others are no faster than by chance."""
    try:
        times = [selftest.seconds(each, device, *_sample(size, dtype, device)) for each in backends]
    except RuntimeError:  # no room for it
        return backends[0]
    best = times.index(min(times))
    return backends[best if times[best] < _FASTER * times[0] else 0]


def _sample(size: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, list[Any]]:
    count, shape = _TIMED[size]
    plan = plan_of((shape,) * count, (0,) * count, (SN,) * count, (1.0,) * count, 1e-12)
    return plan, [torch.full(shape, 0.5, dtype=dtype, device=device) for _ in range(count)]
