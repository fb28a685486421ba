"""A forward: the normalized weights of some parametrizations, alone or as a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.compute import attach, autocast_dtype, compute
from fastsn.state.ranks import share_vectors
from fastsn.step import normalize_step, normalize_step_compiled

if TYPE_CHECKING:
    from fastsn.parametrization import SpectralNorm

__all__ = ["normalize"]


def normalize(norms: Sequence[SpectralNorm], weights: Sequence[Tensor]) -> list[Tensor]:
    """The normalized weights of one forward; layers of equal settings share one op call.

    Advances the vectors of layers in training mode: at every call, or with ``update="step"``
    once per change of the weight (:mod:`fastsn.step`).
    """
    compiling = torch.compiler.is_compiling()
    if not compiling:
        share_vectors(norms)
    autocast = compiling or torch._C._is_any_autocast_enabled()
    results: list[Any] = [None] * len(norms)
    buckets: dict[Any, list[int]] = {}
    last: Any = None
    for i, (norm, weight) in enumerate(zip(norms, weights, strict=True)):
        if not norm.views:
            results[i] = F.normalize(weight, dim=0, eps=norm.eps) * norm.scale
            continue
        step = norm.training and norm.update == "step"
        iterations = norm.n_power_iterations if norm.training else 0
        out_dtype = autocast_dtype(weight) if autocast else None
        key = step, iterations, out_dtype, norm.eps, weight.dtype, weight.device
        if key != last:
            last, members = key, buckets.setdefault(key, [])
        members.append(i)
    for (step, iterations, out_dtype, *_), members in buckets.items():
        own, inputs = norms, weights
        if len(members) < len(norms):
            own, inputs = [norms[i] for i in members], [weights[i] for i in members]
        if step:
            in_steps = normalize_step_compiled if compiling else normalize_step
            normalized = in_steps(own, inputs, out_dtype)
        elif compiling or torch._C._are_functorch_transforms_active():
            normalized = compute(own, inputs, iterations, out_dtype).weights_sn
        else:
            with torch.no_grad():
                computed = compute(own, inputs, iterations, out_dtype)
            normalized = attach(computed, own, inputs, again=False)
        for i, result in zip(members, normalized, strict=True):
            results[i] = result
    return results
