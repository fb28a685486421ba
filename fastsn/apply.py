"""Spectral normalization of a whole model, by one call."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from keyword import iskeyword
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn.checks import check_gradient, check_options, check_weight
from fastsn.group import SpectralNormGroup
from fastsn.parametrization import SpectralNorm, adopt, default_dim
from fastsn.plan import BSN, SN
from fastsn.state.classes import own_class
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
    scale: float | Tensor | str | None = None,
    bound: float | None = None,
    gradient: str = "constant",
    update: str = "forward",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> SpectralNormGroup:
    """Normalizes the weights of all linear, embedding, convolution, recurrent and attention layers
    of ``model``, as one group.

    Of a recurrent layer or cell these are all ``weight_*``, of ``nn.MultiheadAttention``
    ``in_proj_weight``, or ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight``, and
    ``out_proj.weight``. Each has a sigma of its own. Layers that share one parameter (tied weights)
    share one norm.

    Args:
        model: changed in place; its forward computes the group.
        method: ``"sn"`` (Miyato et al. 2018), ``"ssn"`` (SN with a scale), ``"bsn"``
            (bidirectional, section 5.1 of the paper) or ``"bssn"`` (BSN with a scale, section 5.2).
        scale: factor of all normalized weights, for ``"ssn"`` and ``"bssn"``: a number, or a 0-d
            tensor or parameter ("same gamma"). Default: 1.2. ``"sigma"``: one parameter per
            weight that begins at its sigma, so that the model computes at first what it did before
            (sigma-Reparam, Zhai et al. 2023). For other parameters per layer, call
            :func:`fastsn.spectral_norm` for each and group them with
            :class:`fastsn.SpectralNormGroup`.
        bound: soft normalization, for ``"sn"`` and ``"bsn"``: ``W / max(1, sigma / bound)``, so
            that a weight whose sigma is below the bound stays as it is (Gouk et al. 2018; SNGP,
            residual flows).
        gradient: ``"constant"``: the singular vectors are constants, as in torch. ``"through"``:
            sigma is differentiated through the last iteration, as the paper's authors do
            (:func:`fastsn.spectral_norm`).
        update: ``"forward"``: every training forward advances the vectors, as in torch. ``"step"``:
            once per change of the weights; the forwards between two optimizer steps share one sigma
            and one normalized weight, as in the training code of the paper's authors. A change is
            seen by a weight's version counter or address, by the step of an optimizer that holds
            it, or made known by ``group.update()``; another write through ``.data`` is not seen.
        n_power_iterations: per advance.
        eps: lower bound of the norms the vectors are divided by.
        include: names or patterns to normalize, of layers (``"blocks.*.conv?"``) or parameters
            (``"rnn.weight_hh_l0"``, ``"*.in_proj_weight"``). Patterns take weights of the layers
            above; a parameter's own name takes any parameter. Default: all.
        exclude: names or patterns to leave alone, of layers or parameters.

    Returns:
        The group. ``print`` it to see what is normalized and what was left alone, and why.

    Raises:
        ValueError: unknown method or update; a scale for a method without one; options out of
            range; a pattern or a model that matches nothing; a layer that is normalized already or
            lazy; a tied weight with rows along different dimensions in its layers.
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
    if scaled and bound is not None:
        raise ValueError(
            f"expected no bound for method {method!r}, which has a scale, got {bound!r}: "
            f"use method {method.replace('ss', 's', 1)!r}"
        )
    check_options(n_power_iterations, eps, scale, update, bound)
    check_gradient(gradient)
    chosen, notes = _select(model, include, exclude, kind == BSN, scale, bound)
    norms: dict[int, SpectralNorm] = {}
    for target in chosen:
        if id(target.weight) not in norms:
            norms[id(target.weight)] = _norm_for(
                target,
                n_power_iterations,
                eps,
                kind=kind,
                scale=scale,
                update=update,
                bound=bound,
                gradient=gradient,
            )
    _register(chosen, [norms[id(target.weight)] for target in chosen])
    for target in chosen:
        norm = norms.pop(id(target.weight), None)
        if norm is None:  # tied to one before
            continue
        if norm.training:  # as registering one by one does, by reading the weight once
            norm.advance(target.weight)
            norm.forget_weight()
    return SpectralNormGroup(model, notes, exclude=_patterns("exclude", exclude))


