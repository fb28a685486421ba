"""Models that use torch's spectral norm, taken over; and normalized models made plain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as TorchSpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook
from torch.nn.utils.spectral_norm import (
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)

from fastsn.checks import check_update, normalizes_itself
from fastsn.conv_norm import ConvSpectralNorm, forget_input_shape
from fastsn.group import SpectralNormGroup
from fastsn.parametrization import SpectralNorm, adopt
from fastsn.plan import SN, SN_V_FIRST
from fastsn.state.classes import GROUP, own_class, parametrizations_of

__all__ = ["convert", "fold"]

#: Module and class of hooks that divide by ``max(1, sigma / coeff)``: DUE's, invertible-resnet's.
_SOFT_HOOKS = {("spectral_norm_fc", "SpectralNormFC"), ("spectral_norm_fc", "SpectralNorm")}


def convert(model: nn.Module, *, update: str = "forward") -> SpectralNormGroup:
    """Replaces torch's spectral norms in ``model``, of either API, by fastsn's, as one group.

    Parameters and singular vectors are taken over as they are, so that outputs, gradients and
    training go on with the same numbers, and an optimizer keeps its parameters. Layers of the old
    hook keep its order of iteration. State-dict keys of the old hook become those of the
    parametrization; old files still load.

    Args:
        model: changed in place.
        update: ``"forward"`` as torch, or ``"step"``; see :func:`fastsn.apply`.

    Torch's own two classes are taken over, and by name, without an import, the soft norms of linear
    layers of DUE (``spectral_norm_fc``) and of invertible-resnet, whose ``coeff`` is ``bound``. Any
    other subclass, whose numbers may be others, and layers that normalize themselves (BigGAN's,
    mimicry's) are left as they are.

    Returns:
        The group; ``print`` it to see what was converted and what was not, and why.

    Raises:
        ValueError: ``model`` has no spectral norm of torch or fastsn, or unknown ``update``.

    Example::

        >>> model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))
        >>> group = fastsn.convert(model)
    """
    check_update(update)
    parametrized = [
        (name, layer, tensor_name, i)
        for name, layer in model.named_modules()
        for tensor_name, held in parametrizations_of(layer).items()
        for i, norm in enumerate(held)
        if type(norm) is TorchSpectralNorm
    ]
    hooked = [
        (name, layer, key, hook)
        for name, layer in model.named_modules()
        for key, hook in layer._forward_pre_hooks.items()
        if _is_known_hook(hook)
    ]
    for name, layer, _, hook in hooked:
        _check_hooked(name, layer, hook)
    notes = _notes(model)
    ours = any(isinstance(module, SpectralNorm) for module in model.modules())
    if not (parametrized or hooked or ours):
        left = "".join(f"\n  {label}: {note}" for label, note in notes.items())
        raise ValueError(
            f"expected {type(model).__name__} to have a torch spectral norm, got none: "
            f"fastsn.apply(model) normalizes a plain model{left}"
        )
    for name, layer, tensor_name, i in parametrized:
        _take_parametrization(layer, tensor_name, i, update)
        notes[_label(name, tensor_name)] = (
            "from torch's parametrization"
            if i == 0
            else "converted, but not grouped: it follows another parametrization"
        )
    for name, layer, key, hook in hooked:
        _take_hook(layer, key, hook, update)
        notes[_label(name, hook.name)] = (
            "from torch's old hook"
            if type(hook) is TorchHook
            else f"from a soft norm, {type(hook).__module__}.{type(hook).__name__}"
        )
    return SpectralNormGroup(model, notes)


def _is_known_hook(hook: Any) -> bool:
    """Torch's, or a soft norm in its order of iteration, of the two projects that have one."""
    if type(hook) is TorchHook:
        return True
    module, name = type(hook).__module__.rpartition(".")[2], type(hook).__name__
    return (module, name) in _SOFT_HOOKS and hasattr(hook, "coeff")


def _check_hooked(name: str, layer: nn.Module, hook: Any) -> None:
    """Raises for a hooked layer that is not as torch leaves it."""
    missing = [
        f"{hook.name}{end}"
        for held, end in ((layer._parameters, "_orig"), (layer._buffers, "_u"))
        if f"{hook.name}{end}" not in held
    ]
    if missing:
        raise ValueError(
            f"expected layer '{name}' to have {', '.join(missing)} beside torch's spectral-norm "
            "hook, got none (another hook has taken its weight): remove that first"
        )


def _label(name: str, tensor_name: str) -> str:
    return f"{name}.{tensor_name}" if name else tensor_name


