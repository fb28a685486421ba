"""Derivatives by the weights, of every kind torch has: batched, forward-mode, of any order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from settings import in_all_settings, normalize, torch_norms
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import fastsn

pytestmark = [
    pytest.mark.usefixtures("backend"),
    # torch's own, when it loads its rules for forward mode
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning"),
]

KEY = "0.parametrizations.weight.original"


def pair(update: str, grouped: bool) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, evaluated: sigma is then the same function of the weights."""
    theirs = torch_norms(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    ours = normalize(copy.deepcopy(theirs), update, grouped)
    return ours.eval(), theirs.eval()


def function_of(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weight: functional_call(model, {KEY: weight}, (x,))


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@in_all_settings
def test_is_grads_batched(update: str, grouped: bool) -> None:
    ours, theirs = pair(update, grouped)
    x = torch.randn(5, 3, dtype=torch.float64)
    directions = torch.randn(6, 5, 2, dtype=torch.float64)
    results = [
        torch.autograd.grad(model(x), list(model.parameters()), directions, is_grads_batched=True)
        for model in (ours, theirs)
    ]
    close(*results)


@in_all_settings
def test_vmap_of_a_backward(update: str, grouped: bool) -> None:
    ours, theirs = pair(update, grouped)
    x = torch.randn(5, 3, dtype=torch.float64)
    directions = torch.randn(6, 5, 2, dtype=torch.float64)

    def pulled(model: nn.Module) -> Any:
        out, parameters = model(x), list(model.parameters())
        return vmap(
            lambda direction: torch.autograd.grad(out, parameters, direction, retain_graph=True)
        )(directions)

    close(pulled(ours), pulled(theirs))


@in_all_settings
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian(strategy: str, update: str, grouped: bool) -> None:
    ours, theirs = pair(update, grouped)
    x = torch.randn(2, 3, dtype=torch.float64)
    weight = dict(ours.named_parameters())[KEY].detach()
    results = [
        torch.autograd.functional.jacobian(
            function_of(model, x), weight, vectorize=True, strategy=strategy
        )
        for model in (ours, theirs)
    ]
    close(*results)


@in_all_settings
@pytest.mark.parametrize("transform", [jacfwd, jacrev, hessian])
def test_transforms(transform: Any, update: str, grouped: bool) -> None:
    ours, theirs = pair(update, grouped)
    x = torch.randn(2, 3, dtype=torch.float64)
    weight = dict(ours.named_parameters())[KEY].detach()
    close(*(transform(function_of(model, x))(weight) for model in (ours, theirs)))


@in_all_settings
def test_jvp_and_dual_numbers(update: str, grouped: bool) -> None:
    ours, theirs = pair(update, grouped)
    x = torch.randn(2, 3, dtype=torch.float64)
    weight = dict(ours.named_parameters())[KEY].detach()
    tangent = torch.randn_like(weight)
    expected = jvp(function_of(theirs, x), (weight,), (tangent,))
    close(jvp(function_of(ours, x), (weight,), (tangent,)), expected)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            dual = forward_ad.make_dual(weight, tangent)
            close(tuple(forward_ad.unpack_dual(function_of(ours, x)(dual)))[1], expected[1])


@in_all_settings
def test_dual_numbers_of_a_scale(update: str, grouped: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4)).double()
    gamma = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    group = fastsn.apply(model, "bssn", scale=gamma, update=update)
    if not grouped:
        group.detach()
    model.eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    name = next(k for k, v in model.named_parameters() if v is gamma)
    plain = functional_call(model, {"0.bias": torch.zeros(4, dtype=torch.float64)}, (x,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(gamma.detach(), torch.ones_like(gamma))
        out = functional_call(model, {name: dual}, (x,))
        close(forward_ad.unpack_dual(out).tangent, plain.detach() / 1.3)


@in_all_settings
def test_gradcheck_with_batched_and_forward_mode(update: str, grouped: bool) -> None:
    ours, _ = pair(update, grouped)
    x = torch.randn(2, 3, dtype=torch.float64)
    weight = dict(ours.named_parameters())[KEY].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        function_of(ours, x), (weight,), check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(
        function_of(ours, x), (weight,), check_batched_grad=True, check_fwd_over_rev=True
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradcheck_of_the_function(bidirectional: bool) -> None:
    u, v = [torch.randn(n, dtype=torch.float64) for n in (4, 3)], []
    v = [torch.randn(n, dtype=torch.float64) for n in (6, 8)]
    count = 2 if bidirectional else 1

    def function(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        result = fastsn.functional.spectral_normalize(
            [weight], u[:count], v[:count], bidirectional=bidirectional, scale=scale,
            n_power_iterations=0,
        )  # fmt: skip
        return result.weights[0], result.sigmas

    at = (
        torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True),
        torch.tensor([1.7], dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(function, at, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, at, check_batched_grad=True)


@in_all_settings
@pytest.mark.parametrize("training", [True, False])
def test_stacked_models(training: bool, update: str, grouped: bool) -> None:
    """An ensemble by ``stack_module_state``: each member as if it were alone."""
    models = []
    for _ in range(3):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        group = fastsn.apply(model, "bssn", update=update)
        if not grouped:
            group.detach()
        models.append(model.train(training))
    x = torch.randn(5, 3, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0])

    def call(parameters: Any, buffers: Any) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    out = vmap(call)(parameters, buffers)
    close(out, torch.stack([model(x) for model in models]))
    stacked = {name: torch.stack([dict(m.named_buffers())[name] for m in models])
               for name in buffers}  # fmt: skip
    close(buffers, stacked)  # advanced in place, each its own
    grads = torch.autograd.grad(out.square().sum(), list(parameters.values()))
    for model in models:
        model.eval()
    singles = [
        torch.autograd.grad(model(x).square().sum(), list(model.parameters())) for model in models
    ]
    for i, grad in enumerate(grads):
        torch.testing.assert_close(
            grad, torch.stack([single[i] for single in singles]), rtol=1e-8, atol=1e-10
        )
