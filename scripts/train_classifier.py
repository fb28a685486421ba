"""Trains the package's small classifier, whose features the metrics use without Inception weights.

``python scripts/train_classifier.py FOLDER``: the folder has Fashion-MNIST as gzipped IDX files;
Debian's package dataset-fashion-mnist puts them in ``/usr/share/datasets/fashion-mnist``. Takes a
few minutes on one processor. ``--seed 1 --out FILE`` makes the second classifier of
``paper/protocol.md``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.gan.data.sets import ASSETS
from fastsn.gan.measure.features import Classifier

EPOCHS, BATCH, LR = 8, 128, 3e-3


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``uint8 [n, 1, 28, 28]`` and labels ``int64 [n]`` of part ``train`` or ``t10k``."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8, offset=16)
    numbers = torch.frombuffer(bytearray(labels), dtype=torch.uint8, offset=8)
    return pixels.view(-1, 1, 28, 28), numbers.long()


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        found = torch.cat([network(part)[1].argmax(1) for part in images.split(1000)])
    return float((found == labels).double().mean())


def main(folder: Path, seed: int, path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, labels = read(folder, "train")
    test_images, test_labels = read(folder, "t10k")
    network = Classifier()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))[: len(images) // BATCH * BATCH]
        for index in order.view(-1, BATCH):
            batch = images[index]
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
            loss = F.cross_entropy(network(batch)[1], labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        rate = accuracy(network, test_images, test_labels)
        print(f"epoch {epoch + 1}: test accuracy {rate:.4f}", flush=True)
    torch.save(network.state_dict(), path)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ASSETS / "classifier.pt")
    options = parser.parse_args()
    main(options.folder, options.seed, options.out)
