"""What all Triton kernels share: the tables they read, and how a program finds its tile.

A weight is walked as a dense box with axes a, b, c (plan.py), chosen so that the rows
of an unfolding run along a or along b and its columns along the other two axes, in torch's order:
column ``b * size_c + c`` where the rows run along a, ``a * size_c + c`` where they run along b. BSN
has a view along a and one along b, SN has one of them. Boxes are cut into tiles ``[TA, TB, TC]``
with a program each. A view's rows lie in row tiles and its columns in column tiles, and every tile
of the box is one row tile of each view crossed with one of its column tiles.

Addresses and sizes are int64. Vectors that a program reads or writes have an index per row,
``[T]``, or per column, ``[T, TC]``.
"""

import triton
import triton.language as tl

# Tile shapes, by what is contiguous: long runs along c (one view only, its rows along b); short
# runs along c, such as a convolution's kernel; runs along b.
LONG, SHORT, ACROSS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SHAPES = tl.constexpr(3)

# A box may be walked in vectors of 16 bytes where runs and strides are multiples of this many
# elements, which are 16 bytes or more in every dtype. Its tiles have the same shape, and its number
# is SHAPES higher.
VECTOR = tl.constexpr(8)
LONG_IN_VECTORS = tl.constexpr(3)

# Columns of the table of problems: a row per weight, int64. It depends on shapes only.
SHAPE = tl.constexpr(0)
SIZE_A, SIZE_B, SIZE_C = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
STRIDE_A, STRIDE_B, STRIDE_C = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
FIRST_TILE = tl.constexpr(7)  # among the tiles of all weights
FIRST_CHUNK, CHUNKS, CHUNK = tl.constexpr(8), tl.constexpr(9), tl.constexpr(10)  # inner_products
VIEWS = tl.constexpr(11)  # 1 or 2
FACTOR, KEEP = tl.constexpr(12), tl.constexpr(13)  # in `scalars`: W_sn / W; given vectors stay
DONE, ALL_DONE = tl.constexpr(14), tl.constexpr(15)  # in `counters`: added column tiles; how many
# A view's columns follow: those of the view along a, then those of the view along b.
VIEW, VIEW_COLUMNS = tl.constexpr(16), tl.constexpr(16)
INDEX = tl.constexpr(0)  # among the views of all weights; -1 where there is no such view
ROW_VECTOR, COL_VECTOR = tl.constexpr(1), tl.constexpr(2)  # places in `vectors`
ROW_PARTS, ROW_SUMS = tl.constexpr(3), tl.constexpr(4)  # in `sums`: s by column tile, and all of s
COL_PARTS, COL_SUMS = tl.constexpr(5), tl.constexpr(6)  # in `sums`: t by row tile, and all of t
ROW_TILES, COL_TILES = tl.constexpr(7), tl.constexpr(8)  # their numbers
TILE_SUMS = tl.constexpr(9)  # in `scalars`: ||s||^2 or u^T M v, by column tile and row tile
COL_SQUARES = tl.constexpr(10)  # in `scalars`: ||t||^2 by column tile
GIVEN_ROW_SQUARES, GIVEN_COL_SQUARES = tl.constexpr(11), tl.constexpr(12)  # of the given vectors
ROW_INVERSE, COL_INVERSE = tl.constexpr(13), tl.constexpr(14)  # in `scalars`: u = _ s, v = _ t
COUNTERS = tl.constexpr(15)  # in `counters`: tiles that are done, by column tile
PROBLEM_COLUMNS = tl.constexpr(48)

# Columns of the table of arguments: addresses, and float64 numbers as their bits.
SOURCE, RESULT = tl.constexpr(0), tl.constexpr(1)  # W and W_sn; in backward dL/dW_sn and dL/dW
WEIGHT_SN = tl.constexpr(2)  # in backward only
SCALE, EPS = tl.constexpr(3), tl.constexpr(4)
GIVEN = tl.constexpr(5)  # given vectors: rows' and columns' of the view along a, then along b
ARGUMENT_COLUMNS = tl.constexpr(9)

_LANES = tl.constexpr(256)  # scalars that are added at a time
_THREADS = tl.constexpr(512)  # of a program on AMD: 8 waves of 64 (launch.py)


@triton.jit
def number(pointer):
    """A float64 of the table of arguments."""
    return tl.load(pointer).to(tl.float64, bitcast=True)


@triton.jit
def scale_of(scales, argument, index):
    """The weight's scale: from the tensor, or where that is None from the table."""
    if scales is None:  # noqa: SIM108
        scale = number(argument + SCALE)
    else:
        scale = tl.load(scales + index).to(tl.float64)
    return scale


