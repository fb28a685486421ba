"""The sizes at which an experiment can be run, and the configurations of its runs."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from fastsn.gan.config import Config, from_dict
from fastsn.gan.presets import load_preset
from paper.spec import Arm, Experiment

__all__ = ["SCALES", "arms_of", "config_of", "runs_of", "seeds_of", "setting"]

#: ``full``: as in the paper. ``small``: narrow networks on the shipped Fashion-MNIST images, a
#: minute or two for a run. ``smoke``: two iterations.
SCALES = ("full", "small", "smoke")

#: Names for people, by ``data.name``.
NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mini": "Fashion-MNIST",
    "cifar10": "CIFAR10",
    "stl10": "STL10",
    "celeba": "CelebA",
    "imagenet": "ILSVRC2012",
}


@cache
def _read() -> dict[str, dict[str, Any]]:
    text = files(__package__).joinpath("scales.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def seeds_of(scale: str) -> int:
    """How many seeds each arm is run with."""
    return int(_read()[scale]["seeds"])


def config_of(arm: Arm, scale: str, seed: int) -> Config:
    """The configuration of one run.

    Raises:
        ConfigError: an unknown preset or option.
    """
    tree = load_preset(arm.preset).to_dict()
    for name, value in arm.options.items():
        section, _, option = name.partition(".")
        tree.setdefault(section, {})[option] = value
    kind = re.sub(r"\d+$", "", tree["model"]["name"])
    sizes = _read()[scale]
    for changes in (sizes, sizes.get(kind, {})):
        for section, options in changes.items():
            if section in tree:
                tree[section] |= options
    factor = sizes.get(kind, {}).get("lr", 1)
    for option in ("lr_g", "lr_d"):
        tree["optim"][option] *= factor
    tree["train"]["seed"] = seed
    return from_dict(tree, f"{arm.preset} at scale {scale}")


def arms_of(experiment: Experiment, scale: str) -> list[Arm]:
    """The arms that are run at a scale."""
    return [arm for arm in experiment.arms if scale in arm.sizes]


def runs_of(arm: Arm, scale: str) -> list[Config]:
    """The configurations of an arm's runs, one for each seed."""
    seeds = seeds_of(scale) if arm.seeds is None else min(arm.seeds, seeds_of(scale))
    config = config_of(arm, scale, 0)
    return [replace(config, train=replace(config.train, seed=seed)) for seed in range(seeds)]


def setting(experiment: Experiment, scale: str) -> str:
    """What a figure's title says where it is not the paper's: other images, narrower networks,
    shorter runs, larger learning rates; "" at full scale."""
    if scale == "full":
        return ""
    said = []
    for arm in arms_of(experiment, scale):
        paper, config = config_of(arm, "full", 0), config_of(arm, scale, 0)
        images = f"{NAMES[config.data.name]} in place of {NAMES[paper.data.name]}"
        length = f"{config.train.steps:,} iterations"
        factor = config.optim.lr_d / paper.optim.lr_d
        rates = "" if factor == 1 else f", learning rates x {factor:g}"
        said.append(f"{images}, width {Fraction(config.model.width)}, {length}{rates}")
    return "; ".join(dict.fromkeys(said))
