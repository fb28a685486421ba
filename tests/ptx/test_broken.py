"""Negative controls: broken copies of the CUDA kernels, and what the machine says of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastsn.backends import reference
from fastsn.plan import BSN, SN

from . import build
from .cuda import TYPES, CudaMachine
from .machine import RANDOM
from .workloads import Call, one_weight

pytestmark = pytest.mark.ptx

#: File, what is there once, what takes its place, and what is found.
BREAKS = {
    "blocks have no barriers": (
        "portable.cuh", "void block_barrier() { __syncthreads(); }", "void block_barrier() {}",
        "race: reads what another thread writes",
    ),
    "arrivals do not order": (
        "portable.cuh", "atom.add.acq_rel.gpu.global.u32", "atom.add.relaxed.gpu.global.u32",
        "race: reads what another thread writes",
    ),
    "arrivals order what comes before only": (
        "portable.cuh", "atom.add.acq_rel.gpu.global.u32", "atom.add.release.gpu.global.u32",
        "race: reads what another thread writes",
    ),
    "the last but one to arrive adds up": (
        "strips.cuh", "arrive(counter) + 1 ==", "arrive(counter) + 2 ==", "nobody wrote",
    ),
    "a pack too many": (
        "finish.cuh", "for (; e + kCount <= end; e +=", "for (; e <= end; e +=", "out of bounds",
    ),
    "a number too few": (
        "finish.cuh", "(int64_t k = e; k < stop; ++k)", "(int64_t k = e; k + 1 < stop; ++k)",
        "unwritten",
    ),
    "a vector's entry too many": (
        "finish.cuh", "e < count; e += kThreads) {\n          const A value",
        "e <= count; e += kThreads) {\n          const A value", "",
    ),
    "alignment is not asked": (
        "tile.cuh", "bool is_aligned(const void* data) {",
        "bool is_aligned(const void* data) {\n  if (data) return true;", "misaligned access",
    ),
}  # fmt: skip
CALLS = [((24, 20, 3, 3), BSN), ((300, 200), SN), ((13, 27), SN), ((1, 11_001), SN)]


@pytest.fixture
def repaired(cuda: CudaMachine) -> Iterator[CudaMachine]:
    texts = [path.read_text() for path in build.some_cuda_ptx(TYPES)]
    cuda.strict = False
    yield cuda
    cuda.strict = True
    cuda.take_found()
    cuda.load(*texts)


def run(cuda: CudaMachine) -> tuple[str, float]:
    """What is found, and the largest error of a result relative to its size."""
    worst = 0.0
    for shape, kind in CALLS:
        torch.manual_seed(0)
        call = one_weight(shape, kind)
        for own in (call, _one_element_late(call)):
            with cuda.options(order=RANDOM, quantum=40):
                results = own.forward(cuda)
                gradients = own.backward(cuda, results)
            weights, us, vs, grads = ([x.double() for x in tensors] for tensors in own[1:])
            expected = reference.forward(own.plan, weights, us, vs, None, 1, None)
            saved = [[x.double() for x in results[0]], *(x.double() for x in results[1:])]
            wanted = reference.backward(own.plan, grads, None, *saved, None, torch.float64)
            for got, right in (
                (results[0][0], expected[0][0]), (results[2], expected[2]),
                (gradients[0][0], wanted[0][0]),
            ):  # fmt: skip
                error = (got.double() - right).norm() / right.norm()
                worst = max(worst, float(error.nan_to_num(1e9)))
    return cuda.take_found(), worst


def _one_element_late(call: Call) -> Call:
    """The same numbers in memory without alignment."""

    def late(x: Tensor) -> Tensor:
        return torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)

    return call._replace(
        weights=[late(weight) for weight in call.weights], grads=[late(g) for g in call.grads]
    )


def test_nothing_is_found_in_the_kernels_as_they_are(repaired: CudaMachine) -> None:
    found, error = run(repaired)
    assert found == "" and error < 1e-5


@pytest.mark.parametrize("name", BREAKS)
def test_broken_copy_is_found(repaired: CudaMachine, name: str, tmp_path: Path) -> None:
    file, old, new, message = BREAKS[name]
    csrc = shutil.copytree(build.ROOT / "csrc", tmp_path / "csrc")
    path = csrc / "cuda" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} has changed: {text.count(old)} of {old!r}"
    path.write_text(text.replace(old, new))
    kernels = build.some_cuda_ptx({"_f32": "float"}, csrc)
    repaired.load(*(kernel.read_text() for kernel in kernels))
    found, _ = run(repaired)
    assert found and message in found, found


@pytest.mark.parametrize(
    "kernel", ["forward_rows", "forward_cols", "forward_finish", "backward_dot", "backward_store"]
)
def test_atomic_or_barrier_that_is_left_out_is_missed(repaired: CudaMachine, kernel: str) -> None:
    """One instruction of the compiled kernel at a time, of those that ran.

    A function has its barriers wherever it is compiled to; what its callers do may make one spare.
    """
    repaired.take_statistics()
    run(repaired)
    name = f"fastsn_{kernel}_f32_few"
    ran = [row for row in repaired.take_statistics().rows[name] if row.issued]
    atomics = [row.line for row in ran if row.name.startswith("atom")]
    barriers = [row.line for row in ran if row.name == "bar.sync"][:12]
    quiet = []
    try:
        for line in [*atomics, *barriers]:
            with repaired.options(absent_line=line):
                repaired.redefine(name)
            found, error = run(repaired)
            if not found and error < 1e-5:
                quiet.append(line)
    finally:
        repaired.redefine(name)
    assert bool(atomics) == (kernel in ("forward_rows", "forward_cols"))
    assert not set(quiet) & set(atomics) and len(quiet) <= len(barriers) / 4, (quiet, barriers)
