"""The paper's data sets with the paper's preprocessing (appendix H), and a user's own images.

torchvision reads them. All become square ``uint8`` images; pixels are scaled to [-1, 1] when they
are drawn. (For MNIST the paper's range is [0, 1]: :mod:`fastsn.gan.nets.models` does that.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsn.gan.data.compat import import_torchvision
from fastsn.gan.data.files import Decoding, decode, list_pictures, read_array, size_of
from fastsn.gan.data.images import DataError, Images, center_crop, resize

__all__ = ["ASSETS", "DATASETS", "DataError", "Dataset", "Images", "load_images"]

#: Files that come with the package.
ASSETS = Path(__file__).parent.parent / "assets"


class Dataset(NamedTuple):
    """One row of :data:`DATASETS`.

    Attributes:
        read: ``(root, resolution)`` to pixels ``uint8 [n, c, h, w]``; resolution None is the data
            set's own.
        layout: the files below the root, in words.
        command: gets them; ``{root}`` stands for the root.
    """

    read: Callable[[Path, int | None], Tensor]
    layout: str
    command: str


def load_images(name: str, root: str | Path | None, *, resolution: int | None = None) -> Images:
    """Reads a data set.

    Args:
        name: one of :data:`DATASETS`.
        root: its folder or file; ``fashion_mini`` needs none.
        resolution: side of the images in pixels; default: the paper's, or the data's own.

    Raises:
        DataError: an unknown name, or files that are missing or damaged.
        ImportError: torchvision is not installed.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set of {list(DATASETS)}, got {name!r}")
    if resolution is not None and resolution < 1:
        raise DataError(f"expected a positive resolution, got {resolution}")
    if name == "fashion_mini":
        pixels, origin = _fashion_mini(), "the package"
    else:
        if root is None:
            raise DataError(f"expected the root (data.root) of {name}, got none. {_help(name)}")
        path = Path(root).expanduser()
        if not path.exists():
            raise DataError(f"{path}: expected {name}, got no such file or folder. {_help(name)}")
        pixels, origin = DATASETS[name].read(path, resolution), str(path)
    if not len(pixels):
        raise DataError(f"{origin}: expected images, got none. {_help(name)}")
    pixels = resize(center_crop(pixels), resolution or min(pixels.shape[-2:]))
    n, channels, height, width = pixels.shape
    return Images(pixels, name, f"{name}: {n:,} images {channels}x{height}x{width} from {origin}")


def _help(name: str, root: str | Path = "ROOT") -> str:
    layout, command = DATASETS[name].layout, DATASETS[name].command
    got = f"; get it by: {command.format(root=root)}" if command else ""
    return f"Expected layout: {layout}{got}"


def _fashion_mini() -> Tensor:
    """5,000 images; image i is of class i % 10."""
    import numpy as np
    from PIL import Image

    side, columns = 28, 100
    with Image.open(ASSETS / "fashion_mini.png") as sheet:
        cells = np.array(sheet).reshape(-1, side, columns, side).swapaxes(1, 2)
    return torch.from_numpy(cells.reshape(-1, 1, side, side))


# Readers


def _mnist(name: str, folder: str) -> Callable[[Path, int | None], Tensor]:
    def read(root: Path, resolution: int | None) -> Tensor:
        import_torchvision()
        from torchvision.datasets.mnist import read_image_file

        path = root / folder / "raw" / "train-images-idx3-ubyte"
        if not path.exists():
            raise DataError(f"{path}: expected {name}, got no such file. {_help(name, root)}")
        try:
            return read_image_file(str(path))[:, None]
        # all that torchvision's parser raises for bytes that are not what it expects
        except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise DataError(
                f"{path}: expected an IDX file of images, got a damaged one ({kind}: {error}). "
                f"{_help(name, root)}"
            ) from error

    return read


def _checked(name: str, root: Path, files: list[tuple[str, str]], make: Callable[[], Any]) -> Any:
    """torchvision's reader, made by ``make``; if it refuses, an error that names the file.

    Args:
        name: of the data set.
        root: its folder.
        files: paths below the root, and their MD5 sums.
        make: constructs the reader.
    """
    from torchvision.datasets.utils import calculate_md5

    try:
        with warnings.catch_warnings():
            # old pickles of arrays, as CIFAR10's are, make new versions of numpy warn
            warnings.filterwarnings("ignore", message=".*align should be passed.*")
            return make()
    except (OSError, RuntimeError) as error:
        for file, expected in files:
            path = root / file
            if not path.is_file():
                raise DataError(
                    f"{path}: expected {name}, got no such file. {_help(name, root)}"
                ) from error
            md5 = calculate_md5(path)
            if md5 != expected:
                raise DataError(
                    f"{path}: expected MD5 {expected}, got {md5}: the file is damaged or not the "
                    f"original. {_help(name, root)}"
                ) from error
        raise DataError(f"{root}: expected {name}, got: {error}. {_help(name, root)}") from error


