"""Calls of the two functions, as tests, gates and the page of arithmetic make them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads import make_case
from fastsn.plan import BSN, SN


class Call(NamedTuple):
    """Arguments of forward up to ``scales``, and gradients for backward."""

    weights: list[Tensor]
    us: list[Tensor]
    vs: list[Tensor]
    dims: list[int]
    kinds: list[int]
    scales: list[float]
    grads: list[Tensor]

    @property
    def elements(self) -> int:
        return sum(weight.numel() for weight in self.weights)


def workload(
    name: str, kind: int, dtype: torch.dtype = torch.float32, *, small: bool = False
) -> Call:
    """A network of benchmarks/workloads.py; SN, or BSN where there are two unfoldings."""
    case = make_case(name, small=small)
    weights = [weight.clone().to(dtype) for weight in case.weights]
    kinds = [BSN if kind == BSN and weight.ndim > 2 else SN for weight in weights]
    pairs = [
        pair
        for own, kind in zip(case.vectors, kinds, strict=True)
        for pair in own[: 2 if kind == BSN else 1]
    ]
    return Call(
        weights,
        [u.clone().to(dtype) for u, _ in pairs],
        [v.clone().to(dtype) for _, v in pairs],
        [0] * len(weights),
        kinds,
        [1.0] * len(weights),
        [grad.clone().to(dtype) for grad in case.grads],
    )


def forward(machine: Any, call: Call, n: int = 1) -> Any:
    return machine.forward(*call[:6], None, n, 1e-12, None)


def backward(machine: Any, call: Call, results: Any) -> Any:
    dtype = call.weights[0].dtype
    rest = (call.dims, call.kinds, call.scales, None, dtype)
    return machine.backward(call.grads, None, *results, *rest)
