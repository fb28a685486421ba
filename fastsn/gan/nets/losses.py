"""GAN losses, as functions of the discriminator's scores (no sigmoid at its end).

In all formulas r and f are the scores of real and of generated images, and E a mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "Loss", "gradient_penalty"]


class Loss(NamedTuple):
    """A pair of losses, both to be minimized; each gives a scalar.

    Attributes:
        discriminator: of the scores of real and of generated images.
        generator: of the scores of generated images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _not_saturating(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def _saturating(fake: Tensor) -> Tensor:
    return -F.softplus(fake).mean()


def _difference(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _raise(fake: Tensor) -> Tensor:
    return -fake.mean()


#: ``hinge`` (Miyato et al. 2018, Eqs. 16-17): E max(0, 1 - r) + E max(0, 1 + f), and -E f.
#: ``vanilla`` (Goodfellow et al. 2014): -E log s(r) - E log(1 - s(f)) with s the sigmoid, and the
#: non-saturating -E log s(f). ``vanilla_saturating``: the same, and E log(1 - s(f)). ``wgan``
#: (Arjovsky et al. 2017): E f - E r, and -E f; with :func:`gradient_penalty` it is WGAN-GP.
LOSSES: dict[str, Loss] = {
    "hinge": Loss(_hinge, _raise),
    "vanilla": Loss(_cross_entropy, _not_saturating),
    "vanilla_saturating": Loss(_cross_entropy, _saturating),
    "wgan": Loss(_difference, _raise),
}

#: Keeps the norm differentiable where the gradient is 0; the authors' value.
_EPS = 1e-8


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    *,
    unit: float = 1.0,
) -> Tensor:
    r"""The penalty of WGAN-GP (Gulrajani et al. 2017): how far D's gradients are from norm 1.

    .. math:: E\,(\|\nabla D(\tilde x)\| - 1)^2, \qquad \tilde x = x + \alpha (x' - x)

    with real ``x``, generated ``x'`` and one :math:`\alpha \sim U(0, 1)` per image.

    Args:
        discriminator: D; its weights get gradients of the penalty.
        real: images ``[n, c, h, w]``.
        fake: likewise; no gradient flows into them.
        generator: draws :math:`\alpha`, on the device of the images.
        unit: length, in the images' own pixel values, of one unit of the pixel values that the norm
            is about: ``discriminator.unit`` of :mod:`fastsn.gan.nets.models`, 2 where the paper's
            pixels are in [0, 1] and ours in [-1, 1].

    Returns:
        A scalar, not yet weighted (the paper's weight is 10).

    Raises:
        ValueError: shapes that differ.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"expected fake to have the shape of real {tuple(real.shape)}, got {tuple(fake.shape)}"
        )
    shape = real.shape[:1] + (1,) * (real.ndim - 1)
    alpha = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    points = real.detach().lerp(fake.detach(), alpha).requires_grad_(True)
    scores = discriminator(points)
    (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    squared = gradient.float().flatten(1).square().sum(1) * unit**2
    return ((squared + _EPS).sqrt() - 1).square().mean()
