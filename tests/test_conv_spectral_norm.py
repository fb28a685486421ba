"""SN_Conv: its norm, gradient, state, and what may not disturb it."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize

import fastsn
from fastsn import analysis
from fastsn.conv_norm import ConvSpectralNorm

#: (layer class, its arguments, input size): every dimension, padding mode and way to be uneven.
GEOMETRIES = {
    "1d": (nn.Conv1d, {"kernel_size": 3, "padding": 1}, (9,)),
    "1d stride dilation": (nn.Conv1d, {"kernel_size": 3, "stride": 2, "dilation": 2}, (10,)),
    "1d replicate": (
        nn.Conv1d,
        {"kernel_size": 4, "padding": 2, "padding_mode": "replicate"},
        (7,),
    ),
    "2d": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (6, 5)),
    "2d valid": (nn.Conv2d, {"kernel_size": (2, 3), "padding": "valid"}, (5, 6)),
    "2d same even": (nn.Conv2d, {"kernel_size": 4, "padding": "same", "dilation": (1, 2)}, (6, 7)),
    "2d down": (nn.Conv2d, {"kernel_size": 4, "stride": 2, "padding": 1}, (8, 8)),
    "2d unread rest": (nn.Conv2d, {"kernel_size": 2, "stride": 3}, (7, 6)),
    "2d groups": (nn.Conv2d, {"kernel_size": 3, "padding": (1, 0), "groups": 2}, (5, 6)),
    "2d circular": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
        (5, 6),
    ),
    "2d reflect": (
        nn.Conv2d,
        {"kernel_size": 3, "stride": 2, "padding": 2, "padding_mode": "reflect"},
        (6, 5),
    ),
    "3d": (nn.Conv3d, {"kernel_size": (1, 3, 2), "stride": (1, 2, 1), "padding": 1}, (3, 4, 4)),
    "1d transposed": (nn.ConvTranspose1d, {"kernel_size": 4, "stride": 2, "padding": 1}, (6,)),
    "2d transposed": (
        nn.ConvTranspose2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        (4, 3),
    ),
    "2d transposed, output_padding of dilation": (
        nn.ConvTranspose2d,
        {"kernel_size": 2, "dilation": 3, "output_padding": 2},
        (3, 3),
    ),
    "3d transposed": (nn.ConvTranspose3d, {"kernel_size": 2, "stride": 2}, (2, 3, 2)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[int, ...]]:
    cls, options, size = GEOMETRIES[name]
    return cls(4, 6, bias=False, dtype=dtype, **options), size


def norm_of(layer: nn.Module) -> ConvSpectralNorm:
    return layer.parametrizations.weight[0]


def original(layer: nn.Module) -> Tensor:
    return layer.parametrizations.weight.original


def matrix(layer: nn.Module, weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """The convolution as a dense matrix, by the layer's own forward; differentiable."""
    shape = (layer.in_channels, *size)
    n = math.prod(shape)
    identity = torch.eye(n, dtype=weight.dtype).view(n, *shape)
    return functional_call(layer, {"weight": weight}, identity).flatten(1).t()


def conv_layer(**options: Any) -> nn.Module:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    return fastsn.conv_spectral_norm(layer, **{"input_shape": (6, 6), **options})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", list(GEOMETRIES))
def test_norm_and_gradient_are_those_of_the_matrix(name: str) -> None:
    plain, size = make(name)
    weight = plain.weight.detach().clone().requires_grad_()
    dense = matrix(plain, weight, size)
    u, values, v = torch.linalg.svd(dense.detach())
    layer = fastsn.conv_spectral_norm(plain, input_shape=size, scale=1.5).eval()
    norm = norm_of(layer)
    # Warmed up at registration: 15 iterations find most of any norm, and never more than it.
    assert 0.8 * float(values[0]) < float(norm.sigma(original(layer))) <= float(values[0]) + 1e-12
    norm.advance(original(layer), 30)
    assert 0.95 * float(values[0]) < float(norm.sigma(original(layer))) <= float(values[0]) + 1e-12

    # At the singular vectors sigma is the norm, and its gradient that of u^T M v.
    norm._u.copy_(u[:, 0].view_as(norm._u))
    norm._v.copy_(v[0].view_as(norm._v))
    torch.testing.assert_close(norm.sigma(original(layer)), values[0], rtol=1e-12, atol=0)
    normalized = 1.5 * weight / (u[:, 0] @ dense @ v[0])
    torch.testing.assert_close(layer.weight, normalized)
    top = torch.linalg.svdvals(matrix(make(name)[0], layer.weight.detach(), size))[0]
    assert float(top) == pytest.approx(1.5)
    direction = torch.randn_like(weight)
    (expected,) = torch.autograd.grad((normalized * direction).sum(), weight)
    (layer.weight * direction).sum().backward()
    torch.testing.assert_close(original(layer).grad, expected)


