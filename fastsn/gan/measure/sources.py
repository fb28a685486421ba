"""Generators out of runs and checkpoint files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsn.gan.config import Config, ConfigError, from_dict
from fastsn.gan.measure.sampling import generate, grid, interpolate, save_png
from fastsn.gan.nets.models import build
from fastsn.gan.rng import Rng
from fastsn.gan.run import checkpoint
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.folder import RunDir
from fastsn.gan.run.ranks import choose_device

__all__ = ["Source", "load_source", "sample_source"]


@dataclass(frozen=True)
class Source:
    """A trained generator, the average if the run has one, and where it comes from."""

    generator: nn.Module
    config: Config
    image_shape: tuple[int, int, int]
    step: int
    path: Path


def load_source(path: Path, device: torch.device, *, best: bool = False) -> Source:
    """The generator of a run's folder or of a checkpoint file.

    Raises:
        CheckpointError: neither is there, or it cannot be used.
    """
    if path.is_dir():
        run = RunDir(path)
        if best:
            path = run.checkpoints / "best.pt"
            state: dict[str, Any] | None = checkpoint.load(path)
        else:
            state, _ = run.latest()
        if state is None:
            raise CheckpointError(f"{path}: expected a run with a checkpoint, got none in it")
    else:
        state = checkpoint.load(path)
    config = from_dict(state["config"], str(path))
    channels, height, width = state["image_shape"]
    generator, _ = build(
        config.model.name, resolution=height, width=config.model.width, channels=channels
    )
    try:
        generator.load_state_dict(state["ema"] or state["generator"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: expected a {config.model.name} generator: {error}"
        ) from error
    shape = (channels, height, width)
    return Source(generator.to(device).eval(), config, shape, state["step"], path)


def sample_source(options: dict[str, Any]) -> Path:
    """Writes the picture that ``fastsn sample`` asks for; returns its file."""
    for name in ("rows", "columns", "zoom"):
        if options[name] < 1:
            raise ConfigError(f"--{name}: expected a positive integer, got {options[name]}")
    if options["kind"] not in ("grid", "interpolation"):
        raise ConfigError(f"--kind: expected grid or interpolation, got {options['kind']!r}")
    out = Path(options["out"])
    if not out.parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, got {out}")
    device = seeded_device(options)
    source = load_source(Path(options["source"]), device, best=options["best"])
    rng = Rng(options["seed"], device)
    rows, columns = options["rows"], options["columns"]
    if options["kind"] == "grid":
        images = generate(source.generator, rows * columns, rng, "samples")
    else:
        images = interpolate(source.generator, rows, columns, rng)
    save_png(out, grid(images, columns), options["zoom"])
    return out


def seeded_device(options: dict[str, Any]) -> torch.device:
    """The device of ``--device``, after a check of it and of ``--seed``."""
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: expected auto, cpu or cuda, got {options['device']!r}")
    if options["seed"] < 0:
        raise ConfigError(f"--seed: expected 0 or more, got {options['seed']}")
    return choose_device(options["device"])
