"""Corollary 1 of Tsuzuku et al. 2018: the norm of a convolution by that of its reshaped kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from fastsn.analysis import conv_norm, spectral_norm_exact, tsuzuku_alpha, tsuzuku_bounds
from fastsn.conv_map import ConvMap
from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, of, summary
from paper.theory.networks import signed

#: Kernel sizes, strides, paddings, padding modes, input sizes, channels ``(c_out, c_in)``.
_GRID: dict[str, tuple[tuple[Any, ...], ...]] = {
    "full": (
        (1, 2, 3, 4, 5, 7), (1, 2, 3), (0, 1, 2, 3), ("zeros", "circular"),
        (1, 2, 3, 4, 7, 8, 16), ((1, 1), (4, 3), (8, 8)),
    ),
    "small": (
        (1, 3, 4, 5), (1, 2), (0, 1, 2), ("zeros", "circular"), (1, 2, 3, 4, 8),
        ((1, 1), (4, 3)),
    ),
    "smoke": ((3, 4), (1, 2), (0, 1), ("zeros",), (1, 2, 6), ((3, 2),)),
}  # fmt: skip
#: Entries of the kernels: normal, their absolute values, or ones; the last attain the upper bound.
_KERNELS = ("Gaussian", "positive", "constant")


def _rows(size: str, seed: int) -> list[Row]:
    """A row per kernel and geometry.

    ``value`` is the norm of the convolution, ``reshaped`` that of the reshaped kernel, ``ratio``
    the first over the second, ``alpha`` its bound; ``lower`` and ``upper`` are
    :func:`fastsn.analysis.tsuzuku_bounds`; ``full_patch`` is whether some output position reads a
    whole patch of the input, without padding.
    """
    rows = []
    for kernel, stride, padding, mode, n, channels in _geometries(size):
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "padding_mode": mode}
        shape = (*channels, kernel, kernel)
        for kind in _KERNELS:
            case: Row = {
                "kind": kind, "kernel": kernel, "stride": stride, "padding": padding,
                "padding_mode": mode, "input_size": n, "c_out": channels[0], "c_in": channels[1],
            }  # fmt: skip
            weight = signed(kind, shape, generator(seed, "tsuzuku", *case.values()))
            value = conv_norm(weight, n, **geometry)
            reshaped = spectral_norm_exact(weight)
            lower, upper = tsuzuku_bounds(weight, n, **geometry)
            rows.append(
                {
                    **case,
                    "value": value,
                    "reshaped": reshaped,
                    "ratio": value / reshaped,
                    "alpha": tsuzuku_alpha(shape, n, **geometry),
                    "lower": lower,
                    "upper": upper,
                    "full_patch": lower > 0,
                }
            )
    return rows


def _geometries(size: str) -> Iterator[tuple[Any, ...]]:
    """Those with an output, of which some reads the input."""
    for case in product(*_GRID[check_size(size)]):
        kernel, stride, padding, mode, n, channels = case
        if (mode == "circular" and not 0 < padding <= n) or padding >= kernel:
            continue
        conv = ConvMap.of((*channels, kernel, kernel), stride=stride, padding=padding)
        if n + 2 * padding >= kernel and min(conv.output_shape((channels[1], n, n))) > 0:
            yield case


def _verdict(rows: Sequence[Row]) -> Verdict:
    return summary(
        "Corollary 1 of Tsuzuku et al.: ||w^|| <= ||w~|| <= alpha ||w^||",
        [
            judge(
                "||w~|| <= alpha ||w^||, alpha by the kernel, the input size and the stride alone",
                rows,
                holds="Attained by constant kernels with circular padding, for one.",
            ),
            judge(
                "||w^|| <= ||w~||, without conditions",
                rows,
                "reshaped",
                "value",
                fails="Where every output position reads some padding (or, if it is circular, an "
                "element twice), as a padded 3x3 kernel on a 1x1 or 2x2 input, parts of the kernel "
                "never act. SN_Conv then divides by less than SN, against what section 4 "
                "concludes. The discriminators of Tables 3 and 5 have no such layer.",
            ),
            judge(
                "||w^|| <= ||w~||, if some output position reads a whole patch of the input",
                of(rows, full_patch=True),
                "lower",
                "value",
                holds="On an input that is that patch alone the convolution is at least w^.",
                printed=False,
            ),
        ],
    )


def _panels(rows: Sequence[Row]) -> list[Panel]:
    def full(row: Row) -> str:
        return "a position reads a whole patch" if row["full_patch"] else "none does, for padding"

    ends = sorted({row["alpha"] for row in rows})
    return [
        Panel(
            "Ratio of the norms, and its upper bound", "alpha", "||w~|| / ||w^||", rows,
            lambda row: row["alpha"], lambda row: row["ratio"], full, None, log="xy",
            guide=("upper bound: alpha", [ends[0], ends[-1]], [ends[0], ends[-1]]),
        ),
        Panel(
            "The lower bound fails where the input is small", "input size", "||w^|| / ||w~||", rows,
            lambda row: row["input_size"], lambda row: 1 / row["ratio"], full,
            (1.0, "lower bound of ||w~||"), log="xy",
        ),
    ]  # fmt: skip


CHECK = Check(
    "Norm of a convolution and of its reshaped kernel",
    "Corollary 1 of Tsuzuku et al. 2018, section 4",
    _rows,
    _panels,
    _verdict,
)