@pytest.mark.parametrize("name", ["1d", "2d down", "2d circular", "2d transposed", "3d"])
def test_one_step_is_one_power_iteration(name: str) -> None:
    plain, size = make(name)
    dense = matrix(plain, plain.weight.detach(), size)
    layer = fastsn.conv_spectral_norm(plain, input_shape=size, n_power_iterations=2)
    norm = norm_of(layer)
    v = norm._v.clone().flatten()
    addresses = norm._u.data_ptr(), norm._v.data_ptr()
    for _ in range(2):
        u = dense @ v / (dense @ v).norm()
        v = dense.t() @ u / (dense.t() @ u).norm()
    weight = layer.weight
    assert (norm._u.data_ptr(), norm._v.data_ptr()) == addresses
    torch.testing.assert_close(norm._u.flatten(), u)
    torch.testing.assert_close(norm._v.flatten(), v)
    torch.testing.assert_close(weight, original(layer) / (u @ dense @ v))
    layer.eval()
    before = norm._u.clone(), norm._v.clone()
    torch.testing.assert_close(layer.weight, weight)
    assert torch.equal(norm._u, before[0])
    assert torch.equal(norm._v, before[1])


@pytest.mark.parametrize("name", ["1d replicate", "2d groups", "2d transposed", "3d"])
def test_gradcheck(name: str) -> None:
    plain, size = make(name)
    scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    layer = fastsn.conv_spectral_norm(plain, input_shape=size, scale=scale).eval()
    norm = norm_of(layer)

    def normalized(weight: Tensor, value: Tensor) -> Tensor:
        return functional_call(norm, {"scale": value}, weight)

    inputs = (original(layer), scale)
    assert torch.autograd.gradcheck(normalized, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(normalized, inputs, fast_mode=True)


def test_gradient_penalty_trains_the_weight() -> None:
    layer = conv_layer()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert float(original(layer).grad.norm()) > 0


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "2d circular"])
def test_pointwise_convolution_is_plain_spectral_norm(name: str) -> None:
    cls, options, size = GEOMETRIES[name]
    options = {**options, "kernel_size": 1, "padding": 0, "stride": 1}
    plain = cls(4, 6, bias=False, **options)
    layer = fastsn.conv_spectral_norm(copy.deepcopy(plain), input_shape=size)
    reference = fastsn.spectral_norm(plain)
    norm_of(layer).advance(original(layer), 500)
    norm_of(reference).advance(original(reference), 500)
    torch.testing.assert_close(layer.eval().weight, reference.eval().weight)


@pytest.mark.parametrize("input_shape", [6, (6, 6), (3, 6, 6), [6, 6], torch.Size([3, 6, 6])])
def test_input_shapes(input_shape: Any) -> None:
    norm = norm_of(conv_layer(input_shape=input_shape))
    assert norm.input_shape == (3, 6, 6)
    assert norm._u.shape == (4, 6, 6)
    assert "input_shape=(3, 6, 6), n_power_iterations=1, scale=1" in repr(norm)


