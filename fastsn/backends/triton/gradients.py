"""Triton kernels of backward: the gradients of all weights of a call at once, in two launches.

1. :func:`inner_products`: parts of ``c = <G, W_sn>``.
2. :func:`write_gradients`: adds them up, and writes ``(scale G - (c - g sigma) S) / sigma``.

backends/reference.py has the mathematics. Sums are made as in ``forward.py``.
"""

import triton
import triton.language as tl

from fastsn.backends.triton.walk import (
    ARGUMENT_COLUMNS,
    CHUNK,
    CHUNKS,
    COL_VECTOR,
    FIRST_CHUNK,
    FIRST_TILE,
    INDEX,
    LONG,
    LONG_IN_VECTORS,
    PROBLEM_COLUMNS,
    RESULT,
    ROW_VECTOR,
    SHAPES,
    SIZE_A,
    SIZE_B,
    SIZE_C,
    SOURCE,
    VECTOR,
    VIEW,
    VIEW_COLUMNS,
    WEIGHT_SN,
    along,
    elements,
    memory,
    place,
    quotient,
    scale_of,
    shape_of,
    total,
)


@triton.jit
def _inner_product(
    argument, start, end, size,
    G: tl.constexpr, A: tl.constexpr, BLOCK: tl.constexpr, IN_VECTORS: tl.constexpr,
):  # fmt: skip
    grad = memory(argument + SOURCE, G, IN_VECTORS)
    weight_sn = memory(argument + WEIGHT_SN, G, IN_VECTORS)
    if IN_VECTORS:
        # so written that the compiler sees it: a hint on an argument does not reach it
        start, size = start // VECTOR * VECTOR, size // VECTOR * VECTOR
    product = tl.full([], 0.0, tl.float64)
    for block in range(0, tl.cdiv(end - start, BLOCK)):
        offsets = start + block * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + offsets, mask=offsets < size, other=0.0).to(A)
        w = tl.load(weight_sn + offsets, mask=offsets < size, other=0.0).to(A)
        product += tl.sum(g * w, 0).to(tl.float64)
    return product


@triton.jit
def inner_products(
    chunk_problems, problems, arguments, products,
    G: tl.constexpr, A: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Parts of ``c = <G, W_sn>``: weights are cut into chunks of whole blocks, in memory order."""
    index = tl.load(chunk_problems + tl.program_id(0)).to(tl.int64)
    problem, argument = problems + index * PROBLEM_COLUMNS, arguments + index * ARGUMENT_COLUMNS
    size = tl.load(problem + SIZE_A) * tl.load(problem + SIZE_B) * tl.load(problem + SIZE_C)
    chunk = tl.load(problem + CHUNK)
    start = (tl.program_id(0) - tl.load(problem + FIRST_CHUNK)) * chunk
    end = tl.minimum(start + chunk, size)
    if ALIGNED and size % VECTOR == 0:
        product = _inner_product(argument, start, end, size, G, A, BLOCK, True)
    else:
        product = _inner_product(argument, start, end, size, G, A, BLOCK, False)
    tl.store(products + tl.program_id(0), product)


@triton.jit
def _direction(
    problem, tile, vectors, view_stats, factor,
    AXIS: tl.constexpr, TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """A tile of ``factor alpha u v^T``: one view's part of ``factor S``."""
    result = tl.zeros([TA, TB, TC], vectors.dtype.element_ty)
    view = problem + VIEW + AXIS * VIEW_COLUMNS
    index = tl.load(view + INDEX)
    if index >= 0:
        rows, in_rows, _, _, _, cols, in_cols, _, _, _ = place(problem, tile, AXIS, TA, TB, TC)
        u = tl.load(vectors + tl.load(view + ROW_VECTOR) + rows, mask=in_rows, other=0.0)
        v = tl.load(vectors + tl.load(view + COL_VECTOR) + cols, mask=in_cols, other=0.0)
        alpha = factor * tl.load(view_stats + 2 * index + 1).to(tl.float64)
        result += along(u * alpha.to(u.dtype), AXIS) * tl.expand_dims(v, AXIS)
    return result


@triton.jit
def write_gradients(
    tile_problems, problems, arguments, products,
    scales, sigmas, grad_sigmas, vectors, view_stats, grad_scales,
    G: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """``dL/dW = (scale G - (c - g sigma) S) / sigma`` and ``dL/dscale = c / scale``."""
    index = tl.load(tile_problems + tl.program_id(0)).to(tl.int64)
    problem, argument = problems + index * PROBLEM_COLUMNS, arguments + index * ARGUMENT_COLUMNS
    tile = tl.program_id(0) - tl.load(problem + FIRST_TILE)
    shape = shape_of(problem, ALIGNED)
    c = total(products + tl.load(problem + FIRST_CHUNK), tl.load(problem + CHUNKS))
    scale = scale_of(scales, argument, index)
    if tile == 0:
        tl.store(grad_scales + index, quotient(c, scale).to(grad_scales.dtype.element_ty))
    sigma = tl.load(sigmas + index).to(tl.float64)
    pull = c
    if grad_sigmas is not None:
        pull -= tl.load(grad_sigmas + index).to(tl.float64) * sigma
    # 0 where sigma is 0: W_sn is 0 then, whatever W.
    to_grad = quotient(scale, sigma).to(vectors.dtype.element_ty)
    to_direction = quotient(pull, sigma)
    for k in tl.static_range(2 * SHAPES if ALIGNED else SHAPES):
        if shape == k:
            TA: tl.constexpr = TILES[k][0]
            TB: tl.constexpr = TILES[k][1]
            TC: tl.constexpr = TILES[k][2]
            direction = _direction(problem, tile, vectors, view_stats, to_direction, 1, TA, TB, TC)
            if k != LONG and k != LONG_IN_VECTORS:
                direction += _direction(
                    problem, tile, vectors, view_stats, to_direction, 0, TA, TB, TC
                )
            first, offsets, mask = elements(problem, tile, TA, TB, TC, k >= SHAPES)
            source = memory(argument + SOURCE, G, k >= SHAPES) + first
            grad = tl.load(source + offsets, mask=mask, other=0.0).to(direction.dtype)
            result = grad * to_grad - direction
            target = memory(argument + RESULT, OUT, k >= SHAPES) + first
            tl.store(target + offsets, result.to(OUT), mask=mask)
