"""The machine itself, on small kernels: each check finds what it is for, and only that."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from .instructions import Constant
from .machine import BACKWARD, RANDOM, Found, Machine
from .parser import Module
from .snippets import HEAD, START, kernel, run

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
