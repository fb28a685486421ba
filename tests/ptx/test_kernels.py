"""The compiled CUDA kernels, run: as accurate as torch, and nothing found.

test_full.py has the full set.
"""

from __future__ import annotations

import random

import pytest
import torch
from test_backends import LARGE, check_accuracy, laid_out, random_case

from fastsn.plan import BSN, SN

from .cuda import CudaMachine
from .machine import BACKWARD, RANDOM
from .use import assert_same_everything, in_place_of
from .workloads import workload

#: One of every kind of tile, with SN and BSN as `random_case` chooses.
SMALL = [(40, 70), (64, 27), (48, 40, 3, 3), (20, 96, 1, 1), (33, 17, 4, 4), (1, 700), (300, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["small", "large"])
def test_as_accurate_as_torch(cuda: CudaMachine, dtype: torch.dtype, size: str) -> None:
    """Forward and backward of SN and BSN, with at most twice torch's error."""
    random.seed(0)
    entries = [(shape, "contiguous") for shape in SMALL * 2] if size == "small" else LARGE
    cases = [random_case(shape, dtype) for shape, _ in entries]
    cases = [
        case._replace(weight=laid_out(case.weight, layout))
        for case, (_, layout) in zip(cases, entries, strict=True)
    ]
    assert {case.kind for case in cases} >= {SN, BSN}
    with in_place_of("cuda", cuda):
        check_accuracy(cases, dtype, 1)


@pytest.mark.parametrize("kind", [SN, BSN], ids=["SN", "BSN"])
def test_order_of_blocks_warps_and_copies_changes_no_bit(cuda: CudaMachine, kind: int) -> None:
    call = workload("one-64x27", kind)
    outcomes = []
    for schedule in ({}, {"order": BACKWARD, "early_copies": 1}, {"order": RANDOM, "quantum": 50}):
        with cuda.options(**schedule):
            results = call.forward(cuda)
            outcomes.append((results, call.backward(cuda, results)))
    for other in outcomes[1:]:
        assert_same_everything(other, outcomes[0])
