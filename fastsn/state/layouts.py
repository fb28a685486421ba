"""State dicts of other spectral norms: read by ``load_state_dict``, written by
:func:`convert_state_dict`.

Keys of a layer ``conv`` in each layout:

* fastsn and torch: ``conv.parametrizations.weight.original``, ``...weight.0._u``, ``...0._v``;
* fastsn's BSN: ``...weight.0._u_in`` and ``...0._v_in`` as well;
* torch's old hook: ``conv.weight_orig``, ``conv.weight_u``, ``conv.weight_v``; before torch 1.0 a
  buffer ``conv.weight`` in place of the last; DUE and invertible-resnet have ``conv.weight_sigma``,
  too;
* BigGAN: ``conv.weight``, ``conv.u0`` of shape (1, rows), ``conv.sv0``;
* mimicry: ``conv.weight``, ``conv.sn_u`` of shape (1, rows), ``conv.sn_sigma``.

Method and scale travel in the state dict's metadata, so that the keys are torch's: a file of one
scale is not loaded into a model of another by mistake.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsn.backends.reference import unfold
from fastsn.functional import spectral_normalize
from fastsn.plan import BSN, WARM_UP
from fastsn.state.classes import parametrizations_of

__all__ = [
    "convert_state_dict",
    "install_load_hook",
    "load_plain_state_dict",
    "note_settings",
    "prepare_load",
]

_LEFT_VECTORS = {"u0": "sv0", "sn_u": "sn_sigma"}  # BigGAN, mimicry: left vector, logged sigma


def convert_state_dict(state_dict: Mapping[str, Any], to: str = "fastsn") -> OrderedDict[str, Any]:
    """A copy of ``state_dict`` in another layout; entries that are not a spectral norm's stay as
    they are.

    Loading needs no conversion: fastsn layers read all of the layouts. It is for the way back, and
    for looking at a file without a model.

    Args:
        state_dict: of a fastsn model, or in one of the layouts above.
        to: ``"fastsn"``; ``"torch"``, which is fastsn's without BSN's second pair of vectors and
            without a learned scale, for torch's parametrization; or ``"torch-hook"``, for torch's
            old hook.

    Raises:
        ValueError: unknown layout, or a left vector whose weight is missing or has another number
            of rows.

    Example::

        >>> old = fastsn.convert_state_dict(model.state_dict(), to="torch-hook")
    """
    if to not in ("fastsn", "torch", "torch-hook"):
        raise ValueError(f"expected to be 'fastsn', 'torch' or 'torch-hook', got {to!r}")
    result: OrderedDict[str, Any] = OrderedDict(state_dict)
    for key in list(state_dict):
        match = re.fullmatch(r"(.*?)([^.]+)_orig", key)
        if match and f"{match[1]}{match[2]}_u" in state_dict:
            _rename_foreign(result, match[1], match[2])
        prefix, _, last = key.rpartition(".")
        if last in _LEFT_VECTORS and key in result:
            _rename_foreign(result, prefix + "." if prefix else "", "weight")
    if to == "fastsn":
        return result
    for key in list(result):
        match = re.fullmatch(r"(.*?)parametrizations\.([^.]+)\.0\.(_u_in|_v_in|scale)", key)
        if match and f"{match[1]}parametrizations.{match[2]}.0._u" in result:
            del result[key]
    if to == "torch-hook":
        _rename_to_hook(result)
    return result


def _rename_to_hook(state_dict: MutableMapping[str, Any]) -> None:
    for key in [key for key in state_dict if key.endswith(".0._u")]:
        match = re.fullmatch(r"(.*?)parametrizations\.([^.]+)\.0\._u", key)
        if match is None:
            continue
        stem = f"{match[1]}parametrizations.{match[2]}."
        for old, new in (("original", "_orig"), ("0._u", "_u"), ("0._v", "_v")):
            state_dict[f"{match[1]}{match[2]}{new}"] = state_dict.pop(stem + old)


def _rename_foreign(state_dict: MutableMapping[str, Any], prefix: str, name: str) -> None:
    """Renames the entries of one layer to fastsn's, in place; adds a missing right vector."""
    stem = f"{prefix}parametrizations.{name}."
    if stem + "original" in state_dict:
        return
    if f"{prefix}{name}_orig" in state_dict:
        for old, new in (("_orig", "original"), ("_u", "0._u"), ("_v", "0._v")):
            if prefix + name + old in state_dict:
                state_dict[stem + new] = state_dict.pop(prefix + name + old)
        state_dict.pop(prefix + name, None)  # the normalized weight, in files before torch 1.0
        state_dict.pop(f"{prefix}{name}_sigma", None)  # DUE's and invertible-resnet's, for looking
    else:
        left = next((left for left in _LEFT_VECTORS if prefix + left in state_dict), None)
        if left is None:
            return
        if prefix + name not in state_dict:
            raise ValueError(
                f"expected '{prefix}{name}' beside '{prefix}{left}', got no such entry"
            )
        state_dict[stem + "original"] = state_dict.pop(prefix + name)
        state_dict[stem + "0._u"] = state_dict.pop(prefix + left).flatten()
        state_dict.pop(prefix + _LEFT_VECTORS[left], None)
    weight, u = state_dict[stem + "original"], state_dict.get(stem + "0._u")
    if u is not None and stem + "0._v" not in state_dict and weight.ndim > 1:
        if len(u) != weight.shape[0]:
            raise ValueError(
                f"expected '{stem}0._u' to have {weight.shape[0]} elements, got {len(u)}"
            )
        # These layouts keep the left vector only; the right one follows from it.
        state_dict[stem + "0._v"] = F.normalize(unfold(weight, 0).mH @ u.to(weight), dim=0)


