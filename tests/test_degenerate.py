"""Weights and vectors at the edges: zero, not finite, null spaces, lengths, eps, huge and tiny."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import (
    KINDS,
    Results,
    assert_near,
    call,
    call_group,
    make_group,
    same_bits,
    wide,
    wide_pairs,
)
from torch import Tensor, nn

import fastsn


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_weight_gives_zero_and_disturbs_nothing(backend: str, kind: str, n: int) -> None:
    group = make_group(kind, torch.float32)
    zero = len(group.weights) // 2
    alone = call_group(group, n=n)
    group.weights[zero] = torch.zeros_like(group.weights[zero])
    for weight in group.weights:
        weight.requires_grad_()
    scale = torch.full([len(group.weights)], 1.5, requires_grad=True)
    result = call_group(group, n=n, scale=scale)
    assert result.sigmas[zero] == 0
    assert torch.count_nonzero(result.weights[zero]) == 0
    for given, new in zip(group.pairs[zero], result.pairs[zero], strict=True):
        assert same_bits(given[0], new[0]) and same_bits(given[1], new[1])
    (result.sigmas.sum() + sum(weight.square().sum() for weight in result.weights)).backward()
    assert torch.count_nonzero(group.weights[zero].grad) == 0
    assert scale.grad[zero] == 0
    for i, weight in enumerate(group.weights):
        assert torch.isfinite(weight.grad).all()
        if i != zero:
            assert same_bits(result.sigmas[i], alone.sigmas[i])
            assert torch.count_nonzero(weight.grad) > 0 and scale.grad[i] != 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_step_that_is_not_finite_leaves_the_vectors(
    backend: str, kind: str, n: int, bad: float
) -> None:
    group = make_group(kind, torch.float32)
    clean = call_group(group, n=n)
    broken = len(group.weights) - 1
    # 3e38 is finite, but sums of it are not.
    group.weights[broken] = group.weights[broken].clone()
    group.weights[broken].view(-1)[: 1 if bad != 3e38 else None] = bad
    if bad == 3e38:
        for u, v in group.pairs[broken]:
            u.abs_().add_(1), v.abs_().add_(1)
    result = call_group(group, n=n)
    for given, new in zip(group.pairs[broken], result.pairs[broken], strict=True):
        assert same_bits(given[0], new[0]) and same_bits(given[1], new[1])
    if bad != 3e38:
        assert not torch.isfinite(result.weights[broken]).all()
    for i in range(broken):
        assert same_bits(result.weights[i], clean.weights[i])
        for given, new in zip(clean.pairs[i], result.pairs[i], strict=True):
            assert same_bits(given[0], new[0]) and same_bits(given[1], new[1])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_layer_recovers_from_a_weight_that_was_not_finite(
    backend: str, bidirectional: bool
) -> None:
    layer = fastsn.spectral_norm(nn.Conv2d(3, 4, 3), bidirectional=bidirectional)
    weight, vectors = layer.parametrizations.weight.original, dict(layer.named_buffers())
    good = weight.detach().clone()
    before = {name: vector.clone() for name, vector in vectors.items()}
    with torch.no_grad():
        weight[1, 2, 0, 1] = float("inf")
    assert not torch.isfinite(layer.weight).all()
    assert len(before) == (4 if bidirectional else 2)
    assert all(same_bits(vectors[name], before[name]) for name in before)
    with torch.no_grad():
        weight.copy_(good)
    assert torch.isfinite(layer.weight).all()
    assert not any(same_bits(vectors[name], before[name]) for name in before)


def test_start_in_the_null_space_is_degenerate(backend: str) -> None:
    weight = torch.zeros(2, 2, 2)
    weight[0, 0, 0] = 4.0
    null, other = torch.tensor([0.0, 1, 0, 0]), torch.tensor([1.0, 0, 0, 1])
    u = torch.tensor([3.0, 4.0])
    sn = call([weight], [[(u, null)]], [0], [oracle.SN])
    assert sn.sigmas[0] == 0 and torch.count_nonzero(sn.weights[0]) == 0
    assert same_bits(sn.pairs[0][0][0], u) and same_bits(sn.pairs[0][0][1], null)
    # One unfolding of BSN degenerate: neither pair moves, and sigma has the other's half.
    bsn = call([weight], [[(u, null), (u, other)]], [0], [oracle.BSN])
    assert bsn.view_stats[:, 0].tolist() == [0.0, 4.0] and bsn.sigmas[0] == 2
    assert bsn.weights[0][0, 0, 0] == 2
    for (given_u, given_v), (new_u, new_v) in zip(
        [(u, null), (u, other)], bsn.pairs[0], strict=True
    ):
        assert same_bits(given_u, new_u) and same_bits(given_v, new_v)


@pytest.mark.parametrize("kind", KINDS)
def test_sigma_in_evaluation_is_independent_of_vector_lengths(backend: str, kind: str) -> None:
    group = make_group(kind)

    def evaluate(u_factor: float, v_factor: float) -> tuple[Results, list[Tensor]]:
        weights = [weight.clone().requires_grad_() for weight in group.weights]
        pairs = [[(u * u_factor, v * v_factor) for u, v in own] for own in group.pairs]
        result = call(weights, pairs, group.dims, group.kinds, n=0)
        (sum((weight**3).sum() for weight in result.weights) + result.sigmas.sum()).backward()
        return result, [weight.grad for weight in weights]

    expected, expected_grads = evaluate(1.0, 1.0)
    for factors in ((0.94, 0.94), (1e-9, 1e4), (-3.0, -2.0)):
        actual, grads = evaluate(*factors)
        assert_near(actual.sigmas, expected.sigmas, 1e-13)
        for i, grad in enumerate(grads):
            assert_near(actual.weights[i], expected.weights[i], 1e-13)
            assert_near(grad, expected_grads[i], 1e-12)


def test_vectors_of_length_zero_in_evaluation(backend: str) -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    result = call([weight], [[(torch.zeros(3), torch.randn(4))]], [0], [oracle.SN], n=0)
    (result.weights[0].sum() + result.sigmas.sum()).backward()
    assert result.sigmas[0] == 0 and torch.count_nonzero(result.weights[0]) == 0
    assert torch.count_nonzero(weight.grad) == 0


def test_eps_is_a_lower_bound_of_the_norms(backend: str) -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    pair = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    # ||M v|| = 5. With eps = 10, u = (0.3, 0.4) and M^T u = (2.5, 0), so that v = (0.25, 0).
    for eps, u, v in ((10.0, (0.3, 0.4), (0.25, 0.0)), (5.0, (0.6, 0.8), (1.0, 0.0))):
        result = call([weight], [[pair]], [0], [oracle.SN], eps=eps)
        assert_near(result.pairs[0][0][0], u, 1e-15, "u")
        assert_near(result.pairs[0][0][1], v, 1e-15, "v")
        assert_near(result.sigmas, [5.0], 1e-15, "sigma")
    first = call([weight], [[pair]], [0], [oracle.SN_V_FIRST], eps=10.0)
    # M^T u = (7, 0) is divided by 10; M v = (2.1, 2.8) of length 3.5 likewise.
    assert_near(first.pairs[0][0][1], (0.7, 0.0), 1e-15, "v")
    assert_near(first.pairs[0][0][0], (0.21, 0.28), 1e-15, "u")
    assert_near(first.sigmas, [5.0], 1e-15, "sigma")


@pytest.mark.parametrize(
    ("size", "n", "eps"),
    [(1e30, 1, 1e-12), (1e30, 3, 1e-12), (1e30, 0, 1e-12), (1e-30, 0, 1e-12), (1e-30, 1, 0.0),
     (1e-30, 3, 0.0), (1e-15, 1, 1e-12), (1e-14, 3, 1e-12)],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_very_large_and_very_small_weights(
    backend: str, kind: str, size: float, n: int, eps: float
) -> None:
    # Wherever vectors and sigma are float32 numbers; the squares in their norms are not.
    group = make_group(kind, torch.float32)
    for i, weight in enumerate(group.weights):
        group.weights[i] = (weight * size).requires_grad_()
    result = call_group(group, n=n, eps=eps)
    grads = [torch.randn_like(weight) for weight in group.weights]
    torch.autograd.backward(result.weights, grads)
    for i, weight in enumerate(group.weights):
        options = {"dim": group.dims[i], "kind": group.kinds[i]}
        pairs = wide_pairs(group.pairs[i])
        expected = oracle.normalize(wide(weight), pairs, **options, n_power_iterations=n, eps=eps)
        assert_near(result.weights[i], expected.weight_sn, 2e-5, "W_sn")
        assert_near(result.sigmas[i], expected.sigma, 2e-5, "sigma")
        grad_weight, _ = oracle.gradients(wide(weight), expected, wide(grads[i]), **options)
        assert_near(weight.grad, grad_weight, 1e-4, "grad W")


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 4, 3), (5, 0, 3), (0, 0)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_empty_weight_has_torch_buffers_and_an_empty_result(
    backend: str, shape: tuple[int, ...], bidirectional: bool
) -> None:
    ours, theirs = nn.Module(), nn.Module()
    for module in (ours, theirs):
        module.register_parameter("weight", nn.Parameter(torch.empty(shape)))
    fastsn.spectral_norm(ours, bidirectional=bidirectional)
    torch.nn.utils.parametrizations.spectral_norm(theirs)
    for name, vector in theirs.parametrizations.weight[0]._buffers.items():
        assert ours.parametrizations.weight[0]._buffers[name].shape == vector.shape
    assert ours.weight.shape == shape
    ours.weight.sum().backward()
    assert ours.parametrizations.weight.original.grad.shape == shape


def test_weight_of_many_dimensions(backend: str) -> None:
    """More than any convolution has: the kernels know unfoldings, not ranks."""
    weight = torch.randn(2, 3, 1, 2, 1, 2, 1, 1, 2, 1, 2, dtype=torch.float64)
    flat = weight.reshape(2, 3, 16)
    u = [torch.randn(n, dtype=torch.float64) for n in (2, 3)]
    v = [torch.randn(n, dtype=torch.float64) for n in (48, 32)]
    deep = fastsn.functional.spectral_normalize([weight], u, v, bidirectional=True)
    shallow = fastsn.functional.spectral_normalize([flat], u, v, bidirectional=True)
    assert torch.equal(deep.weights[0].reshape(flat.shape), shallow.weights[0])
