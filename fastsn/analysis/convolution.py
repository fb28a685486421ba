"""The exact operator norm of a convolution, and its dense matrix.

This is the norm of the convolution as a linear map on inputs of one size: what SN_Conv divides by,
``||w~||`` in section 4 of the paper.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastsn.conv_map import ConvMap, Geometry, Size

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["conv_matrix", "conv_norm", "conv_norm_of", "map_norm", "plain_copy"]

#: Lanczos vectors: few restarts for singular values that are close, and little memory.
_BASIS = 24
#: Elements of a batch of transfer matrices (complex128: 64 MB).
_CHUNK = 1 << 22


def conv_matrix(weight: Tensor, input_size: Size, **geometry: Unpack[Geometry]) -> Tensor:
    """The convolution as a dense matrix, for tests and tiny sizes.

    Args:
        weight, input_size, geometry: see :func:`conv_norm`.

    Returns:
        ``[c_out * prod(size'), c_in * prod(size)]`` in the weight's dtype, channels slowest, as
        ``flatten``.
    """
    conv = ConvMap.of(weight.shape, **geometry)
    shape = conv.input_shape(input_size)
    identity = torch.eye(math.prod(shape), dtype=weight.dtype, device=weight.device)
    return conv.apply(weight.detach(), identity.view(-1, *shape)).flatten(1).t()


def conv_norm(
    weight: Tensor,
    input_size: Size,
    *,
    method: str = "auto",
    tol: float = 1e-10,
    max_products: int = 4000,
    **geometry: Unpack[Geometry],
) -> float:
    """Operator norm of a convolution as a linear map on inputs of one size, computed in float64.

    Args:
        weight: ``[c_out, c_in / groups, *kernel]``, or ``[c_in, c_out / groups, *kernel]`` if
            transposed.
        input_size: in elements: an int for every spatial dimension, ``(*size)`` or
            ``(c_in, *size)``.
        method: ``"fourier"``: the largest singular value over all frequencies (Sedghi et al. 2019),
            exact, for circular padding with stride 1 that keeps the size. ``"lanczos"``: restarted
            Lanczos iteration with the convolution and its transpose, from a fixed start (the same
            weight gives the same number). ``"auto"``: the first that applies.
        tol: relative error of the squared norm at which Lanczos stops, estimated by the residual
            of its singular pair, and by the residual squared over the gap to the next singular
            value.
        max_products: products with the map and its transpose after which Lanczos stops with a
            ``RuntimeWarning`` that states the error; the number is a lower bound of the norm then.
        geometry: ``stride``, ``padding``, ``dilation``, ``groups``, ``padding_mode``,
            ``transposed``, ``output_padding``, as in ``torch.nn.Conv*d`` and ``ConvTranspose*d``.

    Returns:
        The norm; nan if the weight is not finite.

    Raises:
        ValueError: arguments that do not fit the weight, the input size or each other.
    """
    conv = ConvMap.of(weight.shape, **geometry)
    return map_norm(conv, weight, input_size, method=method, tol=tol, max_products=max_products)


def conv_norm_of(
    module: nn.Module,
    input_size: Size,
    *,
    name: str = "weight",
    method: str = "auto",
    tol: float = 1e-10,
    max_products: int = 4000,
) -> float:
    """:func:`conv_norm` of a convolution layer as it acts in evaluation mode.

    With a normalized weight this is the norm the layer really has. The layer is not changed: its
    parametrization runs on a copy, so no power iteration advances.

    Raises:
        TypeError: ``module`` is not a convolution layer.
        ValueError: as :func:`conv_norm`.
    """
    with torch.no_grad():
        weight = getattr(plain_copy(module), name)
    conv = ConvMap.of_module(module, weight.shape)
    return map_norm(conv, weight, input_size, method=method, tol=tol, max_products=max_products)


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in evaluation mode, with own buffers and the same parameters."""
    # Lazy parameters are copied: the copy's first forward would give the original its shape.
    shared: dict[int, Tensor] = {id(p): p for p in module.parameters() if not is_lazy(p)}
    for part in module.modules():
        # The old spectral_norm hook leaves a non-leaf tensor on the module, which deepcopy refuses.
        shared |= {id(t): t for t in vars(part).values() if isinstance(t, Tensor)}
    return copy.deepcopy(module, dict(shared)).eval()


@torch.no_grad()
def map_norm(
    conv: ConvMap,
    weight: Tensor,
    input_size: Size,
    *,
    method: str = "auto",
    tol: float = 1e-10,
    max_products: int = 4000,
) -> float:
    """:func:`conv_norm` of a map that is already described."""
    if method not in ("auto", "fourier", "lanczos"):
        raise ValueError(f"expected method to be 'auto', 'fourier' or 'lanczos', got {method!r}")
    if not tol > 0 or max_products < 1:
        raise ValueError(
            f"expected tol > 0 and max_products >= 1, got tol={tol}, max_products={max_products}"
        )
    shape = conv.input_shape(input_size)
    circulant = _is_circulant(conv)
    if method == "fourier" and not circulant:
        raise ValueError(
            "expected circular padding with stride 1 that keeps the input size for "
            f"method='fourier', got {conv}"
        )
    weight = weight.detach().to(torch.float64)
    # Norms are homogeneous; with entries of order one no product overflows or underflows.
    largest = float(weight.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return 0.0 if largest == 0 else math.nan
    weight = weight / largest
    if circulant and method != "lanczos":
        return largest * _fourier_norm(conv, weight, shape)
    return largest * _lanczos_norm(conv, weight, shape, tol, max_products)


def _is_circulant(conv: ConvMap) -> bool:
    keeps_size = all(
        low + high == d * (k - 1)
        for (low, high), d, k in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True)
    )
    wraps = conv.padding_mode == "circular" or all(k == 1 for k in conv.kernel_size)
    return keeps_size and wraps and not conv.transposed and all(s == 1 for s in conv.stride)


def _fourier_norm(conv: ConvMap, weight: Tensor, shape: tuple[int, ...]) -> float:
    """The map is block diagonal in frequency: one ``c_out x c_in`` matrix each, per group."""
    kernel = conv.kernel_size
    # The last dimension needs half the frequencies: the others are their complex conjugates.
    last = len(kernel) - 1
    counts = [n // 2 + 1 if dim == last else n for dim, n in enumerate(shape[1:])]
    ranges = [1 if k == 1 else count for k, count in zip(kernel, counts, strict=True)]
    frequencies = torch.cartesian_prod(*(torch.arange(n) for n in ranges)).view(-1, len(kernel))
    taps = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).view(-1, len(kernel))
    steps = torch.tensor(conv.dilation, dtype=torch.float64) / torch.tensor(shape[1:])
    # [frequencies, taps], in turns
    turns = (frequencies * steps) @ taps.t().to(torch.float64)
    phases = torch.exp(2j * math.pi * turns).to(weight.device)
    blocks = weight.flatten(2).unflatten(0, (conv.groups, -1)).to(phases.dtype)
    per_frequency = weight.numel() // taps.shape[0]
    largest = 0.0
    for part in phases.split(max(1, _CHUNK // per_frequency)):
        transfer = torch.einsum("goit,ft->fgoi", blocks, part)
        if transfer.shape[-2] > transfer.shape[-1]:
            transfer = transfer.mT
        # Its top eigenvalue is as accurate as the singular value, and much cheaper.
        gram = transfer @ transfer.mH
        largest = max(largest, float(torch.linalg.eigvalsh(gram)[..., -1].max()))
    return math.sqrt(largest)


def _lanczos_norm(
    conv: ConvMap, weight: Tensor, shape: tuple[int, ...], tol: float, max_products: int
) -> float:
    out_shape = conv.output_shape(shape)
    # M^T M and M M^T have the same largest eigenvalue: iterate in the smaller space.
    small_out = math.prod(out_shape) < math.prod(shape)

    def product(flat: Tensor) -> Tensor:
        if small_out:
            x = conv.adjoint(weight, flat.view(1, *out_shape), shape)
            return conv.apply(weight, x).flatten()
        y = conv.apply(weight, flat.view(1, *shape))
        return conv.adjoint(weight, y, shape).flatten()

    start = torch.randn(
        math.prod(out_shape if small_out else shape),
        dtype=weight.dtype,
        generator=torch.Generator().manual_seed(0),
    ).to(weight.device)
    value, error = _largest_eigenvalue(product, start, tol, max_products)
    if error > tol:
        warnings.warn(
            f"conv_norm did not converge in {max_products} products: the squared norm has an "
            f"estimated relative error of {error:.1e}, above tol={tol:g}; it is a lower bound",
            RuntimeWarning,
            stacklevel=4,
        )
    return math.sqrt(max(value, 0.0))


def _largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, tol: float, max_products: int
) -> tuple[float, float]:
    """Largest eigenvalue of a positive semidefinite operator, and its estimated relative error.

    Lanczos with full orthogonalization and thick restarts: the best half of the vectors is kept, so
    that eigenvalues that are close, as those of convolutions on large inputs, still separate fast.
    """
    size = min(_BASIS, start.numel())
    basis = start.new_empty(size, start.numel())
    projected = start.new_zeros(size, size)
    vector = start / start.norm()
    kept = used = 0
    while True:
        for j in range(kept, size):
            basis[j] = vector
            image = product(vector)
            used += 1
            projected[j, j] = image @ vector
            done = basis[: j + 1]
            # Twice is enough (Parlett) to stay orthogonal to rounding.
            for _ in range(2):
                image = image - done.t() @ (done @ image)
            beta = float(image.norm())
            # At 0 the basis spans an invariant subspace: nothing is left outside of it.
            if j == size - 1 or used == max_products or beta <= 1e-14 * float(projected.max()):
                break
            projected[j, j + 1] = projected[j + 1, j] = beta
            vector = image / beta
        values, vectors = torch.linalg.eigh(projected[: j + 1, : j + 1])
        value = float(values[-1])
        residuals = beta * vectors[-1]
        error = residual = abs(float(residuals[-1]))
        if j > 0 and (gap := value - float(values[-2])) > residual:
            error = residual**2 / gap
        if error <= tol * value or used >= max_products:
            return value, error / value if value else 0.0
        kept = (j + 1) // 2
        basis[:kept] = vectors[:, -kept:].t() @ done
        vector = image / beta
        projected.zero_()
        projected[:kept, :kept] = values[-kept:].diag()
        projected[kept, :kept] = projected[:kept, kept] = residuals[-kept:]
