"""The compiled CUDA kernels, all of them: every dtype, number of iterations, layout and order."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from cuda_host import assert_same_bits
from test_backends import EDGES, LARGE, check_accuracy, laid_out, random_case, random_shape
from torch import Tensor

from fastsn.plan import BSN, SN

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


def test_instructions_that_never_ran(cuda: CudaMachine, coverage: Coverage) -> None:
    """Runs last. Every kernel ran, and most of each; build/ptx/coverage.txt names the rest."""
    coverage.add(cuda.take_statistics())
    missing = {name for name in cuda.names if name.startswith("fastsn_")} - set(coverage.ran)
    assert not missing, f"never launched: {sorted(missing)}"
    text = coverage.write()
    print(text)
    least = min(coverage.part(name) for name in coverage.ran)
    assert least > 0.5, text
