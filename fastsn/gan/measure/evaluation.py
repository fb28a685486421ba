"""The best of a run's metrics, and ``fastsn eval``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastsn.gan.config import Config, ConfigError, validate
from fastsn.gan.data.images import Images
from fastsn.gan.data.sets import load, load_images
from fastsn.gan.measure.metrics import Evaluator
from fastsn.gan.measure.sources import load_source
from fastsn.gan.rng import Rng
from fastsn.gan.run.ranks import choose_device

__all__ = ["best_by", "best_value", "evaluate_source"]


def best_by(row: dict[str, Any]) -> str:
    """The number by which a run's best checkpoint is chosen: the Frechet distance."""
    return next(name for name in row if name.startswith(("fid_", "frechet_")))


def best_value(rows: Sequence[dict[str, Any]], name: str) -> tuple[float, int]:
    """The best value of a number in rows of ``metrics.jsonl``, and its step.

    Scores, precision and recall are good where they are large, distances where they are small; what
    was not finite, and is stored as a string, counts as the worst. Only rows of the last one's
    protocol are compared. A deviation is that of the row where what it is of is best.
    """
    of = name.removesuffix("_std")
    alike = [row for row in rows if row.get("protocol") == rows[-1].get("protocol")]
    known = [row for row in alike if isinstance(row.get(of), float)]
    if not known:
        known = [row for row in alike if isinstance(row.get(name), float)]
        of = name
    larger = of.startswith(("is_", "score_", "precision_", "recall_"))
    best = (max if larger else min)(known, key=lambda row: row[of])
    return best.get(name, float("nan")), best["step"]


def evaluate_source(options: dict[str, Any]) -> dict[str, Any]:
    """What ``fastsn eval`` prints: metrics of a run, a checkpoint or a folder of images.

    A run's data set and evaluation options are its own unless others are given.
    """
    out = options["out"]
    if out is not None and not Path(out).parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, got {out}")
    device = choose_device(options["device"])
    path = Path(options["source"])
    if options["images"]:
        config = _config(Config(), options)
        data = config.data
        fake = load_images("folder", path, resolution=data.resolution, channels=data.channels)
        evaluator = Evaluator(config.eval, load(config.data), device)
        return {"source": str(path), **evaluator(lambda n: _first(fake, n))}
    source = load_source(path, device, best=options["best"])
    config = _config(source.config, options)
    evaluator = Evaluator(config.eval, load(config.data), device)
    row = evaluator.generator(source.generator, Rng(options["seed"], device), source.step)
    return {"source": str(source.path), "step": source.step, **row}


def _config(base: Config, options: dict[str, Any]) -> Config:
    """``base`` with the options that were given, which are those that are not None."""
    sections = {}
    for section in ("data", "eval"):
        given = {name: value for name, value in options[section].items() if value is not None}
        sections[section] = dataclasses.replace(getattr(base, section), **given)
    return validate(dataclasses.replace(base, **sections))


def _first(images: Images, n: int) -> Tensor:
    if len(images) < n:
        raise ConfigError(
            f"eval.n_fake, eval.n_score: expected at most the {len(images)} images of the folder, "
            f"got {n}"
        )
    return images.pixels[:n]
