"""A table of every layer's norms: what it is divided by, what is exact, and what the paper bounds.

Looking changes nothing: everything runs on a copy in evaluation mode, so no power iteration
advances, and no buffer, mode or random number of the model is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

from fastsn.analysis.convolution import map_norm, plain_copy
from fastsn.analysis.theory import (
    bsn_variance_bound,
    parameter_variance,
    spectral_norm_exact,
    theorem2_bound,
)
from fastsn.analysis.tsuzuku import map_bounds
from fastsn.conv_map import ConvMap, is_conv

__all__ = ["LayerReport", "LayerRow", "layer_report"]


@dataclass(frozen=True)
class LayerRow:
    """One weight of a model. ``W`` is its raw parameter; None where a column does not apply.

    Attributes:
        name: parameter name, as ``blocks.0.conv.weight``.
        norm: ``"none"``, ``"SN"``, ``"BSN"``, ``"SN_Conv"``, or the class of another
            parametrization.
        shape: of ``W``.
        sigma_0, sigma_1: exact ``||unfold_0(W)||`` and ``||unfold_1(W)||``.
        exact: the exact value of what the norm estimates: of these one, their mean, or the
            convolution's norm.
        sigma: what the layer divides ``W`` by, at its present vectors.
        ratio: ``sigma / exact``: 1 when the power iteration has converged, smaller before.
        scale: factor of the normalized weight.
        variance: mean square of the entries of the weight the layer uses.
        variance_bound: what it can be with ``exact`` instead of ``sigma``: ``scale^2`` times the
            bound of theorem 2 or for BSN :func:`bsn_variance_bound`. It can be exceeded by the
            factor ``ratio^-2``.
        input_shape: ``(c_in, *size)`` of the convolution's input; known for SN_Conv, or from
            ``example_input``.
        conv_norm: norm of ``W`` as a convolution on inputs of that size.
        conv_lower, conv_upper: bounds of ``conv_norm`` (:func:`tsuzuku_bounds`).
    """

    name: str
    norm: str
    shape: tuple[int, ...]
    sigma_0: float
    sigma_1: float
    exact: float | None = None
    sigma: float | None = None
    ratio: float | None = None
    scale: float | None = None
    variance: float | None = None
    variance_bound: float | None = None
    input_shape: tuple[int, ...] | None = None
    conv_norm: float | None = None
    conv_lower: float | None = None
    conv_upper: float | None = None


class LayerReport(list[LayerRow]):
    """The rows of :func:`layer_report`; ``str`` and ``print`` show them as a table."""

    def __str__(self) -> str:
        names = [field.name for field in fields(LayerRow)]
        # Columns nothing is known of would only widen the table.
        names = [name for name in names if any(getattr(row, name) is not None for row in self)]
        table = [names] + [[_cell(getattr(row, name)) for name in names] for row in self]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def layer_report(
    model: nn.Module, example_input: Tensor | Sequence[Any] | None = None
) -> LayerReport:
    """Norms, variances and bounds of every weight of ``model`` that has 2 or more dimensions.

    Works for plain layers, fastsn's norms and both of torch's spectral norms. The singular values
    are computed in float64, so large models take seconds to minutes.

    Args:
        model: not changed in any way.
        example_input: an input of the model, or a sequence of its arguments. A copy of the model
            runs on it, in evaluation mode, to learn the input size of every convolution (of the
            first call of each).

    Returns:
        A list of :class:`LayerRow`, in the model's order, that prints as a table.

    Example::

        >>> print(fastsn.analysis.layer_report(discriminator, torch.randn(1, 3, 32, 32)))
    """
    replica = plain_copy(model)
    seen: dict[str, tuple[int, ...]] = {}
    if example_input is not None:
        args = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
        seen = _input_shapes(replica, args)
    report = LayerReport()
    # What the vectors are is read from the model, not the copy: its forward gives lazy layers some.
    for (path, layer), copied in zip(model.named_modules(), replica.modules(), strict=True):
        if isinstance(layer, parametrize.ParametrizationList) or _is_parametrization(model, path):
            continue
        for name, raw in _weights(layer):
            label = f"{path}.{name}" if path else name
            report.append(_row(label, layer, copied, name, raw.detach(), seen.get(path)))
    return report


def _input_shapes(replica: nn.Module, args: tuple[Any, ...]) -> dict[str, tuple[int, ...]]:
    paths = {module: path for path, module in replica.named_modules() if is_conv(module)}
    seen: dict[str, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = inputs[0] if inputs else kwargs["input"]
        dims = len(module.kernel_size)  # type: ignore[arg-type]
        seen.setdefault(paths[module], tuple(x.shape[-dims - 1 :]))

    for module in paths:
        module.register_forward_pre_hook(note, with_kwargs=True)
    devices = {p.device for p in replica.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)):
        replica(*args)
    return seen


def _is_parametrization(model: nn.Module, path: str) -> bool:
    return "parametrizations" in path.split(".")


def _weights(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and raw values of a layer's weights, with those behind parametrizations and hooks."""
    found: list[tuple[str, Tensor]] = []
    for name, parameter in layer._parameters.items():
        if parameter is not None and not is_lazy(parameter):
            shown = name.removesuffix("_orig") if _old_hook(layer, name) else name
            found.append((shown, parameter))
    if parametrize.is_parametrized(layer):
        held: Any = layer.parametrizations
        for name, norms in held.items():
            # Without one original (as weight_norm has) the weight itself is what can be looked at.
            raw = norms.original if norms.is_tensor else None
            if raw is None:
                with torch.no_grad():
                    raw = getattr(plain_copy(layer), name)
            found.append((name, raw))
    return [(name, raw) for name, raw in found if raw.ndim >= 2 and raw.is_floating_point()]


