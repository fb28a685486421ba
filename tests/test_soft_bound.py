"""``bound=c``: ``W / max(1, sigma / c)``, against the formula written out in float64."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import images, norms, originals, small_cnn, state
from torch import Tensor, nn
from torch.func import functional_call

import fastsn
from fastsn import backends
from fastsn.functional import spectral_normalize

CPU = torch.device("cpu")


def unfold(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def oracle(
    weight: Tensor, pairs: list[tuple[Tensor, Tensor]], dims: list[int], bound: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """One iteration, the vectors constants, then the quotient; torch differentiates the rest."""
    new = []
    for (_, v), dim in zip(pairs, dims, strict=True):
        with torch.no_grad():
            u = F.normalize(unfold(weight, dim) @ v, dim=0)
            v = F.normalize(unfold(weight, dim).T @ u, dim=0)
        new.append((u, v))
    sigmas = [u @ unfold(weight, d) @ v for (u, v), d in zip(new, dims, strict=True)]
    sigma = sum(sigmas) / len(sigmas)
    return weight / torch.clamp(sigma / bound, min=1), new


SHAPES = [(6, 4), (5, 3, 3, 2), (7, 2, 4)]


@pytest.mark.parametrize("bound", [0.3, 1e3], ids=["binds", "does not bind"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["sn", "bsn"])
@pytest.mark.parametrize("name", ["reference", "batched", "cpu"])
def test_parity_with_the_formula(name: str, bidirectional: bool, bound: float) -> None:
    weights = [torch.randn(shape).double().requires_grad_() for shape in SHAPES]
    dims = [[0, 1] if bidirectional and len(shape) > 2 else [0] for shape in SHAPES]
    pairs = [
        [
            tuple(F.normalize(torch.randn(n).double(), dim=0) for n in unfold(w, d).shape)
            for d in own
        ]
        for w, own in zip(weights, dims, strict=True)
    ]
    us = [u for own in pairs for u, _ in own]
    vs = [v for own in pairs for _, v in own]
    with fastsn.use_backend(name):
        result = spectral_normalize(weights, us, vs, bidirectional=bidirectional, bound=bound)
        pulls = [torch.randn_like(weight) for weight in weights]
        pull_sigmas = torch.randn(len(weights)).double()
        loss = sum((w * p).sum() for w, p in zip(result.weights, pulls, strict=True))
        grads = torch.autograd.grad(loss + result.sigmas @ pull_sigmas, weights)
    for i, (weight, own, each) in enumerate(zip(weights, pairs, dims, strict=True)):
        expected, new = oracle(weight, own, each, bound)
        torch.testing.assert_close(result.weights[i], expected, rtol=1e-13, atol=1e-14)
        sigma = sum(u @ unfold(weight, d) @ v for (u, v), d in zip(new, each, strict=True))
        sigma = sigma / len(each)
        (grad,) = torch.autograd.grad((expected * pulls[i]).sum() + sigma * pull_sigmas[i], weight)
        torch.testing.assert_close(grads[i], grad, rtol=1e-11, atol=1e-13)
        if bound > 1:
            assert torch.equal(result.weights[i], weight)  # not a bit is changed


def test_boundary_is_that_of_clamp() -> None:
    weight = torch.diag(torch.tensor([2.0, 1.0])).double().requires_grad_()
    u = v = torch.tensor([1.0, 0.0]).double()
    for name in ("reference", "batched", "cpu"):
        with fastsn.use_backend(name):
            result = spectral_normalize([weight], [u], [v], bound=2.0, n_power_iterations=0)
            (grad,) = torch.autograd.grad(result.weights[0].sum(), weight)
        sigma = u @ weight @ v
        (expected,) = torch.autograd.grad((weight / torch.clamp(sigma / 2.0, min=1)).sum(), weight)
        torch.testing.assert_close(grad, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("bound", [0.3, 1e3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_derivatives(bidirectional: bool, bound: float) -> None:
    layer = nn.Conv2d(2, 3, 2).double()
    fastsn.spectral_norm(layer, bidirectional=bidirectional, bound=bound).eval()
    name = "parametrizations.weight.original"
    given = layer.get_parameter(name).detach().requires_grad_()
    x = torch.randn(1, 2, 3, 3).double()

    def run(weight: Tensor) -> Tensor:
        return functional_call(layer, {name: weight}, (x,))

    assert torch.autograd.gradcheck(run, (given,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (given,))
    grad = torch.func.grad(lambda weight: run(weight).sum())(given.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(run(given).sum(), given)[0])


def test_hard_and_soft_weights_in_one_call_and_with_scales() -> None:
    weights = [torch.randn(4, 5).double().requires_grad_() for _ in range(3)]
    us, vs = [torch.randn(4).double()] * 3, [torch.randn(5).double()] * 3
    scale = torch.tensor([2.0, 0.5, 3.0]).double().requires_grad_()
    results = []
    for name in ("reference", "batched", "cpu"):
        with fastsn.use_backend(name):
            result = spectral_normalize(weights, us, vs, bound=[0.5, None, 100.0], scale=scale)
            loss = sum(w.square().sum() for w in result.weights) + result.sigmas.sum()
            results.append([*result.weights, *torch.autograd.grad(loss, [*weights, scale])])
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    norm = [torch.linalg.matrix_norm(w.detach(), 2) for w in weights]
    torch.testing.assert_close(results[0][2], weights[2] * 3)
    assert float(norm[0]) > 0.5 and float(torch.linalg.matrix_norm(results[0][0].detach(), 2)) < 1.5
    assert results[0][-1].shape == scale.shape


@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("method", ["sn", "bsn"])
def test_models(method: str, update: str) -> None:
    """Layer by layer the oracle's numbers, over steps in which bounds begin to bind."""
    model = small_cnn().double()
    plain = copy.deepcopy(model)
    group = fastsn.apply(model, method, bound=1.1, update=update)
    assert "bound=1.1" in str(group)
    dims = [[view.dim for view in norm.views] for norm in norms(model)]
    pairs = [[tuple(x.clone() for x in pair) for pair in n.vectors()] for n in norms(model)]
    layers = [m for m in plain if hasattr(m, "weight")]
    binding = set()
    for _ in range(4):
        x = images().double()
        weights = {}
        for i, layer in enumerate(layers):
            ready, pairs[i] = oracle(layer.weight, pairs[i], dims[i], 1.1)
            binding.add(torch.equal(ready, layer.weight))
            weights[f"{[*plain].index(layer)}.weight"] = ready
        expected = functional_call(plain, weights, (x,))
        out = model(x)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
        out.square().sum().backward()
        expected.square().sum().backward()
        for layer, ours in zip(layers, originals(model), strict=True):
            torch.testing.assert_close(ours.grad, layer.weight.grad, rtol=1e-9, atol=1e-11)
            with torch.no_grad():
                ours.mul_(1.4)
                layer.weight.copy_(ours)
        model.zero_grad()
        plain.zero_grad()
    assert binding == {True, False}


