"""Triton backend: all weights of a call in three launches forward and two backward.

Host side: what it cannot serve, checks of the arguments, and the launches. Neither
``import fastsn`` nor this module imports Triton; the kernels (fastsn/backends/triton/forward.py,
conclude.py, gradients.py) are imported when the backend first serves a weight. They
read what to do from tables on the device (fastsn/backends/triton/tables.py).

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, the kernels run on CPU
tensors, in Triton's interpreter, slowly: this is how they are tested without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastsn.backends.triton.tables import addresses, argument_table, bits, plan_of
from fastsn.plan import Plan as GroupPlan
from fastsn.plan import accumulate_dtype

__all__ = ["backward", "forward", "import_error", "options", "unsupported_reasons"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_VERSION = (3, 6)
_CAPABILITY = (8, 0)

#: 256 threads a program, with 16 elements of a tile in each (TILES in plan.py).
_NUM_WARPS = 8
#: Registers a thread at most, none spilled: three programs fit on a multiprocessor, or two where a
#: kernel takes more: all kernels with float64, and write_gradients, which takes some 90.
_REGISTERS, _MORE_REGISTERS = 80, 160
_VECTOR_BYTES = 16


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
    # Importing Triton takes a while: only where there is a device it could use.
    if importlib.util.find_spec("triton") is None or not reasons:
        found = import_error() or _mode_error(interpreted)
        reasons += [reason for reason in (found, _device_reason(device)) if reason]
    return reasons


@cache
def import_error() -> str:
    """Why the kernels cannot be imported, with the fix; ``""`` where they can be."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'fastsn[triton]'"
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


def _mode_error(interpreted: bool) -> str:
    """Triton asks the environment when it is imported, and again when our kernels are."""
    import triton
    import triton.language as tl

    if interpreted != isinstance(tl.sum, triton.JITFunction):
        return ""
    return "TRITON_INTERPRET was changed after Triton was imported: set it before, or not at all"


