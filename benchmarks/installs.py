"""How each contender is put on the layers of a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastsn
from benchmarks.workloads import Case, normalized_layers


class Weights(nn.Module):
    """A network's layers without the network: its forward reads all weights, as theirs would."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(normalized_layers(model))

    def forward(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]


class Installed(NamedTuple):
    """What a contender made of the layers."""

    read: Callable[[], list[Tensor]]  # normalizes all weights once
    originals: list[Tensor]  # the parameters behind them
    context: Callable[[], AbstractContextManager[object]]  # around every call
    backward: Callable[[], list[Tensor]] | None = None  # in place of autograd


Install = Callable[[Weights, Case], Installed]


def torch_parametrization(weights: Weights, case: Case, *, cached: bool = False) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        parametrizations.spectral_norm(layer)
        norm = layer.parametrizations.weight[0]
        norm._u.copy_(pairs[0][0])
        norm._v.copy_(pairs[0][1])
    return Installed(weights, originals(weights), parametrize.cached if cached else nullcontext)


def torch_hook(weights: Weights, case: Case) -> Installed:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and widely used
        for layer, pairs in zip(weights.layers, case.vectors, strict=True):
            nn.utils.spectral_norm(layer)
            layer.weight_u.copy_(pairs[0][0])
            layer.weight_v.copy_(pairs[0][1])

    def read() -> list[Tensor]:
        for layer in weights.layers:
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())
        return weights()

    return Installed(read, [layer.weight_orig for layer in weights.layers], nullcontext)


class PlainBSN(nn.Module):
    """BSN as one writes it in plain PyTorch: power iterations, mean of two sigmas, autograd."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.n_views = len(pairs)
        for d, (u, v) in enumerate(pairs):
            self.register_buffer(f"u{d}", u.clone())
            self.register_buffer(f"v{d}", v.clone())

    def forward(self, weight: Tensor) -> Tensor:
        sigma = torch.zeros((), device=weight.device)
        for d in range(self.n_views):
            u, v = getattr(self, f"u{d}"), getattr(self, f"v{d}")
            matrix = weight.transpose(0, d).flatten(1)
            if self.training:
                with torch.no_grad():
                    F.normalize(torch.mv(matrix, v), dim=0, out=u)
                    F.normalize(torch.mv(matrix.T, u), dim=0, out=v)
                u, v = u.clone(), v.clone()
            sigma = sigma + torch.vdot(u, torch.mv(matrix, v))
        return weight * (self.n_views / sigma)


def plain_bsn(weights: Weights, case: Case, *, cached: bool = False) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        parametrize.register_parametrization(layer, "weight", PlainBSN(pairs), unsafe=True)
    return Installed(weights, originals(weights), parametrize.cached if cached else nullcontext)


def grouped(
    weights: Weights,
    case: Case,
    *,
    method: str = "sn",
    update: str = "forward",
    frozen: bool = False,
    backend: str = "",
) -> Installed:
    with fastsn.use_backend(backend or "auto"):
        group = fastsn.apply(weights, method, update=update)
    for member, pairs in zip(group.members, case.vectors, strict=True):
        for own, given in zip(member.norm.vectors(), pairs, strict=method == "bsn"):
            for vector, start in zip(own, given, strict=True):
                vector.copy_(start)
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    if frozen:
        context = group.frozen
    elif backend:
        context = partial(fastsn.use_backend, backend)
    return Installed(weights, originals(weights), context)


def layer_by_layer(weights: Weights, case: Case) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        fastsn.spectral_norm(layer)
        norm = layer.parametrizations.weight[0]
        norm._u.copy_(pairs[0][0])
        norm._v.copy_(pairs[0][1])
    return Installed(weights, originals(weights), nullcontext)


def halve(weights: Weights, case: Case) -> Installed:
    flat = torch.cat([weight.flatten() for weight in case.weights])
    out = torch.empty_like(flat)

    def read() -> list[Tensor]:
        return [torch.mul(flat, 0.5, out=out)]

    return Installed(read, [flat], nullcontext)


def least_traffic(weights: Weights, case: Case) -> Installed:
    """The passes over memory that no SN can do without, where the weights do not fit in cache.

    Forward: sigma needs all of W before W_sn can be written. Backward: <G, W_sn> likewise.
    """
    flat = torch.cat([weight.flatten() for weight in case.weights])
    grad = torch.cat([grad.flatten() for grad in case.grads])
    out, grad_out = torch.empty_like(flat), torch.empty_like(flat)

    def read() -> list[Tensor]:
        torch.dot(flat, flat)
        return [torch.mul(flat, 0.5, out=out)]

    def backward() -> list[Tensor]:
        torch.dot(grad, out)
        return [torch.mul(grad, 0.5, out=grad_out)]

    return Installed(read, [flat], nullcontext, backward)


def originals(weights: Weights) -> list[Tensor]:
    return [layer.parametrizations.weight.original for layer in weights.layers]


def compiled(
    weights: Weights, case: Case, *, install: Install, mode: str | None = None
) -> Installed:
    """Another contender, under ``torch.compile``."""
    installed = install(weights, case)
    module = torch.compile(weights, mode=mode)

    def read() -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # the results of the call before may be reused
        return module()

    return installed._replace(read=read)


def stacked(weights: Weights, case: Case) -> Installed:
    """The best without kernels: weights of one shape stacked for ``bmm``, the rest ``_foreach``."""
    by_shape: dict[torch.Size, list[int]] = {}
    tensors = [layer.weight for layer in weights.layers]
    for i, tensor in enumerate(tensors):
        by_shape.setdefault(tensor.shape, []).append(i)
    vectors = {
        shape: [torch.stack([case.vectors[i][0][k] for i in own])[..., None] for k in (0, 1)]
        for shape, own in by_shape.items()
    }

    def read() -> list[Tensor]:
        sigmas: list[Tensor] = [tensors[0]] * len(tensors)
        for shape, own in by_shape.items():
            matrices = torch.stack([tensors[i].flatten(1) for i in own])
            u, v = vectors[shape]
            if weights.training:
                with torch.no_grad():
                    u = F.normalize(torch.bmm(matrices, v), dim=1)
                    v = F.normalize(torch.bmm(matrices.mT, u), dim=1)
                    vectors[shape] = [u, v]
            each = torch.bmm(u.mT, torch.bmm(matrices, v)).flatten()
            for i, sigma in zip(own, each.unbind(), strict=True):
                sigmas[i] = sigma
        return list(torch._foreach_div(tensors, sigmas))

    return Installed(read, tensors, nullcontext)


class BigGANStyle(nn.Module):
    """As in BigGAN's layers: only u is kept, v comes from it, and gradients flow through sigma."""

    def __init__(self, u: Tensor) -> None:
        super().__init__()
        self.register_buffer("u0", u[None].clone())

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(torch.matmul(self.u0, matrix))
            u = F.normalize(torch.matmul(v, matrix.T))
            if self.training:
                self.u0.copy_(u)
        return weight / torch.matmul(torch.matmul(v, matrix.T), u.T).squeeze()


def biggan(weights: Weights, case: Case) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        layer_norm = BigGANStyle(pairs[0][0])
        parametrize.register_parametrization(layer, "weight", layer_norm, unsafe=True)
    return Installed(weights, originals(weights), nullcontext)
