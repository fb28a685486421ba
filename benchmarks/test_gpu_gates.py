"""The promises about speed on a GPU: ``pytest benchmarks/test_gpu_gates.py --device cuda``.

All ratios are of medians taken in turns in one process. Times "on the device" are by its own clock.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.peers import MODES, make_run
from benchmarks.timing import device_seconds, empty_launch, side_by_side
from benchmarks.workloads import Case, make_case

pytestmark = pytest.mark.slow

#: Calls of each run for a time on the device.
ROUNDS = 100

Promise = Callable[..., None]


@pytest.fixture(autouse=True)
def _on_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("these are promises about GPUs: --device cuda")


def on_device(case: Case, runs: Sequence[tuple[str, str]]) -> list[float]:
    """Median seconds on the device of (contender, mode), in turns; last of all, an empty launch."""
    made = [*(make_run(name, case, mode) for name, mode in runs), empty_launch]
    times: list[list[float]] = [[] for _ in made]
    for run in made:
        for _ in range(5):  # compiles, captures
            run()
    for _ in range(ROUNDS):
        for run, own in zip(made, times, strict=True):
            own.append(device_seconds(run, case.device))
    return [statistics.median(own) for own in times]


def test_promises_for_the_cnn(device: torch.device, promise: Promise) -> None:
    case = make_case("cnn", str(device))
    runs = {name: make_run(name, case, "forward") for name in ("fastsn", "torch")}
    wall = side_by_side(runs, device)
    promise("cnn forward: fastsn, times faster than torch", wall["torch"] / wall["fastsn"],
            at_least=20)  # fmt: skip
    forward, both, bsn, bsn_both, graphs, copied, empty = on_device(
        case,
        [
            *(("fastsn", "forward"), ("fastsn", "forward_backward")),
            *(("fastsn-bsn", "forward"), ("fastsn-bsn", "forward_backward")),
            *(("torch-graphs", "forward"), ("copy", "forward")),
        ],
    )
    promise("cnn forward on the device: torch-graphs / fastsn", graphs / forward, at_least=5)
    promise("cnn forward on the device: (fastsn - empty launch) / copy", (forward - empty) / copied,
            at_most=2.5)  # fmt: skip
    # backward reads two tensors and writes one, where the copy reads one and writes one
    promise("cnn backward on the device: fastsn / copy of its bytes",
            (both - forward) / (1.5 * copied), at_most=2.5)  # fmt: skip
    promise("cnn forward on the device: BSN / SN", bsn / forward, at_most=1.3)
    promise("cnn forward + backward on the device: BSN / SN", bsn_both / both, at_most=1.3)


def test_promises_for_the_resnet(device: torch.device, promise: Promise) -> None:
    case, mode = make_case("resnet", str(device)), "forward_backward"
    names = ("fastsn-bsn", "torch", "torch-compiled")
    wall = side_by_side({name: make_run(name, case, mode) for name in names}, device)
    for name, times in (("torch", 4), ("torch-compiled", 2)):
        promise(f"resnet forward + backward: fastsn-bsn, times faster than {name}",
                wall[name] / wall["fastsn-bsn"], at_least=times)  # fmt: skip
    both, copied, _ = on_device(case, [("fastsn", mode), ("copy", "forward")])
    share = MODES[mode].passes / both / (MODES["forward"].passes / copied)
    promise("resnet forward + backward on the device: share of the copy's speed", share,
            at_least=0.8)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_promises_for_one_large_weight(
    device: torch.device, promise: Promise, mode: str, dtype: torch.dtype
) -> None:
    case = in_dtype(make_case("one-4096x9216", str(device)), dtype)
    names = ("fastsn", "torch", "torch-compiled")
    wall = side_by_side({name: make_run(name, case, mode) for name in names}, device)
    for name in names[1:]:
        promise(f"4096x9216, {dtype}, {MODES[mode].title}: {name} / fastsn",
                wall[name] / wall["fastsn"], at_least=1)  # fmt: skip


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    """The case with everything rounded to another dtype."""
    change = partial(torch.Tensor.to, dtype=dtype)
    return replace(
        case,
        model=copy.deepcopy(case.model).to(dtype),
        grads=[change(grad) for grad in case.grads],
        vectors=[[(change(u), change(v)) for u, v in pairs] for pairs in case.vectors],
    )
