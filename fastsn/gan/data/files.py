"""Images from files: any folder of pictures, decoded once into a cache, and arrays."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsn.gan.data.images import DataError, center_crop, resize

__all__ = ["CACHE", "Decoding", "decode", "list_pictures", "read_array", "size_of"]

#: Environment variable with the folder for decoded images; default: ``.fastsn`` beside the data.
CACHE = "FASTSN_CACHE"

#: Part of the key of a cache file: to be raised when the decoding changes.
VERSION = 1
#: Pictures decoded between two looks at the progress.
BATCH = 1024
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Decoding:
    """How pictures become pixels: crop, then resize.

    Attributes:
        resolution: side of the results.
        channels: 1 (grey) or 3 (RGB).
        crop: side of the square in the middle that is kept; None: the largest.
        exact: refuse pictures whose square is not of the resolution already.
    """

    resolution: int
    channels: int = 3
    crop: int | None = None
    exact: bool = False

    def __call__(self, path: Path) -> Tensor:
        """``uint8 [channels, resolution, resolution]``; a :class:`DataError` names the file."""
        pixels = _read_picture(path, self.channels)
        height, width = pixels.shape[-2:]
        side = min(height, width)
        if self.exact and side != self.resolution:
            raise DataError(
                f"{path}: expected images of one size, {self.resolution} pixels as the first, got "
                f"{width}x{height}: give a resolution (data.resolution)"
            )
        if self.crop is not None and side < self.crop:
            raise DataError(
                f"{path}: expected at least {self.crop}x{self.crop} pixels, got {width}x{height}"
            )
        return resize(center_crop(pixels, self.crop)[None], self.resolution)[0]


def _read_picture(path: Path, channels: int | None) -> Tensor:
    """``uint8 [c, h, w]``, turned as its EXIF data says; channels None: 1 if it is grey, else 3."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            deep = picture.mode.startswith(("I", "F"))
            if channels is None:
                channels = 1 if picture.mode in ("1", "L", "LA") else 3
            turned = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
            array = np.asarray(turned).reshape(turned.height, turned.width, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: expected an image, got no such file") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"{path}: expected a readable image, got: {error}") from error
    if deep:
        raise DataError(f"{path}: expected an image of 8 bits per channel, got mode {picture.mode}")
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def list_pictures(folder: Path) -> list[Path]:
    """All pictures below ``folder``, in the order of their names; hidden folders are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if name.lower().endswith(SUFFIXES)]
    if not found:
        raise DataError(
            f"{folder}: expected images ({', '.join(SUFFIXES)}) in this folder or below, got none"
        )
    return sorted(found)


def size_of(path: Path) -> tuple[int, int]:
    """``(channels, side)`` of a picture's largest square."""
    pixels = _read_picture(path, None)
    return pixels.shape[0], min(pixels.shape[-2:])


def decode(files: Sequence[Path], decoding: Decoding, root: Path) -> Tensor:
    """All ``files`` as ``uint8 [n, channels, resolution, resolution]``, mapped from a cache file.

    The first call decodes them, with all processors, and writes the file; later calls map it, as
    long as no picture's name, size or time has changed. Processes that ask at once wait for the
    first.

    Args:
        files: the pictures.
        decoding: what to make of them.
        root: folder of the data, which has the cache unless ``FASTSN_CACHE`` names another.

    Raises:
        DataError: a damaged picture, or no room for the cache.
    """
    import numpy as np

    folder = Path(os.environ.get(CACHE) or root / ".fastsn")
    target = folder / f"{_key(files, decoding, root)}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not target.exists():
                _write(target, files, decoding)
        return _mapped(np.load(target, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{target}: expected to write and map the decoded images, got: {error}. Set {CACHE} to "
            "a folder with room for them, or delete a damaged file"
        ) from error


def _key(files: Sequence[Path], decoding: Decoding, root: Path) -> str:
    digest = hashlib.blake2b(f"{VERSION} {decoding}".encode(), digest_size=12)
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: expected an image, got: {error.strerror}") from None
        name = os.path.relpath(path, root)
        digest.update(f"\n{name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(target: Path, files: Sequence[Path], decoding: Decoding) -> None:
    """Writes the cache file, whole or not at all."""
    import numpy as np
    from tqdm import tqdm

    temporary = target.with_suffix(".tmp")
    shape = len(files), decoding.channels, decoding.resolution, decoding.resolution
    array: Any = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    try:
        _reserve(temporary)
        # the bar shows itself on terminals only
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in tqdm(range(0, len(files), BATCH), "decoding", disable=None):
                decoded = pool.map(decoding, files[start : start + BATCH])
                for i, pixels in enumerate(decoded, start):
                    array[i] = pixels.numpy()
        array.flush()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Takes the disk space now: a mapped file that finds the disk full kills the process."""
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise


def _mapped(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # torch has no read-only tensors; nobody writes to these
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def read_array(path: Path) -> Tensor:
    """Images of a ``.npy`` or ``.npz`` file: ``uint8 [n, c, h, w]``, mapped if it is ``.npy``.

    The array is ``uint8 [n, h, w]``, ``[n, h, w, c]`` or ``[n, c, h, w]`` with 1 or 3 channels; in
    a ``.npz`` file it is named ``images`` or is the only one.

    Raises:
        DataError: another file, or an array that does not fit.
    """
    import numpy as np

    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                loaded = arrays[_only(path, arrays.files)]
        else:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise DataError(f"{path}: expected a .npy or .npz file, got: {error}") from error
    if loaded.dtype != np.uint8 or loaded.ndim not in (3, 4) or 0 in loaded.shape:
        raise DataError(
            f"{path}: expected uint8 images [n, h, w], [n, h, w, c] or [n, c, h, w], "
            f"got {loaded.dtype} {list(loaded.shape)}"
        )
    pixels = _mapped(loaded)
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.shape[1] in (1, 3):
        return pixels
    if pixels.shape[3] in (1, 3):
        return pixels.permute(0, 3, 1, 2)
    raise DataError(f"{path}: expected images of 1 or 3 channels, got {list(pixels.shape)}")


def _only(path: Path, names: list[str]) -> str:
    if "images" in names:
        return "images"
    if len(names) != 1:
        raise DataError(f"{path}: expected an array named 'images' or a single one, got {names}")
    return names[0]
