"""Who is measured: every way to normalize all weights of a network once, from the same start.

A contender installs its normalization on a copy of a case's layers; :func:`make_run` makes from it
a function without arguments that does the work of one mode. :func:`check` is the gate: it
compares the first call of such a function with float64.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastsn
from benchmarks.exact import TOLERANCE, exact_normalize, relative_error
from benchmarks.workloads import Case, normalized_layers

__all__ = ["CONTENDERS", "MODES", "Contender", "Mode", "Result", "Weights", "check", "make_run"]


@dataclass(frozen=True)
class Mode:
    """One kind of work."""

    title: str
    training: bool
    forwards: int  # of all weights, per call
    backward: bool
    passes: int  # over the weights' bytes, at least: what is read and what is written


MODES = {
    "forward": Mode("forward", True, 1, False, 2),
    "forward_backward": Mode("forward + backward", True, 1, True, 5),
    "evaluation": Mode("evaluation", False, 1, False, 2),
    # real, fake and generator step: all that happens between two changes of the weights
    "three_forwards": Mode("3 forwards per step", True, 3, False, 2),
    "ten_evaluations": Mode("10 evaluations", False, 10, False, 2),
}
ONCE = ("forward", "forward_backward", "evaluation")
SHARED = ("three_forwards", "ten_evaluations")


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


class Result(NamedTuple):
    """What a run returns."""

    weights_sn: list[Tensor]
    grads: list[Tensor] | None


Install = Callable[[Weights, Case], Installed]


@dataclass(frozen=True)
class Contender:
    """One implementation."""

    title: str
    method: str  # "sn", "bsn", or "copy" for the yardsticks, which only halve the weights
    install: Install
    modes: tuple[str, ...]
    v_first: bool = False
    shares: bool = False  # the forwards of one call share one iteration


def _torch(weights: Weights, case: Case, *, cached: bool = False) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        parametrizations.spectral_norm(layer)
        norm = layer.parametrizations.weight[0]
        norm._u.copy_(pairs[0][0])
        norm._v.copy_(pairs[0][1])
    return Installed(weights, _originals(weights), parametrize.cached if cached else nullcontext)


def _torch_hook(weights: Weights, case: Case) -> Installed:
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


def _plain_bsn(weights: Weights, case: Case, *, cached: bool = False) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        parametrize.register_parametrization(layer, "weight", PlainBSN(pairs), unsafe=True)
    return Installed(weights, _originals(weights), parametrize.cached if cached else nullcontext)


def _fastsn(
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
    return Installed(weights, _originals(weights), context)


def _fastsn_single(weights: Weights, case: Case) -> Installed:
    for layer, pairs in zip(weights.layers, case.vectors, strict=True):
        fastsn.spectral_norm(layer)
        norm = layer.parametrizations.weight[0]
        norm._u.copy_(pairs[0][0])
        norm._v.copy_(pairs[0][1])
    return Installed(weights, _originals(weights), nullcontext)


def _copy(weights: Weights, case: Case) -> Installed:
    flat = torch.cat([weight.flatten() for weight in case.weights])
    out = torch.empty_like(flat)

    def read() -> list[Tensor]:
        return [torch.mul(flat, 0.5, out=out)]

    return Installed(read, [flat], nullcontext)


def _traffic(weights: Weights, case: Case) -> Installed:
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


def _originals(weights: Weights) -> list[Tensor]:
    return [layer.parametrizations.weight.original for layer in weights.layers]


_bsn = partial(_fastsn, method="bsn")

CONTENDERS = {
    "torch": Contender("torch parametrization", "sn", _torch, ONCE + SHARED),
    "torch-hook": Contender("torch old hook", "sn", _torch_hook, ONCE, v_first=True),
    "torch-cached": Contender(
        "torch, in parametrize.cached()", "sn", partial(_torch, cached=True), SHARED, shares=True
    ),
    "fastsn": Contender("fastsn", "sn", _fastsn, ONCE + SHARED),
    "fastsn-single": Contender("fastsn, layer by layer", "sn", _fastsn_single, ONCE),
    "fastsn-step": Contender(
        'fastsn, update="step"', "sn", partial(_fastsn, update="step"), SHARED[:1], shares=True
    ),
    "fastsn-frozen": Contender(
        "fastsn, in group.frozen()", "sn", partial(_fastsn, frozen=True), SHARED[1:], shares=True
    ),
    "reference": Contender(
        "fastsn, reference backend", "sn", partial(_fastsn, backend="reference"), ONCE
    ),
    "plain-bsn": Contender("plain PyTorch", "bsn", _plain_bsn, ONCE + SHARED),
    "plain-bsn-cached": Contender(
        "plain PyTorch, in parametrize.cached()", "bsn", partial(_plain_bsn, cached=True), SHARED,
        shares=True,
    ),
    "fastsn-bsn": Contender("fastsn", "bsn", _bsn, ONCE + SHARED),
    "fastsn-bsn-step": Contender(
        'fastsn, update="step"', "bsn", partial(_bsn, update="step"), SHARED[:1], shares=True
    ),
    "fastsn-bsn-frozen": Contender(
        "fastsn, in group.frozen()", "bsn", partial(_bsn, frozen=True), SHARED[1:], shares=True
    ),
    "reference-bsn": Contender(
        "fastsn, reference backend", "bsn", partial(_bsn, backend="reference"), ONCE
    ),
    "copy": Contender("one torch.mul(..., out=)", "copy", _copy, ("forward",)),
    "traffic": Contender("least memory traffic of SN", "copy", _traffic, ONCE[:2]),
}  # fmt: skip


def make_run(name: str, case: Case, mode_name: str) -> Callable[[], Result]:
    """The work of one mode by one contender, on a fresh copy of the case's layers.

    Raises:
        ValueError: the contender has no such mode.
    """
    contender, mode = CONTENDERS[name], MODES[mode_name]
    if mode_name not in contender.modes:
        raise ValueError(f"expected a mode in {contender.modes} for {name!r}, got {mode_name!r}")
    weights = Weights(copy.deepcopy(case.model))
    read, originals, context, backward = contender.install(weights, case)
    weights.train(mode.training)

    def train() -> Result:
        if mode.forwards > 1:
            # the optimizer step between two calls: a change of all weights that costs nothing
            torch.autograd.graph.increment_version(originals)
        with context():
            for _ in range(mode.forwards):
                weights_sn = read()
        if not mode.backward:
            return Result(weights_sn, None)
        if backward is not None:
            return Result(weights_sn, backward())
        return Result(weights_sn, list(torch.autograd.grad(weights_sn, originals, case.grads)))

    def evaluate() -> Result:
        with torch.no_grad(), context():
            for _ in range(mode.forwards):
                weights_sn = read()
        return Result(weights_sn, None)

    return train if mode.training else evaluate


def check(name: str, case: Case, mode_name: str, first: Result) -> float:
    """The largest relative error of a run's first result.

    Raises:
        AssertionError: it is above the tolerance; such a run must not be timed.
    """
    contender, mode = CONTENDERS[name], MODES[mode_name]
    iterations = int(mode.training) * (1 if contender.shares else mode.forwards)
    if contender.method == "copy":
        pairs_of = [(first.weights_sn[0], case.weights)]
        if first.grads is not None:
            pairs_of.append((first.grads[0], case.grads))
        halves = [
            relative_error(half, torch.cat([t.flatten() for t in whole]).double().cpu() / 2)
            for half, whole in pairs_of
        ]
        return _gate(name, mode_name, halves)
    errors = []
    for i, (weight, pairs, grad) in enumerate(
        zip(case.weights, case.vectors, case.grads, strict=True)
    ):
        weight_sn, grad_weight = exact_normalize(
            weight,
            pairs if contender.method == "bsn" else pairs[:1],
            grad if mode.backward else None,
            iterations=iterations,
            v_first=contender.v_first,
        )
        errors.append(relative_error(first.weights_sn[i], weight_sn))
        if grad_weight is not None and first.grads is not None:
            errors.append(relative_error(first.grads[i], grad_weight))
    return _gate(name, mode_name, errors)


def _gate(name: str, mode_name: str, errors: list[float]) -> float:
    worst = max(errors)
    if not worst <= TOLERANCE:
        raise AssertionError(
            f"{name}, {mode_name}: expected a relative error up to {TOLERANCE:g}, got {worst:.3g}"
        )
    return worst
