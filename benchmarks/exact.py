"""The right answers, in float64 and by autograd, for the gate that every benchmark passes first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TOLERANCE", "exact_normalize", "relative_error"]

#: Largest error of a float32 result, relative in the Euclidean norm, that may still be timed.
TOLERANCE = 1e-5


def exact_normalize(
    weight: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    grad: Tensor | None,
    *,
    iterations: int,
    v_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``W / sigma`` and, for ``grad`` = dL/d(W / sigma), dL/dW; on the CPU, in float64.

    Args:
        weight: any rank.
        pairs: ``(u, v)`` of the unfolding along dimension 0 (SN), or of those along 0 and 1 (BSN).
        grad: dL/d(W / sigma), or None.
        iterations: power iterations before sigma is taken.
        v_first: the order of torch's old hook.
    """
    weight = weight.detach().double().cpu().requires_grad_()
    sigmas = []
    for dim, (u, v) in enumerate(pairs):
        matrix = weight.movedim(dim, 0).flatten(1)
        u, v = F.normalize(u.double().cpu(), dim=0), F.normalize(v.double().cpu(), dim=0)
        with torch.no_grad():
            for _ in range(iterations):
                if v_first:
                    v = F.normalize(matrix.T @ u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
                if not v_first:
                    v = F.normalize(matrix.T @ u, dim=0)
        sigmas.append(u @ (matrix @ v))
    weight_sn = weight / torch.stack(sigmas).mean()
    if grad is None:
        return weight_sn.detach(), None
    (grad_weight,) = torch.autograd.grad(weight_sn, weight, grad.double().cpu())
    return weight_sn.detach(), grad_weight


def relative_error(result: Tensor, exact: Tensor) -> float:
    """``||result - exact|| / ||exact||``; infinite where a value is not finite."""
    exact = exact.detach().double().cpu()
    error = (result.detach().double().cpu() - exact).norm() / exact.norm()
    return float(error) if torch.isfinite(error) else float("inf")
