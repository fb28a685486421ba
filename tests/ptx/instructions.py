"""The parts of a kernel: registers, instructions and what they reach."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

#: Bytes of a type; 0 for predicates, which have a bit per lane.
WIDTHS = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
    "pred": 0,
}
#: Registers that a warp begins with, in the order of vm/launch.cpp.
SPECIAL = [
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    *("%laneid", "%warpid"),
]  # fmt: skip
SPACES = {"global": 0, "shared": 1, "param": 2, "generic": 3, "local": 4}
SHARED_BASE = 1024  # these as in vm/launch.h
PARAMETER_BASE, LOCAL_BASE = 0x5000_0000_0000_0000, 0x6000_0000_0000_0000
ALL = (1 << 64) - 1


class Constant(NamedTuple):
    width: int
    bits: int


Operand = str | Constant  # a register's name, or a number


@dataclass
class Access:
    """See Access in vm/bytecode.h."""

    space: int = 0
    count: int = 1
    bytes: int = 4
    register_bytes: int = 4
    signed: bool = False
    acquire: bool = False
    release: bool = False
    strong: bool = False


@dataclass
class Instruction:
    line: int
    where: str
    name: str = ""
    guard: str = ""
    negated: bool = False
    targets: list[str | None] = field(default_factory=list)
    sources: list[Operand] = field(default_factory=list)
    immediate: int = 0
    second: int = 0
    label: str = ""
    access: Access = field(default_factory=Access)


@dataclass
class Parameter:
    offset: int
    bytes: int


@dataclass
class Kernel:
    name: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)  # labels to choose from
    widths: dict[str, int] = field(default_factory=dict)  # of registers
    shared: dict[str, int] = field(default_factory=dict)  # offsets of static shared memory
    shared_bytes: int = 0
    local: str = ""  # the name of each thread's own memory
    local_bytes: int = 0

    def branches(self, own: Instruction) -> list[int]:
        """Where a branch may lead."""
        return [self.labels[label] for label in self.tables.get(own.label, [own.label])]


def split(text: str) -> list[str]:
    """Operands, at commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]
