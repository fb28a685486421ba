"""Several singular values of a layer, with errors, and a watch on those of a group.

Block power iteration: ``k`` vectors and a few more are multiplied by ``M^H M`` and made orthonormal
again, ``M`` being an unfolding of the weight or the convolution as a linear map. The singular
values of ``M`` on the space that they span are lower bounds of its largest ones (Cauchy), and the
residual of each pair bounds its distance to a singular value (Weyl).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastsn.analysis.convolution import plain_copy
from fastsn.analysis.theory import unfold
from fastsn.conv_map import ConvMap, Size
from fastsn.group import SpectralNormGroup
from fastsn.parametrization import default_dim
from fastsn.state.classes import parametrizations_of

__all__ = ["SingularValues", "SpectrumMonitor", "log_sigmas", "singular_values"]

#: Vectors iterated beside those that are asked for: what separates them is the value after these.
_MORE = 8

#: ``M X`` and ``M^H Y``, of matrices of columns.
Map = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class SingularValues(NamedTuple):
    """The largest singular values, as far as they are known.

    Attributes:
        values: descending. Each is a lower bound of the singular value of its place, up to
            rounding, and 0 beyond the rank.
        errors: of each value, a bound of its distance to a singular value.
        iterations: of the block that were made so far.
    """

    values: tuple[float, ...]
    errors: tuple[float, ...]
    iterations: int


@torch.no_grad()
def singular_values(
    layer: nn.Module,
    k: int = 1,
    *,
    name: str = "weight",
    normalized: bool = True,
    input_size: Size | None = None,
    dim: int | None = None,
    tol: float = 1e-5,
    max_iterations: int = 2000,
) -> SingularValues:
    """The ``k`` largest singular values of a layer's weight, in float64. Changes nothing.

    Args:
        layer: with a weight of two dimensions or more.
        k: how many; at most the smaller side of the matrix.
        name: of the weight.
        normalized: the weight that the layer uses; False: its parameter, before any norm.
        input_size: of a convolution layer, in elements (:func:`conv_norm`): the singular values of
            the linear map on such inputs. Default: those of the unfolded weight.
        dim: dimension of the rows of the unfolding. Default: 1 for transposed convolutions, else 0.
        tol: the iteration ends when all errors are at most this times the largest value. Values
            are then much better than their errors say, unless they are close to each other.
        max_iterations: of the block, after which a ``RuntimeWarning`` gives the largest error.

    Returns:
        Values and errors; nan for a weight that is not finite.

    Raises:
        ValueError: ``k``, ``tol``, ``max_iterations`` or ``dim`` out of range, no such weight, one
            of fewer than two dimensions, a complex or lazy one, or an input size that does not fit.
        TypeError: ``k`` is not an int, or an input size for a layer that is no convolution.

    Example::

        >>> layer = fastsn.spectral_norm(nn.Linear(64, 32))
        >>> first, second = fastsn.analysis.singular_values(layer, 2).values
        >>> first >= second
        True
    """
    _check_counts(k=k, max_iterations=max_iterations)
    if not tol > 0:
        raise ValueError(f"expected tol > 0, got {tol}")
    weight = _weight_of(layer, name, normalized)
    state = _Block(_problem(layer, weight, input_size, dim), k)
    while True:
        result = state.advance(weight)
        worst = max(result.errors)
        if not worst > tol * result.values[0]:  # nan ends it, too
            return result
        if result.iterations >= max_iterations:
            warnings.warn(
                f"singular_values did not converge in {max_iterations} iterations: the largest "
                f"error is {worst:.1e}, and the largest value {result.values[0]:.6g}",
                RuntimeWarning,
                stacklevel=2,
            )
            return result


class SpectrumMonitor:
    """The ``k`` largest singular values of every weight of a group, followed through a training.

    Each :meth:`update` makes a few iterations with the vectors of the last one, so that the cost is
    small and the values converge while the weights change slowly; the errors say how far they are.
    Of BSN both unfoldings are watched. Nothing of the model is changed.

    Args:
        group: of ``fastsn.apply``, ``fastsn.convert`` or ``fastsn.group_of``.
        k: how many; fewer for weights with a smaller side.
        iterations: per update.
        input_sizes: input sizes of convolutions by their weight's name, to watch the singular
            values of the linear map instead of the unfolding's.

    Raises:
        ValueError: ``k`` or ``iterations`` below 1, an unknown name in ``input_sizes``.
        TypeError: ``group`` is not a group; ``k`` or ``iterations`` is not an int.

    Example::

        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> monitor = fastsn.analysis.SpectrumMonitor(fastsn.apply(model), k=3)
        >>> len(monitor.update()["0.weight"].values)
        3
    """

    def __init__(
        self,
        group: SpectralNormGroup,
        k: int = 1,
        *,
        iterations: int = 1,
        input_sizes: Mapping[str, Size] | None = None,
    ) -> None:
        _check_group(group)
        _check_counts(k=k, iterations=iterations)
        self.group, self.k, self.iterations = group, k, iterations
        self.input_sizes = dict(input_sizes or {})
        labels = [member.label for member in group.members]
        unknown = sorted(set(self.input_sizes) - set(labels))
        if unknown:
            raise ValueError(f"expected names of the group's weights {labels}, got {unknown}")
        self._blocks: dict[str, _Block] = {}

    @torch.no_grad()
    def update(self) -> dict[str, SingularValues]:
        """Iterates, and gives the values of the weights before their norm, by parameter name.

        A second unfolding (BSN's) has its name with ``" (dim 1)"`` behind it, or 0.
        """
        results = {}
        for member in self.group.members:
            weight = member.weight.detach()
            if weight.ndim < 2:
                continue
            size = self.input_sizes.get(member.label)
            views = [None] if size is not None else [view.dim for view in member.norm.views]
            for i, dim in enumerate(views):
                label = member.label if i == 0 else f"{member.label} (dim {dim})"
                problem = _problem(member.layer, weight, size, dim)
                block = self._blocks.get(label)
                if block is None or block.problem != problem:
                    block = self._blocks[label] = _Block(problem, min(self.k, problem.rank))
                for _ in range(self.iterations):
                    results[label] = block.advance(weight)
        return results

    def log(self, writer: Any, step: int, prefix: str = "singular_values") -> None:
        """:meth:`update`, and a scalar ``prefix/NAME/I`` for each value, ``I`` from 0.

        Args:
            writer: anything with TensorBoard's ``add_scalar(tag, value, step)``.
            step: of the training.
        """
        _check_writer(writer)
        for label, result in self.update().items():
            for i, value in enumerate(result.values):
                writer.add_scalar(f"{prefix}/{label}/{i}", value, step)


def log_sigmas(
    writer: Any,
    group: SpectralNormGroup,
    step: int,
    prefix: str = "sigma",
    *,
    per_unfolding: bool = False,
) -> dict[str, float]:
    """Writes every sigma of a group as a scalar ``prefix/NAME``; advances nothing.

    Args:
        writer: anything with TensorBoard's ``add_scalar(tag, value, step)``.
        step: of the training.
        per_unfolding: one scalar ``prefix/NAME/I`` for each unfolding instead of their mean.

    Returns:
        What was written, by tag. One wait for the device serves all.

    Raises:
        TypeError: ``writer`` has no ``add_scalar``, or ``group`` is not a group.
    """
    _check_writer(writer)
    _check_group(group)
    tags, values = [], []
    for label, sigma in group.sigmas(per_unfolding=per_unfolding).items():
        if per_unfolding:
            tags += [f"{prefix}/{label}/{i}" for i in range(len(sigma))]
        else:
            tags.append(f"{prefix}/{label}")
        values.append(sigma.double().view(-1))
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in values:
        by_device.setdefault(value.device, []).append(value)
    read = {device: iter(torch.cat(some).tolist()) for device, some in by_device.items()}
    numbers = [next(read[value.device]) for value in values for _ in range(len(value))]
    written = dict(zip(tags, numbers, strict=True))
    for tag, number in written.items():
        writer.add_scalar(tag, number, step)
    return written


class _Problem(NamedTuple):
    """Which matrix is meant: its shape, and how it comes from the weight."""

    rows: int
    cols: int
    dim: int
    conv: ConvMap | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The largest that it can have."""
        return min(self.rows, self.cols)

    def products(self, weight: Tensor) -> Map:
        conv = self.conv
        if conv is None:
            matrix = unfold(weight, self.dim)
            return lambda x: matrix @ x, lambda y: matrix.T @ y

        def forward(x: Tensor) -> Tensor:
            return conv.apply(weight, x.T.reshape(-1, *self.input_shape)).flatten(1).T

        def adjoint(y: Tensor) -> Tensor:
            images = y.T.reshape(-1, *self.output_shape)
            return conv.adjoint(weight, images, self.input_shape).flatten(1).T

        return forward, adjoint


def _problem(
    layer: nn.Module, weight: Tensor, input_size: Size | None, dim: int | None
) -> _Problem:
    if input_size is None:
        dim = default_dim(layer) if dim is None else dim
        if not -weight.ndim <= dim < weight.ndim:
            raise ValueError(f"expected dim in [-{weight.ndim}, {weight.ndim - 1}], got {dim}")
        rows = weight.shape[dim]
        cols = weight.numel() // rows if rows else 0
        return _Problem(rows, cols, dim % weight.ndim, None, (), ())
    conv = ConvMap.of_module(layer, weight.shape)
    shape = conv.input_shape(input_size)
    out = tuple(conv.output_shape(shape))
    return _Problem(math.prod(out), math.prod(shape), 0, conv, tuple(shape), out)


class _Block:
    """The vectors of one matrix, kept between iterations."""

    def __init__(self, problem: _Problem, k: int) -> None:
        if k > problem.rank:
            raise ValueError(
                f"expected k to be at most the smaller side of the {problem.rows} x "
                f"{problem.cols} matrix, got {k}"
            )
        self.problem, self.k, self.iterations = problem, k, 0
        self._vectors: Tensor | None = None

    def advance(self, weight: Tensor) -> SingularValues:
        self.iterations += 1
        wide = weight.to(torch.float64)
        # With entries of order one no product overflows or underflows.
        largest = float(wide.abs().max()) if wide.numel() else 0.0
        if largest == 0 or not math.isfinite(largest):
            value = 0.0 if largest == 0 else math.nan
            return SingularValues((value,) * self.k, (value,) * self.k, self.iterations)
        forward, adjoint = self.problem.products(wide / largest)
        if self._vectors is None or self._vectors.device != wide.device:
            self._vectors = _start(self.problem, self.k, wide.device)
        image = adjoint(forward(self._vectors))
        basis = torch.linalg.qr(image)[0]
        left, values, right = torch.linalg.svd(forward(basis), full_matrices=False)
        self._vectors = basis @ right.mT
        # M x = s p holds exactly, so the residual of the pair is that of M^T p = s x. The pair as
        # an eigenvector of [[0, M], [M^T, 0]] has length sqrt(2).
        residuals = (adjoint(left) - self._vectors * values).norm(dim=0) / math.sqrt(2)
        rounding = torch.finfo(torch.float64).eps * values[0] * math.sqrt(self.problem.rank)
        pairs = torch.stack([values, residuals + rounding])[:, : self.k] * largest
        found, errors = pairs.tolist()
        return SingularValues(tuple(found), tuple(errors), self.iterations)


def _start(problem: _Problem, k: int, device: torch.device) -> Tensor:
    """The same for every call, so that the same weight gives the same numbers."""
    generator = torch.Generator().manual_seed(0)
    columns = min(k + _MORE, problem.rank)
    shape = problem.cols, columns
    start = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    return torch.linalg.qr(start)[0]


def _weight_of(layer: nn.Module, name: str, normalized: bool) -> Tensor:
    held = parametrizations_of(layer).get(name)
    if held is not None and not normalized:
        weight = getattr(held, "original", None)
    elif isinstance(layer, nn.Module):
        weight = getattr(plain_copy(layer), name, None)
    if not normalized and f"{name}_orig" in layer._parameters:
        weight = layer._parameters[f"{name}_orig"]
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{layer}' has no parameter or buffer with name '{name}'")
    if is_lazy(weight):
        raise ValueError(f"expected '{name}' of {layer} to be initialized, got a lazy parameter")
    if weight.ndim < 2 or weight.is_complex():
        raise ValueError(
            f"expected '{name}' of {layer} to be real, of two dimensions or more, got "
            f"{weight.dtype} of shape {tuple(weight.shape)}"
        )
    return weight.detach()


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"expected {name} to be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"expected {name} to be at least 1, got {value}")


def _check_group(group: object) -> None:
    if not isinstance(group, SpectralNormGroup):
        raise TypeError(
            f"expected a group, as fastsn.apply returns and fastsn.group_of(model) finds, got "
            f"{type(group).__name__}"
        )


def _check_writer(writer: object) -> None:
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            "expected a writer with add_scalar(tag, value, step), as TensorBoard's SummaryWriter, "
            f"got {type(writer).__name__}"
        )
