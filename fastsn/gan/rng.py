"""Randomness by counters: every draw has a generator seeded from what it is for.

The seed is a hash of (run seed, stream, step, rank, index), so a step draws the same numbers
whatever was drawn before it: no state is saved, and a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["Rng", "latents", "seed_of"]

#: What random numbers are drawn for.
STREAMS = ("init", "real", "latent", "latent_g", "penalty", "samples", "eval", "diagnostics")


def seed_of(seed: int, stream: str, step: int = 0, rank: int = 0, index: int = 0) -> int:
    """A 63-bit seed; every argument counts."""
    if stream not in STREAMS:
        raise ValueError(f"expected stream to be one of {STREAMS}, got {stream!r}")
    text = f"fastsn.gan {seed} {stream} {step} {rank} {index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Rng:
    """The random numbers of one rank.

    Args:
        seed: of the run.
        device: where numbers are drawn.
        rank: of this process; ranks draw different numbers.
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 0) -> None:
        self.seed, self.device, self.rank = seed, device, rank
        self._generator = torch.Generator(device)

    def __call__(self, stream: str, step: int = 0, index: int = 0) -> torch.Generator:
        """The generator for one draw; the next call seeds it anew."""
        return self._generator.manual_seed(seed_of(self.seed, stream, step, self.rank, index))


def latents(generator: nn.Module, n: int, rng: torch.Generator) -> Tensor:
    """``z [n, z_dim]`` from the distribution the generator network wants.

    ``generator.latent`` is ``"normal"``, N(0, 1), or ``"uniform"``, U(-1, 1) (Table 4).
    """
    shape = n, int(generator.z_dim)  # type: ignore[arg-type]
    if getattr(generator, "latent", "normal") == "uniform":
        return torch.rand(shape, generator=rng, device=rng.device).mul_(2).sub_(1)
    return torch.randn(shape, generator=rng, device=rng.device)
