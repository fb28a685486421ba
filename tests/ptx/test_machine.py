"""The machine itself, on small kernels: each check finds what it is for, and only that."""

from __future__ import annotations

import ctypes
import math
import random
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from .instructions import Constant
from .machine import BACKWARD, RANDOM, Found, Machine
from .parser import Module

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


# Memory

READ, WRITE = "ld.global.u32 %r3, [%rd5];", "st.global.u32 [%rd4], %r3;"
#: A number per thread through shared memory: what thread t wrote, thread 63 - t reads.
EXCHANGE = f"""{READ}
    st.shared.u32 [%r8], %r3;
    BARRIER
    sub.s32 %r4, 63, %r1;
    shl.b32 %r4, %r4, 2;
    add.s32 %r4, %r9, %r4;
    ld.shared.u32 %r3, [%r4];
    {WRITE}"""
COPY = """cp.async.ca.shared.global [%r8], [%rd5], 4;
    cp.async.commit_group;
    WAIT
    ld.shared.u32 %r3, [%r8];
    st.global.u32 [%rd4], %r3;"""

RIGHT = {
    "copy": f"{READ} {WRITE}",
    "exchange": EXCHANGE.replace("BARRIER", "bar.sync 0;"),
    "cp.async": COPY.replace("WAIT", "cp.async.wait_group 0;"),
    "local memory": f""".local .align 8 .b8 own[8];
        mov.u64 %rd6, own;
        st.local.u32 [%rd6+4], %r1;
        cvta.local.u64 %rd7, %rd6;
        ld.u32 %r3, [%rd7+4];
        {WRITE}""",
    "warp barrier": f"""{READ}
        st.shared.u32 [%r8], %r3;
        bar.warp.sync 0xffffffff;
        xor.b32 %r4, %r1, 1;
        shl.b32 %r4, %r4, 2;
        add.s32 %r4, %r9, %r4;
        ld.shared.u32 %r3, [%r4];
        {WRITE}""",
}
WRONG = {
    "read out of bounds": f"ld.global.u32 %r3, [%rd5+1000]; {WRITE}",
    "write out of bounds": "st.global.u32 [%rd4+-4], %r1;",
    "read out of bounds: shared": f"ld.shared.u32 %r3, [%r8+1024]; {WRITE}",
    "misaligned access": f"ld.global.v2.u32 {{%r3, %r4}}, [%rd5]; {WRITE}",
    "access out of bounds: parameters": "ld.param.u64 %rd6, [in+8];",
    "read of what nobody wrote: out": f"ld.global.u32 %r3, [%rd4]; {WRITE}",
    "read of what nobody wrote: shared": f"ld.shared.u32 %r3, [%r8]; {WRITE}",
    "cp.async that was not waited for": COPY.replace("WAIT", ""),
    "read of a cp.async that was not": COPY.replace("WAIT", "cp.async.wait_group 1;"),
    "cp.async that was never waited for": "cp.async.ca.shared.global [%r8], [%rd5], 4;",
    "race: reads what another": EXCHANGE.replace("BARRIER", ""),
    "race: writes over what another thread reads": f"""{READ}
        ld.global.u32 %r3, [%rd2];
        st.global.u32 [%rd2], %r3;""",
    "race: writes over what another thread writes": """shr.u32 %r4, %r1, 5;
        setp.eq.u32 %p1, %r1, 32;
        setp.eq.or.u32 %p1, %r1, 0, %p1;
        @%p1 st.global.u32 [%rd1], %r4;""",
    "race: lanes of a warp write to one place": "st.global.u32 [%rd1], %r1;",
    "hang: lanes of a warp wait at different places": """setp.lt.u32 %p1, %r1, 7;
        @%p1 bra $other;
        bar.sync 0;
        bra $end;
        $other: bar.warp.sync 0xffffffff;
        $end:""",
    "hang: waits at a barrier for good": """setp.lt.u32 %p1, %r1, 32;
        @%p1 bra $other;
        bar.sync 0;
        bra $end;
        $other: setp.eq.u32 %p1, %r1, %r1;
        @%p1 bra $other;
        $end:""",
    "hang: more than 20000 instructions": "$again: bra $again;",
    "a warp ended before a barrier": "setp.lt.u32 %p1, %r1, 32; @%p1 ret; bar.sync 0;",
    "warps of a block meet at different": """setp.lt.u32 %p1, %r1, 32;
        @%p1 bra $other;
        bar.sync 0;
        bra $end;
        $other: bar.sync 0;
        $end:""",
    "shuffle from a lane that does not take part": """setp.lt.u32 %p1, %r1, 1;
        @%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, 1;""",
    "read out of bounds: local": ".local .align 4 .b8 own[8]; ld.local.u32 %r3, [own+8];",
    "read of what nobody wrote: local": ".local .align 4 .b8 own[8]; ld.local.u32 %r3, [own+4];",
    "trap": "trap;",
}


