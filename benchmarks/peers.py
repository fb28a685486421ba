"""Who is measured: every way to normalize all weights of a network once, from the same start.

A contender installs its normalization on a copy of a case's layers; :func:`make_run` makes from it
a function without arguments that does the work of one mode. :func:`check` is the gate: it
compares the first call of such a function with float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import installs
from benchmarks.exact import TOLERANCE, exact_normalize, relative_error
from benchmarks.installs import Install, Weights
from benchmarks.workloads import Case

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


class Result(NamedTuple):
    """What a run returns."""

    weights_sn: list[Tensor]
    grads: list[Tensor] | None


@dataclass(frozen=True)
class Contender:
    """One implementation."""

    title: str
    method: str  # "sn", "bsn", or "copy" for the yardsticks, which only halve the weights
    install: Install
    modes: tuple[str, ...]
    v_first: bool = False
    shares: bool = False  # the forwards of one call share one iteration
    everywhere: bool = True  # False: what it does on a CPU is another contender's work
    few: bool = False  # also in workloads of few contenders


def _compiled(title: str, method: str, install: Install, mode: str | None = None) -> Contender:
    # without CUDA graphs and autotuned kernels, a CPU's modes are all the default one
    wrapped = partial(installs.compiled, install=install, mode=mode)
    return Contender(title, method, wrapped, ONCE[:2], everywhere=mode is None)


_bsn = partial(installs.grouped, method="bsn")

CONTENDERS = {
    "torch": Contender(
        "torch parametrization", "sn", installs.torch_parametrization, ONCE + SHARED, few=True
    ),
    "torch-hook": Contender("torch old hook", "sn", installs.torch_hook, ONCE, v_first=True),
    "torch-cached": Contender(
        "torch, in parametrize.cached()",
        "sn",
        partial(installs.torch_parametrization, cached=True),
        SHARED,
        shares=True,
    ),
    "torch-compiled": _compiled("torch, compiled", "sn", installs.torch_parametrization),
    "torch-graphs": _compiled(
        "torch, compiled, reduce-overhead", "sn", installs.torch_parametrization, "reduce-overhead"
    ),
    "torch-autotuned": _compiled(
        "torch, compiled, max-autotune", "sn", installs.torch_parametrization, "max-autotune"
    ),
    "stacked": Contender("torch, bmm and _foreach", "sn", installs.stacked, ONCE, few=True),
    "biggan": Contender("BigGAN's layers", "sn", installs.biggan, ONCE[:2], v_first=True),
    "fastsn": Contender("fastsn", "sn", installs.grouped, ONCE + SHARED, few=True),
    "fastsn-single": Contender("fastsn, layer by layer", "sn", installs.layer_by_layer, ONCE),
    "fastsn-step": Contender(
        'fastsn, update="step"',
        "sn",
        partial(installs.grouped, update="step"),
        SHARED[:1],
        shares=True,
    ),
    "fastsn-frozen": Contender(
        "fastsn, in group.frozen()",
        "sn",
        partial(installs.grouped, frozen=True),
        SHARED[1:],
        shares=True,
    ),
    "reference": Contender(
        "fastsn, reference backend", "sn", partial(installs.grouped, backend="reference"), ONCE
    ),
    "plain-bsn": Contender("plain PyTorch", "bsn", installs.plain_bsn, ONCE + SHARED, few=True),
    "plain-bsn-cached": Contender(
        "plain PyTorch, in parametrize.cached()",
        "bsn",
        partial(installs.plain_bsn, cached=True),
        SHARED,
        shares=True,
    ),
    "plain-bsn-compiled": _compiled("plain PyTorch, compiled", "bsn", installs.plain_bsn),
    "plain-bsn-graphs": _compiled(
        "plain PyTorch, compiled, reduce-overhead", "bsn", installs.plain_bsn, "reduce-overhead"
    ),
    "fastsn-bsn": Contender("fastsn", "bsn", _bsn, ONCE + SHARED, few=True),
    "fastsn-bsn-step": Contender(
        'fastsn, update="step"', "bsn", partial(_bsn, update="step"), SHARED[:1], shares=True
    ),
    "fastsn-bsn-frozen": Contender(
        "fastsn, in group.frozen()", "bsn", partial(_bsn, frozen=True), SHARED[1:], shares=True
    ),
    "reference-bsn": Contender(
        "fastsn, reference backend", "bsn", partial(_bsn, backend="reference"), ONCE
    ),
    "copy": Contender("one torch.mul(..., out=)", "copy", installs.halve, ("forward",), few=True),
    "traffic": Contender(
        "least memory traffic of SN", "copy", installs.least_traffic, ONCE[:2], few=True
    ),
}


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
