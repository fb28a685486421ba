"""Feature extractors: what metrics compare images by.

Only ``inception`` gives numbers that may be called IS, FID and KID. ``classifier`` is a small
network that comes with the package; its numbers compare runs with each other and nothing else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsn.gan.data.compat import import_torchvision
from fastsn.gan.data.sets import ASSETS

__all__ = ["EXTRACTORS", "Classifier", "Extractor", "load_extractor"]

EXTRACTORS = ("inception", "classifier")

#: The Inception network of 2015-12-05 that all published IS and FID are about, as torch-fidelity
#: publishes its weights: the file, and the beginning of its SHA-256, which is also in its name.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)


class Extractor:
    """A network that makes features and class scores of images.

    Attributes:
        name: ``"inception"`` or ``"classifier"``.
        sha256: of the weights file.
        features: number of features.
        classes: number of class scores.
    """

    def __init__(
        self, name: str, sha256: str, network: nn.Module, features: int, classes: int
    ) -> None:
        self.name, self.sha256 = name, sha256
        self.features, self.classes = features, classes
        self._network = network.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Extractor:
        """Moves the network; returns itself."""
        self._network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[n, features]`` and class scores before the softmax ``[n, classes]``.

        Args:
            pixels: ``uint8 [n, c, h, w]``; grey images are made RGB for Inception, and images are
                made grey and 28 pixels wide for the classifier.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"expected images uint8 [n, 1 or 3, h, w], got {pixels.dtype} {list(pixels.shape)}"
            )
        if self.name == "inception":
            pixels = pixels.expand(-1, 3, -1, -1)
        features, scores = self._network(pixels)
        return features.float(), scores.float()


class Classifier(nn.Module):
    """A small classifier of Fashion-MNIST; ``scripts/train_classifier.py`` trains it."""

    FEATURES, CLASSES, SIDE = 64, 10, 28

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 3 * 3, self.FEATURES)
        self.fc2 = nn.Linear(self.FEATURES, self.CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``uint8 [n, c, h, w]`` to features ``[n, 64]``, without ReLU, and scores ``[n, 10]``."""
        x = pixels.float().mean(1, keepdim=True) / 127.5 - 1
        if x.shape[-2:] != (self.SIDE, self.SIDE):
            x = F.interpolate(x, (self.SIDE, self.SIDE), mode="bilinear", antialias=True)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        features = self.fc1(x.flatten(1))
        return features, self.fc2(F.relu(features))


def load_extractor(
    name: str, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """An extractor, its weights checked and read without running code from the file.

    Args:
        name: one of :data:`EXTRACTORS`.
        weights: for ``inception``, torch-fidelity's weights file; nothing is ever downloaded. For
            ``classifier``, another file of :class:`Classifier` weights; default: the shipped one.
        device: where it computes.

    Raises:
        FileNotFoundError: no weights file; the message says where to get it.
        ValueError: an unknown name, or a file that is damaged or another one.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"expected an extractor of {EXTRACTORS}, got {name!r}")
    if name == "inception":
        return _inception(weights).to(device)
    path = ASSETS / "classifier.pt" if weights is None else Path(weights)
    state, sha256 = _read(path, "weights of fastsn.gan's classifier")
    network = Classifier()
    _load(network, state, path)
    return Extractor(name, sha256, network, network.FEATURES, network.CLASSES).to(device)


def _read(path: Path, what: str, begins: str = "") -> tuple[Any, str]:
    """Content of a weights file, and its SHA-256, which must begin with ``begins``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {what}, got no such file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    sha256 = digest.hexdigest()
    if not sha256.startswith(begins):
        raise ValueError(
            f"{path}: expected {what}, whose SHA-256 begins with {begins}, got {sha256[:16]}...: "
            "the file is damaged or another one"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True), sha256
    except Exception as error:  # pickle, zip and torch raise many kinds for damaged files
        raise ValueError(f"{path}: expected {what}, got an unreadable file: {error}") from error


def _load(network: nn.Module, state: Any, path: Path) -> None:
    try:
        network.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: expected weights of {type(network).__name__}, got others: {error}"
        ) from error


class _Inception(nn.Module):
    """torch-fidelity's Inception: images resized as TensorFlow 1 did, scores without biases.

    Like torch-fidelity we take IS over all 1008 scores; the authors' code takes the first 1000.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import_torchvision()  # torch-fidelity imports it
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(pixels)


def _inception(weights: str | Path | None) -> Extractor:
    what = f"Inception weights ({INCEPTION_FILE} from {INCEPTION_URL})"
    if weights is None:
        raise FileNotFoundError(f"expected a file of {what}, got none")
    path = Path(weights)
    # torch-fidelity would unpickle the file: read it safely first.
    _, sha256 = _read(path, what, INCEPTION_SHA256)
    try:
        network = _Inception(path)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: expected {what}, got other weights: {error}") from error
    return Extractor("inception", sha256, network, 2048, 1008)