def _old_hook(layer: nn.Module, name: str) -> Any:
    """The hook of torch.nn.utils.spectral_norm that made the parameter ``name``, or None."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, TorchHook) and f"{hook.name}_orig" == name:
            return hook
    return None


def _describe(layer: nn.Module, name: str) -> tuple[str, int, float | None]:
    """``(norm, dim, scale)``; no scale for what is not a spectral norm.

    By class names and attributes: what defines the parametrizations may import this, not it them.
    """
    if not parametrize.is_parametrized(layer, name):
        hook = _old_hook(layer, f"{name}_orig")
        return ("none", 0, None) if hook is None else ("SN", hook.dim, 1.0)
    norms: Any = list(layer.parametrizations[name])  # type: ignore[index]
    kinds = [type(norm).__name__ for norm in norms]
    scale = getattr(norms[0], "scale", 1.0)
    scale = scale.item() if isinstance(scale, Tensor) else scale
    if kinds == ["_SpectralNorm"]:
        return "SN", norms[0].dim, 1.0
    if kinds == ["SpectralNorm"]:
        return ("BSN" if hasattr(norms[0], "_u_in") else "SN"), norms[0].dim, scale
    if kinds == ["ConvSpectralNorm"]:
        return "SN_Conv", 0, scale
    return " + ".join(kinds), 0, None


def _used_weight(layer: nn.Module, copied: nn.Module, name: str, raw: Tensor) -> Tensor | None:
    """The weight an evaluation forward uses; None where there is none yet."""
    hook = _old_hook(layer, f"{name}_orig")
    with torch.no_grad():
        if hook is not None:
            return hook.compute_weight(copied, do_power_iteration=False)
        if not parametrize.is_parametrized(layer, name):
            return raw
        norms: Any = layer.parametrizations[name]  # type: ignore[index]
        if any(getattr(norm, "input_shape", ()) is None for norm in norms):
            return None  # SN_Conv before its first forward
        return getattr(copied, name)


def _divisor(raw: Tensor, used: Tensor, scale: float) -> float | None:
    """``sigma`` from ``used = scale * raw / sigma``."""
    w, w_sn = raw.detach().to(torch.float64), used.detach().to(torch.float64)
    square = float((w_sn * w_sn).sum())
    return scale * float((w * w_sn).sum()) / square if square else None


def _row(
    label: str,
    layer: nn.Module,
    copied: nn.Module,
    name: str,
    raw: Tensor,
    input_shape: tuple[int, ...] | None,
) -> LayerRow:
    norm, dim, scale = _describe(layer, name)
    used = _used_weight(layer, copied, name, raw)
    sigmas = spectral_norm_exact(raw, 0), spectral_norm_exact(raw, 1)
    row: dict[str, Any] = {
        "name": label,
        "norm": norm,
        "shape": tuple(raw.shape),
        "sigma_0": sigmas[0],
        "sigma_1": sigmas[1],
        "scale": scale,
        "variance": None if used is None else parameter_variance(used),
    }
    if norm == "SN_Conv":
        norms: Any = layer.parametrizations
        input_shape = norms[name][0].input_shape or input_shape
    if is_conv(layer) and name == "weight" and input_shape is not None:
        conv = ConvMap.of_module(layer, raw.shape)
        lower, upper = map_bounds(conv, raw, input_shape)
        row |= {"input_shape": input_shape, "conv_norm": map_norm(conv, raw, input_shape)}
        row |= {"conv_lower": lower, "conv_upper": upper}
    if scale is None:
        return LayerRow(**row)
    bound = None
    if norm == "SN":
        row["exact"] = sigmas[dim] if dim in (0, 1) else spectral_norm_exact(raw, dim)
        bound = theorem2_bound(raw.shape[dim], raw.numel() // raw.shape[dim])
    elif norm == "BSN":
        row["exact"] = sum(sigmas) / 2
        bound = bsn_variance_bound(raw.shape[0], raw.shape[1], raw.shape[2:])
    else:
        row["exact"] = row.get("conv_norm")
        if row.get(
            "conv_lower"
        ):  # the convolution's norm is then at least that of each group's kernel
            groups: Any = layer.groups
            bound = theorem2_bound(raw.shape[0] // groups, raw[0].numel())
    row["variance_bound"] = None if bound is None else scale**2 * bound
    row["sigma"] = None if used is None else _divisor(raw, used, scale)
    if row["sigma"] is not None and row["exact"]:
        row["ratio"] = row["sigma"] / row["exact"]
    return LayerRow(**row)
