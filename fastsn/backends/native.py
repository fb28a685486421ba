"""The compiled backends: ``cpu`` (fastsn._C) and ``cuda`` (fastsn._C_cuda).

Their modules are imported at the first question asked, and a module that cannot be imported is a
reason against its backend.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

__all__ = ["NativeBackend", "cpu", "cuda"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@cache
def _import_error(module: str, needs: str) -> str:
    """Why ``module`` cannot be imported, with the fix; ``""`` where it can be."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return (
            f"{module} is not built: pip install --no-build-isolation -e . in fastsn's source "
            f"(needs {needs})"
        )
    except ImportError as error:
        return (
            f"{module} does not load ({error}): it was built for another torch, build it again "
            f"with pip install --no-build-isolation -e . in fastsn's source (needs {needs})"
        )
    return ""


class NativeBackend:
    """One extension module: its ops, and what it cannot do."""

    def __init__(self, device: str, module: str, needs: str) -> None:
        self._device = device
        self._module = module
        self._needs = needs

    def import_error(self) -> str:
        """Why the extension module cannot be imported, with the fix; ``""`` where it can be."""
        return _import_error(self._module, self._needs)

    def unsupported_reasons(
        self, device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype | None
    ) -> list[str]:
        """Why this backend cannot serve such weights; an empty list where it can."""
        reasons = []
        if device.type != self._device:
            reasons.append(f"expected weights on device {self._device}, got {device.type}")
        if dtype not in _DTYPES:
            reasons.append(f"expected float32, float64, bfloat16 or float16 weights, got {dtype}")
        if out_dtype is not None and out_dtype not in _DTYPES:
            reasons.append(f"expected a result in one of these dtypes too, got {out_dtype}")
        if error := self.import_error():
            reasons.append(error)
        return reasons

    @property
    def ops(self) -> Any:
        """The module's ops, once :meth:`import_error` has found nothing."""
        return getattr(torch.ops, f"fastsn_{self._device}")

    def forward(self, *args: Any) -> Any:
        """See :func:`fastsn.backends.reference.forward`."""
        return self.ops.forward(*args)

    def backward(self, *args: Any) -> Any:
        """See :func:`fastsn.backends.reference.backward`."""
        return self.ops.backward(*args)


class CudaBackend(NativeBackend):
    """The CUDA module, which loads on every machine: only the device itself tells what it can."""

    def unsupported_reasons(
        self, device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype | None
    ) -> list[str]:
        """As :meth:`NativeBackend.unsupported_reasons`, and what the device lacks."""
        reasons = super().unsupported_reasons(device, dtype, out_dtype)
        if not reasons:
            current = torch.cuda.current_device() if torch.cuda.is_available() else 0
            index = current if device.index is None else device.index
            if error := self.ops.device_error(index):
                reasons.append(f"cuda:{index} cannot run the kernels: {error}")
        return reasons


cpu = NativeBackend("cpu", "fastsn._C", "a C++ compiler")
cuda = CudaBackend("cuda", "fastsn._C_cuda", "nvcc, of CUDA 12.1 or newer")
