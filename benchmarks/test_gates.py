"""The promises about speed and memory, as tests: CPU, 2 threads, float32, the CNN discriminator.

They hold as users start Python, with ``--allocator system`` (the default). Times are medians taken
side by side in one process; torch's are those of reading ``.weight`` of every layer. The floor is
a program that does nothing but the passes over memory SN cannot do without, into memory that is
there already. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import fastsn
from benchmarks import memory
from benchmarks.peers import MODES, Weights, check, make_run
from benchmarks.timing import side_by_side, threads
from benchmarks.workloads import WORKLOADS, Case, cnn_discriminator, make_case
from fastsn.backends import select_backend

CPU = torch.device("cpu")

#: Seconds of one comparison, about.
BUDGET = 4.0

pytestmark = pytest.mark.usefixtures("compiled", "two_threads")


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threads(2):
        yield


@pytest.fixture
def cnn() -> Case:
    return make_case("cnn")


@pytest.mark.parametrize(("mode", "times"), [("forward", 5), ("forward_backward", 6)])
def test_times_faster_than_torch(
    cnn: Case, promise: Callable[..., None], mode: str, times: float
) -> None:
    medians = _medians(cnn, mode, "fastsn", "torch", "traffic")
    limit = medians["torch"] / medians["traffic"]
    text = f"{MODES[mode].title}: fastsn, times faster than torch"
    promise(text, medians["torch"] / medians["fastsn"], at_least=times, limit=limit)


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_in_times_of_the_floor(cnn: Case, promise: Callable[..., None], mode: str) -> None:
    """Against the passes over memory no SN can do without, into memory that is there already."""
    medians = _medians(cnn, mode, "fastsn", "traffic")
    ratio = medians["fastsn"] / medians["traffic"]
    promise(f"{MODES[mode].title}: fastsn / the least traffic", ratio, at_most=1.6)


def test_forward_in_times_of_a_copy(cnn: Case, promise: Callable[..., None]) -> None:
    """Against one read and one write of all weights, by one ``torch.mul(..., out=)``."""
    medians = _medians(cnn, "forward", "fastsn", "copy")
    promise("forward: fastsn / one torch.mul", medians["fastsn"] / medians["copy"], at_most=3)


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_bsn_in_times_of_sn(cnn: Case, promise: Callable[..., None], mode: str) -> None:
    medians = _medians(cnn, mode, "fastsn-bsn", "fastsn")
    ratio = medians["fastsn-bsn"] / medians["fastsn"]
    promise(f"{MODES[mode].title}: BSN / SN", ratio, at_most=1.35)


def _medians(case: Case, mode: str, *names: str) -> dict[str, float]:
    runs = {name: make_run(name, case, mode) for name in names}
    for name, run in runs.items():
        check(name, case, mode, run())
    return side_by_side(runs, CPU, seconds=BUDGET, calls=12)


class Calls(TorchDispatchMode):
    """Names of the ops called inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _group(width: int, **options: Any) -> tuple[Weights, fastsn.SpectralNormGroup]:
    torch.manual_seed(0)
    weights = Weights(copy.deepcopy(cnn_discriminator(width)))
    return weights, fastsn.apply(weights, "bsn", **options)


def test_frozen_evaluation_costs_no_pass(promise: Callable[..., None]) -> None:
    (large, large_group), (tiny, tiny_group) = _group(64), _group(1)
    large.eval(), tiny.eval()
    with torch.no_grad(), large_group.frozen(), tiny_group.frozen():
        with Calls() as calls:
            large()
        medians = side_by_side({"large": large, "tiny": tiny}, CPU, seconds=BUDGET / 2)
    assert calls.names == []
    ratio = medians["large"] / medians["tiny"]
    promise("in group.frozen(): 11.7 MB of weights / 2 kB of weights", ratio, at_most=1.15)


def test_step_forwards_share_one_pass(cnn: Case, promise: Callable[..., None]) -> None:
    """Three forwards between two changes, less two forwards of tiny, unchanged weights."""
    tiny, _ = _group(1, update="step")
    tiny()
    with Calls() as calls:
        tiny()
    assert not [name for name in calls.names if "spectral_normalize" in name]

    runs = {
        "three": make_run("fastsn-bsn-step", cnn, "three_forwards"),
        "one": make_run("fastsn-bsn", cnn, "forward"),
        "attach": tiny,
    }
    check("fastsn-bsn-step", cnn, "three_forwards", runs["three"]())
    medians = side_by_side(runs, CPU, seconds=BUDGET)
    ratio = (medians["three"] - 2 * medians["attach"]) / medians["one"]
    attach = f"2 x {medians['attach'] * 1e6:.0f} us"
    promise(f'update="step": (3 forwards - {attach}) / 1 forward', ratio, at_most=1.15)


