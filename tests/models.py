"""Small models and helpers that several test files use."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastsn


def small_cnn() -> nn.Sequential:
    """Discriminator with conv, transposed conv and linear weights; input ``[N, 3, 8, 8]``."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 12, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(12, 6, 3),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(216, 1),
    )


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8)


def norms(model: nn.Module) -> list[nn.Module]:
    """The fastsn parametrizations of a model."""
    return [m for m in model.modules() if isinstance(m, fastsn.parametrization.SpectralNorm)]


def vectors(model: nn.Module) -> list[Tensor]:
    """Copies of all singular vectors of a model."""
    return [b.detach().clone() for norm in norms(model) for pair in norm.vectors() for b in pair]


def originals(model: nn.Module) -> list[nn.Parameter]:
    """The parameters behind normalized weights."""
    return [
        held.original
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for held in module.parametrizations.values()
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    """A deep copy of a model's state dict."""
    return copy.deepcopy(dict(model.state_dict()))


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists hold the same bits."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
