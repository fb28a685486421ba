"""Calls that several test files share: the op, the same formulas in plain torch, and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import oracle
import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.backends import requested_backend
from fastsn.node import attach
from fastsn.op import normalize
from fastsn.plan import plan_of

KINDS = {"sn": oracle.SN, "bsn": oracle.BSN, "v_first": oracle.SN_V_FIRST}

#: (shape, dim) of weights that go through the op together; dim 2 exists for SN only.
SHAPES = {
    "sn": [((5, 7), 0), ((4, 6), 1), ((3, 4, 2), 2), ((6, 4, 3, 3), 0), ((2, 5, 3, 2, 2), 1)],
    "bsn": [((5, 4, 3), 0), ((3, 6, 2), 1), ((6, 4, 3, 3), 0), ((2, 5, 3, 2, 2), 1)],
    "v_first": [((5, 7), 0), ((4, 6), 1), ((6, 4, 3, 3), 0), ((2, 5, 3, 2), 2)],
}

Pairs = list[tuple[Tensor, Tensor]]


class Results(NamedTuple):
    weights: list[Tensor]
    sigmas: Tensor
    pairs: list[Pairs]  # per weight, one (u, v) per unfolding
    view_stats: Tensor


class Group(NamedTuple):
    weights: list[Tensor]
    pairs: list[Pairs]
    dims: list[int]
    kinds: list[int]


def random_pairs(weight: Tensor, dim: int, kind: int) -> Pairs:
    return [
        (weight.new_empty(rows).normal_(), weight.new_empty(cols).normal_())
        for rows, cols in oracle.vector_sizes(weight.shape, dim, kind)
    ]


def spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    dims: Sequence[int],
    kinds: Sequence[int],
    scales: Sequence[float],
    scale_tensor: Tensor | None,
    n: int,
    eps: float,
    out_dtype: torch.dtype | None,
    backend: str,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """One differentiable call, as layers make it: numbers first, then their node."""
    shapes = tuple(tuple(weight.shape) for weight in weights)
    plan = plan_of(shapes, tuple(dims), tuple(kinds), tuple(scales), eps)
    given = list(weights), list(us), list(vs), scale_tensor, n, out_dtype, backend
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return normalize(plan, *given)
    with torch.no_grad():
        numbers = normalize(plan, *given)
    weights_sn, sigmas, _ = attach(plan, numbers, scale_tensor, weights, keep=False)
    return weights_sn, sigmas, numbers.vectors, numbers.view_stats


def split_pairs(
    vectors: Tensor, weights: Sequence[Tensor], dims: Sequence[int], kinds: Sequence[int]
) -> list[Pairs]:
    """The op's flat ``vectors``, per weight one (u, v) per unfolding."""
    shapes = tuple(tuple(weight.shape) for weight in weights)
    plan = plan_of(shapes, tuple(dims), tuple(kinds), (1.0,) * len(shapes), 0.0)
    left = plan.split(vectors)
    return [[left.pop(0) for _ in own] for own in plan.views]


def call(
    weights: Sequence[Tensor],
    pairs: Sequence[Pairs],
    dims: Sequence[int],
    kinds: Sequence[int],
    *,
    scale: float | Sequence[float] | Tensor = 1.0,
    n: int = 1,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
) -> Results:
    """One call of the op, with the backend asked for by ``use_backend``."""
    scale_tensor = scale if isinstance(scale, Tensor) else None
    scales = [scale] * len(weights) if isinstance(scale, float) else list(scale)
    if scale_tensor is not None:
        scales = [1.0] * len(weights)
    flat = [pair for own in pairs for pair in own]
    weights_sn, sigmas, vectors, view_stats = spectral_normalize(
        list(weights), [u for u, _ in flat], [v for _, v in flat], list(dims), list(kinds), scales,
        scale_tensor, n, eps, out_dtype, requested_backend(),
    )  # fmt: skip
    return Results(weights_sn, sigmas, split_pairs(vectors, weights, dims, kinds), view_stats)


def make_group(kind: str, dtype: torch.dtype = torch.float64, count: int | None = None) -> Group:
    """The first ``count`` of a kind's weights, or with ``kind="mixed"`` one weight of each kind."""
    names = list(KINDS) if kind == "mixed" else [kind] * len(SHAPES[kind])
    entries = [SHAPES[name][i] for i, name in enumerate(names)][:count]
    dims = [dim for _, dim in entries]
    kinds = [KINDS[name] for name in names[: len(entries)]]
    weights = [torch.randn(shape).to(dtype) for shape, _ in entries]
    pairs = [random_pairs(w, d, k) for w, d, k in zip(weights, dims, kinds, strict=True)]
    return Group(weights, pairs, dims, kinds)


def call_group(group: Group, **options: Any) -> Results:
    return call(group.weights, group.pairs, group.dims, group.kinds, **options)


def plain(
    weight: Tensor,
    pairs: Pairs,
    dim: int,
    kind: int,
    *,
    scale: float | Tensor = 1.0,
    n: int = 1,
    eps: float = 1e-12,
) -> tuple[Tensor, Tensor, Pairs]:
    """W_sn, sigma and the new vectors in eager torch, in the weight's dtype, for autograd.

    As torch.nn.utils.parametrizations.spectral_norm writes it: mv, normalize, vdot, div.
    """
    sigma, new_pairs = 0.0, []
    dims = oracle.view_dims(weight.ndim, dim, kind)
    for d, (u, v) in zip(dims, pairs, strict=True):
        matrix = weight.movedim(d, 0).flatten(1)
        with torch.no_grad():
            for _ in range(n):
                if kind == oracle.SN_V_FIRST:
                    v = F.normalize(torch.mv(matrix.mH, u), dim=0, eps=eps)
                    u = F.normalize(torch.mv(matrix, v), dim=0, eps=eps)
                else:
                    u = F.normalize(torch.mv(matrix, v), dim=0, eps=eps)
                    v = F.normalize(torch.mv(matrix.mH, u), dim=0, eps=eps)
            lengths = torch.linalg.vector_norm(u) * torch.linalg.vector_norm(v)
        product = torch.vdot(u, torch.mv(matrix, v))
        product = product.real if product.is_complex() else product
        sigma = sigma + product / lengths / len(dims)
        new_pairs.append((u, v))
    return scale * weight / sigma, sigma, new_pairs


def wide(tensor: Tensor) -> np.ndarray:
    """The values as float64 (or complex128) NumPy."""
    tensor = tensor.detach().resolve_conj().cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


def wide_pairs(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(wide(u), wide(v)) for u, v in pairs]


def assert_near(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Largest error, relative to the largest expected magnitude; NaN fails."""
    actual = wide(actual) if isinstance(actual, Tensor) else np.asarray(actual)
    expected = wide(expected) if isinstance(expected, Tensor) else np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    error = np.abs(actual - expected).max(initial=0.0)
    bound = tolerance * np.abs(expected).max(initial=0.0)
    assert error <= bound, f"{what}: error {error:.3g} is above {bound:.3g}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal values, with NaN equal to NaN and -0 different from 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        return same_bits(torch.view_as_real(a), torch.view_as_real(b))
    as_integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(as_integer), b.contiguous().view(as_integer))
