"""Soft norms of other projects, known by name, taken over with equal numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import originals
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

import fastsn


def softly(hook: Any, module: Any, iterates: bool) -> Tensor:
    """v first, then u, from the buffers; then the quotient that both projects use."""
    weight, u, v = (getattr(module, hook.name + end) for end in ("_orig", "_u", "_v"))
    matrix = weight.movedim(hook.dim, 0).flatten(1)
    if iterates:
        with torch.no_grad():
            for _ in range(hook.n_power_iterations):
                v.copy_(F.normalize(matrix.T @ u, dim=0, eps=hook.eps))
                u.copy_(F.normalize(matrix @ v, dim=0, eps=hook.eps))
    sigma = u.clone() @ (matrix @ v.clone())
    getattr(module, hook.name + "_sigma").fill_(sigma.detach())
    return weight / torch.maximum(torch.ones_like(sigma), sigma / hook.coeff)


class SpectralNormFC(TorchHook):
    """As DUE's: torch's hook with another quotient."""

    coeff: float

    def compute_weight(self, module: Any, do_power_iteration: bool) -> Tensor:
        return softly(self, module, do_power_iteration)


class SpectralNorm:
    """As invertible-resnet's: a hook of its own."""

    def __init__(self, name: str, n_power_iterations: int, dim: int, eps: float) -> None:
        self.name, self.n_power_iterations, self.dim, self.eps = name, n_power_iterations, dim, eps

    def __call__(self, module: Any, _inputs: Any) -> None:
        setattr(module, self.name, softly(self, module, module.training))


class OfState:
    """A hook on state dicts that belongs to ``fn``."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self, *_arguments: Any) -> None:
        pass


SpectralNormFC.__module__ = "due.layers.spectral_norm_fc"
SpectralNorm.__module__ = "spectral_norm_fc"


def soften(layer: nn.Module, kind: Any, coeff: float) -> nn.Module:
    hook = kind("weight", 2, 0, 1e-12)
    hook.coeff = coeff
    weight: Any = layer._parameters.pop("weight")
    layer.register_parameter("weight_orig", weight)
    for name, size in (("u", weight.shape[0]), ("v", weight[0].numel())):
        layer.register_buffer(f"weight_{name}", F.normalize(torch.randn(size).to(weight), dim=0))
    layer.register_buffer("weight_sigma", torch.ones(1).to(weight))
    layer.weight = weight.data  # type: ignore[assignment]
    layer.register_forward_pre_hook(hook)
    layer._register_state_dict_hook(OfState(hook))
    return layer


def build(kind: Any) -> nn.Module:
    return nn.Sequential(
        soften(nn.Linear(5, 7), kind, 0.4), nn.Tanh(), soften(nn.Linear(7, 3), kind, 50.0)
    ).double()


@pytest.mark.parametrize("kind", [SpectralNormFC, SpectralNorm])
def test_numbers_go_on(kind: Any) -> None:
    torch.manual_seed(0)
    theirs = build(kind)
    torch.manual_seed(0)
    ours = build(kind)
    parameters = list(ours.parameters())
    group = fastsn.convert(ours)
    assert list(map(id, ours.parameters())) != [] and set(map(id, ours.parameters())) == set(
        map(id, parameters)
    )
    assert "bound=0.4" in str(group) and f"spectral_norm_fc.{kind.__name__}" in str(group)
    assert not any(layer._forward_pre_hooks or layer._state_dict_hooks for layer in ours)
    assert not any("sigma" in name for name, _ in ours.named_buffers())
    raw: Any = [theirs[0].weight_orig, theirs[2].weight_orig]
    for _ in range(4):
        x = torch.randn(6, 5).double()
        out, expected = ours(x), theirs(x)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
        out.square().sum().backward()
        expected.square().sum().backward()
        for a, b in zip(originals(ours), raw, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
            with torch.no_grad():
                a.sub_(a.grad, alpha=0.1)
                b.sub_(b.grad, alpha=0.1)
            a.grad = b.grad = None
        for i in (0, 2):
            norm = ours[i].parametrizations.weight[0]
            torch.testing.assert_close(norm._u, theirs[i].weight_u, rtol=1e-10, atol=1e-12)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-11, atol=1e-12)


def test_their_files_load() -> None:
    theirs, ours = build(SpectralNormFC), build(SpectralNormFC)
    fastsn.convert(ours)
    x = torch.randn(6, 5).double()
    theirs(x)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-11, atol=1e-12)


def test_a_class_of_that_name_elsewhere_is_left_alone() -> None:
    class Other(SpectralNormFC):
        pass

    Other.__name__, Other.__module__ = "SpectralNormFC", "my.norms"
    model = nn.Sequential(
        soften(nn.Linear(5, 7), Other, 0.4), fastsn.spectral_norm(nn.Linear(7, 3))
    )
    group = fastsn.convert(model)
    assert len(group) == 1 and "SpectralNormFC, a subclass of torch's" in str(group)
