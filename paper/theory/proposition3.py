"""Proposition 3 and its corollary: Hessians of networks with normalized weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.analysis import proposition3_bound
from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, of, summary
from paper.theory.networks import ACTIVATIONS, KINDS, OUTPUTS, evaluate, hessian, random_net

#: Depths, widths and draws of Proposition 3, whose Hessians have ``(width^2)^2`` entries.
_HESSIANS = {
    "full": ((1, 2, 3, 4, 6), (3, 6, 10), 3),
    "small": ((1, 2, 3, 4), (3, 6), 3),
    "smoke": ((1, 3), (3,), 1),
}
#: Where the sigmoid bends most: its second derivative is 1 / (6 sqrt(3)) there.
_BEND = math.log(2 + math.sqrt(3))
#: A norm that counts as zero in float64, over the square of the input's.
_ZERO = 1e-12


def _rows(size: str, seed: int) -> list[Row]:
    """A row per network and layer, and one (``layer`` None) for all weights together.

    ``value`` is the spectral norm of the Hessian of ``D(x)`` over ``|x|^2``; ``upper`` the bound of
    the proposition over the same, ``corollary`` that of corollary 1; both are what counts as zero
    in float64 if the output is linear. ``infinity`` is the bound in the middle of the proof, with
    the largest entry of a layer's input instead of its norm.
    """
    depths, widths, draws = _HESSIANS[check_size(size)]
    rows = []
    for depth, width, kind, index in product(depths, widths, KINDS, range(draws)):
        random = generator(seed, "proposition3", depth, width, kind, index)
        weights, x = random_net(kind, [width] * depth + [1], random)
        if kind == "aligned":
            x = x * (_BEND / x.norm())
        for output, activation in product(OUTPUTS, ACTIVATIONS):
            rows += _hessians(weights, x, activation, output, kind, index)
    return rows


def _hessians(
    weights: list[Tensor], x: Tensor, activation: str, output: str, kind: str, index: int
) -> list[Row]:
    depth, square, slope = len(weights), float(x.norm()) ** 2, ACTIVATIONS[activation]
    shapes = [weight.shape for weight in weights]

    def of_all(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        matrices = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return evaluate(matrices, x, slope, output)

    whole = hessian(of_all)(torch.cat([weight.flatten() for weight in weights]))
    bounds = proposition3_bound(math.sqrt(square), OUTPUTS[output].hessian, 1.0, depth)
    case: Row = {
        "kind": kind, "activation": activation, "output": output, "depth": depth,
        "width": len(x), "draw": index,
    }  # fmt: skip
    start, rows = 0, []
    for layer, bound in enumerate(bounds):
        stop = start + shapes[layer].numel()
        block = whole[start:stop, start:stop]
        start = stop
        rows.append(
            {
                **case,
                "layer": layer + 1,
                "value": _norm(block) / square,
                "upper": bound / square or _ZERO,
                "corollary": 0.1 if output == "sigmoid" else _ZERO,
                "infinity": _with_infinity_norm(weights, x, slope, output, layer) / square or _ZERO,
            }
        )
    joint = {"layer": None, "value": _norm(whole) / square, "upper": None, "infinity": None}
    return [*rows, {**case, **joint, "corollary": None if output == "sigmoid" else _ZERO}]


def _norm(symmetric: Tensor) -> float:
    return float(torch.linalg.eigvalsh(symmetric).abs().max())


def _with_infinity_norm(
    weights: list[Tensor], x: Tensor, slope: float, output: str, layer: int
) -> float:
    """``||H_o D|| |h|_inf^2``: ``o`` the output of a layer's weight, ``h`` its input."""
    for weight in weights[:layer]:
        x = F.leaky_relu(weight @ x, slope)
    identity = torch.eye(len(weights[layer]), dtype=x.dtype)

    def of_output(o: Tensor) -> Tensor:
        return evaluate([identity, *weights[layer + 1 :]], o, slope, output)

    return _norm(hessian(of_output)(weights[layer] @ x)) * float(x.abs().max()) ** 2


def _verdict(rows: Sequence[Row]) -> Verdict:
    layers = [row for row in rows if row["layer"] is not None]
    bent, linear = of(layers, output="sigmoid"), of(rows, output="identity")
    return summary(
        "Proposition 3 and corollary 1 of appendix D: SN bounds the Hessian by the weights",
        [
            judge(
                "||H_wt D|| <= ||H_oL D|| |x|^2 prod ||w_i||^2 / ||w_t||^2 for every layer",
                layers,
                holds="With the sigmoid's largest second derivative, 1 / (6 sqrt(3)) = 0.0962, "
                "attained where it is taken.",
            ),
            judge(
                "corollary 1, sigmoid: ||H_wt D|| <= 0.1 |x|^2 if all ||w_i|| <= 1",
                bent,
                bound="corollary",
                holds="0.1 is 0.0962 rounded up.",
            ),
            judge(
                "corollary 1, identity, layer by layer: ||H_wt D|| = 0",
                of(layers, output="identity"),
                bound="corollary",
                holds="D is piecewise linear in each single weight.",
                printed=False,
            ),
            judge(
                "corollary 1, identity, as printed: ||H_theta D|| = 0, theta all the weights",
                of(linear, layer=None),
                bound="corollary",
                fails="With two layers or more D is a product of weights of different layers, "
                "and d^2 D / dw_1 dw_2 is not zero. What is proven is about one layer at a time.",
            ),
            judge(
                "in the proof: ||H_wt D|| <= ||H_ot D|| |h|_inf^2, h the layer's input",
                bent,
                bound="infinity",
                fails="The Hessian is H_ot times h h^T, whose norm is |h|_2^2. The next line of "
                "the proof has that norm, so that the result stands.",
                printed=False,
            ),
        ],
    )


def _panels(rows: Sequence[Row]) -> list[Panel]:
    layers = [row for row in rows if row["layer"] is not None]
    bent = [row for row in of(layers, output="sigmoid") if row["value"] > 0]
    label = "norm of the Hessian / |x|^2"
    return [
        Panel(
            "Sigmoid output, by one layer's weights", "layers", label, bent,
            lambda row: str(row["depth"]), lambda row: row["value"], lambda row: row["kind"],
            (1 / (6 * 3**0.5), "bound: 1 / (6 sqrt(3))"), top=0.5,
        ),
        Panel(
            "Identity output, by one layer's and by all weights", "layers", label,
            of(rows, output="identity"), lambda row: str(row["depth"]), lambda row: row["value"],
            lambda row: "all weights" if row["layer"] is None else "one layer's weights",
            (_ZERO, "corollary 1: 0"), log="",
        ),
    ]  # fmt: skip


CHECK = Check(
    "Hessians by the normalized weights",
    "Proposition 3 and corollary 1, appendix D",
    _rows,
    _panels,
    _verdict,
)
