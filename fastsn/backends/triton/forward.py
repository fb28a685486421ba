"""Triton kernels of forward: power iterations and normalization of all weights of a call at once.

Three launches, whatever the number of weights, with a program for each tile of a weight
(fastsn/backends/triton/walk.py says what a tile is):

1. :func:`multiply_rows`: the tile's part of ``s = M v``, for both views from one look at it.
2. :func:`multiply_cols`: adds up the parts of s for the tile's rows, brings them to length 1 (the
   length of all of s is not known yet) and multiplies again: the tile's part of ``t = M^T u``. Of
   the tiles that share columns, the last one done adds up their parts, each weighted by its length.
   The last of these concludes the weight: sigma, and what launch 3 needs (conclude.py).
3. :func:`write_weights`: a piece of W_sn; tiles along the edges also write the vectors.

Another iteration repeats 1 and 2. In an evaluation (no iteration) launch 1 makes parts of
``u^T M v``, and launch 2 only concludes. fastsn/backends/reference.py has the mathematics.

Sums within a tile are made in the dtype of ``sums``: float32, or float64 for float64 weights.
Lengths, and sums of a number per tile, are float64. Every sum has an order that only the weight's
shape decides: in launch 2 it is left to chance which tile adds up, not in what order, and what is
counted there are integers. So repeated calls give the same bits, and so does every grouping.
"""

import triton
import triton.language as tl

from fastsn.backends.triton.conclude import conclude
from fastsn.backends.triton.walk import (
    ALL_DONE,
    ARGUMENT_COLUMNS,
    COL_INVERSE,
    COL_PARTS,
    COL_SQUARES,
    COL_SUMS,
    COL_VECTOR,
    COUNTERS,
    DONE,
    EPS,
    FACTOR,
    FIRST_TILE,
    GIVEN,
    GIVEN_COL_SQUARES,
    GIVEN_ROW_SQUARES,
    INDEX,
    KEEP,
    LONG,
    LONG_IN_VECTORS,
    PROBLEM_COLUMNS,
    RESULT,
    ROW_INVERSE,
    ROW_PARTS,
    ROW_SUMS,
    ROW_VECTOR,
    SHAPES,
    SIZE_A,
    SIZE_B,
    SIZE_C,
    SOURCE,
    TILE_SUMS,
    VECTOR,
    VIEW,
    VIEW_COLUMNS,
    along,
    divisor,
    elements,
    grid_of,
    memory,
    number,
    place,
    publish,
    shape_of,
    square_sum,
    total,
)

_PARTS = tl.constexpr(32)  # parts of s that are added at a time
_TILES_ADDED = tl.constexpr(8)  # parts of t


# Launch 1


