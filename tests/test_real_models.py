"""Models as people write them, with torch's norms and with fastsn's: ten training steps, equal.

In float64, side by side from equal states, so that no course of training is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from settings import in_all_settings, normalize
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as hook
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import fastsn

pytestmark = pytest.mark.usefixtures("backend")


class ScaleDiscriminator(nn.Module):
    """One scale of a HiFi-GAN discriminator: strided, grouped 1-d convolutions."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                norm(nn.Conv1d(1, 8, 15, 1, padding=7)),
                norm(nn.Conv1d(8, 16, 41, 2, groups=4, padding=20)),
                norm(nn.Conv1d(16, 16, 5, 1, padding=2)),
            ]
        )
        self.post = norm(nn.Conv1d(16, 1, 3, 1, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        x = self.post(x)
        return x.flatten(1), [*features, x]


class MultiScaleDiscriminator(nn.Module):
    """HiFi-GAN's: real and fake audio through every scale, with features for the matching loss."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            [ScaleDiscriminator(norm) for norm in (spectral_norm, hook, spectral_norm)]
        )
        self.pools = nn.ModuleList([nn.AvgPool1d(4, 2, padding=2) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for i, discriminator in enumerate(self.discriminators):
            x = x if i == 0 else self.pools[i - 1](x)
            out, features = discriminator(x)
            total = total + (1 - out).square().mean()
            total = total + sum(feature.abs().mean() for feature in features)
        return total


class CheckpointedTransformer(nn.Module):
    """Two blocks of attention and a feed-forward part, recomputed in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList([spectral_norm(nn.Linear(8, 24)) for _ in range(2)])
        self.out = nn.ModuleList([spectral_norm(nn.Linear(8, 8)) for _ in range(2)])
        self.feed = nn.ModuleList(
            [nn.Sequential(spectral_norm(nn.Linear(8, 16)), nn.GELU(), nn.Linear(16, 8))
             for _ in range(2)]
        )  # fmt: skip
        self.checkpoints = True

    def block(self, i: int, x: Tensor) -> Tensor:
        q, k, v = self.qkv[i](x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)
        x = x + self.out[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.feed[i](x)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (4, 8))
        for i in range(2):
            # torch's norm under a checkpoint advances in backward; its side runs without
            x = (
                checkpoint(self.block, i, x, use_reentrant=False)
                if self.checkpoints
                else self.block(i, x)
            )
        return x.square().mean()


class RecurrentCritic(nn.Module):
    """A critic whose cell is read at every time step: alone, each read advances the vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = spectral_norm(nn.Linear(4, 6))
        self.gru = spectral_norm(nn.GRU(6, 6, batch_first=True), "weight_hh_l0")
        self.head = hook(nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(torch.tanh(self.embed(x.unflatten(-1, (8, 4)))))
        return self.head(out[:, -1]).mean()


class Trainer(nn.Module):
    """The root of everything: generator and discriminator steps inside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            spectral_norm(nn.Linear(32, 16)), nn.Tanh(), spectral_norm(nn.Linear(16, 1))
        )
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 32))
        self.optimizers: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.optimizers:
            self.optimizers = [torch.optim.SGD(m.parameters(), lr=0.05)
                               for m in (self.critic, self.generator)]  # fmt: skip
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        fake = self.generator(x[:, :4])
        self.critic(torch.cat([x, fake.detach()])).mean().backward()
        self.optimizers[0].step()
        loss = -self.critic(fake).mean()
        loss.backward()
        self.optimizers[1].step()
        return loss.detach().requires_grad_()


MODELS = {
    "multi-scale discriminator": (MultiScaleDiscriminator, (2, 1, 64)),
    "checkpointed transformer": (CheckpointedTransformer, (3, 32)),
    "recurrent critic": (RecurrentCritic, (3, 32)),
    "trainer as root": (Trainer, (3, 32)),
}


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    """From the start: vectors drawn in float32 and widened are not of length one in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", MODELS)
@in_all_settings
def test_ten_steps_are_torchs(name: str, update: str, grouped: bool) -> None:
    """Outputs, gradients and buffers, with weights that change between the forwards.

    With one read for each change of the weights both kinds of update are torch's.
    """
    make, shape = MODELS[name]
    theirs, ours = make(), make()
    ours.load_state_dict(theirs.state_dict())
    normalize(ours, update, grouped)
    if name == "checkpointed transformer":
        theirs.checkpoints = False
    if name == "recurrent critic" and (update, grouped) != ("forward", False):
        # torch's GRU reads its weight several times in a forward, and torch's norm advances at each
        # read, which a group and step mode do not: sigma is compared where the vectors stand still.
        ours.eval(), theirs.eval()
    for _ in range(10):
        x = torch.randn(shape)
        out, expected = ours(x), theirs(x)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
        out.backward()
        expected.backward()
        state = fastsn.convert_state_dict(theirs.state_dict())
        for key, value in ours.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-11, msg=key)
        given = dict(ours.named_parameters())
        for key, other in _original_names(theirs).items():
            one = given[key]
            assert (one.grad is None) == (other.grad is None)
            if one.grad is None:
                continue
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)
            with torch.no_grad():
                one.sub_(one.grad, alpha=0.05)
                other.sub_(other.grad, alpha=0.05)
            one.grad = other.grad = None


def _original_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names they have in a converted model."""
    named = {}
    for key, value in model.named_parameters():
        stem, _, last = key.rpartition(".")
        if last.endswith("_orig"):
            key = f"{stem}.parametrizations.{last.removesuffix('_orig')}.original"
        named[key] = value
    return named
