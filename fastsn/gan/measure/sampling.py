"""Pictures: samples of a generator, grids of them, and PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fastsn.gan.rng import Rng, latents
from fastsn.gan.run.checkpoint import replace_file
from fastsn.gan.run.logs import progress

__all__ = ["evaluating", "generate", "grid", "interpolate", "save_png", "to_uint8"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: running statistics, and no power iterations."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 0 .. 255."""
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


@torch.no_grad()
def generate(
    generator: nn.Module, n: int, rng: Rng, stream: str, step: int = 0, batch: int = 250
) -> Tensor:
    """``n`` samples, ``uint8 [n, c, h, w]`` on the CPU, in evaluation mode.

    Args:
        generator: unchanged afterwards.
        rng: its ``stream`` at ``step`` gives z; the images depend on nothing else.
        batch: images at a time.
    """
    parts = []
    starts = progress(range(0, n, batch), "sampling", batch, n)
    with evaluating(generator):
        for index, start in enumerate(starts):
            z = latents(generator, min(batch, n - start), rng(stream, step, index))
            parts.append(to_uint8(generator(z)).cpu())
    return torch.cat(parts)


@torch.no_grad()
def interpolate(generator: nn.Module, rows: int, columns: int, rng: Rng) -> Tensor:
    """``rows`` walks of ``columns`` images between two points each, along great circles.

    Returns:
        ``uint8 [rows * columns, c, h, w]`` on the CPU.
    """
    ends = latents(generator, 2 * rows, rng("samples"))
    first, last = ends[:rows, None], ends[rows:, None]
    part = torch.linspace(0, 1, columns, device=ends.device)[:, None]
    cosine = torch.cosine_similarity(first, last, dim=-1)[..., None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.arccos(cosine)
    path = torch.sin((1 - part) * angle) * first + torch.sin(part * angle) * last
    path = path / torch.sin(angle)
    with evaluating(generator):
        return to_uint8(generator(path.flatten(0, 1))).cpu()


def grid(images: Tensor, columns: int | None = None, border: int = 1) -> Tensor:
    """One picture ``uint8 [c, H, W]`` of images ``uint8 [n, c, h, w]``, row by row."""
    n, channels, height, width = images.shape
    columns = min(n, columns if columns is not None else math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    cells = images.new_full((rows * columns, channels, height + border, width + border), 255)
    cells[:n, :, :height, :width] = images
    cells = cells.view(rows, columns, channels, height + border, width + border)
    picture = cells.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + border), -1)
    return picture[:, : picture.shape[1] - border, : picture.shape[2] - border].contiguous()


def save_png(path: Path, picture: Tensor, zoom: int = 1) -> None:
    """Writes a picture ``uint8 [1 or 3, H, W]``, whole or not at all."""
    from PIL import Image

    if zoom > 1:
        picture = picture.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    array = picture.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    replace_file(path, content.getvalue())
