"""Tables that the Triton kernels read, on the device, and how long they are remembered.

A launch has a program for each tile of each weight, so it reads what to do from two tables:

* The plan (plan.py) depends on shapes and strides only. It is made and uploaded at
  the first call of a group and stays for good, because captured CUDA graphs read it at every
  replay; models of the same shapes share one.
* The table of arguments holds addresses, scales and eps. It is remembered by its content: a
  training loop repeats its sequence of allocations, so that after the first iterations all outputs
  lie where they lay before, and nothing is built or uploaded.

Launches otherwise get the addresses of a few tensors, whatever the number of weights. (Results
cannot be slices of one allocation, of which one address would do: outputs of an op must not share
memory. As arguments of the launch, addresses would take kernels for every number of weights.)

**CUDA graphs.** While a graph is captured, the table is copied by the graph itself, from pinned
memory that is never released, because every replay reads it again. The plan must be there already,
so one call has to come before the capture. What outlives a call is allocated by another thread:
torch.compile runs a function that it is going to capture with all of a thread's allocations going
to a pool, and finds what stays there a leak.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastsn.backends.triton.plan import Plan

T = TypeVar("T")

__all__ = ["addresses", "argument_table", "bits", "plan_of"]

#: Tables of arguments that a plan remembers: some for each of a training step's calls.
_REMEMBERED = 64

_plans: dict[tuple[Any, ...], Plan] = {}
_lock = Lock()


def plan_of(weights: Sequence[Tensor], dims: Sequence[int], kinds: Sequence[int]) -> Plan:
    """The plan of weights like these, with its tables on their device."""
    device = weights[0].device
    key = (device, *dims, *kinds, *[(weight.shape, weight.stride()) for weight in weights])
    plan = _plans.get(key)
    if plan is None:
        from fastsn.backends.triton.plan import make_plan

        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise _no_warm_up()

        def upload(table: Tensor) -> Tensor:
            # The host waits for the copy: whichever stream reads a plan, it is there.
            return _outside_of_pools(lambda: table.to(device), device)

        _refill_reserve(device)
        plan = _plans[key] = make_plan(weights, dims, kinds, upload)
    return plan


def argument_table(
    plan: Plan, device: torch.device, key: tuple[Any, ...], rows: Callable[[], list[list[int]]]
) -> Tensor:
    """The table with these ``rows``, which ``key`` determines, on the device."""
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            with _lock:
                host = _reserve.hold(torch.tensor(rows()))
            return host.to(device, non_blocking=True)
        # A table was uploaded on one stream, and others may not wait for it.
        key = (torch._C._cuda_getCurrentRawStream(device.index), *key)
    _refill_reserve(device)
    table = plan.arguments.get(key)
    if table is None:
        host = torch.tensor(rows())
        # Not from pinned memory, whose allocation may wait for the device, and may spoil what
        # another thread captures: the driver takes a copy of a few KB before the call returns.
        table = _outside_of_pools(lambda: host.to(device, non_blocking=True), device)
        if len(plan.arguments) >= _REMEMBERED:
            plan.arguments.clear()
        plan.arguments[key] = table
    return table


def _outside_of_pools(allocate: Callable[[], T], device: torch.device) -> T:
    """Calls it on another thread, on this one's stream: pools are a thread's, streams are not."""
    if device.type != "cuda":
        return allocate()
    stream = torch.cuda.current_stream(device)

    def run() -> T:
        with torch.cuda.stream(stream):
            return allocate()

    with ThreadPoolExecutor(1) as other_thread:
        return other_thread.submit(run).result()


def addresses(*lists: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensors in lists for tensor in tensors]


def bits(number: float) -> int:
    """A float64 as the table holds it."""
    return struct.unpack("q", struct.pack("d", number))[0]


class _Reserve:
    """Pinned memory for captured graphs, which read it at every replay: it is never released."""

    def __init__(self, size: int) -> None:
        self._size = size  # in int64 numbers
        self._all: list[Tensor] = []
        self._used = size  # of the last of them

    @property
    def is_low(self) -> bool:
        return self._size - self._used < self._size // 2

    def refill(self) -> None:
        """Adds memory if there is little. Not during a capture, for it allocates."""
        if self.is_low:
            self._all.append(torch.empty(self._size, dtype=torch.int64, pin_memory=True))
            self._used = 0

    def hold(self, table: Tensor) -> Tensor:
        """A copy of ``table`` in the reserve."""
        first, self._used = self._used, self._used + table.numel()
        if self._used > self._size:
            self._used = first
            raise _no_warm_up()
        return self._all[-1][first : self._used].copy_(table.flatten()).view_as(table)


_reserve = _Reserve(1 << 17)


def _refill_reserve(device: torch.device) -> None:
    """After every 384 captured calls of 19 weights, and before the first."""
    if device.type == "cuda" and _reserve.is_low:
        with _lock:
            _outside_of_pools(_reserve.refill, device)


def _no_warm_up() -> RuntimeError:
    return RuntimeError(
        "fastsn: expected a call with weights of these shapes before a CUDA graph is captured"
    )
