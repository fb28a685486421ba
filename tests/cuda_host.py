"""What test_cuda_host.py and test_cuda_race.py run: CUDA sources built for the CPU, and weights."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsn.backends import reference
from fastsn.plan import BSN, SN, SN_V_FIRST, plan_of

EPS = 1e-12
# what the simulated device does: so many blocks at once, from the first or from the last
FORWARDS, BACKWARDS = (2, 0), (5, 1)

ROOT = Path(__file__).resolve().parent.parent
HOST, CUDA, TORCH = ROOT / "csrc" / "host", ROOT / "csrc" / "cuda", Path(torch.__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-clobbered"]
RACE = [CUDA / "kernel_name.cpp", HOST / "shim.cpp", HOST / "launch.cpp", HOST / "race.cpp"]
TARGETS: dict[str, list[Any]] = {
    "ops.so": [
        *("-O1", "-fPIC", "-shared", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
        *("-DTORCH_STABLE_ONLY", "-isystem", TORCH / "include", "-L", TORCH / "lib"),
        *(
            CUDA / "ops.cpp",
            ROOT / "csrc" / "arguments.cpp",
            CUDA / "kernel_name.cpp",
            HOST / "shim.cpp",
            HOST / "launch.cpp",
        ),
        *("-ltorch", "-ltorch_cpu", "-lc10"),
    ],
    # fewer threads per block, because a sanitizer follows each of them
    "race": ["-O1", "-g1", "-fsanitize=thread", "-DFASTSN_HOST_THREADS=64", *RACE],
    "bounds": ["-O0", "-g1", "-fsanitize=address,bounds", "-DFASTSN_HOST_THREADS=64", *RACE],
}


def build(name: str, folder: Path) -> Path | str:
    """Compiles a target: its file, or why it cannot be built here."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return "expected a C++ compiler (g++ or CXX), found none"
    options = [*WARNINGS, "-DFASTSN_HOST", *map(str, TARGETS[name])]
    command = [compiler, "-std=c++20", *options, "-o", str(folder / name)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in result.stderr and "san" in result.stderr:
        return f"expected a compiler with sanitizers, got: {result.stderr.strip()}"
    assert result.returncode == 0, f"{name} does not compile:\n{result.stderr}"
    return folder / name


class Host:
    """The ops of csrc/cuda/ops.cpp for CPU tensors, on a simulated device."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        functions = ctypes.CDLL(str(library))
        self.set_device = functions.fastsn_host_device
        self.launches = functions.fastsn_host_launches
        self.refuse = functions.fastsn_host_refuse
        self.set_device(*FORWARDS)

    def forward(self, *args: Any) -> Any:
        """The op, without memory or bounds; ``store_vectors`` may be left out."""
        return torch.ops.fastsn_cuda_host.forward(*args[:10], *(args[10:] or (False,)), [], [])

    def backward(self, *args: Any) -> Any:
        """The op, without memory or bounds."""
        return torch.ops.fastsn_cuda_host.backward(*args, [], [])


class Case(NamedTuple):
    shape: tuple[int, ...]
    kind: int = SN
    dim: int = 0
    channels_last: bool = False


CASES = [
    *(Case((40, 70)), Case((300, 200)), Case((64, 27)), Case((37, 53), SN_V_FIRST)),
    *(Case((48, 40, 3, 3), BSN), Case((48, 40, 3, 3), BSN, 0, True), Case((20, 96, 1, 1), BSN)),
    *(Case((33, 17, 3, 3), BSN, 1, True), Case((20, 130, 4, 4), SN, 1), Case((6, 9, 400), BSN)),
    *(Case((20, 30, 4, 4), SN, 0, True), Case((20, 30, 4, 4), SN, 1, True)),
    *(Case((1, 8192)), Case((8192, 1)), Case((1, 700), SN_V_FIRST), Case((700, 1), SN_V_FIRST)),
    *(Case((1, 1)), Case((7, 1, 1), BSN), Case((1, 1, 1), BSN, 1), Case((31, 1, 2, 2), BSN)),
    *(Case((5, 6, 7, 8), SN, 2), Case((3, 4, 130, 5), BSN, 1)),
]


class Group(NamedTuple):
    """The first arguments of forward, for weights with nearly converged vectors."""

    weights: list[Tensor]
    us: list[Tensor]
    vs: list[Tensor]
    dims: list[int]
    kinds: list[int]
    scales: list[float]

    def part(self, i: int) -> Group:
        counts = [2 if kind == BSN else 1 for kind in self.kinds]
        own = slice(sum(counts[:i]), sum(counts[: i + 1]))
        dims, kinds, scales = [self.dims[i]], [self.kinds[i]], [self.scales[i]]
        return Group([self.weights[i]], self.us[own], self.vs[own], dims, kinds, scales)

    def double(self) -> Group:
        weights, us, vs = ([x.double() for x in tensors] for tensors in self[:3])
        return self._replace(weights=weights, us=us, vs=vs)


def make_group(cases: Sequence[Case], dtype: torch.dtype) -> Group:
    dims, kinds = [case.dim for case in cases], [case.kind for case in cases]
    weights = [torch.randn(case.shape).to(dtype) for case in cases]
    weights = [
        weight.to(memory_format=torch.channels_last) if case.channels_last else weight
        for weight, case in zip(weights, cases, strict=True)
    ]
    shapes = tuple(tuple(weight.shape) for weight in weights)
    scales = [1.0 + 0.1 * i for i in range(len(cases))]
    plan = plan_of(shapes, tuple(dims), tuple(kinds), tuple(scales), EPS)
    views = plan.flat_views
    us, vs = ([torch.randn(view[k], dtype=torch.float64) for view in views] for k in (1, 2))
    group = Group([w.double() for w in weights], us, vs, dims, kinds, scales)
    vectors = reference.forward(plan, group.weights, us, vs, None, 4, None)[2]
    sizes = [size for view in views for size in (view.rows, view.cols)]
    given = [(3 * part).to(dtype) for part in vectors.split(sizes)]  # of any length
    return group._replace(weights=weights, us=given[0::2], vs=given[1::2])


def flat(results: Sequence[Any]) -> list[Tensor]:
    return [t for result in results for t in (result if isinstance(result, list) else [result])]


def distance(got: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def assert_same_bits(got: Sequence[Any], expected: Sequence[Any]) -> None:
    for one, other in zip(flat(got), flat(expected), strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
