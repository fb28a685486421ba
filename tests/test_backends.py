"""Every backend: as accurate as torch on a thousand random weights, and the same bits always."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch
from cases import KINDS, Pairs, call, plain, random_pairs, same_bits, wide, wide_pairs
from torch import Tensor

import fastsn
from fastsn.backends import explain

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [1, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 41, 64, 97]
KERNEL_SIZES = [1, 1, 2, 3, 3, 4, 5, 7]

EDGES = [(1, 1), (1, 7), (7, 1), (1, 1, 1), (2, 1, 3, 3), (1, 5, 1, 2), (1, 1, 1, 1, 1)]

#: Errors that are allowed whatever torch's, in ulps of the results' dtype. sigma and W_sn are a
#: sum, a root, a quotient and a product away from exact numbers, each rounded once: 4. The oracle's
#: sums have float64 errors of their own, which grow with the number of terms: 16 for float64.
FLOOR = {torch.float64: 16.0}


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """These weights are too small to share out: more threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Accuracy


class Case(NamedTuple):
    weight: Tensor
    pairs: Pairs
    dim: int
    kind: int
    scale: float
    grad: Tensor
    grad_sigma: float


def random_shape() -> tuple[int, ...]:
    rank, shape, left = random.choice([2, 2, 3, 3, 4, 4, 5, 6]), [], 3000
    for d in range(rank):
        sizes = SIZES if d < 2 else KERNEL_SIZES
        shape.append(random.choice([size for size in sizes if size <= left]))
        left //= shape[-1]
    if rank == 2 and random.random() < 0.2:
        shape[random.randrange(2)] = random.choice([509, 1021, 2039])
    return tuple(shape)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The values with other strides: dense in another order, or with gaps."""
    if layout == "channels_last":
        order = [0, *range(2, tensor.ndim), 1]
    elif layout == "permuted":
        order = random.sample(range(tensor.ndim), tensor.ndim)
    elif layout == "sliced":
        gaps = tensor.new_zeros([size * 2 for size in tensor.shape])
        window = gaps[tuple(slice(1, None, 2) for _ in tensor.shape)]
        return window.copy_(tensor)
    else:
        return tensor.contiguous()
    return tensor.permute(order).contiguous().permute([order.index(d) for d in range(tensor.ndim)])


def random_case(shape: tuple[int, ...], dtype: torch.dtype, dim: int | None = None) -> Case:
    """A case of any kind and dimension, or of SN along ``dim``."""
    kind = random.choice([k for k in KINDS.values() if k != oracle.BSN or len(shape) > 2])
    kind = kind if dim is None else oracle.SN
    dim = random.randrange(2 if kind == oracle.BSN else len(shape)) if dim is None else dim
    layouts = ["contiguous", "channels_last", "permuted"] + ["sliced"] * (len(shape) < 5)
    weight = laid_out(torch.randn(shape).to(dtype), random.choice(layouts))
    grad = laid_out(torch.randn(shape).to(dtype), random.choice(layouts))
    if random.random() < 0.25:
        grad = grad[:1, :1].expand(shape)
    # Vectors as registration leaves them. Of random ones M v is small, and mostly rounding errors.
    start = wide_pairs(random_pairs(weight, dim, kind))
    trained = oracle.normalize(wide(weight), start, dim, kind, n_power_iterations=2)
    pairs = [(torch.tensor(u).to(dtype), torch.tensor(v).to(dtype)) for u, v in trained.pairs]
    return Case(weight, pairs, dim, kind, random.choice([1.0, 0.7, 1.9]), grad, random.random())


def check_accuracy(cases: list[Case], dtype: torch.dtype, n: int, device: str = "cpu") -> None:
    """One call for all cases, judged by the oracle with torch's errors as the measure."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [case.weight.to(device).requires_grad_() for case in cases]
    pairs = [[(u.to(device), v.to(device)) for u, v in case.pairs] for case in cases]
    result = call(
        weights, pairs, [c.dim for c in cases], [c.kind for c in cases],
        scale=[case.scale for case in cases], n=n,
    )  # fmt: skip
    grad_sigmas = torch.tensor([case.grad_sigma for case in cases], dtype=accumulate)
    pulls = [*(case.grad for case in cases), grad_sigmas]
    grads = torch.autograd.grad(
        [*result.weights, result.sigmas], weights, [pull.to(device) for pull in pulls]
    )
    for i, case in enumerate(cases):
        options = {"dim": case.dim, "kind": case.kind, "scale": case.scale}
        weight, grad = wide(case.weight), wide(case.grad)
        expected = oracle.normalize(weight, wide_pairs(case.pairs), **options, n_power_iterations=n)
        expected_grad, _ = oracle.gradients(weight, expected, grad, case.grad_sigma, **options)
        # torch gets the dtype that sums are made in, and its results are rounded once more. That is
        # stricter than torch in half precision, whose sums are halves too.
        leaf = case.weight.detach().to(accumulate).requires_grad_()
        pairs = [(u.to(accumulate), v.to(accumulate)) for u, v in case.pairs]
        torch_sn, torch_sigma, _ = plain(leaf, pairs, **options, n=n)
        (torch_grad,) = torch.autograd.grad(
            [torch_sn, torch_sigma], [leaf], [case.grad.to(accumulate), grad_sigmas[i]]
        )
        # A gradient is a difference: errors are relative to its terms. Of c = <G, W_sn> it is the
        # root of the sum of squares, for the roundings of W_sn are independent.
        terms = grad * expected.weight_sn
        c = np.sqrt(np.sum(terms**2)) + abs(terms.sum()) + abs(case.grad_sigma * expected.sigma)
        steepest = np.abs(oracle.direction(weight, expected, case.dim, case.kind)).max()
        size = (case.scale * np.abs(grad).max() + c * steepest) / expected.sigma
        for what, mine, torchs, exact, magnitude in (
            ("sigma", result.sigmas[i], torch_sigma, expected.sigma, expected.sigma),
            ("W_sn", result.weights[i], torch_sn.to(dtype), expected.weight_sn, None),
            ("grad W", grads[i], torch_grad.to(dtype), expected_grad, size),
        ):
            magnitude = np.abs(exact).max() if magnitude is None else magnitude
            ulp = torch.finfo(mine.dtype).eps * magnitude
            error, allowed = (np.abs(wide(value) - exact).max() for value in (mine, torchs))
            assert error <= 2 * allowed + FLOOR.get(dtype, 4.0) * ulp, (
                f"{what} of {tuple(case.weight.shape)}, strides {case.weight.stride()}, {options}, "
                f"n={n}: error {error / ulp:.2f} ulps, torch's {allowed / ulp:.2f}"
            )
        assert result.weights[i].stride() == torch.empty_like(case.weight).stride()


