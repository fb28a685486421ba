"""PTX text to instructions: what :mod:`ptx.bytecode` writes for the machine."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

from .decode import DECODERS, decode_plain
from .instructions import (
    LOCAL_BASE,
    PARAMETER_BASE,
    SHARED_BASE,
    SPECIAL,
    WIDTHS,
    Constant,
    Instruction,
    Kernel,
    Operand,
    Parameter,
    split,
)

_TOKEN = re.compile(
    r"\s*(?://[^\n]*|(?P<open>\{)|(?P<close>\})|\.loc(?P<loc>\s[^\n]*)|(?P<label>[$\w]+):(?!:)"
    r"|(?P<statement>[^;{}][^;]*);|;)"
)


_LOCAL = re.compile(r"\.local \.align \d+ \.b8 ([\w$]+)\[(\d+)\]")


class Module:
    """A file of PTX. Kernels are parsed when they are asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._files = {
            int(number): name.rsplit("/", 1)[-1]
            for number, name in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
        }
        pattern = r"^\.extern \.shared[^;]*?([\w$]+)\[\];"
        self.dynamic_shared = set(re.findall(pattern, text, re.MULTILINE))
        entries = re.finditer(r"\.entry\s+([\w$]+)\s*\(", text)
        self._entries = {match[1]: match.end() for match in entries}

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def kernel(self, name: str) -> Kernel:
        return _Body(self, name, self._entries[name]).kernel

    def line_at(self, position: int) -> int:
        return bisect_left(self._newlines, position) + 1

    def where(self, loc: str) -> str:
        """``file:line`` of a .loc directive."""
        number, line = loc.split()[:2]
        return f"{self._files.get(int(number), number)}:{line}"