@triton.jit
def total(pointer, count):
    """Sum of ``count`` float64 numbers, which other programs of the launch may have written.

    They are read past the first-level cache (".cg"), where there may be what was there before.
    """
    lanes = tl.arange(0, _LANES)
    sums = tl.zeros([_LANES], tl.float64)
    for first in range(0, count, _LANES):
        mask = first + lanes < count
        sums += tl.load(pointer + first + lanes, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(sums, 0)


@triton.jit
def publish(HIP: tl.constexpr):
    """Puts all that this program's threads have stored before what one of them counts after.

    NVIDIA's barrier orders stores, AMD's does not wait for those that are still on their way.
    """
    if HIP:
        lanes = tl.arange(0, _THREADS)  # so that every wave waits
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1", "=v,v", [lanes],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def square_sum(x):
    """Sum of squares in float64: squares leave float32's range long before lengths do."""
    wide = x.to(tl.float64)
    return tl.sum(wide * wide)


@triton.jit
def divisor(length, eps):
    """``max(length, eps)``, and 1 where that is 0."""
    clamped = tl.maximum(length, eps)
    return tl.where(clamped == 0.0, 1.0, clamped)


@triton.jit
def quotient(x, y):
    """``x / y``, and 0 where ``y`` is 0."""
    zero = y == 0.0
    return tl.where(zero, 0.0, x / tl.where(zero, 1.0, y))


@triton.jit
def grid_of(problem, tile, TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr):
    """A tile's number along each axis, and how many there are."""
    tiles_a = tl.cdiv(tl.load(problem + SIZE_A), TA)
    tiles_b = tl.cdiv(tl.load(problem + SIZE_B), TB)
    tiles_c = tl.cdiv(tl.load(problem + SIZE_C), TC)
    tile_a, tile_b, tile_c = tile // (tiles_b * tiles_c), tile // tiles_c % tiles_b, tile % tiles_c
    return tile_a, tile_b, tile_c, tiles_a, tiles_b, tiles_c


@triton.jit
def shape_of(problem, ALIGNED: tl.constexpr):
    """The shape of a weight's tiles; where not all memory is aligned, without regard to vectors."""
    shape = tl.load(problem + SHAPE)
    if not ALIGNED:
        shape = shape % SHAPES
    return shape


@triton.jit
def memory(argument, T: tl.constexpr, IN_VECTORS: tl.constexpr):
    """Where the tensor begins whose address the table of arguments has."""
    pointer = tl.load(argument).to(tl.pointer_type(T))
    if IN_VECTORS:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def elements(
    problem, tile, TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr, IN_VECTORS: tl.constexpr
):  # fmt: skip
    """Where a tile begins in memory, its elements' offsets from there, and which of them exist."""
    tile_a, tile_b, tile_c, _, _, _ = grid_of(problem, tile, TA, TB, TC)
    first_a, first_b, first_c = tile_a * TA, tile_b * TB, tile_c * TC
    stride_a, stride_b = tl.load(problem + STRIDE_A), tl.load(problem + STRIDE_B)
    stride_c = tl.load(problem + STRIDE_C)
    size_a, size_b = tl.load(problem + SIZE_A), tl.load(problem + SIZE_B)
    size_c = tl.load(problem + SIZE_C)
    if IN_VECTORS:
        stride_a = tl.multiple_of(stride_a, VECTOR)
        if TC > 1:
            stride_b = tl.multiple_of(stride_b, VECTOR)
            size_c = tl.multiple_of(size_c, VECTOR)
        else:
            size_b = tl.multiple_of(size_b, VECTOR)
    a = tl.arange(0, TA)[:, None, None]
    b = tl.arange(0, TB)[None, :, None]
    c = tl.arange(0, TC)[None, None, :]
    # The stride that is 1 is left out, for the compiler lays threads along runs it knows of.
    if TC > 1:
        offsets = a * stride_a.to(tl.int32) + b * stride_b.to(tl.int32) + c
    else:
        offsets = a * stride_a.to(tl.int32) + b + c * stride_c.to(tl.int32)
    left_a = tl.minimum(size_a - first_a, TA).to(tl.int32)
    left_b = tl.minimum(size_b - first_b, TB).to(tl.int32)
    left_c = tl.minimum(size_c - first_c, TC).to(tl.int32)
    first = first_a * stride_a + first_b * stride_b + first_c * stride_c
    if IN_VECTORS:
        first = tl.multiple_of(first, VECTOR)
    return first, offsets, (a < left_a) & (b < left_b) & (c < left_c)


@triton.jit
def place(
    problem, tile, AXIS: tl.constexpr, TA: tl.constexpr, TB: tl.constexpr, TC: tl.constexpr
):  # fmt: skip
    """A tile as the view with rows along ``AXIS`` sees it.

    Returns for the rows: their indices, which of them exist, how many the weight has, the row tile
    and the number of row tiles; then the same for the columns.
    """
    size_a, size_b = tl.load(problem + SIZE_A), tl.load(problem + SIZE_B)
    size_c = tl.load(problem + SIZE_C)
    tile_a, tile_b, tile_c, tiles_a, tiles_b, tiles_c = grid_of(problem, tile, TA, TB, TC)
    a = (tile_a * TA).to(tl.int32) + tl.arange(0, TA)
    b = (tile_b * TB).to(tl.int32) + tl.arange(0, TB)
    c = ((tile_c * TC).to(tl.int32) + tl.arange(0, TC))[None, :]
    if AXIS == 0:
        rows, row_count, row_tile, row_tiles = a, size_a, tile_a, tiles_a
        other, others, other_tile, other_tiles = b[:, None], size_b, tile_b, tiles_b
    else:
        rows, row_count, row_tile, row_tiles = b, size_b, tile_b, tiles_b
        other, others, other_tile, other_tiles = a[:, None], size_a, tile_a, tiles_a
    cols = other * size_c.to(tl.int32) + c
    in_cols = (other < others.to(tl.int32)) & (c < size_c.to(tl.int32))
    col_count, col_tiles = others * size_c, other_tiles * tiles_c
    col_tile = other_tile * tiles_c + tile_c
    return (
        rows, rows < row_count.to(tl.int32), row_count, row_tile, row_tiles,
        cols, in_cols, col_count, col_tile, col_tiles,
    )  # fmt: skip


@triton.jit
def along(x, AXIS: tl.constexpr):
    """A number per row ``[T]``, to be multiplied with a tile."""
    result = x[:, None, None] if AXIS == 0 else x[None, :, None]
    return result
