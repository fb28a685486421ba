"""Compiles the machine, and csrc/cuda to run on it, into ``build/ptx``.

An object is named by what it was made from, so that nothing is compiled twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "ptx"
VM = Path(__file__).resolve().parent / "vm"
TORCH = Path(torch.__file__).parent

CORE = [
    "api",
    "launch",
    "checks",
    "accesses",
    "shuffles",
    "integers",
    "floats",
    "bytecode",
    "memory",
]
COMMON = ["-std=c++20", "-fPIC"]
TORCH_FLAGS = [
    "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
    "-isystem", str(TORCH / "include"),
]  # fmt: skip


def missing_compiler() -> list[str]:
    """Why the machine cannot be built here."""
    compiler = os.environ.get("CXX", "g++")
    return [] if shutil.which(compiler) else [f"expected a C++ compiler ({compiler}), found none"]


def missing_nvcc() -> list[str]:
    """Why csrc/cuda cannot be compiled here."""
    return [] if _nvcc() else ["expected nvcc on PATH or in CUDA_HOME, found none"]


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which(f"{home}/bin/nvcc") if home else None)


@cache
def _processor_flags() -> list[str]:
    """Lanes are vectors where the processor has AVX2: the machine is not shipped."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return ["-march=x86-64-v3"] if {"avx2", "bmi2", "f16c", "fma"} <= flags else []


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


@contextmanager
def _only_one() -> Iterator[None]:
    """Of the processes that run tests, one compiles, and the others wait for it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _headers(folders: Sequence[Path]) -> list[Path]:
    paths = [path for folder in folders for path in folder.rglob("*.*h")]
    return sorted(path for path in paths if path.suffix in (".h", ".cuh"))


class Job(NamedTuple):
    """Makes a file out of a source and what it may include, all headers in some folders."""

    command: list[str]
    source: Path
    suffix: str
    folders: list[Path]

    def run(self) -> Path:
        digest = hashlib.sha256()
        for part in (*self.command, _version(self.command[0])):
            digest.update(part.replace(str(ROOT), "").encode() + b"\0")
        for file in [self.source, *_headers(self.folders)]:
            digest.update(file.read_bytes() + b"\0")
        result = BUILD / f"{self.source.stem}-{digest.hexdigest()[:16]}{self.suffix}"
        if not result.exists():
            unfinished = result.with_suffix(f".unfinished{self.suffix}")
            _run([*self.command, str(self.source), "-o", str(unfinished)])
            unfinished.rename(result)
        return result


def _all(jobs: Sequence[Job]) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(Job.run, jobs))


def _link(objects: Sequence[Path], name: str, *flags: str) -> Path:
    compiler = os.environ.get("CXX", "g++")
    # -Bsymbolic: torch may have loaded the real CUDA runtime for everyone
    command = [compiler, "-shared", "-Wl,-Bsymbolic", *map(str, objects), *flags]
    digest = hashlib.sha256(" ".join(command).replace(str(ROOT), "").encode()).hexdigest()[:16]
    library = BUILD / f"{name}-{digest}.so"
    if not library.exists():
        unfinished = library.with_suffix(".unfinished.so")
        _run([*command, "-o", str(unfinished)])
        unfinished.rename(library)
    return library


def _core() -> list[Job]:
    flags = [*COMMON, "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    compiler = os.environ.get("CXX", "g++")
    flags += ["-fno-gnu-unique", *_processor_flags()]
    return [Job([compiler, *flags, "-c"], VM / f"{name}.cpp", ".o", [VM]) for name in CORE]


def machine() -> Path:
    """The library of the machine, for PTX from anywhere."""
    with _only_one():
        return _link(_all(_core()), "machine")


def ptx_command(architecture: int) -> list[str]:
    flags = ["-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr"]
    return [_nvcc() or "nvcc", *flags, f"-arch=compute_{architecture}", "-ptx"]


def cuda_sources(csrc: Path) -> list[Path]:
    return sorted((csrc / "cuda").glob("*.cu"))


def cuda_ptx(csrc: Path = ROOT / "csrc", architecture: int = 90) -> list[Path]:
    """The PTX of all kernels."""
    jobs = [Job(ptx_command(architecture), source, ".ptx", [csrc]) for source in cuda_sources(csrc)]
    with _only_one():
        return _all(jobs)


def some_cuda_ptx(types: dict[str, str], csrc: Path = ROOT / "csrc") -> list[Path]:
    """The PTX of the kernels for few weights and some dtypes: names in C++ by suffix.

    A fourth of all and less, which nvcc compiles in as much less time.
    """
    some = r"\n".join(
        rf"FASTSN_KERNEL(\1, {name}, {suffix}, \2, _few, kFewProblems, \3"
        for suffix, name in types.items()
    )
    jobs = []
    with _only_one():
        for source in cuda_sources(csrc):
            text = source.read_text()
            lines = re.findall(r"FASTSN_KERNELS\((\w+), (\w+), (.*)", text)
            if not lines:
                continue
            text = re.sub(r"FASTSN_KERNELS\((\w+), (\w+), (.*)", some, text)
            digest = hashlib.sha256(f"{csrc} {text}".encode()).hexdigest()[:8]
            own = BUILD / f"{source.stem}-some-{digest}.cu"
            own.write_text(text)
            include = f"-I{csrc / 'cuda'}"
            jobs.append(Job([*ptx_command(90), include], own, ".ptx", [csrc]))
        return _all(jobs)


def cuda_cubins(architecture: int = 90) -> list[Path]:
    """Machine code of all kernels, as ptxas makes it of :func:`cuda_ptx`."""
    command = [_nvcc() or "nvcc", f"-arch=sm_{architecture}", "-cubin"]
    jobs = [Job(command, ptx, ".cubin", []) for ptx in cuda_ptx(architecture=architecture)]
    with _only_one():
        return _all(jobs)


def cuda_library() -> Path:
    """The ops of csrc/cuda for CPU tensors, with the machine behind csrc/cuda/launch.h."""
    csrc, compiler = ROOT / "csrc", os.environ.get("CXX", "g++")
    flags = [*COMMON, "-O1", "-fno-gnu-unique", "-DFASTSN_HOST", *TORCH_FLAGS]
    # a namespace of their own, because the host shim's ops may be loaded beside these
    command = [compiler, *flags, "-Dfastsn_cuda_host=fastsn_cuda_ptx", f"-I{csrc}", "-c"]
    sources = [VM / "door.cpp", csrc / "arguments.cpp", *sorted((csrc / "cuda").glob("*.cpp"))]
    jobs = [*_core(), *(Job(command, source, ".o", [VM, csrc]) for source in sources)]
    wrap = "-Wl,--wrap=aoti_torch_empty_strided"
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    with _only_one():
        return _link(_all(jobs), "cuda", wrap, *libraries)