def test_zero_and_non_finite_weights() -> None:
    for name in ("reference", "batched", "cpu"):
        with fastsn.use_backend(name):
            layer = fastsn.spectral_norm(nn.Linear(3, 4), bound=1.0)
            original = layer.parametrizations.weight.original
            with torch.no_grad():
                original.zero_()
            layer(torch.ones(1, 3)).sum().backward()
            assert torch.equal(original.grad, torch.ones(4, 3))  # identity below the bound
            assert torch.isfinite(layer.weight).all()
            before = [vector.clone() for vector in layer.parametrizations.weight[0].vectors()[0]]
            with torch.no_grad():
                original.fill_(float("nan"))
            assert not torch.isfinite(layer.weight).any()
            after = layer.parametrizations.weight[0].vectors()[0]
            assert all(map(torch.equal, before, after))
            with torch.no_grad():
                original.copy_(torch.randn(4, 3))
            assert torch.isfinite(layer.weight).all()


def test_backend_without_a_kernel_is_not_taken_and_says_so() -> None:
    for name, backend in backends.BACKENDS.items():
        reasons = backends.explain(CPU, torch.float32, ("bound",))[name]
        assert ("it has no kernel for bound=" in reasons) == ("bound" not in backend.options)
    chosen = backends.select_backend("auto", CPU, torch.float32, None, needs=("bound",))
    assert "bound" in chosen.options
    layer = fastsn.spectral_norm(nn.Linear(3, 4), bound=1.0)
    without = [name for name, b in backends.BACKENDS.items() if "bound" not in b.options]
    for name in without:
        with fastsn.use_backend(name), pytest.raises(RuntimeError, match="no kernel for bound="):
            layer(torch.ones(1, 3))


def test_compiled_and_exported() -> None:
    model = small_cnn()
    fastsn.apply(model, "bsn", bound=0.7)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = images()
        out, expected = compiled(x), twin(x)
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        expected.sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(twin.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), twin(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(twin(x).float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_files(way: Callable[[Any], Any]) -> None:
    model = small_cnn()
    fastsn.apply(model, "bsn", bound=0.7)
    x = images()
    expected = model.eval()(x)
    assert torch.equal(way(model)(x), expected)
    same, other, hard = small_cnn(), small_cnn(), small_cnn()
    fastsn.apply(same, "bsn", bound=0.7)
    fastsn.apply(other, "bsn", bound=0.8)
    fastsn.apply(hard, "bsn")
    same.load_state_dict(model.state_dict())
    assert torch.equal(same.eval()(x), expected)
    with pytest.raises(RuntimeError, match="bsn with bound 0.8 .* got one of bsn with bound 0.7"):
        other.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"of bsn for .* got one of bsn with bound 0.7"):
        hard.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"of bsn with bound 0.7 for .* got one of bsn:"):
        same.load_state_dict(hard.state_dict())
    same.load_state_dict(state(other))  # a plain dict does not say
    torch.testing.assert_close(fastsn.fold(model)(x), expected)


