"""The autograd node of a call whose numbers are there already.

Numbers are computed without autograd and then given a node. That is the op's own formula without
torch.library's flattening of arguments, which costs more than small kernels; and several forwards,
or several regions of one forward, can have a node each on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastsn.backends import reference, requested_backend
from fastsn.op import Numbers, gradients
from fastsn.plan import Plan

__all__ = ["Use", "attach"]


class Use:
    """What became of a node: whether a backward went through, and whether several readers share it.

    torch gives each read of a weight a node of its own, so that two backward calls never meet in
    one. A shared node must therefore outlive its first backward.
    """

    __slots__ = ("consumed", "shared")

    def __init__(self) -> None:
        self.consumed = False
        self.shared = False


def attach(
    plan: Plan,
    numbers: Numbers,
    scale_tensor: Tensor | None,
    weights: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[list[Tensor], Tensor, Use | None]:
    """The normalized weights and sigmas, with a node of their own if derivatives are wanted.

    Args:
        keep: the numbers may get another node later; without it this node takes them.
    """
    if forward_ad._current_level < 0:
        if not torch.is_grad_enabled():
            return *_bare(numbers), None
        if not (
            any(weight.requires_grad for weight in weights)
            or (scale_tensor is not None and scale_tensor.requires_grad)
        ):
            return *_bare(numbers), None
    use = Use()
    results = _apply(plan, numbers, use, keep, scale_tensor, *weights)
    return list(results[:-1]), results[-1], use


def _bare(numbers: Numbers) -> tuple[list[Tensor], Tensor]:
    """Without a node that they may have been given before."""
    weights_sn = numbers.weights_sn
    if weights_sn[0].requires_grad:
        weights_sn = [weight_sn.detach() for weight_sn in weights_sn]
    return weights_sn, numbers.sigmas.detach()


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        numbers: Numbers,
        use: Use,
        keep: bool,
        scale_tensor: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        # sigmas are an output, although nobody reads it, so that double backward can flow through
        # them.
        outputs = [*numbers.weights_sn, numbers.sigmas]
        if keep:
            outputs = [output.detach() for output in outputs]
        ctx.save_for_backward(scale_tensor, *outputs)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(scale_tensor, *outputs)
        # All but the outputs, which would keep their own node alive for ever.
        ctx.fixed = plan, numbers.vectors, numbers.view_stats, requested_backend()
        ctx.use, ctx.kept, ctx.dtype = use, None, weights[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved: Any = _saved(ctx, grads)
        scale_tensor, *weights_sn, sigmas = saved
        plan, vectors, view_stats, backend = ctx.fixed
        grad_weights, grad_scale = gradients(
            plan, grads[:-1], grads[-1], Numbers(weights_sn, sigmas, vectors, view_stats),
            scale_tensor, ctx.dtype, backend, ctx.needs_input_grad[5:],
        )  # fmt: skip
        return None, None, None, None, grad_scale, *grad_weights

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        plan, vectors, view_stats, _ = ctx.fixed
        scale_tensor, *weights_sn, _ = ctx.saved_tensors
        return reference.tangents(
            plan, tangents[5:], tangents[4], weights_sn, ctx.saved_tensors[-1], vectors,
            view_stats, scale_tensor,
        )  # fmt: skip


# Function.apply without its look for dead wrappers of functorch, which takes longer than the node;
# where functorch is at work, no node is made here.
_apply: Any = super(torch.autograd.Function, _Node).apply


def _saved(ctx: Any, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """What backward needs: as autograd saved it, or as an earlier backward left it for this one."""
    ctx.use.consumed = True
    if ctx.kept is not None:
        tensors, versions = ctx.kept
        if [tensor._version for tensor in tensors if tensor is not None] != versions:
            raise RuntimeError(
                "fastsn: expected normalized weights as the forward left them, got one that an "
                "in-place operation has modified since: its gradient cannot be computed"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fastsn: expected the first backward through these normalized weights to keep the "
                "graph, got one that freed what create_graph=True needs now: call it with "
                "retain_graph=True"
            )
        return tensors
    saved: Sequence[Tensor | None] = ctx.saved_tensors
    if (ctx.use.shared or any(grad is None for grad in grads[:-1])) and not _graph_is_kept():
        # Another backward may come for the other readers, as it could if each had its own node.
        tensors = [None if tensor is None else tensor.detach() for tensor in saved]
        ctx.kept = tensors, [tensor._version for tensor in tensors if tensor is not None]
    return saved


def _graph_is_kept() -> bool:
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is not None and kept()
