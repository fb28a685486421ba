"""The Triton kernels as compiled for a GPU, run: as accurate as torch, and nothing found."""

from __future__ import annotations

import random

import pytest
import torch
from test_backends import EDGES, check_accuracy, laid_out, random_case, random_shape

from fastsn.plan import BSN, SN

from .machine import BACKWARD, RANDOM
from .triton_machine import TritonMachine
from .use import assert_same_everything, in_place_of
from .workloads import one_weight, workload

pytestmark = pytest.mark.ptx

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

#: Every shape of tiles, whole and cut, in vectors and not.
SHAPES = [
    ((40, 72), "contiguous"), ((40, 70), "contiguous"), ((24, 20, 4, 4), "contiguous"),
    ((48, 40, 3, 3), "contiguous"), ((70, 72, 2, 1), "channels_last"), ((300, 20), "contiguous"),
    ((33, 17, 3, 3), "channels_last"), ((20, 96, 1, 1), "contiguous"), ((1, 4100), "contiguous"),
]  # fmt: skip


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_accurate_as_torch(triton: TritonMachine, dtype: torch.dtype, n: int) -> None:
    random.seed(n)
    entries = SHAPES + [(shape, "contiguous") for shape in EDGES]
    entries += [(random_shape(), "channels_last") for _ in range(6)]
    cases = [random_case(shape, dtype) for shape, _ in entries]
    cases = [
        case._replace(weight=laid_out(case.weight, layout))
        for case, (_, layout) in zip(cases, entries, strict=True)
    ]
    with in_place_of("triton", triton):
        check_accuracy(cases, dtype, n)


@pytest.mark.parametrize("kind", [SN, BSN], ids=["SN", "BSN"])
def test_order_of_programs_and_warps_changes_no_bit(triton: TritonMachine, kind: int) -> None:
    """Lanes that write one address write one value: else chance would choose."""
    for shape, layout in SHAPES:
        call = one_weight(
            shape, kind if len(shape) > 2 else SN, channels_last=layout != "contiguous"
        )
        outcomes = []
        for schedule in ({}, {"order": BACKWARD}, {"order": RANDOM, "quantum": 50}):
            with triton.options(**schedule):
                results = call.forward(triton)
                outcomes.append((results, call.backward(triton, results)))
        for other in outcomes[1:]:
            assert_same_everything(other, outcomes[0])


def test_loads_and_stores_of_16_bytes_are_run(triton: TritonMachine) -> None:
    """Of a network whose weights allow it, most bytes move in them."""
    call = workload("cnn", SN)
    results = call.forward(triton)
    call.backward(triton, results)
    rows = [row for own in triton.take_statistics().rows.values() for row in own]
    for name in ("ld", "st"):
        moved = [row for row in rows if row.name == name and row.space == 0]
        wide = sum(row.bytes for row in moved if row.access_bytes == 16)
        # every number of the network is read or written in a vector as often as kernels pass by,
        # but for those of the first layer, whose rows of 27 allow none
        passes = {"ld": 6, "st": 2}[name]
        assert wide > 0.99 * passes * 4 * call.elements, (name, wide)


def test_weights_of_any_tiles_are_written_in_vectors(triton: TritonMachine) -> None:
    """Tiles of 3x3 kernels with two unfoldings are in no vectors; W_sn is written without tiles."""
    call = one_weight((48, 40, 3, 3), BSN)
    call.forward(triton)
    rows = triton.take_statistics().rows[triton.compiled("write_weights")]
    for name in ("ld", "st"):
        moved = [row for row in rows if row.name == name and row.space == 0]
        assert sum(row.bytes for row in moved if row.access_bytes == 16) >= 4 * call.elements


def test_atomic_or_barrier_that_is_left_out_is_missed(triton: TritonMachine) -> None:
    """Negative controls: of the kernel that has counters, without one instruction at a time."""
    call = one_weight((24, 20, 3, 3), BSN)
    call.forward(triton)
    name = triton.compiled("multiply_cols")
    ran = [row for row in triton.take_statistics().rows[name] if row.issued]
    atomics = [row.line for row in ran if row.name.startswith("atom")]
    barriers = [row.line for row in ran if row.name == "bar.sync"]
    missed = []
    triton.strict = False
    try:
        for line in [*atomics, *barriers]:
            with triton.options(absent_line=line, order=RANDOM, quantum=20):
                triton.redefine(name)
                call.forward(triton)
            if triton.take_found():
                missed.append(line)
    finally:
        triton.strict = True
        triton.redefine(name)
    assert len(atomics) == 3 and set(atomics) <= set(missed)
    # the compiler puts a barrier wherever shared memory is used again, needed or not
    assert len(set(missed) & set(barriers)) > len(barriers) / 2