def _notes(model: nn.Module) -> dict[str, str]:
    """Reasons why the other weights of rank 2 or more are not converted."""
    notes = {}
    for name, parameter in model.named_parameters():
        layer_name, _, tensor_name = name.rpartition(".")
        if ".parametrizations." in f".{name}":
            if tensor_name == "original" or tensor_name.startswith("original"):
                stem = name.split("parametrizations.")
                held: Any = model.get_submodule(layer_name)
                if not any(type(norm) is TorchSpectralNorm or isinstance(norm, SpectralNorm)
                           for norm in held):  # fmt: skip
                    kinds = ", ".join(_described(type(norm), TorchSpectralNorm) for norm in held)
                    notes[stem[0] + stem[1].split(".")[0]] = f"parametrized by {kinds}"
        elif nn.parameter.is_lazy(parameter) or parameter.ndim < 2:
            continue
        elif not tensor_name.endswith("_orig"):
            itself = normalizes_itself(model.get_submodule(layer_name), tensor_name)
            notes[name] = f"normalizes itself: {itself}" if itself else "no spectral norm"
        else:
            hooks = model.get_submodule(layer_name)._forward_pre_hooks.values()
            found = [type(hook) for hook in hooks if hasattr(hook, "name")]
            if not any(map(_is_known_hook, hooks)):
                given = ", ".join(_described(kind, TorchHook) for kind in found) or "a hook"
                notes[name] = f"normalized by {given}"
    return notes


def _described(kind: type, torchs: type) -> str:
    if kind is not torchs and issubclass(kind, torchs):
        return f"{kind.__name__}, a subclass of torch's spectral norm whose numbers may be others"
    return f"{kind.__name__}, not torch's spectral norm"


def _take_parametrization(layer: nn.Module, tensor_name: str, i: int, update: str) -> None:
    held = parametrizations_of(layer)[tensor_name]
    theirs = held[i]
    iterations = getattr(theirs, "n_power_iterations", 1)  # absent for 1-d weights
    vectors: dict[str, Any] = {
        name: theirs._buffers[name] for name in ("_u", "_v") if name in theirs._buffers
    }
    theirs.training, training = False, theirs.training  # reading the weight must advance nothing
    with torch.no_grad(), torch.autocast(next(layer.parameters()).device.type, enabled=False):
        weight = getattr(layer, tensor_name)
    ours = SpectralNorm(
        weight, iterations, theirs.dim, theirs.eps, kind=SN, update=update, vectors=vectors
    )
    ours.train(training)
    held[i] = ours
    adopt(layer, tensor_name, ours)


def _take_hook(layer: nn.Module, key: int, hook: Any, update: str) -> None:
    name = hook.name
    soft = type(hook) is not TorchHook
    bound = float(hook.coeff) if soft else None
    if soft:
        layer._buffers.pop(f"{name}_sigma", None)  # which it keeps to be looked at
    weight: Any = layer._parameters.pop(f"{name}_orig")
    u, v = layer._buffers.pop(f"{name}_u"), layer._buffers.pop(f"{name}_v", None)
    vectors: dict[str, Any] = {} if weight.ndim < 2 else {"_u": u, "_v": v}
    del layer._forward_pre_hooks[key]
    layer._forward_pre_hooks_with_kwargs.pop(key, None)
    for hooks, kinds in (
        (layer._state_dict_hooks, SpectralNormStateDictHook),
        (layer._load_state_dict_pre_hooks, SpectralNormLoadStateDictPreHook),
    ):
        for own_key, own_hook in list(hooks.items()):
            own_hook = getattr(own_hook, "hook", own_hook)
            ours_to_take = isinstance(own_hook, kinds) or soft
            if ours_to_take and getattr(own_hook, "fn", None) is hook:
                del hooks[own_key]
    layer.__dict__.pop(name, None)
    layer.register_parameter(name, weight)
    ours = SpectralNorm(
        weight, hook.n_power_iterations, hook.dim % max(weight.ndim, 1), hook.eps,
        kind=SN_V_FIRST, update=update, bound=bound, vectors=vectors,
    )  # fmt: skip
    parametrize.register_parametrization(layer, name, ours, unsafe=True)
    parametrizations_of(layer)[name].unsafe = False
    ours.train(layer.training)
    adopt(layer, name, ours)


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
        group = module.__dict__.get(GROUP)
        if group is not None and group.model is module:
            group.detach()
    for layer, name in found:
        for norm in parametrizations_of(layer)[name]:
            norm.eval()
        forget_input_shape(layer)
    first: dict[int, Any] = {}
    values: dict[int, Tensor] = {}  # of tied weights that each of their layers normalizes its way
    for i, (layer, name) in enumerate(found):
        held = parametrizations_of(layer)[name]
        before = first.setdefault(id(held.original), held)
        if list(before) != list(held):
            values[i] = getattr(layer, name).clone()
    folded: set[int] = set()
    for i, (layer, name) in enumerate(found):
        original = parametrizations_of(layer)[name].original
        own_class(layer)
        # In place: the other readers of a tied weight have it then.
        again = id(original) in folded
        parametrize.remove_parametrizations(layer, name, leave_parametrized=not again)
        folded.add(id(original))
        if i in values:
            setattr(layer, name, nn.Parameter(values[i], original.requires_grad))
    for layer in {id(layer): layer for layer, _ in found}.values():
        if isinstance(layer, nn.RNNBase):
            layer._init_flat_weights()  # in one piece for cuDNN, as new layers are
    return model
