"""DistributedDataParallel and FSDP2: equal singular vectors on every rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist


class _Norm(Protocol):
    """What is needed of a parametrization here."""

    @property
    def training(self) -> bool: ...

    @property
    def state(self) -> Any: ...

    def vectors(self) -> list[tuple[Tensor, Tensor]]: ...


__all__ = ["is_fsdp_module", "is_sharded", "require_plain", "share_vectors"]


_may_be_distributed = dist.is_available()


def share_vectors(norms: Sequence[_Norm]) -> None:
    """Broadcasts the vectors from rank 0, once, at the first training forward inside a DDP module.

    Registration draws vectors from each rank's own random numbers. DDP makes buffers equal when it
    is built, but not with ``broadcast_buffers=False``; the ranks would then train against different
    sigmas for ever. From equal vectors and equal weights every later iteration is equal without
    communication.
    """
    if not _may_be_distributed or not dist.is_initialized():
        return
    # The module whose forward is running, by which a collective is known to be met by every rank.
    active = getattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    if active is None:
        return
    fresh = [norm for norm in norms if norm.training and not norm.state.synchronized]
    group = active.process_group
    if dist.get_world_size(group) > 1:
        with torch.no_grad():
            for vector in (v for norm in fresh for pair in norm.vectors() for v in pair):
                dist.broadcast(vector, src=dist.get_global_rank(group, 0), group=group)
    for norm in fresh:
        norm.state.synchronized = True


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is a DTensor: FSDP gathers it for its module's forward only."""
    return type(weight) not in _PLAIN and hasattr(weight, "full_tensor")


_PLAIN = (nn.Parameter, Tensor)


def require_plain(weight: Tensor) -> None:
    """Raises for a weight that FSDP has not gathered."""
    if is_sharded(weight):
        raise RuntimeError(
            "fastsn: expected a plain weight, got a sharded DTensor: read it inside the forward of "
            "the module that FSDP gathers it for"
        )


def is_fsdp_module(module: nn.Module) -> bool:
    """Whether ``fully_shard`` manages parameters of this module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)
