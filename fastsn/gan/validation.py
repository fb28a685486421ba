"""Which configurations a run can be made of; the first option that is wrong is named."""

from __future__ import annotations

import math

from fastsn.gan.config import Config, ConfigError, flatten
from fastsn.gan.data.sets import DATASETS
from fastsn.gan.measure.features import EXTRACTORS
from fastsn.gan.nets.losses import LOSSES
from fastsn.gan.nets.models import NETWORKS
from fastsn.gan.nets.normalization import METHODS, SCALED, SPREADABLE

__all__ = ["validate"]

_POSITIVE = (
    "data.resolution",
    "model.width",
    "norm.scale",
    "optim.lr_g",
    "optim.lr_d",
    "optim.n_dis",
    "optim.batch_d",
    "optim.batch_g",
    "train.steps",
    "log.every",
    "log.n_samples",
    "checkpoint.every",
    "checkpoint.keep",
    "eval.n_real",
    "eval.n_fake",
    "eval.n_score",
    "eval.splits",
)
_NOT_NEGATIVE = (
    "loss.gradient_penalty",
    "model.negative_slope",
    "norm.spread",
    "norm.spread_seed",
    "train.seed",
    "log.samples_every",
    "log.diagnostics_every",
    "eval.every",
)


def validate(config: Config) -> Config:
    """Returns ``config`` if a run can be made of it.

    Raises:
        ConfigError: the first option that is out of range, or that another one excludes.
    """
    choices: dict[str, list[str]] = {
        "data.name": [*DATASETS],
        "model.name": [*NETWORKS],
        "norm.method": [*METHODS],
        "norm.update": ["step", "forward"],
        "loss.name": [*LOSSES],
        "optim.decay": ["none", "linear"],
        "train.device": ["auto", "cpu", "cuda"],
        "eval.extractor": [*EXTRACTORS],
    }
    options = dict(flatten(config.to_dict()))
    for name, allowed in choices.items():
        if options[name] not in allowed:
            raise ConfigError(f"{name}: expected one of {allowed}, got {options[name]!r}")
    for name in _POSITIVE:
        if options[name] is not None and not (options[name] > 0 and math.isfinite(options[name])):
            raise ConfigError(f"{name}: expected a positive number, got {options[name]!r}")
    for name in _NOT_NEGATIVE:
        if options[name] is not None and not (options[name] >= 0 and math.isfinite(options[name])):
            raise ConfigError(f"{name}: expected 0 or a positive number, got {options[name]!r}")
    for name in ("optim.beta1", "optim.beta2", "train.ema"):
        if not 0 <= options[name] < 1:
            raise ConfigError(f"{name}: expected at least 0 and below 1, got {options[name]!r}")
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    norm, speed = config.norm, config.speed
    if norm.scale != 1 and norm.method not in SCALED:
        raise ConfigError(
            f"norm.scale: expected 1 with norm.method {norm.method!r}, got {norm.scale}: the "
            f"methods with a scale are {', '.join(SCALED)}"
        )
    if norm.spread and norm.method not in SPREADABLE:
        raise ConfigError(
            f"norm.spread: expected 0 with norm.method {norm.method!r}, got {norm.spread}: the "
            f"methods with a scale for each layer are {', '.join(SPREADABLE)}"
        )
    if config.model.negative_slope is not None and config.model.name.startswith("resnet"):
        raise ConfigError(
            f"model.negative_slope: expected none with model.name {config.model.name!r}, got "
            f"{config.model.negative_slope}: it has ReLUs alone"
        )
    if speed.cuda_graphs and speed.compile:
        raise ConfigError("speed.cuda_graphs: expected false with speed.compile, got both")
    if speed.cuda_graphs and config.optim.decay != "none":
        raise ConfigError(
            f"speed.cuda_graphs: expected false with optim.decay {config.optim.decay!r}, got both: "
            "a graph keeps the learning rate it was captured with"
        )
    if speed.cuda_graphs and config.loss.gradient_penalty:
        raise ConfigError(
            "speed.cuda_graphs: expected false with loss.gradient_penalty, got both: its random "
            "points are drawn inside the step"
        )
    if config.eval.every and config.eval.extractor == "inception" and not config.eval.weights:
        raise ConfigError(
            "eval.weights: expected a file of Inception weights, got none: give one, or set "
            "eval.extractor to classifier, or eval.every to 0"
        )
    if config.eval.n_score < config.eval.splits:
        raise ConfigError(
            f"eval.n_score: expected at least eval.splits ({config.eval.splits}), got "
            f"{config.eval.n_score}"
        )
