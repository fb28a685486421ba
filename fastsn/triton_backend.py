"""Triton backend: all weights of a call in three launches forward and two backward.

Host side: the two functions every backend has, the tables its kernels read, and the workspace.
Neither ``import fastsn`` nor this module imports Triton; the kernels (fastsn/triton_forward.py,
fastsn/triton_gradients.py) are imported when the backend is first asked to serve a weight.

**What a kernel is given.** A launch has a program for each tile of each weight, so it reads what to
do from two tables on the device. The plan (fastsn/triton_plan.py) depends on shapes only and is
uploaded once. The table of arguments holds addresses, scales and eps. It is remembered by its
content: a training loop repeats its sequence of allocations, so that after the first iterations all
outputs lie where they lay before and nothing is uploaded. Launches otherwise get the addresses of a
few tensors each, whatever the number of weights. (Results cannot be slices of one allocation, of
which one address would do: outputs of an op must not share memory. As arguments of the launch,
addresses would take compiled kernels for every number of weights.)

**CUDA graphs.** While a graph is captured, the table is copied by the graph itself, from pinned
memory that is never released, because every replay reads it again. The plan must be there already,
so one call has to come before the capture.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, the kernels run on CPU
tensors, in Triton's interpreter, slowly: this is how they are tested without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastsn.problem import accumulate_dtype

if TYPE_CHECKING:
    from fastsn.triton_plan import Plan

__all__ = ["backward", "forward", "unsupported_reasons"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_VERSION = (3, 6)
_CAPABILITY = (8, 0)

#: Threads per program: 32 elements of a tile for each of 256 threads (TILES in triton_plan.py).
_NUM_WARPS = 8

#: Tables of arguments that a plan remembers: some for each of a training step's calls.
_TABLES = 64


# What this machine can do


def unsupported_reasons(
    device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype | None
) -> list[str]:
    """Why this backend cannot serve such weights; an empty list where it can."""
    reasons = []
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted and device.type != "cpu":
        reasons.append(f"expected weights on cpu where TRITON_INTERPRET=1, got {device.type}")
    elif not interpreted and device.type != "cuda":
        reasons.append(f"expected weights on device cuda, got {device.type}")
    if dtype not in _DTYPES:
        reasons.append(f"expected float32, float64, bfloat16 or float16 weights, got {dtype}")
    if out_dtype is not None and out_dtype not in _DTYPES:
        reasons.append(f"expected a result in one of these dtypes too, got {out_dtype}")
    # Triton takes a while to import: only where there is a device it could use.
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed: pip install 'fastsn[triton]'")
    elif not reasons and (reason := _import_error() or _device_reason(device)):
        reasons.append(reason)
    return reasons


@cache
def _import_error() -> str:
    """Why the kernels cannot be imported, with the fix; ``""`` where they can be."""
    try:
        import triton
    except ImportError as error:
        return f"Triton does not load ({error}): pip install --force-reinstall triton"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _VERSION:
        needed = ".".join(map(str, _VERSION))
        return (
            f"expected Triton {needed} or newer, got {triton.__version__}: "
            f"pip install 'triton>={needed}'"
        )
    return ""


def _device_reason(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: torch.cuda.is_available() is False"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _CAPABILITY:
        needed, got = (".".join(map(str, pair)) for pair in (_CAPABILITY, capability))
        return f"expected a device of compute capability {needed} or newer, got {got}"
    return ""


# Tables


class _Reserve:
    """Pinned memory for captured graphs, which read it at every replay: it is never released."""

    def __init__(self, size: int) -> None:
        self._size = size  # in int64 numbers
        self._free: Tensor | None = None

    def refill(self) -> None:
        """Makes sure of some memory. Not during a capture, for it may allocate."""
        if self._free is None or self._free.numel() < self._size // 2:
            self._free = torch.empty(self._size, dtype=torch.int64, pin_memory=True)

    def hold(self, table: Tensor) -> Tensor:
        """A copy of ``table`` in the reserve."""
        if self._free is None or self._free.numel() < table.numel():
            raise _no_warm_up()
        held, self._free = self._free.tensor_split([table.numel()])
        return held.copy_(table.flatten()).view_as(table)


_reserve = _Reserve(1 << 17)
_plans: dict[tuple[Any, ...], Plan] = {}
_lock = Lock()


def _no_warm_up() -> RuntimeError:
    return RuntimeError(
        "fastsn: expected a call with weights of these shapes before a CUDA graph is captured"
    )


def _plan_of(weights: Sequence[Tensor], dims: Sequence[int], kinds: Sequence[int]) -> Plan:
    from fastsn.triton_plan import make_plan

    device = weights[0].device
    key = (device, *dims, *kinds, *[(weight.shape, weight.stride()) for weight in weights])
    plan = _plans.get(key)
    if plan is None:
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                raise _no_warm_up()
            _reserve.refill()
        # Copies that the host waits for: whichever stream reads a plan, it is there. Plans stay for
        # good, because captured graphs read them; models of the same shapes share one.
        plan = make_plan(weights, dims, kinds, lambda table: table.to(device))
        _plans[key] = plan
    return plan


def _arguments(
    plan: Plan, device: torch.device, key: tuple[Any, ...], rows: Callable[[], list[list[int]]]
) -> Tensor:
    """The table with these ``rows``, which ``key`` determines, on the device."""
    if device.type != "cuda":
        return torch.tensor(rows())
    if torch.cuda.is_current_stream_capturing():
        with _lock:
            host = _reserve.hold(torch.tensor(rows()))
        return host.to(device, non_blocking=True)
    # A table was uploaded on one stream, and others may not wait for it.
    key = (torch.cuda.current_stream(device).cuda_stream, *key)
    table = plan.arguments.get(key)
    if table is None:
        with _lock:
            _reserve.refill()
        if len(plan.arguments) >= _TABLES:
            plan.arguments.clear()
        table = torch.tensor(rows()).pin_memory().to(device, non_blocking=True)
        plan.arguments[key] = table
    return table


def _bits(number: float) -> int:
    return struct.unpack("q", struct.pack("d", number))[0]


def _addresses(*lists: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensors in lists for tensor in tensors]


def _launch(kernel: Any, programs: int, *args: Any) -> None:
    kernel[(programs,)](*args, num_warps=_NUM_WARPS)


def _guard(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# The two functions


def forward(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    dims: Sequence[int],
    kinds: Sequence[int],
    scales: Sequence[float],
    scale_tensor: Tensor | None,
    n_power_iterations: int,
    eps: float,
    out_dtype: torch.dtype | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """See :func:`fastsn.reference.forward`."""
    from fastsn.triton_forward import (
        evaluate,
        multiply_cols,
        multiply_rows,
        write_weights,
    )
    from fastsn.triton_plan import TILES, triton_dtype

    device, dtype = weights[0].device, weights[0].dtype
    accumulate = accumulate_dtype(dtype)
    vector_dtype = us[0].dtype
    if any(vector.dtype != vector_dtype for vectors in (us, vs) for vector in vectors):
        vector_dtype = accumulate
        us, vs = [u.to(accumulate) for u in us], [v.to(accumulate) for v in vs]
    plan = _plan_of(weights, dims, kinds)
    results = [torch.empty_like(weight, dtype=out_dtype) for weight in weights]
    sigmas = torch.empty(len(weights), dtype=accumulate, device=device)
    vectors = torch.empty(plan.vectors, dtype=accumulate, device=device)
    view_stats = torch.empty(plan.views, 2, dtype=accumulate, device=device)
    sums = torch.empty(plan.sums, dtype=accumulate, device=device)
    scalars = torch.empty(plan.scalars, dtype=torch.float64, device=device)
    counters = torch.empty(plan.counters, dtype=torch.int32, device=device)

    def rows() -> list[list[int]]:
        table = []
        for i, problem in enumerate(plan.problems):
            given: list[int] = []
            for j in problem.views:
                pair = [0, 0] if j is None else _addresses([us[j], vs[j]])
                given += reversed(pair) if problem.swapped else pair
            source, result = _addresses([weights[i], results[i]])
            table.append([source, result, 0, _bits(scales[i]), _bits(eps), *given])
        return table

    key = ("forward", *_addresses(weights, results, us, vs), *scales, eps)
    w, v, out = triton_dtype(dtype), triton_dtype(vector_dtype), triton_dtype(results[0].dtype)
    with _guard(device):
        tables = plan.table, _arguments(plan, device, key, rows)
        tiles, work = (plan.tile_problems, *tables), (sums, scalars, counters)
        concluded = scale_tensor, sigmas, view_stats
        if n_power_iterations == 0:
            _launch(multiply_rows, plan.tiles, *tiles, *work, w, v, True, True, TILES)
            _launch(evaluate, len(weights), *tables, scalars, *concluded)
        for iteration in range(n_power_iterations):
            first = iteration == 0
            _launch(multiply_rows, plan.tiles, *tiles, *work, w, v, first, False, TILES)
            _launch(multiply_cols, plan.tiles, *tiles, *work, *concluded, w, TILES)
        _launch(write_weights, plan.tiles, *tiles, sums, scalars, vectors, w, v, out, TILES)
    return results, sigmas, vectors, view_stats


def backward(
    grads: Sequence[Tensor],
    grad_sigmas: Tensor | None,
    weights_sn: Sequence[Tensor],
    sigmas: Tensor,
    vectors: Tensor,
    view_stats: Tensor,
    dims: Sequence[int],
    kinds: Sequence[int],
    scales: Sequence[float],
    scale_tensor: Tensor | None,
    grad_dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    """See :func:`fastsn.reference.backward`."""
    from fastsn.triton_gradients import inner_products, write_gradients
    from fastsn.triton_plan import BLOCK, TILES, triton_dtype

    device = sigmas.device
    sigmas, vectors, view_stats = sigmas.contiguous(), vectors.contiguous(), view_stats.contiguous()
    plan = _plan_of(weights_sn, dims, kinds)
    results = [torch.empty_like(weight_sn, dtype=grad_dtype) for weight_sn in weights_sn]
    grad_scales = torch.empty_like(sigmas)
    products = torch.empty(plan.chunks, dtype=torch.float64, device=device)

    def rows() -> list[list[int]]:
        addresses = zip(_addresses(grads), _addresses(results), _addresses(weights_sn), strict=True)
        return [[*own, _bits(scales[i]), 0, 0, 0, 0, 0] for i, own in enumerate(addresses)]

    key = ("backward", *_addresses(grads, results, weights_sn), *scales)
    g, a = triton_dtype(weights_sn[0].dtype), triton_dtype(vectors.dtype)
    with _guard(device):
        tables = plan.table, _arguments(plan, device, key, rows)
        _launch(inner_products, plan.chunks, plan.chunk_problems, *tables, products, g, a, BLOCK)
        _launch(
            write_gradients, plan.tiles, plan.tile_problems, *tables, products, scale_tensor,
            sigmas, grad_sigmas, vectors, view_stats, grad_scales, g, triton_dtype(grad_dtype),
            TILES,
        )  # fmt: skip
    return results, grad_scales
