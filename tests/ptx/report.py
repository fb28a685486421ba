"""Writes docs/gpu-arithmetic.md: ``make gpu-arithmetic``.

Counts are taken anew where nvcc is, and kept in counts.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from .gates import (
    DIRECTIONS,
    INSTRUCTIONS,
    KINDS,
    PASSES,
    PROCESSORS,
    SHAPES,
    WORKLOADS,
    Counts,
    KernelCounts,
    measure_network,
    measure_shape,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-arithmetic.md"
COUNTS = Path(__file__).resolve().parent / "counts.json"
BEFORE = COUNTS.with_name("counts_before.json")  # of an earlier commit, kept to compare with


class Card(NamedTuple):
    name: str
    bandwidth: float  # bytes per second that a copy reaches
    clock: float  # cycles per second


CARDS = (Card("H100 SXM", 3.0e12, 1.755e9), Card("H200", 4.3e12, 1.755e9))
PER_CYCLE = (2, 4)  # instructions of warps, by a multiprocessor
#: Bytes per element that no design avoids, in elements: forward reads W and writes W_sn, backward
#: reads G and W_sn and writes dL/dW.
FLOOR = {"forward": 2, "backward": 3}
TITLES = {
    "cnn": "CNN discriminator (32x32)", "resnet": "ResNet discriminator (128x128)"
}  # fmt: skip

HEAD = """# GPU kernels: the arithmetic

This page is made by a program (tests/ptx/report.py) from counts of the compiled CUDA kernels,
which tests/ptx runs on a CPU. **Every time on it is a prediction. Nothing here was measured on a
GPU.** Counts are exact for what was compiled: PTX for sm_90, float32, one power iteration. What
ptxas makes of it differs a little: a division, for instance, counts as one here.

All numbers are per weight element where nothing else is said. *Instructions* are of threads;
*slots* are what warps issue, times 32, idle lanes included. *Bytes* are sectors of 32 bytes that
loads and stores ask for; caches may serve them. *Conflicts* are the part of the turns of shared
memory's banks that two lanes cause by wanting different words of one bank. No kernel waits at a
barrier of the grid; blocks run in any order.
"""

PREDICTION = f"""## Predicted times

