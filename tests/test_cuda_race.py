"""The CUDA kernels on the CPU under sanitizers: no access out of bounds, and every barrier needed.

csrc/host/race.cpp is the program: one forward and one backward, with weights that between them
reach every barrier, on a simulated device that takes blocks forwards and on one that does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from cuda_host import build


@pytest.fixture
def target(
    tmp_path: Path, require_backend: Callable[[str, Sequence[str]], None]
) -> Callable[[str], Path]:
    """Builds a program."""

    def get(name: str) -> Path:
        result = build(name, tmp_path)
        require_backend("cuda-host", [result] if isinstance(result, str) else [])
        return Path(result)

    return get


@cache
def fixed_addresses() -> list[str]:
    """What to run a program with: sanitizers do not start where addresses are too random."""
    setarch = shutil.which("setarch")
    command = [str(setarch), "--addr-no-randomize"]
    works = setarch and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = [*fixed_addresses(), str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | options)


def test_no_access_is_out_of_bounds(target: Callable[[str], Path]) -> None:
    result = run(target("bounds"))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_every_barrier_prevents_a_race(target: Callable[[str], Path]) -> None:
    program = target("race")
    result = run(program)
    assert result.returncode == 0, result.stderr
    blocks = result.stdout.splitlines()
    assert {name.split(":")[0].split()[1] for name in blocks} == {
        *("forward.cuh", "backward.cuh", "products.cuh", "fold.cuh", "strips.cuh", "tile.cuh"),
        "sums.cuh",
    }
    barriers = ["arrive", *blocks]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: run(program, name), barriers))
    for name, result in zip(barriers, results, strict=True):
        assert result.returncode == 66, f"nothing was reported without barrier {name}"
        assert "ThreadSanitizer: data race" in result.stderr, result.stderr