def test_input_shape_is_learned_at_the_first_forward() -> None:
    layer = conv_layer(input_shape=None)
    norm = norm_of(layer)
    assert "input_shape=learned at the first forward" in repr(layer)
    with pytest.raises(
        RuntimeError, match="run the layer once, load a checkpoint, or give input_shape"
    ):
        layer.weight  # noqa: B018
    with pytest.raises(ValueError, match=r"\(3, size, size\) of positive ints, got \(2, 6, 6\)"):
        layer(torch.randn(1, 2, 6, 6))
    assert norm.input_shape is None
    torch.manual_seed(7)
    layer(torch.randn(2, 3, 5, 6))
    assert norm.input_shape == (3, 5, 6)
    assert len(layer._forward_pre_hooks) == 0
    exact = analysis.conv_norm(original(layer), (5, 6), padding=1)
    assert 0.8 * exact < float(norm.sigma(original(layer))) <= exact * (1 + 1e-5)
    # Another size later: allowed, sigma stays that of the first.
    sigma = float(norm.sigma(original(layer)))
    layer.eval()(torch.randn(1, 3, 12, 12))
    assert norm.input_shape == (3, 5, 6)
    assert float(norm.sigma(original(layer))) == sigma


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("keyword", [True, False])
def test_learning_from_every_way_to_call(batched: bool, keyword: bool) -> None:
    layer = conv_layer(input_shape=None)
    x = torch.randn(*[2] * batched, 3, 7, 6)
    y = layer(input=x) if keyword else layer(x)
    assert y.shape == (*[2] * batched, 4, 7, 6)
    assert norm_of(layer).input_shape == (3, 7, 6)


def test_learning_in_inference_mode_leaves_a_layer_that_trains() -> None:
    layer = conv_layer(input_shape=None)
    x = torch.randn(1, 3, 6, 6)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert torch.isfinite(original(layer).grad).all()


@pytest.mark.parametrize("strict", [True, False])
def test_state_dicts_of_known_and_unknown_sizes(strict: bool) -> None:
    known, unknown = conv_layer(), conv_layer(input_shape=None)
    assert known.state_dict().keys() == unknown.state_dict().keys()
    assert set(known.state_dict()) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    }
    x = torch.randn(2, 3, 6, 6)
    # into a layer that has not seen an input: it takes over the size
    fresh = conv_layer(input_shape=None)
    fresh.load_state_dict(known.state_dict(), strict=strict)
    assert norm_of(fresh).input_shape == (3, 6, 6)
    torch.testing.assert_close(fresh.eval()(x), known.eval()(x), rtol=0, atol=0)
    # of a layer that has not seen an input: the vectors stay
    u = norm_of(known)._u.clone()
    known.load_state_dict(unknown.state_dict(), strict=strict)
    assert torch.equal(norm_of(known)._u, u)
    assert torch.equal(original(known), original(unknown))
    # neither has
    conv_layer(input_shape=None).load_state_dict(unknown.state_dict(), strict=strict)
    # sizes that differ are an error, as everywhere in torch, and so are vectors of another layer
    with pytest.raises(RuntimeError, match="size mismatch for parametrizations.weight.0._u"):
        conv_layer(input_shape=5).load_state_dict(fresh.state_dict(), strict=strict)
    wrong = fresh.state_dict()
    wrong["parametrizations.weight.0._u"] = torch.randn(4, 5, 5)
    target = conv_layer(input_shape=None)
    with pytest.raises(RuntimeError, match=r"to be an output and an input of ConvMap.*\(4, 5, 5\)"):
        target.load_state_dict(wrong, strict=strict)
    assert norm_of(target).input_shape is None


def test_loading_by_assignment() -> None:
    known, fresh = conv_layer(), conv_layer(input_shape=None)
    fresh.load_state_dict(known.state_dict(), assign=True)
    assert norm_of(fresh).input_shape == (3, 6, 6)
    torch.testing.assert_close(fresh.eval().weight, known.eval().weight)


