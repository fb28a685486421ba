"""Ratios of the layers' gradient norms, and of their spectral norms: Eq. (2) of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastsn.gan.measure.diagnostics import WHOLE
from paper.records import Record, value_of

__all__ = ["NEAR", "Ratio", "near_diagonal", "ratios_of"]

#: A point within this factor of the diagonal is near it.
NEAR = 2.0


class Ratio(NamedTuple):
    """A layer beside the first one, at one moment.

    Attributes:
        step: the iteration.
        layer: name of its weight.
        norms: ``||W_1|| / ||W_i||``, of the linear maps with the weights that the layers use.
        gradients: ``|dD/dW_i| / |dD/dW_1|``, by those weights.
    """

    step: int
    layer: str
    norms: float
    gradients: float


def ratios_of(record: Record) -> list[Ratio]:
    """All layers but the first at all moments, where the four numbers are positive."""
    moments: dict[int, list[tuple[str, float, float]]] = {}
    for row in record.diagnostics:
        gradient, norm = value_of(row, "output_grad_norm"), _used_norm(row)
        if row["layer"] != WHOLE and gradient is not None and norm is not None:
            moments.setdefault(row["step"], []).append((row["layer"], gradient, norm))
    return [
        Ratio(step, layer, first[2] / norm, gradient / first[1])
        for step, (first, *others) in moments.items()
        for layer, gradient, norm in others
        if all(0 < part < math.inf for part in (*first[1:], gradient, norm))
    ]


def _used_norm(row: dict[str, Any]) -> float | None:
    """Norm of a layer's linear map with the weight that it uses: ``scale / sigma`` times that of
    the raw weight."""
    raw = value_of(row, "conv_norm")
    raw = value_of(row, "sigma_0") if raw is None else raw
    sigma, scale = value_of(row, "sigma"), value_of(row, "scale")
    if raw is None or scale is None:
        return raw if row.get("norm") == "none" else None
    return raw * scale / sigma if sigma else None


def near_diagonal(ratios: Sequence[Ratio]) -> float:
    """The share of points within a factor :data:`NEAR` of ``gradients = norms``."""
    off = [abs(math.log(ratio.gradients / ratio.norms)) for ratio in ratios]
    return sum(value <= math.log(NEAR) for value in off) / len(off)
