"""The Triton kernels' results: on a GPU, and without one in Triton's interpreter.

Triton decides when it is imported whether kernels are compiled or interpreted, so without a GPU
test_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1. The interpreter
takes some 20 ms for every tile, so tiles are made small instead of weights large.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch
from cases import Group, assert_near, same_bits, spectral_normalize, wide, wide_pairs
from test_backends import LARGE, check_accuracy, laid_out, random_case, random_shape
from triton_cases import (
    DEVICE,
    FEW,
    INTERPRETED,
    OTHERS,
    WEIGHTS,
    Outcome,
    check,
    everything,
    make,
)

import fastsn
from benchmarks.workloads import WORKLOADS, normalized_layers
from fastsn.backends import explain, requested_backend
from fastsn.backends.triton import launch as triton_backend
from fastsn.backends.triton import tables as triton_tables

# NumPy, which interprets, warns of what kernels do on purpose (inf * 0), and of the interpreter.
pytestmark = (
    [
        pytest.mark.filterwarnings("ignore::RuntimeWarning"),
        pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    ]
    if INTERPRETED
    else [pytest.mark.gpu]
)

SMALL_TILES = ((1, 2, 8), (2, 4, 4), (4, 8, 1))


@pytest.fixture(autouse=True)
def backend(require_backend: Callable[[str, Sequence[str]], None]) -> Iterator[None]:
    require_backend("triton", explain(torch.device(DEVICE))["triton"])
    with fastsn.use_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def _no_plans_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tables, "_plans", {})


@pytest.fixture(params=["small"] if INTERPRETED else ["small", "usual"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastsn.backends.triton.plan

    if request.param == "small":
        monkeypatch.setattr(fastsn.backends.triton.plan, "TILES", SMALL_TILES)
        monkeypatch.setattr(fastsn.backends.triton.plan, "BLOCK", 16)


@pytest.fixture(autouse=True, scope="session")
def _fast_interpreter() -> None:
    """Half of the interpreter's time goes into patching triton.language for each call of a function
    and restoring it, for what is compiled; here nothing is. A fourth goes into overflow checks."""
    if not INTERPRETED or triton_backend.import_error():
        return
    from triton import language
    from triton.runtime import interpreter

    real, patched = interpreter._patch_lang, set()

    def patch_once(function: Any) -> Any:
        visible = {id(value) for value in function.__globals__.values()}
        modules = frozenset(visible & {id(language), id(language.core)})
        if modules not in patched:
            patched.add(modules)
            real(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


# Results


@pytest.mark.usefixtures("tiles", "poisoned")
@pytest.mark.parametrize("n", [0, 1])
def test_every_kind_and_layout(n: int) -> None:
    scales = [random.uniform(0.5, 2.0) for _ in WEIGHTS]
    check(make(WEIGHTS, torch.float32, n), n, torch.float32, scales)


@pytest.mark.usefixtures("tiles", "poisoned")
@pytest.mark.parametrize(
    ("dtype", "n"), [(torch.float32, 3), *((dtype, 1) for dtype in OTHERS)], ids=str
)
def test_other_dtypes_and_several_iterations(dtype: torch.dtype, n: int) -> None:
    check(make(FEW, dtype), n, dtype)


@pytest.mark.usefixtures("tiles", "poisoned")
def test_result_in_another_dtype_scales_in_a_tensor_and_vectors_of_several_dtypes() -> None:
    group = make(FEW, torch.float32)
    group.pairs[0] = [(u.bfloat16(), v.double()) for u, v in group.pairs[0]]
    scales = torch.linspace(0.5, 2.0, len(FEW), dtype=torch.float64)
    check(group, 1, torch.float32, scales, out_dtype=torch.bfloat16)


#: Random weights that an interpreter has time for, and a GPU.
COUNT = 12 if INTERPRETED else 250


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, *OTHERS], ids=str)
def test_random_weights_are_as_accurate_as_torch(dtype: torch.dtype) -> None:
    """The CPU backend's test, on random weights of the same kind."""
    random.seed(str(dtype))
    shapes = [random_shape() for _ in range(COUNT)]
    while shapes:
        n = random.choice([0, 1, 1, 2])
        group = [shapes.pop() for _ in range(min(len(shapes), random.randrange(1, 7)))]
        check_accuracy([random_case(shape, dtype) for shape in group], dtype, n, DEVICE)


