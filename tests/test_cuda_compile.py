"""What nvcc makes of the CUDA kernels, without a GPU: whether their cooperative grid can fit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
ARCHITECTURES = ("80", "90", "100")
OLDEST_NVCC = (12, 8)  # the first to know sm_100
# Two blocks of 512 threads share the 65,536 registers of a multiprocessor; in float64 there is one.
MOST_REGISTERS = {"float": 64, "__half": 64, "__nv_bfloat16": 64, "double": 128}
MANGLED = {"f": "float", "6__half": "__half", "13__nv_bfloat16": "__nv_bfloat16", "d": "double"}
# as torch.utils.cpp_extension compiles them
FLAGS = [
    *("-O3", "-std=c++17", "-DUSE_CUDA", "-D__CUDA_NO_HALF_OPERATORS__"),
    *("-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__"),
    *("-D__CUDA_NO_HALF2_OPERATORS__", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"),
]
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Resources(NamedTuple):
    kernel: str
    dtype: str
    architecture: str
    registers: int
    local_bytes: int  # stack frame and spills
    shared_bytes: int


def nvcc_reasons() -> list[str]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return ["expected nvcc on PATH, found none"]
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    version = tuple(map(int, release.groups())) if release else (0, 0)
    if version < OLDEST_NVCC:
        return [f"expected nvcc {'.'.join(map(str, OLDEST_NVCC))} or newer, got {text.strip()}"]
    return []


def parse(report: str) -> list[Resources]:
    found = []
    for match in REPORT.finditer(report):
        kernel, mangled = re.search(r"(\w+)_kernelI(\w+?)EEv", match["name"].lstrip("_")).groups()
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Resources(
                re.sub(r".*\d", "", kernel),
                MANGLED[mangled],
                match["architecture"],
                int(match["registers"]),
                sum(int(match[field]) for field in ("stack", "stores", "loads")),
                int(shared[1]) if shared else 0,
            )
        )
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Resources] | list[str]:
    """Resources of every kernel for every architecture, or why they cannot be had."""
    if reasons := nvcc_reasons():
        return reasons
    folder = tmp_path_factory.mktemp("nvcc")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]

    def compile_file(name: str) -> list[Resources]:
        command = ["nvcc", *FLAGS, *targets, "-Xptxas", "-v", "-c", str(CUDA / name)]
        result = subprocess.run(
            [*command, "-o", str(folder / name)], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stderr, result.stderr
        return parse(result.stderr)

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(compile_file, ["forward.cu", "backward.cu"]), [])


@pytest.mark.slow
def test_kernels_fit_the_cooperative_grid(
    compiled: list[Resources] | list[str],
    require_backend: Callable[[str, Sequence[str]], None],
    record_property: Callable[[str, object], None],
) -> None:
    kernels = [item for item in compiled if isinstance(item, Resources)]
    require_backend("nvcc", [item for item in compiled if isinstance(item, str)])
    table = "\n".join(f"{k.kernel} {k.dtype} sm_{k.architecture} {k.registers}" for k in kernels)
    record_property("registers", table)
    print(table)
    assert {k[:3] for k in kernels} == {
        (kernel, dtype, architecture)
        for kernel in ("forward", "backward")
        for dtype in MOST_REGISTERS
        for architecture in ARCHITECTURES
    }
    for kernel in kernels:
        assert kernel.local_bytes == 0, f"expected no stack frame and no spills, got {kernel}"
        assert kernel.registers <= MOST_REGISTERS[kernel.dtype], kernel
        # what blocks share is dynamic; the host reckons with all of it when it plans the grid
        assert kernel.shared_bytes == 0, kernel


@pytest.mark.parametrize("name", ["ops.cpp", "arguments.cpp"])
def test_binding_compiles_against_torch_alone(
    name: str, tmp_path: Path, require_backend: Callable[[str, Sequence[str]], None]
) -> None:
    """As in a CUDA build, where only the .cu files see CUDA's headers."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    python = sysconfig.get_paths()["include"]
    reasons = [] if compiler else ["expected a C++ compiler (g++ or CXX), found none"]
    if not Path(python, "Python.h").exists():
        reasons.append(f"expected Python.h in {python}, found none")
    require_backend("nvcc", reasons)
    command = [
        *(str(compiler), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fsyntax-only"),
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"),
        *("-DPy_LIMITED_API=0x030A0000", "-isystem", str(Path(torch.__file__).parent / "include")),
        *("-isystem", python, str(CUDA / name)),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
