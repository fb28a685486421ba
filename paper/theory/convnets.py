"""Proposition 1 for convolutional networks: the bound as printed, and with the reuse of weights."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.analysis import conv_norm, proposition1_bound, spectral_norm_exact, tsuzuku_alpha
from fastsn.analysis.linear_map import ConvMap
from paper.theory.verdict import Row, generator

__all__ = ["conv_net_rows"]


class _Layer(NamedTuple):
    kernel: int
    stride: int = 1
    padding: int = 1


#: Convolutions with ReLU after each; a linear layer follows.
_LAYOUTS = {
    "3x3": (_Layer(3),),
    "5x5": (_Layer(5, padding=2),),
    "4x4 stride 2": (_Layer(4, 2),),
    "3x3, 4x4 stride 2, 3x3": (_Layer(3), _Layer(4, 2), _Layer(3)),
    "3x3, 4x4 stride 2, 4x4 stride 2": (_Layer(3), _Layer(4, 2), _Layer(4, 2)),
}
#: Layouts, channels, input sizes and draws.
_NETS = {
    "full": (tuple(_LAYOUTS), (1, 3, 8), (8, 16), 4),
    "small": (tuple(_LAYOUTS), (1, 4), (8,), 2),
    "smoke": (("3x3", "3x3, 4x4 stride 2, 3x3"), (2,), (4,), 1),
}
#: Of kernels and input: normal numbers, their absolute values, or ones.
_SIGNS = ("Gaussian", "positive", "constant")
_NORMS = ("SN_Conv", "SN")


def conv_net_rows(size: str, seed: int) -> list[Row]:
    """A row per network and layer, and one (``layer`` None) for all weights together.

    ``upper`` is the bound of Proposition 1 with the norms of the convolutions (1 under SN_Conv;
    under SN ``alpha``, as section 4 has it); ``with_alpha`` has a factor ``alpha_t`` more.
    """
    layouts, channels, sizes, draws = _NETS[size]
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
    def draw(*shape: int) -> Tensor:
        normal = torch.randn(shape, dtype=torch.float64, generator=random)
        return {"Gaussian": normal, "positive": normal.abs(), "constant": torch.ones_like(normal)}[
            case["kind"]
        ]

    width, n = case["channels"], case["input_size"]
    x = draw(1, width, n, n)
    kernels, geometries, inputs = [], [], []
    shape = tuple(x.shape[1:])
    for layer in _LAYOUTS[case["layout"]]:
        geometry: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "padding_mode": case["padding_mode"],
        }
        kernels.append(draw(width, width, layer.kernel, layer.kernel))
        geometries.append(geometry)
        inputs.append(shape)
        shape = ConvMap.of(kernels[-1].shape, **geometry).output_shape(shape)
    final = draw(1, math.prod(shape))
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
