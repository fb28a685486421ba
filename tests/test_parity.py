"""The same numbers and the same errors as torch.nn.utils.parametrizations.spectral_norm."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import assert_near, same_bits
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastsn

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def integers(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 7


#: How to make a layer, its inputs, and the arguments of spectral_norm.
LAYERS: dict[str, tuple[Callable[[], nn.Module], list[Any], dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(7, 5), [(3, 7)], {}),
    "linear_one_row": (lambda: nn.Linear(6, 1), [(2, 6)], {}),
    "linear_one_column": (lambda: nn.Linear(1, 6), [(2, 1)], {}),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), [(2, 3, 8)], {}),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2)), [(2, 3, 6, 5)], {}),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), [(1, 2, 4, 3, 3)], {}),
    "conv2d_1x1": (lambda: nn.Conv2d(5, 4, 1), [(2, 5, 3, 3)], {}),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), [(2, 6, 5, 5)], {}),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), [(1, 4, 4, 4)], {}),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 4, 3), [(2, 3, 5)], {}),
    "transposed2d": (lambda: nn.ConvTranspose2d(3, 4, (2, 3)), [(2, 3, 4, 4)], {}),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), [(1, 2, 3, 3, 3)], {}),
    "grouped_transposed": (
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), [(2, 6, 4, 4)], {},
    ),
    "embedding": (lambda: nn.Embedding(7, 4), [integers(3, 5)], {}),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], {}),
    "dim_1": (lambda: nn.Linear(7, 5), [(3, 7)], {"dim": 1}),
    "dim_2": (lambda: nn.Conv2d(3, 4, (3, 2)), [(2, 3, 6, 5)], {"dim": 2}),
    "dim_-1": (lambda: nn.Conv2d(3, 4, (3, 2)), [(2, 3, 6, 5)], {"dim": -1}),
    "dim_-4": (lambda: nn.Conv2d(3, 4, (3, 2)), [(2, 3, 6, 5)], {"dim": -4}),
    "transposed_dim_0": (lambda: nn.ConvTranspose2d(3, 4, 2), [(2, 3, 4, 4)], {"dim": 0}),
    "bias": (lambda: nn.Linear(7, 5), [(3, 7)], {"name": "bias"}),
    "bias_dim_-1": (lambda: nn.Linear(7, 5), [(3, 7)], {"name": "bias", "dim": -1}),
    "large_eps": (lambda: nn.Linear(7, 5), [(3, 7)], {"eps": 1e-3}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These weights are too small to share out: more threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_inputs(name: str, dtype: torch.dtype) -> list[Tensor]:
    device = torch.get_default_device()
    return [
        shape.to(device) if isinstance(shape, Tensor) else torch.randn(shape, dtype=dtype)
        for shape in LAYERS[name][1]
    ]


def make_pair(
    name: str, dtype: torch.dtype, **options: Any
) -> tuple[nn.Module, nn.Module, parametrize.ParametrizationList, parametrize.ParametrizationList]:
    """torch's layer and fastsn's, from the same weights and seed; and what holds their buffers."""
    make, _, more = LAYERS[name]
    plain = make().to(dtype)
    layers = []
    for function in (parametrizations.spectral_norm, fastsn.spectral_norm):
        torch.manual_seed(7)
        layers.append(function(copy.deepcopy(plain), **{**more, **options}))
    weight = more.get("name", "weight")
    return *layers, *(layer.parametrizations[weight] for layer in layers)


def assert_equal_buffers(torchs: nn.Module, mine: nn.Module, tolerance: float) -> None:
    buffers = dict(mine.named_buffers())
    assert list(buffers) == [name for name, _ in torchs.named_buffers()]
    for name, expected in torchs.named_buffers():
        assert buffers[name].dtype == expected.dtype
        assert_near(buffers[name], expected, tolerance, name)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_training_and_evaluation_from_equal_buffers(
    backend: str, name: str, n: int, dtype: torch.dtype
) -> None:
    """Five training forwards with other weights each, then evaluation."""
    tolerance = TOLERANCES[dtype]
    theirs, mine, their_state, my_state = make_pair(name, dtype, n_power_iterations=n)
    my_state.load_state_dict(their_state.state_dict())
    for step in range(6):
        training = step < 5
        theirs.train(training)
        mine.train(training)
        before = [buffer.clone() for buffer in my_state.buffers()]
        arguments = make_inputs(name, dtype)
        expected, actual = theirs(*arguments), mine(*arguments)
        assert_near(actual, expected, tolerance, f"output of step {step}")
        assert_equal_buffers(their_state, my_state, tolerance)
        kept = [same_bits(*pair) for pair in zip(before, my_state.buffers(), strict=True)]
        assert len(kept) == (0 if "bias" in name else 2)
        assert all(kept) if not training else step == 0 or not kept or not all(kept)
        their_weights, my_weights = (dict(layer.named_parameters()) for layer in (theirs, mine))
        assert list(their_weights) == list(my_weights)
        cotangent = torch.randn_like(expected)
        their_grads = torch.autograd.grad(expected, list(their_weights.values()), cotangent)
        my_grads = torch.autograd.grad(actual, list(my_weights.values()), cotangent)
        for key, their_grad, my_grad in zip(their_weights, their_grads, my_grads, strict=True):
            assert_near(my_grad, their_grad, tolerance, f"gradient of {key} in step {step}")
        with torch.no_grad():
            for key, weight in their_weights.items():
                change = 0.1 * torch.randn_like(weight)
                weight += change
                my_weights[key] += change


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_registration_draws_the_same_random_numbers(
    backend: str, name: str, dtype: torch.dtype
) -> None:
    theirs, mine, their_state, my_state = make_pair(name, dtype)
    drawn = torch.rand(3)
    make_pair(name, dtype)
    assert same_bits(drawn, torch.rand(3))
    assert_equal_buffers(their_state, my_state, TOLERANCES[dtype])
    keys = list(theirs.state_dict())
    assert keys == list(mine.state_dict())
    arguments = make_inputs(name, dtype)
    assert_near(mine(*arguments), theirs(*arguments), TOLERANCES[dtype])


def test_registration_leaves_the_generator_where_torch_leaves_it(backend: str) -> None:
    states = []
    for function in (parametrizations.spectral_norm, fastsn.spectral_norm):
        torch.manual_seed(3)
        function(nn.Conv2d(3, 4, 3))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_registration_in_evaluation_mode_iterates_one_time_less(backend: str) -> None:
    for training in (True, False):
        layers = []
        for function in (parametrizations.spectral_norm, fastsn.spectral_norm):
            torch.manual_seed(3)
            layers.append(function(nn.Linear(9, 8, dtype=torch.float64).train(training)))
        assert_equal_buffers(*layers, 1e-12)


def test_registered_buffer_is_normalized(backend: str) -> None:
    module = nn.Module()
    module.register_buffer("matrix", torch.randn(4, 5, dtype=torch.float64))
    modules = [copy.deepcopy(module), module]
    for function, own in zip(
        (parametrizations.spectral_norm, fastsn.spectral_norm), modules, strict=True
    ):
        torch.manual_seed(0)
        function(own, "matrix")
    assert_near(modules[1].matrix, modules[0].matrix, 1e-12)
    assert list(modules[0].state_dict()) == list(modules[1].state_dict())


def test_complex_weights_are_torchs() -> None:
    """Not their gradients: torch's have a part through the imaginary part of sigma, zero here."""
    layers = []
    for function in (parametrizations.spectral_norm, fastsn.spectral_norm):
        torch.manual_seed(0)
        layers.append(function(nn.Linear(5, 4, dtype=torch.complex128)))
    x = torch.randn(3, 5, dtype=torch.complex128)
    for _ in range(3):
        expected, actual = (layer(x) for layer in layers)
        assert_near(actual, expected, 1e-12)
        assert_equal_buffers(*layers, 1e-12)


