"""Single instructions of the machine: integers, floats, and what is rounded to 16 bits."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from .machine import Machine
from .snippets import run


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
