"""The op: one differentiable call for one weight or a whole network.

``fastsn::spectral_normalize`` is what the dispatcher, ``torch.compile`` and ``torch.export`` see.
It is functional: it returns the new vectors. It chooses the backend in its kernel
(:mod:`fastsn.backends.call`), so that compiled graphs see one node. Backward is an op of its own
with the same choice, and is differentiable again. Python code calls :func:`normalize` and
:func:`gradients`, which take a :class:`~fastsn.plan.Plan` and go through the dispatcher only where
somebody watches it.

Layout of the arguments, for ``k`` weights with one view (unfolding) each, or two for BSN:

* ``us``, ``vs``: one entry per view, in order: ``[rows]`` and ``[cols]`` of the unfolding;
* ``dims``, ``kinds``: ``k`` integers, kinds as in :mod:`fastsn.plan`, plus :data:`THROUGH` where
  sigma is differentiated through the last iteration;
* ``scales``: ``k`` floats, used where ``scale_tensor`` (``[k]``) is None;
* ``bounds``: ``k`` floats, of soft norms, and 0 for hard ones;
* results: ``weights_sn`` like the weights (in ``out_dtype``), ``sigmas`` ``[k]``, ``vectors`` (per
  view u, then v, flat), ``view_stats`` ``[views, 2]`` with each view's sigma and the factor alpha
  of its part in d sigma.

Schemas carry no defaults: torch.library drops defaulted arguments in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastsn.backends import call, reference
from fastsn.plan import Plan, plan_of

__all__ = ["Numbers", "gradients", "library", "normalize", "part_of"]

#: In the op's schema, added to a kind: its sigma is differentiated through the last iteration.
THROUGH = 4

library: Any = torch.library.Library("fastsn", "DEF")
library.define(
    "spectral_normalize(Tensor[] weights, Tensor[] us, Tensor[] vs, int[] dims, int[] kinds, "
    "float[] scales, float[] bounds, Tensor? scale_tensor, int n_power_iterations, float eps, "
    "ScalarType? out_dtype, str backend) "
    "-> (Tensor[] weights_sn, Tensor sigmas, Tensor vectors, Tensor view_stats)"
)
library.define(
    "spectral_normalize_backward(Tensor[] grads, Tensor? grad_sigmas, Tensor[] weights_sn, "
    "Tensor sigmas, Tensor vectors, Tensor view_stats, int[] dims, int[] kinds, float[] scales, "
    "float[] bounds, Tensor? scale_tensor, ScalarType grad_dtype, str backend) "
    "-> (Tensor[] grad_weights, Tensor grad_scales)"
)


class Numbers(NamedTuple):
    """Results of one call; see the module's docstring."""

    weights_sn: list[Tensor]
    sigmas: Tensor
    vectors: Tensor
    view_stats: Tensor


def normalize(
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
) -> Numbers:
    """One call; with ``store`` the new vectors go into ``us`` and ``vs``, in place, as well.

    Under functorch's transforms (``torch.func.grad``, ``vmap``, ``jvp``) and in a trace of
    ``torch.jit`` it is plain torch, with all its derivatives. In compiled code, and where a mode
    watches, it is the op. Elsewhere the results are numbers, to be given a node
    (:mod:`fastsn.node`).
    """
    given = weights, us, vs, scale_tensor
    if torch.compiler.is_compiling():
        results = _traced(plan, *given, n_power_iterations, out_dtype, backend)
    elif torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        results = reference.differentiable(plan, *given, n_power_iterations, out_dtype)
        if store and n_power_iterations:
            _store_transformed(plan, results[2], us, vs)
        return Numbers(*results)
    elif forward_ad._current_level >= 0:
        # Tangents are the node's to give (:mod:`fastsn.node`); vectors have none.
        with forward_ad._set_fwd_grad_enabled(False):
            primal = [weight.detach() for weight in weights]
            scales = None if scale_tensor is None else scale_tensor.detach()
            options = n_power_iterations, out_dtype, backend
            return Numbers(*call.forward(plan, primal, us, vs, scales, *options, store=store))
    elif _unwatched(weights):
        options = n_power_iterations, out_dtype, backend
        return Numbers(*call.forward(plan, *given, *options, store=store))
    else:
        results = _traced(plan, *given, n_power_iterations, out_dtype, backend)
    if store:
        with torch.no_grad():
            call.store_vectors(plan, results[2], us, vs)
    return Numbers(*results)


def _store_transformed(
    plan: Plan, vectors: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]
) -> None:
    with torch.no_grad():
        if not any(map(torch._C._functorch.is_batchedtensor, us)):
            # which functorch lets pass for vectors that the function has captured, unlike copy_
            return call.store_vectors(plan, vectors, us, vs)
        for pair, u, v in zip(plan.split(vectors), us, vs, strict=True):
            u.copy_(pair[0])
            v.copy_(pair[1])