@torch.no_grad()
def load_plain_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True
) -> None:
    """Loads the state of a plain model, without any norm, into ``model``, a normalized one.

    The singular vectors are drawn anew and warmed up on the weights that were loaded.

    Args:
        model: with fastsn's spectral norms.
        state_dict: of the same model before it was normalized, or after :func:`fastsn.fold`.
        strict: as in ``load_state_dict``.

    Raises:
        ValueError: ``model`` has no spectral norm, or the file is of a normalized model.
        RuntimeError: keys or shapes do not fit, as in ``load_state_dict``. Nothing was loaded then.

    Example::

        >>> plain = nn.Sequential(nn.Linear(4, 4)).state_dict()
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> group = fastsn.apply(model, "sn")
        >>> fastsn.load_plain_state_dict(model, plain)
    """
    normalized = [key for key in state_dict if ".parametrizations." in f".{key}"]
    if normalized:
        raise ValueError(
            f"expected the state dict of a plain model, got '{normalized[0]}': "
            "model.load_state_dict reads normalized ones"
        )
    renamed, norms = dict(state_dict), []
    current = model.state_dict()
    for prefix, layer in model.named_modules():
        for name, held in parametrizations_of(layer).items():
            if getattr(held[0], "vector_names", None) is None:
                continue
            norms.append((held, held[0]))
            path = f"{prefix}." if prefix else ""
            if path + name in renamed:
                stem = f"{path}parametrizations.{name}."
                renamed[stem + "original"] = renamed.pop(path + name)
                renamed.update(
                    (key, current[key]) for key in current if key.startswith(f"{stem}0.")
                )
    if not norms:
        raise ValueError(
            f"expected {type(model).__name__} to have a fastsn spectral norm, got none"
        )
    wrong = [
        f"{key}: expected shape {tuple(current[key].shape)}, got {tuple(value.shape)}"
        for key, value in renamed.items()
        if key in current and value.shape != current[key].shape
    ]
    if strict:
        wrong += [f"missing: {key}" for key in current if key not in renamed]
        wrong += [f"unexpected: {key}" for key in renamed if key not in current]
    if wrong:
        raise RuntimeError(
            "fastsn: cannot load this plain state dict; nothing was loaded:\n  "
            + "\n  ".join(wrong)
        )
    model.load_state_dict(renamed, strict=strict)
    for held, norm in norms:
        norm.reset(held.original)


def install_load_hook(module: nn.Module) -> None:
    """Lets ``module.load_state_dict`` read the layouts above and refuse bad entries early."""
    if _load_hook not in [
        getattr(h, "hook", h) for h in module._load_state_dict_pre_hooks.values()
    ]:
        module.register_load_state_dict_pre_hook(_load_hook)


def _load_hook(
    module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_unused: Any
) -> None:
    prepare_load(module, state_dict, prefix)


