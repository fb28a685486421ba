"""The reference with the arguments of the op's schema, which are those of the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastsn.backends import reference
from fastsn.plan import Plan, plan_of


def plan(weights: Any, dims: Any, kinds: Any, scales: Any, eps: float = 0.0) -> Plan:
    """The plan of such a call."""
    shapes = tuple(tuple(weight.shape) for weight in weights)
    return plan_of(shapes, tuple(dims), tuple(kinds), tuple(scales) or (1.0,) * len(shapes), eps)


def forward(
    weights: Any, us: Any, vs: Any, dims: Any, kinds: Any, scales: Sequence[float],
    scale_tensor: Any, n: int, eps: float, out_dtype: Any,
) -> Any:  # fmt: skip
    own = plan(weights, dims, kinds, scales, eps)
    return reference.forward(own, weights, us, vs, scale_tensor, n, out_dtype)


def backward(
    grads: Any, grad_sigmas: Any, weights_sn: Any, sigmas: Any, vectors: Any, view_stats: Any,
    dims: Any, kinds: Any, scales: Sequence[float], scale_tensor: Any, grad_dtype: Any,
) -> Any:  # fmt: skip
    own = plan(weights_sn, dims, kinds, scales)
    return reference.backward(
        own, grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, scale_tensor, grad_dtype
    )
