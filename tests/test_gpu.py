"""The kernels on a GPU: what the CPU backend is tested for, and what only a GPU can get wrong.

Every test runs for each backend with GPU kernels. ``scripts/gpu.sh`` runs this file on any machine
with a GPU and writes the record that lets ``auto`` choose a backend.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import oracle
import pytest
import test_backends
import test_parity
import torch
from cases import assert_near, call, make_group, random_pairs, same_bits
from models import equal, images, norms, originals, small_cnn, vectors
from torch import Tensor, nn

import fastsn
from benchmarks.timing import device_work
from fastsn.backends import explain

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
UPDATES = ["forward", "step"]
REPLAYS, CHECKS = 1_000_000, 10


@pytest.fixture(params=["cuda", "triton"], autouse=True)
def backend(
    request: pytest.FixtureRequest, require_backend: Callable[[str, Sequence[str]], None]
) -> Iterator[str]:
    """A backend in use; new tensors are on the GPU, and convolutions round as the CPU's do."""
    require_backend(request.param, explain(DEVICE)[request.param])
    with (
        fastsn.use_backend(request.param),
        DEVICE,
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield request.param


def make_model(method: str = "bssn", update: str = "forward") -> nn.Module:
    torch.manual_seed(0)
    model = small_cnn()
    fastsn.apply(model, method, update=update)
    return model


def change_weights(*models: nn.Module) -> None:
    """The same change in all of them."""
    with torch.no_grad():
        for weights in zip(*map(originals, models), strict=True):
            change = 0.1 * torch.randn_like(weights[0])
            for weight in weights:
                weight.add_(change)


# Accuracy and degenerate weights


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", test_backends.DTYPES, ids=str)
def test_250_random_weights_are_as_accurate_as_torch(dtype: torch.dtype) -> None:
    random.seed(str(dtype))
    assert torch.empty(8, dtype=dtype).isnan().all()
    edges = test_backends.EDGES
    shapes = edges + [test_backends.random_shape() for _ in range(250 - len(edges))]
    while shapes:
        n = random.choice([0, 1, 1, 2, 3, 5])
        group = [shapes.pop() for _ in range(min(len(shapes), random.randrange(1, 40)))]
        cases = [test_backends.random_case(shape, dtype) for shape in group]
        test_backends.check_accuracy(cases, dtype, n)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", test_backends.DTYPES, ids=str)
def test_weights_of_many_tiles_are_as_accurate_as_torch(dtype: torch.dtype) -> None:
    random.seed(str(dtype))
    for n in (0, 2):
        cases = [test_backends.random_case(shape, dtype) for shape, _ in test_backends.LARGE]
        cases = [
            case._replace(weight=test_backends.laid_out(case.weight, layout))
            for case, (_, layout) in zip(cases, test_backends.LARGE, strict=True)
        ]
        test_backends.check_accuracy(cases, dtype, n)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_beyond_the_chips_memory_are_as_accurate_as_torch(dtype: torch.dtype) -> None:
    """100 MB or more: no GPU keeps these in shared memory, so they stream."""
    random.seed(0)
    shapes = [(2048, 4608, 3), (1024, 2304, 3, 3)] if dtype == torch.bfloat16 else [(4096, 6400)]
    test_backends.check_accuracy([test_backends.random_case(s, dtype) for s in shapes], dtype, 1)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_degenerate_weights_leave_the_others_alone(value: float, n: int) -> None:
    group = make_group("bsn", torch.float32)
    good = call(group.weights[:1], group.pairs[:1], [0], group.kinds[:1], n=n)
    group.weights[1].fill_(value)
    result = call(group.weights, group.pairs, group.dims, group.kinds, n=n)
    assert same_bits(result.weights[0], good.weights[0])
    assert all(same_bits(*ab) for ab in zip(result.pairs[1][0], group.pairs[1][0], strict=True))
    if value == 0:
        assert result.sigmas[1] == 0 and not result.weights[1].any()
    else:
        assert not result.weights[1].isfinite().all()


# torch's numbers


@pytest.mark.parametrize("dtype", test_parity.TOLERANCES, ids=str)
@pytest.mark.parametrize("name", test_parity.LAYERS)
def test_layers_train_as_torchs(backend: str, name: str, dtype: torch.dtype) -> None:
    test_parity.test_training_and_evaluation_from_equal_buffers(backend, name, 1, dtype)


# The same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_calls_give_the_same_bits(backend: str, dtype: torch.dtype) -> None:
    test_backends.test_repeated_calls_give_the_same_bits(backend, dtype)


def test_grouped_and_ungrouped_give_the_same_bits(backend: str) -> None:
    test_backends.test_grouped_and_ungrouped_give_the_same_bits(backend)


# Launches, streams and devices


@pytest.mark.parametrize("layers", [1, 8, 19, 175])
def test_number_of_launches(backend: str, layers: int) -> None:
    weights = [torch.randn(8 + i, 16, 3, 3) for i in range(layers)]
    pairs = [random_pairs(weight, 0, oracle.BSN) for weight in weights]
    zeros, kinds = [0] * layers, [oracle.BSN] * layers
    forward = device_work(lambda: call(weights, pairs, zeros, kinds))
    most_forward, most_backward = (1, 1) if backend == "cuda" else (3, 2)
    assert 1 <= len(forward) <= most_forward, forward
    leaves = [weight.requires_grad_() for weight in weights]
    outputs = call(leaves, pairs, zeros, kinds).weights
    grads = [torch.randn_like(weight) for weight in weights]
    backward = device_work(lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True))
    assert 1 <= len(backward) <= most_backward, backward


