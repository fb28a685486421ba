"""The figures of the checks: what was found, beside the bounds; what breaks one has a red ring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper.theory.sheet import (
    BOUND,
    BREACH,
    PALETTE,
    breaches,
    legend,
    limit,
    sheet,
)
from paper.theory.verdict import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_theorem2", "draw_theorem3", "draw_tsuzuku"]

_MARKERS = ("o", "s", "^", "v", "D", "P")


def values_of(rows: Iterable[Row], name: str) -> list[Any]:
    """The different values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[name] for row in rows))


def spread(position: float, index: int, count: int, width: float) -> float:
    """Shifts points of a group on a linear axis, so that they do not hide each other."""
    return position + (index - (count - 1) / 2) * width


def draw_theorem2(rows: Sequence[Row], path: Path) -> None:
    with sheet(path, "Theorem 2: variance of random entries under SN", (6.2, 5.2)) as (left, right):
        names = values_of(rows, "distribution")
        for index, name in enumerate(names):
            found = [row for row in rows if row["distribution"] == name]
            left.plot(
                [max(row["m"], row["n"]) * 1.06 ** (index - 2) for row in found],
                [row["value"] / row["upper"] for row in found],
                _MARKERS[index], color=PALETTE[index], label=name, alpha=0.75,
            )  # fmt: skip
        limit(left, 1.0, "upper bound")
        wrong = [row for row in rows if row["largest"] > row["upper"] * (1 + 1e-9)]
        breaches(
            left,
            [max(row["m"], row["n"]) for row in wrong],
            [row["largest"] / row["upper"] for row in wrong],
            "breaks the bound",
        )
        left.set(
            xscale="log", ylim=(0, 1.4), xlabel="max(m, n)", ylabel="variance / upper bound",
            title="Var(a / ||A||) over 1 / max(m, n)",
        )  # fmt: skip
        legend(left, loc="upper center", ncols=3)
        known = [row for row in rows if row["constant"] is not None]
        _constants(right, known, lambda row: max(row["m"], row["n"]), "max(m, n)")


def _constants(axes: Axes, rows: Sequence[Row], extent: Callable[[Row], float], label: str) -> None:
    """The constant of a lower bound over the size: it must not fall to zero."""
    for index, family in enumerate(values_of(rows, "family")):
        found = sorted((row for row in rows if row["family"] == family), key=extent)
        axes.errorbar(
            [extent(row) for row in found],
            [row["constant"] for row in found],
            [row["constant"] * row["stderr"] / row["value"] for row in found],
            marker=_MARKERS[index], color=PALETTE[index], capsize=2, linewidth=1.1,
            linestyle="-" if len({extent(row) for row in found}) == len(found) else "",
            label=family,
        )  # fmt: skip
    least = min(row["constant"] for row in rows)
    limit(axes, least, f"smallest: {least:.2f}")
    axes.set(
        xscale="log", xlabel=label, ylabel="L", title="Constant L of the lower bound (Gaussian)"
    )
    axes.set_ylim(0, 1.35 * max(row["constant"] for row in rows))
    legend(axes, loc="upper left")


def draw_theorem3(rows: Sequence[Row], path: Path) -> None:
    title = "Theorem 3: variance of random entries under BSN"
    with sheet(path, title, (5.4, 5.0, 4.4), 4.2) as (left, middle, right):
        stated = [row for row in rows if row["upper"] is not None]
        for index, name in enumerate(values_of(stated, "distribution")):
            found = [row for row in stated if row["distribution"] == name]
            left.plot(
                [_inequality(row) * 1.03 ** (index - 2) for row in found],
                [row["value"] / row["upper"] for row in found],
                _MARKERS[index], color=PALETTE[index], label=name, alpha=0.75,
            )  # fmt: skip
        limit(left, 1.0, "bound as printed")
        largest = max(_inequality(row) for row in stated)
        ratios = [largest ** (step / 60) for step in range(61)]
        left.plot(
            ratios, [2 * (1 + r) / (1 + r**0.5) ** 2 for r in ratios],
            color=BOUND, linewidth=1.4, label="bound that always holds",
        )  # fmt: skip
        wrong = [row for row in stated if row["value"] > row["upper"]]
        breaches(
            left,
            [_inequality(row) / 1.03**2 for row in wrong if row["distribution"] == "Gaussian"],
            [row["value"] / row["upper"] for row in wrong if row["distribution"] == "Gaussian"],
            "breaks it (Gaussian)",
        )
        left.set(
            xscale="log", ylim=(0, 2.3), xlabel="ratio of the channel numbers",
            ylabel="variance / bound as printed", title="Var(w / sigma_w) over the printed bound",
        )  # fmt: skip
        legend(left, loc="upper left", ncols=2)
        if wrong:
            _steps(middle, max(wrong, key=lambda row: row["value"] / row["upper"]))
        known = [row for row in rows if row["constant"] is not None]
        _constants(right, known, _extent, "max(c_in, c_out) k")


