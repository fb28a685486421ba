"""Theorem 1: the gradient norm of networks whose weights are rescaled with product 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.analysis import spectral_norm_exact
from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, of, summary
from paper.theory.networks import (
    ACTIVATIONS,
    evaluate,
    gradient_norms,
    random_net,
)

#: Depths, widths, draws, directions and numbers of steps to each side.
_DIRECTIONS = {
    "full": ((2, 4, 8), (16, 64), 2, 3, 8),
    "small": ((2, 4, 8), (16,), 2, 3, 8),
    "smoke": ((2, 4), (8,), 1, 2, 2),
}
#: The relative error that rounding to float64 may make.
_ROUNDING = 1e-12
#: The farthest that Theorem 1 is looked at: scales of about ``exp(+-this)``.
_FARTHEST = 2.0


def _rows(size: str, seed: int) -> list[Row]:
    """A row per network, direction and distance ``t`` of the rescaling ``c = c_equal exp(t d)``.

    ``value`` is the norm of the gradient of ``D(x)`` by all weights, by differentiation of the
    rescaled network; ``predicted`` the same by the rule that ``dD/dw_i`` scales as ``1 / c_i``.
    ``at_equal`` is the norm where all spectral norms are equal, ``minimum`` the least of all
    rescalings, ``sqrt(L) (prod |dD/dw_i|)^(1/L)``. ``eq2`` is the largest over the smallest
    ``|dD/dw_i| ||w_i||``, 1 in the set of Eq. (2), and ``eq2_equal`` that at equal spectral norms:
    it is also how unequal the spectral norms are at the minimum. ``claim`` is ``in the set`` or
    ``any network``. The first direction of ``any network`` leads to the minimum, at ``t_minimum``.
    """
    depths, widths, draws, directions, steps = _DIRECTIONS[check_size(size)]
    makers: dict[str, Callable[..., tuple[list[Tensor], Tensor]]] = {
        "aligned": lambda slope, *rest: random_net("aligned", *rest),
        "raised norms": lambda slope, *rest: _raised(*rest),
        "Gaussian": lambda slope, *rest: _positive("Gaussian", slope, *rest),
        "orthogonal": lambda slope, *rest: _positive("orthogonal", slope, *rest),
    }
    rows = []
    for kind, depth, width, index in product(makers, depths, widths, range(draws)):
        for activation, slope in ACTIVATIONS.items():
            if kind == "raised norms" and slope:
                continue  # it needs units that are off
            case: Row = {
                "claim": "in the set" if kind in ("aligned", "raised norms") else "any network",
                "kind": kind, "activation": activation, "depth": depth, "width": width,
                "draw": index,
            }  # fmt: skip
            random = generator(seed, "theorem1", *case.values())
            weights, x = makers[kind](slope, [width] * depth + [1], random)
            rows += _rescalings(case, weights, x, slope, random, directions, steps)
    return rows


def _rescalings(
    case: Row,
    weights: list[Tensor],
    x: Tensor,
    slope: float,
    random: torch.Generator,
    directions: int,
    steps: int,
) -> list[Row]:
    depth = len(weights)
    sigmas = [spectral_norm_exact(weight) for weight in weights]
    mean = math.prod(sigmas) ** (1 / depth)
    weights = [mean / sigma * weight for sigma, weight in zip(sigmas, weights, strict=True)]
    norms = gradient_norms(weights, x, slope)
    at_equal = math.hypot(*norms)
    case = {
        **case,
        "at_equal": at_equal,
        "minimum": math.sqrt(depth) * math.prod(norms) ** (1 / depth),
        "eq2_equal": max(norms) / min(norms),
    }
    logs = torch.tensor(norms, dtype=torch.float64).log()
    rows = []
    for direction in range(directions):
        towards = direction == 0 and case["claim"] == "any network"
        d = logs if towards else torch.randn(depth, dtype=torch.float64, generator=random)
        d = d - d.mean()
        rms = float(d.square().mean().sqrt())
        d = d / rms
        ts = [_FARTHEST * step / steps for step in range(-steps, steps + 1)]
        for t in sorted({*ts, rms} if towards else ts):
            scales = torch.exp(t * d)
            scaled = [c * weight for c, weight in zip(scales, weights, strict=True)]
            found = gradient_norms(scaled, x, slope)
            products = [n * spectral_norm_exact(w) for n, w in zip(found, scaled, strict=True)]
            predicted = math.hypot(*(n / float(c) for n, c in zip(norms, scales, strict=True)))
            value = math.hypot(*found)
            rows.append(
                {
                    **case,
                    "direction": direction,
                    "t": t,
                    "t_minimum": rms if towards else None,
                    "value": value,
                    "predicted": predicted,
                    "rule_error": abs(value / predicted - 1),
                    "eq2": max(products) / min(products),
                    "rounding": _ROUNDING,
                }
            )
    return rows


def _positive(
    kind: str, slope: float, sizes: Sequence[int], random: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """A network with ``D(x) > 0``, where a last activation ReLU or leaky ReLU is the identity."""
    while True:  # all units of a narrow layer may be off
        weights, x = random_net(kind, sizes, random)
        score = float(evaluate(weights, x, slope, "identity"))
        if score:
            return [*weights[:-1], math.copysign(1.0, score) * weights[-1]], x


def _raised(sizes: Sequence[int], random: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """A random ReLU network for which Eq. (2) holds at ``x``.

    The spectral norm of each layer is raised, in directions that neither the activations nor the
    gradients have, until all ``|dD/dw_i| ||w_i||`` are equal. The last layer, of one row, is raised
    first, at a unit that is off.
    """
    while True:
        weights, x = _positive("Gaussian", 0.0, sizes, random)
        inputs, outputs = [x], []
        for weight in weights:
            outputs.append((weight @ inputs[-1]).requires_grad_(False))
            inputs.append(F.relu(outputs[-1]))
        off = (outputs[-2] <= 0).nonzero().flatten()
        if len(off):
            break
    norms = gradient_norms(weights, x, 0.0)
    target = 1.2 * max(n * spectral_norm_exact(w) for n, w in zip(norms, weights, strict=True))
    last = weights[-1].clone()
    last[0, off[0]] = 0.0
    last[0, off[0]] = math.sqrt((target / norms[-1]) ** 2 - float(last.square().sum()))
    raised = []
    back = weights[-1].flatten()
    for index in range(len(weights) - 2, -1, -1):
        back = back * (outputs[index] > 0)
        raised.append(_raise(weights[index], target / norms[index], back, inputs[index], random))
        back = weights[index].t() @ back
    return [*reversed(raised), last], x


def _raise(
    weight: Tensor, norm: float, left: Tensor, right: Tensor, random: torch.Generator
) -> Tensor:
    """``weight`` plus a matrix that maps ``right`` to 0, and whose transpose maps ``left`` to 0."""
    sides = []
    for vector in (left, right):
        free = torch.randn(len(vector), dtype=torch.float64, generator=random)
        unit = F.normalize(vector, dim=0)
        for _ in range(2):  # the second time for what rounding left
            free = F.normalize(free - (free @ unit) * unit, dim=0)
        sides.append(free)
    added = torch.outer(*sides)
    low, high = 0.0, 2 * norm
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if spectral_norm_exact(weight + middle * added) < norm else (low, middle)
        )
    return weight + high * added


def _verdict(rows: Sequence[Row]) -> Verdict:
    inside, outside = of(rows, claim="in the set"), of(rows, claim="any network")
    changes = [
        {**row, "change": abs(row["eq2"] / row["eq2_equal"] - 1), "rounding": 1e-9} for row in rows
    ]
    unequal = max(row["eq2_equal"] for row in outside)
    return summary(
        "Theorem 1: equal spectral norms minimize the gradient norm in the set of Eq. (2)",
        [
            judge(
                "equal spectral norms minimize the gradient norm, if Eq. (2) holds",
                inside,
                "at_equal",
                "value",
                holds="The ratio is of the norm at equal spectral norms to that at other scales. "
                "(Appendix E prints Q^(1/L) where Q is meant.)",
            ),
            judge(
                "any network: gradient norm >= sqrt(L) (prod |dD/dw_i|)^(1/L) for all scales",
                rows,
                "minimum",
                "value",
                holds="Attained where all layers have equal gradient norms, c_i ~ |dD/dw_i|.",
                printed=False,
            ),
            judge(
                "equal spectral norms minimize the gradient norm, without Eq. (2)",
                outside,
                "at_equal",
                "minimum",
                fails="The minimum is at equal gradient norms. In these random networks its "
                f"spectral norms differ by factors up to {unequal:.2f}.",
                printed=False,
            ),
            judge("dD/dw_i scales as 1 / c_i", rows, "rule_error", "rounding", printed=False),
            judge(
                "rescaling leaves |dD/dw_i| ||w_i||, so that Eq. (2) holds for all c or for none",
                changes,
                "change",
                "rounding",
                holds="The constraint of the theorem is one on the network, not on c.",
                printed=False,
            ),
        ],
    )


def _panels(rows: Sequence[Row]) -> list[Panel]:
    outside = of(rows, claim="any network", direction=0)

    def line(row: Row) -> tuple[Any, ...]:
        names = ("kind", "activation", "depth", "width", "draw", "direction")
        return tuple(row[name] for name in names)

    label = "t: c = c_equal exp(t d)"
    return [
        Panel(
            "Eq. (2) holds: random directions", label, "gradient norm / at equal norms",
            of(rows, claim="in the set"), lambda row: row["t"],
            lambda row: row["value"] / row["at_equal"], lambda row: row["kind"],
            (1.0, "at equal spectral norms"), lines=line,
        ),
        Panel(
            "Any network: towards equal gradient norms", label, "gradient norm / its minimum",
            outside, lambda row: row["t"], lambda row: row["value"] / row["minimum"],
            lambda row: row["kind"], (1.0, "sqrt(L) (prod |dD/dw_i|)^(1/L)"), lines=line,
        ),
        Panel(
            "How far from it: any network", "largest / smallest spectral norm at the minimum",
            "norm at equal spectral norms / minimum",
            [row for row in outside if row["t"] == row["t_minimum"]], lambda row: row["eq2_equal"],
            lambda row: row["at_equal"] / row["minimum"], lambda row: row["kind"],
            (1.0, "equal norms are the minimum"), log="",
        ),
    ]  # fmt: skip


CHECK = Check(
    "Equal spectral norms minimize the gradient norm",
    "Theorem 1, section 3",
    _rows,
    _panels,
    _verdict,
)
