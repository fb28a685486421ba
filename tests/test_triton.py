"""The Triton backend without a GPU: boxes, host side, compiled kernels, and the interpreter."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import KINDS
from flat import Flat

from fastsn.backends.triton import launch as triton_backend
from fastsn.backends.triton import tables as triton_tables

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def installed(require_backend: Callable[[str, Sequence[str]], None]) -> None:
    error = triton_backend.import_error()
    require_backend("triton", [error] if error else [])


# Boxes


def laid_out(shape: Sequence[int], layout: str) -> torch.Tensor:
    numbers = torch.arange(np.prod(shape), dtype=torch.float64)
    if layout == "contiguous":
        return numbers.view(*shape)
    order = [0, *range(2, len(shape)), 1]
    inverse = [order.index(d) for d in range(len(shape))]
    return numbers.view([shape[d] for d in order]).permute(inverse)


def test_views_of_a_box_are_the_unfoldings_in_torch_order() -> None:
    from fastsn.backends.triton.plan import box_of

    seen = set()
    for _ in range(400):
        shape = [random.choice([1, 2, 3, 5]) for _ in range(random.randrange(2, 6))]
        weight = laid_out(shape, random.choice(["contiguous", "channels_last"]))
        kind = random.choice(list(KINDS.values()))
        dim = random.randrange(2 if kind == oracle.BSN else len(shape))
        if kind == oracle.BSN and len(shape) == 2:
            continue
        box = box_of(weight, dim, kind)
        if box is None:
            assert not weight.is_contiguous() or (kind == oracle.SN_V_FIRST and dim != 0)
            continue
        memory = torch.as_strided(weight, box.sizes, box.strides).numpy()
        assert sorted(memory.flat) == list(range(weight.numel()))
        dims = oracle.view_dims(len(shape), dim, kind)
        assert sorted(j for j in box.views if j is not None) == list(range(len(dims)))
        for axis, j in enumerate(box.views):
            if j is None:
                continue
            matrix = np.moveaxis(memory, axis, 0).reshape(box.sizes[axis], -1)
            expected = oracle.unfold(weight.numpy(), dims[j])
            expected = expected.T if kind == oracle.SN_V_FIRST else expected
            assert np.array_equal(matrix, expected), (shape, weight.stride(), dim, kind)
            seen.add((box.shape, axis, kind))
    assert len(seen) >= 7


def test_plan_gives_every_weight_memory_of_its_own() -> None:
    from fastsn.backends.triton import walk
    from fastsn.backends.triton.plan import TILES, make_plan

    weights = [torch.empty(70, 40, 3, 3), torch.empty(513, 300), torch.empty(5, 65, 1, 1)]
    plan = make_plan(weights, [0, 0, 1], [oracle.BSN, oracle.SN, oracle.BSN], lambda table: table)
    rows = plan.table.tolist()
    taken = {"sums": [], "scalars": [], "counters": [], "vectors": []}
    for row, weight in zip(rows, weights, strict=True):
        grid = [
            -(-row[walk.SIZE_A.value + axis] // tile)
            for axis, tile in enumerate(TILES[row[walk.SHAPE.value] % walk.SHAPES.value])
        ]
        taken["scalars"] += [(row[walk.FACTOR.value], 1), (row[walk.KEEP.value], 1)]
        taken["counters"] += [(row[walk.DONE.value], 1)]
        finishers = 0
        for axis in (0, 1):
            view = row[walk.VIEW.value + axis * walk.VIEW_COLUMNS.value :]
            if view[walk.INDEX.value] < 0:
                continue
            tiles = int(np.prod(grid))
            row_tiles, col_tiles = grid[axis], tiles // grid[axis]
            assert (row_tiles, col_tiles) == (
                view[walk.ROW_TILES.value],
                view[walk.COL_TILES.value],
            )
            length = row[walk.SIZE_A.value + axis]
            cols = weight.numel() // length
            finishers += col_tiles
            for name, column, size in (
                ("vectors", walk.ROW_VECTOR, length), ("vectors", walk.COL_VECTOR, cols),
                ("sums", walk.ROW_PARTS, col_tiles * length), ("sums", walk.ROW_SUMS, length),
                ("sums", walk.COL_PARTS, row_tiles * cols), ("sums", walk.COL_SUMS, cols),
                ("scalars", walk.TILE_SUMS, tiles), ("scalars", walk.COL_SQUARES, col_tiles),
                ("scalars", walk.GIVEN_ROW_SQUARES, row_tiles),
                ("scalars", walk.GIVEN_COL_SQUARES, col_tiles),
                ("scalars", walk.ROW_INVERSE, 1), ("scalars", walk.COL_INVERSE, 1),
                ("counters", walk.COUNTERS, col_tiles),
            ):  # fmt: skip
                taken[name].append((view[column.value], size))
        assert finishers == row[walk.ALL_DONE.value]
    for name, places in taken.items():
        end = 0
        for start, size in sorted(places):
            assert start == end, f"{name}: a gap or an overlap at {start}"
            end = start + size
        assert end == getattr(plan, name)
    assert plan.tiles == len(plan.tile_problems) and plan.chunks == len(plan.chunk_problems)


# Tables


def test_plan_is_made_once_and_again_when_shapes_or_strides_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_tables, "_plans", {})
    weight = torch.ones(4, 6, 3, 3)
    plan = triton_tables.plan_of([weight], [0], [oracle.BSN])
    assert triton_tables.plan_of([weight.clone()], [0], [oracle.BSN]) is plan
    channels_last = weight.to(memory_format=torch.channels_last)
    for other in (channels_last, torch.ones(6, 4, 3, 3), torch.ones(4, 6, 3, 3, 1)):
        changed = triton_tables.plan_of([other], [0], [oracle.BSN])
        assert changed is not plan
        assert changed.table.tolist() != plan.table.tolist() or other.ndim == 5
    assert triton_tables.plan_of([weight], [1], [oracle.BSN]) is not plan
    assert triton_tables.plan_of([weight], [0], [oracle.SN]) is not plan


def test_table_of_arguments_is_built_once_for_what_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_tables, "_plans", {})
    plan = triton_tables.plan_of([torch.ones(2, 3)], [0], [oracle.SN])
    built: list[int] = []

    def table(number: int) -> torch.Tensor:
        def rows() -> list[list[int]]:
            built.append(number)
            return [[number]]

        return triton_tables.argument_table(plan, torch.device("cpu"), (number,), rows)

    first = table(7)
    assert first.tolist() == [[7]] and table(8).tolist() == [[8]]
    assert table(7) is first and built == [7, 8]
    # a program whose addresses never come back does not fill the memory
    for number in range(1000):
        table(number)
    assert len(plan.arguments) <= triton_tables._REMEMBERED


class StandIn:
    """A CUDA device that is not there, for what the tables ask of one."""

    device = torch.device("cuda", 0)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing = False
        self.pools: set[int] = set()  # threads whose allocations go to a pool of a graph
        self.leaked: list[str] = []  # what was allocated there and outlives the call
        self.pinned: list[weakref.ref[Any]] = []
        self.streams: list[str] = []
        to, empty = torch.Tensor.to, torch.empty
        stream = threading.local()

        def upload(tensor: torch.Tensor, device: Any, **options: Any) -> torch.Tensor:
            if device != self.device:
                return to(tensor, device, **options)
            self._allocate("table")
            self.streams.append(getattr(stream, "name", "default"))
            return tensor.clone()

        def allocate(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            memory = empty(*args, **options)
            if pin_memory:
                self._allocate("pinned memory")
                self.pinned.append(weakref.ref(memory.untyped_storage()))
            return memory

        @contextlib.contextmanager
        def use(name: str) -> Iterator[None]:
            stream.name = name
            yield

        def refused(*args: Any) -> None:
            raise AssertionError("pin_memory() may wait for the device")

        for owner, name, value in (
            (torch.Tensor, "to", upload),
            (torch.Tensor, "pin_memory", refused),
            (torch, "empty", allocate),
            (torch.cuda, "is_current_stream_capturing", lambda: self.capturing),
            (torch.cuda, "current_stream", lambda device: "side stream"),
            (torch.cuda, "stream", use),
            (torch._C, "_cuda_getCurrentRawStream", lambda index: 7),
            (triton_tables, "_plans", {}),
            (triton_tables, "_reserve", triton_tables._Reserve(1 << 17)),
        ):
            monkeypatch.setattr(owner, name, value, raising=False)

    def _allocate(self, what: str) -> None:
        if threading.get_ident() in self.pools and not self.capturing:
            self.leaked.append(what)

    def plan(self) -> Any:
        from fastsn.backends.triton.plan import make_plan

        triton_tables._refill_reserve(self.device)
        return make_plan([torch.ones(2, 3)], [0], [oracle.SN], lambda table: table)

    def table(self, plan: Any, number: int, rows: int = 1) -> torch.Tensor:
        content = [[number] * 9] * rows
        return triton_tables.argument_table(plan, self.device, (number, rows), lambda: content)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def test_what_captured_graphs_read_is_never_released(stand_in: StandIn) -> None:
    """A thousand captured calls of 19 weights, and calls in between that refill the reserve."""
    plan = stand_in.plan()
    for number in range(1000):
        stand_in.capturing = True
        assert stand_in.table(plan, number, rows=19)[18].tolist() == [number] * 9
        stand_in.capturing = False
        if number % 100 == 0:
            stand_in.table(plan, 0)
    gc.collect()
    assert len(stand_in.pinned) >= 2 and all(memory() is not None for memory in stand_in.pinned)


def test_memory_of_captured_graphs_is_not_given_out_twice(stand_in: StandIn) -> None:
    plan = stand_in.plan()
    reserve = triton_tables._reserve
    held = [reserve.hold(torch.full((19, 9), number)) for number in range(300)]
    stand_in.table(plan, 0)
    reserve.refill()
    held += [reserve.hold(torch.full((19, 9), number)) for number in range(300, 600)]
    assert all(bool((table == number).all()) for number, table in enumerate(held))


def test_capture_without_a_call_before_says_so(stand_in: StandIn) -> None:
    plan = stand_in.plan()
    stand_in.capturing = True
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
        for number in range(1000):  # none of which refills the reserve
            stand_in.table(plan, number, rows=19)
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
        weight = SimpleNamespace(device=stand_in.device, shape=(2, 3), stride=lambda: (3, 1))
        triton_tables.plan_of([weight], [0], [oracle.SN])


def test_nothing_that_stays_is_allocated_in_a_pool_of_the_caller(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.compile(mode="reduce-overhead") warms up, before it captures."""
    from fastsn.backends.triton.plan import make_plan

    stand_in.pools.add(threading.get_ident())
    weight = torch.ones(2, 3)
    on_device = SimpleNamespace(device=stand_in.device, shape=weight.shape, stride=weight.stride)
    monkeypatch.setattr(
        "fastsn.backends.triton.plan.make_plan",
        lambda weights, dims, kinds, upload: make_plan([weight], dims, kinds, upload),
    )
    plan = triton_tables.plan_of([on_device], [0], [oracle.SN])
    table = stand_in.table(plan, 5)
    assert stand_in.table(plan, 5) is table
    assert len(stand_in.streams) == 4 and set(stand_in.streams) == {"side stream"}
    assert len(stand_in.pinned) == 1 and not stand_in.leaked


