"""One op call for parametrizations and weights: gathers arguments, stores the new vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsn.backend import requested_backend
from fastsn.op import spectral_normalize
from fastsn.problem import split_vectors

if TYPE_CHECKING:
    from fastsn.parametrization import SpectralNorm

__all__ = ["Computed", "compute", "stack_scales"]


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
    pairs = pairs or [pair for norm in norms for pair in norm.vectors()]
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
            parts = split_vectors(vectors, [view for norm in norms for view in norm.views])
            torch._foreach_copy_(us + vs, [u for u, _ in parts] + [v for _, v in parts])
    return Computed(weights_sn, sigmas, vectors, view_stats, dims, kinds, scales)


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