@triton.jit
def _multiply_rows_view(
    weight, problem, argument, tile, sums, scalars, counters,
    AXIS: tl.constexpr, V: tl.constexpr, FIRST: tl.constexpr, EVALUATE: tl.constexpr,
    TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    view = problem + VIEW + AXIS * VIEW_COLUMNS
    if tl.load(view + INDEX) >= 0:
        rows, in_rows, row_count, row_tile, row_tiles, cols, in_cols, _, col_tile, _ = place(
            problem, tile, AXIS, TA, TB, TC
        )
        if FIRST:
            given = argument + GIVEN + 2 * AXIS
            u = tl.load(tl.load(given).to(tl.pointer_type(V)) + rows, mask=in_rows, other=0.0)
            v = tl.load(tl.load(given + 1).to(tl.pointer_type(V)) + cols, mask=in_cols, other=0.0)
            if col_tile == 0:
                tl.store(scalars + tl.load(view + GIVEN_ROW_SQUARES) + row_tile, square_sum(u))
            if row_tile == 0:
                tl.store(scalars + tl.load(view + GIVEN_COL_SQUARES) + col_tile, square_sum(v))
        else:
            t = tl.load(sums + tl.load(view + COL_SUMS) + cols, mask=in_cols, other=0.0)
            v = t.to(tl.float64) * tl.load(scalars + tl.load(view + COL_INVERSE))
        products = weight * tl.expand_dims(v.to(weight.dtype), AXIS)
        s = tl.sum(tl.sum(products, 2), 1 - AXIS)
        if EVALUATE:
            dot = tl.sum(u.to(tl.float64) * s.to(tl.float64), 0)
            tl.store(scalars + tl.load(view + TILE_SUMS) + col_tile * row_tiles + row_tile, dot)
        else:
            parts = sums + tl.load(view + ROW_PARTS) + col_tile * row_count
            tl.store(parts + rows, s, mask=in_rows)
            if row_tile == 0:
                tl.store(counters + tl.load(view + COUNTERS) + col_tile, 0)


@triton.jit
def multiply_rows(
    tile_problems, problems, arguments, sums, scalars, counters,
    W: tl.constexpr, V: tl.constexpr, FIRST: tl.constexpr, EVALUATE: tl.constexpr,
    ALIGNED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Parts of ``s = M v``, by column tile. Clears the counters for :func:`multiply_cols`.

    FIRST: v is the given one, and the squares of the given vectors are wanted. EVALUATE: parts of
    ``u^T M v`` are wanted, not of s. W and V are the dtypes of weights and given vectors.
    """
    index = tl.load(tile_problems + tl.program_id(0)).to(tl.int64)
    problem, argument = problems + index * PROBLEM_COLUMNS, arguments + index * ARGUMENT_COLUMNS
    tile = tl.program_id(0) - tl.load(problem + FIRST_TILE)
    if (tile == 0) & (not EVALUATE):
        tl.store(counters + tl.load(problem + DONE), 0)
    shape = shape_of(problem, ALIGNED)
    for k in tl.static_range(2 * SHAPES if ALIGNED else SHAPES):
        if shape == k:
            TA: tl.constexpr = TILES[k][0]
            TB: tl.constexpr = TILES[k][1]
            TC: tl.constexpr = TILES[k][2]
            first, offsets, mask = elements(problem, tile, TA, TB, TC, k >= SHAPES)
            source = memory(argument + SOURCE, W, k >= SHAPES) + first
            weight = tl.load(source + offsets, mask=mask, other=0.0).to(sums.dtype.element_ty)
            if k != LONG and k != LONG_IN_VECTORS:
                _multiply_rows_view(
                    weight, problem, argument, tile, sums, scalars, counters,
                    0, V, FIRST, EVALUATE, TA, TB, TC,
                )  # fmt: skip
            _multiply_rows_view(
                weight, problem, argument, tile, sums, scalars, counters,
                1, V, FIRST, EVALUATE, TA, TB, TC,
            )  # fmt: skip


# Launch 2


@triton.jit
def _multiply_cols_view(
    weight, problem, tile, sums, scalars,
    AXIS: tl.constexpr, TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    view = problem + VIEW + AXIS * VIEW_COLUMNS
    if tl.load(view + INDEX) >= 0:
        (
            rows, in_rows, row_count, row_tile, row_tiles,
            cols, in_cols, col_count, col_tile, col_tiles,
        ) = place(problem, tile, AXIS, TA, TB, TC)  # fmt: skip
        lanes = tl.arange(0, _PARTS)[:, None]
        parts = sums + tl.load(view + ROW_PARTS) + rows[None, :]
        added = tl.zeros([_PARTS, TA if AXIS == 0 else TB], weight.dtype)
        for first in range(0, col_tiles, _PARTS):
            mask = (first + lanes < col_tiles) & in_rows[None, :]
            added += tl.load(parts + (first + lanes) * row_count, mask=mask, other=0.0)
        s = tl.sum(added, 0)
        squares = square_sum(s)
        tl.store(scalars + tl.load(view + TILE_SUMS) + col_tile * row_tiles + row_tile, squares)
        if col_tile == 0:
            tl.store(sums + tl.load(view + ROW_SUMS) + rows, s, mask=in_rows)
        # Of length 1, so that no product leaves the range of the dtype before all of s is known.
        u = (s.to(tl.float64) * (1.0 / divisor(tl.sqrt(squares), 0.0))).to(weight.dtype)
        t = tl.sum(weight * along(u, AXIS), AXIS)
        tl.store(sums + tl.load(view + COL_PARTS) + row_tile * col_count + cols, t, mask=in_cols)


@triton.jit
def _add_cols_view(
    problem, argument, tile, sums, scalars, counters,
    AXIS: tl.constexpr, TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Adds up t for the tile's columns if its row tiles are all done; whether it did, as 1 or 0."""
    added = 0
    view = problem + VIEW + AXIS * VIEW_COLUMNS
    if tl.load(view + INDEX) >= 0:
        _, _, _, _, row_tiles, cols, in_cols, col_count, col_tile, _ = place(
            problem, tile, AXIS, TA, TB, TC
        )
        counter = counters + tl.load(view + COUNTERS) + col_tile
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == row_tiles - 1:
            squares = scalars + tl.load(view + TILE_SUMS) + col_tile * row_tiles
            inverse = 1.0 / divisor(tl.sqrt(total(squares, row_tiles)), number(argument + EPS))
            parts = sums + tl.load(view + COL_PARTS) + cols[None, :, :]
            lanes = tl.arange(0, _TILES_ADDED)
            t_parts = tl.zeros([_TILES_ADDED, TB if AXIS == 0 else TA, TC], sums.dtype.element_ty)
            for first in range(0, row_tiles, _TILES_ADDED):
                tiles, in_tiles = first + lanes, first + lanes < row_tiles
                own = tl.load(squares + tiles, mask=in_tiles, other=0.0, cache_modifier=".cg")
                part = tl.load(
                    parts + (tiles * col_count)[:, None, None],
                    mask=in_tiles[:, None, None] & in_cols[None, :, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                t_parts += part * (tl.sqrt(own) * inverse).to(part.dtype)[:, None, None]
            t = tl.sum(t_parts, 0)
            tl.store(sums + tl.load(view + COL_SUMS) + cols, t, mask=in_cols)
            tl.store(scalars + tl.load(view + COL_SQUARES) + col_tile, square_sum(t))
            added = 1
    return added


@triton.jit
def multiply_cols(
    tile_problems, problems, arguments, sums, scalars, counters, scales, sigmas, view_stats,
    W: tl.constexpr, HIP: tl.constexpr, ALIGNED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """All of ``s = M v`` and of ``t = M^T s / max(||s||, eps)``, and what follows from them."""
    index = tl.load(tile_problems + tl.program_id(0)).to(tl.int64)
    problem, argument = problems + index * PROBLEM_COLUMNS, arguments + index * ARGUMENT_COLUMNS
    tile = tl.program_id(0) - tl.load(problem + FIRST_TILE)
    shape = shape_of(problem, ALIGNED)
    added = 0
    for k in tl.static_range(2 * SHAPES if ALIGNED else SHAPES):
        if shape == k:
            TA: tl.constexpr = TILES[k][0]
            TB: tl.constexpr = TILES[k][1]
            TC: tl.constexpr = TILES[k][2]
            first, offsets, mask = elements(problem, tile, TA, TB, TC, k >= SHAPES)
            source = memory(argument + SOURCE, W, k >= SHAPES) + first
            weight = tl.load(source + offsets, mask=mask, other=0.0).to(sums.dtype.element_ty)
            if k != LONG and k != LONG_IN_VECTORS:
                _multiply_cols_view(weight, problem, tile, sums, scalars, 0, TA, TB, TC)
            _multiply_cols_view(weight, problem, tile, sums, scalars, 1, TA, TB, TC)
            publish(HIP)  # the tile's parts, before it is counted as done
            if k != LONG and k != LONG_IN_VECTORS:
                added += _add_cols_view(
                    problem, argument, tile, sums, scalars, counters, 0, TA, TB, TC
                )
            added += _add_cols_view(problem, argument, tile, sums, scalars, counters, 1, TA, TB, TC)
    if added > 0:
        publish(HIP)
        done = tl.atomic_add(counters + tl.load(problem + DONE), added, sem="acq_rel", scope="gpu")
        if done + added == tl.load(problem + ALL_DONE):
            conclude(index, problem, argument, scalars, scales, sigmas, view_stats, False)


# Launch 3


@triton.jit
def _write_vector(
    target, given, sums, inverse, indices, mask, keep, V: tl.constexpr
):  # fmt: skip
    """The given vector, or sums divided by their length."""
    if keep:
        pointer = tl.load(given).to(tl.pointer_type(V))
        x = tl.load(pointer + indices, mask=mask, other=0.0).to(target.dtype.element_ty)
    else:
        x = tl.load(sums + indices, mask=mask, other=0.0).to(tl.float64)
        x = (x * tl.load(inverse)).to(target.dtype.element_ty)
    tl.store(target + indices, x, mask=mask)


@triton.jit
def _write_view(
    problem, argument, tile, sums, scalars, vectors, keep,
    AXIS: tl.constexpr, V: tl.constexpr,
    TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    view = problem + VIEW + AXIS * VIEW_COLUMNS
    if tl.load(view + INDEX) >= 0:
        rows, in_rows, _, row_tile, _, cols, in_cols, _, col_tile, _ = place(
            problem, tile, AXIS, TA, TB, TC
        )
        given = argument + GIVEN + 2 * AXIS
        if col_tile == 0:
            _write_vector(
                vectors + tl.load(view + ROW_VECTOR), given, sums + tl.load(view + ROW_SUMS),
                scalars + tl.load(view + ROW_INVERSE), rows, in_rows, keep, V,
            )  # fmt: skip
        if row_tile == 0:
            _write_vector(
                vectors + tl.load(view + COL_VECTOR), given + 1, sums + tl.load(view + COL_SUMS),
                scalars + tl.load(view + COL_INVERSE), cols, in_cols, keep, V,
            )  # fmt: skip


@triton.jit
def _write_piece(
    argument, start, end, factor,
    W: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, IN_VECTORS: tl.constexpr,
):  # fmt: skip
    source = memory(argument + SOURCE, W, IN_VECTORS)
    target = memory(argument + RESULT, OUT, IN_VECTORS)
    if IN_VECTORS:
        # so written that the compiler sees it: a hint on an argument does not reach it
        start, end = start // VECTOR * VECTOR, end // VECTOR * VECTOR
    offsets = start + tl.arange(0, BLOCK)
    weight = tl.load(source + offsets, mask=offsets < end, other=0.0).to(factor.dtype)
    tl.store(target + offsets, (weight * factor).to(OUT), mask=offsets < end)


@triton.jit
def write_weights(
    tile_problems, problems, arguments, sums, scalars, vectors,
    W: tl.constexpr, V: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """``W_sn = scale W / sigma`` and the vectors.

    To the weight's elements their places mean nothing here. So they are cut, in memory order, into
    as many pieces as there are tiles, and move in vectors whatever the shape of the tiles.
    """
    index = tl.load(tile_problems + tl.program_id(0)).to(tl.int64)
    problem, argument = problems + index * PROBLEM_COLUMNS, arguments + index * ARGUMENT_COLUMNS
    tile = tl.program_id(0) - tl.load(problem + FIRST_TILE)
    # 0 for a sigma of 0. 0 * W keeps a weight that is not finite visible in W_sn.
    factor = tl.load(scalars + tl.load(problem + FACTOR)).to(sums.dtype.element_ty)
    keep = tl.load(scalars + tl.load(problem + KEEP)) != 0.0
    size = tl.load(problem + SIZE_A) * tl.load(problem + SIZE_B) * tl.load(problem + SIZE_C)
    shape = shape_of(problem, ALIGNED)
    for k in tl.static_range(2 * SHAPES if ALIGNED else SHAPES):
        if shape == k:
            TA: tl.constexpr = TILES[k][0]
            TB: tl.constexpr = TILES[k][1]
            TC: tl.constexpr = TILES[k][2]
            _, _, _, tiles_a, tiles_b, tiles_c = grid_of(problem, tile, TA, TB, TC)
            # no more than a tile has, full or not
            piece = tl.cdiv(tl.cdiv(size, tiles_a * tiles_b * tiles_c), VECTOR) * VECTOR
            start = tile * piece
            end = tl.minimum(start + piece, size)
            if ALIGNED and size % VECTOR == 0:
                _write_piece(argument, start, end, factor, W, OUT, TA * TB * TC, True)
            else:
                _write_piece(argument, start, end, factor, W, OUT, TA * TB * TC, False)
            if k != LONG and k != LONG_IN_VECTORS:
                _write_view(problem, argument, tile, sums, scalars, vectors, keep, 0, V, TA, TB, TC)
            _write_view(problem, argument, tile, sums, scalars, vectors, keep, 1, V, TA, TB, TC)
