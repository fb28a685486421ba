"""The sizes at which an experiment can be run, and the configurations of its runs."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from fastsn.gan.config import Config, from_dict
from fastsn.gan.experiments.spec import Arm
from fastsn.gan.presets import load_preset

__all__ = ["SCALES", "config_of", "seeds_of"]

#: ``full``: as in the paper. ``small``: narrow networks on the shipped Fashion-MNIST images, a
#: minute or two for a run. ``smoke``: two iterations.
SCALES = ("full", "small", "smoke")


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
