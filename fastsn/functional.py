"""The differentiable function: weights and vectors in, normalized weights and sigmas out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastsn.backends import requested_backend
from fastsn.node import attach
from fastsn.op import normalize
from fastsn.plan import BSN, SN, plan_of

__all__ = ["SpectralNormalized", "spectral_normalize"]


class SpectralNormalized(NamedTuple):
    """Result of :func:`spectral_normalize`."""

    #: Normalized weights, of the shapes (and strides) of the weights.
    weights: list[Tensor]
    #: ``[k]``, differentiable with respect to the weights.
    sigmas: Tensor
    #: New left vectors, one per unfolding; constants.
    us: list[Tensor]
    #: New right vectors, one per unfolding; constants.
    vs: list[Tensor]


def spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    dims: Sequence[int] | None = None,
    bidirectional: bool | Sequence[bool] = False,
    scale: float | Tensor | Sequence[float] = 1.0,
    bound: float | None | Sequence[float | None] = None,
    gradient: str = "constant",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
) -> SpectralNormalized:
    r"""Normalizes ``k`` weights by their estimated spectral norms, in one op call.

    ``weights[i] * scale / sigma_i`` with ``sigma_i`` from ``n_power_iterations`` steps of the power
    method on the unfolding along ``dims[i]`` (SN, Miyato et al. 2018), or the mean over the
    unfoldings along dimensions 0 and 1 (BSN, section 5.1 of the BSSN paper). Gradients follow Eq.
    12 of Miyato et al.: the vectors are constants. The arguments are not changed; store the
    returned vectors for the next call.

    Args:
        weights: ``k`` tensors of rank 2 or more, of one dtype and device.
        us: left vectors ``[rows]``, one per unfolding. A bidirectional weight of rank 3 or more has
            two consecutive entries: of dimension ``dims[i]``, then of ``1 - dims[i]``.
        vs: right vectors ``[cols]``, likewise.
        dims: dimension of the rows, one per weight. Default: 0.
        bidirectional: BSN instead of SN, for all weights or one flag per weight. A weight of rank 2
            has one unfolding either way.
        scale: factor of the result: one float, ``k`` floats, or a tensor of 0 or 1 dimensions
            (``[k]``) that may need gradients.
        bound: of soft norms, ``weights[i] * scale / max(1, sigma_i / bound)``: one for all, or one
            per weight; None for hard ones.
        gradient: ``"constant"``, or ``"through"``: sigma is differentiated through the last
            iteration, of which only the given right vectors are constants.
        n_power_iterations: 0 evaluates sigma at the given vectors and returns those.
        eps: lower bound of the norms the vectors are divided by.
        out_dtype: dtype of the normalized weights. Default: that of the weights.

    Raises:
        ValueError: list lengths, vector sizes, rank, eps or iterations out of range.
        TypeError: integer weights, weights of different dtypes; vectors, ``scale`` or ``out_dtype``
            that are integer, or complex beside real weights.
        IndexError: a dimension out of range.
        RuntimeError: the requested backend cannot serve the call, with the reasons.

    Example::

        >>> w, u, v = torch.randn(8, 4, 3, 3), torch.randn(8), torch.randn(36)
        >>> result = fastsn.functional.spectral_normalize([w], [u], [v], n_power_iterations=5)
        >>> result.weights[0].shape, result.sigmas.shape
        (torch.Size([8, 4, 3, 3]), torch.Size([1]))
    """
    k = len(weights)
    if k == 0:
        raise ValueError("expected at least one weight, got an empty list")
    if n_power_iterations < 0:
        raise ValueError(
            "Expected n_power_iterations to be non-negative, but "
            f"got n_power_iterations={n_power_iterations}"
        )
    if not 0 <= eps < math.inf:
        raise ValueError(f"Expected eps to be non-negative and finite, but got eps={eps}")
    both = [bidirectional] * k if isinstance(bidirectional, bool) else list(bidirectional)
    dims = [0] * k if dims is None else list(dims)
    for name, values in (("dims", dims), ("bidirectional", both)):
        if len(values) != k:
            raise ValueError(f"expected {name} to have {k} entries, got {len(values)}")
    kinds = []
    for i, weight in enumerate(weights):
        _check_weight(i, weight, weights[0])
        dims[i] = normalize_dim(dims[i], weight.ndim)
        kinds.append(BSN if both[i] and weight.ndim > 2 else SN)
        if kinds[i] == BSN and dims[i] > 1:
            raise ValueError(
                f"expected dims[{i}] to be 0 or 1 for a bidirectional weight, got {dims[i]}"
            )
    scales, scale_tensor = _scales(scale, k)
    shapes = tuple(tuple(weight.shape) for weight in weights)
    bounds = _bounds(bound, k)
    if gradient not in ("constant", "through"):
        raise ValueError(f"expected gradient to be 'constant' or 'through', got {gradient!r}")
    through = (gradient == "through",) * k
    plan = plan_of(shapes, tuple(dims), tuple(kinds), tuple(scales), float(eps), bounds, through)
    views = plan.flat_views
    for name, given, sizes in (
        ("us", us, [view.rows for view in views]),
        ("vs", vs, [view.cols for view in views]),
    ):
        found = [tuple(vector.shape) for vector in given]
        if found != [(size,) for size in sizes]:
            raise ValueError(
                f"expected {name} of shapes {[(size,) for size in sizes]}, got {found}"
            )
        for j, vector in enumerate(given):
            _check_kind(f"{name}[{j}]", vector.dtype, weights[0].dtype)
    if out_dtype is not None:
        _check_kind("out_dtype", out_dtype, weights[0].dtype)
    call = list(weights), list(us), list(vs), scale_tensor, n_power_iterations, out_dtype
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        numbers = normalize(plan, *call, requested_backend())
        weights_sn, sigmas = numbers.weights_sn, numbers.sigmas
    else:
        with torch.no_grad():
            numbers = normalize(plan, *call, requested_backend())
        weights_sn, sigmas, _ = attach(plan, numbers, scale_tensor, weights, keep=False)
    pairs = plan.split(numbers.vectors)
    return SpectralNormalized(weights_sn, sigmas, [u for u, _ in pairs], [v for _, v in pairs])


def normalize_dim(dim: int, ndim: int) -> int:
    """``dim`` counted from the front; IndexError in torch's words when it is out of range."""
    if not -ndim <= dim < ndim:
        raise IndexError(
            "Dimension out of range (expected to be in range of "
            f"[-{ndim}, {ndim - 1}] but got {dim})"
        )
    return dim % ndim


