"""What launches cost: counts of the machine, added up."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .instructions import SPACES

SECTOR = 32


class Row(NamedTuple):
    """An instruction of a kernel, as vm/api.cpp writes it."""

    name: str
    line: int
    where: str
    space: int
    access_bytes: int  # of a lane
    issued: int
    lanes: int
    bytes: int
    sectors: int
    least: int


@dataclass
class Totals:
    """Of some instructions."""

    warp: int = 0
    thread: int = 0
    loaded: int = 0  # bytes of sectors in global memory
    stored: int = 0
    loads_least: int = 0  # sectors that could do for what lanes asked for
    stores_least: int = 0
    turns: int = 0  # of the banks of shared memory
    turns_least: int = 0
    atomics: int = 0
    local: int = 0  # accesses of threads to memory of their own, which registers should hold

    @staticmethod
    def of(rows: Iterable[Row]) -> Totals:
        own = Totals()
        for row in rows:
            own.warp += row.issued
            own.thread += row.lanes
            head = row.name.removesuffix(".narrow").split(".")[0]
            in_shared = row.space == SPACES["shared"] and row.name[:2] != "cp"
            if in_shared:
                own.turns += row.sectors
                own.turns_least += row.least
            elif row.space == SPACES["local"]:
                own.local += row.lanes
            elif head in ("ld", "cp"):
                own.loaded += SECTOR * row.sectors
                own.loads_least += row.least
            elif head == "st":
                own.stored += SECTOR * row.sectors
                own.stores_least += row.least
            elif head == "atom":
                own.atomics += row.lanes
        return own

    @property
    def conflicts(self) -> float:
        """The part of the banks' turns that comes of conflicts."""
        return 1 - self.turns_least / self.turns if self.turns else 0.0

    @property
    def store_excess(self) -> float:
        return self.stored / SECTOR / self.stores_least if self.stores_least else 1.0


class Launch(NamedTuple):
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    barriers: int  # of blocks, passed
    issued: list[int]  # instructions of warps, by block

    def busiest(self, processors: int) -> int:
        """Instructions of warps on the multiprocessor that has most, if each next block goes to
        the one that has done least."""
        loads = [0] * processors
        for block in self.issued:
            heapq.heapreplace(loads, loads[0] + block)
        return max(loads)


@dataclass
class Statistics:
    launches: list[Launch] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)  # of kernels that ran

    @staticmethod
    def read(document: dict[str, Any]) -> Statistics:
        rows = {name: [Row(*row) for row in own] for name, own in document["kernels"].items()}
        rows = {name: own for name, own in rows.items() if any(row.issued for row in own)}
        return Statistics([Launch(**launch) for launch in document["launches"]], rows)

    def total(self) -> Totals:
        return Totals.of(row for rows in self.rows.values() for row in rows)


def short_name(kernel: str) -> str:
    """A kernel's name without its namespace and parameters, as far as they are mangled."""
    names = re.findall(r"(?<=\d)([a-z]\w*?_kernel)(?=I|E|P|v)", kernel)
    return names[0] if names else kernel
