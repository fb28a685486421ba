"""Calls of the two functions, as tests, gates and the page of arithmetic make them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads import make_case
from fastsn.plan import BSN, SN, Plan, plan_of

from .machine import BackendMachine

EPS = 1e-12


class Call(NamedTuple):
    """Weights with vectors, and gradients of the normalized weights."""

    plan: Plan
    weights: list[Tensor]
    us: list[Tensor]
    vs: list[Tensor]
    grads: list[Tensor]

    @property
    def elements(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    def forward(self, machine: BackendMachine, n: int = 1) -> Any:
        return machine.forward(self.plan, self.weights, self.us, self.vs, None, n, None)

    def backward(self, machine: BackendMachine, results: Any) -> Any:
        dtype = self.weights[0].dtype
        return machine.backward(self.plan, self.grads, None, *results, None, dtype)


def call_of(weights: list[Tensor], kinds: list[int], vectors: Any, grads: list[Tensor]) -> Call:
    """``vectors``: pairs of every unfolding, of which SN takes the first."""
    shapes, k = tuple(tuple(weight.shape) for weight in weights), len(weights)
    plan = plan_of(shapes, (0,) * k, tuple(kinds), (1.0,) * k, EPS)
    dtype = weights[0].dtype
    pairs = [
        pair
        for own, kind in zip(vectors, kinds, strict=True)
        for pair in own[: 2 if kind == BSN else 1]
    ]
    us, vs = ([pair[k].clone().to(dtype) for pair in pairs] for k in (0, 1))
    return Call(plan, weights, us, vs, grads)


def workload(name: str, kind: int, dtype: torch.dtype = torch.float32) -> Call:
    """A network of benchmarks/workloads.py; SN, or BSN where there are two unfoldings."""
    case = make_case(name)
    weights = [weight.clone().to(dtype) for weight in case.weights]
    kinds = [BSN if kind == BSN and weight.ndim > 2 else SN for weight in weights]
    return call_of(weights, kinds, case.vectors, [grad.clone().to(dtype) for grad in case.grads])


def one_weight(shape: tuple[int, ...], kind: int, *, channels_last: bool = False) -> Call:
    weight, grad = torch.randn(2, *shape)
    if channels_last:
        weight, grad = (x.to(memory_format=torch.channels_last) for x in (weight, grad))
    unfoldings = [weight.movedim(dim, 0).flatten(1) for dim in (0, 1)[: len(shape) - 1]]
    vectors = [[tuple(torch.randn(size) for size in matrix.shape) for matrix in unfoldings]]
    return call_of([weight], [kind], vectors, [grad])