class Target(NamedTuple):
    """A parameter to normalize."""

    name: str  # of the layer
    tensor_name: str  # of the parameter in it
    layer: Any
    weight: Tensor

    @property
    def label(self) -> str:
        return _label(self.name, self.tensor_name)

    @property
    def dim(self) -> int:
        return default_dim(self.layer)


def _norm_for(target: Target, n_power_iterations: int, eps: float, **options: Any) -> SpectralNorm:
    try:
        norm = SpectralNorm(target.weight, n_power_iterations, target.dim, eps, **options)
    except ValueError as error:
        raise ValueError(f"layer '{target.name}': {error}") from None
    return norm.train(target.layer.training)


def _label(name: str, tensor_name: str) -> str:
    return f"{name}.{tensor_name}" if name else tensor_name


def _register(targets: list[Target], norms: list[SpectralNorm]) -> None:
    """Registers all parametrizations, or none if a layer's own class objects."""
    for i, (target, norm) in enumerate(zip(targets, norms, strict=True)):
        try:
            # Unsafe means unchecked: the check would be a forward, and all was checked before.
            parametrize.register_parametrization(
                target.layer, target.tensor_name, norm, unsafe=True
            )
        except Exception:
            for done in targets[:i]:
                own_class(done.layer)
                parametrize.remove_parametrizations(
                    done.layer, done.tensor_name, leave_parametrized=False
                )
            raise
    for target, norm in zip(targets, norms, strict=True):
        adopt(target.layer, target.tensor_name, norm)


def weights_of(layer: nn.Module) -> list[str]:
    """Names of the parameters of a known layer that :func:`apply` takes."""
    if isinstance(layer, nn.RNNBase):
        names = [name for name in layer._flat_weights_names if name.startswith("weight_")]
    elif isinstance(layer, nn.RNNCellBase):
        names = ["weight_ih", "weight_hh"]
    elif isinstance(layer, nn.MultiheadAttention):
        names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
    elif isinstance(layer, LAYERS):
        return ["weight"]
    else:
        return []
    held = layer._parameters
    return [
        name
        for name in names
        if held.get(name, held.get(f"{name}_orig")) is not None
        or parametrize.is_parametrized(layer, name)
    ]


def _select(
    model: nn.Module,
    include: Iterable[str] | None,
    exclude: Iterable[str],
    bidirectional: bool,
    scale: float | Tensor | str,
    bound: float | None,
) -> tuple[list[Target], dict[str, str]]:
    """Weights to normalize, and what to say of every other one; changes nothing."""
    wanted = None if include is None else _patterns("include", include)
    unwanted = _patterns("exclude", exclude)
    _check_patterns(model, wanted or [], unwanted)
    chosen: list[Target] = []
    notes: dict[str, str] = {}
    seen: dict[int, Target] = {}
    for name, layer in model.named_modules():
        known = weights_of(layer)
        own_names = [
            tensor_name
            for tensor_name, parameter in layer._parameters.items()
            if parameter is not None
        ]
        for tensor_name in dict.fromkeys([*known, *own_names]):
            label = _label(name, tensor_name)
            if any(_matches(pattern, name, label) for pattern in unwanted):
                reason = "excluded"
            elif wanted is not None and label in wanted:
                reason = ""  # by its own name, whatever the layer
            elif tensor_name not in known:
                reason = f"{type(layer).__name__} is not handled"
            elif wanted is not None and not any(_matches(p, name, label) for p in wanted):
                reason = "not included"
            else:
                reason = ""
            if not reason:
                target = Target(name, tensor_name, layer, _checked(name, tensor_name, layer))
                first = seen.setdefault(id(target.weight), target)
                _check_tied(target, first)
                chosen.append(target)
            elif tensor_name in known or _looks_like_weight(
                tensor_name, layer._parameters[tensor_name]
            ):
                call = _call_for(name, tensor_name, layer, bidirectional, scale, bound)
                notes[label] = f"{reason}; {call}"
    for name, layer in model.named_modules():
        for tensor_name, parameter in layer._parameters.items():
            label, other = _label(name, tensor_name), seen.get(id(parameter))
            if other is not None and label in notes:
                notes[label] = (
                    f"{notes[label].partition(';')[0]}; it reads {other.label}, to which it is "
                    "tied, without the norm"
                )
    if not chosen:
        what = "left by include and exclude" if wanted is not None or unwanted else "in it"
        raise ValueError(
            f"expected {type(model).__name__} to have a linear, embedding, convolution, recurrent "
            f"or attention layer, got none {what}"
        )
    return chosen, notes


