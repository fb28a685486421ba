"""The compiled CUDA kernels, all of them: every dtype, number of iterations, layout and order."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from cuda_host import assert_same_bits
from test_backends import EDGES, LARGE, Case, check_accuracy, laid_out, random_case, random_shape
from torch import Tensor

from fastsn.plan import BSN, SN, plan_of

from .coverage import Coverage
from .cuda import CudaMachine
from .machine import BACKWARD, RANDOM
from .test_kernels import SMALL
from .use import assert_same_everything, in_place_of
from .workloads import Call, one_weight

pytestmark = pytest.mark.ptx

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SCHEDULES = [
    {}, {"order": BACKWARD, "early_copies": 1, "resident": 1},
    {"order": RANDOM, "quantum": 60, "resident": 16},
    {"order": RANDOM, "quantum": 7, "split": 1, "early_copies": 1, "seed": 2},
]  # fmt: skip
LAYOUTS = ["contiguous", "channels_last"]


@pytest.fixture(scope="module")
def coverage() -> Coverage:
    return Coverage()


@pytest.fixture(autouse=True)
def _cover(cuda: CudaMachine, coverage: Coverage) -> Iterator[None]:
    cuda.load_all()
    yield
    coverage.add(cuda.take_statistics())


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_accurate_as_torch(cuda: CudaMachine, dtype: torch.dtype, n: int) -> None:
    """Forward and backward, SN and BSN, with at most twice torch's error."""
    random.seed(n)
    shapes = [*SMALL, *EDGES, *(random_shape() for _ in range(20))]
    entries = [(shape, random.choice(LAYOUTS)) for shape in shapes] + (LARGE if n == 1 else [])
    cases = [random_case(shape, dtype) for shape, _ in entries]
    cases = [
        case._replace(weight=laid_out(case.weight, layout))
        for case, (_, layout) in zip(cases, entries, strict=True)
    ]
    with in_place_of("cuda", cuda):
        for schedule, part in zip(SCHEDULES, (cases[0::3], cases[1::3], cases[2::3]), strict=False):
            with cuda.options(**schedule):
                check_accuracy(part, dtype, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_weights_in_one_call(cuda: CudaMachine, dtype: torch.dtype) -> None:
    """Kernels for as many as 255 have a parameter of their own."""
    random.seed(0)
    cases = [random_case((5, 3, 2, 2), dtype) for _ in range(60)]
    with in_place_of("cuda", cuda):
        check_accuracy(cases, dtype, 1)
    launched = {launch.kernel for launch in cuda.take_statistics().launches}
    assert launched and all(name.endswith("_many") for name in launched)
    with in_place_of("cuda", cuda):  # counted as run
        check_accuracy(cases[:40], dtype, 0)
        check_accuracy(cases[:40], dtype, 2)


def _outcome(cuda: CudaMachine, call: Call) -> tuple[object, object]:
    results = call.forward(cuda)
    return results, call.backward(cuda, results)


IN_ORDERS = [
    *((shape, layout) for shape in [(48, 40, 3, 3), (20, 96, 1, 1)] for layout in LAYOUTS),
    *(((130, 33, 4, 4), "contiguous"), ((3, 257, 5), "contiguous")),
]  # fmt: skip


@pytest.mark.parametrize("kind", [SN, BSN], ids=["SN", "BSN"])
@pytest.mark.parametrize(("shape", "layout"), IN_ORDERS)
def test_no_order_changes_a_bit(
    cuda: CudaMachine, shape: tuple[int, ...], layout: str, kind: int
) -> None:
    call = one_weight(shape, kind, channels_last=layout == "channels_last")
    outcomes = []
    for schedule in SCHEDULES:
        with cuda.options(**schedule):
            outcomes.append(_outcome(cuda, call))
    for other in outcomes[1:]:
        assert_same_everything(other, outcomes[0])


def _shifted(tensor: Tensor) -> Tensor:
    """The same numbers in memory that begins one element late."""
    memory = tensor.new_empty(tensor.numel() + 1)[1:]
    return torch.as_strided(memory, tensor.shape, tensor.stride(), 1).copy_(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_without_alignment_gives_the_same_bits(
    cuda: CudaMachine, dtype: torch.dtype
) -> None:
    for shape, kind in (((64, 96), SN), ((24, 20, 4, 4), BSN), ((24, 20, 3, 3), BSN)):
        call = one_weight(shape, kind)
        call = call._replace(
            weights=[w.to(dtype) for w in call.weights], grads=[g.to(dtype) for g in call.grads]
        )
        shifted = call._replace(
            weights=[_shifted(w) for w in call.weights], grads=[_shifted(g) for g in call.grads]
        )
        expected, got = call.forward(cuda), shifted.forward(cuda)
        assert_same_bits(got, expected)
        assert_same_bits(shifted.backward(cuda, got), call.backward(cuda, expected))


def test_options_of_the_ops(cuda: CudaMachine) -> None:
    """Scales in a tensor, other dtypes of vectors and results, vectors stored in place."""
    call = one_weight((24, 20, 3, 3), BSN)
    plan, weights = call.plan, [weight.bfloat16() for weight in call.weights]
    scale = torch.tensor([1.7], dtype=torch.float64)
    us, vs = [u.half() for u in call.us], [v.bfloat16() for v in call.vs]
    results = cuda.forward(plan, weights, us, vs, scale, 1, torch.float32)
    again = cuda.forward(plan, weights, us, vs, scale, 1, torch.float32, True)
    assert_same_bits(again, results)
    stored = [vector for pair in zip(us, vs, strict=True) for vector in pair]
    parts = results[2].split([vector.numel() for vector in stored])
    for own, new in zip(stored, parts, strict=True):
        assert torch.equal(own, new.to(own.dtype))
    grads = [grad.float() for grad in call.grads]
    grad_sigmas = torch.tensor([0.3])
    cuda.backward(plan, grads, grad_sigmas, *results, scale, torch.float16)


def some_case(shape: tuple[int, ...], dtype: torch.dtype, kind: int) -> Case:
    """A random case of one kind, contiguous."""
    case = random_case(shape, dtype)
    while case.kind != kind or case.dim > 1:
        case = random_case(shape, dtype)
    return case._replace(weight=laid_out(case.weight, "contiguous"))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_with_code_of_their_own(cuda: CudaMachine, dtype: torch.dtype, n: int) -> None:
    """Single rows, 3x3 kernels in both unfoldings, and rows that fit no tile evenly."""
    random.seed(n)
    rows = [some_case(shape, dtype, SN) for shape in [(1, 700), (1, 8192), (1, 4101), (300, 36)]]
    shapes = [(48, 40, 3, 3), (64, 64, 3, 3), (130, 17, 3, 3), (16, 128, 3, 3), (20, 40, 4, 4)]
    both = [some_case(shape, dtype, BSN) for shape in shapes for _ in range(2)]
    with in_place_of("cuda", cuda):
        check_accuracy([*rows, *both], dtype, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_a_zero_weight_stay(cuda: CudaMachine, dtype: torch.dtype) -> None:
    weights = [torch.zeros(shape, dtype=dtype) for shape in ((40, 30), (8, 6, 3, 3))]
    plan = plan_of(((40, 30), (8, 6, 3, 3)), (0, 0), (SN, BSN), (1.0, 1.0), 1e-12)
    us = [torch.randn(view.rows, dtype=dtype) for view in plan.flat_views]
    vs = [torch.randn(view.cols, dtype=dtype) for view in plan.flat_views]
    weights_sn, sigmas, vectors, _ = cuda.forward(plan, weights, us, vs, None, 1, None)
    assert all(torch.equal(got, weight) for got, weight in zip(weights_sn, weights, strict=True))
    assert not sigmas.any()
    kept = [x.to(vectors.dtype) for pair in zip(us, vs, strict=True) for x in pair]
    assert torch.equal(vectors, torch.cat(kept))


@pytest.mark.parametrize("stored", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_new_vectors_go_into_the_given_ones(
    cuda: CudaMachine, dtype: torch.dtype, stored: torch.dtype
) -> None:
    shapes = ((40, 300), (24, 20, 3, 3))
    plan = plan_of(shapes, (0, 0), (SN, BSN), (1.0, 1.0), 1e-12)
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    us = [torch.randn(view.rows, dtype=stored) for view in plan.flat_views]
    vs = [torch.randn(view.cols, dtype=stored) for view in plan.flat_views]
    _, _, vectors, _ = cuda.forward(plan, weights, us, vs, None, 1, None, True)
    for (u, v), given_u, given_v in zip(plan.split(vectors), us, vs, strict=True):
        assert torch.equal(u.to(stored), given_u) and torch.equal(v.to(stored), given_v)


def test_instructions_that_never_ran(cuda: CudaMachine, coverage: Coverage) -> None:
    """Runs last. Every kernel ran, and all but one in fifty lines of the source in one of them.

    build/ptx/coverage.txt names the instructions that did not run.
    """
    coverage.add(cuda.take_statistics())
    missing = {name for name in cuda.names if name.startswith("fastsn_")} - set(coverage.ran)
    assert not missing, f"never launched: {sorted(missing)}"
    print(coverage.write())
    lines = {where for rows in coverage.ran.values() for where, _ in rows.values()}
    never = coverage.lines_that_never_ran()
    assert len(never) <= len(lines) / 50, "\n".join(never)
