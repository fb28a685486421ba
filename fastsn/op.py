"""The op: one differentiable call for one weight or a whole network.

``fastsn::spectral_normalize`` is functional: it returns the new vectors, so a second forward never
spoils what backward of the first one needs, and :func:`spectral_normalize_` puts them into the
buffers as well. It chooses the backend in its kernel (:mod:`fastsn.backends.call`); compiled graphs
see one node. Backward is an op of its own with the same choice of backend, and is differentiable again.

Layout of the arguments, for ``k`` weights with one view (unfolding) each, or two for BSN:

* ``us``, ``vs``: one entry per view, in order: ``[rows]`` and ``[cols]`` of the unfolding;
* ``dims``, ``kinds``: ``k`` integers, kinds as in :mod:`fastsn.plan`;
* ``scales``: ``k`` floats, used where ``scale_tensor`` (``[k]``) is None;
* results: ``weights_sn`` like the weights (in ``out_dtype``), ``sigmas`` ``[k]``, ``vectors`` (per
  view u, then v, flat), ``view_stats`` ``[views, 2]`` with each view's sigma and the factor alpha
  of its part in d sigma.

Schemas carry no defaults: torch.library drops defaulted arguments in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastsn.backends import call as kernels
from fastsn.backends.reference import inner, reciprocal, sigma_gradient
from fastsn.functorch import transformable
from fastsn.plan import group_views, split_vectors

__all__ = ["spectral_normalize", "spectral_normalize_", "spectral_normalize_backward"]

library: Any = torch.library.Library("fastsn", "DEF")
library.define(
    "spectral_normalize(Tensor[] weights, Tensor[] us, Tensor[] vs, int[] dims, int[] kinds, "
    "float[] scales, Tensor? scale_tensor, int n_power_iterations, float eps, "
    "ScalarType? out_dtype, str backend) "
    "-> (Tensor[] weights_sn, Tensor sigmas, Tensor vectors, Tensor view_stats)"
)
library.define(
    "spectral_normalize_backward(Tensor[] grads, Tensor? grad_sigmas, Tensor[] weights_sn, "
    "Tensor sigmas, Tensor vectors, Tensor view_stats, int[] dims, int[] kinds, float[] scales, "
    "Tensor? scale_tensor, ScalarType grad_dtype, str backend) "
    "-> (Tensor[] grad_weights, Tensor grad_scales)"
)


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    weights, us, _, dims, kinds, scales, scale_tensor, _, _, _, backend = inputs
    weights_sn, sigmas, vectors, view_stats = output
    ctx.mark_non_differentiable(vectors, view_stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(sigmas, vectors, view_stats, scale_tensor, *weights_sn)
    ctx.plan = list(dims), list(kinds), list(scales), weights[0].dtype, backend
    ctx.needs = [weight.requires_grad for weight in weights]
    ctx.n_views = len(us)


def _forward_gradient(
    ctx: Any, grads: Sequence[Tensor | None], grad_sigmas: Tensor | None, _vectors: Any, _stats: Any
) -> tuple[Any, ...]:
    sigmas, vectors, view_stats, scale_tensor, *weights_sn = ctx.saved_tensors
    dims, kinds, scales, dtype, backend = ctx.plan
    grad_weights, grad_scale = gradients(
        grads,
        grad_sigmas,
        weights_sn,
        sigmas,
        vectors,
        view_stats,
        dims,
        kinds,
        scales,
        scale_tensor,
        dtype,
        backend,
        ctx.needs,
    )
    nothing = [None] * ctx.n_views
    return grad_weights, nothing, nothing, None, None, None, grad_scale, None, None, None, None


def gradients(
    grads: Sequence[Tensor | None],
    grad_sigmas: Tensor | None,
    weights_sn: Sequence[Tensor],
    sigmas: Tensor,
    vectors: Tensor,
    view_stats: Tensor,
    dims: Sequence[int],
    kinds: Sequence[int],
    scales: Sequence[float],
    scale_tensor: Tensor | None,
    dtype: torch.dtype,
    backend: str,
    needs: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of the weights (None where nothing flows) and of ``scale_tensor``, in one op call.

    Weights whose output took no part in the loss are left out of the call: they cost nothing.
    """
    k = len(weights_sn)
    wanted = [
        i
        for i in range(k)
        if (grads[i] is not None or grad_sigmas is not None)
        and (needs[i] or scale_tensor is not None)
    ]
    grad_weights: list[Tensor | None] = [None] * k
    if not wanted:
        return grad_weights, None
    if len(wanted) < k:
        # Narrowing is by slices, so that no index is sent to the device.
        problems = group_views(weights_sn, dims, kinds)
        flat = split_vectors(vectors, [view for views in problems for view in views])
        firsts = [sum(len(views) for views in problems[:i]) for i in range(k)]
        own = [j for i in wanted for j in range(firsts[i], firsts[i] + len(problems[i]))]
        vectors = torch.cat([part for j in own for part in flat[j]])
        view_stats = torch.stack([view_stats[j] for j in own])
    results, grad_scales = spectral_normalize_backward(
        [torch.zeros_like(weights_sn[i]) if grads[i] is None else grads[i] for i in wanted],
        _select(grad_sigmas, wanted, k),
        [weights_sn[i] for i in wanted],
        _select(sigmas, wanted, k),
        vectors,
        view_stats,
        [dims[i] for i in wanted],
        [kinds[i] for i in wanted],
        [scales[i] for i in wanted],
        _select(scale_tensor, wanted, k),
        dtype,
        backend,
    )
    for i, result in zip(wanted, results, strict=True):
        grad_weights[i] = result if needs[i] else None
    if scale_tensor is None:
        return grad_weights, None
    if len(wanted) < k:
        parts = dict(zip(wanted, grad_scales.unbind(), strict=True))
        zero = torch.zeros_like(sigmas[0])
        grad_scales = torch.stack([parts.get(i, zero) for i in range(k)])
    return grad_weights, grad_scales.to(scale_tensor.dtype)


