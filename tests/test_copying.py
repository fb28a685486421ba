"""Copies of normalized models: each is whole, independent, and goes on with the same numbers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from models import equal, images, norms, originals, small_cnn, vectors
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastsn


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": _pickled,
    "torch_save_module": _saved,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("update", ["forward", "step"])
def test_copy_trains_on_alone(make: Callable[[nn.Module], nn.Module], update: str) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    model(images()).sum().backward()  # caches and graphs are alive while it is copied
    twin = make(model)
    assert isinstance(twin[0], nn.Conv2d)
    assert equal(vectors(model), vectors(twin))
    before = vectors(model)
    with torch.no_grad():
        for weight in originals(twin):
            weight.add_(0.1)
    x = images()
    twin(x).sum().backward()
    assert equal(before, vectors(model))
    assert not equal(before, vectors(twin))
    # The copy is a group of its own: the original's layers are not looked at.
    model[0] = nn.Identity()
    twin(x)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copy_of_a_single_layer_with_a_group(make: Callable[[nn.Module], nn.Module]) -> None:
    layer = nn.Linear(4, 3)
    fastsn.apply(layer, "bssn")
    twin = make(layer)
    x = torch.randn(2, 4)
    torch.testing.assert_close(twin(x), layer(x))
    twin(x).sum().backward()
    with fastsn.group_of(make(layer)).frozen():
        pass
    assert fastsn.group_of(twin).model is twin
    assert type(fastsn.fold(twin)) is nn.Linear


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copy_gives_the_same_numbers(make: Callable[[nn.Module], nn.Module]) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", scale=nn.Parameter(torch.tensor(1.1)))
    twin = make(model)
    x = images()
    for _ in range(2):
        out, other = model(x), twin(x)
        assert torch.equal(out, other)
    grads = torch.autograd.grad(out.sum(), list(model.parameters()))
    others = torch.autograd.grad(other.sum(), list(twin.parameters()))
    assert equal(list(grads), list(others))
    scales = {id(norm.scale) for norm in norms(twin)}
    assert len(scales) == 1  # a shared parameter stays shared


def test_shallow_copy_of_a_layer() -> None:
    layer = fastsn.spectral_norm(nn.Linear(4, 3))
    twin = copy.copy(layer)
    assert twin.parametrizations is layer.parametrizations
    assert twin(torch.randn(2, 4)).shape == (2, 3)


def test_deepcopy_of_one_layer_leaves_the_model_behind() -> None:
    model = small_cnn()
    fastsn.apply(model, "sn")
    memo: dict[int, object] = {}
    layer = copy.deepcopy(model[0], memo)
    assert id(model) not in memo and id(model[2]) not in memo
    layer(images()).sum().backward()


def test_pickle_of_a_subclass_with_its_own_state() -> None:
    layer = Counting(4, 3)
    fastsn.spectral_norm(layer)
    layer.calls = 7
    twin = _pickled(layer)
    assert twin.calls == 7
    assert isinstance(twin, Counting)
    assert torch.equal(twin.eval().weight, layer.eval().weight)


class Counting(nn.Linear):
    calls = 0


def test_copies_can_be_folded_without_harm_to_the_original() -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn")
    for make in COPIES.values():
        fastsn.fold(make(model))
        model(images()).sum().backward()


@pytest.mark.parametrize("use_buffers", [True, False])
def test_ema_copy_stays_normalized(use_buffers: bool) -> None:
    """Averaging shortens the vectors; sigma does not depend on their length."""
    model = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(20)])
    fastsn.apply(model, "sn")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    for _ in range(5):
        with torch.no_grad():
            for weight in originals(model):
                weight.add_(0.3 * torch.randn_like(weight))
        model(torch.randn(4, 16))
        ema.update_parameters(model)
    ema.eval()
    x = torch.randn(64, 16)
    gain = float(ema(x).detach().norm() / x.norm())
    assert gain < 1.5
    if use_buffers:
        lengths = [float(u.norm()) for norm in norms(ema) for u, _ in norm.vectors()]
        assert min(lengths) < 0.99  # the averaged vectors did become shorter


def test_to_dtype_and_meta_device() -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", scale=1.2)
    model.double()
    assert all(v.dtype == torch.double for v in vectors(model))
    model(images().double()).sum().backward()
    model.bfloat16()
    assert model(images().bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        lazy = small_cnn()
        fastsn.apply(lazy, "bssn")
    assert lazy(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 1)
    lazy.to_empty(device="cpu")
    source = small_cnn()
    fastsn.apply(source, "bssn")
    lazy.load_state_dict(source.state_dict())
    x = images()
    assert torch.equal(lazy(x), source(x))
