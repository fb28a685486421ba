"""``gradient="through"``: sigma differentiated through the last iteration, as the authors do.

The oracle writes the iteration out in float64 and lets torch differentiate all of it.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import images, norms, originals, small_cnn, vectors
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastsn
from fastsn import backends
from fastsn.functional import spectral_normalize


def unfold(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def iterate(weight: Tensor, v: Tensor, dim: int, n: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """``(u, v, sigma)``; all but the last iteration without derivatives."""
    matrix = unfold(weight, dim)
    for i in range(n):
        with torch.set_grad_enabled(i == n - 1 and torch.is_grad_enabled()):
            u = F.normalize(matrix @ v, dim=0)
            v = F.normalize(matrix.T @ u, dim=0)
    return u, v, u @ matrix @ v


def oracle(weight: Tensor, vs: list[Tensor], dims: list[int], n: int = 1) -> Tensor:
    return sum(iterate(weight, v, d, n)[2] for v, d in zip(vs, dims, strict=True)) / len(dims)


SHAPES = [(6, 4), (5, 3, 3, 2), (7, 2, 4)]


@pytest.mark.parametrize("bound", [None, 0.3, 1e3])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["sn", "bsn"])
def test_parity_with_the_formula(bidirectional: bool, n: int, bound: float | None) -> None:
    weights = [torch.randn(shape).double().requires_grad_() for shape in SHAPES]
    dims = [[0, 1] if bidirectional and len(shape) > 2 else [0] for shape in SHAPES]
    both = list(zip(weights, dims, strict=True))
    us = [torch.randn(w.shape[d]).double() for w, own in both for d in own]
    vs = [torch.randn(unfold(w, d).shape[1]).double() for w, own in both for d in own]
    result = spectral_normalize(
        weights, us, vs, bidirectional=bidirectional, bound=bound, gradient="through",
        n_power_iterations=n, scale=1.3,
    )  # fmt: skip
    pulls = [torch.randn_like(weight) for weight in weights]
    pull_sigmas = torch.randn(len(weights)).double()
    loss = sum((w * p).sum() for w, p in zip(result.weights, pulls, strict=True))
    grads = torch.autograd.grad(loss + result.sigmas @ pull_sigmas, weights)
    plain = spectral_normalize(
        weights, us, vs, bidirectional=bidirectional, bound=bound, n_power_iterations=n, scale=1.3
    )
    free = iter(vs)
    for i, (weight, own) in enumerate(zip(weights, dims, strict=True)):
        sigma = oracle(weight, [next(free) for _ in own], own, n)
        divisor = sigma if bound is None else torch.clamp(sigma / bound, min=1)
        expected = 1.3 * weight / divisor
        torch.testing.assert_close(result.weights[i], expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(result.weights[i], plain.weights[i], rtol=1e-12, atol=1e-13)
        (grad,) = torch.autograd.grad((expected * pulls[i]).sum() + sigma * pull_sigmas[i], weight)
        torch.testing.assert_close(grads[i], grad, rtol=1e-10, atol=1e-12)


def test_the_closed_form_in_the_authors_order() -> None:
    """``d sigma/dW = u v^T + ((W v - sigma u) / ||W v0||) v0^T``, the authors' transposed."""
    weight = torch.randn(6, 4).double().requires_grad_()
    v0 = F.normalize(torch.randn(4).double(), dim=0)
    result = spectral_normalize([weight], [torch.zeros(6).double()], [v0], gradient="through")
    (grad,) = torch.autograd.grad(result.sigmas.sum(), weight)
    with torch.no_grad():
        u, v, sigma = iterate(weight, v0, 0)
        p = (weight @ v - sigma * u) / (weight @ v0).norm()
        torch.testing.assert_close(grad, torch.outer(u, v) + torch.outer(p, v0))
        assert float((grad - torch.outer(u, v)).norm()) > 0.01  # it is not the other gradient


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("bound", [None, 0.3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["sn", "bsn"])
def test_derivatives_of_first_and_second_order(bidirectional: bool, bound: float | None) -> None:
    weight = torch.randn(3, 2, 2).double().requires_grad_()
    scale = torch.tensor(1.3).double().requires_grad_()
    us = [torch.randn(3).double(), torch.randn(2).double()][: 1 + bidirectional]
    vs = [torch.randn(4).double(), torch.randn(6).double()][: 1 + bidirectional]

    def run(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        result = spectral_normalize(
            [weight], us, vs, bidirectional=bidirectional, bound=bound, gradient="through",
            scale=scale,
        )  # fmt: skip
        return result.weights[0], result.sigmas

    assert torch.autograd.gradcheck(run, (weight, scale), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (weight, scale))
    given = weight.detach(), scale.detach()
    first, second = torch.func.jacrev(run)(*given), torch.func.jacfwd(run)(*given)
    expected = torch.autograd.functional.jacobian(run, given)
    for one, two, three in zip(first, second, expected, strict=True):
        torch.testing.assert_close(one, three[0])
        torch.testing.assert_close(two, three[0])


def test_complex_weights() -> None:
    weight = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    u, v = torch.randn(3, dtype=torch.complex128), torch.randn(4, dtype=torch.complex128)

    def run(weight: Tensor) -> Tensor:
        result = spectral_normalize([weight], [u], [v], gradient="through")
        return torch.view_as_real(result.weights[0])

    assert torch.autograd.gradcheck(run, (weight,))


@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("method", ["sn", "bsn"])
def test_models(method: str, update: str) -> None:
    model = small_cnn().double()
    plain = copy.deepcopy(model)
    group = fastsn.apply(model, method, gradient="through", update=update)
    assert str(group).count("gradient=through") == 4
    dims = [[view.dim for view in norm.views] for norm in norms(model)]
    vs = [[v.clone() for _, v in norm.vectors()] for norm in norms(model)]
    places = [i for i, layer in enumerate(plain) if hasattr(layer, "weight")]
    for _ in range(3):
        x = images().double()
        weights = {}
        for i, place in enumerate(places):
            weight = plain[place].weight
            weights[f"{place}.weight"] = weight / oracle(weight, vs[i], dims[i])
            vs[i] = [iterate(weight, v, d)[1].detach() for v, d in zip(vs[i], dims[i], strict=True)]
        out, expected = model(x), functional_call(plain, weights, (x,))
        again = model(x) if update == "step" else None  # kept numbers, another node
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
        out.square().sum().backward()
        expected.square().sum().backward()
        for place, ours in zip(places, originals(model), strict=True):
            theirs = plain[place].weight
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)
        if again is not None:
            before = [weight.grad.clone() for weight in originals(model)]
            again.square().sum().backward()
            for weight, grad in zip(originals(model), before, strict=True):
                torch.testing.assert_close(weight.grad, 2 * grad)
        with torch.no_grad():
            for place, ours in zip(places, originals(model), strict=True):
                ours.sub_(0.1 * torch.sign(ours))
                plain[place].weight.copy_(ours)
        model.zero_grad()
        plain.zero_grad()


def test_gradient_penalty_is_that_of_plain_torch() -> None:
    """Gradients of gradients with respect to inputs, as WGAN-GP has them."""
    layer = nn.Linear(4, 3).double()
    weight = layer.weight.detach().clone().requires_grad_()
    bias = layer.bias.detach()
    fastsn.spectral_norm(layer, gradient="through")
    (_, v), x = layer.parametrizations.weight[0].vectors()[0], torch.randn(5, 4).double()
    v, x = v.clone(), x.requires_grad_()

    def penalty(out: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(out.tanh().sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    penalty(layer(x)).backward()
    penalty(F.linear(x, weight / oracle(weight, [v], [0]), bias)).backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, weight.grad)


def test_evaluation_has_nothing_to_differentiate_through() -> None:
    through, constant = small_cnn().double(), None
    constant = copy.deepcopy(through)
    fastsn.apply(through, "bsn", gradient="through")
    fastsn.apply(constant, "bsn")
    constant.load_state_dict(through.state_dict())
    x = images().double()
    for model in (through, constant):
        model.eval()(x).sum().backward()
    for a, b in zip(originals(through), originals(constant), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_step_mode_iterates_again_where_the_iteration_is_not_known() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "sn", gradient="through", update="step")
    model(images())
    group.update()
    before = vectors(model)
    model(images()).sum().backward()
    assert not all(map(torch.equal, before, vectors(model)))
    after = vectors(model)
    model(images())
    assert all(map(torch.equal, after, vectors(model)))


def test_functorch_in_step_mode() -> None:
    """Its results belong to the transform, and nothing is kept: each makes an iteration."""
    model = nn.Sequential(nn.Linear(4, 3)).double()
    fastsn.apply(model, "sn", gradient="through", update="step")
    held = model[0].parametrizations.weight
    weight, x = held.original.detach().clone(), torch.randn(2, 4).double()

    def run(weight: Tensor) -> Tensor:
        name = "0.parametrizations.weight.original"
        return functional_call(model, {name: weight}, (x,)).square().sum()

    with torch.no_grad():
        held[0]._v.copy_(F.normalize(torch.randn(4).double(), dim=0))
    for _ in range(2):
        v = held[0]._v.clone()
        grad = torch.func.grad(run)(weight)
        given = weight.clone().requires_grad_()
        out = F.linear(x, given / oracle(given, [v], [0]), model[0].bias)
        (expected,) = torch.autograd.grad(out.square().sum(), given)
        torch.testing.assert_close(grad, expected)


def test_checkpoints() -> None:
    for update in ("forward", "step"):
        model = small_cnn()
        fastsn.apply(model, "bsn", gradient="through", update=update)
        twin = copy.deepcopy(model)
        x = images()
        checkpoint(model, x, use_reentrant=False).sum().backward()
        twin(x).sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        assert all(map(torch.equal, vectors(model), vectors(twin)))


class Mixed(nn.Module):
    """A layer in the precision of autocast, in a model that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, pull: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (self.layer.weight.float() * pull).sum()


@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("grouped", [True, False])
def test_autocast(grouped: bool, update: str) -> None:
    model = Mixed()
    group = fastsn.apply(model, "sn", gradient="through", update=update)
    if not grouped:
        group.detach()
    held = model.layer.parametrizations.weight
    original, norm = held.original, held[0]
    v = F.normalize(torch.randn(6), dim=0)  # far from where the iteration ends
    with torch.no_grad():
        norm._v.copy_(v)
    norm.forget_weight()
    weight, v = original.detach().double().requires_grad_(), v.double()
    pull = torch.randn(5, 6)
    model(pull).backward()
    (weight / oracle(weight, [v], [0]) * pull).sum().backward()
    torch.testing.assert_close(original.grad.double(), weight.grad, rtol=0.05, atol=0.03)
    constant = weight.detach().requires_grad_()
    with torch.no_grad():
        u, v, _ = iterate(constant, v, 0)
    (constant / (u @ constant @ v) * pull).sum().backward()
    assert float((constant.grad - weight.grad).abs().max()) > 0.1  # which would be seen


def test_compiled() -> None:
    model = small_cnn()
    fastsn.apply(model, "bsn", gradient="through")
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
    assert all(torch.allclose(a, b) for a, b in zip(vectors(model), vectors(twin), strict=True))
    in_steps = small_cnn()
    fastsn.apply(in_steps, "bsn", gradient="through", update="step")
    with pytest.raises(Exception, match="update='forward' in a model that is compiled"):
        torch.compile(in_steps, fullgraph=True, backend="aot_eager")(images())


def test_degenerate_weights() -> None:
    layer = fastsn.spectral_norm(nn.Linear(3, 4), gradient="through")
    original = layer.parametrizations.weight.original
    before = vectors(layer)
    for value in (0.0, float("nan")):
        with torch.no_grad():
            original.fill_(value)
        original.grad = None
        layer(torch.ones(1, 3)).sum().backward()
        assert bool(torch.isfinite(original.grad).all()) == (value == 0)
        assert all(map(torch.equal, before, vectors(layer)))
    with torch.no_grad():
        original.copy_(torch.randn(4, 3))
    original.grad = None
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.isfinite(original.grad).all()


def test_only_backends_with_the_formula_are_taken() -> None:
    device = torch.device("cpu")
    for name, backend in backends.BACKENDS.items():
        reasons = backends.explain(device, torch.float32, ("gradient",))[name]
        assert ("it has no kernel for gradient=" in reasons) == ("gradient" not in backend.options)
    layer = fastsn.spectral_norm(nn.Linear(3, 4), gradient="through")
    with (
        fastsn.use_backend("batched"),
        pytest.raises(RuntimeError, match="batched: it has no kernel for gradient="),
    ):
        layer(torch.ones(1, 3))
    layer(torch.ones(1, 3))


def test_copies_and_files() -> None:
    model = small_cnn()
    fastsn.apply(model, "bsn", gradient="through")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(norm.gradient == "through" for norm in norms(twin))
    state: Any = model.state_dict()
    settings = state._metadata["0.parametrizations.weight.0"]["fastsn"]
    assert settings["gradient"] == "through"
    other = small_cnn()
    fastsn.apply(other, "bsn")
    other.load_state_dict(state)  # the function is the same
    x = images()
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("gradient", ["", "Through", "stop", None, True, 1])
def test_bad_values(gradient: Any) -> None:
    layer = nn.Linear(3, 4)
    text = f"gradient to be 'constant' or 'through', got {gradient!r}"
    with pytest.raises(ValueError, match=text):
        fastsn.spectral_norm(layer, gradient=gradient)
    with pytest.raises(ValueError, match=text):
        fastsn.apply(layer, "sn", gradient=gradient)
    w, u, v = torch.randn(3, 4), torch.randn(3), torch.randn(4)
    with pytest.raises(ValueError, match=text):
        spectral_normalize([w], [u], [v], gradient=gradient)
    assert type(layer) is nn.Linear
