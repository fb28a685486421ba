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

from fastsn.backend import requested_backend
from fastsn.op import gradients, spectral_normalize

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
    """One op call; the new vectors go into the buffers (or ``pairs``), in place, if it iterated."""
    if pairs is None:
        pairs = [pair for norm in norms for pair in norm.vectors()]
    us, vs = [u for u, _ in pairs], [v for _, v in pairs]
    dims = [norm.dim for norm in norms]
    kinds = [norm.kind for norm in norms]
    scales, scale_tensor = stack_scales(norms, weights[0].device)
    weights_sn, sigmas, vectors, view_stats = spectral_normalize(
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
    if n_power_iterations:
        with torch.no_grad():
            parts = vectors.split([size for norm in norms for size in norm.vector_sizes])
            torch._foreach_copy_(us + vs, [*parts[0::2], *parts[1::2]])
    return Computed(weights_sn, sigmas, vectors, view_stats, dims, kinds, scales)


def attach(
    computed: Computed, norms: Sequence[SpectralNorm], weights: Sequence[Tensor]
) -> list[Tensor]:
    """The normalized weights, with a new autograd node of their own if gradients are wanted."""
    if not torch.is_grad_enabled():
        return computed.weights_sn
    scale_tensor = None
    if any(isinstance(norm.scale, Tensor) for norm in norms):
        _, scale_tensor = stack_scales(norms, weights[0].device)
    needed = [*weights] if scale_tensor is None else [*weights, scale_tensor]
    if not any(tensor.requires_grad for tensor in needed):
        return computed.weights_sn
    return list(_Node.apply(computed, requested_backend(), scale_tensor, *weights)[:-1])


class _Node(torch.autograd.Function):
    """The op's autograd node, with its forward already done: its gradients are the op's."""

    @staticmethod
    def forward(
        ctx: Any, computed: Computed, backend: str, scale_tensor: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = [weight_sn.detach() for weight_sn in computed.weights_sn]
        # sigmas are an output, although nobody reads it, so that double backward can flow through
        # them.
        sigmas = computed.sigmas.detach()
        ctx.save_for_backward(sigmas, scale_tensor, *outputs)
        ctx.computed, ctx.backend, ctx.dtype = computed, backend, weights[0].dtype
        ctx.set_materialize_grads(False)
        return *outputs, sigmas

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        sigmas, scale_tensor, *weights_sn = ctx.saved_tensors
        computed: Computed = ctx.computed
        grad_weights, grad_scale = gradients(
            grads[:-1],
            grads[-1],
            weights_sn,
            sigmas,
            computed.vectors,
            computed.view_stats,
            computed.dims,
            computed.kinds,
            computed.scales,
            scale_tensor,
            ctx.dtype,
            ctx.backend,
            ctx.needs_input_grad[3:],
        )
        return None, None, grad_scale, *grad_weights


def stack_scales(
    norms: Sequence[SpectralNorm], device: torch.device
) -> tuple[list[float], Tensor | None]:
    """Scales as the op takes them: floats, or a ``[k]`` tensor if one of them is a tensor."""
    scales = [norm.scale for norm in norms]
    numbers = [scale for scale in scales if not isinstance(scale, Tensor)]
    if len(numbers) == len(scales):
        return numbers, None
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
