"""The runs of the study, in the order in which they are done: ``experiments/study.yaml``."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastsn.gan.config import Config, from_dict
from fastsn.gan.presets import load_preset
from paper.catalog import read

__all__ = ["Run", "lot", "runs", "seeds", "titles"]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        setting: A, B, C, M or W.
        arm: name of the method with its scale.
        seed: of the run.
        config: all options.
    """

    setting: str
    arm: str
    seed: int
    config: Config


def runs(number_of_seeds: int | None = None) -> Iterator[Run]:
    """All runs: seeds outermost, so that what is done at any time is whole seeds and one part."""
    study = read("study")
    for seed in range(study["seeds"] if number_of_seeds is None else number_of_seeds):
        for setting, options in study["settings"].items():
            for arm in study["arms"]:
                if setting in arm["in"]:
                    yield Run(
                        setting, arm["name"], seed, _config(study, setting, options, arm, seed)
                    )


def lot() -> list[Run]:
    """Two runs of the first seed, drawn by lot, that are trained twice."""
    return random.Random("a lot for the study").sample(list(runs(1)), 2)


def seeds() -> int:
    """How many seeds the protocol asks for."""
    return int(read("study")["seeds"])


def titles() -> dict[str, str]:
    """What the settings are, by their letters."""
    return {name: setting["title"] for name, setting in read("study")["settings"].items()}


def _config(
    study: Mapping[str, Any],
    setting: str,
    options: Mapping[str, Any],
    arm: Mapping[str, Any],
    seed: int,
) -> Config:
    name = f"paper/{options['preset']}_{arm['method']}"
    tree = copy.deepcopy(load_preset(name).to_dict())
    for layer in (study["base"], options):
        for section, changes in layer.items():
            if section in tree:
                tree[section] |= changes
    for option in ("scale", "update"):
        if option in arm:
            tree["norm"][option] = arm[option]
    tree["train"]["steps"] = study["steps"]["late" if setting in arm.get("late", ()) else "usual"]
    tree["train"]["seed"] = seed
    return from_dict(tree, f"{name} of the study")