def _check_weight(i: int, weight: Tensor, first: Tensor) -> None:
    if weight.ndim < 2:
        raise ValueError(
            f"expected weights[{i}] to have rank 2 or more, got shape {tuple(weight.shape)}"
        )
    if not (weight.is_floating_point() or weight.is_complex()):
        raise TypeError(f"expected weights[{i}] to be floating or complex, got {weight.dtype}")
    if weight.dtype != first.dtype:
        raise TypeError(
            f"expected weights[{i}] to be {first.dtype} as weights[0], got {weight.dtype}"
        )
    if weight.device != first.device:
        raise ValueError(
            f"expected weights[{i}] on {first.device} as weights[0], got {weight.device}"
        )


def _check_kind(name: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Real beside real weights, complex beside complex ones."""
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"expected {name} to be floating or complex, got {dtype}")
    if dtype.is_complex != weight_dtype.is_complex:
        kind = "complex" if weight_dtype.is_complex else "real"
        raise TypeError(f"expected {name} to be {kind} as the weights are, got {dtype}")


def _bounds(bound: float | None | Sequence[float | None], k: int) -> tuple[float, ...]:
    each = [bound] * k if bound is None or isinstance(bound, (int, float)) else list(bound)
    if len(each) != k:
        raise ValueError(f"expected bound to have {k} entries, got {len(each)}")
    for value in each:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"expected bound to be positive and finite, got {value}")
    return tuple(float(value or 0.0) for value in each)


def _scales(scale: float | Tensor | Sequence[float], k: int) -> tuple[list[float], Tensor | None]:
    if isinstance(scale, Tensor):
        if not scale.is_floating_point():
            raise TypeError(f"expected scale to be floating, got {scale.dtype}")
        if scale.ndim > 1 or (scale.ndim == 1 and len(scale) != k):
            raise ValueError(f"expected scale of shape () or ({k},), got {tuple(scale.shape)}")
        return [1.0] * k, scale.expand(k) if scale.ndim == 0 else scale
    if isinstance(scale, (int, float)):
        return [float(scale)] * k, None
    scales = [float(value) for value in scale]
    if len(scales) != k:
        raise ValueError(f"expected scale to have {k} entries, got {len(scales)}")
    return scales, None
