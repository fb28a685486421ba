"""Random discriminators without biases, as the paper's section 2 has them, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.analysis import spectral_norm_exact


class Output(NamedTuple):
    """The last activation.

    Attributes:
        lipschitz: its Lipschitz constant.
        hessian: its largest second derivative.
    """

    function: Callable[[Tensor], Tensor]
    lipschitz: float
    hessian: float


OUTPUTS = {
    "identity": Output(lambda score: score, 1.0, 0.0),
    "sigmoid": Output(torch.sigmoid, 0.25, 1 / (6 * math.sqrt(3))),
}

#: Internal activations, by the slope on negative numbers.
ACTIVATIONS = {"ReLU": 0.0, "leaky ReLU": 0.2}

#: ``Gaussian`` and ``orthogonal`` weights of norm 1 and a Gaussian input. ``aligned``: each layer
#: has its top singular vectors where the activations are, all of them positive, so that the bounds
#: are attained; its other directions are random.
KINDS = ("Gaussian", "orthogonal", "aligned")


def random_net(
    kind: str, sizes: Sequence[int], random: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Weights ``[m, n]`` of spectral norm 1, first layer first, and an input ``[sizes[0]]``."""
    if kind not in KINDS:
        raise ValueError(f"expected a kind in {KINDS}, got {kind!r}")
    normal: Any = {"dtype": torch.float64, "generator": random}
    x = torch.randn(sizes[0], **normal)
    right = F.normalize(torch.rand(sizes[0], **normal) + 0.1, dim=0)
    if kind == "aligned":
        x = x.norm() * right
    weights = []
    for n, m in zip(sizes[:-1], sizes[1:], strict=True):
        weight = torch.randn(m, n, **normal)
        if kind == "orthogonal":
            tall = torch.linalg.qr(weight if m >= n else weight.t()).Q
            weight = tall if m >= n else tall.t()
        elif kind == "aligned":
            left = torch.rand(m, **normal) + 0.1
            left = F.normalize(left, dim=0)
            rest = weight - torch.outer(left, left @ weight)
            rest = rest - torch.outer(rest @ right, right)
            norm = spectral_norm_exact(rest)
            weight = torch.outer(left, right) + (0.9 / norm * rest if norm > 1e-9 else 0.0)
            right = left
        weights.append(weight / spectral_norm_exact(weight))
    return weights, x


def signed(kind: str, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """``Gaussian`` numbers, their absolute values (``positive``), or ones (``constant``)."""
    normal = torch.randn(shape, dtype=torch.float64, generator=random)
    return {"Gaussian": normal, "positive": normal.abs(), "constant": torch.ones_like(normal)}[kind]


def evaluate(weights: Sequence[Tensor], x: Tensor, slope: float, output: str) -> Tensor:
    """``D(x)``, a scalar; the last weight is ``[1, n]``."""
    for weight in weights[:-1]:
        x = F.leaky_relu(weight @ x, slope)
    return OUTPUTS[output].function(weights[-1] @ x).squeeze()


def gradient_norms(
    weights: Sequence[Tensor], x: Tensor, slope: float, output: str = "identity"
) -> list[float]:
    """``|dD(x) / dW|``, Frobenius, of each weight."""
    leaves = [weight.detach().requires_grad_() for weight in weights]
    gradients = torch.autograd.grad(evaluate(leaves, x, slope, output), leaves)
    return [float(gradient.norm()) for gradient in gradients]


def hessian(function: Callable[..., Tensor], argument: int = 0) -> Callable[..., Tensor]:
    """Of a scalar function of vectors.

    In reverse mode twice: ``torch.func.hessian`` goes forward first, for which torch compiles
    scripts, with a warning that they are deprecated.
    """
    return torch.func.jacrev(torch.func.jacrev(function, argument), argument)
