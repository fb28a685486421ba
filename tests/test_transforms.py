"""torch.compile, export, functional transforms, autocast and memory formats."""

from __future__ import annotations

import pytest
import torch
from models import equal, images, norms, originals, small_cnn, vectors
from torch import nn
from torch.func import functional_call, grad, vmap

import fastsn

METHODS = ["sn", "bssn"]
UPDATES = ["forward", "step"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("method", METHODS)
def test_compile_fullgraph_equals_eager(method: str, update: str) -> None:
    """Outputs, gradients and vectors, in training and evaluation, weights changing between."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = small_cnn()
        fastsn.apply(model, method, update=update)
        models.append(model)
    eager, model = models
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images()
    for training in (True, True, False, True):
        eager.train(training)
        model.train(training)
        for _ in range(2):
            out, other = eager(x), compiled(x)
            torch.testing.assert_close(out, other)
            grads = torch.autograd.grad(out.sum(), originals(eager))
            others = torch.autograd.grad(other.sum(), originals(model))
            for a, b in zip(grads, others, strict=True):
                torch.testing.assert_close(a, b)
        for a, b in zip(vectors(eager), vectors(model), strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            for a, b in zip(originals(eager), originals(model), strict=True):
                step = 0.01 * torch.randn_like(a)
                a.add_(step)
                b.add_(step)


@pytest.mark.parametrize("update", UPDATES)
def test_compile_does_not_recompile_after_warm_up(update: str) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        (compiled(x).mean() - compiled(x + 1).mean()).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            compiled(x)

    step()
    step()
    counters = torch._dynamo.utils.counters["stats"]
    graphs = counters["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            step()
    assert counters["unique_graphs"] == graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_compile_with_inductor() -> None:
    torch.manual_seed(0)
    model = small_cnn()
    fastsn.apply(model, "bssn")
    x = images()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(x)
    after = vectors(model)
    model.load_state_dict(start)
    out = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(after, vectors(model), strict=True):
        torch.testing.assert_close(a, b)


def test_compile_single_layer() -> None:
    layer = fastsn.spectral_norm(nn.Linear(6, 5))
    start = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(3, 6)
    expected = layer(x)
    layer.load_state_dict(start)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("training", [True, False])
def test_export(training: bool, update: str) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    model.train(training)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    x = images()
    expected = model(x)
    model.load_state_dict(start)
    program = torch.export.export(model, (x,))
    assert "fastsn.advance" not in str(program.graph)  # it looks at this process's weights
    assert training or "fastsn" not in str(program.graph)  # plain torch, for any runtime
    torch.testing.assert_close(program.module()(x), expected)


def test_export_of_a_folded_model_has_no_fastsn_op() -> None:
    model = small_cnn().eval()
    fastsn.apply(model, "bssn")
    x = images()
    expected = model(x)
    program = torch.export.export(fastsn.fold(model), (x,))
    assert "fastsn" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("update", UPDATES)
def test_functional_call(update: str) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    x = images()
    model.eval()
    own = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    out = functional_call(model, own, (x,))
    torch.testing.assert_close(out, model(x))
    grads = torch.autograd.grad(out.sum(), list(own.values()))
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)
    model.train()
    state = {**own, **{k: v.clone() for k, v in model.named_buffers()}}
    before = vectors(model)
    functional_call(model, state, (x,)).sum().backward()
    assert equal(before, vectors(model))  # the given buffers were advanced instead
    assert not torch.equal(state["0.parametrizations.weight.0._u"], before[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("update", UPDATES)
def test_vmap_over_inputs_and_per_sample_gradients(training: bool, update: str) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    model.train(training)
    x = images(4)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (sample[None],)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))({k: v.detach() for k, v in parameters.items()}, x)
    model.load_state_dict(start)
    # All samples share one advance, so compare with one forward of the whole batch.
    out = model(x).square().flatten()
    for i in range(len(x)):
        single = torch.autograd.grad(out[i], list(parameters.values()), retain_graph=True)
        for (name, batched), one in zip(per_sample.items(), single, strict=True):
            torch.testing.assert_close(batched[i], one, msg=name)
    model.load_state_dict(start)
    batched_out = vmap(lambda sample: model(sample[None])[0])(x)
    model.load_state_dict(start)
    torch.testing.assert_close(batched_out, model(x))


def test_gradient_penalty() -> None:
    """The gradient with respect to the input, differentiated with respect to the weights."""
    torch.manual_seed(0)
    model = small_cnn().double()
    fastsn.apply(model, "bssn")
    model.eval()
    x = images().double().requires_grad_()

    def penalty() -> torch.Tensor:
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    weight = originals(model)[2]
    (analytic,) = torch.autograd.grad(penalty(), weight)
    step = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(1e-6 * step)
    plus = penalty().detach()
    with torch.no_grad():
        weight.sub_(2e-6 * step)
    minus = penalty().detach()
    torch.testing.assert_close((analytic * step).sum(), (plus - minus) / 2e-6, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_dtype(dtype: torch.dtype, update: str) -> None:
    """W_sn comes out in the autocast dtype; the iteration runs in float32."""
    torch.manual_seed(0)
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    weights = []
    model[2].register_forward_hook(lambda layer, args, out: weights.append(layer.weight))
    x = images()
    with torch.autocast("cpu", dtype):
        out = model(x)
    out.float().sum().backward()
    low = vectors(model)
    assert weights[0].dtype == dtype
    assert all(weight.grad.dtype == torch.float32 for weight in originals(model))
    model.load_state_dict(start)
    model(x)
    assert equal(
        low, vectors(model)
    )  # not a bit of the vectors was computed in the lower precision
    assert weights[1].dtype == torch.float32
    torch.testing.assert_close(weights[0].float(), weights[1], rtol=2**-8, atol=1e-6)


def test_autocast_registration_keeps_the_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        layer = fastsn.spectral_norm(nn.Linear(4, 4))
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("update", UPDATES)
def test_channels_last_keeps_its_layout(method: str, update: str) -> None:
    torch.manual_seed(0)
    plain = small_cnn()
    fastsn.apply(plain, method, update=update)
    torch.manual_seed(0)
    model = small_cnn()
    fastsn.apply(model, method, update=update)
    model.to(memory_format=torch.channels_last)
    x = images()
    for _ in range(2):
        torch.testing.assert_close(model(x), plain(x))
    model.eval()
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)
    model.train()
    model(x).sum().backward()
    plain(x).sum().backward()
    for a, b in zip(originals(model), originals(plain), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        assert a.grad.stride() == a.stride()
    for a, b in zip(vectors(model), vectors(plain), strict=True):
        torch.testing.assert_close(a, b)  # buffers keep torch's order whatever the layout


def test_assignment_stores_the_original() -> None:
    layer = fastsn.spectral_norm(nn.Linear(4, 4))
    value = torch.eye(4) * 3
    layer.weight = value
    assert torch.equal(layer.parametrizations.weight.original, value)
    assert len(norms(layer)) == 1


def test_parametrize_cached_works() -> None:
    layer = fastsn.spectral_norm(nn.Linear(4, 4))
    with torch.nn.utils.parametrize.cached():
        assert layer.weight is layer.weight
