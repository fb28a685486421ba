"""What can be normalized, and with which options: errors raised before anything is changed."""

from __future__ import annotations

import math
import weakref
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn.state.classes import parametrizations_of

__all__ = [
    "check_gradient",
    "check_options",
    "check_update",
    "check_weight",
    "claim_weight",
    "normalizes_itself",
]


def check_options(
    n_power_iterations: int,
    eps: float,
    scale: float | Tensor | str,
    update: str = "forward",
    bound: float | None = None,
) -> None:
    """Raises for options no weight could be normalized with."""
    _check_type("n_power_iterations", n_power_iterations, int, "an int")
    if n_power_iterations <= 0:
        raise ValueError(
            "Expected n_power_iterations to be positive, but "
            f"got n_power_iterations={n_power_iterations}"
        )
    _check_type("eps", eps, (int, float), "a number")
    if not eps >= 0 or math.isinf(eps):
        raise ValueError(f"Expected eps to be non-negative and finite, but got eps={eps}")
    check_update(update)
    if bound is not None:
        _check_type("bound", bound, (int, float), "a number or None")
        if not 0 < bound < math.inf:
            raise ValueError(f"expected bound to be positive and finite, got {bound}")
    if isinstance(scale, str):
        if scale != "sigma":
            raise TypeError(
                f"expected scale to be a number or a 0-d tensor, or 'sigma', got {scale!r}"
            )
        if bound is not None:
            raise ValueError(
                f"expected no bound with scale='sigma', got bound={bound}: a weight below the "
                "bound is not divided by its sigma"
            )
        return
    if isinstance(scale, Tensor):
        if scale.ndim != 0 or not scale.is_floating_point():
            raise ValueError(
                "expected scale to be a number or a floating 0-d tensor, "
                f"got a {scale.dtype} tensor of shape {tuple(scale.shape)}"
            )
        number = float(scale.detach()) if scale.device.type != "meta" else 1.0
    else:
        _check_type("scale", scale, (int, float), "a number or a 0-d tensor, or 'sigma'")
        number = float(scale)
    if number == 0 or not math.isfinite(number):
        raise ValueError(f"expected scale to be finite and not zero, got {number}")


def check_gradient(gradient: str) -> None:
    """Raises unless it is one of the two gradients of sigma."""
    if gradient not in ("constant", "through"):
        raise ValueError(f"expected gradient to be 'constant' or 'through', got {gradient!r}")


def check_update(update: str) -> None:
    """Raises unless it is one of the two ways to advance vectors."""
    if update not in ("forward", "step"):
        raise ValueError(f"expected update to be 'forward' or 'step', got {update!r}")


def _check_type(name: str, value: object, types: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"expected {name} to be {what}, got {value!r}")


def check_weight(module: nn.Module, name: str) -> Tensor:
    """The weight to normalize; raises when there is none that can be."""
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if nn.parameter.is_lazy(weight):
        raise ValueError(
            f"expected '{name}' of {module} to be initialized, got an uninitialized (lazy) "
            "parameter: run one forward of the model before normalizing it"
        )
    if f"{name}_orig" in module._parameters:
        raise ValueError(
            f"expected '{name}' of {module} to be a parameter, got one that "
            "torch.nn.utils.spectral_norm or weight_norm already normalizes: "
            "fastsn.convert(model) takes over torch's spectral norms"
        )
    if reason := normalizes_itself(module, name):
        raise ValueError(
            f"expected '{name}' of {module} not to be normalized by the layer itself, got {reason}"
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise ValueError(
            f"expected '{name}' of {module} to change by optimizers alone, got max_norm="
            f"{module.max_norm}, with which a forward rescales rows of the normalized weight"
        )
    if not (weight.is_floating_point() or weight.is_complex()):
        raise TypeError(
            f"expected '{name}' of {module} to be floating or complex, got {weight.dtype}"
        )
    if weight.ndim == 0:
        raise ValueError(
            f"expected '{name}' of {module} to have at least one dimension, got a scalar"
        )
    if _is_owned(weight):
        raise ValueError(
            f"expected '{name}' of {module} to belong to one layer, got a tied weight that another "
            "layer's spectral norm already normalizes: share the layer instead, or normalize both "
            "by one call of fastsn.apply"
        )
    return weight


def normalizes_itself(module: nn.Module, name: str) -> str:
    """By what a layer normalizes its weight, of what is known by name; ``""`` where nothing is."""
    for buffer, library in (("u0", "BigGAN"), ("sn_u", "mimicry")):
        if buffer in module._buffers:
            return f"a {type(module).__name__} with a buffer '{buffer}', as {library}'s layers have"
    if f"{name}_g" in module._parameters and f"{name}_v" in module._parameters:
        return "torch.nn.utils.weight_norm on it"
    return ""


# Which layer normalizes a parameter, to notice tied weights. Keyed by id, with no reference to the
# parameter, because torch refuses to swap tensors that are weakly referenced.
_owners: dict[int, tuple[weakref.ref[nn.Module], str]] = {}


def claim_weight(weight: Tensor, module: nn.Module, name: str) -> None:
    """Notes that ``module`` normalizes ``weight``, as its ``name``."""
    key = id(weight)
    _owners[key] = weakref.ref(module, lambda _: _owners.pop(key, None)), name


def _is_owned(weight: Tensor) -> bool:
    if id(weight) not in _owners:
        return False
    module, name = _owners[id(weight)]
    host = module()
    if (
        host is not None
        and parametrize.is_parametrized(host, name)
        and parametrizations_of(host)[name].original is weight
    ):
        return True
    del _owners[id(weight)]
    return False