@pytest.mark.parametrize("schedule", [{}, {"order": BACKWARD}, {"order": RANDOM, "quantum": 3}])
@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_found_in_what_is_right(
    machine: Machine, name: str, schedule: dict[str, int]
) -> None:
    with machine.options(**schedule):
        out = run(machine, RIGHT[name])[:64].tolist()
    expected = {"exchange": [63 - t for t in range(64)], "warp barrier": [t ^ 1 for t in range(64)]}
    assert out == expected.get(name, list(range(64)))


@pytest.mark.parametrize("message", WRONG)
def test_each_defect_is_found_and_named(machine: Machine, message: str) -> None:
    with machine.options(limit=20000), pytest.raises(Found, match=message.replace(".", r"\.")):
        run(machine, WRONG[message])


def test_results_that_nobody_wrote_all_of(machine: Machine) -> None:
    out = run(machine, RIGHT["copy"], threads=32)
    assert machine.unwritten([out]) == "unwritten: 224 numbers of result 0\n"


def test_equal_values_may_be_written_without_order_where_that_is_allowed(machine: Machine) -> None:
    with machine.options(equal_writes=1):
        run(machine, "st.global.u32 [%rd1], 7;")
        with pytest.raises(Found, match="lanes of a warp"):
            run(machine, "st.global.u32 [%rd1], %r1;")
    with pytest.raises(Found, match="lanes of a warp"):
        run(machine, "st.global.u32 [%rd1], 7;")


def test_copies_arrive_early_or_late(machine: Machine) -> None:
    """A kernel that writes to what is being copied gets one of two results."""
    body = """mov.u32 %r3, 5;
        cp.async.ca.shared.global [%r8], [%rd5], 4;
        st.global.u32 [%rd5], %r3;
        cp.async.wait_all;
        ld.shared.u32 %r3, [%r8];
        st.global.u32 [%rd4], %r3;"""
    for early, expected in ((1, 3), (0, 5)):
        with machine.options(early_copies=early):
            assert run(machine, body, threads=32)[3] == expected


#: Blocks count up; who comes last adds what the others wrote. %r3 is the number it counted from.
LAST_ARRIVER = """mul.wide.u32 %rd6, %r2, 128;
    add.s64 %rd7, %rd4, %rd6;
    st.global.u32 [%rd7], %r2;
    bar.sync 0;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra $wait;
    BEFORE
    atom.global.ORDER.gpu.add.u32 %r3, [%rd2], 1;
    AFTER
    st.shared.u32 [%r9], %r3;
    $wait: bar.sync 0;
    ld.shared.u32 %r3, [%r9];
    setp.ne.u32 %p1, %r3, 3;
    @%p1 bra $end;
    mov.u32 %r4, 0;
    mov.u32 %r5, 0;
    $next: ld.global.u32 %r6, [%rd4];
    add.s32 %r5, %r5, %r6;
    add.s64 %rd4, %rd4, 128;
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p1, %r4, 4;
    @%p1 bra $next;
    st.global.u32 [%rd4], %r5;
    $end:"""
ORDERS = {  # of the atomic, before it, after it, whether that is enough
    "acq_rel": ("acq_rel", "", "", True),
    "fences": ("relaxed", "membar.gl;", "membar.gl;", True),
    "relaxed": ("relaxed", "", "", False),
    "release only": ("release", "", "", False),
    "acquire only": ("acquire", "", "", False),
    "fence before only": ("relaxed", "membar.gl;", "", False),
    "fence behind only": ("relaxed", "", "membar.gl;", False),
}