def note_settings(norm: Any, destination: Any, prefix: str) -> None:
    """Writes the method, scale and bound of ``norm`` into the metadata of a state dict."""
    metadata = getattr(destination, "_metadata", None)
    if metadata is None or isinstance(norm.scale, Tensor) and norm.bound is None:
        return
    settings = {"kind": norm.kind, "scale": norm.scale}
    if isinstance(norm.scale, Tensor):  # among the entries, if it is a parameter
        del settings["scale"]
    if norm.bound is not None:
        settings["bound"] = norm.bound
    if norm.gradient != "constant":
        settings["gradient"] = norm.gradient  # of how it was trained: any model reads it
    metadata.setdefault(prefix[:-1], {})["fastsn"] = settings


def _check_settings(state_dict: Any, stem: str, norm: Any) -> None:
    metadata = (getattr(state_dict, "_metadata", None) or {}).get(stem + "0") or {}
    given = metadata.get("fastsn")
    if given is None:
        return
    wrong = given.get("bound") != norm.bound
    if "scale" in given and not isinstance(norm.scale, Tensor):
        # The second pair of vectors warms up on the weight; a scale or a kind cannot be made up.
        wrong |= given["scale"] != norm.scale or (given["kind"] == BSN and norm.kind != BSN)
    if wrong:
        ours = _method(norm.kind, norm.scale, norm.bound)
        theirs = _method(given["kind"], given.get("scale"), given.get("bound"))
        raise RuntimeError(
            f"fastsn: expected a state dict of {ours} for '{stem[:-1]}', got one of {theirs}: "
            "normalize the model as the file's was, or load dict(state_dict), which does not say. "
            "Nothing was loaded."
        )


def _method(kind: int, scale: Any, bound: float | None) -> str:
    name = "bsn" if kind == BSN else "sn"
    if isinstance(scale, float) and scale != 1:
        name = f"{name.replace('s', 'ss', 1)} with scale {scale:g}"
    return name if bound is None else f"{name} with bound {bound:g}"


def prepare_load(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Renames foreign entries of one parametrized ``module`` and checks them against it.

    Raises:
        RuntimeError: an entry of the wrong shape, with non-finite vectors, or of another method or
            scale. Nothing was loaded then.
    """
    for name, parametrization in parametrizations_of(module).items():
        vector_names = getattr(parametrization[0], "vector_names", None)
        if vector_names is None:
            continue
        try:
            _rename_foreign(state_dict, prefix, name)
        except ValueError as error:
            raise RuntimeError(f"fastsn: cannot load this state dict: {error}") from error
        stem = f"{prefix}parametrizations.{name}."
        _check_settings(state_dict, stem, parametrization[0])
        expected = {"original": parametrization.original}
        expected.update(
            ("0." + vector, getattr(parametrization[0], vector))
            for pair in vector_names
            for vector in pair
        )
        for key, wanted in expected.items():
            _check_entry(stem + key, state_dict.get(stem + key), wanted, key != "original")
        _complete_pair(state_dict, stem, parametrization[0])


def _complete_pair(state_dict: MutableMapping[str, Any], stem: str, norm: Any) -> None:
    """An SN checkpoint for a BSN layer: warms the pair it does not have up on its weight."""
    weight, u_in = state_dict.get(stem + "original"), getattr(norm, "_u_in", None)
    if weight is None or u_in is None or stem + "0._u" not in state_dict:
        return
    if stem + "0._u_in" in state_dict or stem + "0._v_in" in state_dict:
        return
    weight, view = weight.detach().to(u_in), norm.views[1]
    result = spectral_normalize(
        [weight],
        [F.normalize(weight.new_empty(view.rows).normal_(), dim=0)],
        [F.normalize(weight.new_empty(view.cols).normal_(), dim=0)],
        dims=[view.dim],
        n_power_iterations=WARM_UP,
        eps=norm.eps,
    )
    state_dict[stem + "0._u_in"] = result.us[0].to(weight.dtype)
    state_dict[stem + "0._v_in"] = result.vs[0].to(weight.dtype)


def _check_entry(key: str, value: Any, wanted: Tensor, vector: bool) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise RuntimeError(f"fastsn: expected '{key}' to be a tensor, got {type(value).__name__}")
    if value.shape != wanted.shape:
        raise RuntimeError(
            f"fastsn: size mismatch for '{key}': expected {tuple(wanted.shape)}, "
            f"got {tuple(value.shape)}. Nothing of this layer was loaded."
        )
    if vector and value.device.type != "meta" and not bool(torch.isfinite(value).all()):
        raise RuntimeError(
            f"fastsn: expected '{key}' to be finite, got a singular vector with NaN or infinity. "
            "Nothing of this layer was loaded."
        )
