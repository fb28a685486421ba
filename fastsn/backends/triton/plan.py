"""Host side of the Triton kernels' table of problems: boxes, tiles and places in the workspace.

Integers only, and a function of the weights' shapes, strides, dims and kinds: no address is in a
plan. So it is made and uploaded once per group, and neither the grouping nor the number of
multiprocessors changes a bit of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fastsn.backends.triton import walk
from fastsn.plan import BSN, SN_V_FIRST, View, native_layout, views_of

__all__ = ["BLOCK", "TILES", "Box", "Plan", "Problem", "box_of", "make_plan", "triton_dtype"]

_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

#: Tiles ``(TA, TB, TC)`` by shape. Each has 4096 elements, 16 for each of 256 threads, all loaded
#: before the first is used. Three such programs fit on a multiprocessor (80 registers a thread)
#: and keep up to 48 KB in flight; a Hopper's share of bandwidth times latency is some 25 KB. And a
#: few MB of weights are tiles enough for 132 multiprocessors. Wide tiles load whole cache lines;
#: TC = 16 suits kernels of 4x4, and of 3x3 as 9 of 16, which costs lanes but no traffic. A tile
#: writes a part of s per row and one of t per column: 1/15 of the weight for LONG, and for both
#: views of BSN 1/7 of it. Runs of 9 begin anywhere and Triton's tiles are powers of two in size,
#: so BSN's tiles of 3x3 kernels cannot be read in vectors, except where W_sn is written.
TILES = ((1, 16, 256), (16, 16, 16), (64, 64, 1))

#: Elements that inner_products takes at a time.
BLOCK = 4096

#: Chunks of a weight at most; every program of write_gradients adds up all of its weight's.
_MAX_CHUNKS = 512

#: Offsets from where a tile begins, and indices of rows and columns, are int32 in the kernels.
_MOST_ELEMENTS = 2**31 - 1

#: Runs along c from which on LONG wastes less than SHORT, where both are possible.
_LONG_RUN = 128


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype."""
    return _TRITON_DTYPES[dtype]


class Box(NamedTuple):
    """A weight as a dense array with axes a, b, c (fastsn/backends/triton/walk.py)."""

    shape: int  # of its tiles
    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]
    views: tuple[int | None, int | None]  # which of the weight's views has its rows along a, b


def box_of(weight: Tensor, dim: int, kind: int) -> Box | None:
    """The box of a weight; None for a layout that ``make_views`` in csrc/problem.h does not take.

    Axes a and b carry rows, so that ``unfold_dim`` in torch's order of columns is never permuted.
    Of M^T, which ``kind`` SN_V_FIRST works on, the rows are what is contiguous.
    """
    if not native_layout(weight, dim, kind):
        return None
    shape = weight.shape
    long, short, across = walk.LONG.value, walk.SHORT.value, walk.ACROSS.value
    if kind == SN_V_FIRST:
        sizes = (shape[0], weight.numel() // shape[0], 1)
        return Box(across, sizes, (sizes[1], 1, 1), (None, 0))
    if not weight.is_contiguous():
        inner = prod(shape[2:])
        sizes = (shape[0], shape[1], inner)
        views: tuple[int | None, int | None] = (0, 1) if dim == 0 else (1, 0)
        if kind != BSN:
            views = (0, None) if dim == 0 else (None, 0)
        return Box(across, sizes, (inner * shape[1], 1, shape[1]), views)
    if kind == BSN:
        sizes = (shape[0], shape[1], prod(shape[2:]))
        views = (0, 1) if dim == 0 else (1, 0)
    else:
        sizes = (prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :]))
        views = (None, 0)
    if sizes[2] == 1:
        tiles = across
    else:
        tiles = long if kind != BSN and (sizes[0] == 1 or sizes[2] >= _LONG_RUN) else short
    return Box(tiles, sizes, (sizes[1] * sizes[2], sizes[2], 1), views)


class Problem(NamedTuple):
    """How a weight's given vectors are assigned to the axes of its box."""

    views: tuple[int | None, int | None]  # among the views of all weights, along a and along b
    swapped: bool  # rows belong to v and columns to u


@dataclass(eq=False)
class Plan:
    """What a call needs to know that depends on the shapes of its weights only."""

    tiles: int
    chunks: int  # of inner_products
    vectors: int  # entries of the result `vectors`
    views: int
    sums: int  # entries of the workspace
    scalars: int
    counters: int
    rows: list[int]  # of the views, in the order of their vectors
    cols: list[int]
    problems: list[Problem]
    table: Tensor  # [weights, PROBLEM_COLUMNS], int64
    tile_problems: Tensor  # [tiles], int32: the weight a tile belongs to
    chunk_problems: Tensor  # [chunks], int32
    #: Tables of arguments that are on the device already, by what they hold.
    arguments: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)