class _Body:
    """One kernel. Scopes hold registers: ``name`` or, for a range ``name<count>``, ``name<``."""

    def __init__(self, module: Module, name: str, begin: int) -> None:
        self.module, self.kernel = module, Kernel(name)
        self.scopes: list[dict[str, tuple[str, int]]] = []
        self.serials: list[int] = []  # of the scopes that are open
        end = module.text.index(")", begin)
        self._parameters(module.text[begin:end])
        self._read(module.text.index("{", end))

    def _parameters(self, text: str) -> None:
        offset = 0
        for declaration in split(" ".join(text.split())):
            match = re.match(r"\.param (.*) ([\w$]+)(?:\[(\d+)\])?$", declaration)
            assert match, declaration
            words = match[1].split()
            size = next(WIDTHS[word[1:]] for word in words if word[1:] in WIDTHS)
            aligned = ".align" in words and ".ptr" not in words
            alignment = int(words[words.index(".align") + 1]) if aligned else size
            offset = -(-offset // alignment) * alignment
            size *= int(match[3] or 1)
            self.kernel.parameters[match[2]] = Parameter(offset, size)
            offset += size

    def _read(self, position: int) -> None:
        where, latest, opened = "-", "", 0
        for match in self._tokens(position):
            if match["open"]:
                opened += 1
                self.scopes.append({})
                self.serials.append(opened)
            elif match["close"]:
                self.scopes.pop()
                self.serials.pop()
                if not self.scopes:
                    return
            elif match["loc"]:
                where = self.module.where(match["loc"])
            elif match["label"]:
                label = self._label(match["label"], self.serials[-1])
                self.kernel.labels[label] = len(self.kernel.code)
                latest = label
            elif match["statement"]:
                line = self.module.line_at(match.start("statement"))
                statement = " ".join(re.sub(r"//[^\n]*", "", match["statement"]).split())
                if statement.startswith(".branchtargets"):
                    names = split(statement.removeprefix(".branchtargets"))
                    serial = self.serials[-1]
                    self.kernel.tables[latest] = [self._label(name, serial) for name in names]
                elif statement.startswith("."):
                    self._declare(statement)
                else:
                    self._instruction(statement, Instruction(line, where))

    def _tokens(self, position: int) -> Iterator[re.Match[str]]:
        while match := _TOKEN.match(self.module.text, position):
            yield match
            position = match.end()
        raise ValueError(f"line {self.module.line_at(position)}: expected PTX of a kernel")

    @staticmethod
    def _label(name: str, serial: int) -> str:
        return name if name.startswith("$") else f"{name}@{serial}"

    def _declare(self, statement: str) -> None:
        if match := re.match(r"\.reg \.(\w+) (.*)", statement):
            serial = self.serials[-1]
            for name in split(match[2]):
                base, ranged, _ = name.partition("<")
                unique = base if serial == 1 else f"{base}@{serial}_"
                self.scopes[-1][base + ranged] = unique, WIDTHS[match[1]]
        elif match := re.match(
            r"\.shared (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?", statement
        ):
            kernel, alignment = self.kernel, int(match[1] or 1)
            kernel.shared[match[3]] = -(-kernel.shared_bytes // alignment) * alignment
            size = WIDTHS[match[2]] * int(match[4] or 1)
            kernel.shared_bytes = kernel.shared[match[3]] + size
        elif match := _LOCAL.match(statement):
            self.kernel.local, self.kernel.local_bytes = match[1], int(match[2])
        elif not statement.startswith(".pragma"):
            raise ValueError(f"{self.kernel.name}: not supported: {statement}")

    # Operands

    def register(self, name: str) -> str | None:
        """The unique name of a register; None where there is none of that name."""
        if name in SPECIAL:
            self.kernel.widths[name] = 4
            return name
        numbered = re.match(r"(.*?)(\d+)$", name)
        for scope in reversed(self.scopes):
            if name in scope:
                unique, width = scope[name]
            elif numbered and numbered[1] + "<" in scope:
                unique, width = scope[numbered[1] + "<"]
                unique += numbered[2]
            else:
                continue
            self.kernel.widths[unique] = width
            return unique
        return None

    def width(self, name: str) -> int:
        return self.kernel.widths[self.register(name) or name]

    def operand(self, text: str, width: int) -> Operand:
        if text[0] in "%_$" or text[0].isalpha():
            if register := self.register(text):
                return register
            if text in ("true", "false"):
                return Constant(4, 0xFFFFFFFF if text == "true" else 0)
            name, _, offset = text.partition("+")
            return Constant(width, self._symbol(name) + int(offset or 0))
        if match := re.match(r"0[fFdD]([0-9A-Fa-f]+)$", text):
            return Constant(len(match[1]) // 2, int(match[1], 16))
        number = int(text.rstrip("U"), 0)
        if width == 0:
            return Constant(4, 0xFFFFFFFF if number else 0)
        return Constant(max(width, 2), number & (1 << 8 * max(width, 2)) - 1)

    def _symbol(self, name: str) -> int:
        kernel = self.kernel
        if name in kernel.parameters:
            return PARAMETER_BASE + kernel.parameters[name].offset
        if name in kernel.shared:
            return SHARED_BASE + kernel.shared[name]
        if name == kernel.local:
            return LOCAL_BASE
        if name in self.module.dynamic_shared:
            return SHARED_BASE + -(-kernel.shared_bytes // 16) * 16
        raise ValueError(f"{kernel.name}: not supported: {name}")

    def address(self, text: str) -> tuple[Operand, int]:
        """The register or symbol in brackets, and what is added to it."""
        match = re.match(r"\[\s*(.*?)\s*(?:\+\s*(-?\d+))?\s*\]$", text)
        assert match, text
        return self.operand(match[1], 8), int(match[2] or 0)

    # Instructions

    def _instruction(self, statement: str, own: Instruction) -> None:
        if match := re.match(r"@(!?)([%\w$]+) ", statement):
            own.guard, own.negated = self.register(match[2]) or "", match[1] == "!"
            statement = statement[match.end() :]
        operation, _, rest = statement.partition(" ")
        parts = operation.split(".")
        decode = DECODERS.get(parts[0], decode_plain)
        try:
            decode(self, own, parts, split(rest))
        except (ValueError, StopIteration, KeyError, AssertionError) as error:
            text = f"{self.kernel.name}, line {own.line}: not supported: {statement} ({error})"
            raise ValueError(text) from error
        self.kernel.code.append(own)
