"""The CUDA backend on CPU tensors: csrc/cuda, its kernels run by the machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastsn.plan import Plan

from . import build
from .machine import BackendMachine

#: What is compiled for most tests: float32 and a 16-bit dtype.
TYPES = {"_f32": "float", "_bf16": "BFloat16"}


class CudaMachine(BackendMachine):
    """With the kernels for few weights and some dtypes; :meth:`load_all` for the others."""

    def __init__(self) -> None:
        library = build.cuda_library()
        torch.ops.load_library(str(library))
        super().__init__(library)
        self.load(*(path.read_text() for path in build.some_cuda_ptx(TYPES)))

    def load_all(self) -> None:
        """All kernels, where some have been loaded."""
        if not any(name.endswith("_many") for name in self.names):
            self.load(*(path.read_text() for path in build.cuda_ptx()))

    def forward(
        self, plan: Plan, weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor],
        scale_tensor: Tensor | None, n: int, out_dtype: torch.dtype | None, store: bool = False,
    ) -> Any:  # fmt: skip
        """See fastsn/backends/native.py."""
        with self.call(weight=weights, u=us, v=vs, scales=scale_tensor):
            results = torch.ops.fastsn_cuda_ptx.forward(
                weights, us, vs, plan.dims, plan.kinds, plan.scales, scale_tensor, n, plan.eps,
                out_dtype, store, [], [],
            )  # fmt: skip
        return self.end(results)

    def backward(
        self, plan: Plan, grads: Sequence[Tensor], grad_sigmas: Tensor | None,
        weights_sn: Sequence[Tensor], sigmas: Tensor, vectors: Tensor, view_stats: Tensor,
        scale_tensor: Tensor | None, grad_dtype: torch.dtype,
    ) -> Any:  # fmt: skip
        with self.call(
            grad=grads, grad_sigmas=grad_sigmas, weight_sn=weights_sn, sigmas=sigmas,
            vectors=vectors, view_stats=view_stats, scales=scale_tensor,
        ):  # fmt: skip
            results = torch.ops.fastsn_cuda_ptx.backward(
                grads, grad_sigmas, weights_sn, sigmas, vectors, view_stats, plan.dims,
                plan.kinds, plan.scales, scale_tensor, grad_dtype, [], [],
            )  # fmt: skip
        return self.end(results)


@cache
def cuda_machine() -> CudaMachine:
    """One for the process: torch has no way to unload it."""
    return CudaMachine()
