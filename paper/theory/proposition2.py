"""Proposition 2: networks whose weights are rescaled with product 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, of, summary
from paper.theory.networks import (
    ACTIVATIONS,
    OUTPUTS,
    evaluate,
    hessian,
    random_net,
)

#: Depths, widths, draws, and the standard deviations of ``log c``.
_SCALED = {
    "full": ((1, 2, 4, 8, 12), (4, 16, 64), 3, (0.1, 0.5, 1.0, 2.0, 4.0)),
    "small": ((1, 2, 4, 8), (4, 16), 4, (0.1, 1.0, 4.0)),
    "smoke": ((2, 4), (4,), 1, (0.1, 2.0)),
}
#: The relative error that rounding to float64 may make.
_ROUNDING = 1e-12


def _scales(count: int, spread: float, random: torch.Generator) -> Tensor:
    """Positive numbers of product 1."""
    logs = torch.randn(count, dtype=torch.float64, generator=random) * spread
    return torch.exp(logs - logs.mean())


def _rows(size: str, seed: int) -> list[Row]:
    """A row per network, scales and order ``n`` of the derivative in ``x``.

    ``value`` is ``|d^n D / dx^n - d^n D' / dx^n|``, relative; ``upper`` is what rounding may make
    of it. ``claim`` is ``within`` for what the proposition states, else the condition that is
    broken.
    """
    depths, widths, draws, spreads = _SCALED[check_size(size)]
    rows = []
    for depth, width, activation, output, spread, index in product(
        depths, widths, ACTIVATIONS, OUTPUTS, spreads, range(draws)
    ):
        case: Row = {
            "claim": "within", "depth": depth, "width": width, "activation": activation,
            "output": output, "spread": spread, "draw": index,
        }  # fmt: skip
        random = generator(seed, "proposition2", *case.values())
        weights, x = random_net("Gaussian", [width] * depth + [1], random)
        scales = _scales(depth, spread, random)

        def within(weights: Sequence[Tensor], x: Tensor, case: Row = case) -> Tensor:
            return evaluate(weights, x, ACTIVATIONS[case["activation"]], case["output"])

        rows += _differences(case, within, weights, scales, x)
    return rows + _without_conditions(seed)


def _without_conditions(seed: int) -> list[Row]:
    def smooth(weights: Sequence[Tensor], x: Tensor) -> Tensor:
        for weight in weights[:-1]:
            x = torch.tanh(weight @ x)
        return (weights[-1] @ x).squeeze()

    def shifted(weights: Sequence[Tensor], x: Tensor) -> Tensor:
        for weight in weights[:-1]:
            x = F.relu(weight @ x + 0.1)
        return (weights[-1] @ x).squeeze()

    def plain(weights: Sequence[Tensor], x: Tensor) -> Tensor:
        return evaluate(weights, x, 0.0, "identity")

    rows = []
    for claim, network in (
        ("tanh inside", smooth),
        ("with biases", shifted),
        ("two negative c", plain),
        ("product 1.1", plain),
    ):
        random = generator(seed, "proposition2", claim)
        weights, x = random_net("Gaussian", [8, 8, 8, 1], random)
        scales = _scales(3, 0.5, random)
        if claim == "two negative c":
            scales[:2] *= -1
        elif claim == "product 1.1":
            scales *= 1.1 ** (1 / 3)
        case: Row = {
            "claim": claim, "depth": 3, "width": 8, "activation": None, "output": "identity",
            "spread": 0.5, "draw": 0,
        }  # fmt: skip
        rows += _differences(case, network, weights, scales, x)
    return rows


def _differences(
    case: Row,
    network: Callable[[Sequence[Tensor], Tensor], Tensor],
    weights: Sequence[Tensor],
    scales: Tensor,
    x: Tensor,
) -> list[Row]:
    rescaled = [c * weight for c, weight in zip(scales, weights, strict=True)]
    derivatives: list[Callable[..., Tensor]] = [network, torch.func.grad(network, argnums=1)]
    if case["output"] == "sigmoid" and case["width"] <= 16:  # of the identity it is zero
        derivatives.append(hessian(network, 1))
    found = [(f(weights, x), f(rescaled, x)) for f in derivatives]
    slope = float(found[1][0].norm())
    rows = []
    for order, (one, other) in enumerate(found):
        # What the derivative is a sum of: it may itself be near zero, by cancellation.
        usual = (slope * float(x.norm()), slope, slope**2)[order]
        # Where all units of a layer are off, everything is 0.
        error = float((one - other).norm()) / (max(float(one.norm()), usual) or 1.0)
        rows.append({**case, "order": order, "value": error, "upper": _ROUNDING})
    return rows


def _verdict(rows: Sequence[Row]) -> Verdict:
    parts = [
        judge(
            "D and its derivatives in x (orders 1, 2) stay, for (leaky) ReLU inside, prod c_i = 1",
            of(rows, claim="within"),
            holds=f"Equal up to rounding: relative errors below {_ROUNDING:g}, where the bound is "
            "0 in exact arithmetic.",
        )
    ]
    for claim in dict.fromkeys(row["claim"] for row in rows if row["claim"] != "within"):
        parts.append(
            judge(
                f"the same: {claim}",
                of(rows, claim=claim),
                holds="The condition is not needed in these cases.",
                fails="As it should: the condition is needed.",
                printed=False,
            )
        )
    return summary("Proposition 2: scales of product 1 do not change D", parts)


def _panels(rows: Sequence[Row]) -> list[Panel]:
    def order(row: Row) -> str:
        return ("D(x)", "dD / dx", "d^2 D / dx^2")[row["order"]]

    limit = (_ROUNDING, "allowed for rounding")
    return [
        Panel(
            "Within its conditions", "standard deviation of log c", "relative difference",
            of(rows, claim="within"), lambda row: f"{row['spread']:g}", lambda row: row["value"],
            order, limit, top=10.0,
        ),
        Panel(
            "One condition broken", "", "relative difference",
            [row for row in rows if row["claim"] != "within"], lambda row: row["claim"],
            lambda row: row["value"], order, limit, top=10.0,
        ),
    ]  # fmt: skip


CHECK = Check(
    "Scales of product 1 do not change D",
    "Proposition 2, section 3",
    _rows,
    _panels,
    _verdict,
)
