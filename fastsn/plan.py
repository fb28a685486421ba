"""The shapes of one problem (one weight): its unfoldings, their vectors, and the dtypes.

The Python side of csrc/problem.h. Everything here is integers and dtypes; no tensor is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Values of ``kinds`` in the op's schema.
SN, BSN, SN_V_FIRST = 0, 1, 2

#: Power iterations at registration, as torch's.
WARM_UP = 15


class View(NamedTuple):
    """One unfolding of a weight: ``unfold_dim(W)`` is a ``rows`` x ``cols`` matrix."""

    dim: int
    rows: int
    cols: int
    coefficient: float  # its share of sigma: 1 for SN, 1/2 for each unfolding of BSN


def views_of(shape: Sequence[int], dim: int, kind: int) -> list[View]:
    """Unfoldings of a weight of ``shape``, in the order in which their vectors are listed."""
    dims = (dim, 1 - dim) if kind == BSN else (dim,)
    views = []
    for d in dims:
        cols = 1
        for e, size in enumerate(shape):
            cols *= 1 if e == d else size
        views.append(View(d, shape[d], cols, 1.0 / len(dims)))
    return views


def group_views(
    weights: Sequence[Tensor], dims: Sequence[int], kinds: Sequence[int]
) -> list[list[View]]:
    """The views of every weight of a call."""
    return [
        views_of(weight.shape, dim, kind)
        for weight, dim, kind in zip(weights, dims, kinds, strict=True)
    ]


def split_vectors(vectors: Tensor, views: Sequence[View]) -> list[tuple[Tensor, Tensor]]:
    """Splits the op's flat ``vectors`` into ``(u [rows], v [cols])`` per view."""
    sizes = [size for view in views for size in (view.rows, view.cols)]
    parts = vectors.split(sizes)
    return list(zip(parts[0::2], parts[1::2], strict=True))


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums and vectors: at least float32, complex for complex weights."""
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return torch.complex64 if dtype == torch.complex32 else dtype


def native_layout(weight: Tensor, dim: int, kind: int) -> bool:
    """Whether compiled kernels walk this weight in place (``make_views`` in csrc/problem.h)."""
    if kind == SN_V_FIRST:
        return dim == 0 and weight.is_contiguous()
    return weight.is_contiguous() or (dim <= 1 and _is_channels_last(weight))


def _is_channels_last(weight: Tensor) -> bool:
    order = [0, *range(2, weight.ndim), 1]
    return weight.ndim >= 3 and weight.permute(order).is_contiguous()
