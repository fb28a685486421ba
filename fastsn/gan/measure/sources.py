"""Generators out of runs and checkpoint files, and samples of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastsn.gan.config import Config, ConfigError, from_dict
from fastsn.gan.measure.sampling import generate, grid, interpolate, save_png
from fastsn.gan.nets.models import build
from fastsn.gan.rng import Rng
from fastsn.gan.run import checkpoint
from fastsn.gan.run.checkpoint import CheckpointError, replace_file
from fastsn.gan.run.folder import RunDir
from fastsn.gan.run.ranks import choose_device

__all__ = ["Source", "load_source", "sample_source"]

#: Images that one command samples.
MOST = 10_000_000


@dataclass(frozen=True)
class Source:
    """A trained generator, the average if the run has one, and where it comes from."""

    generator: nn.Module
    config: Config
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
    try:
        config, shape = from_dict(state["config"], str(path)), tuple(state["image_shape"])
        if len(shape) != 3 or not all(type(n) is int and 0 < n <= 4096 for n in shape):
            raise ValueError(f"expected an image_shape of three positive numbers, got {shape}")
        channels, height, _ = shape
        generator, _ = build(
            config.model.name, resolution=height, width=config.model.width, channels=channels
        )
        generator.load_state_dict(state["ema"] or state["generator"])
    except (ConfigError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected a generator and its options, got others: {error}"
        ) from error
    return Source(generator.to(device).eval(), config, state["step"], path)


def sample_source(options: dict[str, Any]) -> Path:
    """Writes what ``fastsn sample`` asks for; returns its file or folder."""
    kind, rows, columns = options["kind"], options["rows"], options["columns"]
    n = options["n"] or rows * columns
    if n > MOST:
        raise ConfigError(f"--n, --rows, --columns: expected at most {MOST:,} images, got {n:,}")
    if kind in ("grid", "interpolation") and n != rows * columns:
        raise ConfigError(f"--n: expected none with --kind {kind}, got {n}: give rows and columns")
    out = Path(
        options["out"] or {"npz": "samples.npz", "images": "samples"}.get(kind, "samples.png")
    )
    if not out.parent.is_dir():
        raise ConfigError(f"--out: expected a place in a folder that exists, got {out}")
    if kind == "images" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: expected a new or empty folder for the images, got {out}")
    device = choose_device(options["device"])
    source = load_source(Path(options["source"]), device, best=options["best"])
    rng = Rng(options["seed"], device)
    if kind == "interpolation":
        images = interpolate(source.generator, rows, columns, rng)
    else:
        images = generate(source.generator, n, rng, "samples")
    if kind == "npz":  # what `data.name array` reads, and other programs
        content = io.BytesIO()
        np.savez(content, images=images.permute(0, 2, 3, 1).numpy())
        replace_file(out, content.getvalue())
    elif kind == "images":
        out.mkdir(exist_ok=True)
        for number, image in enumerate(images):
            save_png(out / f"{number:06d}.png", image, options["zoom"])
    else:
        save_png(out, grid(images, columns), options["zoom"])
    return out
