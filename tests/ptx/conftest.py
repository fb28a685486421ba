"""Machines, where they can be built; and the reason where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from . import build
from .machine import Machine

if TYPE_CHECKING:
    from .cuda import CudaMachine
    from .triton_machine import TritonMachine

Require = Callable[[str, Sequence[str]], None]


@pytest.fixture(scope="session")
def _machine() -> Machine | None:
    return None if build.missing_compiler() else Machine(build.machine())


@pytest.fixture
def machine(_machine: Machine | None, require_backend: Require) -> Machine:
    """For PTX that a test brings."""
    require_backend("nvcc", build.missing_compiler())
    assert _machine is not None
    _machine.load()
    _machine.forget_memory()
    _machine.take_reports()
    _machine.take_statistics()
    return _machine


@pytest.fixture
def cuda(require_backend: Require) -> CudaMachine:
    """For csrc/cuda."""
    require_backend("nvcc", build.missing_compiler() + build.missing_nvcc())
    from .cuda import cuda_machine

    own = cuda_machine()
    own.take_reports()
    own.take_statistics()
    return own


@pytest.fixture(scope="session")
def _triton() -> list[TritonMachine]:
    return []


@pytest.fixture
def triton(_triton: list[TritonMachine], require_backend: Require) -> TritonMachine:
    """For the Triton backend; compiled kernels stay."""
    from fastsn.backends.triton.launch import import_error

    error = import_error()
    require_backend("triton", [*([error] if error else []), *build.missing_compiler()])
    if not _triton:
        from .triton_machine import TritonMachine

        _triton.append(TritonMachine())
    _triton[0].take_reports()
    _triton[0].take_statistics()
    return _triton[0]
