"""Weights for the Triton kernels' tests, calls of the op on their device, and their judge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import oracle
import torch
from cases import (
    Group,
    Pairs,
    assert_near,
    random_pairs,
    spectral_normalize,
    split_pairs,
    wide,
    wide_pairs,
)
from torch import Tensor

from fastsn.backends import requested_backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

#: Shape, dim, kind, memory format. Together: every tile shape, with one view and two; rows, columns
#: and kernels of 1, of primes and of whole tiles; one tile and many.
WEIGHTS = [
    ((3, 17), 0, oracle.SN, "contiguous"),
    ((7, 5), 1, oracle.SN, "contiguous"),
    ((1, 1), 0, oracle.SN, "contiguous"),
    ((1, 13), 0, oracle.SN, "contiguous"),
    ((13, 1), 0, oracle.SN, "contiguous"),
    ((2, 3, 3, 2), 1, oracle.SN, "contiguous"),
    ((3, 2, 5), 2, oracle.SN, "contiguous"),
    ((3, 5, 2, 2), 0, oracle.SN, "channels_last"),
    ((3, 5, 2, 2), 1, oracle.SN, "channels_last"),
    ((5, 3, 3), 0, oracle.BSN, "contiguous"),
    ((4, 6, 2, 2), 1, oracle.BSN, "contiguous"),
    ((5, 9, 1, 1), 0, oracle.BSN, "contiguous"),
    ((5, 9, 1, 2), 1, oracle.BSN, "channels_last"),
    ((1, 1, 1), 0, oracle.BSN, "contiguous"),
    ((5, 11), 0, oracle.SN_V_FIRST, "contiguous"),
    ((3, 2, 3), 2, oracle.SN_V_FIRST, "contiguous"),
]
FEW = [WEIGHTS[i] for i in (0, 7, 10, 12, 14)]

OTHERS = [torch.float64, torch.bfloat16, torch.float16]

#: Errors allowed relative to the largest expected magnitude: a few ulps of the result's dtype.
TOLERANCE = {
    torch.float32: 1e-6, torch.float64: 2e-15, torch.bfloat16: 8e-3, torch.float16: 1e-3
}  # fmt: skip


def make(entries: Sequence[Any], dtype: torch.dtype, n: int = 1) -> Group:
    weights, pairs = [], []
    for shape, dim, kind, layout in entries:
        weight = torch.randn(shape).to(dtype)
        if layout == "channels_last":
            weight = weight.to(memory_format=torch.channels_last)
        own = random_pairs(weight, dim, kind)
        if n == 0:
            # Trained ones: of random vectors u^T M v is mostly error.
            trained = oracle.normalize(
                wide(weight), wide_pairs(own), dim, kind, n_power_iterations=2
            )
            own = [(torch.tensor(u).to(dtype), torch.tensor(v).to(dtype)) for u, v in trained.pairs]
        weights.append(weight)
        pairs.append(own)
    return Group(weights, pairs, [e[1] for e in entries], [e[2] for e in entries])


class Outcome:
    """Everything forward and backward give for a group, on the CPU."""

    def __init__(
        self,
        group: Group,
        n: int = 1,
        scales: Sequence[float] | Tensor = (),
        eps: float = 1e-12,
        out_dtype: torch.dtype | None = None,
        grads: Sequence[Tensor] | None = None,
        grad_sigmas: Tensor | None = None,
    ) -> None:
        k = len(group.weights)
        leaves = [w.to(DEVICE).detach().requires_grad_() for w in group.weights]
        flat = [(u.to(DEVICE), v.to(DEVICE)) for pairs in group.pairs for u, v in pairs]
        tensor = scales.to(DEVICE).clone().requires_grad_() if isinstance(scales, Tensor) else None
        floats = [1.0] * k if tensor is not None or not scales else list(scales)
        weights_sn, sigmas, vectors, stats = spectral_normalize(
            leaves, [u for u, _ in flat], [v for _, v in flat], group.dims, group.kinds, floats,
            tensor, n, eps, out_dtype, requested_backend(),
        )  # fmt: skip
        for weight, result in zip(group.weights, weights_sn, strict=True):
            assert result.stride() == weight.stride()
        self.weights = [result.detach().cpu() for result in weights_sn]
        self.sigmas, self.stats = sigmas.detach().cpu(), stats.cpu()
        self.pairs: list[Pairs] = split_pairs(vectors.cpu(), leaves, group.dims, group.kinds)
        self.grads: list[Tensor] = []
        if grads is None:
            return
        outputs, given = list(weights_sn), [g.to(DEVICE) for g in grads]
        if grad_sigmas is not None:
            outputs, given = [*outputs, sigmas], [*given, grad_sigmas.to(DEVICE)]
        torch.autograd.backward(outputs, given)
        self.grads = [leaf.grad.cpu() for leaf in leaves]
        self.grad_scales = None if tensor is None else tensor.grad.cpu()


def check(
    group: Group, n: int, dtype: torch.dtype, scales: Sequence[float] | Tensor = (), **options: Any
) -> Outcome:
    """Compares forward and backward with the oracle."""
    out_dtype = options.get("out_dtype") or dtype
    grads = [torch.randn(w.shape).to(out_dtype) for w in group.weights]
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    grad_sigmas = torch.randn(len(grads), dtype=accumulate)
    result = Outcome(group, n, scales, grads=grads, grad_sigmas=grad_sigmas, **options)
    for i, weight in enumerate(group.weights):
        about = {"dim": group.dims[i], "kind": group.kinds[i]}
        about["scale"] = float(scales[i]) if len(scales) else 1.0
        what = f"of {tuple(weight.shape)}, {about}, n={n}"
        expected = oracle.normalize(
            wide(weight), wide_pairs(group.pairs[i]), **about, n_power_iterations=n,
            eps=options.get("eps", 1e-12),
        )  # fmt: skip
        grad, grad_scale = oracle.gradients(
            wide(weight), expected, wide(grads[i]), float(grad_sigmas[i]), **about
        )
        assert_near(result.weights[i], expected.weight_sn, TOLERANCE[out_dtype], f"W_sn {what}")
        tight = TOLERANCE[accumulate]
        assert_near(result.sigmas[i], expected.sigma, tight, f"sigma {what}")
        for mine, exact in zip(result.pairs[i], expected.pairs, strict=True):
            assert_near(mine[0], exact[0], tight, f"u {what}")
            assert_near(mine[1], exact[1], tight, f"v {what}")
        # A gradient is a difference of terms, one of them made of W_sn as it was rounded.
        loose = 20 * max(TOLERANCE[dtype], TOLERANCE[out_dtype])
        assert_near(result.grads[i], grad, loose, f"grad W {what}")
        if result.grad_scales is not None:
            assert_near(result.grad_scales[i], grad_scale, 20 * loose, f"grad scale {what}")
    return result


def everything(outcome: Outcome, i: int) -> list[Tensor]:
    vectors = [vector for pair in outcome.pairs[i] for vector in pair]
    return [outcome.weights[i], outcome.sigmas[i], *outcome.grads[i : i + 1], *vectors]
