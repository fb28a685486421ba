"""``python -m fastsn``: versions, the build, and which backend serves what, or why not.

``python -m fastsn selftest`` tests anew the kernels that ``auto`` takes only after a test on this
card, and ``python -m fastsn selftest --forget`` has the next use test them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

import fastsn
from fastsn.backends import BACKENDS, OPTIONS, explain, native, select_backend, selftest, trust


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints it; 1 where FASTSN_BACKEND asks for a backend that serves no device here."""
    parser = argparse.ArgumentParser("python -m fastsn", description=__doc__)
    tests = parser.add_subparsers(dest="command").add_parser("selftest")
    tests.add_argument("--forget", action="store_true", help="test again at the next use, not now")
    tests.add_argument("--backend", choices=BACKENDS, help="only this one, on whatever device")
    tests.add_argument("--device", type=torch.device, help="default: every CUDA device")
    tests.add_argument("--dtype", default="float32", help="of the weights; default: float32")
    tests.add_argument("--result", type=Path, help="a file for what is wrong, as JSON")
    options = parser.parse_args(arguments)
    return _selftest(options) if options.command else _overview()


def _devices() -> list[torch.device]:
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _selftest(options: argparse.Namespace) -> int:
    """1 where a backend that could serve a device fails its test."""
    dtype = getattr(torch, options.dtype)
    devices = [options.device] if options.device else _devices()
    if options.result:
        selftest.write_result(BACKENDS[options.backend], devices[0], dtype, options.result)
        return 0
    if options.backend:
        found = [selftest.failures(BACKENDS[options.backend], at, dtype) for at in devices]
        for device, reasons in zip(devices, found, strict=True):
            print(f"{options.backend} on {device}: {'; '.join(reasons) or 'passed'}")
        return int(any(found))
    print(f"{trust.forget(disk=True)} verdicts forgotten")
    if options.forget:
        return 0
    if not devices:
        print("torch finds no CUDA device: there is nothing to test")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    failed = False
    for device in devices:
        on_trial = [backend for backend in BACKENDS.values() if backend.trial]
        verdict = trust.verdict(device, dtype, 0, on_trial)
        print(f"{device}: {', '.join(verdict.order) or 'no kernel'} trusted, the fastest first")
        failed |= bool(verdict.reasons)
    return int(failed)


def _overview() -> int:
    for title, lines in (("", _versions()), ("build", _build()), ("environment", _environment())):
        print(f"\n{title}" if title else f"fastsn {fastsn.__version__}")
        for name, value in lines:
            print(f"  {name:<23}  {value}")
    served = [_print_backends(device) for device in [torch.device("cpu"), *_devices()]]
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
    on_trial = [backend for backend in BACKENDS.values() if backend.trial]
    tested = device.type in trust.DEVICES
    verdict = trust.verdict(device, torch.float32, 0, on_trial) if tested else trust.NOBODY
    untrusted = dict(verdict.reasons)
    for name, reasons in explain(device).items():
        label = "used" if name == used else "no" if reasons else "usable"
        if not reasons and name in untrusted:
            reasons = [f"not by auto: {untrusted[name]}"]
        text = "\n".join(textwrap.fill(reason, 80) for reason in reasons)
        print(f"  {name:<10}  {label:<6}  {text}".rstrip().replace("\n", "\n" + " " * 22))
    if not problem:
        for option in OPTIONS:
            name = select_backend("auto", device, torch.float32, None, needs=(option,)).name
            print(f"  with {option}=: {name}")
    print(end=problem)
    return not problem


if __name__ == "__main__":
    sys.exit(main())
