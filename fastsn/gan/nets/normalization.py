"""Spectral normalizations put on a discriminator, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import fastsn
from fastsn import SpectralNormGroup
from fastsn.conv_map import is_conv
from fastsn.gan.config import SCALED, SPREADABLE, Method
from fastsn.gan.nets.models import lecun_
from fastsn.parametrization import register
from fastsn.plan import BSN, SN

__all__ = ["METHODS", "normalize", "spread_scales"]

#: ``none``. ``sn``, ``bsn``: :func:`fastsn.apply`; ``ssn``, ``bssn``: the same with each layer's
#: scale. ``sn_conv``: :func:`fastsn.conv_spectral_norm`. ``same_gamma`` and ``diff_gamma``: SN with
#: a trained factor of weights and biases, one for all layers or one for each (appendix O); with
#: ``bsn_``, BSN. ``torch``: torch's own spectral norm, for comparison. ``lecun``: no norm, but
#: scaled LeCun initialization.
METHODS: tuple[str, ...] = get_args(Method)


def normalize(
    discriminator: nn.Module,
    method: str,
    *,
    scale: float = 1.0,
    spread: float = 0.0,
    spread_seed: int = 0,
    update: str = "step",
    input_shape: tuple[int, int, int],
) -> SpectralNormGroup | None:
    """Normalizes all weights of ``discriminator``, in place.

    Args:
        discriminator: of linear layers and convolutions, not normalized yet.
        method: one of :data:`METHODS`. Fully connected layers get plain SN from every one, as in
            the authors' code. The methods with gamma are meant to be trained by WGAN-GP with
            penalty weight 10 (appendix O); gamma starts at 1 and is one of the discriminator's
            parameters.
        scale: factor of the normalized weights, not of the biases; for ``lecun`` of the initial
            weights. Only methods in :data:`SCALED` have one.
        spread, spread_seed: make ``scale`` the geometric mean of a random scale for each layer,
            see :func:`spread_scales`. Only methods in :data:`SPREADABLE` can.
        update: ``"step"``: vectors advance once per change of the weights, as in the authors'
            code; ``"forward"``: at every training forward, as in torch. The convolutions of
            ``sn_conv`` and all of ``torch`` know only the second, whatever is asked for.
        input_shape: ``(c, h, w)`` of the images; ``sn_conv`` needs it.

    Returns:
        The group of what is normalized by fastsn's SN and BSN, or None if nothing is.

    Raises:
        ValueError: an unknown method or update, or a scale or spread for a method without one.
    """
    if method not in METHODS:
        raise ValueError(f"expected a normalization method of {METHODS}, got {method!r}")
    if scale != 1 and method not in SCALED:
        raise ValueError(f"expected scale 1 with method {method!r}, got {scale}: it has none")
    if spread and method not in SPREADABLE:
        raise ValueError(
            f"expected spread 0 with method {method!r}, got {spread}: the methods with a scale for "
            f"each layer are {', '.join(SPREADABLE)}"
        )
    if update not in ("step", "forward"):
        raise ValueError(f"expected update to be 'step' or 'forward', got {update!r}")
    if method in ("sn", "bsn"):
        return fastsn.apply(discriminator, method, update=update)
    layers = _layers(discriminator)
    scales = spread_scales(len(layers), scale, spread, spread_seed)
    if method in ("ssn", "bssn"):
        for layer, one in zip(layers, scales, strict=True):
            _register(layer, SN if method == "ssn" else BSN, one, update)
        return SpectralNormGroup(discriminator)
    if method == "sn_conv":
        return _sn_conv(discriminator, scales, update, input_shape)
    if method.endswith("gamma"):
        kind = BSN if method.startswith("bsn") else SN
        return _gamma(discriminator, kind, update, shared="same" in method)
    if method == "torch":
        for layer in layers:
            torch_spectral_norm(layer)
    if method == "lecun":
        lecun_(discriminator, scale)
    return None


def spread_scales(n: int, scale: float, spread: float, seed: int) -> list[float]:
    """Random scales of ``n`` layers whose geometric mean is ``scale`` (appendix K).

    The paper does not say how its scales are distributed. Here their logarithms are normal, with
    standard deviation ``spread``, before their mean is taken off.
    """
    random = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * (spread * (random - random.mean())).exp()).tolist()


def _layers(network: nn.Module) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear) or is_conv(layer)]


def _register(layer: nn.Module, kind: int, scale: float | Tensor, update: str) -> None:
    register(layer, "weight", 1, 1e-12, None, kind=kind, scale=scale, update=update)


def _sn_conv(
    network: nn.Module, scales: Sequence[float], update: str, input_shape: tuple[int, int, int]
) -> SpectralNormGroup:
    """A dry run tells every convolution's input size; a linear layer's SN_Conv is its plain SN."""
    layers = _layers(network)
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs: shapes.update({layer: tuple(inputs[0].shape[1:])})
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape, device=layers[0].weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, scale in zip(layers, scales, strict=True):
        if is_conv(layer):
            fastsn.conv_spectral_norm(layer, input_shape=shapes[layer], scale=scale)
        else:
            _register(layer, SN, scale, update)
    return SpectralNormGroup(network)


class _Times(nn.Module):
    """Parametrization ``b -> gamma * b``."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, value: Tensor) -> Tensor:
        return self.gamma * value

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning ``layer.bias = value`` stores ``value`` as the original."""
        return value


def _gamma(network: nn.Module, kind: int, update: str, *, shared: bool) -> SpectralNormGroup:
    """Every layer becomes ``gamma * (W_sn x + b)``, as in the authors' code."""
    layers = _layers(network)
    one = nn.Parameter(layers[0].weight.new_ones(()))
    for layer in layers:
        gamma = one if shared else nn.Parameter(torch.ones_like(one))
        _register(layer, kind, gamma, update)
        if layer.bias is not None:
            parametrize.register_parametrization(layer, "bias", _Times(gamma))
    return SpectralNormGroup(network)
