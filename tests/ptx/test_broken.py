"""Negative controls: broken copies of the CUDA kernels, and what the machine says of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastsn.backends import reference
from fastsn.plan import BSN, SN

from . import build
from .cuda import TYPES, CudaMachine
from .machine import RANDOM
from .workloads import one_weight

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
        "finish.cuh", "for (int64_t k = e; k < stop; ++k)", "for (int64_t k = e; k + 1 < stop; ++k)",
        "unwritten",
    ),
    "a vector's entry too many": (
        "finish.cuh", "n < end; n += kThreads", "n <= end; n += kThreads", "",
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
        memory = [torch.empty(x.numel() + 1)[1:] for x in (*call.weights, *call.grads)]
        given = [m.view(x.shape).copy_(x) for m, x in zip(memory, call.weights + call.grads)]
        for own in (call, call._replace(weights=given[:1], grads=given[1:])):
            with cuda.options(order=RANDOM, quantum=40):
                results = own.forward(cuda)
                back = own.backward(cuda, results)
            wide = [[x.double() for x in tensors] for tensors in own[1:5]]
            expected = reference.forward(own.plan, *wide[:3], None, 1, None)
            saved = [results[0][0].double()[None], *(x.double() for x in results[1:])]
            want = reference.backward(
                own.plan, wide[3], None, [saved[0][0]], *saved[1:], None, torch.float64
            )
            pairs = [(results[0][0], expected[0][0]), (results[2], expected[2])]
            pairs.append((back[0][0], want[0][0]))
            for got, right in pairs:
                error = (got.double() - right).norm() / right.norm()
                worst = max(worst, float(error.nan_to_num(1e9)))
    return cuda.take_found(), worst


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
    """One instruction of the compiled kernel at a time, of those that ran."""
    repaired.take_statistics()
    run(repaired)
    name = f"fastsn_{kernel}_f32_few"
    ran = [row for row in repaired.take_statistics().rows[name] if row.issued]
    lines = [row.line for row in ran if row.name == "bar.sync" or row.name.startswith("atom")]
    quiet = []
    try:
        for line in lines[:12]:
            with repaired.options(absent_line=line):
                repaired.redefine(name)
            found, error = run(repaired)
            if not found and error < 1e-5:
                quiet.append(line)
    finally:
        repaired.redefine(name)
    assert not quiet, f"not needed, or not missed: lines {quiet} of {lines}"
