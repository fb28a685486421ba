"""Propositions 1 and 3: gradients and Hessians of networks with normalized weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.analysis import proposition1_bound, proposition3_bound
from paper.theory.convnets import conv_net_rows
from paper.theory.networks import (
    ACTIVATIONS,
    KINDS,
    OUTPUTS,
    evaluate,
    gradient_norms,
    hessian,
    random_net,
)
from paper.theory.verdict import (
    Row,
    Verdict,
    check_size,
    generator,
    judge,
    summary,
)

__all__ = [
    "proposition1_rows",
    "proposition1_verdict",
    "proposition3_rows",
    "proposition3_verdict",
]

#: Depths, widths and draws of Proposition 1.
_NETS = {
    "full": ((1, 2, 3, 4, 6, 8, 12), (4, 32, 256), 3),
    "small": ((1, 2, 3, 5, 8), (4, 16, 64), 3),
    "smoke": ((1, 3), (4, 16), 2),
}
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


def proposition1_rows(size: str, seed: int) -> list[Row]:
    """A row per network and layer, and one (``layer`` None) for all weights together.

    ``value`` is ``|dD(x)/dW|``, ``upper`` the bound of the proposition; for convolutions
    (``claim`` ``convolutional``) also ``with_alpha``, the bound that counts how often a weight is
    reused.
    """
    depths, widths, draws = _NETS[check_size(size)]
    rows = []
    for depth, width, kind, index in product(depths, widths, KINDS, range(draws)):
        rows += _dense(depth, width, kind, index, seed)
    return rows + conv_net_rows(size, seed)


def _dense(depth: int, width: int, kind: str, index: int, seed: int) -> list[Row]:
    rows = []
    weights, x = random_net(
        kind,
        [width] * depth + [1],
        generator(seed, "proposition1", depth, width, kind, index),
    )
    for activation, slope in ACTIVATIONS.items():
        for output, last in OUTPUTS.items():
            values = gradient_norms(weights, x, slope, output)
            lipschitz = [1.0] * (depth - 1) + [last.lipschitz]
            bounds = proposition1_bound(float(x.norm()), lipschitz, 1.0)
            case: Row = {
                "claim": "dense", "kind": kind, "activation": activation, "output": output,
                "depth": depth, "width": width, "draw": index,
            }  # fmt: skip
            rows += [
                {**case, "layer": layer, "value": value, "upper": upper}
                for layer, value, upper in (
                    *zip(range(1, depth + 1), values, bounds.per_layer, strict=True),
                    (None, math.hypot(*values), bounds.overall),
                )
            ]
    return rows


def proposition1_verdict(rows: Sequence[Row]) -> Verdict:
    dense = [row for row in rows if row["claim"] == "dense"]
    conv = [row for row in rows if row["claim"] == "convolutional"]
    parts = [
        judge(
            "|dD/dw_t| <= |x| prod |a_i|_Lip for every layer, if all ||w_i|| <= 1",
            [row for row in dense if row["layer"] is not None],
            note="Fully connected layers; attained by layers whose top singular vectors meet.",
        ),
        judge(
            "|dD/dtheta| <= sqrt(L) |x| prod |a_i|_Lip",
            [row for row in dense if row["layer"] is None],
            note="The same, of all weights together.",
        ),
        judge(
            "the same for convolutions, by their norms: 1 under SN_Conv, at most alpha under SN",
            conv,
            note="Fails: section 3 says that the analysis carries over to convolutions, but the "
            "gradient by a kernel is no outer product (appendix A): it sums over all positions "
            "that share the weight. Positive kernels and inputs exceed the bound.",
            printed=False,
        ),
        judge(
            "the same for convolutions, times alpha_t",
            conv,
            bound="with_alpha",
            note="Holds: alpha_t (fastsn.analysis.tsuzuku_alpha) counts how often layer t reuses "
            "its input; sqrt(k_h k_w) at stride 1.",
            printed=False,
        ),
    ]
    more = "" if parts[2].holds else f", which exceed it up to {parts[2].worst:.2f} times,"
    return summary(
        "Proposition 1: SN bounds the gradient by the weights",
        parts,
        "Holds for fully connected layers, which is what it assumes, and is attained. For "
        f"convolutions{more} it needs a factor alpha per layer.",
    )


def proposition3_rows(size: str, seed: int) -> list[Row]:
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


def proposition3_verdict(rows: Sequence[Row]) -> Verdict:
    layers = [row for row in rows if row["layer"] is not None]
    bent = [row for row in layers if row["output"] == "sigmoid"]
    linear = [row for row in rows if row["output"] == "identity"]
    parts = [
        judge(
            "||H_wt D|| <= ||H_oL D|| |x|^2 prod ||w_i||^2 / ||w_t||^2 for every layer",
            layers,
            note="With the largest second derivative of the sigmoid, 1 / (6 sqrt(3)) = 0.0962; "
            "attained where it is taken.",
        ),
        judge(
            "corollary 1, sigmoid: ||H_wt D|| <= 0.1 |x|^2 if all ||w_i|| <= 1",
            bent,
            bound="corollary",
            note="0.1 is 0.0962 rounded up.",
        ),
        judge(
            "corollary 1, identity, layer by layer: ||H_wt D|| = 0",
            [row for row in linear if row["layer"] is not None],
            bound="corollary",
            note="D is piecewise linear in each single weight.",
            printed=False,
        ),
        judge(
            "corollary 1, identity, as printed: ||H_theta D|| = 0, theta all the weights",
            [row for row in linear if row["layer"] is None],
            bound="corollary",
            note="Fails with two layers or more: D is a product of weights of different layers, "
            "and d^2 D / dw_1 dw_2 is not zero. What is proven is about one layer at a time.",
        ),
        judge(
            "in the proof: ||H_wt D|| <= ||H_ot D|| |h|_inf^2, h the layer's input",
            bent,
            bound="infinity",
            note="Fails: the Hessian is H_ot times h h^T, whose norm is |h|_2^2. The "
            "next line of the proof has that norm, so that the result stands.",
            printed=False,
        ),
    ]
    return summary(
        "Proposition 3 and corollary 1 of appendix D: SN bounds the Hessian by the weights",
        parts,
        "The proposition holds and is attained, as does the corollary for the sigmoid. The "
        "corollary's last line is true for each layer but not, as printed, for all weights "
        "together; and a step in the middle of the proof, which the result does not need, fails.",
    )