# What it refuses


@pytest.mark.parametrize(
    ("device", "dtype", "out_dtype", "reason"),
    [
        ("cpu", torch.float32, None, "expected weights on device cuda, got cpu"),
        ("cuda", torch.complex64, None, "weights, got torch.complex64"),
        ("cuda", torch.float32, torch.int32, "got torch.int32"),
    ],
)
def test_reasons(device: str, dtype: Any, out_dtype: Any, reason: str) -> None:
    reasons = triton_backend.unsupported_reasons(torch.device(device), dtype, out_dtype)
    assert any(reason in each for each in reasons)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"us": [torch.ones(6), torch.ones(4), torch.ones(3)]},
         r"expected us\[0\] of shape \(5,\), got \(6,\)"),
        ({"vs": [torch.ones(7), torch.ones(6)]}, "expected 3 vs, got 2"),
        ({"weights": [torch.ones(5, 7), torch.ones(4, 3, 2).double()]},
         r"expected weights\[1\] to be torch.float32 as weights\[0\], got torch.float64"),
        ({"weights": [torch.ones(5, 7), torch.ones(4, 3, 2, device="meta")]},
         r"expected weights\[1\] on cpu, got meta"),
        ({"scale_tensor": torch.ones(3)},
         r"expected scale_tensor of 2 elements on cpu, got shape \(3,\) on cpu"),
    ],
)  # fmt: skip
def test_arguments_that_would_lead_a_kernel_astray(change: dict[str, Any], message: str) -> None:
    arguments = {
        "weights": [torch.ones(5, 7), torch.ones(4, 3, 2)],
        "us": [torch.ones(5), torch.ones(4), torch.ones(3)],
        "vs": [torch.ones(7), torch.ones(6), torch.ones(8)],
        "dims": [0, 0], "kinds": [oracle.SN, oracle.BSN], "scales": [1.0, 1.0],
        "scale_tensor": None, "n_power_iterations": 1, "eps": 1e-12, "out_dtype": None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        Flat(triton_backend).forward(**{**arguments, **change})


def test_unsupported_weights_are_named() -> None:
    from fastsn.backends.triton.plan import make_plan

    good = torch.empty(2, 2)
    for bad, message in (
        (torch.empty(4, 6)[:, ::2], r"weights\[1\] with elements, contiguous or channels_last"),
        (torch.empty(0, 3), r"weights\[1\] with elements"),
        (torch.empty(1).expand(2**16, 2**15), r"weights\[1\] of at most 2147483647 elements"),
    ):
        with pytest.raises(RuntimeError, match=message):
            make_plan([good, bad], [0, 0], [oracle.SN, oracle.SN], lambda table: table)


def test_interpreter_that_is_asked_for_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    assert triton.__version__
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    monkeypatch.setenv("TRITON_INTERPRET", "0" if interpreted else "1")
    device = torch.device("cuda" if interpreted else "cpu")
    reasons = triton_backend.unsupported_reasons(device, torch.float32, None)
    assert "TRITON_INTERPRET was changed after Triton was imported" in reasons[0]


def test_import_of_fastsn_imports_no_triton() -> None:
    code = (
        "import sys, fastsn, torch; from fastsn.backends import explain; "
        "explain(torch.device('cpu')); assert 'triton' not in sys.modules, 'imported'"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=HERE.parent, check=True)


# Kernels


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    """tests/test_triton_kernels.py, in a process in which Triton has not been imported yet."""
    file = "tests/test_triton_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FASTSN_REQUIRE_BACKENDS": "triton"}
    result = subprocess.run(
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d\d+ passed, 1 deselected in ", result.stdout, re.MULTILINE), (
        "something was skipped"
    )


