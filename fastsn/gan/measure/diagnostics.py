"""What the paper looks at inside a discriminator: gradients, variances, norms and their bounds.

One row per layer, and one named ``all`` for the network (sections 3 and 4, appendices J to M).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn import fold
from fastsn.analysis import layer_report
from fastsn.conv_norm import ConvSpectralNorm
from fastsn.gan.measure.sampling import evaluating
from fastsn.parametrization import SpectralNorm

__all__ = ["WHOLE", "diagnose"]

#: The name of the row for the whole network.
WHOLE = "all"


def diagnose(discriminator: nn.Module, real: Tensor) -> list[dict[str, Any]]:
    """Rows about a discriminator; it is left as it was, gradients included.

    Args:
        discriminator: after a discriminator update, with that update's gradients.
        real: some real images ``[n, c, h, w]``.

    Returns:
        Per layer: ``grad_norm`` of its raw weight (biases count nowhere, as in appendix J);
        ``output_grad_norm``, the mean over images of ``|dD(x)/dW|`` for the weight ``W`` that the
        layer uses, which Proposition 1 bounds; and the columns of
        :class:`fastsn.analysis.LayerRow`: ``variance`` and ``variance_bound`` (Theorems 2 and 3),
        ``sigma``, ``exact``, ``ratio``, ``scale``, ``sigma_0``, ``sigma_1``, ``conv_norm`` and its
        bounds by Tsuzuku et al. Under ``all``: ``grad_norm`` and ``output_grad_norm`` of all
        weights, ``input_grad_norm``, the mean over images of ``|dD(x)/dx|``, and
        ``log_variance_product``.
    """
    gradients = _weight_gradients(discriminator)
    outputs = _output_gradients(discriminator, real)
    rows: list[dict[str, Any]] = []
    # In float32: a network of another precision is copied by layer_report, not changed.
    for layer in layer_report(discriminator, real[:1].float()):
        gradient = gradients.get(layer.name)
        row = {
            "layer": layer.name,
            "norm": layer.norm,
            "grad_norm": None if gradient is None else float(gradient.float().norm()),
            "output_grad_norm": outputs.get(layer.name),
        }
        for name in (
            "variance",
            "variance_bound",
            "sigma",
            "exact",
            "ratio",
            "scale",
            "sigma_0",
            "sigma_1",
            "conv_norm",
            "conv_lower",
            "conv_upper",
        ):
            row[name] = getattr(layer, name)
        rows.append(row)
    known = [row["grad_norm"] for row in rows if row["grad_norm"] is not None]
    variances = [row["variance"] for row in rows]
    rows.append(
        {
            "layer": WHOLE,
            "grad_norm": math.hypot(*known) if known else None,
            "output_grad_norm": outputs[WHOLE],
            "input_grad_norm": _input_gradient(discriminator, real),
            "log_variance_product": sum(math.log(v) for v in variances) if all(variances) else None,
        }
    )
    return rows


def _weight_gradients(network: nn.Module) -> dict[str, Tensor]:
    """Gradients of weights of two or more dimensions, by the name of the weight."""
    found = {}
    for path, module in network.named_modules():
        own = dict(module._parameters)
        if parametrize.is_parametrized(module):
            held: Any = module.parametrizations
            own |= {name: getattr(norms, "original", None) for name, norms in held.items()}
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for name, parameter in own.items():
            if parameter is not None and parameter.ndim >= 2 and parameter.grad is not None:
                shown = name.removesuffix("_orig")
                found[f"{path}.{shown}" if path else shown] = parameter.grad
    return found


def _input_gradient(discriminator: nn.Module, real: Tensor) -> float:
    images = real.detach().clone().requires_grad_(True)
    with evaluating(discriminator), torch.enable_grad():
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images)
    return float(gradient.flatten(1).float().norm(dim=1).mean())


def _output_gradients(discriminator: nn.Module, real: Tensor) -> dict[str, float]:
    """Mean over images of ``|dD(x)/dW|``, of each weight that is used and of all of them."""
    plain = copy.deepcopy(discriminator).eval()
    if any(isinstance(module, (SpectralNorm, ConvSpectralNorm)) for module in plain.modules()):
        fold(plain)
    norms = []
    # Torch's own norm stays: taking it off a copy takes it off the class that both share.
    with parametrize.cached(), torch.enable_grad():
        used = {
            f"{path}.weight": module.weight.requires_grad_()
            for path, module in plain.named_modules()
            if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim >= 2
        }
        for image in real.split(1):
            gradients = torch.autograd.grad(plain(image).sum(), [*used.values()])
            norms.append(torch.stack([gradient.float().norm() for gradient in gradients]))
    of_images = torch.stack(norms)
    means = of_images.mean(0).tolist()
    return {
        **dict(zip(used, means, strict=True)),
        WHOLE: float(of_images.norm(dim=1).mean()),
    }
