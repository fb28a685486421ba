"""Exact spectral norms of weights, and the paper's variance and gradient bounds.

Theorems, propositions and appendices are those of "Why Spectral Normalization Stabilizes GANs:
Analysis and Improvements" (Lin, Sekar, Fanti 2021). All results are Python floats computed in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "GradientBounds",
    "bsn_sigma_exact",
    "bsn_variance_bound",
    "parameter_variance",
    "proposition1_bound",
    "proposition3_bound",
    "raw_gradient_bound",
    "spectral_norm_exact",
    "theorem2_bound",
    "theorem2_lower_bound",
    "theorem3_bound",
    "theorem3_lower_bound",
    "unfold",
]


def unfold(weight: Tensor, dim: int = 0) -> Tensor:
    """The mode-``dim`` unfolding: ``[weight.shape[dim], the other dimensions in order]``.

    Raises:
        ValueError: fewer than 2 dimensions.
        IndexError: ``dim`` out of range.
    """
    if weight.ndim < 2:
        raise ValueError(
            f"expected a weight of 2 or more dimensions, got shape {tuple(weight.shape)}"
        )
    if not -weight.ndim <= dim < weight.ndim:
        raise IndexError(
            "Dimension out of range (expected to be in range of "
            f"[-{weight.ndim}, {weight.ndim - 1}] but got {dim})"
        )
    return weight.movedim(dim, 0).flatten(1)


@torch.no_grad()
def spectral_norm_exact(weight: Tensor, dim: int = 0) -> float:
    """``||unfold_dim(weight)||_2``, the sigma of SN, by singular values in float64.

    Returns:
        The norm; nan if the weight is not finite.

    Raises: as :func:`unfold`.
    """
    matrix = unfold(weight.detach(), dim)
    matrix = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    return float(torch.linalg.svdvals(matrix)[0]) if matrix.numel() else 0.0


def bsn_sigma_exact(weight: Tensor, dim: int = 0) -> float:
    """The sigma of BSN (section 5.1): the mean of the norms of the unfoldings along 0 and 1.

    In a matrix these are transposes of each other and it is the spectral norm.

    Args:
        weight: of rank 2 or more.
        dim: 0 or 1, which unfolding counts as first; both give the same value.
    """
    if dim not in (0, 1):
        raise ValueError(f"expected dim to be 0 or 1 for a bidirectional norm, got dim={dim}")
    first = spectral_norm_exact(weight, dim)
    return first if weight.ndim == 2 else (first + spectral_norm_exact(weight, 1 - dim)) / 2


@torch.no_grad()
def parameter_variance(weight: Tensor, sigma: float = 1.0) -> float:
    """Variance of the entries of ``weight / sigma`` about zero: their mean square.

    What theorems 2 and 3 bound (their entries have zero mean), and section 4 follows through
    training. For every weight, random or not, it is at most :func:`theorem2_bound` with ``sigma``
    the exact spectral norm, and at most :func:`bsn_variance_bound` with the exact sigma of BSN.
    """
    if not sigma > 0:
        raise ValueError(f"expected sigma to be positive, got {sigma}")
    return float(weight.detach().to(torch.float64).div(sigma).square().mean())


def theorem2_bound(m: int, n: int) -> float:
    """Theorem 2, i.i.d. symmetric entries of ``A [m, n]``: ``Var(a / ||A||) <= 1 / max(m, n)``."""
    _check_sizes("m, n", (m, n), at_least=1)
    return 1 / max(m, n)


def theorem2_lower_bound(m: int, n: int, constant: float) -> float:
    """Theorem 2, Gaussian entries: ``Var >= constant / (max(m, n) log min(m, n))``.

    Args:
        m, n: both at least 2, the larger at least 3.
        constant: the ``L`` of the theorem, which does not depend on ``m, n``; the paper gives no
            value.
    """
    _check_sizes("m, n", (m, n), at_least=2, note="Theorem 2's lower bound needs m, n >= 2")
    if max(m, n) < 3:
        raise ValueError(f"expected max(m, n) >= 3 for Theorem 2's lower bound, got m={m}, n={n}")
    _check_positive("constant", constant)
    return constant / (max(m, n) * math.log(min(m, n)))


def theorem3_bound(c_out: int, c_in: int, kernel_size: int | Sequence[int]) -> float:
    """Theorem 3 as printed: ``Var(w_ij / sigma_w) <= 2 / (c_in k + c_out k)``.

    ``k = prod(kernel_size)``; an int is the size of a square kernel. Its condition is
    ``k >= max(c_out / c_in, c_in / c_out)`` (``ValueError`` otherwise). The proof holds for
    ``c_in = c_out``. For very different channel numbers the statement itself fails: a Gaussian 7x7
    kernel from 3 to 64 channels meets the condition, and its variance is about 1.11 times this.
    :func:`bsn_variance_bound` always holds, and is equal to this for equal channel numbers.
    """
    k = _check_kernel(c_out, c_in, kernel_size)
    if k < max(c_out / c_in, c_in / c_out):
        raise ValueError(
            "expected prod(kernel_size) >= max(c_out / c_in, c_in / c_out), the condition of "
            f"Theorem 3, got prod(kernel_size)={k}, c_out={c_out}, c_in={c_in}"
        )
    return 2 / (k * (c_in + c_out))


def theorem3_lower_bound(
    c_out: int, c_in: int, kernel_size: int | Sequence[int], constant: float
) -> float:
    """Theorem 3, Gaussian entries: ``Var >= constant / (c_in k log c_out + c_out k log c_in)``.

    Args:
        c_out, c_in: at least 2 each.
        kernel_size: with ``k = prod(kernel_size)``, ``c_in k`` and ``c_out k`` are at least 3.
        constant: the ``L`` of the theorem; the paper gives no value.
    """
    theorem3_bound(c_out, c_in, kernel_size)
    k = _check_kernel(c_out, c_in, kernel_size)
    _check_sizes(
        "c_out, c_in",
        (c_out, c_in),
        at_least=2,
        note="Theorem 3's lower bound needs c_in, c_out >= 2",
    )
    if min(c_in, c_out) * k < 3:
        raise ValueError(
            "expected c_in k >= 3 and c_out k >= 3 for Theorem 3's lower bound, "
            f"got k={k}, c_out={c_out}, c_in={c_in}"
        )
    _check_positive("constant", constant)
    return constant / (c_in * k * math.log(c_out) + c_out * k * math.log(c_in))


def bsn_variance_bound(c_out: int, c_in: int, kernel_size: int | Sequence[int]) -> float:
    """A bound of ``Var(w_ij / sigma_w)`` under BSN for every weight, without conditions.

    With ``F`` the Frobenius norm and ``r_d`` the smaller side of ``unfold_d(w)``,
    ``F <= sqrt(r_d)`` times its spectral norm. Hence ``sigma_w >= F (r_0^-1/2 + r_1^-1/2) / 2``,
    and the mean square of ``w / sigma_w`` is at most ``4 / (n (r_0^-1/2 + r_1^-1/2)^2)``,
    ``n = c_out c_in k``: under Theorem 3's condition ``4 / (k (sqrt(c_in) + sqrt(c_out))^2)``,
    which is between one and two times what the theorem states.
    """
    k = _check_kernel(c_out, c_in, kernel_size)
    ranks = (min(c_out, c_in * k), min(c_in, c_out * k))
    return 4 / (c_out * c_in * k * sum(r**-0.5 for r in ranks) ** 2)


class GradientBounds(NamedTuple):
    """Bounds of gradient norms: per layer, first layer first, and of all parameters together."""

    per_layer: tuple[float, ...]
    overall: float


def proposition1_bound(
    x_norm: float,
    lipschitz: float | Sequence[float],
    norms: float | Sequence[float] = 1.0,
    n_layers: int | None = None,
    *,
    reuse: float | Sequence[float] = 1.0,
) -> GradientBounds:
    """Proposition 1: Frobenius norms of the gradients of ``D(x)`` by the normalized weights.

    For ``D = a_L . w_L . ... . a_1 . w_1`` without bias, with a scalar output. Layer ``t`` has, by
    Eq. 4 of appendix A, at most ``|x| prod_i |a_i|_Lip prod_{i != t} |w_i|``, and all together the
    root of the sum of squares: with all norms 1 the paper's ``|x| prod_i |a_i|_Lip``, and
    ``sqrt(L)`` times that. ``norms`` are the scales of SSN layers, or any measured norms.

    Args:
        x_norm: Euclidean norm of the input.
        lipschitz: Lipschitz constants of the activations ``a_1 .. a_L``, the last being that of the
            output: 1 for ReLU, leaky ReLU and the identity, 1/4 for the sigmoid. One number stands
            for every layer.
        norms: norms ``|w_i|`` of the layers as linear maps, or one number for every layer.
        n_layers: ``L``, needed if neither ``lipschitz`` nor ``norms`` is a sequence.
        reuse: per layer, how often a weight acts: 1 for a linear layer, as in the paper; for a
            convolution :func:`tsuzuku_alpha`, because the gradient by a shared weight sums over
            positions.

    Raises:
        ValueError: negative or non-finite numbers, or sequences of different lengths.
    """
    _check_not_negative("x_norm", (x_norm,))
    slopes, sizes, alphas = _per_layer(
        n_layers, {"lipschitz": lipschitz, "norms": norms, "reuse": reuse}
    )
    common = x_norm * math.prod(slopes)
    # The product leaves layer t out instead of dividing by its norm, which may be zero.
    per_layer = tuple(
        alphas[t] * common * math.prod(sizes[:t]) * math.prod(sizes[t + 1 :])
        for t in range(len(sizes))
    )
    return GradientBounds(per_layer, math.hypot(*per_layer))


def raw_gradient_bound(
    x_norm: float,
    lipschitz: float | Sequence[float],
    sigmas: Sequence[float],
    scales: float | Sequence[float] = 1.0,
) -> GradientBounds:
    """Appendix C: the same by the raw weights ``W_t`` of linear layers ``scale_t W_t / sigma_t``.

    ``(scale G - <G, W_sn> u v^T) / sigma`` has two terms, each at most
    ``|x| prod |a_i|_Lip prod scale_i``, so the gradient is at most twice that over ``sigma_t``: it
    grows without bound as a raw weight shrinks.

    Args:
        x_norm, lipschitz: as in :func:`proposition1_bound`.
        sigmas: exact spectral norms of the raw weights, positive.
        scales: scale of each layer, or one for all.
    """
    _check_not_negative("x_norm", (x_norm,))
    slopes, norms, scale = _per_layer(
        len(sigmas), {"lipschitz": lipschitz, "sigmas": sigmas, "scales": scales}
    )
    if 0 in norms:
        raise ValueError(f"expected sigmas to be positive, got {norms}")
    common = 2 * x_norm * math.prod(slopes) * math.prod(scale)
    per_layer = tuple(common / sigma for sigma in norms)
    return GradientBounds(per_layer, math.hypot(*per_layer))


def proposition3_bound(
    x_norm: float,
    output_hessian: float,
    norms: float | Sequence[float] = 1.0,
    n_layers: int | None = None,
) -> tuple[float, ...]:
    """Proposition 3: spectral norm of the Hessian of ``D(x)`` by each layer's (normalized) weight.

    For ReLU or leaky ReLU inside: layer ``t`` has at most ``|H| |x|^2 prod_{i != t} |w_i|^2``.

    Args:
        x_norm: Euclidean norm of the input.
        output_hessian: largest second derivative of the output activation: 0 for the identity,
            ``1 / (6 sqrt(3))`` for the sigmoid (0.1 in corollary 1).
        norms, n_layers: as in :func:`proposition1_bound`.
    """
    _check_not_negative("output_hessian", (output_hessian,))
    first_order = proposition1_bound(x_norm, 1.0, norms, n_layers)
    return tuple(output_hessian * bound**2 for bound in first_order.per_layer)


def _per_layer(
    n_layers: int | None, values: dict[str, float | Sequence[float]]
) -> list[list[float]]:
    """Every value as a list with one entry per layer."""
    lengths = {
        name: len(value) for name, value in values.items() if not isinstance(value, (int, float))
    }
    if n_layers is not None:
        lengths["n_layers"] = n_layers
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            "expected one number of layers, from n_layers or sequences of equal lengths, "
            f"got {lengths}"
        )
    count = next(iter(lengths.values()))
    lists = []
    for name, value in values.items():
        numbers = (
            [float(value)] * count if isinstance(value, (int, float)) else [*map(float, value)]
        )
        _check_not_negative(name, numbers)
        lists.append(numbers)
    return lists


def _check_not_negative(name: str, numbers: Sequence[float]) -> None:
    if any(not (math.isfinite(x) and x >= 0) for x in numbers):
        raise ValueError(f"expected {name} to be finite and not negative, got {list(numbers)}")


def _check_positive(name: str, number: float) -> None:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"expected {name} to be finite and positive, got {number}")


def _check_sizes(name: str, sizes: Sequence[int], *, at_least: int, note: str = "") -> None:
    if any(n < at_least for n in sizes):
        reason = f" ({note})" if note else ""
        raise ValueError(f"expected {name} to be at least {at_least}{reason}, got {tuple(sizes)}")


def _check_kernel(c_out: int, c_in: int, kernel_size: int | Sequence[int]) -> int:
    """``prod(kernel_size)``; an int is the size of a square kernel."""
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    _check_sizes("c_out, c_in, *kernel_size", (c_out, c_in, *sizes), at_least=1)
    return math.prod(sizes)