class _GivenGradients(torch.autograd.Function):
    """A loss of some weights whose gradients are known: what a network is to the library."""

    @staticmethod
    def forward(ctx: Any, grads: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.grads = grads
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, *ctx.grads


def test_host_cost_of_a_group(promise: Callable[..., None], monkeypatch: Any) -> None:
    """All that is not a kernel, on any device: forward and backward of 8 weights, kernels stubbed.

    Against forwards of torch's spectral norm of one small layer. What the same loss costs without
    any normalization is taken off.
    """
    weights, _ = _group(4)
    originals = [layer.parametrizations.weight.original for layer in weights.layers]
    grads = [torch.randn_like(original) for original in originals]
    used = select_backend("", CPU, torch.float32, None)
    stubs = {name: _replay(getattr(used, name)) for name in ("forward", "backward")}
    monkeypatch.setitem(fastsn.backends.BACKENDS, used.name, replace(used, **stubs))
    fastsn.backends.forget_choices()
    layer = parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))

    def run(read: Callable[[], list[Tensor]]) -> object:
        return torch.autograd.grad(_GivenGradients.apply(grads, *read()), originals)

    runs = {
        "group": partial(run, weights),
        "none": partial(run, lambda: originals),
        "torch": lambda: layer.weight,
    }
    try:
        medians = side_by_side(runs, CPU, seconds=BUDGET)
    finally:
        monkeypatch.undo()
        fastsn.backends.forget_choices()
    ratio = (medians["group"] - medians["none"]) / medians["torch"]
    promise("host cost: 8 weights, forward + backward / one forward of torch", ratio, at_most=2)


class SmallLayers(nn.Module):
    """Weights of 16x16: what is measured is all of a group's work but arithmetic."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16, bias=False) for _ in range(count)])

    def forward(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]


@pytest.mark.parametrize(
    ("count", "mode", "share"),
    [
        (8, "forward", 0.15),
        (175, "forward", 0.06),
        (8, "forward + backward", 0.25),
        (175, "forward + backward", 0.10),
    ],
)
def test_work_of_a_group_as_a_share_of_torchs(
    count: int, mode: str, share: float, promise: Callable[..., None]
) -> None:
    """Hooks, op and node against torch's parametrizations, less what plain layers cost."""
    plain, theirs, ours = (SmallLayers(count) for _ in range(3))
    for layer in theirs.layers:
        parametrizations.spectral_norm(layer)
    fastsn.apply(ours, "sn")
    grads = [torch.randn(16, 16) for _ in range(count)]

    def backward(model: nn.Module) -> object:
        loss = _GivenGradients.apply(grads, *model())
        return torch.autograd.grad(loss, list(model.parameters()))

    models = {"plain": plain, "torch": theirs, "fastsn": ours}
    runs = {
        name: model if mode == "forward" else partial(backward, model)
        for name, model in models.items()
    }
    medians = side_by_side(runs, CPU, seconds=BUDGET)
    ratio = (medians["fastsn"] - medians["plain"]) / (medians["torch"] - medians["plain"])
    promise(f"{mode} of {count} weights of 16x16: fastsn / torch", ratio, at_most=share)


@pytest.mark.parametrize("peer", ["fastsn", "torch"])
def test_compiled_normalization(cnn: Case, promise: Callable[..., None], peer: str) -> None:
    """Under inductor against eager fastsn, and against torch's norm under inductor."""
    weights, _ = _group(64)
    compiled = torch.compile(copy.deepcopy(weights))
    theirs = Weights(copy.deepcopy(cnn_discriminator(64)))
    for layer in theirs.layers:
        parametrizations.spectral_norm(layer)
    other = weights if peer == "fastsn" else torch.compile(theirs)
    for model in (compiled, other):
        model()
    medians = side_by_side({"compiled": compiled, "other": other}, CPU, seconds=BUDGET)
    what, limit = ("eager fastsn", 1.1) if peer == "fastsn" else ("compiled torch", 1.0)
    ratio = medians["compiled"] / medians["other"]
    promise(f"compiled normalization of the CNN: fastsn / {what}", ratio, at_most=limit)


def _replay(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, run at the first call only."""
    results: list[Any] = []

    def replay(*args: Any) -> Any:
        if not results:
            results.append(kernel(*args))
        tensors, *rest = results[0]
        return [tensor.detach() for tensor in tensors], *rest

    return replay


@pytest.mark.parametrize("name", ["fastsn", "fastsn-bsn"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_peak_memory(workload: str, name: str, promise: Callable[..., None]) -> None:
    if reasons := memory.unsupported_reasons():
        pytest.skip("; ".join(reasons))
    peak = memory.measure(name, workload)
    for part, result in (("forward", "normalized weights"), ("backward", "gradients")):
        ratio = peak[part] / peak["weights"]
        promise(f"{workload}: peak memory of {name}'s {part} / {result}", ratio, at_most=1.05)
