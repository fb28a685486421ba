"""Tiny data sets in the true on-disk layouts.

torchvision checks MD5 sums of the originals, so the sums of the tiny files are put in their place.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsn.gan.data.compat import import_torchvision

__all__ = ["LAYOUTS", "idx", "noise"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(path: Path, array: np.ndarray) -> None:
    """An IDX file, as MNIST's: magic number with type and rank, sizes, bytes; big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


def mnist(folder: str) -> Callable[[Path, pytest.MonkeyPatch], np.ndarray]:
    def write(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        images = noise(7, 28, 28)
        idx(root / folder / "raw" / "train-images-idx3-ubyte", images)
        idx(root / folder / "raw" / "train-labels-idx1-ubyte", noise(7))
        return images[:, None]

    return write


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    images = noise(10, 3072)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        rows = images[2 * i : 2 * i + 2] if i < 5 else images[:2]
        batch = {"data": rows, "labels": [0, 1], "batch_label": name, "filenames": ["a", "b"]}
        (base / name).write_bytes(pickle.dumps(batch, protocol=2))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}, protocol=2))
    reader = import_torchvision().datasets.CIFAR10
    sums = [[name, md5(base / name)] for name in names]
    monkeypatch.setattr(reader, "train_list", sums[:5])
    monkeypatch.setattr(reader, "test_list", sums[5:])
    meta = {**reader.meta, "md5": md5(base / "batches.meta")}
    monkeypatch.setattr(reader, "meta", meta)
    return images.reshape(10, 3, 32, 32)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Columns come before rows in these files; halving takes means of 2 x 2 pixels."""
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    images = noise(5, 3, 96, 96)
    reader = import_torchvision().datasets.STL10
    for name in ("train_X.bin", "train_y.bin", "unlabeled_X.bin", "test_X.bin", "test_y.bin"):
        rows = images.transpose(0, 1, 3, 2) if name == "unlabeled_X.bin" else images[:1]
        (base / name).write_bytes(rows.tobytes() if "X" in name else bytes([1]))
    for attribute in ("train_list", "test_list"):
        sums = [[name, md5(base / name)] for name, _ in getattr(reader, attribute)]
        monkeypatch.setattr(reader, attribute, sums)
    return halved(images)


def halved(images: np.ndarray) -> np.ndarray:
    n, c, h, w = images.shape
    sums = images.astype(int).reshape(n, c, h // 2, 2, w // 2, 2).sum((3, 5))
    return ((sums + 2) // 4).astype(np.uint8)


def celeba(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 5)]
    pixels = []
    for i, name in enumerate(names):
        path = base / "img_align_celeba" / name
        # smooth, because JPEG changes noise
        picture = Image.fromarray(noise(9, 8, 3, seed=i)).resize((178, 218), Image.BICUBIC)
        picture.save(path, quality=95)
        pixels.append(np.asarray(Image.open(path)).transpose(2, 0, 1))
    columns = {"identity_CelebA": 1, "list_eval_partition": 1, "list_attr_celeba": 40}
    columns |= {"list_bbox_celeba": 4, "list_landmarks_align_celeba": 10}
    for stem, count in columns.items():
        lines = [f"{name} " + " ".join(["1"] * count) for name in names]
        if stem in ("list_attr_celeba", "list_bbox_celeba", "list_landmarks_align_celeba"):
            head = " ".join(f"column{i}" for i in range(count))
            lines = [str(len(names)), head, *lines]
        (base / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    reader = import_torchvision().datasets.CelebA
    sums = [
        (key, total if name.endswith(".zip") else md5(base / name), name)
        for key, total, name in reader.file_list
    ]
    monkeypatch.setattr(reader, "file_list", sums)
    return halved(np.stack(pixels)[:, :, 45:173, 25:153])


def imagenet(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    pixels = []
    for i, (wnid, size) in enumerate(
        [("n01440764", (300, 256)), ("n01440764", (256, 400)), ("n15075141", (256, 256))]
    ):
        folder = root / "train" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{wnid}_{i}.JPEG"
        Image.fromarray(noise(9, 8, 3, seed=i)).resize(size, Image.BICUBIC).save(path, quality=95)
        picture = np.asarray(Image.open(path)).transpose(2, 0, 1)
        top, left = (picture.shape[1] - 256) // 2, (picture.shape[2] - 256) // 2
        pixels.append(picture[:, top : top + 256, left : left + 256])
    return halved(np.stack(pixels))


#: By data set: writes its files below a root, and returns the pixels that must be read from them.
LAYOUTS: dict[str, Callable[[Path, pytest.MonkeyPatch], np.ndarray]] = {
    "mnist": mnist("MNIST"),
    "fashion_mnist": mnist("FashionMNIST"),
    "cifar10": cifar10,
    "stl10": stl10,
    "celeba": celeba,
    "imagenet": imagenet,
}
