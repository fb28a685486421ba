"""Models that use torch's spectral norm, taken over in one line with the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from models import images, originals, vectors
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as torch_hook
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrizations import spectral_norm as torch_parametrization

import fastsn
from fastsn.plan import SN_V_FIRST

PARAMETRIZED = {
    "parametrization": (torch_parametrization,) * 4,
    "hook": (torch_hook,) * 4,
    "mixed": (torch_parametrization, torch_hook, torch_hook, torch_parametrization),
}


def peer_model(kinds: tuple) -> nn.Sequential:
    norm1, norm2, norm3, norm4 = kinds
    return nn.Sequential(
        norm1(nn.Conv2d(3, 8, 3, padding=1), n_power_iterations=2),
        nn.LeakyReLU(0.1),
        norm2(nn.Conv2d(8, 12, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        norm3(nn.ConvTranspose2d(12, 6, 3), eps=1e-6),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        norm4(nn.Linear(216, 1)),
        nn.Linear(1, 1),
    )


def copied(model: nn.Sequential, kinds: tuple) -> nn.Sequential:
    twin = peer_model(kinds)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    return twin


@pytest.mark.parametrize("kinds", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_convert_trains_on_with_the_same_numbers(kinds: tuple) -> None:
    """Same outputs and the same ten training steps, with the optimizer made before converting."""
    peer = peer_model(kinds)
    model = copied(peer, kinds)
    optimizers = [
        torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (peer, model)
    ]
    fastsn.convert(model)
    for _ in range(10):
        real, fake = images(), images()
        losses = []
        for m, optimizer in zip((peer, model), optimizers, strict=True):
            optimizer.zero_grad()
            loss = torch.relu(1 - m(real)).mean() + torch.relu(1 + m(fake)).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    peer.eval()
    model.eval()
    x = images()
    torch.testing.assert_close(peer(x), model(x), rtol=1e-5, atol=1e-5)
    ours = {id(p) for p in model.parameters()}
    assert ours == {id(p) for group in optimizers[1].param_groups for p in group["params"]}


def test_convert_keeps_parameters_and_vectors() -> None:
    model = peer_model(PARAMETRIZED["mixed"])
    weight = model[2].weight_orig
    u = model[0].parametrizations.weight[0]._u
    fastsn.convert(model)
    assert model[2].parametrizations.weight.original is weight
    assert model[0].parametrizations.weight[0]._u is u
    assert not any("weight_orig" in name for name, _ in model.named_parameters())
    assert not model[2]._forward_pre_hooks and not model[2]._state_dict_hooks
    assert model[2].parametrizations.weight[0].kind == SN_V_FIRST


def test_converted_model_is_a_group_that_copies_and_folds() -> None:
    model = peer_model(PARAMETRIZED["mixed"])
    group = fastsn.convert(model)
    assert len(group) == 4
    twin = copy.deepcopy(model)
    twin(images()).sum().backward()
    twin.eval()
    x = images()
    expected = twin(x)
    torch.testing.assert_close(fastsn.fold(twin)(x), expected)


def test_convert_loads_the_old_files() -> None:
    peer = peer_model(PARAMETRIZED["hook"])
    peer(images())
    model = peer_model(PARAMETRIZED["hook"])
    fastsn.convert(model)
    model.load_state_dict(peer.state_dict())
    x = images()
    torch.testing.assert_close(model(x), peer(x))


def test_convert_frozen_and_eval_layers() -> None:
    model = peer_model(PARAMETRIZED["parametrization"])
    model[0].parametrizations.weight.original.requires_grad_(False)
    model.eval()
    before = [b.clone() for b in model.buffers()]
    x = images()
    expected = model(x)
    fastsn.convert(model)
    torch.testing.assert_close(model(x), expected)
    for a, b in zip(before, model.buffers(), strict=True):
        assert torch.equal(a, b)
    assert not model[0].weight.requires_grad


def test_convert_one_dimensional_weight() -> None:
    model = nn.Sequential(torch_parametrization(nn.Linear(3, 4), "bias"))
    expected = model[0].bias.detach().clone()
    fastsn.convert(model)
    torch.testing.assert_close(model[0].bias, expected)


def test_convert_says_what_it_did_and_why_not() -> None:
    model = peer_model(PARAMETRIZED["mixed"])
    model.append(orthogonal(nn.Linear(3, 3)))
    model.append(torch_parametrization(orthogonal(nn.Linear(3, 3))))
    model.append(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    text = str(fastsn.convert(model))
    done, left = text.split("left alone:")
    assert "0.weight" in done and "from torch's parametrization" in done
    assert "2.weight" in done and "from torch's old hook" in done
    assert "8.weight" in left and "no spectral norm" in left
    assert "9.weight" in left and "parametrized by _Orthogonal" in left
    assert "10.weight" in left and "it follows another parametrization" in left
    assert "11.weight" in left and "_WeightNorm" in left


def test_convert_behind_another_parametrization_keeps_working() -> None:
    torch.manual_seed(0)
    peer = nn.Sequential(torch_parametrization(orthogonal(nn.Linear(3, 3))), nn.Linear(3, 3))
    model = copy.deepcopy(peer)
    fastsn.spectral_norm(model[1])
    fastsn.convert(model)
    peer.eval()
    model.eval()
    torch.testing.assert_close(peer[0].weight, model[0].weight)


def test_convert_with_step_updates() -> None:
    model = peer_model(PARAMETRIZED["parametrization"])
    fastsn.convert(model, update="step")
    model(images())
    before = vectors(model)
    model(images())
    assert all(torch.equal(a, b) for a, b in zip(before, vectors(model), strict=True))
    with torch.no_grad():
        for weight in originals(model):
            weight.add_(0.1)
    model(images())
    assert not any(
        torch.equal(a, b) for a, b in zip(before, vectors(model), strict=True) if a.numel() > 1
    )


def test_convert_nothing_to_convert() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="to have a torch spectral norm, got none"):
        fastsn.convert(model)
    assert not parametrize.is_parametrized(model[0])
    with pytest.raises(ValueError, match="expected update to be"):
        fastsn.convert(model, update="never")
