"""Times of every contender in every mode, each beside those it is compared with.

A benchmark first compares its result with float64: a wrong one is not timed. Between its rounds the
others take their turns, so the ratios in ``extra_info`` do not drift with the machine. Every timed
call comes after an untimed one of the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.peers import CONTENDERS, MODES, Result, check, make_run
from benchmarks.timing import (
    device_seconds,
    device_work,
    empty_launch,
    seconds_of,
    synchronize,
)
from benchmarks.workloads import WORKLOADS, Case
from fastsn.backends import select_backend

#: Who each method is compared with.
AGAINST = {
    "sn": ("torch", "copy", "traffic"),
    "bsn": ("plain-bsn", "torch", "copy", "traffic"),
    "copy": (),
}

#: Seconds of one benchmark, about.
BUDGET = 1.0


@pytest.mark.parametrize(
    ("workload", "mode", "name"),
    [
        pytest.param(
            workload,
            mode,
            name,
            id=f"{workload}-{mode}-{name}",
            marks=[pytest.mark.slow] if "compiled" in contender.title else [],
        )
        for workload, described in WORKLOADS.items()
        for mode in MODES
        for name, contender in CONTENDERS.items()
        if mode in contender.modes
        and (described.every or (contender.few and mode in ("forward", "forward_backward")))
    ],
)
def test_speed(
    benchmark: BenchmarkFixture,
    case_of: Callable[[str], Case],
    device: torch.device,
    workload: str,
    mode: str,
    name: str,
) -> None:
    contender = CONTENDERS[name]
    if device.type == "cpu" and not contender.everywhere:
        pytest.skip("on a CPU this is the same as another contender")
    if device.type == "cpu" and not WORKLOADS[workload].every and benchmark.enabled:
        pytest.skip("this workload is timed on GPUs only: --device cuda")
    case = case_of(workload)
    run = make_run(name, case, mode)
    error = check(name, case, mode, run())
    others = {
        other: _peer(other, case, other_mode)
        for other in AGAINST[contender.method]
        for other_mode in ["forward" if other == "copy" else mode]  # a copy of the weights
        if benchmark.enabled and other != name and other_mode in CONTENDERS[other].modes
    }
    times: dict[str, list[float]] = {other: [] for other in others}

    def take_turns() -> None:
        for other, peer in others.items():
            peer()
            times[other].append(seconds_of(partial(_finish, peer, case.device), case.device))
        run()  # untimed, as everyone's: its own weights are then in the caches

    rounds = 1
    if benchmark.enabled:
        one_round = 2 * seconds_of(run, case.device) + seconds_of(take_turns, case.device)
        rounds = min(max(int(BUDGET / one_round), 5), 300)
    benchmark.pedantic(partial(_finish, run, case.device), setup=take_turns, rounds=rounds)

    n_bytes = MODES[mode].passes * case.n_bytes
    benchmark.extra_info.update(
        workload=workload,
        mode=mode,
        contender=name,
        backend=_backend(name, case.device),
        device=case.device.type,
        threads=torch.get_num_threads(),
        weights=len(case.weights),
        parameters=sum(weight.numel() for weight in case.weights),
        bytes=n_bytes,
        max_error=float(f"{error:.2g}"),
    )
    if not benchmark.enabled:
        return
    median = benchmark.stats.stats.median
    benchmark.extra_info["gb_per_s"] = round(n_bytes / median / 1e9, 2)
    medians = {other: statistics.median(values) for other, values in times.items()}
    benchmark.extra_info["times_faster_than"] = {
        other: round(seconds / median, 3)
        for other, seconds in medians.items()
        if mode in CONTENDERS[other].modes
    }
    if "copy" in medians:
        copied = MODES["forward"].passes * case.n_bytes / medians["copy"]
        benchmark.extra_info["share_of_copy"] = round(n_bytes / median / copied, 3)
    if case.device.type == "cuda":
        benchmark.extra_info.update(
            device_us=_device_us(run, case.device, rounds),
            empty_launch_us=_device_us(empty_launch, case.device, rounds),
            launches=len(device_work(run)),
        )


@lru_cache(maxsize=4)
def _peer(name: str, case: Case, mode: str) -> Callable[[], Result]:
    """The other side of a comparison; built, and checked, once for the benchmarks of one mode."""
    run = make_run(name, case, mode)
    check(name, case, mode, run())
    return run


def _finish(run: Callable[[], Result], device: torch.device) -> None:
    """One call, until its results are there and freed again."""
    run()
    synchronize(device)


def _device_us(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median microseconds on the device's clock."""
    times = [device_seconds(run, device) for _ in range(rounds)]
    return round(statistics.median(times) * 1e6, 2)


def _backend(name: str, device: torch.device) -> str:
    if name.startswith("reference"):
        return "reference"
    if name.startswith("fastsn"):
        return select_backend("", device, torch.float32, None).name
    return "torch"
