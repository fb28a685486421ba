"""Compiles the Triton kernels without a GPU, and reads from the machine code what was spilled."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastsn.backends.triton import launch as triton_backend
from fastsn.backends.triton.conclude import evaluate
from fastsn.backends.triton.forward import multiply_cols, multiply_rows, write_weights
from fastsn.backends.triton.gradients import inner_products, write_gradients
from fastsn.backends.triton.plan import BLOCK, TILES, triton_dtype
from fastsn.plan import accumulate_dtype

#: Kernels and the constants that choose between their forms; "scales": None means floats.
KERNELS = {
    "first rows": (multiply_rows, {"FIRST": True, "EVALUATE": False}),
    "next rows": (multiply_rows, {"FIRST": False, "EVALUATE": False}),
    "evaluated rows": (multiply_rows, {"FIRST": True, "EVALUATE": True}),
    "evaluate": (evaluate, {"scales": None}),
    "cols": (multiply_cols, {}),
    "weights": (write_weights, {}),
    "products": (inner_products, {}),
    "gradients": (write_gradients, {}),
}

_POINTERS = {
    **dict.fromkeys(("tile_problems", "chunk_problems", "counters"), "*i32"),
    **dict.fromkeys(("problems", "arguments"), "*i64"),
    **dict.fromkeys(("scalars", "products"), "*fp64"),
    "scales": "*fp32",
}


#: Targets and the dtype each is compiled for: every dtype once.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), torch.float16),
    "sm_90": (GPUTarget("cuda", 90, 32), torch.float32),
    "sm_100": (GPUTarget("cuda", 100, 32), torch.bfloat16),
    "gfx942": (GPUTarget("hip", "gfx942", 64), torch.float64),
}


def compile_kernel(name: str, target_name: str) -> Any:
    """A kernel as a launch would have it, with all dtypes alike."""
    kernel, chosen = KERNELS[name]
    target, dtype = TARGETS[target_name]
    accumulate = accumulate_dtype(dtype)
    constants = {
        **dict.fromkeys(("W", "V", "G", "OUT"), triton_dtype(dtype)),
        "A": triton_dtype(accumulate),
        "ALIGNED": True,
        "TILES": 2 * TILES,
        "BLOCK": BLOCK,
        "HIP": target.backend == "hip",
        **chosen,
    }
    signature, constexprs, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.arg_names):
        if parameter in constants:
            signature[parameter], constexprs[(i,)] = "constexpr", constants[parameter]
        else:
            pointed = f"*{triton_dtype(accumulate)}"
            signature[parameter] = _POINTERS.get(parameter, pointed)
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = dict(triton_backend.options(kernel.fn.__name__, accumulate))
    if target.backend == "hip":
        options.pop("maxnreg", None)
    source = ASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=target, options=options)


class Machine:
    """What Triton asks of a driver before it compiles for a launch: a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return TARGETS["sm_90"][0]

    def get_current_device(self) -> str:
        return "not there"

    def get_current_stream(self, device: str) -> int:
        return 0


def spilled(compiled: Any, folder: Path) -> Iterator[int]:
    """Bytes of local memory, or registers, that the kernel spills, as its machine code tells."""
    if "amdgcn" in compiled.asm:
        found = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"])
    else:
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        report = subprocess.run(
            [tool, "-res-usage", cubin], check=True, capture_output=True, text=True
        ).stdout
        found = re.findall(r"(?:STACK|LOCAL):(\d+)", report)
    assert len(found) == 2, "no report of spills"
    return map(int, found)
