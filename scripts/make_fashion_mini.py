"""Makes the package's image sheet from all of Fashion-MNIST.

``python scripts/make_fashion_mini.py FOLDER``: the folder has ``train-images-idx3-ubyte.gz`` and
``train-labels-idx1-ubyte.gz``; Debian's package dataset-fashion-mnist puts them in
``/usr/share/datasets/fashion-mnist``. The sheet is deterministic: the first 500 training images of
each class, taken in turn, so that image i is of class i % 10.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent / "fastsn" / "gan" / "assets"
PER_CLASS, CLASSES, COLUMNS, SIDE = 500, 10, 100, 28


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All training images ``[n, 28, 28]`` and labels ``[n]``."""
    images = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, SIDE, SIDE)
    return pixels, np.frombuffer(labels, np.uint8, offset=8)


if __name__ == "__main__":
    images, labels = read(Path(sys.argv[1]))
    chosen = [np.flatnonzero(labels == label)[:PER_CLASS] for label in range(CLASSES)]
    cells = images[np.stack(chosen, axis=1).reshape(-1)].reshape(-1, COLUMNS, SIDE, SIDE)
    sheet = cells.transpose(0, 2, 1, 3).reshape(-1, COLUMNS * SIDE)
    path = ASSETS / "fashion_mini.png"
    Image.fromarray(sheet).save(path, optimize=True)
    print(f"{path}: {PER_CLASS * CLASSES} images, {path.stat().st_size:,} bytes")
