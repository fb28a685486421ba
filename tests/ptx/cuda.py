"""The ops of csrc/cuda on CPU tensors, their kernels run by the machine."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from . import build
from .machine import Machine, flat


class CudaMachine(Machine):
    """``strict``: whatever is found is raised; else it is left for ``found``."""

    def __init__(self) -> None:
        library = build.cuda_library()
        torch.ops.load_library(str(library))
        super().__init__(library)
        self.load_sources()
        self.strict, self.found = True, ""

    def load_sources(self, **source: Any) -> None:
        """Other kernels than the repository's, or for another architecture."""
        self.load(*(path.read_text() for path in build.cuda_ptx(**source)))

    def forward(self, *args: Any) -> Any:
        """The op; ``store_vectors`` may be left out."""
        args = (*args[:10], *(args[10:] or (False,)))
        self.forget_memory()
        self.add_all(weight=args[0], u=args[1], v=args[2], scales=args[6])
        results = torch.ops.fastsn_cuda_ptx.forward(*args)
        self._look_at(results)
        return results

    def backward(self, *args: Any) -> Any:
        names = ("grad", "grad_sigmas", "weight_sn", "sigmas", "vectors", "view_stats")
        self.forget_memory()
        self.add_all(**dict(zip(names, args, strict=False)), scales=args[9])
        results = torch.ops.fastsn_cuda_ptx.backward(*args)
        self._look_at(results)
        return results

    def _look_at(self, results: Any) -> None:
        if self.strict:
            self.check(flat(results))
        else:
            self.found += self.take_reports() + self.unwritten(flat(results))

    def take_found(self) -> str:
        found, self.found = self.found, ""
        return found


@cache
def cuda_machine() -> CudaMachine:
    """One for the process: torch has no way to unload it."""
    return CudaMachine()
