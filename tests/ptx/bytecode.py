"""Places for registers, and the text that vm/bytecode.cpp reads.

Registers that are never alive at once share a place, so that those of a warp stay in the CPU's
cache. Lanes have copies of their own: the order in which they run does not matter here.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

from .instructions import ALL, SPACES, SPECIAL, Constant, Kernel

LANES = 32


def _blocks(kernel: Kernel) -> tuple[list[range], list[list[int]]]:
    """Stretches of code without a branch, and which ones follow each."""
    code, end = kernel.code, len(kernel.code)
    leaves = [own.name in ("bra", "brx", "ret", "trap") for own in code]
    starts = {0, *kernel.labels.values(), *(i + 1 for i in range(end) if leaves[i])}
    starts = sorted(start for start in starts if start < end)
    blocks = [range(*pair) for pair in zip(starts, [*starts[1:], end], strict=True)]
    number = {block.start: i for i, block in enumerate(blocks)}
    following = []
    for block in blocks:
        last, after = code[block[-1]], []
        if last.label:
            after += kernel.branches(last)
        if not leaves[block[-1]] or last.guard:
            after.append(block.stop)
        following.append([number[i] for i in after if i < end])
    return blocks, following


def _reads_and_writes(kernel: Kernel) -> tuple[list[set[str]], list[set[str]]]:
    reads, writes = [], []
    for own in kernel.code:
        read = {operand for operand in own.sources if isinstance(operand, str)}
        written = {name for name in own.targets if name}
        if own.guard:  # what is written may stay as it was
            read |= {own.guard} | written
        reads.append(read)
        writes.append(written)
    return reads, writes


def _lifetimes(kernel: Kernel) -> dict[str, tuple[int, int]]:
    """From where to where in the code each register may be alive."""
    blocks, following = _blocks(kernel)
    reads, writes = _reads_and_writes(kernel)
    needed, written = [], []
    for block in blocks:
        first: set[str] = set()
        own: set[str] = set()
        for i in block:
            first |= reads[i] - own
            own |= writes[i]
        needed.append(first)
        written.append(own)
    alive: list[set[str]] = [set() for _ in blocks]  # at a block's beginning
    changed = True
    while changed:
        changed = False
        for b in reversed(range(len(blocks))):
            behind = set().union(*(alive[after] for after in following[b]))
            now = needed[b] | (behind - written[b])
            changed |= now != alive[b]
            alive[b] = now
    spans: dict[str, tuple[int, int]] = {}

    def extend(name: str, i: int) -> None:
        first, last = spans.get(name, (i, i))
        spans[name] = min(first, i), max(last, i)

    for block, before, after in zip(blocks, alive, following, strict=True):
        for name in before:
            extend(name, block.start)
        for name in set().union(*(alive[b] for b in after)):
            extend(name, block.stop)
        for i in block:
            for name in reads[i] | writes[i]:
                extend(name, i)
    return spans


def _places(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Offsets of registers among a warp's, and how many bytes these are."""
    places = {name: 4 * LANES * i for i, name in enumerate(SPECIAL)}
    size = 4 * LANES * len(SPECIAL)
    free: dict[int, list[int]] = defaultdict(list)
    alive: list[tuple[int, str]] = []
    spans = _lifetimes(kernel)
    for name in sorted(spans, key=lambda name: spans[name][0]):
        if name in places:
            continue
        while alive and alive[0][0] < spans[name][0]:
            ended = heapq.heappop(alive)[1]
            free[kernel.widths[ended]].append(places[ended])
        width = kernel.widths[name]
        if free[width]:
            places[name] = free[width].pop()
        else:
            places[name] = size
            size += LANES * max(width, 2)  # a predicate's word takes a whole cache line
        heapq.heappush(alive, (spans[name][1], name))
    return places, size


def _granule_shift(kernel: Kernel) -> int:
    """Of the smallest number that may be in shared memory: its shadow has a cell for each."""
    spaces = (SPACES["shared"], SPACES["generic"])
    accesses = [own.access for own in kernel.code if own.name[:2] in ("ld", "st", "at")]
    sizes = [access.bytes for access in accesses if access.space in spaces]
    return min([4, *sizes]).bit_length() - 1


def write(kernel: Kernel) -> str:
    """A kernel as the machine reads it."""
    places, size = _places(kernel)
    constants: dict[Constant, int] = {}
    branches: list[int] = []
    lines = []
    for own in kernel.code:
        targets = [places[name] if name else -1 for name in own.targets]
        sources = [
            places[operand]
            if isinstance(operand, str)
            else -1 - constants.setdefault(operand, len(constants))
            for operand in own.sources
        ]
        first = len(branches) if own.label else -1
        branches += kernel.branches(own) if own.label else []
        access = own.access
        fields: list[object] = [
            *(own.name, own.line, own.where),
            *(places[own.guard] if own.guard else -1, int(own.negated)),
            *(len(targets), *targets, len(sources), *sources),
            *(own.immediate, own.second, first, len(branches) - first),
            *(access.space, access.count, access.bytes, access.register_bytes),
            *map(int, (access.signed, access.acquire, access.release, access.strong)),
        ]
        lines.append(" ".join(map(str, fields)))
    parameters = list(kernel.parameters.values())
    shared = -(-kernel.shared_bytes // 16) * 16
    head = [kernel.name, size, shared, kernel.local_bytes, _granule_shift(kernel)]
    head += [len(parameters), len(constants), len(branches), len(lines)]
    return "\n".join([
        " ".join(map(str, head)),
        *(f"{own.offset} {own.bytes}" for own in parameters),
        *(f"{own.width} {own.bits & ALL}" for own in constants),
        *map(str, branches),
        *lines,
    ])  # fmt: skip
