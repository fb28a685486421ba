"""Bounds of a convolution's norm by that of its reshaped kernel (Tsuzuku et al. 2018, Corollary 1).

``||w~||`` is the norm of the convolution as a linear map (what SN_Conv divides by), ``||w^||`` that
of the reshaped kernel (what SN divides by). Section 4 and appendix L.3 of the paper compare the
two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastsn.conv_map import ConvMap, Geometry, Size

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TsuzukuBounds", "map_bounds", "tsuzuku_alpha", "tsuzuku_bounds"]


class TsuzukuBounds(NamedTuple):
    """``lower <= ||w~|| <= upper``."""

    lower: float
    upper: float


def tsuzuku_alpha(
    weight_shape: Sequence[int], input_size: Size, **geometry: Unpack[Geometry]
) -> float:
    """``alpha`` of Corollary 1 of Tsuzuku et al. 2018: how much a convolution reuses its input.

    The square root of the largest number of kernel positions that read one input element, counted
    exactly, copies made by circular, reflecting or replicating padding included. Away from small
    inputs with zero padding it is ``sqrt(prod(ceil(kernel / (stride / gcd(stride, dilation)))))``:
    ``sqrt(prod(kernel))`` at stride 1.

    Args:
        weight_shape: shape of the weight, see :func:`conv_norm`, as are ``input_size`` and
            ``geometry``.
    """
    conv = ConvMap.of(weight_shape, **geometry)
    return _alpha(_reads(conv, conv.input_shape(input_size)))


def tsuzuku_bounds(weight: Tensor, input_size: Size, **geometry: Unpack[Geometry]) -> TsuzukuBounds:
    """Bounds of the convolution's norm by that of the kernel: ``||w^|| <= ||w~|| <= alpha ||w^||``.

    Corollary 1 of Tsuzuku et al. 2018, as section 4 and appendix L.3 of the paper use it. Here
    ``||w^||`` is ``||unfold_0(w)||``, the largest over groups (the norm of all groups' rows
    together is not a lower bound: equal filters in every group make it larger than the map's). A
    transposed convolution has the norm of the convolution it transposes, so ``w^`` is again
    unfolded along dimension 0, the input channels; torch's SN of such a layer unfolds along
    dimension 1, which obeys neither bound.

    The upper bound always holds. The lower one needs an output position that reads ``prod(kernel)``
    different elements of the input, none of them a zero of the padding nor the same element twice:
    with zero padding, an input at least as large as the dilated kernel, aligned with a stride.
    Where there is none, ``||w~||`` can be smaller than ``||w^||`` (a 3x3 kernel on a 1x1 input acts
    by its center alone) and ``lower`` is 0.

    Args:
        weight, input_size, geometry: see :func:`conv_norm`.
    """
    conv = ConvMap.of(weight.shape, **geometry)
    return map_bounds(conv, weight, input_size)


def map_bounds(conv: ConvMap, weight: Tensor, input_size: Size) -> TsuzukuBounds:
    """:func:`tsuzuku_bounds` of a map that is already described."""
    reads = _reads(conv, conv.input_shape(input_size))
    matrix = weight.detach().to(torch.float64).flatten(1)
    if not bool(torch.isfinite(matrix).all()):
        return TsuzukuBounds(math.nan, math.nan)
    groups = matrix.unflatten(0, (conv.groups, -1))
    norm = float(torch.linalg.svdvals(groups)[:, 0].max())
    return TsuzukuBounds(
        norm if all(map(_reads_a_full_patch, reads)) else 0.0, norm * _alpha(reads)
    )


def _reads(conv: ConvMap, shape: tuple[int, ...]) -> list[Tensor]:
    """Per spatial dimension ``[positions, kernel]``: the input element read, -1 for a zero of the
    padding."""
    out_shape = conv.output_shape(shape)
    # The transpose of a transposed convolution reads its output and writes its input.
    source, target = (out_shape, shape) if conv.transposed else (shape, out_shape)
    reads = []
    for dim, (n, positions) in enumerate(zip(source[1:], target[1:], strict=True)):
        first = torch.arange(positions) * conv.stride[dim] - conv.padding[dim][0]
        index = first[:, None] + torch.arange(conv.kernel_size[dim]) * conv.dilation[dim]
        if conv.padding_mode == "circular":
            index = index % n
        elif conv.padding_mode == "replicate":
            index = index.clamp(0, n - 1)
        elif conv.padding_mode == "reflect":
            index = (n - 1) - ((n - 1) - index.abs()).abs()
        reads.append(index.where((index >= 0) & (index < n), -1))
    return reads


def _alpha(reads: list[Tensor]) -> float:
    # An element's count is the product of its counts along each dimension, and so is the largest.
    largest = [
        int((index[index >= 0]).bincount().max()) if (index >= 0).any() else 0 for index in reads
    ]
    return math.sqrt(math.prod(largest))


def _reads_a_full_patch(index: Tensor) -> bool:
    inside = (index >= 0).all(1)
    ordered = index.sort(1).values
    distinct = (ordered.diff(dim=1) != 0).all(1)
    return bool((inside & distinct).any())