def _device_reason(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: torch.cuda.is_available() is False"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _CAPABILITY:
        needed, got = (".".join(map(str, pair)) for pair in (_CAPABILITY, capability))
        return f"expected a device of compute capability {needed} or newer, got {got}"
    return ""


# Checks: a kernel would read or write out of bounds where the reference says what is wrong


def _check_weights(name: str, weights: Sequence[Tensor]) -> None:
    dtype = weights[0].dtype
    for i, weight in enumerate(weights):
        if weight.dtype != dtype:
            raise RuntimeError(
                f"fastsn: expected {name}[{i}] to be {dtype} as {name}[0], got {weight.dtype}"
            )


def _check_vectors(name: str, vectors: Sequence[Tensor], sizes: list[int]) -> None:
    got = [vector.numel() for vector in vectors]
    if got == sizes:
        return
    if len(got) != len(sizes):
        raise RuntimeError(f"fastsn: expected {len(sizes)} {name}, got {len(got)}")
    j = next(j for j, size in enumerate(sizes) if got[j] != size)
    raise RuntimeError(
        f"fastsn: expected {name}[{j}] of shape ({sizes[j]},), got {tuple(vectors[j].shape)}"
    )


def _check_numbers(name: str, tensor: Tensor | None, count: int, device: torch.device) -> None:
    if tensor is not None and (tensor.numel() != count or tensor.device != device):
        raise RuntimeError(
            f"fastsn: expected {name} of {count} elements on {device}, "
            f"got shape {tuple(tensor.shape)} on {tensor.device}"
        )


def _check_devices(device: torch.device, **lists: Sequence[Tensor]) -> None:
    """Only where a table of arguments is built: an address that is known is one of the device."""
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            if tensor.device != device:
                raise RuntimeError(f"fastsn: expected {name}[{i}] on {device}, got {tensor.device}")


# Launches


def _launch(kernel: Any, programs: int, accumulate: torch.dtype, *args: Any) -> None:
    kernel[(programs,)](*args, **options(kernel.fn.__name__, accumulate))


@cache
def options(kernel: str, accumulate: torch.dtype) -> dict[str, int]:
    """How a kernel is compiled whose sums have dtype ``accumulate``.

    Products are rounded before they are added: where a sum runs over lanes, each of two lanes would
    fuse its own product into it, and both write one address with values that differ.
    """
    common = {"num_warps": _NUM_WARPS, "enable_fp_fusion": False}
    if torch.version.hip is not None:
        return common
    more = kernel in ("write_gradients", "write_weights") or accumulate == torch.float64
    return {**common, "maxnreg": _MORE_REGISTERS if more else _REGISTERS}


def _all_aligned(places: Sequence[int]) -> bool:
    """Whether memory can be read and written in vectors, where shapes and strides allow it."""
    return all(place % _VECTOR_BYTES == 0 for place in places)


def _guard(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# The two functions


def forward(
    group: GroupPlan,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale_tensor: Tensor | None,
    n_power_iterations: int,
    out_dtype: torch.dtype | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """See :func:`fastsn.backends.reference.forward`."""
    from fastsn.backends.triton.conclude import evaluate
    from fastsn.backends.triton.forward import multiply_cols, multiply_rows, write_weights
    from fastsn.backends.triton.plan import TILES, triton_dtype

    dims, kinds, scales, eps = group.dims, group.kinds, group.scales, group.eps
    device, dtype = weights[0].device, weights[0].dtype
    accumulate = accumulate_dtype(dtype)
    vector_dtype = us[0].dtype
    if any(vector.dtype != vector_dtype for vectors in (us, vs) for vector in vectors):
        vector_dtype = accumulate
        us, vs = [u.to(accumulate) for u in us], [v.to(accumulate) for v in vs]
    plan = plan_of(weights, dims, kinds)
    _check_weights("weights", weights)
    _check_vectors("us", us, plan.rows)
    _check_vectors("vs", vs, plan.cols)
    _check_numbers("scale_tensor", scale_tensor, len(weights), device)
    results = [torch.empty_like(weight, dtype=out_dtype) for weight in weights]
    sigmas = torch.empty(len(weights), dtype=accumulate, device=device)
    vectors = torch.empty(plan.vectors, dtype=accumulate, device=device)
    view_stats = torch.empty(plan.views, 2, dtype=accumulate, device=device)
    sums = torch.empty(plan.sums, dtype=accumulate, device=device)
    scalars = torch.empty(plan.scalars, dtype=torch.float64, device=device)
    counters = torch.empty(plan.counters, dtype=torch.int32, device=device)

    def rows() -> list[list[int]]:
        _check_devices(device, weights=weights, us=us, vs=vs)
        table = []
        for i, problem in enumerate(plan.problems):
            given: list[int] = []
            for j in problem.views:
                pair = [0, 0] if j is None else addresses([us[j], vs[j]])
                given += reversed(pair) if problem.swapped else pair
            source, result = addresses([weights[i], results[i]])
            table.append([source, result, 0, bits(scales[i]), bits(eps), *given])
        return table

    places = addresses(weights, results)
    key = ("forward", *places, *addresses(us, vs), *scales, eps)
    aligned = _all_aligned(places)
    w, v, out = triton_dtype(dtype), triton_dtype(vector_dtype), triton_dtype(results[0].dtype)
    with _guard(device):
        tables = plan.table, argument_table(plan, device, key, rows)
        common = plan.tile_problems, *tables, sums, scalars
        concluded = scale_tensor, sigmas, view_stats

        def launch(kernel: Any, *args: Any) -> None:
            _launch(kernel, plan.tiles, accumulate, *common, *args, aligned, 2 * TILES)

        if n_power_iterations == 0:
            launch(multiply_rows, counters, w, v, True, True)
            _launch(evaluate, len(weights), accumulate, *tables, scalars, *concluded)
        for iteration in range(n_power_iterations):
            launch(multiply_rows, counters, w, v, iteration == 0, False)
            launch(multiply_cols, counters, *concluded, w, torch.version.hip is not None)
        launch(write_weights, vectors, w, v, out)
    return results, sigmas, vectors, view_stats


def backward(
    group: GroupPlan,
    grads: Sequence[Tensor],
    grad_sigmas: Tensor | None,
    weights_sn: Sequence[Tensor],
    sigmas: Tensor,
    vectors: Tensor,
    view_stats: Tensor,
    scale_tensor: Tensor | None,
    grad_dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    """See :func:`fastsn.backends.reference.backward`."""
    from fastsn.backends.triton.gradients import inner_products, write_gradients
    from fastsn.backends.triton.plan import BLOCK, TILES, triton_dtype

    dims, kinds, scales = group.dims, group.kinds, group.scales
    device, k = weights_sn[0].device, len(weights_sn)
    sigmas, vectors, view_stats = sigmas.contiguous(), vectors.contiguous(), view_stats.contiguous()
    plan = plan_of(weights_sn, dims, kinds)
    _check_weights("weights_sn", weights_sn)
    for name, tensor, count in (
        ("scale_tensor", scale_tensor, k), ("sigmas", sigmas, k), ("grad_sigmas", grad_sigmas, k),
        ("vectors", vectors, plan.vectors), ("view_stats", view_stats, 2 * plan.views),
    ):  # fmt: skip
        _check_numbers(name, tensor, count, device)
    results = [torch.empty_like(weight_sn, dtype=grad_dtype) for weight_sn in weights_sn]
    grad_scales = torch.empty_like(sigmas)
    products = torch.empty(plan.chunks, dtype=torch.float64, device=device)

    def rows() -> list[list[int]]:
        _check_devices(device, weights_sn=weights_sn, grads=grads)
        own = zip(addresses(grads), addresses(results), addresses(weights_sn), strict=True)
        return [[*three, bits(scales[i]), 0, 0, 0, 0, 0] for i, three in enumerate(own)]

    places = addresses(grads, results, weights_sn)
    key = ("backward", *places, *scales)
    aligned = _all_aligned(places)
    g, a = triton_dtype(weights_sn[0].dtype), triton_dtype(vectors.dtype)
    with _guard(device):
        tables = plan.table, argument_table(plan, device, key, rows)
        _launch(
            inner_products, plan.chunks, vectors.dtype,
            plan.chunk_problems, *tables, products, g, a, aligned, BLOCK,
        )  # fmt: skip
        _launch(
            write_gradients, plan.tiles, vectors.dtype,
            plan.tile_problems, *tables, products, scale_tensor, sigmas, grad_sigmas, vectors,
            view_stats, grad_scales, g, triton_dtype(grad_dtype), aligned, 2 * TILES,
        )  # fmt: skip
    return results, grad_scales
