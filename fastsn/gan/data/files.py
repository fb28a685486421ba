"""Images from files: any folder of pictures, decoded once into a cache, and arrays."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsn.gan.data.images import DataError, center_crop, digest, resize
from fastsn.gan.run.checkpoint import replace_file
from fastsn.gan.run.logs import progress

__all__ = [
    "CACHE",
    "Decoding",
    "channels_of",
    "decode",
    "list_pictures",
    "read_array",
    "side_of",
]

#: Environment variable with the folder for decoded images; default: ``.fastsn`` beside the data.
CACHE = "FASTSN_CACHE"

#: Part of the key of a cache file: to be raised when the decoding changes.
VERSION = 2
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


def _read_picture(path: Path, channels: int) -> Tensor:
    """``uint8 [c, h, w]``, turned as its EXIF data says; of 16 bits the upper 8, as Pillow does
    with colours."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            turned: Any = ImageOps.exif_transpose(picture)
            if turned.mode.startswith("I"):
                values = np.asarray(turned).astype(np.int64)
                if values.min() < 0 or values.max() > 0xFFFF:
                    raise ValueError(f"values of more than 16 bits (mode {turned.mode})")
                turned = Image.fromarray((values >> 8).astype(np.uint8))
            elif turned.mode == "F":
                raise ValueError("values that are no integers (mode F)")
            turned = turned.convert("L" if channels == 1 else "RGB")
            array = np.asarray(turned).reshape(turned.height, turned.width, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: expected an image, got no such file") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"{path}: expected a readable image, got: {error}") from error
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def channels_of(paths: Sequence[Path]) -> int:
    """3 if any of the pictures has colours by its header, else 1."""
    from PIL import Image

    for path in paths:
        try:
            with Image.open(path) as picture:
                if picture.mode not in ("1", "L", "LA") and not picture.mode.startswith(("I", "F")):
                    return 3
        except Exception as error:  # a damaged file can raise nearly anything
            raise DataError(f"{path}: expected a readable image, got: {error}") from error
    return 1


def side_of(path: Path) -> int:
    """Side of a picture's largest square."""
    return min(_read_picture(path, 3).shape[-2:])


def list_pictures(folder: Path) -> list[Path]:
    """All pictures below ``folder``, in the order of their names; links to folders are followed,
    hidden folders are left out."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:  # a link to a folder that it lies in, or a second one
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in files if name.lower().endswith(SUFFIXES)]
    if not found:
        raise DataError(
            f"{folder}: expected images ({', '.join(SUFFIXES)}) in this folder or below, got none"
        )
    return sorted(found)


def decode(files: Sequence[Path], decoding: Decoding, root: Path) -> Tensor:
    """All ``files`` as ``uint8 [n, channels, resolution, resolution]``, mapped from a cache file.

    The first call decodes them, with all processors, and writes the file and its hash; later calls
    map it, as long as no picture's name, size or time has changed and the hash is still right.
    Processes that ask at once wait for the first.

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
            cached = _verified(target)
            if cached is None:
                _write(target, files, decoding)
                cached = _mapped(np.load(target, mmap_mode="r", allow_pickle=False))
                replace_file(target.with_suffix(".hash"), digest(cached).encode())
        return cached
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{target}: expected to write and map the decoded images, got: {error}. Set {CACHE} to "
            "a folder with room for them"
        ) from error


def _verified(target: Path) -> Tensor | None:
    """The images of a cache file; None where there is none, or a damaged one."""
    import numpy as np

    try:
        pixels = _mapped(np.load(target, mmap_mode="r", allow_pickle=False))
        if digest(pixels) == target.with_suffix(".hash").read_text():
            return pixels
        said = "expected the images that were decoded, got damaged ones"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError) as error:
        said = str(error)
    sys.stderr.write(f"{target}: {said}; they are decoded again\n")
    return None


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

    temporary = target.with_suffix(".tmp")
    shape = len(files), decoding.channels, decoding.resolution, decoding.resolution
    array: Any = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    try:
        _reserve(temporary)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in progress(range(0, len(files), BATCH), "decoding", BATCH, len(files)):
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
