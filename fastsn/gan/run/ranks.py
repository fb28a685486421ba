"""The processes of a run: one, or those that torchrun starts."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastsn.gan.config import ConfigError

__all__ = ["Ranks", "choose_device"]


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: number of this process; the first one writes.
        size: number of processes.
        local: number of this process on its machine, which is its GPU's.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun says; one process where it says nothing.

        Raises:
            ConfigError: it says only a part, or no numbers.
        """
        if "WORLD_SIZE" not in os.environ:
            return cls()
        found = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            value = os.environ.get(name, "")
            if not value.isdecimal():
                raise ConfigError(
                    f"{name}: expected a number, as torchrun sets with WORLD_SIZE, got "
                    f"{value or 'none'}: start with torchrun, or unset WORLD_SIZE"
                )
            found[name] = int(value)
        rank, size, local = found.values()
        if not rank < size:
            raise ConfigError(f"RANK: expected less than WORLD_SIZE ({size}), got {rank}")
        return cls(rank, size, local)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def start(self, device: torch.device) -> None:
        """Joins the processes: by nccl on GPUs, else by gloo."""
        if self.size > 1 and not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            # The others wait while the first one evaluates.
            dist.init_process_group(backend, timeout=datetime.timedelta(hours=2))

    def stop(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so; all processes must ask."""
        if self.size == 1:
            return flag
        told = torch.tensor([float(flag)], device=device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    @torch.no_grad()
    def average_gradients(self, network: nn.Module) -> None:
        """Replaces the gradients of ``network`` by their means over the processes.

        One sum of all of them, laid out the same at every call: with DistributedDataParallel the
        order in which numbers are added would depend on when a run was resumed, because it groups
        the gradients anew after its first iteration.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        shaped = [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """``[size, ...]``: the values of every process."""
        parts = [torch.empty_like(values) for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(parts, values)
        else:
            parts = [values.clone()]
        return torch.stack(parts)

    def from_first(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


def choose_device(wanted: str, local: int = 0) -> torch.device:
    """The device of ``train.device``.

    Raises:
        ConfigError: cuda is wanted and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("train.device: expected a CUDA device, got none that torch can use")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