def test_kernels_go_to_the_current_stream() -> None:
    weight = torch.randn(300, 200)
    pairs = [random_pairs(weight, 0, oracle.SN)]
    expected = call([weight], pairs, [0], [oracle.SN])
    late = torch.zeros_like(weight)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # cycles: the weight arrives after the call returned
        late.copy_(weight)
        result = call([late], pairs, [0], [oracle.SN])
    side.synchronize()
    assert same_bits(result.weights[0], expected.weights[0])


def test_two_models_on_two_streams() -> None:
    models = [make_model("bssn"), make_model("sn")]
    twins = copy.deepcopy(models)
    x = images(4)
    for _ in range(20):
        for twin in twins:
            twin(x)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in models]
    for _ in range(20):
        for model, stream in zip(models, streams, strict=True):
            with torch.cuda.stream(stream):
                model(x)
    torch.cuda.synchronize()
    for model, twin in zip(models, twins, strict=True):
        assert equal(vectors(model), vectors(twin))


def test_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("expected two GPUs, got one")
    model = make_model()
    other = copy.deepcopy(model).to("cuda:1")
    x = images()
    for _ in range(2):
        expected, result = model(x), other(x.to("cuda:1"))
        assert result.device == torch.device("cuda:1")
        assert_near(result, expected, 1e-5)
        result.sum().backward()
    assert torch.cuda.current_device() == 0


# CUDA graphs


