"""What a call computes, derived once: the unfoldings, kinds and scales of a list of weights.

A :class:`Plan` is made when layers are registered and carried from there to the kernels. Everything
here is integers and dtypes; no tensor's values are read. The C++ side of it is csrc/problem.h.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastsn.memory import Memory

__all__ = [
    "BSN",
    "SN",
    "SN_V_FIRST",
    "WARM_UP",
    "Plan",
    "View",
    "accumulate_dtype",
    "native_layout",
    "plan_of",
    "views_of",
]

#: Kinds, as in the op's schema: one unfolding; the mean over two; one, in the order of torch's old
#: hook, which advances v before u.
SN, BSN, SN_V_FIRST = 0, 1, 2

#: Power iterations at registration, as torch's.
WARM_UP = 15


class View(NamedTuple):
    """One unfolding of a weight: ``unfold_dim(W)`` is a ``rows`` x ``cols`` matrix."""

    dim: int
    rows: int
    cols: int
    coefficient: float  # its share of sigma: 1 for SN, 1/2 for each unfolding of BSN


def views_of(shape: Sequence[int], dim: int, kind: int) -> tuple[View, ...]:
    """Unfoldings of a weight of ``shape``, in the order in which their vectors are listed."""
    dims = (dim, 1 - dim) if kind == BSN else (dim,)
    views = []
    for d in dims:
        cols = 1
        for e, size in enumerate(shape):
            cols *= 1 if e == d else size
        views.append(View(d, shape[d], cols, 1.0 / len(dims)))
    return tuple(views)


class Plan:
    """``k`` weights of one call; never changed.

    Attributes:
        shapes: of the weights.
        dims, kinds, scales: as in the op's schema; ``scales`` counts where no tensor is given.
        views: the unfoldings of each weight.
        flat_views: those of all weights, in order.
        sizes: lengths of all vectors, per unfolding u, then v.
        eps: lower bound of the norms the vectors are divided by.
        elements: of all weights.
        any_contiguous: compiled kernels walk every contiguous weight in place.
        memory: of results, to be used again. A batch of layers has a plan with memory of its own;
            that of a plan which many share, as compiled code has it, is the latest such batch's.
    """

    __slots__ = (
        "_memory", "_parts", "any_contiguous", "dims", "elements", "eps", "firsts", "flat_views",
        "kinds", "scales", "shapes", "sizes", "views",
    )  # fmt: skip

    def __init__(
        self,
        shapes: tuple[tuple[int, ...], ...],
        dims: tuple[int, ...],
        kinds: tuple[int, ...],
        scales: tuple[float, ...],
        eps: float,
    ) -> None:
        self.shapes = shapes
        self.dims, self.kinds, self.scales = list(dims), list(kinds), list(scales)
        self.eps = eps
        self.any_contiguous = all(
            kind != SN_V_FIRST or dim == 0 for dim, kind in zip(dims, kinds, strict=True)
        )
        self.views = [views_of(*each) for each in zip(shapes, dims, kinds, strict=True)]
        self.elements = sum(views[0].rows * views[0].cols for views in self.views)
        self.flat_views = [view for views in self.views for view in views]
        self.sizes = [size for view in self.flat_views for size in (view.rows, view.cols)]
        self.firsts = [0]  # the first unfolding of each weight
        for views in self.views:
            self.firsts.append(self.firsts[-1] + len(views))
        self._parts: dict[tuple[int, ...], Plan] = {}
        self._memory: Callable[[], Memory | None] = _no_memory

    def with_memory(self) -> Plan:
        """The same plan with memory of its own, for one batch of layers."""
        plan = copy.copy(self)
        memory = Memory([views[0].rows * views[0].cols for views in self.views])
        plan._memory, self._memory = lambda: memory, weakref.ref(memory)
        return plan

    @property
    def memory(self) -> Memory | None:
        return self._memory()

    def __len__(self) -> int:
        return len(self.shapes)

    def views_at(self, indices: Sequence[int]) -> list[int]:
        """Indices into ``flat_views`` of the weights at ``indices``."""
        return [j for i in indices for j in range(self.firsts[i], self.firsts[i + 1])]

    def part(self, indices: Sequence[int]) -> Plan:
        """The plan of some of the weights."""
        key = tuple(indices)
        if key not in self._parts:
            self._parts[key] = plan_of(
                tuple(self.shapes[i] for i in key),
                tuple(self.dims[i] for i in key),
                tuple(self.kinds[i] for i in key),
                tuple(self.scales[i] for i in key),
                self.eps,
            )
        return self._parts[key]

    def split(self, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The op's flat ``vectors`` as ``(u [rows], v [cols])`` per unfolding."""
        parts = vectors.split(self.sizes)
        return list(zip(parts[0::2], parts[1::2], strict=True))


def plan_of(
    shapes: tuple[tuple[int, ...], ...],
    dims: tuple[int, ...],
    kinds: tuple[int, ...],
    scales: tuple[float, ...],
    eps: float,
) -> Plan:
    """The plan for such weights: the same object for equal arguments."""
    if torch.compiler.is_compiling():  # which sees through caches
        return Plan(shapes, dims, kinds, scales, eps)
    try:
        return _plan_of(shapes, dims, kinds, scales, eps)
    except TypeError:  # symbolic sizes, which have no hash
        return Plan(shapes, dims, kinds, scales, eps)


def _no_memory() -> None:
    """Before any batch has such a plan."""


_plan_of = lru_cache(maxsize=4096)(Plan)


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
