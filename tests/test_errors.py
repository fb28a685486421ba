"""Bad input: messages say what was expected, what came, what to do; nothing is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import small_cnn, state
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as torch_hook
from torch.nn.utils.parametrizations import spectral_norm as torch_parametrization

import fastsn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Asserts that a model has the same modules, entries, hooks and bits afterwards."""

    def picture() -> tuple[Any, ...]:
        modules = [(name, id(m), type(m)) for name, m in model.named_modules()]
        hooks = [
            (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._load_state_dict_pre_hooks))
            for m in model.modules()
        ]
        return modules, hooks, [(name, id(p)) for name, p in model.named_parameters()]

    before = picture()
    values = state(model) if not has_lazy(model) else {}
    yield
    assert picture() == before
    for key, value in values.items():
        now = model.state_dict()[key]
        assert torch.equal(value, now) or (value.isnan() == now.isnan()).all()


def has_lazy(model: nn.Module) -> bool:
    return any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters())


LAYER_ERRORS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "no such parameter": (
        lambda: nn.Linear(3, 4), {"name": "kernel"}, ValueError,
        "has no parameter or buffer with name 'kernel'",
    ),
    "not a tensor": (
        lambda: nn.Linear(3, 4), {"name": "in_features"}, ValueError, "has no parameter or buffer",
    ),
    "lazy weight": (
        lambda: nn.LazyLinear(4), {}, ValueError, "run one forward of the model before",
    ),
    "bad dim": (
        lambda: nn.Linear(3, 4), {"dim": 2}, IndexError,
        r"expected to be in range of \[-2, 1\] but got 2",
    ),
    "bidirectional dim": (
        lambda: nn.Conv2d(3, 4, 3), {"dim": 2, "bidirectional": True}, ValueError,
        "dim to be 0 or 1 for a bidirectional norm, but got dim=2",
    ),
    "zero iterations": (
        lambda: nn.Linear(3, 4), {"n_power_iterations": 0}, ValueError,
        "n_power_iterations to be positive, but got n_power_iterations=0",
    ),
    "negative eps": (
        lambda: nn.Linear(3, 4), {"eps": -1e-3}, ValueError, "eps to be non-negative",
    ),
    "NaN eps": (
        lambda: nn.Linear(3, 4), {"eps": math.nan}, ValueError, "eps to be non-negative",
    ),
    "zero scale": (
        lambda: nn.Linear(3, 4), {"scale": 0.0}, ValueError, "to be finite and not zero, got 0",
    ),
    "zero tensor scale": (
        lambda: nn.Linear(3, 4), {"scale": torch.zeros(())}, ValueError, "not zero, got 0",
    ),
    "NaN scale": (
        lambda: nn.Linear(3, 4), {"scale": math.nan}, ValueError, "scale to be finite",
    ),
    "scale shape": (
        lambda: nn.Linear(3, 4), {"scale": torch.ones(4)}, ValueError,
        r"0-d tensor, got a torch.float32 tensor of shape \(4,\)",
    ),
    "integer tensor scale": (
        lambda: nn.Linear(3, 4), {"scale": torch.tensor(2)}, ValueError, "floating 0-d tensor",
    ),
    "scale type": (
        lambda: nn.Linear(3, 4), {"scale": "1.2"}, TypeError, "to be a number or a 0-d tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, options, kind, message", LAYER_ERRORS.values(), ids=LAYER_ERRORS)
def test_layer_error(
    make: Callable[[], nn.Module], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    layer = make()
    with unchanged(layer), pytest.raises(kind, match=message):
        fastsn.spectral_norm(layer, **options)


def test_integer_weight() -> None:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.int32), requires_grad=False)
    with unchanged(layer), pytest.raises(TypeError, match="floating or complex, got torch.int32"):
        fastsn.spectral_norm(layer)
    model = nn.Sequential(nn.Linear(3, 3), layer)
    with unchanged(model), pytest.raises(TypeError, match="layer '1'.*got torch.int32"):
        fastsn.apply(model)


def test_scalar_weight() -> None:
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.ones(()))
    with unchanged(layer), pytest.raises(ValueError, match="at least one dimension, got a scalar"):
        fastsn.spectral_norm(layer)


def test_weight_of_torchs_old_hook() -> None:
    layer = torch_hook(nn.Linear(3, 4))
    with unchanged(layer), pytest.raises(ValueError, match=r"already normalizes.*fastsn.convert"):
        fastsn.spectral_norm(layer)


