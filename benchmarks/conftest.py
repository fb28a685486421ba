"""Options, machine information and gates' results for the benchmarks.

pytest benchmarks                                  gates and timings
pytest benchmarks --benchmark-disable              everything once, untimed: does it work?
pytest benchmarks --benchmark-json=FILE.json       a result file for benchmarks/report.py
pytest benchmarks --device cuda --threads 1
pytest benchmarks --allocator kept                 with freed memory kept in the process
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

import fastsn
from benchmarks.timing import ALLOCATORS, cpu_model, keep_freed_memory, others_share
from benchmarks.workloads import Case, make_case
from fastsn.backends import explain

GATES = pytest.StashKey[list[dict[str, Any]]]()
OTHERS = pytest.StashKey[Callable[[], float]]()

#: Up to this share of the CPU time for other processes, timings can be trusted.
QUIET = 0.05

#: Statistics of a benchmark that go into a result file, in seconds.
STATISTICS = ("min", "median", "iqr", "rounds")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsn")
    group.addoption("--device", default="cpu", help="device of the timings: cpu, cuda")
    group.addoption("--threads", type=int, default=0, help="CPU threads of the timings")
    group.addoption(
        "--allocator",
        choices=ALLOCATORS,
        default="system",
        help="freed memory: what the system does (default), or kept in the process",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GATES] = []
    config.stash[OTHERS] = others_share()
    if config.getoption("allocator") == "kept":
        keep_freed_memory()
    if count := config.getoption("threads"):
        torch.set_num_threads(count)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.fail(f"--device {name}: torch.cuda.is_available() is False", pytrace=False)
    return torch.device(name)


@pytest.fixture
def case_of(request: pytest.FixtureRequest, device: torch.device) -> Callable[[str], Case]:
    """The case of a workload; a narrower network where nothing is timed."""
    small = bool(request.config.getoption("benchmark_disable"))
    return lambda name: make_case(name, str(device), small=small)


@pytest.fixture
def compiled() -> None:
    """For tests of the compiled CPU kernels: skipped without, or failed where required."""
    reasons = explain(torch.device("cpu"))["cpu"]
    if not reasons:
        return
    message = "backend 'cpu' is not available: " + "; ".join(reasons)
    if "cpu" in os.environ.get("FASTSN_REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"{message} (FASTSN_REQUIRE_BACKENDS names it)", pytrace=False)
    pytest.skip(message)


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Notes what was promised and measured, for the summary and the file, then asserts it."""

    def note(
        text: str,
        measured: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        limit: float | None = None,
    ) -> None:
        kept = (at_least is None or measured >= at_least) and (
            at_most is None or measured <= at_most
        )
        bound = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
        entry = {"text": text, "bound": bound, "measured": round(measured, 3), "kept": kept}
        if limit is not None:
            entry["limit"] = round(limit, 3)
        request.config.stash[GATES].append(entry)
        assert kept, f"{text}: expected {bound}, got {measured:.3f}"

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if gates := config.stash[GATES]:
        terminalreporter.section("promises")
        width = max(len(gate["text"]) for gate in gates)
        for gate in gates:
            verdict = "" if gate["kept"] else "  NOT KEPT"
            limit = f"  (memory allows {gate['limit']:.1f})" if "limit" in gate else ""
            measured = f"{gate['bound']:>8}  {gate['measured']:8.3f}"
            terminalreporter.write_line(f"{gate['text']:<{width}}  {measured}{limit}{verdict}")
        share = config.stash[OTHERS]()
        advice = "; measure again on a quiet machine" if share > QUIET else ""
        terminalreporter.write_line(f"other processes used {share:.0%} of the CPU time{advice}")


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """What a number depends on, and nothing that names the machine."""
    cuda = config.getoption("device").startswith("cuda")
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": config.getoption("allocator"),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version_of("triton"),
        "fastsn": fastsn.__version__,
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    for key in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[key]


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Sequence[Any], output_json: dict[str, Any]
) -> None:
    """Keeps a result file small: no raw data, and the promises beside the timings."""
    for entry in output_json["benchmarks"]:
        entry["stats"] = {name: float(f"{entry['stats'][name]:.4g}") for name in STATISTICS}
        for key in ("options", "param", "params", "fullname", "group"):
            entry.pop(key, None)
    output_json["gates"] = config.stash[GATES]
    output_json["others_cpu_share"] = round(config.stash[OTHERS](), 3)
