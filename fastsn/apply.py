"""Spectral normalization of a whole model, by one call."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn.checks import check_options, check_weight
from fastsn.group import SpectralNormGroup
from fastsn.parametrization import SpectralNorm, adopt, default_dim
from fastsn.plan import BSN, SN
from fastsn.state.classes import own_class, parametrizations_of
from fastsn.state.ranks import is_sharded

__all__ = ["METHODS", "apply"]

#: Method -> (kind, whether it takes a scale).
METHODS = {"sn": (SN, False), "ssn": (SN, True), "bsn": (BSN, False), "bssn": (BSN, True)}

#: Scale of the scaled methods unless given: one of the two good modes in section 5.2 of the paper.
DEFAULT_SCALE = 1.2

LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def apply(
    model: nn.Module,
    method: str = "bssn",
    *,
    scale: float | Tensor | None = None,
    update: str = "forward",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> SpectralNormGroup:
    """Normalizes the weights of all linear, embedding and convolution layers of ``model``, as one
    group.

    Args:
        model: changed in place; its forward computes the group.
        method: ``"sn"`` (Miyato et al. 2018), ``"ssn"`` (SN with a scale), ``"bsn"``
            (bidirectional, section 5.1 of the paper) or ``"bssn"`` (BSN with a scale, section 5.2).
        scale: factor of all normalized weights, for ``"ssn"`` and ``"bssn"``: a number, or a 0-d
            tensor or parameter ("same gamma"). Default: 1.2. For one parameter per layer, call
            :func:`fastsn.spectral_norm` for each and group them with
            :class:`fastsn.SpectralNormGroup`.
        update: ``"forward"``: every training forward advances the vectors, as in torch. ``"step"``:
            once per change of the weights; the forwards between two optimizer steps share one sigma
            and one normalized weight, as in the training code of the paper's authors. A change is
            seen by a weight's version counter or address, by the step of an optimizer that holds
            it, or made known by ``group.update()``; another write through ``.data`` is not seen.
        n_power_iterations: per advance.
        eps: lower bound of the norms the vectors are divided by.
        include: layer names or patterns (``"blocks.*.conv?"``) to normalize. Default: all.
        exclude: layer names or patterns to leave alone.

    Returns:
        The group. ``print`` it to see what is normalized and what was left alone, and why.

    Raises:
        ValueError: unknown method or update; a scale for a method without one; options out of
            range; a pattern or a model that matches nothing; a layer that is normalized already or
            lazy; tied weights.
        TypeError: a matched layer has an integer weight.

    All checks come first: after an error the model is as it was.

    Example::

        >>> critic = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 4, 2))
        >>> group = fastsn.apply(critic, method="bssn", scale=1.2, update="step")
        >>> sorted(group.sigmas())
        ['0.weight', '2.weight']
    """
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {list(METHODS)}, got {method!r}")
    kind, scaled = METHODS[method]
    if scale is None:
        scale = DEFAULT_SCALE if scaled else 1.0
    elif not scaled and (isinstance(scale, Tensor) or scale != 1):
        raise ValueError(
            f"expected no scale for method {method!r}, got {scale!r}: "
            f"use method {method.replace('s', 'ss', 1)!r}"
        )
    check_options(n_power_iterations, eps, scale, update)
    chosen, notes = _select(model, include, exclude)
    norms = [
        SpectralNorm(
            layer.weight,
            n_power_iterations,
            default_dim(layer),
            eps,
            kind=kind,
            scale=scale,
            update=update,
        ).train(layer.training)
        for _, layer in chosen
    ]
    _register([layer for _, layer in chosen], norms)
    for (_, layer), norm in zip(chosen, norms, strict=True):
        adopt(layer, "weight", norm)
        if norm.training:  # as registering one by one does, by reading the weight once
            norm.advance(parametrizations_of(layer)["weight"].original)
            norm.forget_weight()
    return SpectralNormGroup(model, notes, exclude=_patterns("exclude", exclude))


def _register(layers: list[Any], norms: list[SpectralNorm]) -> None:
    """Registers all parametrizations, or none if a layer's own class objects."""
    for i, (layer, norm) in enumerate(zip(layers, norms, strict=True)):
        try:
            # Unsafe means unchecked: the check would be a forward, and all was checked before.
            parametrize.register_parametrization(layer, "weight", norm, unsafe=True)
        except Exception:
            for done in layers[:i]:
                own_class(done)
                parametrize.remove_parametrizations(done, "weight", leave_parametrized=False)
            raise


def _select(
    model: nn.Module, include: Iterable[str] | None, exclude: Iterable[str]
) -> tuple[list[tuple[str, Any]], dict[str, str]]:
    """Layers to normalize, and what to say of every other weight; changes nothing."""
    wanted = None if include is None else _patterns("include", include)
    unwanted = _patterns("exclude", exclude)
    names = [name for name, _ in model.named_modules()]
    for option, patterns in (("include", wanted or []), ("exclude", unwanted)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"expected {option} pattern {pattern!r} to match a layer, got no match"
                )
    chosen: list[tuple[str, Any]] = []
    notes: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, layer in model.named_modules():
        handled = isinstance(layer, LAYERS)
        label = f"{name}.weight" if name else "weight"
        if any(fnmatchcase(name, pattern) for pattern in unwanted):
            reason = "excluded"
        elif wanted is not None and not any(fnmatchcase(name, pattern) for pattern in wanted):
            reason = "not included"
        elif not handled:
            reason = f"{type(layer).__name__} is not handled: use fastsn.spectral_norm(layer, name)"
        else:
            weight = _checked(name, layer)
            if id(weight) in seen:
                raise ValueError(
                    f"expected layer '{name}' to have a weight of its own, got the one of layer "
                    f"'{seen[id(weight)]}' (tied weights): exclude one of them"
                )
            seen[id(weight)] = name
            chosen.append((name, layer))
            continue
        for own, parameter in layer._parameters.items():
            if nn.parameter.is_lazy(parameter):
                notes[f"{name}.{own}" if name else own] = reason
            elif parameter is not None and (handled or not own.startswith("bias")):
                many = isinstance(parameter, Tensor) and parameter.ndim >= 2
                if many:
                    notes[f"{name}.{own}" if name else own] = reason
        if handled and reason in ("excluded", "not included"):
            notes[label] = reason
    if not chosen:
        what = "left by include and exclude" if wanted is not None or unwanted else "in it"
        raise ValueError(
            f"expected {type(model).__name__} to have a linear, embedding or convolution layer, "
            f"got none {what}"
        )
    return chosen, notes


def _patterns(option: str, patterns: Iterable[str]) -> list[str]:
    if isinstance(patterns, str):
        raise TypeError(f"expected {option} to be a list of names, got the string {patterns!r}")
    return list(patterns)


def _checked(name: str, layer: nn.Module) -> Tensor:
    """The weight of ``layer``; errors name the layer."""
    if _is_normalized(layer):
        raise ValueError(
            f"expected layer '{name}' not to be normalized, got one that is already: exclude it, "
            "or call fastsn.convert(model) for torch's spectral norms"
        )
    try:
        weight = check_weight(layer, "weight")
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer '{name}': {error}") from None
    if is_sharded(weight):
        raise ValueError(
            f"expected layer '{name}' to be normalized before FSDP shards it, got a DTensor"
        )
    return weight


def _is_normalized(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") or "weight_orig" in layer._parameters
