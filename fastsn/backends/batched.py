"""Batched backend: plain PyTorch for every device that no kernel of ours is trusted on.

It computes what :mod:`fastsn.backends.reference` specifies, with fewer launches and fewer passes
over memory: each weight is read by two products per iteration and one division, and what concerns
vectors and single numbers is done for all weights at once. With one iteration that is ``33 + 3 k``
launches forward for ``k`` weights and ``8 + 3 k`` backward, where torch's parametrizations take
``13 k`` and ``9 k``: fewer from three weights on. A small weight alone takes 30 and 10, for what
torch leaves out: vectors stay where a norm is bad, and backward gets its numbers.

No host synchronization, no index sent to the device, the same bits in every call, and for a weight
the same bits whatever weights come with it. Products are ``mv``, not ``bmm`` of a stack: the stack
would be two more passes over the weights, and where TF32 is allowed ``bmm`` rounds its factors to
ten bits.

Single numbers (norms, lengths) are float64 where the device has it: squares leave float32's range
long before sigma does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from fastsn.backends.reference import unfold
from fastsn.plan import SN_V_FIRST, Plan, accumulate_dtype

__all__ = ["backward", "forward", "unsupported_reasons"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TINY = 1e-38  # below every length that is not zero


def unsupported_reasons(
    device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype | None
) -> list[str]:
    """Why this backend cannot serve such weights; an empty list where it can."""
    reasons = []
    if dtype not in _DTYPES:
        reasons.append(f"expected float32, float64, bfloat16 or float16 weights, got {dtype}")
    if out_dtype is not None and out_dtype not in _DTYPES:
        reasons.append(f"expected a result in one of these dtypes too, got {out_dtype}")
    return reasons


@torch.no_grad()
def forward(
    plan: Plan,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale_tensor: Tensor | None,
    n_power_iterations: int,
    out_dtype: torch.dtype | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """See :func:`fastsn.backends.reference.forward`."""
    accumulate = accumulate_dtype(weights[0].dtype)
    wide = [weight.to(accumulate) for weight in weights]
    matrices = _matrices(plan, wide)
    old = torch.cat([x.to(accumulate) for pair in zip(us, vs, strict=True) for x in pair])
    stats = old.new_empty([len(matrices), 2])
    given = [(u.to(accumulate), v.to(accumulate)) for u, v in zip(us, vs, strict=True)]
    if n_power_iterations == 0:
        vectors = old
        products = old.new_empty(len(matrices))
        for matrix, (u, v), place in zip(matrices, given, products.unbind(), strict=True):
            torch.dot(u, torch.mv(matrix, v), out=place)
        inverse = _inverse_lengths(plan, vectors)
        torch.mul(products, inverse, out=stats[:, 0])
    else:
        new, good, lengths, last = _iterate(plan, matrices, given, n_power_iterations)
        sizes = [sum(view.rows + view.cols for view in views) for views in plan.views]
        vectors = torch.where(_spread(good, sizes), torch.cat(new), old)
        # a vector of length zero has a product of norm zero: 0 / tiny is the 0 it should be
        torch.div(last, lengths.clamp_min(_TINY), out=stats[:, 0])
        inverse = _inverse_lengths(plan, vectors)
    coefficients = [view.coefficient for view in plan.flat_views]
    stats[:, 1] = _times(inverse, coefficients)
    sigmas = _per_weight(plan, _times(stats[:, 0], coefficients))
    sigmas = sigmas.sum(1) if sigmas.ndim == 2 else sigmas.clone()
    bases = _bases(plan, sigmas)
    divisors = _divide(bases, plan.scales, scale_tensor)
    if not all(plan.bounds):
        divisors = divisors.masked_fill(bases == 0, inf)
    results = [
        torch.div(each, divisor, out=torch.empty_like(weight, dtype=out_dtype))
        for weight, each, divisor in zip(weights, wide, divisors.unbind(), strict=True)
    ]
    return results, sigmas, vectors, stats


def _matrices(plan: Plan, wide: Sequence[Tensor]) -> list[Tensor]:
    return [
        unfold(weight, view.dim)
        for weight, views in zip(wide, plan.views, strict=True)
        for view in views
    ]


def _iterate(
    plan: Plan, matrices: list[Tensor], given: list[tuple[Tensor, Tensor]], n_power_iterations: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The vectors in order, and per weight whether they are good; last lengths and norms.

    Every vector has memory of its own: where products begin in memory can change their last bits.
    """
    # u is advanced before v, but for the order of torch's hook
    swapped = [
        kind == SN_V_FIRST
        for kind, views in zip(plan.kinds, plan.views, strict=True)
        for _ in views
    ]
    steps = [matrix.mT if swap else matrix for matrix, swap in zip(matrices, swapped, strict=True)]
    backs = [step.mT for step in steps]
    seconds = [pair[not swap] for pair, swap in zip(given, swapped, strict=True)]
    good: Tensor | None = None
    for _ in range(n_power_iterations):
        firsts, first_norms, first_bounds = _advance(steps, seconds, plan.eps)
        seconds, second_norms, second_bounds = _advance(backs, firsts, plan.eps)
        lengths = first_norms / first_bounds
        # zero for a norm of zero, NaN for one that is not finite, and positive for all others
        usable = lengths * (second_norms / second_bounds) > 0
        good = usable if good is None else good & usable
    assert good is not None
    good = _per_weight(plan, good)
    good = good.all(1) if good.ndim == 2 else good
    new = [
        vector
        for first, second, swap in zip(firsts, seconds, swapped, strict=True)
        for vector in ((second, first) if swap else (first, second))
    ]
    return new, good, lengths, second_norms