def _inequality(row: Row) -> float:
    return max(row["c_out"] / row["c_in"], row["c_in"] / row["c_out"])


def _extent(row: Row) -> float:
    return max(row["c_out"], row["c_in"]) * math.prod(row["kernel"])


def _steps(axes: Axes, row: Row) -> None:
    """The chain of the proof, in numbers: each "=" should join bars of the same height."""
    names = (
        "Var",
        r"$\leq \frac{4}{s}\,\frac{F^2}{\sigma^2 + \sigma'^2}$",
        r"$= \frac{2}{s}\,(\frac{F^2}{\sigma^2} + \frac{F^2}{\sigma'^2})$",
        r"$\leq \frac{2}{s}(c_{out} + c_{in})$",
        "= printed\nbound",
    )
    heights = [row["value"], row["step_1"], row["step_2"], row["step_3"], row["upper"]]
    heights = [height / row["upper"] for height in heights]
    colours = [PALETTE[0], *[PALETTE[4]] * 3, BREACH]
    axes.bar(range(5), heights, color=colours, width=0.65)
    for index, height in enumerate(heights):
        axes.annotate(f"{height:.3g}", (index, height), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(5), names, fontsize=9.5)
    shape = (row["c_out"], row["c_in"], *row["kernel"])
    axes.set(
        yscale="log", ylim=(0.5, 3 * max(heights)), ylabel="over the printed bound",
        title=f"Appendix G in numbers, kernel {shape}",
    )  # fmt: skip


def draw_tsuzuku(rows: Sequence[Row], path: Path) -> None:
    title = "Corollary 1 of Tsuzuku et al.: norm of a convolution and of its reshaped kernel"
    with sheet(path, title, (6.0, 5.4), 4.4) as (left, right):
        alphas = [row["alpha"] for row in rows]
        ends = [min(alphas), max(alphas)]
        for axes, name in ((left, "alpha"), (right, "input_size")):
            for index, (full, label) in enumerate(
                ((True, "a position reads a whole patch"), (False, "none does, for padding"))
            ):
                found = [row for row in rows if row["full_patch"] is full]
                axes.plot(
                    [row[name] * 1.03 ** (2 * index - 1) for row in found],
                    [row["ratio"] for row in found],
                    _MARKERS[index], color=PALETTE[index], alpha=0.45, label=label,
                    markeredgewidth=0,
                )  # fmt: skip
            limit(axes, 1.0, "lower bound: 1")
            axes.set(xscale="log", yscale="log", ylabel="||w~|| / ||w^||")
        left.plot(ends, ends, color=BOUND, linewidth=1.4, label="upper bound: alpha")
        worst = min(rows, key=lambda row: row["ratio"])
        if worst["ratio"] < 1:
            breaches(left, [worst["alpha"] * 1.03], [worst["ratio"]], "worst case")
            breaches(right, [worst["input_size"] * 1.03], [worst["ratio"]], "_")
        counts = sorted(set(alphas))
        left.set_xticks(counts, [f"{alpha:.3g}" for alpha in counts])
        left.minorticks_off()
        left.set(xlabel="alpha", title="Ratio of the norms, and its bounds")
        legend(left, loc="lower right", fontsize=7.5)
        sizes = sorted(set(values_of(rows, "input_size")))
        right.set_xticks(sizes, [str(n) for n in sizes])
        right.minorticks_off()
        right.set(xlabel="input size", title="It fails where the input is small")
