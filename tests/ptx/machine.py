"""The machine, for Python."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .bytecode import write
from .counts import Statistics
from .parser import Module

#: Options as they are where nothing else is said; vm/launch.h says what they mean.
OPTIONS = {
    "order": 0, "seed": 1, "resident": 4, "quantum": 5000, "split": 0, "early_copies": 0,
    "equal_writes": 0, "absent_line": 0, "limit": 1 << 20,
}  # fmt: skip
FORWARD, BACKWARD, RANDOM = range(3)  # `order`

_TRANSLATE = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


class Found(AssertionError):
    """What the machine reports of kernels that ran."""


class Machine:
    """Runs the kernels of PTX files that it was given by :meth:`load`."""

    def __init__(self, library: Path) -> None:
        self._library = library = ctypes.CDLL(str(library))
        for name in ("define", "launch", "reports", "statistics"):
            getattr(library, f"ptx_{name}").restype = ctypes.c_char_p
        library.ptx_unwritten.restype = ctypes.c_int64
        library.ptx_unwritten.argtypes = [ctypes.c_void_p]
        library.ptx_add_memory.argtypes = [
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_char_p
        ]  # fmt: skip
        library.ptx_set_option.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        library.ptx_launch.argtypes = [
            ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p
        ]  # fmt: skip
        self._modules: dict[str, Module] = {}
        self._bytecode: dict[str, str] = {}
        self._errors: list[str] = []
        self._translator = _TRANSLATE(self._translate)
        library.ptx_set_translator(self._translator)
        self.set_options()

    # Kernels

    def load(self, *texts: str) -> None:
        """The PTX to run from now on, in place of what was loaded before."""
        for name in self._modules:
            self._forget(name)
        self._modules.clear()
        self.load_more(*texts)

    def load_more(self, *texts: str) -> None:
        """Beside what was loaded; a kernel of the same name is replaced."""
        for text in texts:
            module = Module(text)
            self._modules.update(dict.fromkeys(module.names, module))
            for name in module.names:
                self._forget(name)

    def _forget(self, name: str) -> None:
        self._library.ptx_forget_kernel(name.encode())
        self._bytecode.pop(name, None)

    @property
    def names(self) -> list[str]:
        return list(self._modules)

    def _translate(self, kernel: bytes) -> None:
        name = kernel.decode()
        try:
            self.redefine(name)
        except Exception as exception:  # it cannot pass through the machine
            self._errors.append(f"{type(exception).__name__}: {exception}")

    def redefine(self, name: str) -> None:
        """Makes a kernel anew, with the options as they are."""
        if name not in self._bytecode:
            self._bytecode[name] = write(self._modules[name].kernel(name))
        error = self._library.ptx_define(self._bytecode[name].encode()).decode()
        if error:
            raise RuntimeError(error)

    def launch(
        self, kernel: str, blocks: int, threads: int, shared_bytes: int, *parameters: Any
    ) -> None:
        """Parameters are tensors, whose address is passed, or ctypes numbers."""
        values = [
            ctypes.c_uint64(value.data_ptr()) if isinstance(value, Tensor) else value
            for value in parameters
        ]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        error = self._library.ptx_launch(kernel.encode(), blocks, threads, shared_bytes, pointers)
        if error:
            self._errors.append(error.decode())
        self._raise_errors()

    def _raise_errors(self, cause: Exception | None = None) -> None:
        if self._errors:
            errors, self._errors = self._errors, []
            raise RuntimeError("\n".join(errors)) from cause

    # How it runs

    def set_options(self, **options: int) -> None:
        """These, and all others as they are by default."""
        self._options = {**OPTIONS, **options}
        for name, value in self._options.items():
            self._library.ptx_set_option(name.encode(), value)

    @contextmanager
    def options(self, **options: int) -> Iterator[None]:
        """These for a while, and all others as they are."""
        before = self._options
        self.set_options(**before | options)
        try:
            yield
        finally:
            self.set_options(**before)

    # Memory

    def forget_memory(self) -> None:
        self._library.ptx_clear_memory()

    def add(self, tensor: Tensor, name: str, *, written: bool = True) -> None:
        """Memory that kernels may touch, between the tensor's first element and its last."""
        if tensor.numel() == 0:
            return
        ends = zip(tensor.shape, tensor.stride(), strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in ends)
        size = tensor.element_size()
        self._library.ptx_add_memory(
            tensor.data_ptr(), count * size, min(size, 4), int(written), name.encode()
        )

    # What it found

    def take_reports(self) -> str:
        self._raise_errors()
        text = self._library.ptx_reports().decode()
        self._library.ptx_clear_reports()
        return text

    def unwritten(self, tensors: Sequence[Tensor]) -> str:
        """Results that nobody wrote all of."""
        missing = [(i, self._library.ptx_unwritten(t.data_ptr())) for i, t in enumerate(tensors)]
        return "".join(
            f"unwritten: {count} numbers of result {i}\n"
            for i, count in missing
            if count and tensors[i].numel()
        )

    def take_statistics(self) -> Statistics:
        """Of all launches since the last call."""
        statistics = Statistics.read(json.loads(self._library.ptx_statistics()))
        self._library.ptx_clear_statistics()
        return statistics


class BackendMachine(Machine):
    """A backend's two functions. ``strict``: what is found is raised; else it is kept."""

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.strict, self._found = True, ""

    @contextmanager
    def call(self, **arguments: Any) -> Iterator[None]:
        """Nothing but its arguments is known memory; what kept a kernel from running is raised."""
        self.forget_memory()
        for name, argument in arguments.items():
            for i, tensor in enumerate(argument if isinstance(argument, Sequence) else [argument]):
                if isinstance(tensor, Tensor):
                    self.add(tensor, f"{name}[{i}]")
        try:
            yield
        except RuntimeError as error:
            self._raise_errors(error)
            raise

    def end(self, results: Any) -> Any:
        tensors = [t for own in results for t in ([own] if isinstance(own, Tensor) else own)]
        found = self.take_reports() + self.unwritten(tensors)
        if found and self.strict:
            raise Found(found)
        self._found += found
        return results

    def take_found(self) -> str:
        found, self._found = self._found, ""
        return found
