"""Small kernels, written out."""

from __future__ import annotations

import torch
from torch import Tensor

from .machine import Found, Machine

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n.extern .shared .align 16 .b8 dynamic[];\n"
START = """
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd2, [in];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;       // out + thread
    add.s64 %rd5, %rd2, %rd3;       // in + thread
    mov.u32 %r9, dynamic;
    shl.b32 %r8, %r1, 2;
    add.s32 %r8, %r9, %r8;          // shared + thread
"""


def kernel(body: str) -> str:
    """A kernel ``f(out, in)`` with some addresses at hand."""
    return f"""{HEAD}.visible .entry f(
    .param .u64 out,
    .param .u64 in
)
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<40>;
    .reg .f32 %f<9>;
    .reg .b64 %rd<20>;
    .reg .f64 %fd<9>;
    {START}
    {body}
    ret;
}}
"""


def run(
    machine: Machine, body: str, *, blocks: int = 1, threads: int = 64, shared: int = 1024,
    out: Tensor | None = None, given: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Runs it, and raises what is found."""
    out = torch.zeros(256, dtype=torch.int32) if out is None else out
    given = torch.arange(256, dtype=torch.int32) if given is None else given
    machine.forget_memory()
    machine.add(out, "out", written=False)
    machine.add(given, "in")
    machine.load(kernel(body))
    machine.launch("f", blocks, threads, shared, out, given)
    if text := machine.take_reports():
        raise Found(text)
    return out
