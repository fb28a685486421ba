"""Ops under functorch transforms (``torch.func.grad``, ``vmap``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

__all__ = ["transformable"]


def transformable(
    op: Callable[..., Any], context: Callable[..., None], gradient: Callable[..., Any]
) -> Callable[..., Any]:
    """``op`` for functorch transforms, which refuse torch.library's autograd formulas.

    The same formulas, on flat arguments, as a Function does not look into lists.

    Args:
        op: takes lists and other arguments; returns a list as long as its first argument, and
            tensors.
        context: the op's ``setup_context``.
        gradient: the op's backward formula.
    """

    class Transformable(torch.autograd.Function):
        @staticmethod
        def forward(spec: Any, *flat: Any) -> tuple[Tensor, ...]:
            return tuple(tree_leaves(op(*tree_unflatten(list(flat), spec))))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            spec, *flat = inputs
            args = tree_unflatten(flat, spec)
            ctx.k = len(args[0])
            ctx.lengths = [len(arg) if isinstance(arg, (list, tuple)) else None for arg in args]
            context(ctx, args, (list(output[: ctx.k]), *output[ctx.k :]))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            results = gradient(ctx, list(grads[: ctx.k]), *grads[ctx.k :])
            flat: list[Any] = []
            for result, length in zip(results, ctx.lengths, strict=True):
                if length is None:
                    flat.append(result)
                else:
                    flat.extend([None] * length if result is None else result)
            return None, *flat

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], spec: Any, *flat: Any) -> tuple[Any, Any]:
            # One call per sample. Reached only where weights or their gradients are batched.
            samples = [
                tree_leaves(op(*tree_unflatten(_sample(flat, in_dims[1:], b), spec)))
                for b in range(info.batch_size)
            ]
            return tuple(torch.stack(parts) for parts in zip(*samples, strict=True)), 0

    def call(*args: Any) -> Any:
        leaves, spec = tree_flatten(args)
        outputs = list(Transformable.apply(spec, *leaves))
        k = len(args[0])
        return outputs[:k], *outputs[k:]

    return call


def _sample(flat: Sequence[Any], in_dims: Sequence[int | None], b: int) -> list[Any]:
    return [
        arg if dim is None else arg.select(dim, b) for arg, dim in zip(flat, in_dims, strict=True)
    ]
