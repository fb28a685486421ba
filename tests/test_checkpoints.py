"""State dicts: torch's of both APIs, BigGAN's and mimicry's load; bad ones are refused whole."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from models import equal, images, norms, small_cnn, state, vectors
from torch import nn
from torch.nn.utils import spectral_norm as torch_hook
from torch.nn.utils.parametrizations import spectral_norm as torch_parametrization

import fastsn

NORMALIZED = ("0", "2", "4", "7")


def ours(method: str = "sn") -> nn.Sequential:
    model = small_cnn()
    fastsn.apply(model, method)
    return model


def theirs(norm: Any) -> nn.Sequential:
    model = small_cnn()
    for name in NORMALIZED:
        norm(model.get_submodule(name))
    model(images())
    return model


def test_torch_to_fastsn_to_torch_round_trip() -> None:
    source = theirs(torch_parametrization)
    model = ours()
    model.load_state_dict(source.state_dict())
    back = theirs(torch_parametrization)
    back.load_state_dict(model.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(value, back.state_dict()[key]), key
    x = images()
    torch.testing.assert_close(model(x), source(x))


def test_old_hook_checkpoint_loads_and_goes_back() -> None:
    source = theirs(torch_hook)
    model = ours()
    model.load_state_dict(source.state_dict())
    x = images()
    torch.testing.assert_close(model.eval()(x), source.eval()(x))
    back = theirs(torch_hook)
    back.load_state_dict(fastsn.convert_state_dict(model.state_dict(), to="torch-hook"))
    for key, value in source.state_dict().items():
        assert torch.equal(value, back.state_dict()[key]), key


def foreign(left: str, sigma: str) -> tuple[nn.Sequential, OrderedDict[str, torch.Tensor]]:
    """A plain model and its state dict with one left vector of shape (1, rows) per layer."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4), nn.Embedding(5, 8))
    entries = model.state_dict()
    for name in ("0", "2", "3"):
        matrix = entries[f"{name}.weight"].flatten(1)
        u = torch.linalg.svd(matrix).U[:, 0]
        entries[f"{name}.{left}"] = u[None].clone()
        entries[f"{name}.{sigma}"] = torch.ones(1)
    return model, entries


@pytest.mark.parametrize("left, sigma", [("u0", "sv0"), ("sn_u", "sn_sigma")])
def test_biggan_and_mimicry_layouts_load(left: str, sigma: str) -> None:
    source, entries = foreign(left, sigma)
    model = copy.deepcopy(source)
    for layer in model:
        nn.init.normal_(layer.weight) if hasattr(layer, "weight") else None
    fastsn.apply(model, "sn")
    model.load_state_dict(entries)
    for name in ("0", "2", "3"):
        held = model.get_submodule(name).parametrizations.weight
        matrix = source.get_submodule(name).weight.detach().flatten(1)
        assert torch.equal(held.original, source.get_submodule(name).weight)
        assert torch.equal(held[0]._u, entries[f"{name}.{left}"].flatten())
        # u is the exact left singular vector: so is v the right one, and sigma exact.
        expected = matrix / torch.linalg.matrix_norm(matrix, 2)
        model.eval()
        torch.testing.assert_close(model.get_submodule(name).weight.flatten(1), expected)


def test_sn_checkpoint_loads_into_bsn_and_the_new_pair_warms_up() -> None:
    source = theirs(torch_parametrization)
    model = ours("bsn")
    fresh = {k: v.clone() for k, v in model.state_dict().items() if k.endswith("_in")}
    missing, unexpected = model.load_state_dict(source.state_dict())
    assert missing == [] and unexpected == []
    for norm in norms(model):
        weight = None
        for module in model.modules():
            held = getattr(module, "parametrizations", None)
            if held is not None and held.weight[0] is norm:
                weight = held.weight.original.detach()
        if weight.ndim == 2:
            continue
        matrix = weight.movedim(norm.views[1].dim, 0).flatten(1)
        exact = torch.linalg.matrix_norm(matrix, 2)
        estimate = torch.dot(norm._u_in, matrix @ norm._v_in)
        assert 0.95 < float(estimate / exact) <= 1.0001
    assert not all(torch.equal(v, model.state_dict()[k]) for k, v in fresh.items())


def test_bsn_checkpoint_round_trips_and_drops_to_torch() -> None:
    source = ours("bssn")
    source(images())
    model = ours("bssn")
    model.load_state_dict(source.state_dict())
    assert equal(vectors(source), vectors(model))
    peer = theirs(torch_parametrization)
    peer.load_state_dict(fastsn.convert_state_dict(source.state_dict(), to="torch"))


def test_convert_state_dict_needs_no_model_and_keeps_the_rest() -> None:
    _, entries = foreign("u0", "sv0")
    before = dict(entries)
    result = fastsn.convert_state_dict(entries)
    assert entries.keys() == before.keys()
    assert "0.parametrizations.weight.0._v" in result and "0.bias" in result
    assert not any(key.endswith(("u0", "sv0")) for key in result)
    hook = theirs(torch_hook).state_dict()
    names = fastsn.convert_state_dict(hook).keys()
    assert names == ours().state_dict().keys()
    with pytest.raises(ValueError, match="expected to be 'fastsn', 'torch' or 'torch-hook'"):
        fastsn.convert_state_dict(hook, to="keras")
    entries["0.u0"] = torch.randn(1, 5)
    with pytest.raises(ValueError, match=r"'0.parametrizations.weight.0._u' to have 8 elements"):
        fastsn.convert_state_dict(entries)
    del entries["0.weight"]
    with pytest.raises(ValueError, match=r"expected '0.weight' beside '0.u0'"):
        fastsn.convert_state_dict(entries)


BAD = {
    "short vector": ("4.parametrizations.weight.0._u", lambda t: t[:-1], "size mismatch"),
    "nan vector": ("4.parametrizations.weight.0._v", lambda t: t * float("nan"), "to be finite"),
    "wrong weight": ("4.parametrizations.weight.original", lambda t: t[:1], "size mismatch"),
    "not a tensor": ("4.parametrizations.weight.0._u", lambda t: "u", "to be a tensor"),
}


@pytest.mark.parametrize("key, damage, message", BAD.values(), ids=BAD)
@pytest.mark.parametrize("strict", [True, False])
def test_bad_state_dict_changes_nothing(key: str, damage: Any, message: str, strict: bool) -> None:
    model = ours("bssn")
    entries = ours("bssn").state_dict()
    entries[key] = damage(entries[key])
    before = state(model)
    with pytest.raises(RuntimeError, match=message) as error:
        model.load_state_dict(entries, strict=strict)
    assert key in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_bad_state_dict_of_a_single_layer_changes_nothing() -> None:
    layer = fastsn.spectral_norm(nn.Conv1d(3, 4, 3), bidirectional=True)
    entries = state(layer)
    entries["parametrizations.weight.0._v_in"] = torch.randn(3)
    entries["bias"] = torch.zeros(4)
    before = state(layer)
    with pytest.raises(RuntimeError, match=r"'parametrizations.weight.0._v_in'"):
        layer.load_state_dict(entries)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_load_in_step_mode_is_seen() -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update="step")
    other = ours("bssn")
    x = images()
    model(x)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x), other(x))


def test_missing_vectors_are_reported_by_torch() -> None:
    model = ours()
    with pytest.raises(RuntimeError, match=r"Missing key.*0.parametrizations.weight.0._u"):
        model.load_state_dict(small_cnn().state_dict())