#: Weights of many tiles of the usual size along every axis; more of them where there is a GPU.
MANY_TILES = [((40, 35, 3, 3), "contiguous"), ((70, 69, 1, 2), "channels_last"),
              ((35, 300), "contiguous"), ((300, 20), "contiguous")]  # fmt: skip


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("n", [0, 2])
def test_weights_of_many_tiles_are_as_accurate_as_torch(n: int) -> None:
    random.seed(0)  # BSN and SN
    entries = MANY_TILES if INTERPRETED else MANY_TILES + LARGE
    cases = [random_case(shape, torch.float32) for shape, _ in entries]
    cases = [
        case._replace(weight=laid_out(case.weight, layout))
        for case, (_, layout) in zip(cases, entries, strict=True)
    ]
    check_accuracy(cases, torch.float32, n, DEVICE)


# The same bits, in few launches


@pytest.mark.usefixtures("tiles")
def test_grouped_ungrouped_and_repeated_calls_give_the_same_bits() -> None:
    group = make(FEW, torch.float32)
    grads = [torch.randn(w.shape) for w in group.weights]
    together = Outcome(group, grads=grads)
    again = Outcome(group, grads=grads)
    for i in range(len(FEW)):
        alone = Outcome(Group(*([part[i]] for part in group)), grads=[grads[i]])
        for other in (everything(again, i), everything(alone, 0)):
            assert all(map(same_bits, everything(together, i), other))