@pytest.mark.parametrize("input_shape", [6, None])
@pytest.mark.parametrize("scale", ["number", "tensor", "parameter"])
def test_copies_and_pickles(input_shape: int | None, scale: str) -> None:
    value = {
        "number": 1.5,
        "tensor": torch.tensor(1.5),
        "parameter": nn.Parameter(torch.tensor(1.5)),
    }[scale]
    layer = conv_layer(input_shape=input_shape, scale=value)
    x = torch.randn(2, 3, 6, 6)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    outputs = []
    for twin in [*copies, layer]:
        torch.manual_seed(5)
        outputs.append(twin(x))
        outputs[-1].sum().backward()
        assert len(twin._forward_pre_hooks) == 0
    for twin, output in zip(copies, outputs, strict=False):
        torch.testing.assert_close(output, outputs[-1], rtol=0, atol=0)
        assert norm_of(twin)._u.data_ptr() != norm_of(layer)._u.data_ptr()
        assert original(twin).data_ptr() != original(layer).data_ptr()


def test_copying_does_not_teach_the_original() -> None:
    layer = conv_layer(input_shape=None)
    twin = copy.deepcopy(layer)
    twin(torch.randn(1, 3, 6, 6))
    assert norm_of(layer).input_shape is None
    assert len(layer._forward_pre_hooks) == 1


def test_two_forwards_one_backward_and_a_step_in_between() -> None:
    layer = conv_layer()
    real, fake = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    states, expected = copy.deepcopy(layer), torch.zeros_like(original(layer))
    for x in (real, fake):
        states(x).square().sum().backward()
    expected = original(states).grad
    loss = layer(real).square().sum() + layer(fake).square().sum()
    with torch.no_grad():
        original(layer).mul_(1.5)  # what an optimizer would do; backward is about the weight before
    loss.backward()
    torch.testing.assert_close(original(layer).grad, expected)


def test_a_learned_scale_is_a_parameter_of_all_its_layers() -> None:
    gamma = nn.Parameter(torch.tensor(2.0))
    layers = nn.Sequential(
        fastsn.conv_spectral_norm(nn.Conv2d(3, 4, 3), input_shape=6, scale=gamma),
        fastsn.conv_spectral_norm(nn.Conv2d(4, 2, 3), input_shape=4, scale=gamma),
    ).eval()
    assert sum(parameter is gamma for parameter in layers.parameters()) == 1
    weights = [layer.weight for layer in layers]
    loss = sum((weight**3).sum() for weight in weights)
    loss.backward()
    torch.testing.assert_close(gamma.grad, 3 * loss.detach() / gamma.detach())
    with torch.no_grad():
        gamma.zero_()
    gamma.grad = None
    layers[0].weight.sum().backward()
    assert float(gamma.grad) == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_zero_weight(training: bool) -> None:
    layer = conv_layer().train(training)
    norm = norm_of(layer)
    good, u, v = original(layer).detach().clone(), norm._u.clone(), norm._v.clone()
    with torch.no_grad():
        original(layer).zero_()
    y = layer(torch.randn(1, 3, 6, 6))
    y.sum().backward()
    assert torch.equal(layer.weight, torch.zeros_like(good))
    assert torch.equal(original(layer).grad, torch.zeros_like(good))
    assert torch.equal(norm._u, u)
    assert torch.equal(norm._v, v)
    with torch.no_grad():
        original(layer).copy_(good)
    assert torch.isfinite(layer.weight).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_leaves_the_vectors(bad: float) -> None:
    layer = conv_layer()
    norm = norm_of(layer)
    good, u, v = original(layer).detach().clone(), norm._u.clone(), norm._v.clone()
    with torch.no_grad():
        original(layer)[0, 0, 0, 0] = bad
    assert not torch.isfinite(layer.weight).all()
    assert torch.equal(norm._u, u)
    assert torch.equal(norm._v, v)
    with torch.no_grad():
        original(layer).copy_(good)
    assert torch.isfinite(layer.weight).all()
    assert not torch.equal(norm._u, u)


def test_tiny_weights_are_normal() -> None:
    layer = conv_layer().eval()
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        original(layer).mul_(1e-30)
    torch.testing.assert_close(layer.weight.detach(), weight)


