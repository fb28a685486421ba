"""Every preset: the paper's numbers, and three steps at reduced width."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from fastsn.gan.config import ConfigError, from_dict, validate
from fastsn.gan.data.sets import Images
from fastsn.gan.loop.trainer import Trainer
from fastsn.gan.nets.models import NETWORKS
from fastsn.gan.presets import load_preset, preset_names

#: Appendices I to S: lr_g, lr_d, beta1, beta2, n_dis, batch_d, batch_g, steps, loss, network.
PAPER = {
    "paper/mnist_sn_conv": (1e-3, 1e-3, 0.5, 0.999, 1, 64, 64, 93_750, "wgan", "mnist"),
    "paper/cifar10_sn": (1e-4, 1e-4, 0.5, 0.999, 1, 64, 64, 400_000, "hinge", "cnn32"),
    "paper/cifar10_sn_h1": (1e-4, 1e-4, 0.5, 0.9, 5, 64, 64, 400_000, "hinge", "cnn32"),
    "paper/cifar10_sn_h2": (1e-4, 1e-4, 0.5, 0.999, 1, 64, 64, 400_000, "hinge", "cnn32"),
    "paper/cifar10_bsn_h3": (2e-4, 2e-4, 0.5, 0.999, 1, 64, 64, 400_000, "hinge", "cnn32"),
    "paper/cifar10_bsn_h4": (1e-4, 2e-4, 0.5, 0.999, 1, 64, 64, 400_000, "hinge", "cnn32"),
    "paper/cifar10_bsn_h5": (2e-4, 1e-4, 0.5, 0.999, 1, 64, 64, 400_000, "hinge", "cnn32"),
    "paper/cifar10_wgan_gp": (1e-4, 2e-4, 0.5, 0.999, 1, 64, 64, 400_000, "wgan", "cnn32"),
    "paper/cifar10_wgan_gp_explode": (1e-3, 1e-3, 0.5, 0.999, 1, 64, 64, 400_000, "wgan", "cnn32"),
    "paper/cifar10_wgan_gp_vanish": (1e-3, 1e-3, 0.5, 0.999, 1, 64, 64, 400_000, "wgan", "cnn32"),
    "paper/cifar10_same_gamma": (1e-4, 1e-4, 0.5, 0.999, 1, 64, 64, 400_000, "wgan", "cnn32"),
    "paper/stl10_bssn": (1e-4, 1e-4, 0.5, 0.999, 1, 64, 64, 800_000, "hinge", "cnn48"),
    "paper/stl10_bssn_h1": (1e-4, 1e-4, 0.5, 0.9, 5, 64, 64, 400_000, "hinge", "cnn48"),
    "paper/celeba_ssn": (1e-4, 1e-4, 0.5, 0.999, 1, 64, 64, 400_000, "hinge", "cnn64"),
    "paper/imagenet_bssn": (2e-4, 2e-4, 0.0, 0.9, 5, 16, 32, 500_000, "hinge", "resnet128"),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    config = load_preset(name)
    optim = config.optim
    assert (
        optim.lr_g,
        optim.lr_d,
        optim.beta1,
        optim.beta2,
        optim.n_dis,
        optim.batch_d,
        optim.batch_g,
        config.train.steps,
        config.loss.name,
        config.model.name,
    ) == PAPER[name]
    penalized = config.loss.name == "wgan" and config.norm.method != "sn_conv"
    vanishing = name.endswith("vanish")  # appendix I: penalty weight 50, and ReLU
    assert config.loss.gradient_penalty == (50 if vanishing else 10 if penalized else 0)
    assert config.model.negative_slope == (0 if vanishing else None)


def test_the_methods_and_scales() -> None:
    scales = {
        name: (load_preset(f"paper/{name}").norm.method, load_preset(f"paper/{name}").norm.scale)
        for name in ("cifar10_bssn", "imagenet_bssn", "mnist_sn_conv", "cifar10_sn_conv")
    }
    assert scales == {
        "cifar10_bssn": ("bssn", 1.0),
        "imagenet_bssn": ("bssn", 1.4),
        "mnist_sn_conv": ("sn_conv", 1.0),
        "cifar10_sn_conv": ("sn_conv", 1.75),
    }


def test_names() -> None:
    names = preset_names()
    assert len(names) == len(set(names)) > 150
    for data in ("mnist", "cifar10", "stl10", "celeba", "imagenet"):
        for method in ("none", "sn", "ssn", "bsn", "bssn", "torch", "lecun"):
            assert f"paper/{data}_{method}" in names
    with pytest.raises(ConfigError, match=r"got 'paper/mnist_sn_h1'; presets: demo; paper"):
        load_preset("paper/mnist_sn_h1")


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_slow_things_are_off(name: str) -> None:
    config = load_preset(name)
    config = validate(replace(config, eval=replace(config.eval, weights="inception.pth")))
    assert from_dict(config.to_dict()) == config
    # Scores are taken on the way; MNIST's figures are of gradients alone.
    assert (config.eval.every > 0) is not name.startswith("paper/mnist")
    speed = config.speed
    assert not any((speed.tf32, speed.bf16, speed.channels_last, speed.compile, speed.cuda_graphs))
    if name.startswith("paper/"):
        assert config.train.ema == 0 and config.optim.decay == "none" and config.model.width == 1


@cache
def noise(network: str) -> Images:
    """Images of a network's size: the data sets themselves are not here."""
    shape = (16, NETWORKS[network].channels, *2 * (NETWORKS[network].resolution,))
    return Images(torch.randint(0, 256, shape, dtype=torch.uint8), name="noise", description="")


@pytest.mark.parametrize("name", [name for name in preset_names() if "_h" not in name[-3:]])
def test_three_steps_at_reduced_width(name: str) -> None:
    tree = load_preset(name).to_dict()
    tree["model"]["width"] = 0.02
    n_dis = min(2, tree["optim"]["n_dis"])
    tree["optim"] |= {"batch_d": 2, "batch_g": 2, "n_dis": n_dis}
    tree["train"]["device"] = "cpu"
    tree["eval"]["every"] = 0
    config = validate(from_dict(tree))
    trainer = Trainer(config, noise(config.model.name), torch.device("cpu"))
    before = [p.detach().clone() for p in trainer.nets.discriminator.parameters()]
    for _ in range(3):
        trainer.iterate()
    assert trainer.is_finite()
    assert all(value == value for value in trainer.take_losses().values())
    after = trainer.nets.discriminator.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