@pytest.mark.parametrize("order", [0, BACKWARD, RANDOM])
@pytest.mark.parametrize("name", ORDERS)
def test_atomics_order_blocks_only_where_they_release_and_acquire(
    machine: Machine, name: str, order: int
) -> None:
    atomic, before, after, right = ORDERS[name]
    body = LAST_ARRIVER.replace("ORDER", atomic).replace("BEFORE", before).replace("AFTER", after)

    def attempt() -> list[int]:
        given = torch.zeros(1, dtype=torch.int32)
        return run(machine, body, blocks=4, threads=32, given=given).tolist()

    with machine.options(order=order, quantum=2):
        if right:
            assert attempt()[128:160] == [6] * 32
        else:
            with pytest.raises(Found, match="race: reads what another thread writes"):
                attempt()


def test_waiting_for_a_block_that_does_not_run_hangs(machine: Machine) -> None:
    """Blocks need not be on a device at once."""
    body = """atom.global.add.u32 %r3, [%rd2], 1;
        $again: ld.acquire.gpu.global.u32 %r3, [%rd2];
        setp.lt.u32 %p1, %r3, 192;
        @%p1 bra $again;"""

    def attempt() -> None:
        run(machine, body, blocks=6, threads=32, given=torch.zeros(1, dtype=torch.int32))

    with machine.options(limit=20000, resident=6):
        attempt()
    with machine.options(limit=20000), pytest.raises(Found, match="hang: more than 20000"):
        attempt()


def test_lanes_that_go_apart_meet_again(machine: Machine) -> None:
    body = """mov.u32 %r3, 0;
        and.b32 %r4, %r1, 7;
        $again: add.s32 %r3, %r3, 10;
        setp.ge.u32 %p1, %r4, 5;
        @%p1 bra $out;
        add.s32 %r4, %r4, 1;
        bra $again;
        $out: bar.sync 0;
        st.global.u32 [%rd4], %r3;"""
    expected = [10 * (6 - min(t % 8, 5)) for t in range(64)]
    for split in (0, 1):
        with machine.options(split=split, order=RANDOM):
            assert run(machine, body)[:64].tolist() == expected


def test_branches_by_index(machine: Machine) -> None:
    body = """and.b32 %r4, %r1, 3;
        $table: .branchtargets $zero, $two, $zero, $three;
        brx.idx %r4, $table;
        $zero: mov.u32 %r3, 0; bra $end;
        $two: mov.u32 %r3, 2; bra $end;
        $three: mov.u32 %r3, 3;
        $end: st.global.u32 [%rd4], %r3;"""
    assert run(machine, body)[:8].tolist() == [0, 2, 0, 3] * 2
    with pytest.raises(Found, match="branch out of its table"):
        run(machine, body.replace("%r4, %r1, 3", "%r4, %r1, 7"))


