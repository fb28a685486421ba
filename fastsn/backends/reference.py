r"""Reference backend: the specification of what every backend computes, in plain PyTorch.

Any floating or complex dtype, any device, any strides; no host synchronization.

**Forward.** For the unfolding ``M = unfold_d(W)`` with stored vectors ``u``, ``v``, one power
iteration is

    s = M v,   u = n(s),   t = M^H u,   v = n(t),   n(x) = x / max(||x||, eps)

and then ``sigma_d = u^H M v = ||t||``, the norm that was just computed, divided by ``||u||`` so
that it does not depend on the length of ``u`` (``n`` leaves a vector shorter than ``eps`` short).
With no iteration (evaluation) ``sigma_d = Re(u^H M v) / (||u|| ||v||)``. SN uses one unfolding, BSN
the mean of two (paper, section 5.1): ``sigma = sum_d a_d sigma_d``, and ``W_sn = scale W / sigma``.

**Backward** (Miyato et al. 2018, Eq. 12; ``u``, ``v`` constants). ``sigma`` is then linear in
``W``:

    d sigma = Re<S, dW>
    S       = sum_d alpha_d fold_d(u_d v_d^H)
    alpha_d = a_d / (||u_d|| ||v_d||)

With ``G = dL/dW_sn`` and ``g = dL/dsigma``, ``dW_sn = scale dW / sigma - W_sn dsigma / sigma``
gives

    dL/dW     = (scale G - (c - g sigma) S) / sigma,        c = Re<G, W_sn>
    dL/dscale = c / scale

so backward needs ``W_sn``, the vectors and ``sigma``, never ``W`` itself: a weight may change in
between.

**Soft norms.** With a bound ``b`` a weight is divided by ``t = max(1, sigma / b)`` instead of
``sigma`` (Gouk et al. 2018; SNGP, residual flows): one below its bound stays as it is. Then

    W_sn     = scale W / t
    dL/dW    = (scale / t) G - ([sigma / b >= 1] c / sigma - g) S
    dL/dscale = c / scale

the boundary being that of ``torch.clamp``.

**Gradient through the iteration.** The paper's authors differentiate sigma through the last
iteration as well; only ``v0``, what ``v`` was before it, is a constant. With ``s = M v0`` that
adds to ``S``, for each unfolding, ``a_d fold_d(p v0^H)`` with ``p = (M v - sigma_d u) / ||s||``.
``M`` is had from ``W_sn``. For derivatives of higher order ``u`` and ``v`` are functions of ``M``,
too. Where nothing was iterated ``v0`` is 0, and has no part.

**Degenerate cases.** Where a norm in the iteration is zero or not finite, the weight's vectors stay
as they were. ``sigma = 0`` gives ``W_sn = 0`` and zero gradients; a soft norm has no such case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsn.plan import SN_V_FIRST, Plan, View, accumulate_dtype

__all__ = [
    "backward",
    "differentiable",
    "forward",
    "gradients",
    "tangents",
    "unsupported_reasons",
]


def unsupported_reasons(
    device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype | None
) -> list[str]:
    """Why this backend cannot serve such weights: never, for floating and complex dtypes."""
    if dtype.is_floating_point or dtype.is_complex:
        return []
    return [f"expected a floating or complex dtype, got {dtype}"]


def unfold(weight: Tensor, dim: int) -> Tensor:
    """Mode-``dim`` unfolding: ``weight.shape[dim]`` rows, the other dimensions in order."""
    return weight.movedim(dim, 0).flatten(1)


def fold(matrix: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Inverse of :func:`unfold` for a weight of ``shape``."""
    rest = [size for d, size in enumerate(shape) if d != dim]
    return matrix.reshape([shape[dim], *rest]).movedim(0, dim)


