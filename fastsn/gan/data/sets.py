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

from fastsn.gan.config import DataConfig
from fastsn.gan.data.compat import import_torchvision
from fastsn.gan.data.files import (
    Decoding,
    channels_of,
    decode,
    list_pictures,
    read_array,
    side_of,
)
from fastsn.gan.data.images import (
    DataError,
    Images,
    center_crop,
    digest,
    resize,
    to_channels,
)

__all__ = ["ASSETS", "DATASETS", "DataError", "Dataset", "Images", "load", "load_images"]

#: Files that come with the package.
ASSETS = Path(__file__).parent.parent / "assets"


class Dataset(NamedTuple):
    """One row of :data:`DATASETS`.

    Attributes:
        read: ``(root, options)`` to pixels ``uint8 [n, c, h, w]``; of the options ``resolution``,
            ``channels`` and ``verify``, what is None is the data set's own.
        layout: the files below the root, in words.
        command: gets them; ``{root}`` stands for the root.
    """

    read: Callable[[Path, DataConfig], Tensor]
    layout: str
    command: str


def load_images(
    name: str,
    root: str | Path | None,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    verify: bool = True,
) -> Images:
    """Reads a data set.

    Args:
        name: one of :data:`DATASETS`.
        root: its folder or file; ``fashion_mini`` needs none.
        resolution: side of the images in pixels; default: the paper's, or the data's own.
        channels: 1 or 3; default: likewise.
        verify: of cifar10, stl10 and celeba, whether the files must be the original ones.

    Raises:
        DataError: an unknown name, or files that are missing or damaged.
        ImportError: torchvision is not installed.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set of {list(DATASETS)}, got {name!r}")
    if resolution is not None and resolution < 1:
        raise DataError(f"expected a positive resolution, got {resolution}")
    options: Any = DataConfig(name, None, resolution, channels, verify)  # type: ignore[arg-type]
    if name == "fashion_mini":
        pixels, origin = _fashion_mini(), "the package"
    else:
        if root is None:
            raise DataError(f"expected the root (data.root) of {name}, got none. {_help(name)}")
        path = Path(root).expanduser()
        if not path.exists():
            raise DataError(f"{path}: expected {name}, got no such file or folder. {_help(name)}")
        pixels, origin = DATASETS[name].read(path, options), str(path)
    if not len(pixels):
        raise DataError(f"{origin}: expected images, got none. {_help(name)}")
    pixels = resize(center_crop(pixels), resolution or min(pixels.shape[-2:]))
    pixels = to_channels(pixels, channels)
    n, channels, height, width = pixels.shape
    said = f"{name}: {n:,} images {channels}x{height}x{width} from {origin}"
    return Images(pixels, name, said, hashed=digest(pixels))


def load(config: DataConfig) -> Images:
    """The data set of a run's options."""
    return load_images(
        config.name,
        config.root,
        resolution=config.resolution,
        channels=config.channels,
        verify=config.verify,
    )


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


def _mnist(name: str, folder: str) -> Callable[[Path, DataConfig], Tensor]:
    def read(root: Path, options: DataConfig) -> Tensor:
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
                    f"original (data.verify false takes it as it is). {_help(name, root)}"
                ) from error
        raise DataError(f"{root}: expected {name}, got: {error}. {_help(name, root)}") from error


def _any_files(reader: Any, root: Path) -> Any:
    """torchvision's reader of CIFAR10 without its MD5 sums, for the files that are there."""
    base = root / reader.base_folder
    there = [entry for entry in reader.train_list if (base / entry[0]).is_file()]
    if not there:
        raise DataError(f"{base}: expected files such as {reader.train_list[0][0]}, got none")
    checks = {"_check_integrity": lambda self: True, "_load_meta": lambda self: None}
    return type(reader.__name__, (reader,), {"train_list": there, **checks})


def _cifar10(root: Path, options: DataConfig) -> Tensor:
    reader = import_torchvision().datasets.CIFAR10
    base = reader.base_folder
    files = [(f"{base}/{file}", md5) for file, md5 in reader.train_list + reader.test_list]
    files.append((f"{base}/{reader.meta['filename']}", reader.meta["md5"]))
    if not options.verify:
        reader, files = _any_files(reader, root), []
    data = _checked("cifar10", root, files, lambda: reader(root, train=True))
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()


def _stl10(root: Path, options: DataConfig) -> Tensor:
    reader = import_torchvision().datasets.STL10
    every = reader.train_list + reader.test_list
    files = [(f"{reader.base_folder}/{file}", md5) for file, md5 in every]
    if not options.verify:
        reader = type("STL10", (reader,), {"_check_integrity": lambda self: True})
        files = []
    data = _checked("stl10", root, files, lambda: reader(root, split="unlabeled"))
    return resize(torch.from_numpy(data.data), options.resolution or 48).contiguous()


def _celeba(root: Path, options: DataConfig) -> Tensor:
    reader = import_torchvision().datasets.CelebA
    folder = root / reader.base_folder / "img_align_celeba"
    if not folder.is_dir():
        raise DataError(f"{folder}: expected celeba, got no such folder. {_help('celeba', root)}")
    decoding = Decoding(options.resolution or 64, options.channels or 3, crop=128)
    if not options.verify:
        return decode(list_pictures(folder), decoding, root)
    lists = [(file, md5) for _, md5, file in reader.file_list if not file.endswith(".zip")]
    files = [(f"{reader.base_folder}/{file}", md5) for file, md5 in lists]
    data = _checked("celeba", root, files, lambda: reader(root, split="all", target_type=[]))
    return decode([folder / name for name in data.filename], decoding, root)


def _imagenet(root: Path, options: DataConfig) -> Tensor:
    # Not torchvision's ImageNet: that one needs the development kit, for class names.
    reader = import_torchvision().datasets.ImageFolder
    folder = root / "train"
    try:
        data = reader(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: expected imagenet, got: {error}. {_help('imagenet', root)}"
        ) from error
    decoding = Decoding(options.resolution or 128, options.channels or 3)
    return decode([Path(path) for path, _ in data.samples], decoding, root)


def _folder(root: Path, options: DataConfig) -> Tensor:
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images, got a file")
    paths = list_pictures(root)
    channels = options.channels or channels_of(paths)
    side, exact = options.resolution or side_of(paths[0]), options.resolution is None
    return decode(paths, Decoding(side, channels, exact=exact), root)


def _array(path: Path, options: DataConfig) -> Tensor:
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
    "fashion_mini": Dataset(lambda root, options: _fashion_mini(), "none, it is shipped", ""),
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
