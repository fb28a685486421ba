"""The Triton backend on CPU tensors: its kernels compiled for a GPU, and their PTX run here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastsn.backends.triton import launch, tables
from fastsn.plan import Plan

from . import build
from .machine import BackendMachine, Machine

_POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16",
    torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


class _Compiled(NamedTuple):
    name: str
    pointers: int  # parameters, of which Triton adds some that it does not use here
    shared_bytes: int
    threads: int


class _Allocations(TorchDispatchMode):
    """Makes the memory known that the backend allocates, and that nobody has written it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine, self.known = machine, set[int]()
        self.alive: list[Tensor] = []  # so that no address is given out twice

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.__name__.startswith("empty") and result.numel():
            result.untyped_storage().fill_(0xFF)
            self.machine.add(result, f"allocation {len(self.alive)}", written=False)
            self.known.add(result.data_ptr())
            self.alive.append(result)
        return result


class TritonMachine(BackendMachine):
    def __init__(self, target: int = 90) -> None:
        super().__init__(build.machine())
        self._target = GPUTarget("cuda", target, 32)
        self._compiled: dict[Any, _Compiled] = {}

    def forward(
        self, plan: Plan, weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor],
        scale_tensor: Tensor | None, *rest: Any,
    ) -> Any:  # fmt: skip
        """See fastsn/backends/triton/launch.py."""
        arguments = {"weight": weights, "u": us, "v": vs, "scales": scale_tensor}
        with self.call(**arguments), self._launching([*weights, *us, *vs, scale_tensor]):
            results = launch.forward(plan, weights, us, vs, scale_tensor, *rest)
        return self.end(results)

    def backward(
        self, plan: Plan, grads: Sequence[Tensor], grad_sigmas: Tensor | None,
        weights_sn: Sequence[Tensor], *rest: Any,
    ) -> Any:  # fmt: skip
        others = dict(zip(("sigmas", "vectors", "view_stats", "scales"), rest[:4], strict=True))
        known = [*grads, grad_sigmas, *weights_sn, *rest[:4]]
        arguments = {"grad": grads, "grad_sigmas": grad_sigmas, "weight_sn": weights_sn, **others}
        with self.call(**arguments), self._launching(known):
            results = launch.backward(plan, grads, grad_sigmas, weights_sn, *rest)
        return self.end(results)

    def compiled(self, kernel: str) -> str:
        """The name of a kernel that ran, in its last form."""
        return [own.name for own in self._compiled.values() if own.name.startswith(kernel)][-1]

    @contextmanager
    def _launching(self, given: Sequence[Tensor | None]) -> Iterator[None]:
        """Launches come here, and tables of arguments are made anew: addresses repeat."""
        allocations, launch_there = _Allocations(self), launch._launch
        allocations.known |= {tensor.data_ptr() for tensor in given if tensor is not None}
        plans, tables._plans = tables._plans, {}

        def launch_here(kernel: Any, programs: int, accumulate: torch.dtype, *args: Any) -> None:
            self._launch(allocations.known, kernel, programs, accumulate, *args)

        launch._launch = launch_here
        try:
            with allocations, self.options(equal_writes=1):
                yield
        finally:
            launch._launch, tables._plans = launch_there, plans

    def _launch(
        self, known: set[int], kernel: Any, programs: int, accumulate: torch.dtype, *args: Any
    ) -> None:
        compiled = self._compile(kernel, accumulate, args)
        pointers = []
        for name, tensor in zip(kernel.arg_names, args, strict=True):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.data_ptr() not in known:
                self.add(tensor, name)
                known.add(tensor.data_ptr())
            pointers.append(tensor)
        unused = [torch.empty(0)] * (compiled.pointers - len(pointers))
        threads, shared_bytes = compiled.threads, compiled.shared_bytes
        self.launch(compiled.name, programs, threads, shared_bytes, *pointers, *unused)

    def _compile(self, kernel: Any, accumulate: torch.dtype, args: tuple[Any, ...]) -> _Compiled:
        signature, constants, attributes = {}, {}, {}
        for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=True)):
            if isinstance(value, Tensor):
                signature[name] = _POINTERS[value.dtype]
                if value.data_ptr() % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[name], constants[(i,)] = "constexpr", value
        options = launch.options(kernel.fn.__name__, accumulate)
        key = (kernel.fn.__name__, str(signature), str(constants), str(attributes), str(options))
        if key not in self._compiled:
            source = ASTSource(kernel, signature, constants, attributes)
            result = triton.compile(source, target=self._target, options=options)
            name = f"{kernel.fn.__name__}_{len(self._compiled)}"
            text = re.sub(rf"\b{result.metadata.name}\b", name, result.asm["ptx"])
            self.load_more(text)
            pointers = len(re.findall(r"\.param ", text[text.index(".entry") : text.index(")")]))
            metadata = result.metadata
            self._compiled[key] = _Compiled(
                name, pointers, metadata.shared, 32 * metadata.num_warps
            )
        return self._compiled[key]
