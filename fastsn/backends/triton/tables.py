"""Tables that the Triton kernels read, on the device, and how long they are remembered.

A launch has a program for each tile of each weight, so it reads what to do from two tables:

* The plan (fastsn/triton_plan.py) depends on shapes and strides only. It is made and uploaded at
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
so one call has to come before the capture.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastsn.backends.triton.plan import Plan

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

        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                raise _no_warm_up()
            _reserve.refill()
        # Copies that the host waits for: whichever stream reads a plan, it is there.
        plan = _plans[key] = make_plan(weights, dims, kinds, lambda table: table.to(device))
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
    table = plan.arguments.get(key)
    if table is None:
        table = torch.tensor(rows())
        if device.type == "cuda":
            with _lock:
                _reserve.refill()
            table = table.pin_memory().to(device, non_blocking=True)
        if len(plan.arguments) >= _REMEMBERED:
            plan.arguments.clear()
        plan.arguments[key] = table
    return table


def addresses(*lists: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensors in lists for tensor in tensors]


def bits(number: float) -> int:
    """A float64 as the table holds it."""
    return struct.unpack("q", struct.pack("d", number))[0]


class _Reserve:
    """Pinned memory for captured graphs, which read it at every replay: it is never released."""

    def __init__(self, size: int) -> None:
        self._size = size  # in int64 numbers
        self._free: Tensor | None = None

    def refill(self) -> None:
        """Makes sure of some memory. Not during a capture, for it may allocate."""
        if self._free is None or self._free.numel() < self._size // 2:
            self._free = torch.empty(self._size, dtype=torch.int64, pin_memory=True)

    def hold(self, table: Tensor) -> Tensor:
        """A copy of ``table`` in the reserve."""
        if self._free is None or self._free.numel() < table.numel():
            raise _no_warm_up()
        held, self._free = self._free.tensor_split([table.numel()])
        return held.copy_(table.flatten()).view_as(table)


_reserve = _Reserve(1 << 17)


def _no_warm_up() -> RuntimeError:
    return RuntimeError(
        "fastsn: expected a call with weights of these shapes before a CUDA graph is captured"
    )
