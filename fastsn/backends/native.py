"""The compiled backends: ``cpu`` (fastsn._C) and ``cuda`` (fastsn._C_cuda).

Their modules are imported at the first question asked, and a module that cannot be imported is a
reason against its backend.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastsn.plan import Plan

__all__ = ["NativeBackend", "capture_id", "cpu", "cuda"]

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
        self._overloads: dict[str, Any] = {}

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

    def forward(
        self,
        plan: Plan,
        weights: Sequence[Tensor],
        us: Sequence[Tensor],
        vs: Sequence[Tensor],
        scale_tensor: Tensor | None,
        n_power_iterations: int,
        out_dtype: torch.dtype | None,
        store: bool,
        memory: Sequence[Tensor] = (),
    ) -> Any:
        """See :func:`fastsn.backends.reference.forward`.

        Args:
            store: put the new vectors into ``us`` and ``vs`` as well.
            memory: for the large results, in order (:meth:`fastsn.memory.Memory.take`).
        """
        return self._op("forward")(
            weights, us, vs, plan.dims, plan.kinds, plan.scales, scale_tensor,
            n_power_iterations, plan.eps, out_dtype, store, memory,
            plan.bounds if plan.needs else (),
        )  # fmt: skip

    def backward(
        self,
        plan: Plan,
        grads: Sequence[Tensor],
        grad_sigmas: Tensor | None,
        weights_sn: Sequence[Tensor],
        sigmas: Tensor,
        vectors: Tensor,
        view_stats: Tensor,
        scale_tensor: Tensor | None,
        grad_dtype: torch.dtype,
        memory: Sequence[Tensor] = (),
    ) -> Any:
        """See :func:`fastsn.backends.reference.backward`; ``memory`` as in :meth:`forward`."""
        return self._op("backward")(
            grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats,
            plan.dims, plan.kinds, plan.scales, scale_tensor, grad_dtype, memory,
            plan.bounds if plan.needs else (),
        )  # fmt: skip

    def _op(self, name: str) -> Any:
        # The overload itself: finding it again takes longer than small kernels.
        op = self._overloads.get(name)
        if op is None:
            op = self._overloads[name] = getattr(self.ops, name).default
        return op


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


def capture_id(device: torch.device) -> int:
    """What tells the CUDA graph capture of this thread's stream from others; 0 where unknown."""
    if cuda.import_error() or not hasattr(cuda.ops, "capture_id"):
        return 0
    return int(cuda.ops.capture_id(device.index or 0))


cpu = NativeBackend("cpu", "fastsn._C", "a C++ compiler")
cuda = CudaBackend("cuda", "fastsn._C_cuda", "nvcc, of CUDA 12.1 or newer")
