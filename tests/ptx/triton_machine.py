"""The Triton backend on CPU tensors: its kernels compiled for a GPU, and their PTX run here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastsn.backends.triton import launch as triton_backend
from fastsn.backends.triton import tables as triton_tables

from . import build
from .machine import Machine, flat

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


class TritonMachine(Machine):
    """The two functions of the backend. ``strict`` as for :class:`ptx.cuda.CudaMachine`."""

    def __init__(self, target: int = 90) -> None:
        super().__init__(build.machine())
        self._target = GPUTarget("cuda", target, 32)
        self._compiled: dict[Any, _Compiled] = {}
        self.strict, self.found = True, ""

    def forward(self, *args: Any) -> Any:
        names = ("weight", "u", "v", "dims", "kinds", "scale", "scale_tensor")
        return self._run(triton_backend.forward, names, args)

    def backward(self, *args: Any) -> Any:
        names = ("grad", "grad_sigmas", "weight_sn", "sigmas", "vectors", "view_stats", "dims",
                 "kinds", "scale", "scale_tensor")  # fmt: skip
        return self._run(triton_backend.backward, names, args)

    def _run(self, function: Any, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        self.forget_memory()
        named = dict(zip(names, args, strict=False))
        self.add_all(**named)
        with self._launching({tensor.data_ptr() for tensor in _tensors(args)}):
            results = function(*args)
        if self.strict:
            self.check(flat(results))
        else:
            self.found += self.take_reports() + self.unwritten(flat(results))
        return results

    @contextmanager
    def _launching(self, known: set[int]) -> Iterator[None]:
        """Launches come here, and tables of arguments are made anew: addresses repeat."""
        allocations, launch = _Allocations(self), triton_backend._launch
        allocations.known |= known
        plans, triton_tables._plans = triton_tables._plans, {}

        def launch_here(kernel: Any, programs: int, accumulate: torch.dtype, *args: Any) -> None:
            self._launch(allocations.known, kernel, programs, accumulate, *args)

        triton_backend._launch = launch_here
        try:
            with allocations, self.options(equal_writes=1):
                yield
        finally:
            triton_backend._launch, triton_tables._plans = launch, plans

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
        options = triton_backend.options(kernel.fn.__name__, accumulate)
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


def _tensors(args: Any) -> Iterator[Tensor]:
    for argument in args:
        for value in argument if isinstance(argument, (list, tuple)) else [argument]:
            if isinstance(value, Tensor):
                yield value
