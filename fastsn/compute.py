"""One op call for parametrizations and weights, and the autograd node for its results.

Eager forwards compute without autograd and then :func:`attach` a node. That is the op's own formula
without torch.library's flattening of arguments, which costs more than small kernels; and with
``update="step"`` several forwards attach to the results of one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastsn.backends import requested_backend
from fastsn.op import gradients, spectral_normalize, spectral_normalize_

if TYPE_CHECKING:
    from fastsn.parametrization import SpectralNorm

__all__ = ["Computed", "attach", "autocast_dtype", "compute", "stack_scales"]


@dataclass(eq=False)
class Computed:
    """Arguments and results of one op call."""

    weights_sn: list[Tensor]
    sigmas: Tensor
    vectors: Tensor
    view_stats: Tensor
    dims: list[int]
    kinds: list[int]
    scales: list[float]


def compute(
    norms: Sequence[SpectralNorm],
    weights: Sequence[Tensor],
    n_power_iterations: int,
    out_dtype: torch.dtype | None = None,
    pairs: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Computed:
    """One op call; the new vectors go into the buffers (or ``pairs``), in place, if it iterates."""
    if pairs is None:
        pairs = [pair for norm in norms for pair in norm.vectors()]
    us, vs = [u for u, _ in pairs], [v for _, v in pairs]
    dims = [norm.dim for norm in norms]
    kinds = [norm.kind for norm in norms]
    scales, scale_tensor = stack_scales(norms, weights[0].device)
    call = spectral_normalize_ if n_power_iterations else spectral_normalize
    weights_sn, sigmas, vectors, view_stats = call(
        list(weights),
        us,
        vs,
        dims,
        kinds,
        scales,
        scale_tensor,
        n_power_iterations,
        norms[0].eps,
        out_dtype,
        requested_backend(),
    )
    return Computed(weights_sn, sigmas, vectors, view_stats, dims, kinds, scales)


def attach(
    computed: Computed, norms: Sequence[SpectralNorm], weights: Sequence[Tensor], *, again: bool
) -> list[Tensor]:
    """The normalized weights, with a new autograd node of their own if gradients are wanted.

    Args:
        again: ``computed`` may get another node later; without it this node takes it.
    """
    if not torch.is_grad_enabled():
        return computed.weights_sn
    scale_tensor = None
    if any(type(norm.scale) is not float for norm in norms):
        _, scale_tensor = stack_scales(norms, weights[0].device)
    needed = [*weights] if scale_tensor is None else [*weights, scale_tensor]
    if not any(tensor.requires_grad for tensor in needed):
        return computed.weights_sn
    return list(_Node.apply(computed, again, requested_backend(), scale_tensor, *weights)[:-1])


class _Node(torch.autograd.Function):
    """The op's autograd node, with its forward already done: its gradients are the op's."""

    @staticmethod
    def forward(
        ctx: Any,
        computed: Computed,
        again: bool,
        backend: str,
        scale_tensor: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        # sigmas are an output, although nobody reads it, so that double backward can flow through
        # them.
        outputs = [*computed.weights_sn, computed.sigmas]
        if again:
            outputs = [output.detach() for output in outputs]
        ctx.save_for_backward(scale_tensor, *outputs)
        # All but the outputs, which would keep their own node alive for ever.
        ctx.constants = (
            computed.vectors,
            computed.view_stats,
            computed.dims,
            computed.kinds,
            computed.scales,
        )
        ctx.backend, ctx.dtype = backend, weights[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        scale_tensor, *weights_sn, sigmas = ctx.saved_tensors
        vectors, view_stats, dims, kinds, scales = ctx.constants
        grad_weights, grad_scale = gradients(
            grads[:-1],
            grads[-1],
            weights_sn,
            sigmas,
            vectors,
            view_stats,
            dims,
            kinds,
            scales,
            scale_tensor,
            ctx.dtype,
            ctx.backend,
            ctx.needs_input_grad[4:],
        )
        return None, None, None, grad_scale, *grad_weights


def stack_scales(
    norms: Sequence[SpectralNorm], device: torch.device
) -> tuple[list[float], Tensor | None]:
    """Scales as the op takes them: floats, or a ``[k]`` tensor if one of them is a tensor."""
    scales: list[Any] = [norm.scale for norm in norms]
    if all(type(scale) is float for scale in scales):
        return scales, None
    tensors = [
        scale if isinstance(scale, Tensor) else torch.full((), scale, device=device)
        for scale in scales
    ]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [1.0] * len(scales), torch.stack([tensor.to(dtype) for tensor in tensors])


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """Dtype in which autocast wants the normalized weight, or None outside autocast."""
    kind = weight.device.type
    if not weight.is_floating_point() or weight.dtype == torch.float64:
        return None
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