def _cifar10(root: Path, resolution: int | None) -> Tensor:
    reader = import_torchvision().datasets.CIFAR10
    base = reader.base_folder
    files = [(f"{base}/{file}", md5) for file, md5 in reader.train_list + reader.test_list]
    files.append((f"{base}/{reader.meta['filename']}", reader.meta["md5"]))
    data = _checked("cifar10", root, files, lambda: reader(root, train=True))
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()


def _stl10(root: Path, resolution: int | None) -> Tensor:
    reader = import_torchvision().datasets.STL10
    every = reader.train_list + reader.test_list
    files = [(f"{reader.base_folder}/{file}", md5) for file, md5 in every]
    data = _checked("stl10", root, files, lambda: reader(root, split="unlabeled"))
    return resize(torch.from_numpy(data.data), resolution or 48).contiguous()


def _celeba(root: Path, resolution: int | None) -> Tensor:
    reader = import_torchvision().datasets.CelebA
    folder = root / reader.base_folder / "img_align_celeba"
    if not folder.is_dir():
        raise DataError(f"{folder}: expected celeba, got no such folder. {_help('celeba', root)}")
    lists = [(file, md5) for _, md5, file in reader.file_list if not file.endswith(".zip")]
    files = [(f"{reader.base_folder}/{file}", md5) for file, md5 in lists]
    data = _checked("celeba", root, files, lambda: reader(root, split="all", target_type=[]))
    paths = [folder / name for name in data.filename]
    return decode(paths, Decoding(resolution or 64, crop=128), root)


def _imagenet(root: Path, resolution: int | None) -> Tensor:
    # Not torchvision's ImageNet: that one needs the development kit, for class names.
    reader = import_torchvision().datasets.ImageFolder
    folder = root / "train"
    try:
        data = reader(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: expected imagenet, got: {error}. {_help('imagenet', root)}"
        ) from error
    return decode([Path(path) for path, _ in data.samples], Decoding(resolution or 128), root)


def _folder(root: Path, resolution: int | None) -> Tensor:
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images, got a file")
    paths = list_pictures(root)
    channels, side = size_of(paths[0])
    exact = resolution is None
    return decode(paths, Decoding(resolution or side, channels, exact=exact), root)


def _array(path: Path, resolution: int | None) -> Tensor:
    return read_array(path)


_DOWNLOAD = (
    'python -c "from fastsn.gan.data.compat import import_torchvision as tv; '
    "tv().datasets.{}('{{root}}', download=True)\""
)
_DEBIAN = (
    " (or, on Debian: apt-get install dataset-fashion-mnist && mkdir -p {root}/FashionMNIST/raw "
    "&& for f in /usr/share/datasets/fashion-mnist/*.gz; "
    'do gunzip -c "$f" > {root}/FashionMNIST/raw/$(basename "$f" .gz); done)'
)
_UNTAR = (
    "registering at https://image-net.org for ILSVRC2012_img_train.tar, then: "
    "mkdir -p {root}/train && tar -xf ILSVRC2012_img_train.tar -C {root}/train "
    "&& cd {root}/train && for f in *.tar; "
    'do mkdir "${{f%.tar}}" && tar -xf "$f" -C "${{f%.tar}}" && rm "$f"; done'
)

#: By name. STL10 is the unlabeled images at 48 pixels; CelebA the 128 pixels in the middle, at 64;
#: ImageNet the square in the middle, at 128; folders likewise, at their own size or another.
DATASETS: dict[str, Dataset] = {
    "fashion_mini": Dataset(lambda root, resolution: _fashion_mini(), "none, it is shipped", ""),
    "mnist": Dataset(
        _mnist("mnist", "MNIST"),
        "ROOT/MNIST/raw/train-images-idx3-ubyte",
        _DOWNLOAD.format("MNIST"),
    ),
    "fashion_mnist": Dataset(
        _mnist("fashion_mnist", "FashionMNIST"),
        "ROOT/FashionMNIST/raw/train-images-idx3-ubyte",
        _DOWNLOAD.format("FashionMNIST") + _DEBIAN,
    ),
    "cifar10": Dataset(
        _cifar10, "ROOT/cifar-10-batches-py/data_batch_1", _DOWNLOAD.format("CIFAR10")
    ),
    "stl10": Dataset(_stl10, "ROOT/stl10_binary/unlabeled_X.bin", _DOWNLOAD.format("STL10")),
    "celeba": Dataset(
        _celeba,
        "ROOT/celeba/img_align_celeba/000001.jpg and ROOT/celeba/list_*.txt, identity_CelebA.txt",
        "pip install gdown && " + _DOWNLOAD.format("CelebA"),
    ),
    "imagenet": Dataset(_imagenet, "ROOT/train/n01440764/n01440764_10026.JPEG", _UNTAR),
    "folder": Dataset(_folder, "ROOT/**/*.png, .jpg and so on", ""),
    "array": Dataset(
        _array, "a .npy or .npz file of uint8 [n, h, w], [n, h, w, c] or [n, c, h, w]", ""
    ),
}