@pytest.mark.usefixtures("poisoned", "_one_thread")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_250_random_weights_are_as_accurate_as_torch(backend: str, dtype: torch.dtype) -> None:
    random.seed(str(dtype))
    assert torch.empty(8, dtype=dtype).isnan().all()
    shapes = EDGES + [random_shape() for _ in range(250 - len(EDGES))]
    while shapes:
        n = random.choice([0, 1, 1, 2, 3, 5])
        group = [shapes.pop() for _ in range(min(len(shapes), random.randrange(1, 7)))]
        check_accuracy([random_case(shape, dtype) for shape in group], dtype, n)


#: Weights of many tiles, in the layouts that kernels walk in place.
LARGE = [((250, 129, 3, 3), "contiguous"), ((250, 129, 3, 3), "channels_last"),
         ((65, 4099), "contiguous"), ((4099, 65), "contiguous"), ((1, 40_000), "contiguous"),
         ((40_000, 1), "contiguous"), ((19, 33, 5, 5, 3), "channels_last")]  # fmt: skip


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_many_tiles_are_as_accurate_as_torch(
    require_backend: Callable[[str, Sequence[str]], None], dtype: torch.dtype
) -> None:
    require_backend("cpu", explain(torch.device("cpu"))["cpu"])
    random.seed(str(dtype))
    for n in (0, 2) if dtype == torch.float32 else (2,):
        cases = [random_case(shape, dtype) for shape, _ in LARGE]
        cases = [
            case._replace(weight=laid_out(case.weight, layout))
            for case, (_, layout) in zip(cases, LARGE, strict=True)
        ]
        with fastsn.use_backend("cpu"):
            check_accuracy(cases, dtype, n)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("n", [0, 1, 5])
def test_long_sums_are_as_accurate_as_torch(backend: str, n: int) -> None:
    """Hundreds of terms or more for each of a few rows, side by side in memory."""
    for seed in range(5):
        random.seed(seed)
        torch.manual_seed(seed)
        shapes = [((5000, 1), 1), ((1435, 2), 1), ((1021, 32), 1), ((64, 8, 3, 1), 3)]
        cases = [random_case(shape, torch.float32, dim) for shape, dim in shapes]
        check_accuracy(cases, torch.float32, n)


