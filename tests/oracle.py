"""An independent implementation in float64 NumPy to judge the package by: it imports none of it.

One weight at a time, written from the formulas: unfoldings by ``moveaxis`` and ``reshape``,
gradients from W itself (the package's backward uses W_sn instead). Complex arrays work too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SN, BSN, SN_V_FIRST = 0, 1, 2

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


class Normalized(NamedTuple):
    weight_sn: np.ndarray
    sigma: float
    pairs: list[tuple[np.ndarray, np.ndarray]]  # new (u, v) per unfolding
    view_sigmas: list[float]


def view_dims(ndim: int, dim: int, kind: int) -> list[int]:
    """Dimensions of the rows of each unfolding."""
    return [dim, 1 - dim] if kind == BSN and ndim > 2 else [dim]


def vector_sizes(shape: Sequence[int], dim: int, kind: int) -> list[tuple[int, int]]:
    """``(rows, cols)`` of each unfolding."""
    size = int(np.prod(shape))
    return [(shape[d], size // shape[d]) for d in view_dims(len(shape), dim, kind)]


def unfold(weight: np.ndarray, dim: int) -> np.ndarray:
    rows = weight.shape[dim]
    return np.moveaxis(weight, dim, 0).reshape(rows, weight.size // rows)


def fold(matrix: np.ndarray, shape: Sequence[int], dim: int) -> np.ndarray:
    rest = [*shape[:dim], *shape[dim + 1 :]]
    return np.moveaxis(matrix.reshape(shape[dim], *rest), 0, dim)


def normalize(
    weight: np.ndarray,
    pairs: Pairs,
    dim: int = 0,
    kind: int = SN,
    scale: float = 1.0,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
) -> Normalized:
    weight = _wide(weight)
    pairs = [(_wide(u), _wide(v)) for u, v in pairs]
    dims = view_dims(weight.ndim, dim, kind)
    new_pairs, view_sigmas, usable = [], [], True
    for d, (u, v) in zip(dims, pairs, strict=True):
        matrix = unfold(weight, d)
        if kind == SN_V_FIRST:
            v, u, sigma, good = _iterate(matrix.conj().T, v, u, n_power_iterations, eps)
        else:
            u, v, sigma, good = _iterate(matrix, u, v, n_power_iterations, eps)
        new_pairs.append((u, v))
        view_sigmas.append(sigma)
        usable = usable and good
    sigma = sum(view_sigmas) / len(view_sigmas)
    weight_sn = weight * 0.0 if sigma == 0 else scale * weight / sigma
    return Normalized(weight_sn, sigma, new_pairs if usable else pairs, view_sigmas)


def gradients(
    weight: np.ndarray,
    result: Normalized,
    grad: np.ndarray,
    grad_sigma: float = 0.0,
    dim: int = 0,
    kind: int = SN,
    scale: float = 1.0,
) -> tuple[np.ndarray, float]:
    """``dL/dW`` and ``dL/dscale`` from ``dL/dW_sn`` and ``dL/dsigma``, the vectors held constant.

    L is the sum of <grad, scale W / sigma> and grad_sigma sigma, and sigma = <S, W> is linear in W.
    """
    if result.sigma == 0:
        return np.zeros_like(_wide(weight)), 0.0
    weight, grad = _wide(weight), _wide(grad)
    overlap = np.real(np.vdot(grad, weight))
    direct = scale / result.sigma * grad
    through_sigma = grad_sigma - scale * overlap / result.sigma**2
    return direct + through_sigma * direction(weight, result, dim, kind), overlap / result.sigma


def direction(weight: np.ndarray, result: Normalized, dim: int, kind: int) -> np.ndarray:
    """S, the derivative of sigma: mean over the unfoldings of the unit vectors' outer products."""
    dims = view_dims(weight.ndim, dim, kind)
    total = np.zeros(weight.shape)
    for d, (u, v) in zip(dims, result.pairs, strict=True):
        lengths = np.linalg.norm(u) * np.linalg.norm(v)
        outer = np.outer(u, v.conj()) * (0.0 if lengths == 0 else 1.0 / lengths)
        total = total + fold(outer, weight.shape, d) / len(dims)
    return total


def singular_values(weight: np.ndarray, dim: int) -> np.ndarray:
    return np.linalg.svd(unfold(_wide(weight), dim), compute_uv=False)


def _iterate(
    matrix: np.ndarray, u: np.ndarray, v: np.ndarray, n_power_iterations: int, eps: float
) -> tuple[np.ndarray, np.ndarray, float, bool]:
    if n_power_iterations == 0:
        lengths = np.linalg.norm(u) * np.linalg.norm(v)
        return u, v, 0.0 if lengths == 0 else np.real(np.vdot(u, matrix @ v)) / lengths, True
    good = True
    for _ in range(n_power_iterations):
        s = matrix @ v
        u = s / max(np.linalg.norm(s), eps)
        t = matrix.conj().T @ u
        v = t / max(np.linalg.norm(t), eps)
        norms = (np.linalg.norm(s), np.linalg.norm(t))
        good = good and all(np.isfinite(norm) and norm > 0 for norm in norms)
    u_norm = np.linalg.norm(u)
    return u, v, float(norms[1] if u_norm == 0 else norms[1] / u_norm), good


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.complex128 if np.iscomplexobj(array) else np.float64)