def test_what_is_not_supported_is_named(machine: Machine) -> None:
    for body, message in (
        ("sin.approx.f32 %f1, %f2;", "sin.approx.f32"),
        ("bar.sync 1;", "barriers other than"),
        ("ld.const.u32 %r3, [%rd1];", "constant memory"),
        ("mov.u32 %r3, somewhere;", "somewhere"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(machine, body)
    with pytest.raises(RuntimeError, match="expected a kernel, got f"):
        machine.load()
        machine.launch("f", 1, 32, 0)
    with pytest.raises(RuntimeError, match="whole warps"):
        run(machine, "", threads=33)


# Counts


@pytest.mark.parametrize(
    ("access", "sectors", "least"),
    [
        ("ld.global.u32 %r3, [%rd5];", 4, 4),
        ("ld.global.u32 %r3, [%rd2];", 1, 4),
        ("and.b32 %r4, %r1, 3; mul.wide.u32 %rd6, %r4, 128; add.s64 %rd6, %rd2, %rd6;"
         "ld.global.u32 %r3, [%rd6];", 4, 4),
        ("mul.wide.u32 %rd6, %r1, 16; add.s64 %rd6, %rd2, %rd6;"
         "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd6];", 16, 16),
        ("mul.wide.u32 %rd6, %r1, 16; add.s64 %rd6, %rd2, %rd6; ld.global.u32 %r3, [%rd6];", 16, 4),
        ("shl.b32 %r4, %r1, 3; add.s32 %r4, %r9, %r4; st.shared.u32 [%r4], %r1;", 2, 1),
        ("st.shared.u32 [%r8], %r1;", 1, 1),
        ("shl.b32 %r4, %r1, 4; add.s32 %r4, %r9, %r4;"
         "st.shared.v4.u32 [%r4], {%r1, %r1, %r1, %r1};", 4, 4),
        ("shl.b32 %r4, %r1, 5; add.s32 %r4, %r9, %r4;"
         "st.shared.v4.u32 [%r4], {%r1, %r1, %r1, %r1};", 8, 4),
    ],
)  # fmt: skip
def test_sectors_and_turns_of_banks(
    machine: Machine, access: str, sectors: int, least: int
) -> None:
    memory = torch.zeros(257, dtype=torch.int32)
    aligned = memory[-memory.data_ptr() % 32 // 4 :][:248]
    machine.take_statistics()
    body = access if "[%rd6]" not in access else access
    run(machine, body, threads=32, given=aligned)
    rows = machine.take_statistics().rows["f"]
    own = next(row for row in reversed(rows) if row.name[:2] in ("ld", "st"))
    assert (own.issued, own.lanes, own.sectors, own.least) == (1, 32, sectors, least)


def test_instructions_of_warps_and_threads_and_barriers(machine: Machine) -> None:
    machine.take_statistics()
    run(machine, "setp.lt.u32 %p1, %r1, 40; @%p1 add.s32 %r3, %r1, 1; bar.sync 0;", blocks=3)
    statistics = machine.take_statistics()
    [launch], total = statistics.launches, statistics.total()
    start = sum(not line.isspace() for line in START.splitlines()) - 1
    count = START.count(";")
    assert start >= count
    assert (launch.blocks, launch.threads, launch.barriers) == (3, 64, 3)
    assert launch.issued == [2 * (count + 4)] * 3
    assert total.warp == sum(launch.issued)
    assert total.thread == 3 * (64 * (count + 3) + 40)
    assert launch.busiest(2) == 2 * launch.issued[0]


# Arithmetic


def compute(machine: Machine, body: str, given: Tensor, out: torch.dtype) -> Tensor:
    """One number each."""
    result = torch.zeros(len(given), dtype=out)
    width = {2: 1, 4: 2, 8: 3}
    scale = f"""shl.b32 %r20, %r2, 5;
        add.s32 %r20, %r20, %r1;
        mul.wide.u32 %rd10, %r20, {given.element_size()};
        add.s64 %rd5, %rd2, %rd10;
        mul.wide.u32 %rd10, %r20, {result.element_size()};
        add.s64 %rd4, %rd1, %rd10;"""
    assert len(given) % 32 == 0 and given.element_size() in width
    run(machine, scale + body, blocks=len(given) // 32, threads=32, out=result, given=given)
    return result


def test_every_float16_and_bfloat16_is_read_and_rounded_to(machine: Machine) -> None:
    codes = torch.arange(-(2**15), 2**15).to(torch.int16)
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        numbers = codes.view(dtype)
        body = f"ld.global.b16 %h1, [%rd5]; cvt.f32.{name} %f1, %h1; st.global.f32 [%rd4], %f1;"
        got = compute(machine, body, codes, torch.float32)
        torch.testing.assert_close(got, numbers.float(), rtol=0, atol=0, equal_nan=True)
        finite = numbers.float()[numbers.isfinite()]
        # the numbers, what lies in the middle of two, and what lies a little off that
        between = (finite.double() + finite.double().roll(1)) / 2
        wide = torch.cat([finite.double(), between, between * (1 + 1e-7), between * (1 - 1e-7),
                          torch.tensor([math.inf, -math.inf, 1e300, 65520.0, 1e-40])])  # fmt: skip
        wide = torch.cat([wide, wide.new_zeros(-len(wide) % 32)])
        for source, load, register in (
            (torch.float32, "f32", "%f1"),
            (torch.float64, "f64", "%fd1"),
        ):
            given = wide.to(source)
            body = f"ld.global.{load} {register}, [%rd5]; cvt.rn.{name}.{load} %h1, {register};"
            got = compute(machine, body + "st.global.b16 [%rd4], %h1;", given, torch.int16)
            expected = given.to(dtype)
            if source == torch.float64:  # torch rounds twice
                away = torch.full_like(expected, math.inf).copysign(expected)
                ends = [torch.nextafter(expected, end) for end in (-away, away)]
                neighbors = torch.stack([expected, *ends])
                error = (got.view(dtype).double() - given).abs()
                least = (neighbors.double() - given).abs().nan_to_num(math.inf).amin(0)
                inside = given.abs() < torch.finfo(dtype).max
                bad = inside & (error != least)
                assert not bad.any(), (given[bad], got.view(dtype)[bad])
            else:
                assert torch.equal(got.view(dtype), expected)


S32 = [0, 1, -1, 5, -7, 2**31 - 1, -(2**31), 123456789]


def u32(x: int) -> int:
    return x & 0xFFFFFFFF


INTEGERS: dict[str, Any] = {  # of a and b, as signed numbers
    "add.s32 R, A, B": lambda a, b: a + b,
    "sub.s32 R, A, B": lambda a, b: a - b,
    "mul.lo.s32 R, A, B": lambda a, b: a * b,
    "mul.hi.s32 R, A, B": lambda a, b: a * b >> 32,
    "mul.hi.u32 R, A, B": lambda a, b: u32(a) * u32(b) >> 32,
    "mad.lo.s32 R, A, B, 3": lambda a, b: a * b + 3,
    "div.s32 R, A, 7": lambda a, b: int(a / 7),
    "rem.s32 R, A, 7": lambda a, b: int(math.fmod(a, 7)),
    "div.u32 R, A, 7": lambda a, b: u32(a) // 7,
    "rem.u32 R, A, 7": lambda a, b: u32(a) % 7,
    "shl.b32 R, A, 31": lambda a, b: a << 31,
    "shl.b32 R, A, 40": lambda a, b: 0,
    "shr.s32 R, A, 3": lambda a, b: a >> 3,
    "shr.s32 R, A, 99": lambda a, b: a >> 31,
    "shr.u32 R, A, 3": lambda a, b: u32(a) >> 3,
    "min.s32 R, A, B": min,
    "max.u32 R, A, B": lambda a, b: max(u32(a), u32(b)),
    "abs.s32 R, A": lambda a, b: abs(a),
    "neg.s32 R, A": lambda a, b: -a,
    "not.b32 R, A": lambda a, b: ~a,
    "and.b32 R, A, B": lambda a, b: a & b,
    "xor.b32 R, A, B": lambda a, b: a ^ b,
    "bfe.u32 R, A, 5, 9": lambda a, b: u32(a) >> 5 & 511,
    "bfe.s32 R, A, 24, 8": lambda a, b: a >> 24,
    "bfi.b32 R, A, B, 4, 8": lambda a, b: (u32(b) & ~0xFF0) | (a & 0xFF) << 4,
    "prmt.b32 R, A, B, 0x5410": lambda a, b: (a & 0xFFFF) | (b & 0xFFFF) << 16,
    "popc.b32 R, A": lambda a, b: u32(a).bit_count(),
    "clz.b32 R, A": lambda a, b: 32 - u32(a).bit_length(),
    "shf.l.wrap.b32 R, A, B, 8": lambda a, b: u32(b) << 8 | u32(a) >> 24,
    "cvt.s32.s8 R, A": lambda a, b: (a & 255) - 256 * (a >> 7 & 1),
    "cvt.u32.u16 R, A": lambda a, b: a & 0xFFFF,
    "{.reg .b16 lo, hi; mov.b32 {lo, hi}, A; mov.b32 R, {hi, lo};}": (
        lambda a, b: u32(a) >> 16 | (a & 0xFFFF) << 16
    ),
    "{.reg .pred p; setp.lt.s32 p, A, B; selp.b32 R, 4, 9, p;}": lambda a, b: 4 if a < b else 9,
    "{.reg .pred p; setp.hs.u32 p, A, B; selp.b32 R, 4, 9, p;}": (
        lambda a, b: 4 if u32(a) >= u32(b) else 9
    ),
    "{.reg .b64 w; mul.wide.s32 w, A, B; shr.s64 w, w, 7; cvt.u32.u64 R, w;}": (
        lambda a, b: a * b >> 7
    ),
}


@pytest.mark.parametrize("operation", INTEGERS)
def test_integers(machine: Machine, operation: str) -> None:
    pairs = [(a, b) for a in S32 for b in S32]
    given = torch.tensor([x for pair in pairs for x in pair], dtype=torch.int32).view(torch.int64)
    text = operation if operation.startswith("{") else operation + ";"
    for name, register in (("A", "%r3"), ("B", "%r4"), ("R", "%r5")):
        text = " ".join(
            word.replace(name, register) if word.strip(",;{}") == name else word
            for word in text.split(" ")
        )
    body = f"ld.global.v2.u32 {{%r3, %r4}}, [%rd5]; {text} st.global.u32 [%rd4], %r5;"
    got = compute(machine, body, given, torch.int32)
    expected = [u32(INTEGERS[operation](*pair)) for pair in pairs]
    assert [u32(x) for x in got.tolist()] == expected


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "min", "max"])
def test_float32(machine: Machine, operation: str) -> None:
    numbers = [0.0, -0.0, 1.5, -2.25e-30, 3e38, math.inf, math.nan, 1e-45]
    numbers += [random.uniform(-1, 1) * 10 ** random.randint(-20, 20) for _ in range(24)]
    pairs = torch.tensor([(a, b) for a in numbers for b in numbers], dtype=torch.float32)
    given = pairs.view(torch.int64).flatten()
    name = operation if operation in ("min", "max") else operation + ".rn"
    body = f"""ld.global.v2.f32 {{%f1, %f2}}, [%rd5];
        {name}.f32 %f3, %f1, %f2;
        st.global.f32 [%rd4], %f3;"""
    got = compute(machine, body, given, torch.float32)
    a, b = pairs[:, 0], pairs[:, 1]
    expected = {
        "add": a + b, "sub": a - b, "mul": a * b, "div": a / b,
        "min": torch.fmin(a, b), "max": torch.fmax(a, b),
    }[operation]  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_fused_multiply_add_rounds_once(machine: Machine) -> None:
    """What rounding takes from a product."""
    pairs = torch.randint(-(2**24), 2**24, (320, 2)).float()
    product = pairs.prod(1)
    body = """ld.global.v2.f32 {%f1, %f2}, [%rd5];
        mul.rn.f32 %f3, %f1, %f2;
        neg.f32 %f3, %f3;
        fma.rn.f32 %f3, %f1, %f2, %f3;
        st.global.f32 [%rd4], %f3;"""
    got = compute(machine, body, pairs.view(torch.int64).flatten(), torch.float32)
    expected = pairs.double().prod(1) - product.double()
    assert torch.equal(got.double(), expected) and bool(expected.any())


# The parser


def test_scopes_labels_and_parameters() -> None:
    text = (
        HEAD
        + """.visible .entry g(
    .param .align 8 .b8 table[24],
    .param .u32 count,
    .param .u64 .ptr .align 16 pointer
)
{
    .reg .b32 %r<3>;
    .shared .align 16 .b8 own[20];
    .shared .align 8 .f64 one;
    ld.param.u32 %r1, [count];
    // begin inline asm
    { .reg .b32 %r1; mov.u32 %r1, 7; mov.u32 %r2, %r1; L: bra L; }
    // end inline asm
    mov.u32 %r2, one;
    ret;
}
"""
    )
    own = Module(text).kernel("g")
    assert [(p.offset, p.bytes) for p in own.parameters.values()] == [(0, 24), (24, 4), (32, 8)]
    assert own.shared == {"own": 0, "one": 24} and own.shared_bytes == 32
    assert own.code[1].targets != own.code[0].targets and own.code[2].sources == own.code[1].targets
    assert own.labels[own.code[3].label] == 3
    assert own.code[4].sources == [Constant(4, 1024 + 24)]
    assert own.code[0].line == text[: text.index("ld.param")].count("\n") + 1


def test_parameters_of_other_sizes(machine: Machine) -> None:
    """A table by value, as csrc/cuda passes it."""
    text = kernel("ld.param.u32 %r3, [table+4]; st.global.u32 [%rd1], %r3;")
    text = text.replace(".param .u64 in\n", ".param .u64 in,\n    .param .align 4 .b8 table[8]\n")
    out, given = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    machine.add(out, "out", written=False)
    machine.add(given, "in")
    machine.load(text)
    table = (ctypes.c_char * 8)(*struct.pack("<ii", 3, 9))
    with machine.options(equal_writes=1):
        machine.launch("f", 1, 32, 0, out, given, table)
    assert machine.take_reports() == "" and out.item() == 9