def forward(
    plan: Plan,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale_tensor: Tensor | None,
    n_power_iterations: int,
    out_dtype: torch.dtype | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Normalizes ``weights``; see :mod:`fastsn.op` for the arguments and results."""
    weights_sn, sigmas, vectors, stats = [], [], [], []
    accumulate = accumulate_dtype(weights[0].dtype)
    for i, weight in enumerate(weights):
        wide = weight.to(accumulate)
        pairs, view_sigmas, befores = _advance(plan, i, wide, us, vs, n_power_iterations)
        sigma = torch.zeros((), dtype=accumulate, device=weight.device).abs()
        for view, (u, v), view_sigma, before in zip(
            plan.views[i], pairs, view_sigmas, befores, strict=True
        ):
            vectors += [u, v, before] if plan.through[i] else [u, v]
            stats.append(torch.stack([view_sigma, _alpha(u, v, view.coefficient)]))
            sigma = sigma + view.coefficient * view_sigma
        result = _scaled(wide, sigma, _scale(plan, scale_tensor, i, sigma), plan.bounds[i])
        weights_sn.append(torch.empty_like(weight, dtype=out_dtype).copy_(result))
        sigmas.append(sigma)
    return weights_sn, torch.stack(sigmas), torch.cat(vectors), torch.stack(stats)


def differentiable(
    plan: Plan,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale_tensor: Tensor | None,
    n_power_iterations: int,
    out_dtype: torch.dtype | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """:func:`forward` with derivatives of any order and mode, by ``Re<S, W>`` as sigma.

    torch's own rules then give Eq. 12, batched and forward-mode derivatives included.
    """
    weights_sn, sigmas, stats = [], [], []
    vectors: list[Tensor] = []
    accumulate = accumulate_dtype(weights[0].dtype)
    for i, weight in enumerate(weights):
        wide = weight.to(accumulate)
        with torch.no_grad():
            pairs, view_sigmas, befores = _advance(
                plan, i, wide.detach(), us, vs, n_power_iterations
            )
            alphas = [
                _alpha(u, v, view.coefficient)
                for view, (u, v) in zip(plan.views[i], pairs, strict=True)
            ]
            direction = sigma_gradient(plan.shapes[i], plan.views[i], pairs, alphas)
        for pair, before in zip(pairs, befores, strict=True):
            vectors += [*pair, before] if plan.through[i] else pair
        stats += [torch.stack(both) for both in zip(view_sigmas, alphas, strict=True)]
        sigma = inner(direction, wide)
        if plan.through[i] and n_power_iterations:
            sigma = _iterated_sigma(plan, i, wide, befores, sigma)
        result = _scaled(wide, sigma, _scale(plan, scale_tensor, i, sigma), plan.bounds[i])
        weights_sn.append(result.to(out_dtype or weight.dtype))
        sigmas.append(sigma)
    return weights_sn, torch.stack(sigmas), torch.cat(vectors), torch.stack(stats)


def _advance(
    plan: Plan, i: int, wide: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor], n: int
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], list[Tensor]]:
    """New vectors of each unfolding of weight ``i``, or the old ones if a norm is bad; its sigma;
    and what v was before the last iteration, 0 where there was none."""
    indices = range(plan.firsts[i], plan.firsts[i + 1])
    given = [(us[j].to(wide.dtype), vs[j].to(wide.dtype)) for j in indices]
    steps = [
        _iterate(unfold(wide, view.dim), *pair, plan.kinds[i], n, plan.eps)
        for view, pair in zip(plan.views[i], given, strict=True)
    ]
    good = torch.stack([step[3] for step in steps]).all()
    pairs = [
        (torch.where(good, u, pair[0]), torch.where(good, v, pair[1]))
        for (u, v, *_), pair in zip(steps, given, strict=True)
    ]
    befores = [torch.where(good, step[4], 0) for step in steps]
    return pairs, [step[2] for step in steps], befores


def _iterated_sigma(
    plan: Plan, i: int, wide: Tensor, befores: Sequence[Tensor], otherwise: Tensor
) -> Tensor:
    """Sigma as a function of the weight through the last iteration, with derivatives of any kind.

    Args:
        otherwise: sigma of a weight whose iteration has failed.
    """
    total = torch.zeros_like(otherwise)
    for view, before in zip(plan.views[i], befores, strict=True):
        matrix = unfold(wide, view.dim)
        s = torch.mv(matrix, before)
        t = torch.mv(matrix.mH, s * reciprocal(norm(s)))
        total = total + view.coefficient * norm(t)
    return torch.where(total == 0, otherwise, total)


def _scale(plan: Plan, scale_tensor: Tensor | None, i: int, like: Tensor) -> Any:
    return plan.scales[i] if scale_tensor is None else scale_tensor[i].to(like.dtype)


def _scaled(wide: Tensor, sigma: Tensor, scale: Any, bound: float) -> Tensor:
    """``scale W / sigma``; 0 for sigma 0, but not for non-finite elements, which stay visible."""
    if bound:
        return wide * scale / (sigma / bound).clamp_min(1)
    zero = sigma == 0
    factor = torch.where(zero, torch.zeros_like(sigma), scale)
    return wide * factor / torch.where(zero, torch.ones_like(sigma), sigma)


def _iterate(
    matrix: Tensor, u: Tensor, v: Tensor, kind: int, n_power_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Power iteration of one unfolding: ``(u, v, sigma, every norm was finite and positive, v
    before the last iteration)``."""
    if kind == SN_V_FIRST:
        v, u, sigma, good, _ = _iterate(matrix.mH, v, u, 0, n_power_iterations, eps)
        return u, v, sigma, good, torch.zeros_like(v)
    good = torch.ones((), dtype=torch.bool, device=matrix.device)
    if n_power_iterations == 0:
        lengths = norm(u) * norm(v)
        product = torch.vdot(u, torch.mv(matrix, v))
        product = product.real if product.is_complex() else product
        empty = lengths == 0
        sigma = torch.where(empty, lengths, product / torch.where(empty, 1, lengths))
        return u, v, sigma, good, torch.zeros_like(v)
    t_norm = u_norm = norm(u)
    for _ in range(n_power_iterations):
        before = v
        s = torch.mv(matrix, v)
        s_norm = norm(s)
        u = s / s_norm.clamp_min(eps)
        t = torch.mv(matrix.mH, u)
        t_norm = norm(t)
        v = t / t_norm.clamp_min(eps)
        u_norm = s_norm / s_norm.clamp_min(eps)
        good = good & _usable(s_norm) & _usable(t_norm)
    empty = u_norm == 0
    sigma = torch.where(empty, t_norm, t_norm / torch.where(empty, 1, u_norm))
    return u, v, sigma, good, before


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
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the weights and scales; see :mod:`fastsn.op` for the arguments and results."""
    results, grad_scales = gradients(
        plan, grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, scale_tensor
    )
    return [
        torch.empty_like(weight_sn, dtype=grad_dtype).copy_(result)
        for weight_sn, result in zip(weights_sn, results, strict=True)
    ], grad_scales


def gradients(
    plan: Plan,
    grads: Sequence[Tensor],
    grad_sigmas: Tensor | None,
    weights_sn: Sequence[Tensor],
    sigmas: Tensor,
    vectors: Tensor,
    view_stats: Tensor,
    scale_tensor: Tensor | None,
) -> tuple[list[Tensor], Tensor]:
    """:func:`backward` in ``vectors``' dtype, out of place: it is differentiable itself."""
    grad_weights, grad_scales = [], []
    kept = plan.split_all(vectors)
    for i, (grad, weight_sn) in enumerate(zip(grads, weights_sn, strict=True)):
        indices = range(plan.firsts[i], plan.firsts[i + 1])
        wide, sigma = grad.to(vectors.dtype), sigmas[i]
        scale = _scale(plan, scale_tensor, i, sigma)
        direction = _direction(
            plan, i, [kept[j] for j in indices], [view_stats[j, 1] for j in indices],
            weight_sn.to(vectors.dtype), sigma, scale,
        )  # fmt: skip
        product = inner(wide, weight_sn.to(vectors.dtype))
        if bound := plan.bounds[i]:
            ratio = sigma / bound
            pull = product * _where_binding(ratio, sigma)
            pull = pull if grad_sigmas is None else pull - grad_sigmas[i]
            grad_weights.append(scale * wide / ratio.clamp_min(1) - pull * direction)
        else:
            pull = product if grad_sigmas is None else product - grad_sigmas[i] * sigma
            grad_weights.append((scale * wide - pull * direction) * reciprocal(sigma))
        inverse = reciprocal(scale) if isinstance(scale, Tensor) else 1 / scale if scale else 0.0
        grad_scales.append(product * inverse)
    return grad_weights, torch.stack(grad_scales).to(sigmas.dtype)


def tangents(
    plan: Plan,
    dots: Sequence[Tensor | None],
    scale_dots: Tensor | None,
    weights_sn: Sequence[Tensor],
    sigmas: Tensor,
    vectors: Tensor,
    view_stats: Tensor,
    scale_tensor: Tensor | None,
) -> tuple[Tensor, ...]:
    """Forward-mode derivatives: those of the normalized weights, and of all sigmas.

    ``dsigma = Re<S, dW>`` and ``dW_sn = (scale dW - W_sn dsigma) / sigma + W_sn dscale / scale``;
    of soft norms ``dW_sn = scale dW / t - [binds] W_sn dsigma / sigma + W_sn dscale / scale``.
    """
    results, sigma_dots = [], []
    kept = plan.split_all(vectors)
    for i, (dot, weight_sn) in enumerate(zip(dots, weights_sn, strict=True)):
        indices = range(plan.firsts[i], plan.firsts[i + 1])
        sigma, wide = sigmas[i], weight_sn.to(vectors.dtype)
        scale = _scale(plan, scale_tensor, i, sigma)
        result, sigma_dot = torch.zeros_like(wide), torch.zeros_like(sigma)
        if dot is not None:
            direction = _direction(
                plan,
                i,
                [kept[j] for j in indices],
                [view_stats[j, 1] for j in indices],
                wide,
                sigma,
                scale,
            )
            sigma_dot = inner(direction, dot.to(vectors.dtype))
            if bound := plan.bounds[i]:
                ratio = sigma / bound
                result = scale * dot.to(vectors.dtype) / ratio.clamp_min(1)
                result = result - wide * (sigma_dot * _where_binding(ratio, sigma))
            else:
                result = (scale * dot.to(vectors.dtype) - wide * sigma_dot) * reciprocal(sigma)
        if scale_dots is not None:
            result = result + wide * (scale_dots[i] * reciprocal(scale))
        results.append(result.to(weight_sn.dtype))
        sigma_dots.append(sigma_dot)
    return *results, torch.stack(sigma_dots)


def _direction(
    plan: Plan,
    i: int,
    kept: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    alphas: Sequence[Tensor],
    weight_sn: Tensor,
    sigma: Tensor,
    scale: Any,
) -> Tensor:
    """``S`` of weight ``i``; with the part of ``v0`` where sigma is differentiated through it."""
    pairs = [(u, v) for u, v, _ in kept]
    if not plan.through[i]:
        return sigma_gradient(plan.shapes[i], plan.views[i], pairs, alphas)
    bound = plan.bounds[i]
    divisor = (sigma / bound).clamp_min(1) if bound else sigma
    wide = weight_sn * (divisor / scale)
    parts = []
    for view, (u, v, before), alpha in zip(plan.views[i], kept, alphas, strict=True):
        assert before is not None
        matrix = unfold(wide, view.dim)
        s = torch.mv(matrix, before)
        s_inverse = reciprocal(norm(s))
        if torch.is_grad_enabled():  # to be differentiated again
            iterated = before.abs().sum() != 0
            u = torch.where(iterated, s * s_inverse, u)
            t = torch.mv(matrix.mH, u)
            v = torch.where(iterated, t * reciprocal(norm(t)), v)
        image = torch.mv(matrix, v)
        p = (image - inner(u, image) * u) * (s_inverse * view.coefficient)
        both = torch.outer(alpha * u, v.conj()) + torch.outer(p, before.conj())
        parts.append(fold(both, plan.shapes[i], view.dim))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def sigma_gradient(
    shape: Sequence[int],
    views: Sequence[View],
    pairs: Sequence[tuple[Tensor, Tensor]],
    alphas: Sequence[Tensor],
) -> Tensor:
    """``S``, the gradient of sigma with respect to a weight of ``shape``."""
    parts = [
        fold(torch.outer(alpha * u, v.conj()), shape, view.dim)
        for view, (u, v), alpha in zip(views, pairs, alphas, strict=True)
    ]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _where_binding(ratio: Tensor, sigma: Tensor) -> Tensor:
    """``1 / sigma`` where a bound binds, as ``torch.clamp`` has it, else 0."""
    binds = ~(ratio < 1)  # a sigma that is not a number binds: it shows in the gradients, too
    return torch.where(binds, 1 / torch.where(binds, sigma, 1), 0)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product ``Re<a, b>``, a 0-d tensor."""
    product = (a.conj() * b).sum()
    return product.real if product.is_complex() else product


def reciprocal(x: Tensor) -> Tensor:
    """``1 / x``, and 0 for 0."""
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), 1 / torch.where(zero, torch.ones_like(x), x))


def norm(x: Tensor) -> Tensor:
    """Euclidean norm; in float64, as squares leave float32's range long before sigma does."""
    double = torch.complex128 if x.is_complex() else torch.float64
    wide = None if x.device.type == "mps" else double  # mps has no float64
    return torch.linalg.vector_norm(x, dtype=wide).to(x.dtype.to_real())


def _usable(x: Tensor) -> Tensor:
    return torch.isfinite(x) & (x > 0)


def _alpha(u: Tensor, v: Tensor, coefficient: float) -> Tensor:
    return coefficient * reciprocal(norm(u) * norm(v))
