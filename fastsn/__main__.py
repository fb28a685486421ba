"""``python -m fastsn``: versions, the build, and which backend serves what, or why not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

import fastsn
from fastsn.backends import BACKENDS, explain, native, select_backend


def main() -> int:
    """Prints it; 1 where FASTSN_BACKEND asks for a backend that serves no device here."""
    for title, lines in (("", _versions()), ("build", _build()), ("environment", _environment())):
        print(f"\n{title}" if title else f"fastsn {fastsn.__version__}")
        for name, value in lines:
            print(f"  {name:<23}  {value}")
    devices = [torch.device(i) for i in range(torch.cuda.device_count())]
    served = [_print_backends(device) for device in [torch.device("cpu"), *devices]]
    return int(not any(served))


def _versions() -> Iterator[tuple[str, object]]:
    triton = importlib.metadata.version("triton") if find_spec("triton") else "not installed"
    yield from (("python", platform.python_version()), ("torch", torch.__version__))
    yield from (("triton", triton), ("CPU threads", torch.get_num_threads()))
    if not native.cpu.import_error():
        ops = native.cpu.ops
        levels = ", ".join(ops.simd_levels())
        yield "CPU instructions", f"{ops.simd_level()} (this processor has {levels})"
    for i in range(torch.cuda.device_count()):
        yield f"cuda:{i}", torch.cuda.get_device_name(i)


def _build() -> Iterator[tuple[str, str]]:
    path = Path(__file__).with_name("_build.json")
    info = json.loads(path.read_text()) if path.exists() else {}
    for key in ("torch", "compiler"):
        yield key, info.get(key, "none: nothing was compiled")
    for module, compiler in (("fastsn._C", "cxx"), ("fastsn._C_cuda", "nvcc")):
        built = dict(info.get(module, {}))
        flags = dict.fromkeys(built.pop("flags", {}).get(compiler, ["not built"]))
        yield module, ", ".join([" ".join(f for f in flags if f[:2] != "-D"), *built.values()])


def _environment() -> Iterator[tuple[str, str]]:
    ours = {name for name in os.environ if name.startswith("FASTSN_")}
    for name in sorted(ours | {"FASTSN_BACKEND", "OMP_NUM_THREADS", "TRITON_INTERPRET"}):
        yield name, os.environ.get(name) or "not set"


def _print_backends(device: torch.device) -> bool:
    """The table of one device; whether a call there would be served."""
    print(f"\nbackends for float32 weights on {device}")
    used, problem = "", ""
    try:
        used = select_backend("", device, torch.float32, None).name
    except (RuntimeError, ValueError) as error:
        problem = f"  {str(error).partition(chr(10))[0]}\n"
    for name, reasons in explain(device).items():
        verdict = "used" if name == used else "no" if reasons else "usable"
        if not reasons and BACKENDS[name].auto_reason:
            reasons = [f"not by auto: {BACKENDS[name].auto_reason}"]
        text = "\n".join(textwrap.fill(reason, 80) for reason in reasons)
        print(f"  {name:<10}  {verdict:<6}  {text}".rstrip().replace("\n", "\n" + " " * 22))
    print(end=problem)
    return not problem


if __name__ == "__main__":
    sys.exit(main())