@pytest.fixture
def compiler(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    require_backend: Callable[[str, Sequence[str]], None],
) -> Any:
    """tests/triton_aot.py, with nothing in Triton's cache."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        require_backend("triton", ["TRITON_INTERPRET=1 leaves nothing to compile in this process"])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    import triton_aot

    yield triton_aot
    assert any((tmp_path / "cache").iterdir()), "not compiled now, but taken from a cache"


TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
KERNELS = ["first rows", "next rows", "evaluated rows", "evaluate", "cols", "weights", "products",
           "gradients"]  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for_every_target_without_spills(
    target: str, name: str, compiler: Any, tmp_path: Path
) -> None:
    assert list(compiler.TARGETS) == TARGETS and list(compiler.KERNELS) == KERNELS
    compiled = compiler.compile_kernel(name, target)
    assert list(compiler.spilled(compiled, tmp_path)) == [0, 0]
    if "ptx" in compiled.asm and name != "evaluate":
        text = compiled.asm["ptx"]
        assert re.search(r"ld\.global\S*\.v4\.b32", text), "no load of 16 bytes"
        stores = re.search(r"st\.global\S*\.v4\.b32", text)
        assert bool(stores) == (name in ("weights", "gradients"))
    if (target, name) == ("gfx942", "cols"):
        # every wave waits for its stores, then for the others, before one of them counts the tile
        waits = r"#ASMSTART\s+s_waitcnt vmcnt\(0\).*?#ASMEND(.*?)global_atomic_add"
        waited = re.findall(waits, compiled.asm["amdgcn"], re.DOTALL)
        assert len(waited) >= 4
        for code in waited:
            assert "s_barrier" in code and "global_store" not in code.partition("s_barrier")[0]


@pytest.mark.slow
def test_launches_compile_as_calls_make_them(
    compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training step under autocast, up to where the GPU would be asked to run it."""
    from triton.runtime import driver

    launched = []

    def launch(kernel: Any, programs: int, accumulate: torch.dtype, *args: Any) -> None:
        options = triton_backend.options(kernel.fn.__name__, accumulate)
        compiled = kernel.warmup(*args, grid=(programs,), **options)
        assert list(compiler.spilled(compiled, tmp_path)) == [0, 0]
        launched.append(kernel.fn.__name__)

    monkeypatch.setattr(driver, "_active", compiler.Machine())
    monkeypatch.setattr(triton_backend, "_launch", launch)
    weights, kinds = [torch.ones(4, 6, 3, 3), torch.ones(5, 7)], [oracle.BSN, oracle.SN]
    us, vs = [[torch.ones(n) for n in sizes] for sizes in ((4, 6, 5), (54, 36, 7))]
    scales = [1.0, 2.0]
    results = Flat(triton_backend).forward(
        weights, us, vs, [0, 0], kinds, scales, None, 1, 1e-12, torch.bfloat16
    )
    Flat(triton_backend).backward(
        results[0], None, *results, [0, 0], kinds, scales, None, torch.float32
    )
    assert launched == [
        "multiply_rows", "multiply_cols", "write_weights", "inner_products", "write_gradients"
    ]  # fmt: skip