def test_half_layers_keep_torchs_buffers(backend: str) -> None:
    """Sums of fastsn are float32, so the numbers agree only as far as torch's own half sums do."""
    for dtype in (torch.float16, torch.bfloat16):
        theirs, mine, _, _ = make_pair("conv2d", dtype, eps=1e-4)
        assert_equal_buffers(theirs, mine, 16 * torch.finfo(dtype).eps)
        assert mine.weight.dtype == dtype
        assert_near(mine.weight, theirs.weight, 16 * torch.finfo(dtype).eps)


# Errors


def no_bias() -> nn.Module:
    return nn.Linear(3, 4, bias=False)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: nn.Linear(3, 4), {"n_power_iterations": 0}),
        (lambda: nn.Linear(3, 4), {"n_power_iterations": -2}),
        (lambda: nn.Linear(3, 4), {"name": "bias", "n_power_iterations": 0}),
        (lambda: nn.Linear(3, 4), {"dim": 2}),
        (lambda: nn.Linear(3, 4), {"dim": -3}),
        (lambda: nn.Conv2d(3, 4, 3), {"dim": 4}),
        (lambda: nn.Linear(3, 4), {"name": "bias", "dim": 1}),
        (lambda: nn.Linear(3, 4), {"dim": 2, "n_power_iterations": 0}),
        (lambda: nn.Linear(3, 4), {"name": "weights"}),
        (lambda: nn.Linear(3, 4), {"name": "in_features"}),
        (lambda: nn.Linear(3, 4), {"name": "forward"}),
        (lambda: nn.Linear(3, 4), {"name": "weights", "n_power_iterations": 0, "dim": 9}),
        (no_bias, {"name": "bias"}),
        (lambda: nn.ReLU(), {}),
        (lambda: nn.Sequential(nn.Linear(3, 4)), {}),
    ],
)
def test_bad_arguments_raise_what_torch_raises(
    make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, IndexError)) as torchs:
        parametrizations.spectral_norm(make(), **options)
    module = make()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(type(torchs.value), match=re.escape(str(torchs.value))) as mine:
        fastsn.spectral_norm(module, **options)
    assert type(mine.value) is type(torchs.value)
    # Nothing is changed when a call fails.
    assert not parametrize.is_parametrized(module)
    assert list(before) == list(module.state_dict())
    assert all(same_bits(before[key], value) for key, value in module.state_dict().items())


def test_signature_begins_as_torchs() -> None:
    torchs, mine = (
        list(inspect.signature(function).parameters.values())
        for function in (parametrizations.spectral_norm, fastsn.spectral_norm)
    )
    for expected, actual in zip(torchs, mine, strict=False):
        assert (actual.name, actual.default, actual.kind) == (
            expected.name, expected.default, expected.kind,
        )  # fmt: skip
    assert len(torchs) == 5
    assert all(more.kind is more.KEYWORD_ONLY for more in mine[len(torchs) :])