@pytest.mark.usefixtures("_one_thread")
def test_every_instruction_set_is_as_accurate_as_torch(
    require_backend: Callable[[str, Sequence[str]], None],
) -> None:
    require_backend("cpu", explain(torch.device("cpu"))["cpu"])
    ops = torch.ops.fastsn_cpu
    used = ops.simd_level()
    assert used in ops.simd_levels() and "baseline" in ops.simd_levels()
    try:
        for level in ops.simd_levels():
            ops.set_simd_level(level)
            assert ops.simd_level() == level
            for dtype in DTYPES:
                cases = [random_case(random_shape(), dtype) for _ in range(30)]
                with fastsn.use_backend("cpu"):
                    check_accuracy(cases, dtype, 2)
    finally:
        ops.set_simd_level(used)


# The same bits


def every_bit(
    order: Sequence[int], grouped: bool, n: int = 1, dtype: torch.dtype = torch.float32
) -> list[list[Tensor]]:
    """Everything forward and backward give for each of the large weights, whatever the order."""
    random.seed(5)
    torch.manual_seed(5)
    cases = [random_case(shape, dtype) for shape, _ in LARGE]
    leaves = [
        laid_out(case.weight, layout).requires_grad_()
        for case, (_, layout) in zip(cases, LARGE, strict=True)
    ]
    outcomes: list[list[Tensor]] = [[] for _ in LARGE]
    for members in [list(order)] if grouped else [[i] for i in order]:
        own = [cases[i] for i in members]
        result = call(
            [leaves[i] for i in members], [case.pairs for case in own], [case.dim for case in own],
            [case.kind for case in own], scale=torch.tensor([case.scale for case in own]), n=n,
        )  # fmt: skip
        outputs = [*result.weights, result.sigmas]
        torch.autograd.backward(outputs, [*(case.grad for case in own), result.sigmas.detach()])
        for j, i in enumerate(members):
            vectors = [vector for pair in result.pairs[j] for vector in pair]
            outcomes[i] = [result.weights[j], result.sigmas[j], *vectors, leaves[i].grad]
    return outcomes


def assert_same_bits(expected: list[list[Tensor]], actual: list[list[Tensor]]) -> None:
    for i, (mine, theirs) in enumerate(zip(expected, actual, strict=True)):
        assert len(mine) >= 5
        for a, b in zip(mine, theirs, strict=True):
            assert same_bits(a, b), f"different bits for {LARGE[i]}"


IN_ORDER = range(len(LARGE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_calls_give_the_same_bits(backend: str, dtype: torch.dtype) -> None:
    first = every_bit(IN_ORDER, grouped=True, n=2, dtype=dtype)
    for _ in range(2):
        assert_same_bits(first, every_bit(IN_ORDER, grouped=True, n=2, dtype=dtype))


def test_grouped_and_ungrouped_give_the_same_bits(backend: str) -> None:
    grouped = every_bit(IN_ORDER, grouped=True)
    assert_same_bits(grouped, every_bit(IN_ORDER, grouped=False))
    assert_same_bits(grouped, every_bit(IN_ORDER[::-1], grouped=True))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_any_number_of_threads_gives_the_same_bits(
    require_backend: Callable[[str, Sequence[str]], None], n: int
) -> None:
    require_backend("cpu", explain(torch.device("cpu"))["cpu"])
    threads = torch.get_num_threads()
    try:
        with fastsn.use_backend("cpu"):
            torch.set_num_threads(1)
            alone = every_bit(IN_ORDER, grouped=True, n=n)
            for count in (2, 2, 5):
                torch.set_num_threads(count)
                assert torch.get_num_threads() == count
                assert_same_bits(alone, every_bit(IN_ORDER, grouped=True, n=n))
    finally:
        torch.set_num_threads(threads)


def test_calls_from_several_threads_give_the_same_bits(backend: str) -> None:
    weights = [torch.randn(64, 32, 3, 3), torch.randn(200, 300), torch.randn(16, 8, 5)]
    kinds = [oracle.BSN, oracle.SN, oracle.BSN]
    pairs = [random_pairs(weight, 0, kind) for weight, kind in zip(weights, kinds, strict=True)]
    expected = call(weights, pairs, [0, 0, 0], kinds, n=3)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(call, weights, pairs, [0, 0, 0], kinds, n=3) for _ in range(24)]
        for future in calls:
            assert all(map(same_bits, expected.weights, future.result().weights))