@pytest.mark.usefixtures("tiles")
@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs programs in an order of its own anyway")
def test_order_of_programs_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import interpreter_builder

    group = make(FEW, torch.float32)
    expected = Outcome(group, 1)
    orders: list[list[int]] = []
    set_grid_dim, set_grid_idx = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx

    def shuffle(x: int, y: int, z: int) -> None:
        set_grid_dim(x, y, z)
        orders.append(random.sample(range(x), x))

    monkeypatch.setattr(interpreter_builder, "set_grid_dim", shuffle)
    monkeypatch.setattr(
        interpreter_builder, "set_grid_idx", lambda x, y, z: set_grid_idx(orders[-1][x], y, z)
    )
    for _ in range(2):
        shuffled = Outcome(group, 1)
        assert all(order != sorted(order) for order in orders) and len(orders) % 3 == 0
        for i in range(len(FEW)):
            assert all(map(same_bits, everything(expected, i), everything(shuffled, i)))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched, as it happens."""
    names: list[str] = []
    real = triton_backend._launch

    def launch(kernel: Any, *args: Any) -> None:
        names.append(kernel.fn.__name__)
        real(kernel, *args)

    monkeypatch.setattr(triton_backend, "_launch", launch)
    return names


@pytest.mark.parametrize(("n", "forward"), [(0, 3), (1, 3), (2, 5)])
def test_launches_do_not_grow_with_the_number_of_weights(
    n: int, forward: int, launched: list[str]
) -> None:
    for count in (1, 4):
        group = make([((2, 3), 0, oracle.SN, "contiguous")] * count, torch.float32)
        launched.clear()
        Outcome(group, n, grads=group.weights)
        assert len(launched) == forward + 2, launched


@pytest.mark.parametrize(("name", "method", "size"), [("cnn", "sn", 32), ("resnet", "bssn", 128)])
def test_discriminators_take_three_launches_forward_and_two_backward(
    name: str, method: str, size: int, launched: list[str]
) -> None:
    model = WORKLOADS[name].build(1).to(DEVICE)
    with fastsn.use_backend("reference"):  # for the first iterations, layer by layer
        fastsn.apply(model, method=method)
    twin = copy.deepcopy(model)
    images = torch.randn(1, 3, size, size, device=DEVICE)
    loss = model(images).sum()
    assert launched == ["multiply_rows", "multiply_cols", "write_weights"]
    launched.clear()
    loss.backward()
    assert launched == ["inner_products", "write_gradients"]
    with fastsn.use_backend("reference"):
        twin(images).sum().backward()
    expected = dict(twin.named_parameters())
    assert len(expected) == 2 * len(normalized_layers(model))
    for key, parameter in model.named_parameters():
        assert_near(parameter.grad, expected[key].grad, 1e-4, f"gradient of {key}")


# On a GPU only


@pytest.mark.gpu
def test_captured_graph_sees_the_weights_of_its_replay() -> None:
    group = make(FEW, torch.float32)
    weights = [weight.to("cuda") for weight in group.weights]
    flat = [(u.to("cuda"), v.to("cuda")) for pairs in group.pairs for u, v in pairs]

    def normalize() -> Any:
        return spectral_normalize(
            weights, [u for u, _ in flat], [v for _, v in flat], group.dims, group.kinds,
            [1.0] * len(weights), None, 1, 1e-12, None, requested_backend(),
        )  # fmt: skip

    normalize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = normalize()
    for _ in range(3):
        for weight in weights:
            weight.copy_(torch.randn_like(weight))
        graph.replay()
        eager = normalize()
        for mine, expected in zip(
            [*captured[0], *captured[1:]], [*eager[0], *eager[1:]], strict=True
        ):
            assert same_bits(mine.cpu(), expected.cpu())


# Degenerate weights


@pytest.mark.usefixtures("tiles", "poisoned")
@pytest.mark.parametrize("n", [0, 1, 2])
def test_zero_and_non_finite_weights_disturb_nothing(n: int) -> None:
    good, bad = [FEW[0], FEW[4]], {2: 0.0, 3: float("nan"), 4: float("inf")}
    group = make([*good, *[FEW[2]] * len(bad)], torch.float32, n)
    grads = [torch.randn(w.shape) for w in group.weights]
    clean = Outcome(Group(*(part[: len(good)] for part in group)), n, grads=grads[: len(good)])
    group.weights[2].zero_()
    for i in (3, 4):
        group.weights[i][-1, -1, 0, 1] = bad[i]
    result = Outcome(group, n, grads=grads)
    for i in range(len(good)):
        assert all(map(same_bits, everything(clean, i), everything(result, i)))
    for i in bad:
        for given, new in zip(group.pairs[i], result.pairs[i], strict=True):
            assert same_bits(given[0], new[0]) and same_bits(given[1], new[1])
    assert result.sigmas[2] == 0
    assert torch.count_nonzero(result.weights[2]) == torch.count_nonzero(result.grads[2]) == 0
    assert not any(torch.isfinite(result.weights[i]).all() for i in (3, 4))


def test_start_in_the_null_space_keeps_both_pairs_of_a_weight() -> None:
    weight = torch.zeros(2, 2, 2)
    weight[0, 0, 0] = 4.0
    null, other = torch.tensor([0.0, 1, 0, 0]), torch.tensor([1.0, 0, 0, 1])
    u = torch.tensor([3.0, 4.0])
    group = Group([weight], [[(u, null), (u, other)]], [0], [oracle.BSN])
    result = Outcome(group)
    assert result.stats[:, 0].tolist() == [0.0, 4.0] and result.sigmas[0] == 2
    assert result.weights[0][0, 0, 0] == 2
    for given, new in zip(group.pairs[0], result.pairs[0], strict=True):
        assert same_bits(given[0], new[0]) and same_bits(given[1], new[1])


def test_vectors_of_length_zero_in_evaluation() -> None:
    group = Group([torch.randn(3, 4)], [[(torch.zeros(3), torch.randn(4))]], [0], [oracle.SN])
    result = Outcome(group, 0, grads=[torch.ones(3, 4)])
    assert result.sigmas[0] == 0 and torch.count_nonzero(result.weights[0]) == 0
    assert torch.count_nonzero(result.grads[0]) == 0


def test_eps_is_a_lower_bound_of_the_norms() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    pair = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    check(Group([weight], [[pair]], [0], [oracle.SN]), 1, torch.float64, eps=10.0)
    check(Group([weight], [[pair]], [0], [oracle.SN_V_FIRST]), 1, torch.float64, eps=10.0)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("size", "n"), [(1e30, 1), (1e30, 0), (1e-30, 2)])
def test_very_large_and_very_small_weights(size: float, n: int) -> None:
    group = make(FEW, torch.float32, n)
    group.weights[:] = [weight * size for weight in group.weights]
    eps = 0.0 if size < 1 else 1e-12
    result = Outcome(group, n, eps=eps)
    for i, weight in enumerate(group.weights):
        pairs = wide_pairs(group.pairs[i])
        expected = oracle.normalize(
            wide(weight), pairs, group.dims[i], group.kinds[i], n_power_iterations=n, eps=eps
        )
        assert_near(result.weights[i], expected.weight_sn, 1e-6, "W_sn")
        assert_near(result.sigmas[i], expected.sigma, 1e-6, "sigma")
