"""``scale="sigma"``: sigma-Reparam (Zhai et al. 2023), against its formula in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import images, norms, small_cnn, state
from torch import Tensor, nn
from torch.func import functional_call

import fastsn


def double_cnn() -> nn.Module:
    return small_cnn().double()


@pytest.mark.parametrize("method", ["ssn", "bssn"])
@pytest.mark.parametrize("update", ["forward", "step"])
def test_the_function_does_not_change_at_the_beginning(method: str, update: str) -> None:
    model = double_cnn()
    x = images().double()
    expected = model(x)
    group = fastsn.apply(model, method, scale="sigma", update=update)
    assert len({id(norm.scale) for norm in norms(model)}) == len(group) == 4
    assert all(isinstance(norm.scale, nn.Parameter) for norm in norms(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)  # after an iteration
    model.eval()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)
    for member in group.members:
        matrix = member.weight.detach().movedim(member.norm.dim, 0).flatten(1)
        exact = torch.linalg.matrix_norm(matrix, 2)
        if not member.norm._buffers.keys() >= {"_u_in"}:
            torch.testing.assert_close(member.norm.scale.detach(), exact, rtol=1e-3, atol=0)
    assert "scale=sigma" in str(group)


@pytest.mark.usefixtures("backend")
def test_numbers_and_gradients_are_the_papers() -> None:
    """``W_hat = gamma W / sigma(W)``, with sigma ``u^T W v`` and u, v constants."""
    layer = nn.Linear(5, 7).double()
    twin = copy.deepcopy(layer)
    fastsn.spectral_norm(layer, scale="sigma")
    norm = layer.parametrizations.weight[0]
    u, v = (vector.clone() for vector in norm.vectors()[0])
    gamma = norm.scale.detach().clone().requires_grad_()
    weight = twin.weight
    for _ in range(3):
        x = torch.randn(4, 5).double()
        with torch.no_grad():
            u = F.normalize(weight @ v, dim=0)
            v = F.normalize(weight.T @ u, dim=0)
        expected = F.linear(x, gamma * weight / (u @ weight @ v), twin.bias)
        out = layer(x)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
        out.square().sum().backward()
        expected.square().sum().backward()
        ours = layer.parametrizations.weight.original
        for a, b in ((ours, weight), (norm.scale, gamma), (layer.bias, twin.bias)):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-12)
            with torch.no_grad():
                a.sub_(a.grad, alpha=0.01)
                b.copy_(a)
            a.grad = b.grad = None


def test_derivatives() -> None:
    layer = nn.Linear(3, 4).double()
    fastsn.spectral_norm(layer, scale="sigma").eval()
    names = ["parametrizations.weight.original", "parametrizations.weight.0.scale"]
    given = [layer.get_parameter(name).detach().requires_grad_() for name in names]
    x = torch.randn(2, 3).double()

    def run(weight: Tensor, scale: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, (weight, scale), strict=True)), (x,))

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


class Block(nn.Module):
    """A transformer's block without layer norm on its output, as sigma-Reparam allows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.feed(x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformer_of_24_blocks_trains(dtype: torch.dtype) -> None:
    width = 16
    model = nn.Sequential(*[Block(width) for _ in range(24)], nn.Linear(width, 4)).to(dtype)
    x = torch.randn(8, 6, width).to(dtype)
    target = torch.randint(4, (8, 6))
    with torch.no_grad():
        expected = model(x)
    group = fastsn.apply(model, "ssn", scale="sigma", update="step")
    assert len(group) == 24 * 4 + 1
    with torch.no_grad():
        close = 1e-3 if dtype is torch.float32 else 0.15
        torch.testing.assert_close(model(x), expected, rtol=close, atol=close)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x).float().flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02
    assert all(norm.scale.dtype is torch.float32 for norm in norms(model))
    assert all(norm.scale.grad is not None for norm in norms(model))


def test_half_weights_have_a_float32_scale() -> None:
    layer = fastsn.spectral_norm(nn.Linear(8, 8).to(torch.bfloat16), scale="sigma")
    scale = layer.parametrizations.weight[0].scale
    assert scale.dtype is torch.float32
    original = layer.parametrizations.weight.original
    torch.testing.assert_close(layer.eval().weight, original, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_files(way: Callable[[Any], Any]) -> None:
    model = double_cnn()
    fastsn.apply(model, "ssn", scale="sigma", update="step")
    with torch.no_grad():
        for norm in norms(model):
            norm.scale.mul_(1.5)
    x = images().double()
    expected = model.eval()(x)
    assert torch.equal(way(model)(x), expected)
    other = double_cnn()
    fastsn.apply(other, "ssn", scale="sigma")
    other.load_state_dict(state(model))
    assert torch.equal(other.eval()(x), expected)
    plain = double_cnn()
    fastsn.apply(plain, "ssn", scale=1.2)
    with pytest.raises(RuntimeError, match="scale"):
        plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(fastsn.fold(model)(x), expected, rtol=1e-14, atol=0)


def test_compiled() -> None:
    model = double_cnn()
    fastsn.apply(model, "bssn", scale="sigma")
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images().double()
    out, expected = compiled(x), twin(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_tied_and_one_dimensional_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].weight = model[0].weight
    nn.init.uniform_(model[2].weight)
    x = torch.randn(3, 4)
    expected = model(x)
    fastsn.apply(model, "ssn", scale="sigma", include=["0", "1", "2.weight"])
    assert len(norms(model)) == 2
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "sn", "scale": "sigma"}, "no scale for method 'sn'"),
        ({"method": "bsn", "scale": "sigma"}, "no scale for method 'bsn'"),
        ({"method": "ssn", "scale": "sigma", "bound": 1.0}, "no bound for method 'ssn'"),
        ({"method": "ssn", "scale": "Sigma"}, "or 'sigma', got 'Sigma'"),
        ({"method": "ssn", "scale": ""}, "or 'sigma', got ''"),
    ],
)
def test_bad_options(options: Any, text: str) -> None:
    model = small_cnn()
    before = state(model)
    with pytest.raises((TypeError, ValueError), match=text):
        fastsn.apply(model, **options)
    assert list(model.state_dict()) == list(before)


def test_zero_weight_is_named() -> None:
    model = small_cnn()
    nn.init.zeros_(model[7].weight)
    before = state(model)
    with pytest.raises(ValueError, match=r"layer '7'.*positive, finite sigma.*got sigma 0.0"):
        fastsn.apply(model, "ssn", scale="sigma")
    assert list(model.state_dict()) == list(before)
    with pytest.raises(ValueError, match="positive, finite sigma"):
        fastsn.spectral_norm(model[7], scale="sigma")