def test_a_changed_bound_counts_at_the_next_forward() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "sn", bound=100.0)
    assert torch.equal(model[0].weight, model[0].parametrizations.weight.original)
    for member in group.members:
        member.norm.bound = 0.01
    model(images())
    assert float(torch.linalg.matrix_norm(model[0].weight.flatten(1).detach(), 2)) < 0.02


def test_convolutions_as_linear_maps() -> None:
    for bound in (0.2, 100.0):
        layer = nn.Conv2d(2, 3, 3, padding=1).double()
        fastsn.conv_spectral_norm(layer, input_shape=(4, 4), bound=bound, n_power_iterations=99)
        assert f"bound={bound:g}" in str(layer)
        matrix = fastsn.analysis.conv_matrix(
            layer.parametrizations.weight.original.double(), 4, padding=1
        )
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        original = layer.parametrizations.weight.original
        torch.testing.assert_close(layer.weight, original / max(1, norm / bound), rtol=1e-6, atol=0)
        layer.eval()
        x = torch.randn(1, 2, 4, 4).double()
        name = "parametrizations.weight.original"

        def run(weight: Tensor, layer: Any = layer, x: Tensor = x, name: str = name) -> Tensor:
            return functional_call(layer, {name: weight}, (x,))

        given = original.detach().requires_grad_()
        assert torch.autograd.gradcheck(run, (given,))
        assert torch.autograd.gradgradcheck(run, (given,))


def test_one_dimensional_weights() -> None:
    layer = nn.LayerNorm(4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, 4.0, 0.0, 0.0]))
    fastsn.spectral_norm(layer, bound=2.0)
    torch.testing.assert_close(layer.weight, torch.tensor([1.2, 1.6, 0.0, 0.0]))
    layer = nn.LayerNorm(4)
    fastsn.spectral_norm(layer, bound=3.0)
    assert torch.equal(layer.weight, torch.ones(4))


BAD: list[tuple[Any, type[Exception], str]] = [
    ({"bound": 0}, ValueError, "bound to be positive and finite, got 0"),
    ({"bound": -1.0}, ValueError, "positive and finite, got -1.0"),
    ({"bound": float("inf")}, ValueError, "positive and finite, got inf"),
    ({"bound": float("nan")}, ValueError, "positive and finite, got nan"),
    ({"bound": "1"}, TypeError, "bound to be a number or None, got '1'"),
    ({"bound": True}, TypeError, "bound to be a number or None, got True"),
    ({"bound": torch.tensor(1.0)}, TypeError, "bound to be a number or None"),
    ({"bound": [1.0]}, TypeError, "bound to be a number or None"),
    ({"bound": 1.0, "scale": "sigma"}, ValueError, "no bound with scale='sigma'"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_bounds(options: Any, error: type[Exception], text: str) -> None:
    layer = nn.Conv2d(3, 4, 3)
    with pytest.raises(error, match=text):
        fastsn.spectral_norm(layer, **options)
    if "scale" not in options:
        with pytest.raises(error, match=text):
            fastsn.conv_spectral_norm(layer, **options)
        with pytest.raises(error, match=text):
            fastsn.apply(layer, "sn", **options)
    assert type(layer) is nn.Conv2d


def test_bad_bounds_of_apply_and_the_function() -> None:
    model = small_cnn()
    for method in ("ssn", "bssn"):
        with pytest.raises(ValueError, match=f"no bound for method '{method}'.*use method"):
            fastsn.apply(model, method, bound=1.0)
    with pytest.raises(TypeError, match="expected scale to be a number or a 0-d tensor"):
        fastsn.conv_spectral_norm(nn.Conv2d(3, 4, 3), scale="sigma")  # type: ignore[arg-type]
    w, u, v = torch.randn(3, 4), torch.randn(3), torch.randn(4)
    with pytest.raises(ValueError, match="bound to have 1 entries, got 2"):
        spectral_normalize([w], [u], [v], bound=[1.0, 2.0])
    with pytest.raises(ValueError, match="positive and finite, got 0.0"):
        spectral_normalize([w], [u], [v], bound=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectral_normalize([w], [u], [v], bound=None)