def test_sigma_does_not_depend_on_the_length_of_the_vectors() -> None:
    layer = conv_layer().eval()
    weight = layer.weight.detach().clone()
    norm_of(layer)._u.mul_(0.3)
    norm_of(layer)._v.mul_(7.0)
    torch.testing.assert_close(layer.weight.detach(), weight)
    layer.train().weight  # noqa: B018
    assert float(norm_of(layer)._u.norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_weights(dtype: torch.dtype) -> None:
    layer = conv_layer()
    low = copy.deepcopy(layer).to(dtype)
    assert norm_of(low)._u.dtype == dtype
    for _ in range(20):
        assert low.weight.dtype == dtype
    sigma = norm_of(low).sigma(original(low))
    assert sigma.dtype == torch.float32
    exact = analysis.conv_norm(original(low), 6, padding=1)
    assert float(sigma) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("input_shape", [6, None])
def test_autocast(input_shape: int | None) -> None:
    layer = conv_layer(input_shape=input_shape)
    reference = copy.deepcopy(layer)
    x = torch.randn(2, 3, 6, 6)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        weight = layer.weight
    torch.manual_seed(3)
    reference(x)
    expected = reference.weight
    # The iteration runs in float32: the vectors are those without autocast, bit for bit.
    assert torch.equal(norm_of(layer)._u, norm_of(reference)._u)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, expected.to(torch.bfloat16))
    weight.float().square().sum().backward()
    assert original(layer).grad.dtype == torch.float32
    double = conv_layer().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double.weight.dtype == torch.float64


def test_channels_last_weight_keeps_its_layout() -> None:
    layer = conv_layer().to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    twin = copy.deepcopy(layer).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(layer.eval().weight, twin.eval().weight)


# Dynamo makes an instance of any autograd.Function that it traces, of which torch itself warns.
dynamo_warns = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@dynamo_warns
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["2d down", "2d reflect", "2d transposed"])
def test_compile_fullgraph(name: str, training: bool) -> None:
    plain, size = make(name, torch.float32)
    layer = fastsn.conv_spectral_norm(plain, input_shape=size).train(training)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(compiled(x), eager(x))
        compiled(x).sum().backward()
        eager(x).sum().backward()
    torch.testing.assert_close(norm_of(layer)._u, norm_of(eager)._u)
    torch.testing.assert_close(norm_of(layer)._v, norm_of(eager)._v)
    torch.testing.assert_close(original(layer).grad, original(eager).grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_compile_with_inductor() -> None:
    layer = conv_layer()
    eager = copy.deepcopy(layer)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), eager(x))


@dynamo_warns
@pytest.mark.parametrize("training", [True, False])
def test_export(training: bool) -> None:
    layer = conv_layer().train(training)
    eager = copy.deepcopy(layer)
    x = torch.randn(2, 3, 6, 6)
    program = torch.export.export(layer, (x,)).module()
    for _ in range(2):
        torch.testing.assert_close(program(x), eager(x))


def test_functional_call_and_per_sample_gradients() -> None:
    layer = conv_layer()
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 3, 6, 6)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    buffers = {name: b.clone() for name, b in layer.named_buffers()}
    torch.testing.assert_close(functional_call(layer, {**parameters, **buffers}, x), twin(x))
    # the buffers given have advanced, those of the layer have not
    assert torch.equal(buffers["parametrizations.weight.0._u"], norm_of(twin)._u)
    assert not torch.equal(norm_of(layer)._u, norm_of(twin)._u)

    layer.eval()

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, sample[None]).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).square().sum().backward()
        key = "parametrizations.weight.original"
        torch.testing.assert_close(per_sample[key][i], original(layer).grad)


def test_fold_and_remove() -> None:
    layer = conv_layer(scale=1.5).eval()
    x = torch.randn(1, 3, 6, 6)
    expected = layer(x)
    fastsn.fold(layer)
    assert type(layer) is nn.Conv2d
    torch.testing.assert_close(layer(x), expected)
    layer = conv_layer(input_shape=None)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    layer(x)
    assert len(layer._forward_pre_hooks) == 0


def test_assigning_the_weight_sets_the_original() -> None:
    layer = conv_layer()
    value = torch.randn(4, 3, 3, 3)
    layer.weight = value
    assert torch.equal(original(layer), value)