def make_plan(
    weights: Sequence[Tensor],
    dims: Sequence[int],
    kinds: Sequence[int],
    upload: Callable[[Tensor], Tensor],
) -> Plan:
    """The plan for weights of these shapes, with its tables brought to their device by ``upload``.

    Raises:
        RuntimeError: a weight is empty or has a layout that the kernels cannot walk.
    """
    table, problems = [], []
    all_views: list[View] = []
    tiles: list[int] = []
    chunks: list[int] = []
    # How much of everything the weights so far take.
    used = dict.fromkeys(("tiles", "chunks", "vectors", "views", "sums", "scalars", "counters"), 0)

    def take(name: str, count: int) -> int:
        used[name] += count
        return used[name] - count

    for i, (weight, dim, kind) in enumerate(zip(weights, dims, kinds, strict=True)):
        box = box_of(weight, dim, kind) if weight.numel() else None
        if weight.numel() > _MOST_ELEMENTS:
            raise RuntimeError(
                f"fastsn: expected weights[{i}] of at most {_MOST_ELEMENTS} elements, "
                f"got {weight.numel()}"
            )
        if box is None:
            raise RuntimeError(
                f"fastsn: expected weights[{i}] with elements, contiguous or channels_last, got "
                f"shape {tuple(weight.shape)} and strides {weight.stride()} with dim {dim} and "
                f"kind {kind}"
            )
        first_view, views = used["views"], views_of(weight.shape, dim, kind)
        all_views += views
        table.append(_problem_row(weight, box, views, kind, take))
        tiles.append(used["tiles"] - sum(tiles))
        chunks.append(used["chunks"] - sum(chunks))
        along_a, along_b = (None if j is None else first_view + j for j in box.views)
        problems.append(Problem((along_a, along_b), kind == SN_V_FIRST))
    owners = torch.arange(len(table), dtype=torch.int32)
    return Plan(
        **used,  # type: ignore[arg-type]
        rows=[view.rows for view in all_views],
        cols=[view.cols for view in all_views],
        problems=problems,
        table=upload(torch.tensor(table)),
        tile_problems=upload(owners.repeat_interleave(torch.tensor(tiles))),
        chunk_problems=upload(owners.repeat_interleave(torch.tensor(chunks))),
    )


def _in_vectors(box: Box) -> bool:
    """Whether all runs of all tiles begin and end between vectors (VECTOR in walk.py)."""
    along = 1 if box.shape == walk.ACROSS.value else 2
    other_strides = [
        stride
        for axis, (size, stride) in enumerate(zip(box.sizes, box.strides, strict=True))
        if axis != along and size > 1
    ]
    lengths = [box.sizes[along], TILES[box.shape][along], *other_strides]
    return box.strides[along] == 1 and all(n % walk.VECTOR.value == 0 for n in lengths)


def _problem_row(
    weight: Tensor, box: Box, views: Sequence[View], kind: int, take: Callable[[str, int], int]
) -> list[int]:
    """A weight's row of the table of problems; ``take`` gives places in what all weights share."""
    size = weight.numel()
    grid = [-(-n // t) for n, t in zip(box.sizes, TILES[box.shape], strict=True)]
    tiles = prod(grid)
    chunk = -(-size // (BLOCK * _MAX_CHUNKS)) * BLOCK
    shape = box.shape + walk.SHAPES.value * int(_in_vectors(box))
    chunks = -(-size // chunk)
    row = [0] * walk.PROBLEM_COLUMNS.value

    def fill(first: int, *values: tuple[Any, int]) -> None:
        for column, value in values:
            row[first + column.value] = value

    fill(
        0,
        (walk.SHAPE, shape),
        *zip((walk.SIZE_A, walk.SIZE_B, walk.SIZE_C), box.sizes, strict=True),
        *zip((walk.STRIDE_A, walk.STRIDE_B, walk.STRIDE_C), box.strides, strict=True),
        (walk.FIRST_TILE, take("tiles", tiles)),
        (walk.FIRST_CHUNK, take("chunks", chunks)),
        (walk.CHUNKS, chunks),
        (walk.CHUNK, chunk),
        (walk.VIEWS, len(views)),
        (walk.FACTOR, take("scalars", 1)),
        (walk.KEEP, take("scalars", 1)),
        (walk.DONE, take("counters", 1)),
        (walk.ALL_DONE, sum(tiles // grid[axis] for axis in (0, 1) if box.views[axis] is not None)),
    )
    first_view = take("views", len(views))
    starts = [take("vectors", view.rows + view.cols) for view in views]
    for axis, own in enumerate(box.views):
        first = walk.VIEW.value + axis * walk.VIEW_COLUMNS.value
        if own is None:
            fill(first, (walk.INDEX, -1))
            continue
        row_count, row_tiles = box.sizes[axis], grid[axis]
        col_count, col_tiles = size // row_count, tiles // row_tiles
        swapped = kind == SN_V_FIRST
        fill(
            first,
            (walk.INDEX, first_view + own),
            (walk.ROW_VECTOR, starts[own] + (col_count if swapped else 0)),
            (walk.COL_VECTOR, starts[own] + (0 if swapped else row_count)),
            (walk.ROW_PARTS, take("sums", col_tiles * row_count)),
            (walk.ROW_SUMS, take("sums", row_count)),
            (walk.COL_PARTS, take("sums", row_tiles * col_count)),
            (walk.COL_SUMS, take("sums", col_count)),
            (walk.ROW_TILES, row_tiles),
            (walk.COL_TILES, col_tiles),
            (walk.TILE_SUMS, take("scalars", tiles)),
            (walk.COL_SQUARES, take("scalars", col_tiles)),
            (walk.GIVEN_ROW_SQUARES, take("scalars", row_tiles)),
            (walk.GIVEN_COL_SQUARES, take("scalars", col_tiles)),
            (walk.ROW_INVERSE, take("scalars", 1)),
            (walk.COL_INVERSE, take("scalars", 1)),
            (walk.COUNTERS, take("counters", col_tiles)),
        )
    return row
