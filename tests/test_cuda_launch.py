"""What csrc/cuda/launch.cu asks of CUDA's runtime, with a runtime that is made up (fake_cuda).

So a driver that is too old, and a second device, need not be there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKE = Path(__file__).resolve().parent / "fake_cuda"

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    result = tmp_path_factory.mktemp("launch") / "launch"
    command = [compiler, "-std=c++20", "-O0", f"-I{FAKE}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    # kernels are declared and never called: their addresses are all that launch.cu takes
    command += ["-Wl,--unresolved-symbols=ignore-all", "-no-pie", "-o", str(result)]
    sources = [FAKE / "main.cpp", ROOT / "csrc" / "cuda" / "kernel_name.cpp"]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return result


@pytest.fixture
def run(program: Path | None, require_backend: Callable[[str, Sequence[str]], None]) -> Run:
    """Runs it: its exit status and the calls that were made, or what was thrown, by line."""
    missing = "expected a C++ compiler (g++ or CXX), found none"
    require_backend("cuda-host", [] if program else [missing])

    def call(what: str, device: int, **environment: object) -> tuple[int, list[str]]:
        own = os.environ | {name: str(value) for name, value in environment.items()}
        command = [str(program), what, str(device)]
        done = subprocess.run(command, capture_output=True, text=True, env=own)
        assert done.returncode in (0, 1), done
        return done.returncode, done.stdout.splitlines()

    return call


@pytest.mark.parametrize("driver", [13000, 13010, 14000])
def test_driver_of_the_runtimes_major_version_or_newer_will_do(run: Run, driver: int) -> None:
    status, calls = run("check", 0, DRIVER=driver)
    assert status == 0, calls
    assert calls.count("cudaFuncGetAttributes") == 5 * 4  # kernels and dtypes


def test_older_driver_is_a_reason_that_says_what_to_do(run: Run) -> None:
    """The floor is asked before anything else, which would fail in ways that say less."""
    status, calls = run("check", 0, DRIVER=12080)
    assert status == 1 and calls[:-1] == ["cudaDriverGetVersion"]
    assert calls[-1] == (
        "expected a driver for CUDA 13.0 or newer, as fastsn._C_cuda was built with CUDA 13.0, got "
        "one for CUDA 12.8: update the driver, or build fastsn with the CUDA toolkit of the "
        "driver's version"
    )


@pytest.mark.parametrize("device", [0, 3])
def test_a_device_is_made_the_current_one_before_it_is_asked(run: Run, device: int) -> None:
    status, calls = run("check", device)
    assert status == 0
    assert calls[:3] == [
        "cudaDriverGetVersion", f"cudaSetDevice {device}", f"cudaDeviceGetAttribute {device}"
    ]  # fmt: skip
    assert set(calls[3:]) == {"cudaFuncGetAttributes"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("cudaSetDevice", "cudaSetDevice: made up"),
        ("cudaFuncGetAttributes", "fastsn_forward_rows_f64_many: made up"),
    ],
)
def test_error_of_the_check_names_what_failed_and_is_cleared(
    run: Run, call: str, message: str
) -> None:
    status, calls = run("check", 1, FAIL=call)
    assert status == 1 and calls[-2:] == ["cudaGetLastError", message]


def test_device_with_too_little_shared_memory_is_refused(run: Run) -> None:
    status, calls = run("check", 0, SHARED=48 * 1024)
    assert (
        status == 1 and "bytes of shared memory for a block, got a device with 49152" in calls[-1]
    )


def test_each_launch_sets_its_device_and_asks_for_shared_memory_once(run: Run) -> None:
    status, calls = run("start", 2)
    assert status == 0
    assert calls[:3] == ["cudaSetDevice 2", "cudaMemsetAsync 16", "cudaSetDevice 2"]
    assert [call.split()[0] for call in calls[3:]] == [
        "cudaFuncSetAttribute", "cudaLaunchKernel", "cudaSetDevice", "cudaLaunchKernel"
    ]  # fmt: skip


def test_refused_launch_names_its_kernel_and_is_cleared(run: Run) -> None:
    status, calls = run("start", 0, FAIL="cudaLaunchKernel")
    assert status == 1
    assert calls[-2:] == ["cudaGetLastError", "fastsn_forward_rows_f32_few: made up"]
