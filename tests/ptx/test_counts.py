"""Gates on what the compiled CUDA kernels cost: float32, sm_90, one power iteration.

At two instructions per cycle and multiprocessor, what an element may cost is what its bytes take.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess

import pytest

from . import build
from .cuda import CudaMachine, cuda_machine
from .gates import (
    AWKWARD,
    CONFLICTS,
    DIRECTIONS,
    EXCESS,
    INSTRUCTIONS,
    KINDS,
    PASSES,
    SHAPES,
    WORKLOADS,
    Counts,
    measure_network,
    measure_shape,
)

pytestmark = pytest.mark.ptx


@functools.cache
def network(name: str, kind: str) -> dict[str, Counts]:
    return measure_network(cuda_machine(), name, kind)


EVERY = [(name, kind, way) for name in WORKLOADS for kind in KINDS for way in DIRECTIONS]
every_network = pytest.mark.parametrize(("name", "kind", "direction"), EVERY)


@every_network
def test_instructions_fit_under_the_time_of_memory(
    cuda: CudaMachine, name: str, kind: str, direction: str
) -> None:
    counts = network(name, kind)[direction]
    assert counts.total("instructions") <= INSTRUCTIONS[direction, kind], counts


@every_network
def test_bytes_are_those_of_the_design(
    cuda: CudaMachine, name: str, kind: str, direction: str
) -> None:
    counts = network(name, kind)[direction]
    least = PASSES[direction] * counts.element_bytes
    assert counts.total("loaded") + counts.total("stored") <= EXCESS * least, counts


@every_network
def test_stores_fill_their_sectors(cuda: CudaMachine, name: str, kind: str, direction: str) -> None:
    kernels = network(name, kind)[direction].kernels
    sectors = sum(kernel.stored for kernel in kernels)
    least = sum(kernel.stored / kernel.stores_over_least for kernel in kernels if kernel.stored)
    assert sectors <= EXCESS * least, kernels


@every_network
def test_banks_of_shared_memory_do_not_conflict(
    cuda: CudaMachine, name: str, kind: str, direction: str
) -> None:
    for kernel in network(name, kind)[direction].kernels:
        assert kernel.conflicts < CONFLICTS, kernel


@every_network
def test_launches_are_few_and_plain(
    cuda: CudaMachine, name: str, kind: str, direction: str
) -> None:
    """No block waits for another: each runs to its end alone, as `resident` shows."""
    kernels = network(name, kind)[direction].kernels
    assert len(kernels) == {"forward": 3, "backward": 2}[direction]
    if name == "cnn":
        with cuda.options(resident=1):
            measure_network(cuda, name, kind)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_awkward_shapes_cost_three_times_as_much_at_most(
    cuda: CudaMachine, name: str, kind: str, direction: str
) -> None:
    counts = measure_shape(cuda, name, kind)[direction]
    own = kind if len(SHAPES[name][0]) > 2 else "SN"
    limit = AWKWARD * network("cnn", own)[direction].total("instructions")
    assert counts.total("instructions") <= limit, counts


# What ptxas makes of the PTX


@functools.cache
def machine_code() -> tuple[str, str]:
    """Of all kernels: the code, and what each takes."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        from triton import knobs

        tool = knobs.nvidia.cuobjdump.path
    code, resources = "", ""
    for cubin in build.cuda_cubins():
        for flag in ("-sass", "-res-usage"):
            command = [tool, flag, str(cubin)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if flag == "-sass":
                code += text
            else:
                resources += text
    return code, resources


def functions(text: str) -> dict[str, str]:
    parts = re.split(r"Function\s*:?\s*(fastsn_\w+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_vectors_of_16_bytes_in_machine_code(cuda: CudaMachine) -> None:
    code = functions(machine_code()[0])
    for kernel in ("forward_rows", "forward_cols", "forward_finish", "backward_dot",
                   "backward_store"):  # fmt: skip
        text = code[f"fastsn_{kernel}_f32_few"]
        assert re.search(r"LDG\.E\S*\.128|LDGSTS\.E\S*\.128", text), f"{kernel}: loads"
        if kernel in ("forward_finish", "backward_store"):
            assert re.search(r"STG\.E\S*\.128", text), f"{kernel}: stores"


def test_nothing_spills_and_registers_fit_the_blocks_planned(cuda: CudaMachine) -> None:
    resources = functions(machine_code()[1])
    assert len(resources) >= 40, sorted(resources)
    source = "".join(
        path.read_text() for path in sorted((build.ROOT / "csrc" / "cuda").glob("*.cu"))
    )
    planned = dict(re.findall(r"FASTSN_KERNELS\((\w+), \w+, (\d+),", source))
    for name, text in resources.items():
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        assert used["STACK"] == used["LOCAL"] == 0, (name, text)
        kernel = re.sub(r"_(f32|f64|f16|bf16)_(few|many)$", "", name.removeprefix("fastsn_"))
        blocks = 2 if "_f64_" in name else int(planned[kernel])
        threads = 256
        assert used["REG"] * threads * blocks <= 65536, (name, used)