def capture(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


def training_step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Two forwards and the gradients: with update="step" they share one W_sn."""
    loss = model(x).square().mean() - model(x + 1).mean()
    return [loss, *torch.autograd.grad(loss, originals(model))]


@pytest.mark.parametrize("update", UPDATES)
def test_captured_step_computes_with_the_weights_of_its_replay(update: str) -> None:
    model, x = make_model("bssn", update), images()
    graph, outputs = capture(lambda: training_step(model, x))
    twin = copy.deepcopy(model)
    for _ in range(5):
        change_weights(model, twin)
        x.normal_()
        graph.replay()
        expected = training_step(twin, x)
        assert equal(vectors(model), vectors(twin))
        for ours, theirs in zip(outputs, expected, strict=True):
            assert_near(ours, theirs, 1e-4)
    # and outside of the graph the model goes on where the graph left it
    change_weights(model, twin)
    assert_near(model(x), twin(x), 1e-4)


class Weights(nn.Module):
    """A model's layers without the model: forward reads all weights, for a group to normalize."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer in model if hasattr(layer, "weight"))

    def forward(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]


def normalizing_step(weights: Weights, grads: list[Tensor]) -> list[Tensor]:
    """Normalized weights, then gradients."""
    weights_sn = weights()
    return [*weights_sn, *torch.autograd.grad(weights_sn, originals(weights), grads)]


def soak(
    replay: Callable[[], object],
    replays: int,
    weights: Weights,
    results: list[Tensor],
    grads: list[Tensor],
) -> None:
    """Replays a captured step, and on the way looks whether anything drifts.

    Every tenth of the replays has new weights, and ends with the sigma of an SVD, vectors of length
    one, and in one more replay the bits of an eager step layer by layer.
    """
    alone = Weights(small_cnn())
    for layer in alone.layers:
        fastsn.spectral_norm(layer, bidirectional=layer.weight.ndim > 2)
    for tenth in range(CHECKS):
        change_weights(weights)
        for _ in range(replays // CHECKS):
            replay()
        alone.load_state_dict(weights.state_dict())
        expected = normalizing_step(alone, grads)
        replay()
        assert equal(vectors(weights), vectors(alone)), f"vectors, check {tenth}"
        for ours, theirs in zip(results, expected, strict=True):
            assert ours.isfinite().all() and same_bits(ours, theirs), f"check {tenth}"
        for vector in vectors(weights):
            assert_near(vector.norm(), 1.0, 1e-5, f"length of a vector, check {tenth}")
        for norm, weight, ours in zip(norms(weights), originals(weights), results, strict=False):
            wide = weight.detach().double()
            dims = (norm.dim, 1 - norm.dim)[: len(norm.views)]
            unfolded = [wide.movedim(d, 0).flatten(1) for d in dims]
            sigma = sum(torch.linalg.matrix_norm(matrix, 2) for matrix in unfolded) / len(dims)
            assert_near(ours, wide / sigma, 1e-5, f"normalized weight, check {tenth}")


@pytest.mark.slow
@pytest.mark.soak
def test_a_million_replays_do_not_drift() -> None:
    torch.manual_seed(0)
    weights = Weights(small_cnn())
    fastsn.apply(weights, "bsn")
    grads = [torch.randn_like(weight) for weight in originals(weights)]
    graph, results = capture(lambda: normalizing_step(weights, grads))
    soak(graph.replay, REPLAYS, weights, results, grads)


# Around the op


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, update: str) -> None:
    model = make_model("bssn", update)
    twin, seen, x = copy.deepcopy(model), [], images()
    model[2].register_forward_hook(lambda layer, args, out: seen.append(layer.weight))
    with torch.autocast("cuda", dtype):
        out = model(x)
    out.float().sum().backward()
    expected = twin(x)
    assert out.dtype == dtype and seen[0].dtype == dtype
    assert equal(vectors(model), vectors(twin))  # the iteration runs in float32
    assert_near(out, expected, 0.05)
    assert all(weight.grad.dtype == torch.float32 for weight in originals(model))


@pytest.mark.parametrize("method", ["sn", "bssn"])
def test_channels_last(method: str) -> None:
    plain, model = make_model(method), make_model(method).to(memory_format=torch.channels_last)
    for step in range(3):
        x = images()
        ours, theirs = (training_step(m, x) for m in (model, plain))
        for a, b in zip(ours, theirs, strict=True):
            assert_near(a, b, 1e-4, f"step {step}")
        for a, b in zip(vectors(model), vectors(plain), strict=True):
            assert_near(a, b, 1e-5)
    model.eval()
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # exactly as meant
@pytest.mark.parametrize("update", UPDATES)
def test_compiled_with_graphs(update: str) -> None:
    torch._dynamo.reset()
    model = make_model("bssn", update)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(5):
        x = images()
        torch.compiler.cudagraph_mark_step_begin()
        for a, b in zip(training_step(compiled, x), training_step(twin, x), strict=True):
            assert_near(a, b, 1e-4)
        for a, b in zip(vectors(model), vectors(twin), strict=True):
            assert_near(a, b, 1e-5)
        change_weights(model, twin)
