"""Proposition 1: gradients of networks with normalized weights, dense and convolutional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from fastsn.analysis import conv_norm, proposition1_bound, spectral_norm_exact, tsuzuku_alpha
from fastsn.conv_map import ConvMap
from paper.theory.check import Check, Panel, Row, Verdict, check_size, generator, judge, of, summary
from paper.theory.networks import ACTIVATIONS, KINDS, OUTPUTS, gradient_norms, random_net, signed

#: Depths, widths and draws of Proposition 1.
_NETS = {
    "full": ((1, 2, 3, 4, 6, 8, 12), (4, 32, 256), 3),
    "small": ((1, 2, 3, 5, 8), (4, 16, 64), 3),
    "smoke": ((1, 3), (4, 16), 2),
}


def _rows(size: str, seed: int) -> list[Row]:
    """A row per network and layer, and one (``layer`` None) for all weights together.

    ``value`` is ``|dD(x)/dW|``, ``upper`` the bound of the proposition; for convolutions
    (``claim`` ``convolutional``) also ``with_alpha``, the bound that counts how often a weight is
    reused.
    """
    depths, widths, draws = _NETS[check_size(size)]
    rows = []
    for depth, width, kind, index in product(depths, widths, KINDS, range(draws)):
        rows += _dense(depth, width, kind, index, seed)
    return rows + _conv_rows(size, seed)


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


# Convolutional networks


#: Kernels, strides and paddings of convolutions with ReLU after each; a linear layer follows.
_LAYOUTS = {
    "3x3": ((3, 1, 1),),
    "5x5": ((5, 1, 2),),
    "4x4 stride 2": ((4, 2, 1),),
    "3x3, 4x4 stride 2, 3x3": ((3, 1, 1), (4, 2, 1), (3, 1, 1)),
    "3x3, 4x4 stride 2, 4x4 stride 2": ((3, 1, 1), (4, 2, 1), (4, 2, 1)),
}
#: Layouts, channels, input sizes and draws.
_CONV_NETS = {
    "full": (tuple(_LAYOUTS), (1, 3, 8), (8, 16), 4),
    "small": (tuple(_LAYOUTS), (1, 4), (8,), 2),
    "smoke": (("3x3", "3x3, 4x4 stride 2, 3x3"), (2,), (4,), 1),
}
#: Of kernels and input: normal numbers, their absolute values, or ones.
_SIGNS = ("Gaussian", "positive", "constant")
_NORMS = ("SN_Conv", "SN")


def _conv_rows(size: str, seed: int) -> list[Row]:
    """A row per network and layer, and one (``layer`` None) for all weights together.

    ``upper`` is the bound of Proposition 1 with the norms of the convolutions (1 under SN_Conv;
    under SN ``alpha``, as section 4 has it); ``with_alpha`` has a factor ``alpha_t`` more.
    """
    layouts, channels, sizes, draws = _CONV_NETS[size]
    rows = []
    modes = ("zeros", "circular")
    for layout, width, n, signs, mode in product(layouts, channels, sizes, _SIGNS, modes):
        for index in range(1 if signs == "constant" else draws):
            case: Row = {
                "claim": "convolutional", "layout": layout, "channels": width, "input_size": n,
                "kind": signs, "padding_mode": mode, "draw": index,
            }  # fmt: skip
            rows += _cases(case, generator(seed, "convnets", *case.values()))
    return rows


def _cases(case: Row, random: torch.Generator) -> list[Row]:
    width, n, kind = case["channels"], case["input_size"], case["kind"]
    x = signed(kind, (1, width, n, n), random)
    kernels, geometries, inputs = [], [], []
    shape = tuple(x.shape[1:])
    for kernel, stride, padding in _LAYOUTS[case["layout"]]:
        geometry: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "padding_mode": case["padding_mode"],
        }
        kernels.append(signed(kind, (width, width, kernel, kernel), random))
        geometries.append(geometry)
        inputs.append(shape)
        shape = ConvMap.of(kernels[-1].shape, **geometry).output_shape(shape)
    final = signed(kind, (1, math.prod(shape)), random)
    final = final / final.norm()
    layers = list(zip(kernels, inputs, geometries, strict=True))
    alphas = [tsuzuku_alpha(w.shape, size, **geometry) for w, size, geometry in layers]
    rows = []
    for norm in _NORMS:
        if norm == "SN":
            weights = [w / spectral_norm_exact(w) for w in kernels]
            norms = [*alphas, 1.0]
        else:
            weights = [w / conv_norm(w, size, **geometry) for w, size, geometry in layers]
            norms = [1.0] * (len(weights) + 1)
        leaves = [w.requires_grad_() for w in (*weights, final.clone())]
        y = x
        for weight, geometry in zip(leaves[:-1], geometries, strict=True):
            y = F.relu(ConvMap.of(weight.shape, **geometry).apply(weight, y))
        gradients = torch.autograd.grad((leaves[-1] @ y.flatten()).squeeze(), leaves)
        values = [float(gradient.norm()) for gradient in gradients]
        plain = proposition1_bound(float(x.norm()), 1.0, norms)
        reused = proposition1_bound(float(x.norm()), 1.0, norms, reuse=[*alphas, 1.0])
        count = len(values)
        rows += [
            {**case, "norm": norm, "layer": layer, "value": value, "upper": a, "with_alpha": b}
            for layer, value, a, b in (
                *zip(range(1, count + 1), values, plain.per_layer, reused.per_layer, strict=True),
                (None, math.hypot(*values), plain.overall, reused.overall),
            )
        ]
    return rows


def _verdict(rows: Sequence[Row]) -> Verdict:
    dense, conv = of(rows, claim="dense"), of(rows, claim="convolutional")
    return summary(
        "Proposition 1: SN bounds the gradient by the weights",
        [
            judge(
                "|dD/dw_t| <= |x| prod |a_i|_Lip for every layer, if all ||w_i|| <= 1",
                [row for row in dense if row["layer"] is not None],
                holds="Fully connected layers; attained by layers whose top singular vectors meet.",
            ),
            judge(
                "|dD/dtheta| <= sqrt(L) |x| prod |a_i|_Lip",
                of(dense, layer=None),
                holds="The same, of all weights together.",
            ),
            judge(
                "the same for convolutions, by their norms: 1 under SN_Conv, at most alpha under "
                "SN",
                conv,
                fails="Section 3 says that the analysis carries over to convolutions, but the "
                "gradient by a kernel is no outer product (appendix A): it sums over all positions "
                "that share the weight. Positive kernels and inputs exceed the bound.",
                printed=False,
            ),
            judge(
                "the same for convolutions, times alpha_t",
                conv,
                bound="with_alpha",
                holds="alpha_t (fastsn.analysis.tsuzuku_alpha) counts how often layer t reuses "
                "its input; sqrt(k_h k_w) at stride 1.",
                printed=False,
            ),
        ],
    )


def _panels(rows: Sequence[Row]) -> list[Panel]:
    dense = [row for row in of(rows, claim="dense") if row["value"] > 0]
    conv = [row for row in of(rows, claim="convolutional") if row["value"] > 1e-12]
    return [
        Panel(
            "Fully connected layers", "layers", "gradient norm / bound", dense,
            lambda row: str(row["depth"]), lambda row: row["value"] / row["upper"],
            lambda row: row["kind"],
        ),
        Panel(
            "Convolutions: bound as printed", "", "gradient norm / bound", conv,
            lambda row: row["layout"], lambda row: row["value"] / row["upper"],
            lambda row: row["kind"], top=20.0,
        ),
        Panel(
            "Convolutions: times alpha", "", "gradient norm / bound", conv,
            lambda row: row["layout"], lambda row: row["value"] / row["with_alpha"],
            lambda row: row["kind"], top=20.0,
        ),
    ]  # fmt: skip


CHECK = Check(
    "Gradients by the normalized weights",
    "Proposition 1, section 3",
    _rows,
    _panels,
    _verdict,
)