APPLY_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown method": ({"method": "bssnn"}, ValueError, r"'bsn', 'bssn'\], got 'bssnn'"),
    "scale for sn": ({"method": "sn", "scale": 2.0}, ValueError, "use method 'ssn'"),
    "scale for bsn": ({"method": "bsn", "scale": 2.0}, ValueError, "use method 'bssn'"),
    "zero scale": ({"scale": 0}, ValueError, "scale to be finite and not zero"),
    "update": ({"update": "epoch"}, ValueError, "update to be 'forward' or 'step', got 'epoch'"),
    "iterations": ({"n_power_iterations": -1}, ValueError, "n_power_iterations to be positive"),
    "eps": ({"eps": -1.0}, ValueError, "eps to be non-negative"),
    "include no match": ({"include": ["block*"]}, ValueError, r"include pattern 'block\*' to"),
    "exclude matches nothing": ({"exclude": ["8"]}, ValueError, "exclude pattern '8' to match"),
    "exclude is a string": ({"exclude": "7"}, TypeError, "exclude to be a list of names"),
    "nothing left": ({"exclude": ["*"]}, ValueError, "got none left by include and exclude"),
}  # fmt: skip


@pytest.mark.parametrize("options, kind, message", APPLY_ERRORS.values(), ids=APPLY_ERRORS)
def test_apply_error(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = small_cnn()
    with unchanged(model), pytest.raises(kind, match=message):
        fastsn.apply(model, **options)


def test_model_where_nothing_matched() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
    with (
        unchanged(model),
        pytest.raises(ValueError, match="Sequential to have a linear.*got none in it"),
    ):
        fastsn.apply(model)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="to have a fastsn spectral norm, got none"),
    ):
        fastsn.fold(model)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="to have a fastsn spectral norm, got none"),
    ):
        fastsn.SpectralNormGroup(model)


@pytest.mark.parametrize("norm", [torch_hook, torch_parametrization, fastsn.spectral_norm])
def test_already_normalized_layer(norm: Callable[[nn.Module], nn.Module]) -> None:
    """The seventh of nine layers is at fault: none of the others is touched."""
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(9)])
    norm(model[6])
    with unchanged(model), pytest.raises(ValueError, match="layer '6' not to be normalized"):
        fastsn.apply(model)


def test_lazy_layer_in_a_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))
    with unchanged(model), pytest.raises(ValueError, match="layer '1'.*run one forward"):
        fastsn.apply(model)
    model(torch.randn(1, 3))
    fastsn.apply(model)


def test_tied_weight_normalized_twice() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    fastsn.spectral_norm(first)
    with unchanged(second), pytest.raises(ValueError, match="tied weight that another"):
        fastsn.spectral_norm(second)
    parametrize.remove_parametrizations(first, "weight")
    first.weight = second.weight
    fastsn.spectral_norm(second)


def test_tied_weights_with_rows_along_different_dimensions() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))
    model[1].weight = model[0].weight
    with unchanged(model), pytest.raises(ValueError, match=r"got 0 for '0.weight' and 1 for '1.w"):
        fastsn.apply(model)
    fastsn.apply(model, exclude=["1"])


def test_mixed_devices_are_named() -> None:
    weights = [torch.randn(3, 3), torch.randn(3, 3, device="meta")]
    us, vs = [torch.randn(3)] * 2, [torch.randn(3)] * 2
    with pytest.raises(ValueError, match=r"weights\[1\] on cpu as weights\[0\], got meta"):
        fastsn.functional.spectral_normalize(weights, us, vs)


def test_vectors_left_on_another_device_are_named() -> None:
    model = small_cnn()
    fastsn.apply(model, "sn")
    norm = model[2].parametrizations.weight[0]
    norm._u = norm._u.to("meta")
    with pytest.raises(RuntimeError, match=r"layer '2'.*_u.*on cpu.*meta"):
        model(torch.randn(1, 3, 8, 8))


def test_group_calls_name_the_layer_at_fault() -> None:
    model = small_cnn()
    fastsn.apply(model, "sn")
    norm = model[4].parametrizations.weight[0]
    norm._v = norm._v[:-1].clone()
    with pytest.raises(RuntimeError, match=r"layer '4'.*_v.*\(108,\).*\(107,\)"):
        model(torch.randn(1, 3, 8, 8))


def test_unknown_backend() -> None:
    wrong = pytest.raises(ValueError, match=r"use_backend: expected one of 'auto'.*got 'tpu'")
    with wrong, fastsn.use_backend("tpu"):
        raise AssertionError("not reached")


def test_unavailable_backend_gives_every_reason() -> None:
    model = small_cnn()
    fastsn.apply(model, "sn")
    before = state(model)
    with fastsn.use_backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' cannot"):
        model(torch.randn(1, 3, 8, 8))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    model(torch.randn(1, 3, 8, 8))


def test_fold_with_another_parametrization() -> None:
    layer = torch.nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    fastsn.spectral_norm(layer)
    with unchanged(layer), pytest.raises(ValueError, match=r"got \['_Orthogonal'\] too"):
        fastsn.fold(layer)


class Stubborn(nn.Linear):
    """A layer that does not give its weight away."""

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} stays")


def test_layer_that_refuses_leaves_the_others_as_they_were() -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)], Stubborn(3, 3), nn.Linear(3, 3))
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(AttributeError, match="weight stays"):
        fastsn.apply(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(type(layer) in (nn.Linear, Stubborn) for layer in model)
    assert not model._forward_pre_hooks and not model[0]._load_state_dict_pre_hooks
