"""What each kind of PTX instruction means to the machine (the names in vm/*.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .instructions import SPACES, WIDTHS, Constant, Instruction, split

# Every decoder gets the kernel's body, the instruction to fill in, the parts of its name between
# dots, and its operands.
Decoder = Callable[[Any, Instruction, list[str], list[str]], None]


def _type(parts: list[str]) -> str:
    return next((part for part in reversed(parts) if part in WIDTHS), "b32")


def _reference(body: Any, own: Instruction, text: str) -> None:
    """An address, the first operand; a register of 32 bits makes it one of shared memory."""
    operand, own.immediate = body.address(text)
    own.sources.append(operand)
    if isinstance(operand, str) and body.kernel.widths[operand] == 4:
        own.name += ".narrow"


def _set_access(own: Instruction, parts: list[str], bytes: int) -> None:
    access = own.access
    access.space = next((SPACES[part] for part in parts if part in SPACES), SPACES["generic"])
    if "const" in parts:
        raise ValueError("constant memory")
    access.bytes = access.register_bytes = bytes
    access.acquire = "acquire" in parts or "acq_rel" in parts
    access.release = "release" in parts or "acq_rel" in parts
    weak = not {"relaxed", "volatile", "mmio"} & set(parts)
    access.strong = access.acquire or access.release or not weak


def _load(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = "ld"
    _set_access(own, parts, WIDTHS[_type(parts)])
    names = split(operands[0].strip("{}"))
    own.targets = [None if name == "_" else body.register(name) for name in names]
    own.access.count = len(names)
    own.access.register_bytes = max(2, next(body.width(name) for name in names if name != "_"))
    own.access.signed = _type(parts)[0] == "s"
    _reference(body, own, operands[1])


def _store(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = "st"
    bytes = WIDTHS[_type(parts)]
    _set_access(own, parts, bytes)
    _reference(body, own, operands[0])
    names = split(operands[1].strip("{}"))
    registers = [name for name in map(body.register, names) if name]
    width = body.kernel.widths[registers[0]] if registers else bytes
    own.access.count, own.access.register_bytes = len(names), max(2, width)
    own.sources += [body.operand(name, width) for name in names]


def _atomic(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    kinds = ("add", "exch", "max", "min", "cas", "inc", "or", "and")
    kind, kind_type = next(part for part in parts if part in kinds), _type(parts)
    own.name = f"atom.{kind}.{kind_type}"
    _set_access(own, parts, WIDTHS[kind_type])
    own.access.strong = True
    if parts[0] == "atom":
        own.targets = [body.register(operands.pop(0))]
    _reference(body, own, operands[0])
    own.sources += [body.operand(text, WIDTHS[kind_type]) for text in operands[1:]]


def _copy(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    if parts[1] != "async" or "bulk" in parts:
        raise ValueError("copies other than cp.async")
    if "commit_group" in parts:
        own.name = "cp.async.commit_group"
    elif "wait_group" in parts or "wait_all" in parts:
        own.name = "cp.async.wait"
        own.immediate = int(operands[0]) if operands else -1
    else:
        own.name = "cp.async"
        _set_access(own, ["global"], int(operands[2]))
        _reference(body, own, operands[0])
        operand, own.second = body.address(operands[1])
        own.sources.append(operand)
        own.sources += [body.operand(text, 4) for text in operands[3:4]]


def _matrix(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = parts[0]
    load = parts[0] == "ldmatrix"
    registers = split(operands[0 if load else 1].strip("{}"))
    _set_access(own, ["shared"], 16)
    own.access.count, own.second = len(registers), int("trans" in parts)
    _reference(body, own, operands[1 if load else 0])
    if load:
        own.targets = [body.register(name) for name in registers]
    else:
        own.sources += [body.operand(name, 4) for name in registers]
    own.sources.append(Constant(4, 0xFFFFFFFF))  # the lanes that meet


def _shuffle(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = f"shfl.{parts[2]}"
    own.targets = [body.register(name) for name in operands[0].split("|")]
    own.sources = [body.operand(text, 4) for text in operands[1:]]


def _vote(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = f"vote.{parts[2]}"
    own.targets = [body.register(operands[0])]
    own.sources = [body.operand(operands[1], 0), body.operand(operands[2], 4)]


def _barrier(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    if "warp" in parts:
        own.name = "bar.warp.sync"
        own.sources = [body.operand(operands[0], 4)]
    elif "sync" in parts and operands == ["0"]:
        own.name = "bar.sync"
    else:
        raise ValueError("barriers other than __syncthreads")


def _branch(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = "bra"
    own.label = body._label(operands[0], body.serials[-1])


def _branch_by_index(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    own.name = "brx"
    own.sources = [body.operand(operands[0], 4)]
    own.label = body._label(operands[1], body.serials[-1])


def _move(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    kind = _type(parts)
    width = WIDTHS[kind]
    if operands[0].startswith("{"):
        names = split(operands[0].strip("{}"))
        own.name = f"unpack.{8 * width // 2}"
        own.targets = [None if name == "_" else body.register(name) for name in names]
        own.sources = [body.operand(operands[1], width)]
        assert len(names) == 2
    elif operands[1].startswith("{"):
        names = split(operands[1].strip("{}"))
        own.name, own.targets = f"pack.{8 * width // 2}", [body.register(operands[0])]
        own.sources = [body.operand(name, width // 2) for name in names]
        assert len(names) == 2
    else:
        own.name = "mov.pred" if kind == "pred" else f"mov.b{8 * width}"
        own.targets = [body.register(operands[0])]
        own.sources = [body.operand(operands[1], width)]


def _convert_address(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    _move(body, own, ["mov", _type(parts)], operands)  # the spaces' addresses do not overlap


def _convert(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    to, source = [part for part in parts if part in WIDTHS]
    own.targets = [body.register(operands[0])]
    own.sources = [body.operand(text, max(2, WIDTHS[source])) for text in operands[1:]]
    if to[0] in "su" and source[0] in "su" and len(parts) == 3:
        first = own.sources[0]
        width = body.kernel.widths[first] if isinstance(first, str) else first.width
        own.name = f"cvt.{source[0]}{to[0]}{width}{body.width(operands[0])}"
        own.access.bytes, own.access.register_bytes = WIDTHS[source], WIDTHS[to]
    else:
        own.name = ".".join(parts)


def _compare(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    combine = next((part for part in parts if part in ("and", "or", "xor")), None)
    own.immediate = ["and", "or", "xor"].index(combine) + 1 if combine else 0
    own.name = ".".join(part for part in parts if part != combine)
    own.targets = [body.register(name) for name in operands[0].split("|")]
    width = WIDTHS[_type(parts)]
    own.sources = [body.operand(text, width) for text in operands[1:3]]
    own.sources += [body.operand(text, 0) for text in operands[3:]]


def _select(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    width = WIDTHS[_type(parts)]
    own.name, own.targets = f"selp.b{8 * width}", [body.register(operands[0])]
    own.sources = [body.operand(text, width) for text in operands[1:3]]
    own.sources.append(body.operand(operands[3], 0))


def decode_plain(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
    """Arithmetic: a result and its operands, mostly of one width."""
    head, width = parts[0], WIDTHS[_type(parts)]
    widths = [width] * 4
    if head in ("shl", "shr", "bfe"):
        widths = [width, 4, 4]
    elif head == "bfi":
        widths = [width, width, 4, 4]
    elif "wide" in parts:
        widths = [width, width, 2 * width]
    own.targets = [body.register(operands[0])]
    own.sources = [body.operand(*pair) for pair in zip(operands[1:], widths, strict=False)]
    rounded = head in ("add", "sub", "mul", "fma")  # to nearest, which is how the machine rounds
    own.name = ".".join(part for part in parts if not (rounded and part == "rn"))


def _named(name: str) -> Decoder:
    def decode(body: Any, own: Instruction, parts: list[str], operands: list[str]) -> None:
        own.name = name

    return decode


DECODERS: dict[str, Decoder] = {
    "ld": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "cp": _copy,
    "ldmatrix": _matrix,
    "stmatrix": _matrix,
    "shfl": _shuffle,
    "vote": _vote,
    "bar": _barrier,
    "barrier": _barrier,
    "bra": _branch,
    "brx": _branch_by_index,
    "ret": _named("ret"),
    "exit": _named("ret"),
    "trap": _named("trap"),
    "membar": _named("fence"),
    "fence": _named("fence"),
    "mov": _move,
    "cvta": _convert_address,
    "cvt": _convert,
    "setp": _compare,
    "selp": _select,
}