def gradients(
    plan: Plan,
    grads: Sequence[Tensor | None],
    grad_sigmas: Tensor | None,
    numbers: Numbers,
    scale_tensor: Tensor | None,
    dtype: torch.dtype,
    backend: str,
    needs: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of the weights (None where nothing flows) and of ``scale_tensor``, in one call.

    Weights whose output took no part in the loss are left out of the call: they cost nothing.
    Gradients that are batched (``is_grads_batched``) or are to be differentiated again
    (``create_graph``) are computed in plain torch, whose rules know both.
    """
    if not all(needs) or any(grad is None for grad in grads):
        return _some_gradients(
            plan, grads, grad_sigmas, numbers, scale_tensor, dtype, backend, needs
        )
    given = grads, grad_sigmas, *numbers, scale_tensor
    batched = any(map(_is_batched, grads)) or _is_batched(grad_sigmas)
    run: Any = _traced_backward
    results: Any
    if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or batched):
        run = reference.gradients
        results, grad_scales = run(plan, *given)
        results = [result.to(dtype) for result in results]
    else:
        if not torch.compiler.is_compiling() and _unwatched(grads):
            run = call.backward
        results, grad_scales = run(plan, *given, dtype, backend)
    return results, None if scale_tensor is None else grad_scales.to(scale_tensor.dtype)


def _some_gradients(
    plan: Plan,
    grads: Sequence[Tensor | None],
    grad_sigmas: Tensor | None,
    numbers: Numbers,
    scale_tensor: Tensor | None,
    dtype: torch.dtype,
    backend: str,
    needs: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor | None]:
    """:func:`gradients` where not every weight takes part, or needs one."""
    k = len(plan)
    wanted = [
        i
        for i in range(k)
        if (grads[i] is not None or grad_sigmas is not None)
        and (needs[i] or scale_tensor is not None)
    ]
    grad_weights: list[Tensor | None] = [None] * k
    if not wanted:
        return grad_weights, None
    part = numbers if len(wanted) == k else part_of(plan, numbers, wanted)
    given = [grads[i] for i in wanted]
    results, grad_scales = gradients(
        plan if len(wanted) == k else plan.part(wanted),
        [
            torch.zeros_like(weight_sn) if grad is None else grad
            for grad, weight_sn in zip(given, part.weights_sn, strict=True)
        ],
        _select(grad_sigmas, wanted, k),
        part,
        _select(scale_tensor, wanted, k),
        dtype,
        backend,
        [True] * len(wanted),
    )
    for i, result in zip(wanted, results, strict=True):
        grad_weights[i] = result if needs[i] else None
    if grad_scales is not None and len(wanted) < k:
        parts = dict(zip(wanted, grad_scales.unbind(), strict=True))
        zero = torch.zeros_like(grad_scales[0])
        grad_scales = torch.stack([parts.get(i, zero) for i in range(k)])
    return grad_weights, grad_scales


def part_of(plan: Plan, numbers: Numbers, indices: Sequence[int]) -> Numbers:
    """The numbers of some weights. By slices, so that no index is sent to the device."""
    kept, places = plan.split_all(numbers.vectors), plan.views_at(indices)
    return Numbers(
        [numbers.weights_sn[i] for i in indices],
        torch.stack([numbers.sigmas[i] for i in indices]),
        torch.cat([vector for j in places for vector in kept[j] if vector is not None]),
        torch.stack([numbers.view_stats[j] for j in places]),
    )


def _select(values: Tensor | None, wanted: Sequence[int], k: int) -> Tensor | None:
    if values is None or len(wanted) == k:
        return values
    return torch.stack([values[i] for i in wanted])


def _is_batched(tensor: Tensor | None) -> bool:
    """Whether a gradient stands for many: ``is_grads_batched``, or ``vmap`` of a backward."""
    return tensor is not None and (
        torch._C._functorch.is_legacy_batchedtensor(tensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


_PLAIN = {Tensor, torch.nn.Parameter}


def _unwatched(tensors: Sequence[Tensor | None]) -> bool:
    """With no autograd and no mode or subclass the way through the dispatcher has no purpose."""
    if torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() != 0:
        return False
    return set(map(type, tensors)) <= _PLAIN


# The two ops, for the dispatcher


def _traced(
    plan: Plan, weights: Any, us: Any, vs: Any, scale_tensor: Any, n: int, out_dtype: Any,
    backend: str,
) -> Any:  # fmt: skip
    return torch.ops.fastsn.spectral_normalize(
        weights, us, vs, plan.dims, _coded(plan), plan.scales, plan.bounds, scale_tensor, n,
        plan.eps, out_dtype, backend,
    )  # fmt: skip


def _traced_backward(
    plan: Plan, grads: Any, grad_sigmas: Any, weights_sn: Any, sigmas: Any, vectors: Any,
    view_stats: Any, scale_tensor: Any, dtype: torch.dtype, backend: str,
) -> Any:  # fmt: skip
    return torch.ops.fastsn.spectral_normalize_backward(
        grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, plan.dims, _coded(plan),
        plan.scales, plan.bounds, scale_tensor, dtype, backend,
    )  # fmt: skip


def _plan(
    weights: Sequence[Tensor], dims: Any, kinds: Any, scales: Any, bounds: Any, eps: float = 0.0
) -> Plan:
    shapes = tuple(tuple(weight.shape) for weight in weights)
    through = tuple(kind >= THROUGH for kind in kinds)
    kinds = tuple(kind % THROUGH for kind in kinds)
    return plan_of(shapes, tuple(dims), kinds, tuple(scales), eps, tuple(bounds), through)


def _coded(plan: Plan) -> list[int]:
    return [
        kind + THROUGH * through for kind, through in zip(plan.kinds, plan.through, strict=True)
    ]


def _forward_op(kernel: Any) -> Any:
    def run(
        weights: Any, us: Any, vs: Any, dims: Any, kinds: Any, scales: Any, bounds: Any,
        scale_tensor: Any, n: int, eps: float, out_dtype: Any, backend: str,
    ) -> Any:  # fmt: skip
        plan = _plan(weights, dims, kinds, scales, bounds, eps)
        return kernel(plan, weights, us, vs, scale_tensor, n, out_dtype, backend)

    return run


def _backward_op(kernel: Any) -> Any:
    def run(
        grads: Any, grad_sigmas: Any, weights_sn: Any, sigmas: Any, vectors: Any, view_stats: Any,
        dims: Any, kinds: Any, scales: Any, bounds: Any, scale_tensor: Any, dtype: Any,
        backend: str,
    ) -> Any:  # fmt: skip
        plan = _plan(weights_sn, dims, kinds, scales, bounds)
        return kernel(
            plan, grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, scale_tensor, dtype,
            backend,
        )  # fmt: skip

    return run


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    weights, us, _, dims, kinds, scales, bounds, scale_tensor, *_, backend = inputs
    weights_sn, sigmas, vectors, view_stats = output
    ctx.mark_non_differentiable(vectors, view_stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(sigmas, vectors, view_stats, scale_tensor, *weights_sn)
    ctx.plan = _plan(weights, dims, kinds, scales, bounds)
    ctx.options = weights[0].dtype, backend, [weight.requires_grad for weight in weights]
    ctx.n_views = len(us)


def _forward_gradient(
    ctx: Any, grads: Sequence[Tensor | None], grad_sigmas: Tensor | None, _vectors: Any, _stats: Any
) -> tuple[Any, ...]:
    sigmas, vectors, view_stats, scale_tensor, *weights_sn = ctx.saved_tensors
    numbers = Numbers(weights_sn, sigmas, vectors, view_stats)
    grad_weights, grad_scale = gradients(
        ctx.plan, grads, grad_sigmas, numbers, scale_tensor, *ctx.options
    )
    nothing = [None] * ctx.n_views
    rest = None, None, None, None
    return grad_weights, nothing, nothing, None, None, None, None, grad_scale, *rest


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, *plan, scale_tensor, _, _ = inputs
    ctx.save_for_backward(
        grad_sigmas, sigmas, vectors, view_stats, scale_tensor, *grads, *weights_sn
    )
    ctx.plan = _plan(weights_sn, *plan)
    ctx.set_materialize_grads(False)


def _backward_gradient(
    ctx: Any, pulls: Sequence[Tensor | None], grad_scales: Tensor | None
) -> tuple[Any, ...]:
    """Double backward: torch differentiates the reference's own formula."""
    grad_sigmas, sigmas, vectors, view_stats, scale_tensor, *rest = ctx.saved_tensors
    k, again = len(ctx.plan), torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that what one of them owes to another is not counted twice.
        given: list[Any] = [
            tensor if tensor is None else tensor.view_as(tensor) if again and tensor.requires_grad
            else tensor.detach().requires_grad_()
            for tensor in (grad_sigmas, sigmas, scale_tensor, *rest)
        ]  # fmt: skip
        g, sigma, scale, *rest = given
        grads: Any = rest[:k]
        weights_sn: Any = rest[k:]
        results, scales = reference.gradients(
            ctx.plan, grads, g, weights_sn, sigma, vectors, view_stats, scale
        )
        pairs = [
            (output, pull.to(output.dtype))
            for output, pull in zip([*results, scales], [*pulls, grad_scales], strict=True)
            if pull is not None
        ]
        wanted = [tensor for tensor in given if tensor is not None]
        outputs, pulls = zip(*pairs, strict=True)
        found = iter(
            torch.autograd.grad(outputs, wanted, pulls, create_graph=again, allow_unused=True)
        )
    g, sigma, scale, *rest = [None if tensor is None else next(found) for tensor in given]
    return rest[:k], g, rest[k:], sigma, None, None, None, None, None, None, scale, None, None


def _register(name: str, wrap: Any, kernel: Any, fake: Any, context: Any, gradient: Any) -> None:
    library.impl(name, wrap(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastsn::{name}", wrap(fake), lib=library)
    torch.library.register_autograd(f"fastsn::{name}", gradient, setup_context=context, lib=library)


_register(
    "spectral_normalize",
    _forward_op,
    call.forward,
    call.fake_forward,
    _forward_context,
    _forward_gradient,
)
_register(
    "spectral_normalize_backward",
    _backward_op,
    call.backward,
    call.fake_backward,
    _backward_context,
    _backward_gradient,
)
