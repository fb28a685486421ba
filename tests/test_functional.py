"""fastsn.functional: errors, dtypes, scales, and gradients of some of the outputs."""

from __future__ import annotations

import re
from typing import Any

import oracle
import pytest
import torch
from cases import assert_near, plain, same_bits, wide, wide_pairs
from torch import Tensor

from fastsn.functional import spectral_normalize


def arguments(
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A matrix, a BSN convolution (two unfoldings, rows first along dim 1) and a matrix."""
    weights = [torch.randn(shape).to(dtype) for shape in ((5, 4), (3, 6, 2, 2), (2, 7))]
    us = [torch.randn(size).to(dtype) for size in (5, 6, 3, 2)]
    vs = [torch.randn(size).to(dtype) for size in (4, 12, 24, 7)]
    return weights, us, vs


OPTIONS: dict[str, Any] = {"dims": [0, 1, -2], "bidirectional": [False, True, True]}


def written_out(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], scale: Any = 1.0
) -> list[tuple[Tensor, Tensor]]:
    """W_sn and sigma of each weight in plain torch."""
    pairs = [[(us[0], vs[0])], [(us[1], vs[1]), (us[2], vs[2])], [(us[3], vs[3])]]
    kinds = [oracle.SN, oracle.BSN, oracle.SN]
    return [
        plain(w, own, dim, kind, scale=scale)[:2]
        for w, own, dim, kind in zip(weights, pairs, (0, 1, 0), kinds, strict=True)
    ]


def test_result_is_a_named_tuple_of_lists(backend: str) -> None:
    weights, us, vs = arguments()
    for weight in weights:
        weight.requires_grad_()
    result = spectral_normalize(weights, us, vs, **OPTIONS)
    assert result._fields == ("weights", "sigmas", "us", "vs")
    assert [tuple(w.shape) for w in result.weights] == [(5, 4), (3, 6, 2, 2), (2, 7)]
    assert [u.shape for u in result.us] == [u.shape for u in us]
    assert [v.shape for v in result.vs] == [v.shape for v in vs]
    assert all(tensor.requires_grad for tensor in (*result.weights, result.sigmas))
    assert not any(vector.requires_grad for vector in (*result.us, *result.vs))
    for (weight_sn, sigma), actual, actual_sigma in zip(
        written_out(weights, us, vs), result.weights, result.sigmas, strict=True
    ):
        assert_near(actual, weight_sn, 1e-5)
        assert_near(actual_sigma, sigma, 1e-5)


def test_arguments_are_not_changed(backend: str) -> None:
    weights, us, vs = arguments()
    before = [tensor.clone() for tensor in (*weights, *us, *vs)]
    spectral_normalize(weights, us, vs, **OPTIONS, n_power_iterations=3)
    assert all(map(same_bits, before, (*weights, *us, *vs)))


def test_defaults_are_sn_along_dimension_0(backend: str) -> None:
    weight, u, v = torch.randn(3, 4, 2), torch.randn(3), torch.randn(8)
    plain_result = spectral_normalize([weight], [u], [v])
    spelled = spectral_normalize(
        [weight], [u], [v], dims=[-3], bidirectional=False, scale=[1], n_power_iterations=1,
        eps=1e-12, out_dtype=torch.float32,
    )  # fmt: skip
    assert same_bits(plain_result.weights[0], spelled.weights[0])
    assert_near(plain_result.weights[0], plain(weight, [(u, v)], 0, oracle.SN)[0], 1e-6)


# Errors


def bad(name: str, value: Any, error: type[Exception], message: str) -> Any:
    return pytest.param({name: value}, error, message, id=f"{name}={value}"[:40])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        bad("n_power_iterations", -1, ValueError,
            "Expected n_power_iterations to be non-negative, but got n_power_iterations=-1"),
        bad("eps", -1e-3, ValueError,
            "Expected eps to be non-negative and finite, but got eps=-0.001"),
        bad("eps", float("nan"), ValueError,
            "Expected eps to be non-negative and finite, but got eps=nan"),
        bad("eps", float("inf"), ValueError,
            "Expected eps to be non-negative and finite, but got eps=inf"),
        bad("out_dtype", torch.int32, TypeError,
            "expected out_dtype to be floating or complex, got torch.int32"),
        bad("out_dtype", torch.complex64, TypeError,
            "expected out_dtype to be real as the weights are, got torch.complex64"),
        bad("scale", torch.tensor(2), TypeError, "expected scale to be floating, got torch.int64"),
        bad("us", [torch.ones(5), torch.ones(6), torch.ones(3).int(), torch.ones(2)], TypeError,
            "expected us[2] to be floating or complex, got torch.int32"),
        bad("vs", [torch.ones(4), torch.ones(12), torch.ones(24), torch.ones(7).cfloat()],
            TypeError, "expected vs[3] to be real as the weights are, got torch.complex64"),
        bad("dims", [0, 1], ValueError, "expected dims to have 3 entries, got 2"),
        bad("bidirectional", [True], ValueError, "expected bidirectional to have 3 entries, got 1"),
        bad("dims", [0, 1, 2], IndexError,
            "Dimension out of range (expected to be in range of [-2, 1] but got 2)"),
        bad("dims", [0, -5, 0], IndexError,
            "Dimension out of range (expected to be in range of [-4, 3] but got -5)"),
        bad("dims", [0, -1, 0], ValueError,
            "expected dims[1] to be 0 or 1 for a bidirectional weight, got 3"),
        bad("scale", [1.0, 2.0], ValueError, "expected scale to have 3 entries, got 2"),
        bad("scale", torch.ones(2), ValueError, "expected scale of shape () or (3,), got (2,)"),
        bad("scale", torch.ones(3, 1), ValueError,
            "expected scale of shape () or (3,), got (3, 1)"),
        bad("us", [torch.ones(5), torch.ones(6), torch.ones(3), torch.ones(3)], ValueError,
            "expected us of shapes [(5,), (6,), (3,), (2,)], got [(5,), (6,), (3,), (3,)]"),
        bad("us", [torch.ones(5)], ValueError,
            "expected us of shapes [(5,), (6,), (3,), (2,)], got [(5,)]"),
        bad("vs", [torch.ones(4), torch.ones(12), torch.ones(24), torch.ones(1, 7)], ValueError,
            "expected vs of shapes [(4,), (12,), (24,), (7,)], got [(4,), (12,), (24,), (1, 7)]"),
        bad("weights", [], ValueError, "expected at least one weight, got an empty list"),
        bad("weights", [torch.ones(5, 4), torch.ones(3), torch.ones(2, 7)], ValueError,
            "expected weights[1] to have rank 2 or more, got shape (3,)"),
        bad("weights", [torch.ones(5, 4).int()] * 3, TypeError,
            "expected weights[0] to be floating or complex, got torch.int32"),
        bad("weights", [torch.ones(5, 4), torch.ones(3, 6, 2, 2), torch.ones(2, 7).double()],
            TypeError, "expected weights[2] to be torch.float32 as weights[0], got torch.float64"),
        bad("weights", [torch.ones(5, 4), torch.ones(3, 6, 2, 2), torch.ones(2, 7, device="meta")],
            ValueError, "expected weights[2] on cpu as weights[0], got meta"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_what_came(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    weights, us, vs = arguments()
    call = {"weights": weights, "us": us, "vs": vs, **OPTIONS}
    spectral_normalize(**call)
    with pytest.raises(error, match=re.escape(message)):
        spectral_normalize(**{**call, **change})


# Scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vector", [False, True])
def test_learned_scale(backend: str, vector: bool, dtype: torch.dtype) -> None:
    weights, us, vs = arguments()
    scale = (torch.tensor([1.5, -0.5, 2.0]) if vector else torch.tensor(1.5)).to(dtype)
    scale.requires_grad_()
    result = spectral_normalize(weights, us, vs, **OPTIONS, scale=scale)
    floats = scale.tolist() if vector else [scale.item()] * 3
    fixed = spectral_normalize(weights, us, vs, **OPTIONS, scale=floats)
    assert all(map(same_bits, result.weights, fixed.weights))
    sum(weight.pow(3).sum() for weight in result.weights).backward()
    leaf = scale.detach().double().requires_grad_()
    expected = written_out(
        [w.double() for w in weights], [u.double() for u in us], [v.double() for v in vs]
    )
    sum((s * w).pow(3).sum() for (w, _), s in zip(expected, leaf.expand(3), strict=True)).backward()
    assert scale.grad.dtype == dtype and scale.grad.shape == scale.shape
    assert_near(scale.grad, leaf.grad, 1e-5)


# Halves, and results of another dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_accumulated_in_float32(backend: str, dtype: torch.dtype) -> None:
    weights, us, vs = arguments(dtype)
    for weight in weights:
        weight.requires_grad_()
    result = spectral_normalize(weights, us, vs, **OPTIONS)
    assert result.sigmas.dtype == result.us[0].dtype == torch.float32
    grads = [torch.randn_like(weight) for weight in weights]
    torch.autograd.backward(result.weights, grads)
    pairs = [[(us[0], vs[0])], [(us[1], vs[1]), (us[2], vs[2])], [(us[3], vs[3])]]
    kinds = [oracle.SN, oracle.BSN, oracle.SN]
    for i, weight in enumerate(weights):
        options = {"dim": (0, 1, 0)[i], "kind": kinds[i]}
        expected = oracle.normalize(wide(weight), wide_pairs(pairs[i]), **options)
        assert result.weights[i].dtype == weight.grad.dtype == dtype
        assert_near(result.sigmas[i], expected.sigma, 1e-6, "sigma")
        # One rounding of the result; the gradient also has the roundings of the W_sn it uses.
        assert_near(result.weights[i], expected.weight_sn, torch.finfo(dtype).eps / 2, "W_sn")
        grad_weight, _ = oracle.gradients(wide(weight), expected, wide(grads[i]), **options)
        assert_near(weight.grad, grad_weight, 2 * torch.finfo(dtype).eps, "grad W")


@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_out_dtype_is_a_rounding_of_the_same_result(backend: str, out_dtype: torch.dtype) -> None:
    weights, us, vs = arguments()
    for weight in weights:
        weight.requires_grad_()
    full = spectral_normalize(weights, us, vs, **OPTIONS, scale=1.3)
    cast = spectral_normalize(weights, us, vs, **OPTIONS, scale=1.3, out_dtype=out_dtype)
    assert same_bits(full.sigmas, cast.sigmas)
    grads = [torch.randn_like(weight).to(out_dtype) for weight in cast.weights]
    expected = torch.autograd.grad(
        full.weights, weights, [grad.to(torch.float32) for grad in grads]
    )
    actual = torch.autograd.grad(cast.weights, weights, grads)
    step = torch.finfo(torch.float32 if out_dtype == torch.float64 else out_dtype).eps
    for i in range(3):
        assert cast.weights[i].dtype == out_dtype
        assert_near(cast.weights[i], full.weights[i], step, "W_sn")
        assert actual[i].dtype == torch.float32
        assert_near(actual[i], expected[i], 2 * step, "grad W")


# Gradients of some of the outputs and inputs


def test_gradient_of_the_sigmas_alone(backend: str) -> None:
    weights, us, vs = arguments(torch.float64)
    for weight in weights:
        weight.requires_grad_()
    result = spectral_normalize(weights, us, vs, **OPTIONS)
    actual = torch.autograd.grad(result.sigmas.sum(), weights)
    sigmas = [sigma for _, sigma in written_out(weights, us, vs)]
    for mine, expected in zip(actual, torch.autograd.grad(sum(sigmas), weights), strict=True):
        assert_near(mine, expected, 1e-12)


def test_weights_whose_results_are_unused_get_no_gradient(backend: str) -> None:
    weights, us, vs = arguments(torch.float64)
    for weight in weights:
        weight.requires_grad_()
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
    result = spectral_normalize(weights, us, vs, **OPTIONS, scale=scale)
    loss = result.weights[1].pow(3).sum()
    *grads, grad_scale = torch.autograd.grad(loss, [*weights, scale], allow_unused=True)
    expected_loss = written_out(weights, us, vs)[1][0].pow(3).sum()
    assert grads[0] is None and grads[2] is None
    assert_near(grads[1], torch.autograd.grad(expected_loss, weights[1])[0], 1e-12)
    assert_near(grad_scale, [0.0, 3 * loss.item(), 0.0], 1e-12)


def test_some_results_and_some_sigmas(backend: str) -> None:
    weights, us, vs = arguments(torch.float64)
    for weight in weights:
        weight.requires_grad_()
    result = spectral_normalize(weights, us, vs, **OPTIONS)
    loss = result.weights[0].pow(3).sum() + result.sigmas[2] ** 2
    expected = written_out(weights, us, vs)
    expected_loss = expected[0][0].pow(3).sum() + expected[2][1] ** 2
    for i in (0, 2):
        mine, theirs = (
            torch.autograd.grad(value, weights[i], retain_graph=True)[0]
            for value in (loss, expected_loss)
        )
        assert_near(mine, theirs, 1e-12)


@pytest.mark.parametrize("needs", [(True, False, True), (False, True, False)])
def test_weights_that_need_no_gradient_get_none(backend: str, needs: tuple[bool, ...]) -> None:
    weights, us, vs = arguments(torch.float64)
    for weight, need in zip(weights, needs, strict=True):
        weight.requires_grad_(need)
    result = spectral_normalize(weights, us, vs, **OPTIONS)
    loss = sum(weight.pow(3).sum() for weight in result.weights) + result.sigmas.square().sum()
    loss.backward()
    expected = written_out(weights, us, vs)
    leaves = [weight for weight in weights if weight.requires_grad]
    expected_loss = sum(w.pow(3).sum() + sigma**2 for w, sigma in expected)
    for leaf, grad in zip(leaves, torch.autograd.grad(expected_loss, leaves), strict=True):
        assert_near(leaf.grad, grad, 1e-12)
    assert [weight.grad is not None for weight in weights] == list(needs)


def test_no_gradient_is_recorded_without_need(backend: str) -> None:
    weights, us, vs = arguments()
    assert not any(w.requires_grad for w in spectral_normalize(weights, us, vs, **OPTIONS).weights)
    weights[0].requires_grad_()
    with torch.no_grad():
        result = spectral_normalize(weights, us, vs, **OPTIONS)
    assert not result.weights[0].requires_grad and not result.sigmas.requires_grad
