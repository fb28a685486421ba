"""What can be normalized, and with which options: errors raised before anything is changed."""

from __future__ import annotations

import math
import weakref

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn.state.classes import parametrizations_of

__all__ = ["check_options", "check_weight", "claim_weight", "is_claimed"]


def check_options(n_power_iterations: int, eps: float, scale: float | Tensor, update: str) -> None:
    """Raises for options no weight could be normalized with."""
    if n_power_iterations <= 0:
        raise ValueError(
            "Expected n_power_iterations to be positive, but "
            f"got n_power_iterations={n_power_iterations}"
        )
    if not eps >= 0 or math.isinf(eps):
        raise ValueError(f"Expected eps to be non-negative and finite, but got eps={eps}")
    if update not in ("forward", "step"):
        raise ValueError(f"expected update to be 'forward' or 'step', got {update!r}")
    if isinstance(scale, Tensor):
        if scale.ndim != 0 or not scale.is_floating_point():
            raise ValueError(
                "expected scale to be a number or a floating 0-d tensor, "
                f"got a {scale.dtype} tensor of shape {tuple(scale.shape)}"
            )
        number = float(scale.detach()) if scale.device.type != "meta" else 1.0
    else:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"expected scale to be a number or a 0-d tensor, got {scale!r}")
        number = float(scale)
    if number == 0 or not math.isfinite(number):
        raise ValueError(f"expected scale to be finite and not zero, got {number}")


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
            "layer's spectral norm already normalizes: share the layer instead"
        )
    return weight


# Which layer normalizes a parameter, to notice tied weights. Keyed by id, with no reference to the
# parameter, because torch refuses to swap tensors that are weakly referenced.
_owners: dict[int, tuple[weakref.ref[nn.Module], str]] = {}


def claim_weight(weight: Tensor, module: nn.Module, name: str) -> None:
    """Notes that ``module`` normalizes ``weight``, as its ``name``."""
    _owners[id(weight)] = weakref.ref(module), name


def is_claimed(weight: Tensor) -> bool:
    """Whether a layer normalizes ``weight``, or has done so; quick."""
    return id(weight) in _owners


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
