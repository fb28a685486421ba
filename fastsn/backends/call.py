"""One call of a backend: the choice, memory layouts and precision around it; and its fakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsn.backends import passes_over, select_backend
from fastsn.plan import SN_V_FIRST, Plan, accumulate_dtype, native_layout, plan_of

__all__ = ["backward", "fake_backward", "fake_forward", "forward", "store_vectors"]


def forward(
    plan: Plan,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale_tensor: Tensor | None,
    n_power_iterations: int,
    out_dtype: torch.dtype | None,
    backend: str,
    *,
    store: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The forward op's kernel; with ``store`` the new vectors go into ``us`` and ``vs`` as well.

    See :mod:`fastsn.op` for the arguments and results.
    """
    first = weights[0]
    chosen = select_backend(backend, first.device, first.dtype, out_dtype, plan.elements)
    if chosen.any_layout:
        _check_vectors(plan, first.device, us, vs)
        laid_out, used_plan = weights, plan
    else:  # compiled kernels check their arguments themselves
        laid_out, used_plan = _native_layouts(plan, weights)
        if scale_tensor is not None:
            scale_tensor = scale_tensor.contiguous()
    given = us, vs
    if not chosen.any_layout and False in [vector.is_contiguous() for vector in (*us, *vs)]:
        us, vs = [u.contiguous() for u in us], [v.contiguous() for v in vs]
    in_kernel = store and chosen.stores_vectors and us is given[0]
    options: tuple[Any, ...] = (in_kernel,) if chosen.stores_vectors else ()
    if chosen.takes_memory:
        options += (_memory(plan, "weights_sn", out_dtype or first.dtype),)
    call = used_plan, laid_out, us, vs, scale_tensor, n_power_iterations, out_dtype, *options
    try:
        if torch._C._is_any_autocast_enabled():  # it is still on, and would lower the precision
            with torch.autocast(first.device.type, enabled=False):
                results, sigmas, vectors, view_stats = chosen.forward(*call)
        else:
            results, sigmas, vectors, view_stats = chosen.forward(*call)
    except RuntimeError as error:
        if not passes_over(backend, chosen, first.device, first.dtype, error):
            raise
        again: Any = n_power_iterations, out_dtype, backend
        return forward(plan, weights, *given, scale_tensor, *again, store=store)
    if in_kernel:
        torch.autograd.graph.increment_version((*us, *vs))
    elif store:
        store_vectors(vectors, *given)
    if laid_out is not weights:
        results = _restore_layouts(results, weights, laid_out, plan, used_plan)
    return results, sigmas, vectors, view_stats


