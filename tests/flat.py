"""Backends with the arguments of the op's schema, as compiled kernels have them."""

from __future__ import annotations

from typing import Any

from fastsn.backends import reference as _reference
from fastsn.plan import Plan, plan_of

__all__ = ["Flat", "reference"]


class Flat:
    """A module with :func:`fastsn.backends.reference.forward` and ``backward``."""

    def __init__(self, module: Any) -> None:
        self.module = module

    @staticmethod
    def _plan(weights: Any, dims: Any, kinds: Any, scales: Any, eps: float = 0.0) -> Plan:
        shapes = tuple(tuple(weight.shape) for weight in weights)
        return plan_of(shapes, tuple(dims), tuple(kinds), tuple(scales) or (1.0,) * len(dims), eps)

    def forward(
        self, weights: Any, us: Any, vs: Any, dims: Any, kinds: Any, scales: Any,
        scale_tensor: Any, n_power_iterations: int, eps: float, out_dtype: Any,
    ) -> Any:  # fmt: skip
        plan = self._plan(weights, dims, kinds, scales, eps)
        given = weights, us, vs, scale_tensor
        return self.module.forward(plan, *given, n_power_iterations, out_dtype)

    def backward(
        self, grads: Any, grad_sigmas: Any, weights_sn: Any, sigmas: Any, vectors: Any,
        view_stats: Any, dims: Any, kinds: Any, scales: Any, scale_tensor: Any, grad_dtype: Any,
    ) -> Any:  # fmt: skip
        plan = self._plan(weights_sn, dims, kinds, scales)
        saved = weights_sn, sigmas, vectors, view_stats
        return self.module.backward(plan, grads, grad_sigmas, *saved, scale_tensor, grad_dtype)


reference = Flat(_reference)
