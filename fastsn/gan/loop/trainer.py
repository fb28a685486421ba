"""The networks, optimizers and random numbers of a run, and one iteration of it."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastsn.gan.config import Config, ConfigError
from fastsn.gan.data.sets import Images
from fastsn.gan.loop.graphs import CapturedStep
from fastsn.gan.loop.steps import Networks, discriminator_step, generator_step, update_average
from fastsn.gan.nets.losses import LOSSES
from fastsn.gan.nets.models import build
from fastsn.gan.nets.normalization import normalize
from fastsn.gan.rng import Rng, latents, seed_of
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.ranks import Ranks
from fastsn.parametrization import SpectralNorm

__all__ = ["Trainer"]

#: What a row of the log says of the losses; ``Trainer.sums`` adds them up on the device.
#: ``penalty`` is a part of ``loss_d``.
LOGGED = ("loss_d", "score_real", "score_fake", "penalty", "loss_g")


class Trainer:
    """All state of a run, and one iteration of it.

    Args:
        config: a valid configuration.
        images: the real images.
        device: where everything is computed.
        ranks: the processes of the run.

    Raises:
        ConfigError: options that this machine or these images do not allow.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.ranks = ranks if ranks is not None else Ranks()
        self._check(images)
        self.images = images.to(device)
        self.rng = Rng(config.train.seed, device, self.ranks.rank)
        # Images that stay on the host are drawn there.
        self.image_rng = Rng(config.train.seed, self.images.pixels.device, self.ranks.rank)
        self.loss = LOSSES[config.loss.name]
        self.step = 0
        self.best: dict[str, Any] = {}
        # Sums of the losses and, last, the number of iterations in them.
        self.sums = torch.zeros(len(LOGGED) + 1, device=device)
        self.nets = self._networks(*self._build())
        self._step_norms = [
            module
            for module in self.nets.discriminator.modules()
            if isinstance(module, SpectralNorm) and module.update == "step"
        ]
        self._precision = self._autocast if config.speed.bf16 else nullcontext
        self._held: dict[str, Tensor] = {}
        self._graph = CapturedStep(self._updates) if config.speed.cuda_graphs else None

    def _check(self, images: Images) -> None:
        config, size = self.config, self.ranks.size
        for name in ("batch_d", "batch_g"):
            batch = getattr(config.optim, name)
            if batch % size:
                raise ConfigError(
                    f"optim.{name}: expected a multiple of the number of processes ({size}), "
                    f"got {batch}"
                )
        for name in ("cuda_graphs", "tf32"):
            if getattr(config.speed, name) and self.device.type != "cuda":
                raise ConfigError(
                    f"speed.{name}: expected a CUDA device, got {self.device.type}: "
                    f"set speed.{name} to false"
                )
        if config.speed.cuda_graphs and size > 1:
            raise ConfigError(
                f"speed.cuda_graphs: expected one process, got {size}: set it to false"
            )
        if not len(images):
            raise ConfigError(f"data.name: expected images, got none in {images.name}")

    # Construction

    def _build(self) -> tuple[nn.Module, nn.Module]:
        """The networks, from the same seed on every rank, on any device and backend."""
        config = self.config
        channels, size = self.images.pixels.shape[1], self.images.pixels.shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.train.seed, "init"))
            try:
                generator, discriminator = build(
                    config.model.name,
                    resolution=size,
                    width=config.model.width,
                    channels=channels,
                    negative_slope=config.model.negative_slope,
                )
            except (ValueError, RuntimeError, MemoryError) as error:
                raise ConfigError(
                    f"model.name: {error} (images of data.name {config.data.name!r}: "
                    f"{channels}x{size}x{size})"
                ) from error
            try:
                normalize(
                    discriminator,
                    config.norm.method,
                    scale=config.norm.scale,
                    spread=config.norm.spread,
                    spread_seed=config.norm.spread_seed,
                    update=config.norm.update,
                    input_shape=(channels, size, size),
                )
            except (ValueError, RuntimeError) as error:  # a backend that is not there
                raise ConfigError(f"norm.method {config.norm.method}: {error}") from error
        layout = torch.channels_last if config.speed.channels_last else torch.contiguous_format
        for network in (generator, discriminator):
            network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
            network.train()
        return generator, discriminator

    def _networks(self, generator: nn.Module, discriminator: nn.Module) -> Networks:
        config = self.config
        average = None
        if config.train.ema:
            average = copy.deepcopy(generator).eval().requires_grad_(False)
        call_g: Any = generator
        call_d: Any = discriminator
        if config.speed.compile:
            call_g, call_d = torch.compile(generator), torch.compile(discriminator)
        return Networks(
            generator,
            discriminator,
            call_g,
            call_d,
            self.ranks.average_gradients,
            self._optimizer(generator, config.optim.lr_g),
            self._optimizer(discriminator, config.optim.lr_d),
            average,
        )

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Adam:
        optim = self.config.optim
        return torch.optim.Adam(
            network.parameters(),
            lr=lr,
            betas=(optim.beta1, optim.beta2),
            fused=True,
            capturable=self.config.speed.cuda_graphs,
        )

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16)

    # One iteration

    def iterate(self, *, hold: bool = False) -> None:
        """``n_dis`` discriminator updates and one generator update; never waits for the device.

        Args:
            hold: a :meth:`state_dict` will be asked for before the next iteration.
        """
        optim, step = self.config.optim, self.step + 1
        if optim.decay == "linear":
            rest = 1 - (step - 1) / self.config.train.steps
            for optimizer, lr in (
                (self.nets.optimizer_g, optim.lr_g),
                (self.nets.optimizer_d, optim.lr_d),
            ):
                optimizer.param_groups[0]["lr"] = lr * rest
        n_d, n_g = optim.batch_d // self.ranks.size, optim.batch_g // self.ranks.size
        generator = self.nets.generator
        reals, zs = [], []
        for i in range(optim.n_dis):
            reals.append(self._real(n_d, step, i))
            zs.append(latents(generator, n_d, self.rng("latent", step, i)))
        reuse = optim.reuse_z and n_d == n_g
        zs.append(zs[-1] if reuse else latents(generator, n_g, self.rng("latent_g", step)))
        if self._graph is not None:
            self._graph([*reals, *zs])
        else:
            self._updates([*reals, *zs], hold=hold)
        self.step = step

    def _real(self, n: int, step: int, index: int) -> Tensor:
        images = self.images.sample(n, self.image_rng("real", step, index))
        images = images.to(self.device, non_blocking=True)
        if self.config.speed.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _updates(self, inputs: list[Tensor], *, hold: bool = False) -> None:
        """All updates of an iteration, by real images and z; the part that a graph captures."""
        n_dis, config = self.config.optim.n_dis, self.config
        reals, zs = inputs[:n_dis], inputs[n_dis:]
        if self._graph is not None:
            # A captured step begins with a power iteration, so those before it do as well.
            self._weights_changed()
        for i, (real, z) in enumerate(zip(reals, zs[:-1], strict=True)):
            penalty_rng = None
            if config.loss.gradient_penalty:
                penalty_rng = self.rng("penalty", self.step + 1, i)
            stats = discriminator_step(
                self.nets,
                self.loss,
                real,
                z,
                self._precision,
                config.loss.gradient_penalty,
                penalty_rng,
            )
            self._weights_changed()
        if hold:
            self._held = self._vectors()
        loss_g = generator_step(self.nets, self.loss, zs[-1], self._precision)
        if self.nets.average is not None:
            update_average(self.nets.average, self.nets.generator, config.train.ema)
        self.sums[:-1] += torch.cat([stats, loss_g])
        self.sums[-1] += 1

    def take_losses(self) -> dict[str, float]:
        """Mean losses since the last call, over iterations and ranks; waits for the device."""
        means = self.ranks.mean(self.sums[:-1] / self.sums[-1]).tolist()
        self.sums.zero_()
        losses = dict(zip(LOGGED, means, strict=True))
        if not self.config.loss.gradient_penalty:
            del losses["penalty"]
        return losses

    def is_finite(self) -> bool:
        """Whether all parameters and buffers of both networks are; waits for the device."""
        tensors = [
            tensor
            for network in (self.nets.generator, self.nets.discriminator)
            for tensor in (*network.parameters(), *network.buffers())
            if tensor.is_floating_point()
        ]
        norms = torch._foreach_norm([tensor.detach() for tensor in tensors], ord=math.inf)
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    @property
    def sampled(self) -> nn.Module:
        """The generator that is sampled and evaluated: the average, if there is one."""
        return self.nets.generator if self.nets.average is None else self.nets.average

    # State

    def _weights_changed(self) -> None:
        # A replayed CUDA graph steps without any of the signs that would show it.
        for norm in self._step_norms:
            norm.forget_weight()

    def _vectors(self) -> dict[str, Tensor]:
        """Copies of the vectors that advance once per change of the weights, by buffer name."""
        mine = {
            id(vector) for norm in self._step_norms for pair in norm.vectors() for vector in pair
        }
        buffers = self.nets.discriminator.named_buffers()
        return {name: buffer.clone() for name, buffer in buffers if id(buffer) in mine}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; every rank must ask, and all get the same.

        With ``norm.update="step"`` the discriminator's vectors are those before their last advance:
        the generator's update has advanced them for weights that the next iteration still uses,
        and a resumed run, which cannot know that, advances them again, to the same bits.
        """
        nets = self.nets
        return {
            "step": self.step,
            "world_size": self.ranks.size,
            "config": self.config.to_dict(),
            "image_shape": list(self.images.pixels.shape[1:]),
            "data": self.images.fingerprint,
            "generator": nets.generator.state_dict(),
            "discriminator": {**nets.discriminator.state_dict(), **self._held},
            "optimizer_g": nets.optimizer_g.state_dict(),
            "optimizer_d": nets.optimizer_d.state_dict(),
            "ema": {} if nets.average is None else nets.average.state_dict(),
            "sums": self.ranks.gather(self.sums),
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a checkpoint's state.

        Raises:
            CheckpointError: it is of other networks, or of another number of processes.
        """
        if state["world_size"] != self.ranks.size:
            raise CheckpointError(
                f"expected a run of {self.ranks.size} process(es), got a checkpoint of "
                f"{state['world_size']}: batches are drawn per process, so start as many"
            )
        nets = self.nets
        try:
            nets.generator.load_state_dict(state["generator"])
            nets.discriminator.load_state_dict(state["discriminator"])
            if nets.average is not None:
                nets.average.load_state_dict(state["ema"])
            nets.optimizer_g.load_state_dict(state["optimizer_g"])
            nets.optimizer_d.load_state_dict(state["optimizer_d"])
            self.sums.copy_(_sums(state["sums"][self.ranks.rank]))
            self._check_optimizers()
            self.step, self.best = state["step"], _best(state["best"])
        except (
            RuntimeError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
        ) as error:
            raise CheckpointError(
                f"expected a checkpoint of these networks and optimizers, got one that does not "
                f"fit: {error}"
            ) from error
        self._held = {}

    def _check_optimizers(self) -> None:
        """Adam has the options that are written, of which a checkpoint has its own."""
        optim = self.config.optim
        for name, optimizer, lr in (
            ("lr_g", self.nets.optimizer_g, optim.lr_g),
            ("lr_d", self.nets.optimizer_d, optim.lr_d),
        ):
            (group,) = optimizer.param_groups
            if optim.decay == "none" and group["lr"] != lr:
                raise ValueError(f"expected optim.{name} {lr}, got {group['lr']}")
            if tuple(group["betas"]) != (optim.beta1, optim.beta2):
                raise ValueError(
                    f"expected optim.beta1 and beta2 {(optim.beta1, optim.beta2)}, got "
                    f"{tuple(group['betas'])}"
                )


def _sums(stored: Tensor) -> Tensor:
    """Sums of losses, also of a checkpoint from before penalties were among them."""
    if len(stored) == len(LOGGED):
        return torch.cat([stored[:3], stored.new_zeros(1), stored[3:]])
    return stored


def _best(stored: dict[str, Any]) -> dict[str, Any]:
    """What is known of the best checkpoint, if it is what it should be."""
    kinds = {"name": str, "value": float, "step": int}
    if stored and any(type(stored.get(name)) is not kind for name, kind in kinds.items()):
        raise ValueError(f"expected 'best' to have {', '.join(kinds)}, got {stored}")
    return dict(stored)
