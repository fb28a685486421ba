"""Small models that are built as other projects build theirs, for the recipes of the site.

Names of modules, classes, layers and buffers are those of the projects, and so is what their
spectral norms compute; sizes are not. :data:`PEERS` gives what a block of code may import from a
project, and the names that the project's own script has made by then.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

__all__ = ["PEERS", "Ema"]

Peer = tuple[dict[str, ModuleType], dict[str, Any]]


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


# HiFi-GAN


class DiscriminatorS(nn.Module):
    """One scale; the first is spectrally normalized, the others by torch's weight norm."""

    def __init__(self, use_spectral_norm: bool = False) -> None:
        super().__init__()
        norm = spectral_norm if use_spectral_norm else weight_norm
        self.convs = nn.ModuleList(
            [
                norm(nn.Conv1d(1, 8, 15, 1, padding=7)),
                norm(nn.Conv1d(8, 16, 41, 2, groups=4, padding=20)),
                norm(nn.Conv1d(16, 16, 5, 1, padding=2)),
            ]
        )
        self.conv_post = norm(nn.Conv1d(16, 1, 3, 1, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*features, x]


class MultiScaleDiscriminator(nn.Module):
    """Calls each scale for the real audio and for the generated, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList([DiscriminatorS(i == 0) for i in range(3)])
        self.meanpools = nn.ModuleList([nn.AvgPool1d(4, 2, padding=2) for _ in range(2)])

    def forward(self, y: Tensor, y_hat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        real, generated = [], []
        for i, scale in enumerate(self.discriminators):
            if i:
                y, y_hat = (self.meanpools[i - 1](each) for each in (y, y_hat))
            real.append(scale(y)[0])
            generated.append(scale(y_hat)[0])
        return real, generated


def _hifi_gan() -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm's
        msd = MultiScaleDiscriminator()
    y, y_hat = torch.randn(2, 1, 64), torch.randn(2, 1, 64)
    return {}, {"msd": msd, "y": y, "y_hat": y_hat}


# BigGAN and mimicry: layers that normalize themselves


class _Own:
    """Their layers' norm: one iteration at every forward, whose vector training stores."""

    left, logged = "u0", "sv0"

    def install(self, rows: int) -> None:
        self.register_buffer(self.left, torch.randn(1, rows))  # type: ignore[attr-defined]
        self.register_buffer(self.logged, torch.ones(1))  # type: ignore[attr-defined]

    def normalized(self) -> Tensor:
        matrix = self.weight.flatten(1)  # type: ignore[attr-defined]
        u = getattr(self, self.left)
        with torch.no_grad():
            v = F.normalize(u @ matrix)
            new = F.normalize(v @ matrix.T)
        sigma = (new @ matrix @ v.T).squeeze()
        if self.training:  # type: ignore[attr-defined]
            with torch.no_grad():
                u.copy_(new)
                getattr(self, self.logged).fill_(sigma)
        return self.weight / sigma  # type: ignore[attr-defined]


class _OwnConv2d(nn.Conv2d, _Own):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self.install(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalized(), self.bias)


class _OwnLinear(nn.Linear, _Own):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self.install(self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized(), self.bias)


class _OwnEmbedding(nn.Embedding, _Own):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Embedding.__init__(self, *args, **kwargs)
        self.install(self.num_embeddings)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.normalized())


def _own_layers(left: str, logged: str) -> dict[str, type]:
    names = {"left": left, "logged": logged}
    kinds = {"SNConv2d": _OwnConv2d, "SNLinear": _OwnLinear, "SNEmbedding": _OwnEmbedding}
    return {name: type(name, (kind,), names) for name, kind in kinds.items()}


class ConditionalDiscriminator(nn.Module):
    """A residual block, sum pooling, and a projection on an embedding of the class."""

    def __init__(self, conv: Any, linear: Any, embedding: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 8, 3, padding=1), conv(8, 8, 3, padding=1)
        self.conv_sc = conv(3, 8, 1)
        self.linear, self.embed = linear(8, 1), embedding(5, 8)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv2(self.activation(self.conv1(x))) + self.conv_sc(x)
        h = self.activation(h).sum(dim=(2, 3))
        return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)


