"""The mathematics, for every backend: against the float64 oracle and float64 SVD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import KINDS, assert_near, call, call_group, make_group, random_pairs, wide, wide_pairs

import fastsn

# The oracle itself


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [np.real, np.asarray], ids=["real", "complex"])
def test_oracle_gradients_are_finite_differences(kind: str, make: Callable) -> None:
    rng = np.random.default_rng(0)
    options = {"dim": 1, "kind": KINDS[kind]}

    def draw(*shape: int) -> np.ndarray:
        return make(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

    weight, grad, grad_sigma, scale, step = draw(3, 4, 2), draw(3, 4, 2), 0.7, 1.3, 1e-5
    sizes = oracle.vector_sizes(weight.shape, **options)
    start = [(draw(rows), draw(cols)) for rows, cols in sizes]
    result = oracle.normalize(weight, start, **options, scale=scale, n_power_iterations=2)

    def loss(weight: np.ndarray, scale: float) -> float:
        frozen = oracle.normalize(
            weight, result.pairs, **options, scale=scale, n_power_iterations=0
        )
        return np.real(np.vdot(grad, frozen.weight_sn)) + grad_sigma * frozen.sigma

    grad_weight, grad_scale = oracle.gradients(
        weight, result, grad, grad_sigma, **options, scale=scale
    )
    for unit, part in ((1.0, np.real), (1j, np.imag)):
        if unit == 1j and not np.iscomplexobj(weight):
            continue
        for index in np.ndindex(weight.shape):
            nudge = np.zeros_like(weight)
            nudge[index] = step * unit
            slope = (loss(weight + nudge, scale) - loss(weight - nudge, scale)) / (2 * step)
            assert abs(slope - part(grad_weight[index])) < 1e-8
    slope = (loss(weight, scale + step) - loss(weight, scale - step)) / (2 * step)
    assert abs(slope - grad_scale) < 1e-8


def test_oracle_finds_the_largest_singular_value() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((4, 3, 2))
    for kind in KINDS.values():
        sizes = oracle.vector_sizes(weight.shape, 0, kind)
        start = [(rng.standard_normal(rows), rng.standard_normal(cols)) for rows, cols in sizes]
        result = oracle.normalize(weight, start, 0, kind, n_power_iterations=400)
        tops = [oracle.singular_values(weight, d)[0] for d in oracle.view_dims(3, 0, kind)]
        assert abs(result.sigma - np.mean(tops)) < 1e-12
        assert len(tops) == (2 if kind == oracle.BSN else 1)


# Backends against the oracle and SVD


@pytest.mark.parametrize("scale", [1.0, 1.7, -0.3])
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_oracles(
    backend: str, kind: str, n: int, scale: float
) -> None:
    group = make_group(kind)
    for weight in group.weights:
        weight.requires_grad_()
    k = len(group.weights)
    scales = (torch.arange(k, dtype=torch.float64) * 0.1 + scale).requires_grad_()
    actual = call_group(group, scale=scales, n=n)
    floats = call_group(group, scale=scales.tolist(), n=n)
    grads = [torch.randn_like(weight) for weight in actual.weights]
    grad_sigmas = torch.randn(k, dtype=torch.float64)
    torch.autograd.backward([*actual.weights, actual.sigmas], [*grads, grad_sigmas])
    view = 0
    for i, weight in enumerate(group.weights):
        options = {"dim": group.dims[i], "kind": group.kinds[i], "scale": scales[i].item()}
        expected = oracle.normalize(
            wide(weight), wide_pairs(group.pairs[i]), **options, n_power_iterations=n
        )
        assert_near(actual.weights[i], expected.weight_sn, 1e-10, "W_sn")
        assert_near(floats.weights[i], expected.weight_sn, 1e-10, "W_sn with float scales")
        assert_near(actual.sigmas[i], expected.sigma, 1e-10, "sigma")
        for mine, theirs in zip(actual.pairs[i], expected.pairs, strict=True):
            assert_near(mine[0], theirs[0], 1e-10, "u")
            assert_near(mine[1], theirs[1], 1e-10, "v")
            lengths = np.linalg.norm(theirs[0]) * np.linalg.norm(theirs[1])
            alpha = 1 / len(expected.pairs) / lengths
            assert_near(actual.view_stats[view, 1], alpha, 1e-10, "alpha")
            view += 1
        assert_near(
            actual.view_stats[view - len(expected.pairs) : view, 0],
            expected.view_sigmas, 1e-10, "sigmas of the unfoldings",
        )  # fmt: skip
        grad_weight, grad_scale = oracle.gradients(
            wide(weight), expected, wide(grads[i]), grad_sigmas[i].item(), **options
        )
        assert_near(weight.grad, grad_weight, 1e-10, "grad W")
        assert_near(scales.grad[i], grad_scale, 1e-10, "grad scale")
    assert view == len(actual.view_stats)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_complex_weights_are_the_oracles(kind: str, n: int, dtype: torch.dtype) -> None:
    group = make_group(kind, dtype)
    tolerance = 1e-10 if dtype == torch.complex128 else 1e-5
    actual = call_group(group, n=n, scale=1.2)
    assert actual.sigmas.dtype == dtype.to_real()
    for i, weight in enumerate(group.weights):
        weight.requires_grad_()
        options = {"dim": group.dims[i], "kind": group.kinds[i], "scale": 1.2}
        pairs = wide_pairs(group.pairs[i])
        expected = oracle.normalize(wide(weight), pairs, **options, n_power_iterations=n)
        assert_near(actual.weights[i], expected.weight_sn, tolerance, "W_sn")
        assert_near(actual.sigmas[i], expected.sigma, tolerance, "sigma")
        single = call([weight], [group.pairs[i]], [group.dims[i]], [group.kinds[i]], n=n, scale=1.2)
        grad = torch.randn_like(weight)
        torch.autograd.backward([*single.weights, single.sigmas], [grad, single.sigmas.detach()])
        grad_weight, _ = oracle.gradients(
            wide(weight), expected, wide(grad), expected.sigma, **options
        )
        assert_near(weight.grad, grad_weight, tolerance, "grad W")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bsn_after_200_iterations_is_the_mean_of_svd_norms(
    backend: str, dtype: torch.dtype
) -> None:
    n, scale = 200, 1.2
    shapes = [(32, 16, 3, 3), (17, 23, 5), (8, 40, 3, 3), (64, 3, 4, 4), (6, 5, 3, 2, 3), (9, 1, 7)]
    weights = [torch.randn(shape, dtype=dtype) for shape in shapes]
    for weight in weights:
        # A rank-one part makes a gap between the singular values of both unfoldings.
        rows, cols, rest = *weight.shape[:2], weight[0, 0].numel()
        factors = [
            F.normalize(torch.randn(size, dtype=dtype), dim=0) for size in (rows, cols, rest)
        ]
        planted = torch.einsum("i,j,k->ijk", *factors).view_as(weight)
        weight += 1.3 * (max(rows, cols) ** 0.5 + (min(rows, cols) * rest) ** 0.5) * planted
    dims = [i % 2 for i in range(len(weights))]
    pairs = [random_pairs(w, d, oracle.BSN) for w, d in zip(weights, dims, strict=True)]
    result = fastsn.functional.spectral_normalize(
        weights,
        [u for own in pairs for u, _ in own],
        [v for own in pairs for _, v in own],
        dims=dims,
        bidirectional=True,
        scale=scale,
        n_power_iterations=n,
    )
    for i, weight in enumerate(weights):
        tops = []
        for d, (_, v) in zip((dims[i], 1 - dims[i]), pairs[i], strict=True):
            matrix = oracle.unfold(wide(weight), d)
            _, values, right = np.linalg.svd(matrix, full_matrices=False)
            overlaps = right @ wide(v)
            # What iteration leaves of the other directions must be far below what is asserted.
            rest = overlaps[1:] * (values[1:] / values[0]) ** (2 * n - 1)
            assert np.sum((rest / overlaps[0]) ** 2) < 1e-8
            tops.append(values[0])
        assert_near(result.sigmas[i], np.mean(tops), 1e-6, f"sigma of {shapes[i]}")
        norms = [oracle.singular_values(wide(result.weights[i]), d)[0] for d in (0, 1)]
        assert_near(np.mean(norms), scale, 1e-6, "mean norm of the normalized weight")
