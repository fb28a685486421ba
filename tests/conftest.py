"""What every test shares: repeatable numbers, poisoned memory, and skips that hide no gap.

``FASTSN_REQUIRE_BACKENDS`` is a comma-separated list of what must be tested on this machine; a test
that would skip for want of one of them fails instead, with the same reason. ``FASTSN_TEST_THREADS``
and ``FASTSN_TEST_SIMD`` (an instruction set of the CPU kernels) play other machines: ``make
test-machines``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

import fastsn
from fastsn.backends import explain, native

#: The backends, and two ways to test the CUDA sources without a GPU: compiled for the host and run,
#: and compiled by nvcc but not run.
REQUIRABLE = ("reference", "batched", "cpu", "triton", "cuda", "cuda-host", "nvcc")

# cuBLAS is deterministic only with a fixed workspace, which must be set before its first use
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def required_backends() -> frozenset[str]:
    names = os.environ.get("FASTSN_REQUIRE_BACKENDS", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def require_backend(name: str, reasons: Sequence[str]) -> None:
    """Skip the test if there are reasons against backend `name`; fail it if `name` is required."""
    if name not in REQUIRABLE:
        raise ValueError(f"expected a name in {REQUIRABLE}, got {name!r}")
    if not reasons:
        return
    message = f"backend {name!r} is not available: " + "; ".join(reasons)
    if name in required_backends():
        pytest.fail(f"{message} (FASTSN_REQUIRE_BACKENDS names it)", pytrace=False)
    pytest.skip(message)


@pytest.fixture(name="require_backend")
def _require_backend() -> Callable[[str, Sequence[str]], None]:
    return require_backend


@pytest.fixture(params=["reference", "batched", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on each backend that serves CPU tensors as they are."""
    require_backend(request.param, explain(torch.device("cpu"))[request.param])
    with fastsn.use_backend(request.param):
        yield request.param


def pytest_configure(config: pytest.Config) -> None:
    unknown = required_backends() - set(REQUIRABLE)
    if unknown:
        raise pytest.UsageError(
            f"FASTSN_REQUIRE_BACKENDS: expected names in {REQUIRABLE}, got {sorted(unknown)}"
        )
    # two threads on every machine: one would leave the parallel code untried
    torch.set_num_threads(int(os.environ.get("FASTSN_TEST_THREADS") or 2))
    if level := os.environ.get("FASTSN_TEST_SIMD"):
        require_level(level)


def require_level(level: str) -> None:
    """Uses the CPU kernels of one instruction set, a lower one than the processor has."""
    if reasons := explain(torch.device("cpu"))["cpu"]:
        raise pytest.UsageError(f"FASTSN_TEST_SIMD: {'; '.join(reasons)}")
    try:
        native.cpu.ops.set_simd_level(level)
    except RuntimeError as error:
        raise pytest.UsageError(f"FASTSN_TEST_SIMD: {error}") from None


def pytest_report_header() -> str:
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    required = ", ".join(sorted(required_backends())) or "none"
    return f"torch {torch.__version__}, {cuda}; required backends: {required}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        require_backend("cuda", ["torch.cuda.is_available() is False"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialized memory is NaN: a kernel that leaves an output element unwritten shows it."""
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_deterministic_debug_mode(mode)