def store_vectors(vectors: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    """Puts the op's flat ``vectors`` into ``us`` and ``vs``, in place."""
    sizes = [vector.numel() for pair in zip(us, vs, strict=True) for vector in pair]
    parts = vectors.split(sizes)
    torch._foreach_copy_([*us, *vs], [*parts[0::2], *parts[1::2]])


def backward(
    plan: Plan,
    grads: Sequence[Tensor],
    grad_sigmas: Tensor | None,
    weights_sn: Sequence[Tensor],
    sigmas: Tensor,
    vectors: Tensor,
    view_stats: Tensor,
    scale_tensor: Tensor | None,
    grad_dtype: torch.dtype,
    backend: str,
) -> tuple[list[Tensor], Tensor]:
    """The backward op's kernel; see :mod:`fastsn.op` for the arguments and results."""
    asked = sigmas.device, grad_dtype
    chosen = select_backend(backend, *asked, weights_sn[0].dtype, plan.elements)
    given = grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, scale_tensor
    laid_out, used_plan = weights_sn, plan
    if not chosen.any_layout:
        laid_out, used_plan = _native_layouts(plan, weights_sn)
        grads = _like_layouts(grads, weights_sn, laid_out, plan, used_plan)
        grad_sigmas = None if grad_sigmas is None else grad_sigmas.contiguous()
        scale_tensor = None if scale_tensor is None else scale_tensor.contiguous()
    saved = laid_out, sigmas, vectors, view_stats, scale_tensor
    memory = (_memory(plan, "gradients", grad_dtype),) if chosen.takes_memory else ()
    call = used_plan, grads, grad_sigmas, *saved, grad_dtype, *memory
    try:
        if torch._C._is_any_autocast_enabled():
            with torch.autocast(sigmas.device.type, enabled=False):
                results, grad_scales = chosen.backward(*call)
        else:
            results, grad_scales = chosen.backward(*call)
    except RuntimeError as error:
        if not passes_over(backend, chosen, *asked, error):
            raise
        return backward(plan, *given, grad_dtype, backend)
    if laid_out is not weights_sn:
        results = _restore_layouts(results, weights_sn, laid_out, plan, used_plan)
    return results, grad_scales


def _memory(plan: Plan, kind: str, dtype: torch.dtype) -> Sequence[Tensor]:
    memory = plan.memory
    return () if memory is None else memory.take(kind, dtype)


# Memory layouts: what compiled kernels walk in place, and copies for the rest


def _native_layouts(plan: Plan, weights: Sequence[Tensor]) -> tuple[Sequence[Tensor], Plan]:
    """The weights as compiled kernels can walk them, and the plan for them: copies if need be."""
    if plan.any_contiguous and False not in [weight.is_contiguous() for weight in weights]:
        return weights, plan
    odd = [
        i
        for i, (weight, kind) in enumerate(zip(weights, plan.kinds, strict=True))
        if not native_layout(weight, plan.dims[i], kind)
    ]
    if not odd:
        return weights, plan
    laid_out, dims = list(weights), list(plan.dims)
    for i in odd:
        weight = weights[i]
        if plan.kinds[i] == SN_V_FIRST:
            weight, dims[i] = weight.movedim(dims[i], 0), 0
        laid_out[i] = weight.contiguous()
    if dims != plan.dims:
        shapes = tuple(tuple(weight.shape) for weight in laid_out)
        plan = plan_of(shapes, tuple(dims), tuple(plan.kinds), tuple(plan.scales), plan.eps)
    return laid_out, plan


def _like_layouts(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    laid_out: Sequence[Tensor],
    plan: Plan,
    used_plan: Plan,
) -> Sequence[Tensor]:
    """Gradients of ``weights`` with the strides and dtypes of ``laid_out``."""
    if laid_out is weights and not [
        grad for grad, weight in zip(grads, weights, strict=True)
        if grad.dtype is not weight.dtype or not grad.is_contiguous() or not weight.is_contiguous()
    ]:  # fmt: skip
        return grads
    results = []
    for i, (grad, used) in enumerate(zip(grads, laid_out, strict=True)):
        if used is not weights[i] and plan.dims[i] != used_plan.dims[i]:
            grad = grad.movedim(plan.dims[i], used_plan.dims[i])
        if grad.stride() != used.stride() or grad.dtype != used.dtype:
            grad = torch.empty_like(used).copy_(grad)
        results.append(grad)
    return results


def _restore_layouts(
    results: Sequence[Tensor],
    weights: Sequence[Tensor],
    laid_out: Sequence[Tensor],
    plan: Plan,
    used_plan: Plan,
) -> list[Tensor]:
    """Results for ``laid_out``, as results for ``weights``."""
    restored = list(results)
    for i, (weight, used) in enumerate(zip(weights, laid_out, strict=True)):
        if used is not weight:
            moved = results[i].movedim(used_plan.dims[i], plan.dims[i])
            restored[i] = torch.empty_like(weight, dtype=moved.dtype).copy_(moved)
    return restored


def _check_vectors(
    plan: Plan, device: torch.device, us: Sequence[Tensor], vs: Sequence[Tensor]
) -> None:
    for name, given in (("us", us), ("vs", vs)):
        if len(given) != len(plan.flat_views):
            raise RuntimeError(f"fastsn: expected {len(plan.flat_views)} {name}, got {len(given)}")
        for j, (vector, view) in enumerate(zip(given, plan.flat_views, strict=True)):
            size = view.rows if given is us else view.cols
            if vector.shape != (size,) or vector.device != device:
                raise RuntimeError(
                    f"fastsn: expected {name}[{j}] of shape ({size},) on {device}, "
                    f"got {tuple(vector.shape)} on {vector.device}"
                )


# What the results look like, for tracing


def fake_forward(
    plan: Plan, weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor],
    scale_tensor: Tensor | None, n_power_iterations: int, out_dtype: torch.dtype | None,
    backend: str,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:  # fmt: skip
    """Results of :func:`forward` without values."""
    # Here too, because one meta tensor among the arguments is enough to land here.
    _check_vectors(plan, weights[0].device, us, vs)
    dtype = accumulate_dtype(weights[0].dtype)
    real = dtype.to_real()
    return (
        [torch.empty_like(weight, dtype=out_dtype) for weight in weights],
        weights[0].new_empty([len(plan)], dtype=real),
        weights[0].new_empty([sum(plan.sizes)], dtype=dtype),
        weights[0].new_empty([len(plan.flat_views), 2], dtype=real),
    )


def fake_backward(
    plan: Plan, grads: Any, grad_sigmas: Any, weights_sn: Sequence[Tensor], sigmas: Tensor,
    vectors: Any, view_stats: Any, scale_tensor: Any, grad_dtype: torch.dtype, backend: str,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Results of :func:`backward` without values."""
    return (
        [torch.empty_like(weight_sn, dtype=grad_dtype) for weight_sn in weights_sn],
        torch.empty_like(sigmas),
    )
