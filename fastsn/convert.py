"""Models that use torch's spectral norm, taken over; and normalized models made plain."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as TorchSpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook
from torch.nn.utils.spectral_norm import (
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)

from fastsn.conv_norm import ConvSpectralNorm, forget_input_shape
from fastsn.group import SpectralNormGroup
from fastsn.parametrization import SpectralNorm, adopt
from fastsn.plan import SN, SN_V_FIRST
from fastsn.state.classes import own_class, parametrizations_of

__all__ = ["convert", "fold"]


def convert(model: nn.Module, *, update: str = "forward") -> SpectralNormGroup:
    """Replaces torch's spectral norms in ``model``, of either API, by fastsn's, as one group.

    Parameters and singular vectors are taken over as they are, so that outputs, gradients and
    training go on with the same numbers, and an optimizer keeps its parameters. Layers of the old
    hook keep its order of iteration. State-dict keys of the old hook become those of the
    parametrization; old files still load.

    Args:
        model: changed in place.
        update: ``"forward"`` as torch, or ``"step"``; see :func:`fastsn.apply`.

    Returns:
        The group; ``print`` it to see what was converted and what was not, and why.

    Raises:
        ValueError: ``model`` has no spectral norm of torch or fastsn, or unknown ``update``.

    Example::

        >>> model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))
        >>> group = fastsn.convert(model)
    """
    if update not in ("forward", "step"):
        raise ValueError(f"expected update to be 'forward' or 'step', got {update!r}")
    parametrized = [
        (name, layer, tensor_name, i)
        for name, layer in model.named_modules()
        for tensor_name, held in parametrizations_of(layer).items()
        for i, norm in enumerate(held)
        if isinstance(norm, TorchSpectralNorm)
    ]
    hooked = [
        (name, layer, key, hook)
        for name, layer in model.named_modules()
        for key, hook in layer._forward_pre_hooks.items()
        if isinstance(hook, TorchHook)
    ]
    ours = any(isinstance(module, SpectralNorm) for module in model.modules())
    if not (parametrized or hooked or ours):
        raise ValueError(
            f"expected {type(model).__name__} to have a torch spectral norm, got none: "
            "fastsn.apply(model) normalizes a plain model"
        )
    notes = _notes(model)
    for name, layer, tensor_name, i in parametrized:
        _take_parametrization(layer, tensor_name, i, update)
        notes[_label(name, tensor_name)] = (
            "from torch's parametrization"
            if i == 0
            else "converted, but not grouped: it follows another parametrization"
        )
    for name, layer, key, hook in hooked:
        _take_hook(layer, key, hook, update)
        notes[_label(name, hook.name)] = "from torch's old hook"
    return SpectralNormGroup(model, notes)


def _label(name: str, tensor_name: str) -> str:
    return f"{name}.{tensor_name}" if name else tensor_name


def _notes(model: nn.Module) -> dict[str, str]:
    """Reasons why the other weights of rank 2 or more are not converted."""
    notes = {}
    for name, parameter in model.named_parameters():
        layer_name, _, own = name.rpartition(".")
        if ".parametrizations." in f".{name}":
            if own == "original" or own.startswith("original"):
                stem = name.split("parametrizations.")
                held: Any = model.get_submodule(layer_name)
                if not any(isinstance(norm, (TorchSpectralNorm, SpectralNorm)) for norm in held):
                    kinds = ", ".join(type(norm).__name__ for norm in held)
                    notes[stem[0] + stem[1].split(".")[0]] = (
                        f"parametrized by {kinds}, not by a spectral norm"
                    )
        elif nn.parameter.is_lazy(parameter) or parameter.ndim < 2:
            continue
        elif not own.endswith("_orig"):
            notes[name] = "no spectral norm"
        elif f"{own.removesuffix('_orig')}_u" not in model.get_submodule(layer_name)._buffers:
            notes[name] = "a hook that is not torch's spectral norm"
    return notes


def _take_parametrization(layer: nn.Module, tensor_name: str, i: int, update: str) -> None:
    held = parametrizations_of(layer)[tensor_name]
    theirs = held[i]
    iterations = getattr(theirs, "n_power_iterations", 1)  # absent for 1-d weights
    ours = _bare_norm(held.original.shape, theirs.dim, iterations, theirs.eps, SN, update)
    for vector in ("_u", "_v"):
        if vector in theirs._buffers:
            ours.register_buffer(vector, theirs._buffers[vector])
    ours.train(theirs.training)
    held[i] = ours
    adopt(layer, tensor_name, ours)


def _take_hook(layer: nn.Module, key: int, hook: TorchHook, update: str) -> None:
    name = hook.name
    weight: Any = layer._parameters.pop(f"{name}_orig")
    vectors = {
        own: layer._buffers.pop(f"{name}_{theirs}") for own, theirs in (("_u", "u"), ("_v", "v"))
    }
    del layer._forward_pre_hooks[key]
    layer._forward_pre_hooks_with_kwargs.pop(key, None)
    for hooks, kinds in (
        (layer._state_dict_hooks, SpectralNormStateDictHook),
        (layer._load_state_dict_pre_hooks, SpectralNormLoadStateDictPreHook),
    ):
        for own_key, own_hook in list(hooks.items()):
            own_hook = getattr(own_hook, "hook", own_hook)
            if isinstance(own_hook, kinds) and own_hook.fn is hook:
                del hooks[own_key]
    layer.__dict__.pop(name, None)
    layer.register_parameter(name, weight)
    ours = _bare_norm(
        weight.shape,
        hook.dim % max(weight.ndim, 1),
        hook.n_power_iterations,
        hook.eps,
        SN_V_FIRST,
        update,
    )
    if weight.ndim > 1:
        for own, vector in vectors.items():
            ours.register_buffer(own, vector)
    parametrize.register_parametrization(layer, name, ours, unsafe=True)
    parametrizations_of(layer)[name].unsafe = False
    ours.train(layer.training)
    adopt(layer, name, ours)


def _bare_norm(
    shape: torch.Size, dim: int, n_power_iterations: int, eps: float, kind: int, update: str
) -> SpectralNorm:
    """A :class:`SpectralNorm` whose vectors are still to be given to it."""
    stand_in = torch.empty(shape, device="meta")
    norm = SpectralNorm(stand_in, n_power_iterations, dim, eps, kind=kind, update=update)
    for vector in list(norm._buffers):
        del norm._buffers[vector]
    return norm


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Makes normalized layers plain again, with the normalized weight as their parameter.

    For inference and export: the weights are those an evaluation forward would use. Groups are
    taken off. Torch's own spectral norms and other parametrizations are left alone.

    Args:
        model: changed in place.

    Returns:
        ``model``, without any fastsn module, of its original classes.

    Raises:
        ValueError: ``model`` has no fastsn spectral norm, or one beside another parametrization of
            the same tensor, or an SN_Conv layer that has seen no input. Nothing is changed then.
    """
    kinds = (SpectralNorm, ConvSpectralNorm)
    found = [
        (layer, name)
        for layer in model.modules()
        for name, held in parametrizations_of(layer).items()
        if any(isinstance(norm, kinds) for norm in held)
    ]
    if not found:
        raise ValueError(
            f"expected {type(model).__name__} to have a fastsn spectral norm, got none"
        )
    for layer, name in found:
        others = [
            type(norm).__name__
            for norm in parametrizations_of(layer)[name]
            if not isinstance(norm, kinds)
        ]
        if others:
            raise ValueError(
                f"expected '{name}' of {layer} to have spectral norms only, got {others} too: "
                "remove those first"
            )
        for norm in parametrizations_of(layer)[name]:
            if isinstance(norm, ConvSpectralNorm) and norm.input_shape is None:
                raise ValueError(
                    f"expected the input size of {layer} to be known, got a layer whose '{name}' "
                    "waits for its first forward: run the model once"
                )
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            group = getattr(hook, "__self__", None)
            if isinstance(group, SpectralNormGroup):
                group.detach()
    for layer, name in found:
        for norm in parametrizations_of(layer)[name]:
            norm.eval()
        forget_input_shape(layer)
        own_class(layer)
        parametrize.remove_parametrizations(layer, name)
    return model
