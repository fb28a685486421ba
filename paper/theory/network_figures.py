"""The figures of the checks on networks: Propositions 1 to 3 and Theorem 1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from paper.theory.figures import spread, values_of
from paper.theory.sheet import BREACH, PALETTE, breaches, legend, limit, sheet
from paper.theory.verdict import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_proposition1", "draw_proposition2", "draw_proposition3", "draw_theorem1"]

#: On logarithmic axes, what is zero or smaller.
_FLOOR = 1e-17


def _by_depth(axes: Axes, rows: Sequence[Row], heights: Sequence[float]) -> None:
    """Points over the depth, a colour per kind of network."""
    depths = sorted(set(values_of(rows, "depth")))
    kinds = values_of(rows, "kind")
    for index, kind in enumerate(kinds):
        found = [(row, y) for row, y in zip(rows, heights, strict=True) if row["kind"] == kind]
        axes.plot(
            [spread(depths.index(row["depth"]), index, len(kinds), 0.2) for row, _ in found],
            [y for _, y in found],
            "o", color=PALETTE[index], alpha=0.35, markeredgewidth=0, label=kind,
        )  # fmt: skip
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set_xlabel("layers")


def draw_proposition1(rows: Sequence[Row], path: Path) -> None:
    title = "Proposition 1: gradients by the normalized weights"
    with sheet(path, title, (5.6, 6.4), 4.3) as (left, right):
        dense = [row for row in rows if row["claim"] == "dense" and row["value"] > 0]
        _by_depth(left, dense, [row["value"] / row["upper"] for row in dense])
        limit(left, 1.0, "bound")
        left.set(
            yscale="log", ylabel="gradient norm / bound", title="Fully connected layers",
        )  # fmt: skip
        legend(left, loc="lower left")
        conv = [row for row in rows if row["claim"] == "convolutional"]
        layouts, kinds = values_of(conv, "layout"), values_of(conv, "kind")
        for index, kind in enumerate(kinds):
            found = [row for row in conv if row["kind"] == kind]
            for bound, side, marker in (("upper", -1, "o"), ("with_alpha", 1, "^")):
                right.plot(
                    [
                        spread(layouts.index(row["layout"]) + 0.21 * side, index, len(kinds), 0.1)
                        for row in found
                    ],
                    [row["value"] / row[bound] for row in found],
                    marker, color=PALETTE[index], alpha=0.4, markeredgewidth=0,
                    label=f"{kind}, {'as printed' if side < 0 else 'times alpha'}",
                )  # fmt: skip
        limit(right, 1.0, "bound")
        right.axhspan(1.0, 20.0, color=BREACH, alpha=0.06, linewidth=0)
        wrong = max(conv, key=lambda row: row["value"] / row["upper"])
        if wrong["value"] > wrong["upper"] * (1 + 1e-9):
            x = spread(
                layouts.index(wrong["layout"]) - 0.21, kinds.index(wrong["kind"]), len(kinds), 0.1
            )
            breaches(right, [x], [wrong["value"] / wrong["upper"]], "worst case as printed")
        right.set_xticks(
            range(len(layouts)), [name.replace(", ", "\n") for name in layouts], fontsize=7.5
        )
        right.set(
            yscale="log", ylabel="gradient norm / bound",
            title="Convolutions: circles, the printed bound; triangles, times alpha",
        )  # fmt: skip
        right.set_ylim(right.get_ylim()[0] / 8, 20.0)
        legend(right, loc="lower left", ncols=2, fontsize=7)


def draw_proposition2(rows: Sequence[Row], path: Path) -> None:
    title = "Proposition 2: scales of product 1 do not change D"
    with sheet(path, title, (6.0, 4.6)) as (left, right):
        within = [row for row in rows if row["claim"] == "within"]
        spreads = sorted(set(values_of(within, "spread")))
        orders = sorted(set(values_of(within, "order")))
        for order in orders:
            found = [row for row in within if row["order"] == order]
            left.plot(
                [spread(spreads.index(row["spread"]), order, len(orders), 0.2) for row in found],
                [max(row["value"], _FLOOR) for row in found],
                "o", color=PALETTE[order], alpha=0.35, markeredgewidth=0,
                label=("D(x)", "dD / dx", "d^2 D / dx^2")[order],
            )  # fmt: skip
        limit(left, within[0]["upper"], "allowed for rounding")
        left.axhline(2**-52, color="#777777", linewidth=1, linestyle=":", label="2^-52")
        left.set_xticks(range(len(spreads)), [f"{value:g}" for value in spreads])
        left.set(
            yscale="log", xlabel="standard deviation of log c", ylabel="relative difference",
            title="Within its conditions", ylim=(_FLOOR / 2, 10),
        )  # fmt: skip
        legend(left, loc="upper left", ncols=2)
        broken = [row for row in rows if row["claim"] != "within"]
        claims = values_of(broken, "claim")
        for order in sorted(set(values_of(broken, "order"))):
            found = [row for row in broken if row["order"] == order]
            right.plot(
                [spread(claims.index(row["claim"]), order, 2, 0.25) for row in found],
                [max(row["value"], _FLOOR) for row in found],
                "o", color=PALETTE[order],
            )  # fmt: skip
        limit(right, rows[0]["upper"], "allowed for rounding")
        right.set_xticks(range(len(claims)), [claim.replace(" ", "\n") for claim in claims])
        right.set(
            yscale="log", ylim=(_FLOOR / 2, 10), xlim=(-0.6, len(claims) - 0.4),
            title="One condition broken",
        )  # fmt: skip


def draw_proposition3(rows: Sequence[Row], path: Path) -> None:
    title = "Proposition 3 and corollary 1 of appendix D: Hessians by the normalized weights"
    with sheet(path, title, (6.0, 5.4), 4.3) as (left, right):
        bent = [row for row in rows if row["output"] == "sigmoid" and row["layer"] is not None]
        bent = [row for row in bent if row["value"] > 0]
        _by_depth(left, bent, [row["value"] for row in bent])
        limit(left, 1 / (6 * 3**0.5), "bound: 1 / (6 sqrt(3)) = 0.0962")
        left.axhline(0.1, color=BREACH, linewidth=1, linestyle=":", label="corollary 1: 0.1")
        left.set(
            yscale="log", ylabel="norm of the Hessian / |x|^2",
            title="Sigmoid output, by one layer's weights",
        )  # fmt: skip
        left.set_ylim(left.get_ylim()[0] / 300, 0.5)
        legend(left, loc="lower left")
        linear = [row for row in rows if row["output"] == "identity"]
        depths = sorted(set(values_of(linear, "depth")))
        for index, (whole, label) in enumerate(
            ((False, "one layer's weights"), (True, "all weights"))
        ):
            found = [row for row in linear if (row["layer"] is None) is whole]
            right.plot(
                [spread(depths.index(row["depth"]), index, 2, 0.25) for row in found],
                [row["value"] for row in found],
                "o", color=PALETTE[index], alpha=0.35, markeredgewidth=0, label=label,
            )  # fmt: skip
        limit(right, 0.0, "corollary 1: 0")
        worst = max(linear, key=lambda row: row["value"])
        if worst["value"] > worst["corollary"]:
            x = spread(depths.index(worst["depth"]), 1, 2, 0.25)
            breaches(right, [x], [worst["value"]], "worst case of H_theta = 0, as printed")
        right.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        right.set(
            xlabel="layers", ylabel="norm of the Hessian / |x|^2",
            title="Identity output, by one layer's and by all weights",
        )  # fmt: skip
        legend(right, loc="upper left")


def draw_theorem1(rows: Sequence[Row], path: Path) -> None:
    title = "Theorem 1: the gradient norm over rescalings c of product 1"
    with sheet(path, title, (4.8, 4.8, 4.4), 4.2) as (left, middle, right):
        inside = [row for row in rows if row["claim"] == "in the set"]
        _curves(left, inside, "at_equal")
        limit(left, 1.0, "at equal spectral norms")
        left.plot([0], [1], "D", color=BREACH, markersize=6, zorder=5, label="the minimum")
        left.set(ylabel="gradient norm / at equal norms", title="Eq. (2) holds: random directions")
        outside = [row for row in rows if row["claim"] == "any network" and row["direction"] == 0]
        _curves(middle, outside, "minimum")
        limit(middle, 1.0, "sqrt(L) (prod |dD/dw_i|)^(1/L)")
        least = [row for row in outside if row["t"] == row["t_minimum"]]
        middle.plot(
            [row["t"] for row in least], [row["value"] / row["minimum"] for row in least],
            "D", color=BREACH, markersize=4, zorder=5, label="the minima",
        )  # fmt: skip
        middle.set(
            ylabel="gradient norm / its minimum",
            title="Any network: towards equal gradient norms",
        )
        for axes in (left, middle):
            axes.axvline(0, color="#777777", linewidth=0.8)
            axes.set(yscale="log", xlabel="t: c = c_equal exp(t d)")
            legend(axes, loc="upper center", fontsize=7)
        for index, kind in enumerate(values_of(least, "kind")):
            found = [row for row in least if row["kind"] == kind]
            right.plot(
                [row["eq2_equal"] for row in found],
                [row["at_equal"] / row["minimum"] for row in found],
                "o", color=PALETTE[index], alpha=0.7, label=kind,
            )  # fmt: skip
        limit(right, 1.0, "equal norms are the minimum")
        right.set(
            xlabel="largest / smallest spectral norm at the minimum",
            ylabel="norm at equal spectral norms / minimum", title="How far from it: any network",
        )  # fmt: skip
        legend(right, loc="lower right", fontsize=7.5)


def _curves(axes: Axes, rows: Sequence[Row], reference: str) -> None:
    """A curve per network and direction, a colour per kind."""
    kinds = values_of(rows, "kind")
    labelled = set()
    names = ("kind", "activation", "depth", "width", "draw", "direction")
    for key, found in groupby(rows, key=lambda row: tuple(row[name] for name in names)):
        points = [(row["t"], row["value"] / row[reference]) for row in found]
        axes.plot(
            *zip(*points, strict=True), color=PALETTE[kinds.index(key[0])], alpha=0.3,
            linewidth=0.9, label="_" if key[0] in labelled else key[0],
        )  # fmt: skip
        labelled.add(key[0])