def _advance(
    matrices: Sequence[Tensor], given: Sequence[Tensor], eps: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """``M x``, each divided by its norm or eps; those norms; and what they were divided by."""
    new = [torch.mv(matrix, vector) for matrix, vector in zip(matrices, given, strict=True)]
    norms = _norms(new)
    bounds = norms.clamp_min(eps)
    if len(new) == 1:
        new[0].div_(bounds[0])  # of no dimensions, so that the quotient is not float64's
    else:  # of one dtype and shape, so that it is one launch
        sizes = [vector.numel() for vector in new]
        divisors = _spread(bounds.to(new[0].dtype), sizes).split(sizes)
        torch._foreach_div_(new, list(divisors))
    return new, norms, bounds


def _norms(parts: Sequence[Tensor]) -> Tensor:
    wide = None if parts[0].device.type == "mps" else torch.float64  # mps has no float64
    if len(parts) == 1:
        return torch.linalg.vector_norm(parts[0], dtype=wide).unsqueeze(0)
    return torch.stack(torch._foreach_norm(list(parts), 2, dtype=wide))


def _inverse_lengths(plan: Plan, vectors: Tensor) -> Tensor:
    """``1 / (||u|| ||v||)`` of every unfolding, 0 where a vector is zero."""
    products = _norms(vectors.split(plan.sizes)).view(-1, 2).prod(1)
    return _reciprocal(products)


def _reciprocal(x: Tensor) -> Tensor:
    """``1 / x``, and 0 for 0."""
    return (1 / x).masked_fill_(x == 0, 0.0)


def _spread(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each value as often as its size says."""
    if len(sizes) == 1:
        return values.expand(sizes[0])
    return torch.cat([x.expand(n) for x, n in zip(values.unbind(), sizes, strict=True)])


def _per_weight(plan: Plan, values: Tensor) -> Tensor:
    """Values of unfoldings: as they are where each weight has one, and else two in each row.

    A weight with one among weights with two has it twice. For a sum it is halved, exactly.
    """
    if len(plan) == len(plan.flat_views):
        return values
    each = values.unbind()
    rows = [
        (each[first], each[end - 1])
        for first, end in zip(plan.firsts[:-1], plan.firsts[1:], strict=True)
    ]
    table = torch.stack([x for row in rows for x in row]).view(-1, 2)
    if values.dtype == torch.bool or 2 * len(plan) == len(plan.flat_views):
        return table
    single = [len(views) == 1 for views in plan.views]
    halves = [0.5 if one else 1.0 for one in single for _ in range(2)]
    return _times(table.view(-1), halves).view(-1, 2)


def _times(values: Tensor, factors: Sequence[float]) -> Tensor:
    """Products with numbers of the host, which travel as arguments of the launch."""
    if all(factor == 1.0 for factor in factors):
        return values
    if all(factor == factors[0] for factor in factors):
        return values * factors[0]
    return torch.stack(torch._foreach_mul(list(values.unbind()), list(factors)))


def _bases(plan: Plan, sigmas: Tensor) -> Tensor:
    """What the weights are divided by but for their scales: sigma, or of soft norms ``t``."""
    if not any(plan.bounds):
        return sigmas
    if all(bound == plan.bounds[0] for bound in plan.bounds):
        return (sigmas / plan.bounds[0]).clamp_min(1)
    return torch.stack(
        [
            (sigma / bound).clamp_min(1) if bound else sigma
            for sigma, bound in zip(sigmas.unbind(), plan.bounds, strict=True)
        ]
    )


def _soft_pulls(plan: Plan, products: Tensor, sigmas: Tensor, grad_sigmas: Tensor | None) -> Tensor:
    """The factors of ``S`` in the gradients, where some of the norms are soft."""
    binding = [
        ~(sigma / bound < 1) if bound else torch.ones_like(sigma, dtype=torch.bool)
        for sigma, bound in zip(sigmas.unbind(), plan.bounds, strict=True)
    ]
    pulls = torch.where(torch.stack(binding), products * _reciprocal(sigmas), 0)
    if grad_sigmas is None:
        return pulls
    # A hard norm of sigma 0 gives no gradients, not even through sigma.
    live = _times(torch.ones_like(sigmas), [1.0 if bound else 0.0 for bound in plan.bounds])
    return pulls - grad_sigmas * torch.where(sigmas == 0, live, 1)


def _divide(values: Tensor, scales: Sequence[float], scale_tensor: Tensor | None) -> Tensor:
    if scale_tensor is not None:
        return values / scale_tensor.to(values.dtype)
    if all(scale == 1.0 for scale in scales):
        return values
    return torch.stack(torch._foreach_div(list(values.unbind()), list(scales)))


@torch.no_grad()
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
    """See :func:`fastsn.backends.reference.backward`."""
    accumulate = vectors.dtype
    wide = [grad.to(accumulate) for grad in grads]
    products = torch.empty_like(sigmas)
    for grad, weight_sn, place in zip(wide, weights_sn, products.unbind(), strict=True):
        _inner(grad, weight_sn.to(accumulate), place)
    bases = _bases(plan, sigmas)
    inverse = _reciprocal(bases)
    if plan.needs:
        pulls = _soft_pulls(plan, products, sigmas, grad_sigmas)
    else:
        pulls = products if grad_sigmas is None else products - grad_sigmas * sigmas
        pulls = pulls * inverse
    if scale_tensor is None:
        factors = _times(inverse, plan.scales)
        grad_scales = _times(products, [1 / scale if scale else 0.0 for scale in plan.scales])
    else:
        scales = scale_tensor.to(sigmas.dtype)
        factors = inverse * scales
        grad_scales = products * _reciprocal(scales)
    counts = [len(views) for views in plan.views]
    per_view = pulls if max(counts) == 1 else _spread(pulls, counts)
    sizes = [view.rows + view.cols for view in plan.flat_views]
    pulled = plan.split(vectors * _spread(per_view * view_stats[:, 1], sizes))
    pairs, results = plan.split(vectors), []
    for i, (grad, weight_sn, factor) in enumerate(
        zip(wide, weights_sn, factors.unbind(), strict=True)
    ):
        result = torch.empty_like(weight_sn, dtype=grad_dtype)
        exact = result if grad_dtype == accumulate else torch.empty_like(result, dtype=accumulate)
        torch.mul(grad, factor, out=exact)
        for j, view in enumerate(plan.views[i], plan.firsts[i]):
            rows = [view.rows if d == view.dim else 1 for d in range(grad.ndim)]
            cols = [1 if d == view.dim else size for d, size in enumerate(plan.shapes[i])]
            exact.addcmul_(pulled[j][0].view(rows), pairs[j][1].view(cols), value=-1)
        results.append(result if exact is result else result.copy_(exact))
    return results, grad_scales


def _inner(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Sum of the products, without a pass for them where both lie in memory alike."""
    if a.is_contiguous() and b.is_contiguous():
        torch.dot(a.view(-1), b.view(-1), out=out)
    else:
        torch.sum(a * b, dim=list(range(a.ndim)), out=out)