Microseconds for one forward or backward of all weights, without the time to launch. Each launch
takes the longer of two: its bytes from memory, at what a copy reaches, as if no cache served any;
or its instructions, on the busiest of {PROCESSORS} multiprocessors, at 2 or 4 a cycle and
{CARDS[0].clock / 1e9} GHz. *Floor* is the time of the bytes that no design avoids.
"""


def measure_all() -> dict[str, Any]:
    """All counts on this page, as JSON has them."""
    from .cuda import cuda_machine

    machine = cuda_machine()
    networks = {
        f"{name} {kind}": measure_network(machine, name, kind)
        for name in WORKLOADS
        for kind in KINDS
    }
    shapes = {
        f"{name}, {kind}": measure_shape(machine, name, kind)
        for name, (shape, _) in SHAPES.items()
        for kind in KINDS
        if len(shape) > 2 or kind == "SN"
    }
    document = {"networks": networks, "shapes": shapes}
    return json.loads(json.dumps(document))


def _counts(values: Any) -> Counts:
    elements, element_bytes, kernels = values
    return Counts(elements, element_bytes, [KernelCounts(*kernel) for kernel in kernels])


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *rows]) + "\n"


def _kernel_rows(title: str, direction: str, kind: str, counts: Counts) -> list[str]:
    rows = [
        _row(
            title, kernel.kernel.removeprefix("fastsn_"), f"{kernel.instructions:.1f}",
            f"{kernel.issued:.1f}", f"{kernel.loaded:.2f}", f"{kernel.stored:.2f}",
            f"{kernel.stores_over_least:.2f}", f"{kernel.conflicts:.1%}", kernel.blocks,
        )
        for kernel in counts.kernels
    ]  # fmt: skip
    limit = INSTRUCTIONS[direction, kind]
    rows.append(
        _row(
            title, f"**{direction}, {len(counts.kernels)} launches**",
            f"**{counts.total('instructions'):.1f}** (at most {limit})",
            f"{counts.total('issued'):.1f}", f"{counts.total('loaded'):.2f}",
            f"{counts.total('stored'):.2f}", "", "", "",
        )
    )  # fmt: skip
    return rows


def _change_rows(title: str, direction: str, before: Counts, after: Counts) -> list[str]:
    pairs = [
        (old.kernel.removeprefix("fastsn_"), old.instructions, new.instructions, old.busiest,
         new.busiest)
        for old, new in zip(before.kernels, after.kernels, strict=True)
    ]  # fmt: skip
    sums = [sum(column) for column in list(zip(*pairs, strict=True))[1:]]
    return [
        _row(title, name, f"{old:.1f}", f"{new:.1f}", f"{was:,.0f}", f"{now:,.0f}")
        for name, old, new, was, now in [*pairs, (f"**{direction}**", *sums)]
    ]


def predicted(counts: Counts, card: Card, per_cycle: int) -> float:
    """Seconds."""
    return sum(
        max(
            (kernel.loaded + kernel.stored) * counts.elements / card.bandwidth,
            kernel.busiest / per_cycle / card.clock,
        )
        for kernel in counts.kernels
    )


def _time_row(title: str, direction: str, counts: Counts) -> str:
    cells = []
    for card in CARDS:
        floor = FLOOR[direction] * counts.element_bytes * counts.elements / card.bandwidth
        cells += [f"{floor * 1e6:.1f}"]
        cells += [f"{predicted(counts, card, rate) * 1e6:.1f}" for rate in PER_CYCLE]
    return _row(title, direction, *cells)


def page(document: dict[str, Any], before: dict[str, Any]) -> str:
    networks = {
        (name, kind, direction): _counts(document["networks"][f"{name} {kind}"][direction])
        for name in WORKLOADS
        for kind in KINDS
        for direction in DIRECTIONS
    }
    kernels, times, changes = [], [], []
    for (name, kind, direction), counts in networks.items():
        title = f"{TITLES[name]}, {kind}"
        kernels += _kernel_rows(title, direction, kind, counts)
        times.append(_time_row(title, direction, counts))
        earlier = _counts(before["networks"][f"{name} {kind}"][direction])
        changes += _change_rows(title, direction, earlier, counts)
    shapes = [
        _row(
            name,
            *(
                f"{_counts(counts['shapes'][name][way]).total('instructions'):.1f}"
                for way in DIRECTIONS
                for counts in (before, document)
            ),
        )
        for name in document["shapes"]
    ]
    passes = PASSES["forward"] * 4
    return "\n".join([
        HEAD,
        "## Counts\n",
        f"The design moves {passes} bytes forward (W read three times, W_sn written) and "
        f"{PASSES['backward'] * 4} backward (G read twice, W_sn read, dL/dW written).\n",
        _table(
            "| weights | kernel | instructions | slots | bytes loaded | bytes stored "
            "| stored sectors over the least | conflicts | blocks |", kernels),
        "## Awkward shapes\n",
        "Single weights that tiles fit badly; instructions, before (see below) and now.\n",
        _table(
            "| weight | forward, before | forward | backward, before | backward |", shapes),
        "## Before and after\n",
        f"The same kernels as they were counted at commit {before['commit']}: instructions per "
        "element, and\nthose that warps issue on the busiest of "
        f"{PROCESSORS} multiprocessors.\n",
        _table("| weights | kernel | before | now | busiest, before | busiest, now |", changes),
        PREDICTION,
        _table(
            "| weights | direction "
            + "".join(f"| {card.name}: floor | {card.name}: 2 a cycle | {card.name}: 4 a cycle "
                      for card in CARDS) + "|", times),
    ])  # fmt: skip


if __name__ == "__main__":
    from . import build

    if not (build.missing_compiler() or build.missing_nvcc()):
        COUNTS.write_text(json.dumps(measure_all(), indent=1) + "\n")
    PAGE.write_text(page(json.loads(COUNTS.read_text()), json.loads(BEFORE.read_text())))
    print(f"wrote {PAGE}")
