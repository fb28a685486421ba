"""The kernels of the two ops: backend choice, memory layouts, precision; and their fakes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor

from fastsn.backends import select_backend
from fastsn.layout import contiguous, like_layouts, native_layouts, restore_layouts
from fastsn.plan import accumulate_dtype, group_views

__all__ = ["backward", "fake_backward", "fake_forward", "forward", "store_vectors"]


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
    backend: str,
    store: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The op's kernel; with ``store`` the new vectors go into ``us`` and ``vs`` as well."""
    first = weights[0]
    chosen = select_backend(backend, first.device, first.dtype, out_dtype)
    laid_out, new_dims, given_us, given_vs = weights, dims, us, vs
    if chosen.any_layout:
        _check_vectors(weights, us, vs, dims, kinds)
    else:  # compiled kernels check their arguments themselves
        laid_out, new_dims = native_layouts(weights, dims, kinds)
        us, vs = [*map(Tensor.contiguous, us)], [*map(Tensor.contiguous, vs)]
        scale_tensor = contiguous(scale_tensor)
    as_given = all(map(is_, us, given_us)) and all(map(is_, vs, given_vs))
    in_kernel = store and chosen.stores_vectors and as_given
    with _no_autocast(first.device):
        results, sigmas, vectors, view_stats = chosen.forward(
            laid_out,
            us,
            vs,
            new_dims,
            kinds,
            scales,
            scale_tensor,
            n_power_iterations,
            eps,
            out_dtype,
            *((in_kernel,) if chosen.stores_vectors else ()),
        )
    if in_kernel:
        torch.autograd.graph.increment_version((*us, *vs))
    elif store:
        store_vectors(vectors, given_us, given_vs)
    return restore_layouts(results, weights, laid_out, dims, new_dims), sigmas, vectors, view_stats


def store_vectors(vectors: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    sizes = [vector.numel() for pair in zip(us, vs, strict=True) for vector in pair]
    parts = vectors.split(sizes)
    torch._foreach_copy_([*us, *vs], [*parts[0::2], *parts[1::2]])


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast is still on inside an op and would lower the reference's precision."""
    if not torch._C._is_any_autocast_enabled():
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _check_vectors(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    dims: Sequence[int],
    kinds: Sequence[int],
) -> None:
    views = [view for views in group_views(weights, dims, kinds) for view in views]
    device = weights[0].device
    for name, given in (("us", us), ("vs", vs)):
        if len(given) != len(views):
            raise RuntimeError(f"fastsn: expected {len(views)} {name}, got {len(given)}")
        for j, (vector, view) in enumerate(zip(given, views, strict=True)):
            size = view.rows if given is us else view.cols
            if vector.shape != (size,) or vector.device != device:
                raise RuntimeError(
                    f"fastsn: expected {name}[{j}] of shape ({size},) on {device}, "
                    f"got {tuple(vector.shape)} on {vector.device}"
                )


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
    backend: str,
) -> tuple[list[Tensor], Tensor]:
    chosen = select_backend(backend, sigmas.device, grad_dtype, weights_sn[0].dtype)
    laid_out, new_dims = weights_sn, dims
    if not chosen.any_layout:
        laid_out, new_dims = native_layouts(weights_sn, dims, kinds)
        grads = like_layouts(grads, weights_sn, laid_out, dims, new_dims)
        grad_sigmas, scale_tensor = contiguous(grad_sigmas), contiguous(scale_tensor)
    with _no_autocast(sigmas.device):
        results, grad_scales = chosen.backward(
            grads,
            grad_sigmas,
            laid_out,
            sigmas,
            vectors,
            view_stats,
            new_dims,
            kinds,
            scales,
            scale_tensor,
            grad_dtype,
        )
    return restore_layouts(results, weights_sn, laid_out, dims, new_dims), grad_scales


def fake_forward(
    weights: Any, us: Any, vs: Any, dims: Any, kinds: Any, scales: Any, scale_tensor: Any,
    n_power_iterations: int, eps: float, out_dtype: torch.dtype | None, backend: str,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:  # fmt: skip
    # Here too, because one meta tensor among the arguments is enough to land here.
    _check_vectors(weights, us, vs, dims, kinds)
    dtype = accumulate_dtype(weights[0].dtype)
    real = dtype.to_real()
    sizes = [
        (view.rows, view.cols) for views in group_views(weights, dims, kinds) for view in views
    ]
    return (
        [torch.empty_like(weight, dtype=out_dtype) for weight in weights],
        weights[0].new_empty([len(weights)], dtype=real),
        weights[0].new_empty([sum(rows + cols for rows, cols in sizes)], dtype=dtype),
        weights[0].new_empty([len(sizes), 2], dtype=real),
    )


def fake_backward(
    grads: Any, grad_sigmas: Any, weights_sn: Any, sigmas: Tensor, vectors: Any,
    view_stats: Any, dims: Any, kinds: Any, scales: Any,
    scale_tensor: Any, grad_dtype: torch.dtype, backend: str,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    return (
        [torch.empty_like(weight_sn, dtype=grad_dtype) for weight_sn in weights_sn],
        torch.empty_like(sigmas),
    )
