"""Triton kernels of forward, between multiplying and writing: what the sums of a weight amount to.

The last program of ``forward.multiply_cols`` to finish a weight concludes it; in an evaluation
:func:`evaluate` has a program for each weight.
"""

import triton
import triton.language as tl

from fastsn.backends.triton.walk import (
    ARGUMENT_COLUMNS,
    COL_INVERSE,
    COL_SQUARES,
    COL_TILES,
    EPS,
    FACTOR,
    GIVEN_COL_SQUARES,
    GIVEN_ROW_SQUARES,
    INDEX,
    KEEP,
    PROBLEM_COLUMNS,
    ROW_INVERSE,
    ROW_TILES,
    TILE_SUMS,
    VIEW,
    VIEW_COLUMNS,
    VIEWS,
    divisor,
    number,
    quotient,
    scale_of,
    total,
)


@triton.jit
def _conclude_view(view, argument, scalars, EVALUATE: tl.constexpr):
    """``(sigma, ||u|| ||v||, whether the given vectors stay)`` of one view."""
    sigma = tl.full([], 0.0, tl.float64)
    lengths = sigma
    keep = tl.full([], EVALUATE, tl.int1)
    if tl.load(view + INDEX) >= 0:
        row_tiles, col_tiles = tl.load(view + ROW_TILES), tl.load(view + COL_TILES)
        if EVALUATE:
            lengths = _given_lengths(view, scalars)
            dot = total(scalars + tl.load(view + TILE_SUMS), row_tiles * col_tiles)
            sigma = quotient(dot, lengths)
        else:
            row_length = tl.sqrt(total(scalars + tl.load(view + TILE_SUMS), row_tiles))
            col_length = tl.sqrt(total(scalars + tl.load(view + COL_SQUARES), col_tiles))
            eps = number(argument + EPS)
            row_divisor, col_divisor = divisor(row_length, eps), divisor(col_length, eps)
            u_length = row_length / row_divisor
            sigma = col_length / tl.where(u_length == 0.0, 1.0, u_length)
            lengths = u_length * (col_length / col_divisor)
            # The last iteration tells of all: what follows a length that is 0, infinite or NaN is
            # not usable either.
            usable = (row_length > 0.0) & (row_length < float("inf"))
            usable = usable & (col_length > 0.0) & (col_length < float("inf"))
            keep = usable == 0
            tl.store(scalars + tl.load(view + ROW_INVERSE), 1.0 / row_divisor)
            tl.store(scalars + tl.load(view + COL_INVERSE), 1.0 / col_divisor)
    return sigma, lengths, keep


@triton.jit
def _given_lengths(view, scalars):
    """``||u|| ||v||`` of the given vectors."""
    u_squares = total(scalars + tl.load(view + GIVEN_ROW_SQUARES), tl.load(view + ROW_TILES))
    v_squares = total(scalars + tl.load(view + GIVEN_COL_SQUARES), tl.load(view + COL_TILES))
    return tl.sqrt(u_squares) * tl.sqrt(v_squares)


@triton.jit
def _store_view_stats(view, scalars, view_stats, sigma, lengths, keep, views):
    index = tl.load(view + INDEX)
    if index >= 0:
        if keep:
            lengths = _given_lengths(view, scalars)
        alpha = quotient(1.0 / views, lengths)
        tl.store(view_stats + 2 * index, sigma.to(view_stats.dtype.element_ty))
        tl.store(view_stats + 2 * index + 1, alpha.to(view_stats.dtype.element_ty))


@triton.jit
def conclude(
    index, problem, argument, scalars, scales, sigmas, view_stats, EVALUATE: tl.constexpr
):  # fmt: skip
    """A weight's sigma and its views' statistics; and for :func:`write_weights` what to write."""
    view_a, view_b = problem + VIEW, problem + VIEW + VIEW_COLUMNS
    sigma_a, lengths_a, keep_a = _conclude_view(view_a, argument, scalars, EVALUATE)
    sigma_b, lengths_b, keep_b = _conclude_view(view_b, argument, scalars, EVALUATE)
    views = tl.load(problem + VIEWS).to(tl.float64)
    sigma, keep = (sigma_a + sigma_b) / views, keep_a | keep_b
    _store_view_stats(view_a, scalars, view_stats, sigma_a, lengths_a, keep, views)
    _store_view_stats(view_b, scalars, view_stats, sigma_b, lengths_b, keep, views)
    rounded = sigma.to(sigmas.dtype.element_ty)
    tl.store(sigmas + index, rounded)
    factor = quotient(scale_of(scales, argument, index), tl.where(rounded == 0.0, 0.0, sigma))
    tl.store(scalars + tl.load(problem + FACTOR), factor)
    tl.store(scalars + tl.load(problem + KEEP), keep.to(tl.float64))


@triton.jit
def evaluate(problems, arguments, scalars, scales, sigmas, view_stats):
    """Launch 2 of an evaluation: sigma from the parts of ``u^T M v``, a program for each weight."""
    index = tl.program_id(0).to(tl.int64)
    problem, argument = problems + index * PROBLEM_COLUMNS, arguments + index * ARGUMENT_COLUMNS
    conclude(index, problem, argument, scalars, scales, sigmas, view_stats, True)
