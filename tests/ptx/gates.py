"""Counts of calls, per weight element, and what they may be at most."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastsn.plan import BSN, SN

from .counts import SECTOR, Launch, Totals
from .machine import BackendMachine
from .workloads import Call, one_weight, workload

WORKLOADS = ("cnn", "resnet")
KINDS = {"SN": SN, "BSN": BSN}
DIRECTIONS = ("forward", "backward")

#: Thread instructions per element: at two a cycle they take less time than memory does.
INSTRUCTIONS = {
    ("forward", "SN"): 30, ("forward", "BSN"): 45, ("backward", "SN"): 20, ("backward", "BSN"): 25
}  # fmt: skip
#: Passes over all elements: W is read by each product and by the one that writes W_sn; backward
#: reads G twice, W_sn once.
PASSES = {"forward": 3 + 1, "backward": 3 + 1}
EXCESS = 1.1  # of bytes, and of sectors that are stored, over the least
CONFLICTS = 0.03
AWKWARD = 3  # times as many instructions as for the CNN

#: Weights that tiles fit badly: shape and whether it is channels_last.
SHAPES = {
    "rows of 4 columns": ((4096, 4), False),
    "rows of 9 columns": ((4096, 9), False),
    "one row": ((1, 40_000), False),
    "27 columns": ((2048, 3, 3, 3), False),
    "1x1 kernels": ((256, 256, 1, 1), False),
    "channels_last": ((128, 128, 3, 3), True),
}


class KernelCounts(NamedTuple):
    """Of one launch; all but the last four per weight element."""

    kernel: str
    instructions: float
    issued: float  # slots of 32 lanes
    loaded: float  # bytes
    stored: float
    stores_over_least: float
    conflicts: float
    blocks: int
    busiest: int  # instructions of warps on the multiprocessor with most of them


class Counts(NamedTuple):
    elements: int
    element_bytes: int
    kernels: list[KernelCounts]

    def total(self, field: str) -> float:
        return sum(getattr(kernel, field) for kernel in self.kernels)


#: Multiprocessors of an H100 SXM or H200.
PROCESSORS = 132


def _counts_of(call: Call, machine: BackendMachine) -> Counts:
    statistics = machine.take_statistics()
    kernels = []
    for launch in statistics.launches:
        totals = Totals.of(statistics.rows[launch.kernel])
        kernels.append(_of_kernel(launch, totals, call.elements))
    return Counts(call.elements, call.weights[0].element_size(), kernels)


def _of_kernel(launch: Launch, totals: Totals, elements: int) -> KernelCounts:
    return KernelCounts(
        launch.kernel,
        round(totals.thread / elements, 3),
        round(32 * totals.warp / elements, 3),
        round(totals.loaded / elements, 3),
        round(totals.stored / elements, 3),
        round(totals.stored / SECTOR / max(1, totals.stores_least), 4),
        round(totals.conflicts, 5),
        launch.blocks,
        launch.busiest(PROCESSORS),
    )


def measure(machine: BackendMachine, call: Call) -> dict[str, Counts]:
    """Of a forward and a backward, with one iteration, each kernel launched once."""
    machine.take_statistics()
    results = call.forward(machine)
    counts = {"forward": _counts_of(call, machine)}
    call.backward(machine, results)
    return {**counts, "backward": _counts_of(call, machine)}


def measure_network(machine: BackendMachine, name: str, kind: str) -> dict[str, Counts]:
    return measure(machine, workload(name, KINDS[kind], torch.float32))


def measure_shape(machine: BackendMachine, name: str, kind: str) -> dict[str, Counts]:
    torch.manual_seed(0)
    shape, channels_last = SHAPES[name]
    own = KINDS[kind] if len(shape) > 2 else SN
    return measure(machine, one_weight(shape, own, channels_last=channels_last))
