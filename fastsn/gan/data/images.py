"""Images held as bytes, where they fit, and drawn there; and what tells two sets of them apart."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DataError", "Images", "center_crop", "digest", "resize", "to_channels"]

#: Part of a GPU's free memory that images may take: the rest is for networks.
SHARE = 0.5
#: Images resized at a time: the float copies of more would be large.
CHUNK = 1024
#: Bytes that one thread hashes at a time.
HASHED = 1 << 26


class DataError(ValueError):
    """Images that cannot be had; the message names the file, what was expected, and the remedy."""


def center_crop(pixels: Tensor, size: int | None = None) -> Tensor:
    """The square in the middle of ``[..., h, w]``.

    Args:
        pixels: images.
        size: side of the square, not larger than the images; default: the largest.
    """
    height, width = pixels.shape[-2:]
    size = min(height, width) if size is None else size
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[..., top : top + size, left : left + size]


def resize(pixels: Tensor, size: int) -> Tensor:
    """Square images ``uint8 [n, c, h, h]`` at ``size`` pixels, bilinear without antialias.

    As the authors do it: halving takes means of 2x2 pixels exactly, and stronger reductions skip
    pixels, as OpenCV's INTER_LINEAR does (whose fixed-point weights can differ by one grey level).
    """
    if pixels.shape[-1] == size:
        return pixels
    parts = []
    for part in pixels.split(CHUNK):
        wide = F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False)
        parts.append((wide + 0.5).floor_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)


def to_channels(pixels: Tensor, channels: int | None) -> Tensor:
    """Images with 1 or 3 channels: grey by the weights of ITU-R 601-2, as Pillow's."""
    if channels in (None, pixels.shape[1]):
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    weights = torch.tensor([299.0, 587.0, 114.0]).view(1, 3, 1, 1) / 1000
    parts = [((part * weights).sum(1, keepdim=True) + 0.5).floor_() for part in pixels.split(CHUNK)]
    return torch.cat(parts).to(torch.uint8)


def digest(pixels: Tensor) -> str:
    """A hash of the bytes of images, in their order; a block per thread, for sets of gigabytes."""
    size = max(1, HASHED // max(pixels[0].numel(), 1))

    def of_part(part: Tensor) -> bytes:
        content = part.contiguous().numpy()
        return hashlib.blake2b(content.data, digest_size=16).digest()

    with ThreadPoolExecutor() as pool:
        parts = [*pool.map(of_part, pixels.cpu().split(size))]
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Images:
    """A data set of square images.

    Attributes:
        pixels: ``uint8 [n, c, h, w]``, to be read only: it may be a file mapped into memory.
        name: of the data set.
        description: what it is, for logs.
        device: where :meth:`sample` puts its images.
        hashed: :func:`digest` of the pixels; "" where it was not asked for.
    """

    pixels: Tensor = field(repr=False)
    name: str
    description: str
    device: torch.device = torch.device("cpu")
    hashed: str = ""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the set is: equal for the same images in the same order, wherever they lie."""
        n, *shape = self.pixels.shape
        hashed = self.hashed or digest(self.pixels)
        return {"name": self.name, "images": n, "shape": shape, "hash": hashed}

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> Images:
        """These images for use on ``device``: moved there, unless a GPU has too little memory."""
        device = torch.device(device)
        pixels = self.pixels
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if pixels.numel() <= SHARE * free:
                pixels = pixels.to(device)
        elif pixels.device != device:
            pixels = pixels.to(device)
        return replace(self, pixels=pixels, device=device)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` images drawn with replacement, as the authors do: ``float32 [n, c, h, w]``.

        Args:
            n: how many.
            generator: random numbers, on the device of :attr:`pixels`.

        Returns:
            Pixels in [-1, 1], on :attr:`device`.
        """
        index = torch.randint(
            len(self), (n,), generator=generator, device=self.pixels.device, dtype=torch.int64
        )
        batch = self.pixels.index_select(0, index)
        if batch.device != self.device:  # bytes travel, from pinned memory without waiting
            batch = batch.pin_memory() if self.device.type == "cuda" else batch
            batch = batch.to(self.device, non_blocking=True)
        return batch.float().div_(127.5).sub_(1)
