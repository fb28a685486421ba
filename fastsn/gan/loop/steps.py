"""The two updates of an iteration: no file, no print, and no wait for the device.

Losses come back as tensors on the device; only the caller decides when to look at them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastsn.gan.nets.losses import Loss, gradient_penalty

__all__ = ["Networks", "discriminator_step", "generator_step", "update_average"]


@dataclass
class Networks:
    """What a step works on.

    Attributes:
        generator: ``z [n, z_dim]`` to images ``[n, c, h, w]`` in [-1, 1].
        discriminator: images to scores ``[n, 1]``.
        call_generator: the generator as it is called to train it: itself, or compiled.
        call_discriminator: likewise.
        share_gradients: averages the gradients of a network over the processes of the run.
        optimizer_g: of the generator.
        optimizer_d: of the discriminator.
        average: the generator's moving average, or None.
    """

    generator: nn.Module
    discriminator: nn.Module
    call_generator: Callable[[Tensor], Tensor]
    call_discriminator: Callable[[Tensor], Tensor]
    share_gradients: Callable[[nn.Module], None]
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    average: nn.Module | None = None


#: Makes the context that a forward runs in: autocast, or nothing.
Precision = Callable[[], AbstractContextManager[None]]


def discriminator_step(
    nets: Networks,
    loss: Loss,
    real: Tensor,
    z: Tensor,
    precision: Precision,
    penalty: float = 0.0,
    penalty_rng: torch.Generator | None = None,
) -> Tensor:
    """One discriminator update.

    Args:
        nets: changed in place.
        loss: the adversarial loss.
        real: images ``[n, c, h, w]`` in [-1, 1].
        z: ``[n, z_dim]``.
        precision: context of the forwards.
        penalty: weight of the gradient penalty; 0 leaves it out.
        penalty_rng: draws the points at which the penalty is taken.

    Returns:
        ``[4]``: the loss, the mean scores of real and of generated images, and the weighted penalty
        that is in the loss.
    """
    nets.discriminator.requires_grad_(True)
    with torch.no_grad(), precision():
        fake = nets.generator(z).to(real.dtype)
    nets.optimizer_d.zero_grad(set_to_none=True)
    with precision():
        real_scores = nets.call_discriminator(real)
        fake_scores = nets.call_discriminator(fake)
    real_scores, fake_scores = real_scores.float(), fake_scores.float()
    total = loss.discriminator(real_scores, fake_scores)
    extra = torch.zeros_like(total)
    if penalty:
        assert penalty_rng is not None
        with precision():
            unit = float(getattr(nets.discriminator, "unit", 1.0))
            away = gradient_penalty(nets.call_discriminator, real, fake, penalty_rng, unit=unit)
        extra = penalty * away
        total = total + extra
    total.backward()
    nets.share_gradients(nets.discriminator)
    nets.optimizer_d.step()
    means = (real_scores.detach().mean(), fake_scores.detach().mean())
    return torch.stack([total.detach(), *means, extra.detach()])


def generator_step(nets: Networks, loss: Loss, z: Tensor, precision: Precision) -> Tensor:
    """One generator update, by ``z [n, z_dim]``; the discriminator's weights get no gradients.

    Returns:
        ``[1]``: the loss.
    """
    nets.discriminator.requires_grad_(False)
    nets.optimizer_g.zero_grad(set_to_none=True)
    with precision():
        scores = nets.call_discriminator(nets.call_generator(z))
    total = loss.generator(scores.float())
    total.backward()
    nets.share_gradients(nets.generator)
    nets.optimizer_g.step()
    return total.detach().reshape(1)


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, decay: float) -> None:
    """``average = decay * average + (1 - decay) * generator``; buffers are copied.

    torch's own AveragedModel looks at a counter on the device, and waits for it, at every update.
    """
    mean: list[Tensor] = list(average.parameters())
    now: list[Tensor] = list(generator.parameters())
    torch._foreach_lerp_(mean, now, 1 - decay)
    torch._foreach_copy_(list(average.buffers()), list(generator.buffers()))
