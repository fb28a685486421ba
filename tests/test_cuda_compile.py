"""The CUDA module as nvcc made it, on any machine: what its kernels take, and that it loads.

Nothing is compiled here: the module under test is the one that was built in place.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import fastsn
from fastsn.backends import explain, native

MODULE = Path(fastsn.__file__).with_name("_C_cuda.abi3.so")
ARCHITECTURES = ("80", "90", "100")
KERNELS = ("forward_rows", "forward_cols", "forward_finish", "backward_dot", "backward_store")
DTYPES = ("f64", "f32", "bf16", "f16")
SIZES = ("few", "many")  # weights that the parameter has room for
MOST_REGISTERS = 128  # two blocks of 256 threads share the 65,536 of a multiprocessor
MOST_SHARED = 1024  # what CUDA itself reserves; the kernels' own is given at the launch
KERNEL = re.compile(
    r"^arch = sm_(?P<architecture>\d+)|"
    r"Function fastsn_(?P<kernel>[a-z]+_[a-z]+)_(?P<dtype>[a-z0-9]+)_(?P<size>few|many):\s+"
    r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+) LOCAL:(?P<local>\d+)",
    re.MULTILINE,
)


class Resources(NamedTuple):
    kernel: str
    dtype: str
    size: str
    architecture: str
    registers: int
    stack: int  # bytes of a thread, spilled registers among them
    local: int
    shared: int  # bytes of a block that the compiler laid out


def find_cuobjdump() -> str | None:
    """CUDA's own, or the one that comes with Triton: small toolkits have none."""
    folders = [os.path.join(os.environ.get("CUDA_HOME", ""), "bin"), os.environ.get("PATH", "")]
    if spec := importlib.util.find_spec("triton"):
        folders.append(str(Path(str(spec.origin)).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def parse(report: str) -> list[Resources]:
    found, architecture = [], ""
    for match in KERNEL.finditer(report):
        if match["architecture"]:
            architecture = match["architecture"]
            continue
        numbers = (int(match[field]) for field in ("registers", "stack", "local", "shared"))
        found.append(
            Resources(match["kernel"], match["dtype"], match["size"], architecture, *numbers)
        )
    return found


@pytest.fixture
def built(require_backend: Callable[[str, Sequence[str]], None]) -> Path:
    reasons = [] if shutil.which("nvcc") else ["expected nvcc on PATH, found none"]
    if not MODULE.exists():
        reasons.append(f"expected fastsn/{MODULE.name}, found none: build it with make env")
    require_backend("nvcc", reasons)
    return MODULE


@pytest.fixture
def resources(
    built: Path, require_backend: Callable[[str, Sequence[str]], None]
) -> list[Resources]:
    """Of every kernel, for every architecture that it was compiled for."""
    cuobjdump = find_cuobjdump()
    missing = "expected cuobjdump on PATH, in CUDA_HOME or in the package triton, found none"
    require_backend("nvcc", [] if cuobjdump else [missing])
    command = [str(cuobjdump), "--dump-resource-usage", str(built)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_kernels_fit_the_blocks_planned(
    resources: list[Resources], record_property: Callable[[str, object], None]
) -> None:
    table = "\n".join(map(str, resources))
    record_property("resources", table)
    print(table)
    expected = {
        (kernel, dtype, size, architecture)
        for kernel in KERNELS
        for dtype in DTYPES
        for size in SIZES
        for architecture in ARCHITECTURES
    }
    missing = expected - {kernel[:4] for kernel in resources}
    assert not missing, f"not compiled: {missing}; build without TORCH_CUDA_ARCH_LIST"
    for kernel in resources:
        assert kernel.stack == kernel.local == 0, f"expected no stack and no spills, got {kernel}"
        assert kernel.registers <= MOST_REGISTERS, kernel
        assert kernel.shared <= MOST_SHARED, kernel


def test_report_shows_spills() -> None:
    """The form of the report, of a kernel compiled with too few registers."""
    report = (
        "Fatbin elf code:\n================\narch = sm_90\n\nResource usage:\n"
        " Function fastsn_forward_rows_f16_few:\n"
        "  REG:32 STACK:48 SHARED:1024 LOCAL:0 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    )
    assert parse(report) == [Resources("forward_rows", "f16", "few", "90", 32, 48, 0, 1024)]


def test_module_loads_and_says_what_is_missing(built: Path) -> None:
    """With any torch, whether or not there is a GPU, a driver, or another CUDA runtime."""
    assert native.cuda.import_error() == ""
    error = torch.ops.fastsn_cuda.device_error(0)
    assert bool(error) != torch.cuda.is_available(), error
    reasons = explain(torch.device("cuda"))["cuda"]
    assert len(reasons) == bool(error) and all(error in reason for reason in reasons)
    if torch.version.cuda is None:
        assert "expected a CUDA build of torch" in error
    if sys.platform == "linux" and (ldd := shutil.which("ldd")):
        needed = subprocess.run([ldd, str(built)], capture_output=True, text=True).stdout
        assert "libtorch_cpu" in needed
        assert not re.search(r"libcudart|libcuda\.|libtorch_cuda|libc10_cuda", needed), needed