class ConditionalGenerator(nn.Module):
    """Its embedding of the class is not normalized, as in BigGAN."""

    def __init__(self, conv: Any, linear: Any) -> None:
        super().__init__()
        self.shared = nn.Embedding(5, 4)
        self.linear = linear(12, 8 * 16)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.linear(torch.cat([z, self.shared(y)], 1)).unflatten(1, (8, 4, 4))
        return torch.tanh(self.output_layer(F.interpolate(h, scale_factor=2)))


@torch.no_grad()
def _warm(model: nn.Module) -> nn.Module:
    """As after some training: the vectors have converged."""
    for layer in model.modules():
        for name, weight_name in (
            ("u0", "weight"),
            ("sn_u", "weight"),
            ("weight_u", "weight_orig"),
        ):
            if name in layer._buffers:
                left, _, right = torch.linalg.svd(layer.get_parameter(weight_name).flatten(1))
                layer.get_buffer(name).copy_(left[:, 0])
                if "weight_v" in layer._buffers:
                    layer.get_buffer("weight_v").copy_(right[0])
    return model


def _inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(4, 3, 8, 8), "y": torch.arange(4), "z": torch.randn(4, 8)}


def _biggan() -> Peer:
    own = _own_layers("u0", "sv0")
    given = _inputs()
    conv, linear, embedding = own["SNConv2d"], own["SNLinear"], own["SNEmbedding"]
    names = {
        "D": _warm(ConditionalDiscriminator(conv, linear, embedding)),
        "G": _warm(ConditionalGenerator(conv, linear)),
    }
    return {"layers": _module("layers", **own)}, {**names, **given}


def _mimicry() -> Peer:
    own = _own_layers("sn_u", "sn_sigma")

    def norm(kind: type, *args: Any, **kwargs: Any) -> nn.Module:
        return spectral_norm(kind(*args, **kwargs))

    hooked = [partial(norm, kind) for kind in (nn.Conv2d, nn.Linear, nn.Embedding)]
    given = _inputs()
    names = {
        "netD": _warm(ConditionalDiscriminator(*hooked)),
        "own": _warm(ConditionalDiscriminator(*own.values())),
    }
    modules = {
        "torch_mimicry": _module("torch_mimicry"),
        "torch_mimicry.modules": _module("torch_mimicry.modules"),
        "torch_mimicry.modules.spectral_norm": _module("spectral_norm", **own),
    }
    return modules, {**names, **given}


# StudioGAN


class Ema:
    """Averages whole state dicts, whose tensors it looks up once."""

    def __init__(self, source: nn.Module, target: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source_dict, self.target_dict = source.state_dict(), target.state_dict()

    @torch.no_grad()
    def update(self) -> None:
        for key, value in self.source_dict.items():
            mine = self.target_dict[key].data
            mine.copy_(mine * self.decay + value.data * (1 - self.decay))


def _studiogan() -> Peer:
    def norm(kind: type, *args: Any, **kwargs: Any) -> nn.Module:
        return spectral_norm(kind(*args, **kwargs), eps=1e-6)

    conv, linear, embedding = (partial(norm, kind) for kind in (nn.Conv2d, nn.Linear, nn.Embedding))
    given = _inputs()
    Dis = _warm(ConditionalDiscriminator(conv, linear, embedding))
    Gen = ConditionalGenerator(conv, linear)
    Gen_ema = copy.deepcopy(Gen)
    names = {"Gen": Gen, "Dis": Dis, "Gen_ema": Gen_ema, "ema": Ema(Gen, Gen_ema, decay=0.5)}
    return {}, {**names, **given}


PEERS: dict[str, Callable[[], Peer]] = {
    "hifi_gan": _hifi_gan,
    "biggan": _biggan,
    "mimicry": _mimicry,
    "studiogan": _studiogan,
}