def test_a_training_discriminator_keeps_its_norms() -> None:
    model = nn.Sequential(
        fastsn.conv_spectral_norm(nn.Conv2d(1, 8, 3, padding=1), scale=1.2),
        nn.LeakyReLU(0.1),
        fastsn.conv_spectral_norm(nn.Conv2d(8, 8, 4, stride=2, padding=1), scale=1.2),
        nn.Flatten(),
        nn.Linear(128, 1),
    )
    x, y = torch.randn(16, 1, 8, 8), torch.randn(16, 1)
    model(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for layer in (model[0], model[2]):
        assert analysis.conv_norm_of(layer, 8) == pytest.approx(1.2, rel=0.05)


@pytest.mark.parametrize(
    ("layer", "options", "error", "message"),
    [
        (nn.Linear(3, 3), {}, TypeError, "got Linear: use fastsn.spectral_norm"),
        (nn.Embedding(3, 3), {}, TypeError, "got Embedding"),
        (None, {"name": "kernel"}, ValueError, "has no parameter or buffer with name 'kernel'"),
        (None, {"name": "bias"}, ValueError, r"3 to 5 dimensions.*got shape \(4,\)"),
        (nn.LazyConv2d(4, 3), {}, ValueError, "to be initialized, got an uninitialized"),
        (nn.Conv2d(3, 4, 3, dtype=torch.cfloat), {}, TypeError, "to be real, got torch.complex64"),
        (None, {"n_power_iterations": 0}, ValueError, "positive, but got n_power_iterations=0"),
        (None, {"n_power_iterations": 1.5}, TypeError, "an int, got 1.5"),
        (None, {"n_power_iterations": True}, TypeError, "an int, got True"),
        (None, {"eps": -1e-12}, ValueError, "eps to be non-negative"),
        (None, {"eps": math.nan}, ValueError, "eps to be non-negative"),
        (None, {"scale": 0.0}, ValueError, "finite and not zero, got 0.0"),
        (None, {"scale": math.inf}, ValueError, "finite and not zero, got inf"),
        (None, {"scale": torch.tensor(0.0)}, ValueError, "finite and not zero"),
        (None, {"scale": torch.ones(1)}, ValueError, r"0-d tensor, got a .* of shape \(1,\)"),
        (None, {"scale": "1"}, TypeError, "scale to be a number"),
        (None, {"input_shape": (6,)}, ValueError, r"\(3, size, size\) of positive ints, got"),
        (None, {"input_shape": (2, 6, 6)}, ValueError, r"got \(2, 6, 6\)"),
        (None, {"input_shape": (6, 0)}, ValueError, r"got \(6, 0\)"),
        (None, {"input_shape": (6, 6.0)}, ValueError, r"got \(6, 6.0\)"),
        (nn.Conv2d(3, 4, 5), {"input_shape": 4}, ValueError, "no output in spatial dimension 0"),
        (
            nn.Conv2d(3, 4, 5, padding=4, padding_mode="circular"),
            {"input_shape": 3},
            ValueError,
            "circular padding of at most 3",
        ),
    ],
)  # fmt: skip
def test_errors_leave_the_layer_alone(
    layer: nn.Module | None, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    layer = nn.Conv2d(3, 4, 3) if layer is None else layer
    cls, parameters = type(layer), dict(layer.named_parameters())
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        fastsn.conv_spectral_norm(layer, **options)
    assert type(layer) is cls
    assert len(layer._forward_pre_hooks) == int(isinstance(layer, nn.LazyConv2d))
    assert not parametrize.is_parametrized(layer)
    assert [name for name, _ in layer.named_parameters()] == list(parameters)
    assert all(p is parameters[name] for name, p in layer.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_normalizing_twice_is_an_error() -> None:
    layer = conv_layer()
    before = repr(layer)
    with pytest.raises(ValueError, match="without conv_spectral_norm, got one that has it"):
        fastsn.conv_spectral_norm(layer)
    assert repr(layer) == before