def _select(values: Tensor | None, wanted: Sequence[int], k: int) -> Tensor | None:
    if values is None or len(wanted) == k:
        return values
    return torch.stack([values[i] for i in wanted])


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    (
        grads,
        grad_sigmas,
        weights_sn,
        sigmas,
        vectors,
        view_stats,
        dims,
        kinds,
        scales,
        scale_tensor,
        *_,
    ) = inputs
    ctx.save_for_backward(
        grad_sigmas, sigmas, vectors, view_stats, scale_tensor, *grads, *weights_sn
    )
    ctx.plan = list(dims), list(kinds), list(scales)
    ctx.set_materialize_grads(False)


def _backward_gradient(
    ctx: Any, pulls: Sequence[Tensor | None], grad_scales: Tensor | None
) -> tuple[Any, ...]:
    """Double backward, in differentiable torch: derivatives of the two formulas of Eq. 12.

    With p the gradient with respect to dL/dW and q that of dL/dscale, per weight the function
    ``(scale <p, G> - (c - g sigma) <p, S>) / sigma + q c / scale`` is differentiated.
    """
    grad_sigmas, sigmas, vectors, view_stats, scale_tensor, *rest = ctx.saved_tensors
    dims, kinds, scales = ctx.plan
    k = len(dims)
    grads, weights_sn = rest[:k], rest[k:]
    problems = group_views(weights_sn, dims, kinds)
    pairs = split_vectors(vectors, [view for views in problems for view in views])
    out_grads: list[Tensor] = []
    out_weights: list[Tensor] = []
    out_g, out_sigmas, out_scales = [], [], []
    first = 0
    for i in range(k):
        own = range(first, first + len(problems[i]))
        first += len(own)
        wide_grad, wide_sn = grads[i].to(vectors.dtype), weights_sn[i].to(vectors.dtype)
        scale = (
            torch.full_like(sigmas[i], scales[i])
            if scale_tensor is None
            else scale_tensor[i].to(sigmas.dtype)
        )
        inverse, inverse_scale = reciprocal(sigmas[i]), reciprocal(scale)
        c = inner(wide_grad, wide_sn)
        q = torch.zeros_like(sigmas[i]) if grad_scales is None else grad_scales[i]
        to_grad, to_sn = q * inverse_scale * wide_sn, q * inverse_scale * wide_grad
        p_s = p_g = torch.zeros_like(sigmas[i])
        pull = pulls[i]
        if pull is not None:
            p = pull.to(vectors.dtype)
            direction = sigma_gradient(
                weights_sn[i].shape,
                problems[i],
                [pairs[j] for j in own],
                [view_stats[j, 1] for j in own],
            )
            p_g, p_s = inner(p, wide_grad), inner(p, direction)
            to_grad = to_grad + inverse * (scale * p - p_s * wide_sn)
            to_sn = to_sn - inverse * p_s * wide_grad
        out_grads.append(to_grad.to(grads[i].dtype))
        out_weights.append(to_sn.to(weights_sn[i].dtype))
        out_g.append(p_s)
        out_sigmas.append(-(scale * p_g - c * p_s) * inverse * inverse)
        out_scales.append(inverse * p_g - q * c * inverse_scale * inverse_scale)
    return (
        out_grads,
        None if grad_sigmas is None else torch.stack(out_g),
        out_weights,
        torch.stack(out_sigmas),
        None, None, None, None, None,
        None if scale_tensor is None else torch.stack(out_scales).to(scale_tensor.dtype),
        None, None,
    )  # fmt: skip


_PLAIN = (Tensor, torch.nn.Parameter)


def _define(name: str, kernel: Any, fake: Any, context: Any, gradient: Any) -> Any:
    """Registers one op; returns the function that calls it."""
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastsn::{name}", fake, lib=library)
    torch.library.register_autograd(f"fastsn::{name}", gradient, setup_context=context, lib=library)
    op = getattr(torch.ops.fastsn, name)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        if torch._C._are_functorch_transforms_active():
            return transformed(*args)
        return kernel(*args) if _unwatched(args[0]) else op(*args)

    transformed = transformable(call, context, gradient)
    return call


def _unwatched(tensors: Sequence[Tensor]) -> bool:
    """With no autograd and no mode or subclass the way through the dispatcher has no purpose."""
    if torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() != 0:
        return False
    return all(type(tensor) in _PLAIN for tensor in tensors)


spectral_normalize = _define(
    "spectral_normalize",
    kernels.forward,
    kernels.fake_forward,
    _forward_context,
    _forward_gradient,
)
spectral_normalize_backward = _define(
    "spectral_normalize_backward",
    kernels.backward,
    kernels.fake_backward,
    _backward_context,
    _backward_gradient,
)

_forward_in_place = partial(kernels.forward, store=True)


def spectral_normalize_(*args: Any) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """:func:`spectral_normalize`, and the new vectors replace ``us`` and ``vs``, in place."""
    plain = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    if plain and _unwatched(args[0]):
        return _forward_in_place(*args)
    results = spectral_normalize(*args)
    with torch.no_grad():
        kernels.store_vectors(results[2], args[1], args[2])
    return results
