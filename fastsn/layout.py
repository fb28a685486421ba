"""Memory layouts: what compiled kernels walk in place, and copies for the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsn.plan import SN_V_FIRST, native_layout

__all__ = ["contiguous", "like_layouts", "native_layouts", "restore_layouts"]


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def native_layouts(
    weights: Sequence[Tensor], dims: Sequence[int], kinds: Sequence[int]
) -> tuple[list[Tensor], list[int]]:
    """Weights compiled kernels can walk in place, copied where it must be, and their ``dims``."""
    laid_out, new_dims = list(weights), list(dims)
    for i, (weight, dim, kind) in enumerate(zip(weights, dims, kinds, strict=True)):
        if (kind != SN_V_FIRST and weight.is_contiguous()) or native_layout(weight, dim, kind):
            continue
        if kind == SN_V_FIRST:
            weight, new_dims[i] = weight.movedim(dim, 0), 0
        laid_out[i] = weight.contiguous()
    return laid_out, new_dims


def like_layouts(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    laid_out: Sequence[Tensor],
    dims: Sequence[int],
    new_dims: Sequence[int],
) -> list[Tensor]:
    """Gradients of ``weights`` with the strides and dtypes of ``laid_out``."""
    results = []
    for grad, weight, used, dim, new_dim in zip(
        grads, weights, laid_out, dims, new_dims, strict=True
    ):
        if used is not weight:
            grad = grad.movedim(dim, new_dim)
        if grad.stride() != used.stride() or grad.dtype != used.dtype:
            grad = torch.empty_like(used).copy_(grad)
        results.append(grad)
    return results


def restore_layouts(
    results: Sequence[Tensor],
    weights: Sequence[Tensor],
    laid_out: Sequence[Tensor],
    dims: Sequence[int],
    new_dims: Sequence[int],
) -> list[Tensor]:
    """Undoes :func:`native_layouts` for results."""
    return [
        result
        if used is weight
        else torch.empty_like(weight, dtype=result.dtype).copy_(result.movedim(new_dim, dim))
        for result, weight, used, dim, new_dim in zip(
            results, weights, laid_out, dims, new_dims, strict=True
        )
    ]