def _check_patterns(model: nn.Module, wanted: list[str], unwanted: list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    # with the names of tied parameters, and of those that are normalized already
    names += [
        _label(name, tensor_name)
        for name, layer in model.named_modules()
        for tensor_name in dict.fromkeys([*weights_of(layer), *layer._parameters])
    ]
    for option, patterns in (("include", wanted), ("exclude", unwanted)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"expected {option} pattern {pattern!r} to match a layer or a parameter, got "
                    "no match"
                )


def _matches(pattern: str, name: str, label: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(label, pattern)


def _looks_like_weight(tensor_name: str, parameter: Any) -> bool:
    if nn.parameter.is_lazy(parameter):
        return True
    return parameter.ndim >= 2 and not tensor_name.startswith("bias")


def _check_tied(target: Target, first: Target) -> None:
    """One norm serves two layers if their unfoldings are the same."""
    if target.dim != first.dim:
        raise ValueError(
            f"expected tied weights to have their rows along one dimension, got {first.dim} for "
            f"'{first.label}' and {target.dim} for '{target.label}': exclude one of them"
        )


def _call_for(
    name: str,
    tensor_name: str,
    layer: nn.Module,
    bidirectional: bool,
    scale: float | Tensor | str,
    bound: float | None,
) -> str:
    """The call that would normalize a parameter that is left alone, or why there is none."""
    if parametrize.is_parametrized(layer, tensor_name):
        return "it is normalized already"
    try:
        _checked(name, tensor_name, layer)
    except (TypeError, ValueError) as error:
        return str(error)
    parts = name.split(".") if name else []
    path = f"model.get_submodule({name!r})"
    if all(part.isidentifier() and not iskeyword(part) for part in parts):
        path = ".".join(["model", *parts])
    options = [path, repr(tensor_name)]
    if bidirectional:
        options.append("bidirectional=True")
    if isinstance(scale, Tensor):
        options.append("scale=scale")
    elif isinstance(scale, str):
        options.append(f"scale={scale!r}")
    elif scale != 1:
        options.append(f"scale={scale:g}")
    if bound is not None:
        options.append(f"bound={bound:g}")
    return f"fastsn.spectral_norm({', '.join(options)})"


def _patterns(option: str, patterns: Iterable[str]) -> list[str]:
    if isinstance(patterns, str):
        raise TypeError(f"expected {option} to be a list of names, got the string {patterns!r}")
    return list(patterns)


def _checked(name: str, tensor_name: str, layer: nn.Module) -> Tensor:
    """The weight ``tensor_name`` of ``layer``; errors name the layer."""
    if (
        parametrize.is_parametrized(layer, tensor_name)
        or f"{tensor_name}_orig" in layer._parameters
    ):
        raise ValueError(
            f"expected layer '{name}' not to be normalized, got one that is already: exclude it, "
            "or call fastsn.convert(model) for torch's spectral norms"
        )
    try:
        weight = check_weight(layer, tensor_name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer '{name}': {error}") from None
    if is_sharded(weight):
        raise ValueError(
            f"expected layer '{name}' to be normalized before FSDP shards it, got a DTensor"
        )
    return weight
