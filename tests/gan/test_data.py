"""Data sets read from their true layouts, and damaged ones refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import LAYOUTS, idx, noise
from PIL import Image

from fastsn.gan.data import files as data_files
from fastsn.gan.data.images import center_crop, digest, resize
from fastsn.gan.data.sets import ASSETS, DATASETS, DataError, Images, load_images
from fastsn.gan.run import logs


@pytest.mark.parametrize("name", LAYOUTS)
def test_true_layouts_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.from_numpy(LAYOUTS[name](tmp_path, monkeypatch))
    images = load_images(name, tmp_path)
    assert images.pixels.dtype == torch.uint8
    assert torch.equal(images.pixels, expected)
    shape = "x".join(str(n) for n in expected.shape[1:])
    assert images.description == f"{name}: {len(expected)} images {shape} from {tmp_path}"


def test_every_data_set_is_tested() -> None:
    assert set(DATASETS) - set(LAYOUTS) == {"fashion_mini", "folder", "array"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_resolution(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = LAYOUTS[name](tmp_path, monkeypatch)
    images = load_images(name, str(tmp_path), resolution=16)
    assert images.pixels.shape == (*expected.shape[:2], 16, 16)


COMMANDS = {
    "mnist": "datasets.MNIST('{}', download=True)",
    "fashion_mnist": "datasets.FashionMNIST('{}', download=True)",
    "cifar10": "datasets.CIFAR10('{}', download=True)",
    "stl10": "datasets.STL10('{}', download=True)",
    "celeba": "datasets.CelebA('{}', download=True)",
    "imagenet": "tar -xf ILSVRC2012_img_train.tar -C {}/train",
}


def refused(name: str, root: Path | str | None, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_images(name, root, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_data_name_the_place_the_layout_and_the_command(name: str, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        message = refused(name, root)
        assert message.startswith(str(root))
        assert DATASETS[name].layout in message
        assert COMMANDS[name].format(tmp_path if root == tmp_path else "ROOT") in message
    message = refused(name, None)
    assert "data.root" in message and COMMANDS[name].format("ROOT") in message


# One file of each data set, by its path below the root.
FILES = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py/data_batch_3",
    "stl10": "stl10_binary/unlabeled_X.bin",
    "celeba": "celeba/img_align_celeba/000003.jpg",
    "imagenet": "train/n15075141/n15075141_2.JPEG",
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    path.write_bytes(noise(path.stat().st_size, seed=9).tobytes())


@pytest.mark.parametrize("damage", [truncate, empty, scramble])
@pytest.mark.parametrize("name", LAYOUTS)
def test_damaged_files_are_named(
    name: str, damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path, monkeypatch)
    path = tmp_path / FILES[name]
    damage(path)
    message = refused(name, tmp_path)
    assert message.startswith(f"{path}: expected ")
    assert name in COMMANDS and (name in ("celeba", "imagenet") or COMMANDS[name][:12] in message)
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "name", sorted(set(LAYOUTS) - {"imagenet"})
)  # any of its files may be absent
def test_missing_files_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path, monkeypatch)
    (tmp_path / FILES[name]).unlink()
    assert refused(name, tmp_path).startswith(f"{tmp_path / FILES[name]}: expected ")


def test_damaged_lists_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["celeba"](tmp_path, monkeypatch)
    path = tmp_path / "celeba" / "list_bbox_celeba.txt"
    path.write_text(path.read_text() + "x")
    assert refused("celeba", tmp_path).startswith(f"{path}: expected MD5 ")
    path.unlink()
    assert refused("celeba", tmp_path).startswith(f"{path}: expected celeba, got no such file")


def test_pictures_smaller_than_the_crop_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS["celeba"](tmp_path, monkeypatch)
    path = tmp_path / FILES["celeba"]
    Image.fromarray(noise(100, 178, 3)).save(path)
    message = refused("celeba", tmp_path)
    assert message == f"{path}: expected at least 128x128 pixels, got 178x100"


def test_wrong_numbers_in_idx_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / FILES["mnist"]
    idx(path, noise(7, 28, 28))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert "damaged" in refused("mnist", tmp_path)
    idx(path, noise(7))  # labels where images belong
    assert "damaged" in refused("mnist", tmp_path)
    idx(path, noise(0, 28, 28))
    assert str(path.parents[2]) in refused("mnist", tmp_path)


# The shipped images


def test_shipped_images_are_fashion_mnists() -> None:
    images = load_images("fashion_mini", None)
    assert images.pixels.shape == (5000, 1, 28, 28)
    assert len(images.pixels.flatten(1).unique(dim=0)) >= 4990  # no image taken twice
    # trousers (1) are dark at the sides, and bags (8) bright in the lower middle
    trousers, bags = images.pixels[1::10].double(), images.pixels[8::10].double()
    assert trousers[..., :, :6].mean() < 20 < 100 < trousers[..., 2:8, 10:18].mean()
    assert bags[..., 16:24, 8:20].mean() > 120


def test_shipped_images_can_be_resized() -> None:
    assert load_images("fashion_mini", None, resolution=32).pixels.shape == (5000, 1, 32, 32)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(),
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_shipped_images_are_made_by_the_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "make_fashion_mini.py"
    copy = tmp_path / "scripts" / script.name
    copy.parent.mkdir()
    (tmp_path / "fastsn" / "gan" / "assets").mkdir(parents=True)
    shutil.copy(script, copy)
    subprocess.run([sys.executable, copy, "/usr/share/datasets/fashion-mnist"], check=True)
    made = Image.open(tmp_path / "fastsn" / "gan" / "assets" / "fashion_mini.png")
    assert np.array_equal(np.array(made), np.array(Image.open(ASSETS / "fashion_mini.png")))


# Folders


def write_pictures(folder: Path, sizes: list[tuple[int, int]], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate(sizes):
        Image.fromarray(noise(height, width, 3, seed=i)).save(folder / f"{i}{suffix}")


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write_pictures(tmp_path / "b", [(8, 8)])
    write_pictures(tmp_path / "a", [(8, 8), (8, 12)])
    (tmp_path / "readme.txt").write_text("not a picture")
    write_pictures(tmp_path / ".hidden", [(9, 9)])
    images = load_images("folder", tmp_path)
    expected = [noise(8, 8, 3), noise(12, 8, 3, seed=1)[2:10], noise(8, 8, 3)]
    stacked = torch.from_numpy(np.stack(expected).transpose(0, 3, 1, 2))
    assert torch.equal(images.pixels, stacked)


def test_folder_of_several_sizes_needs_a_resolution(tmp_path: Path) -> None:
    write_pictures(tmp_path, [(8, 8), (10, 16)])
    message = refused("folder", tmp_path)
    assert message.startswith(f"{tmp_path / '1.png'}: expected images of one size, 8 pixels")
    assert "10x16" in message and "data.resolution" in message
    assert load_images("folder", tmp_path, resolution=6).pixels.shape == (2, 3, 6, 6)


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    images = load_images("folder", tmp_path)
    assert torch.equal(images.pixels[0, 0], torch.from_numpy(noise(8, 8)))


@pytest.mark.parametrize(
    ("mode", "shape"), [("P", (8, 8)), ("LA", (8, 8, 2)), ("RGBA", (8, 8, 4)), ("CMYK", (8, 8, 4))]
)
def test_other_kinds_of_pictures(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    Image.fromarray(noise(*shape), mode if mode != "P" else None).convert(mode).save(
        tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    )
    channels = 1 if mode == "LA" else 3
    assert load_images("folder", tmp_path).pixels.shape == (1, channels, 8, 8)


def test_pictures_of_16_bits_are_read_alike(tmp_path: Path) -> None:
    """Grey or coloured, their upper 8 bits are taken."""
    values = noise(8, 8).astype(np.uint16) * 256 + 77
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels = load_images("folder", tmp_path).pixels
    assert pixels.shape == (1, 1, 8, 8)
    assert torch.equal(pixels[0, 0], torch.from_numpy(noise(8, 8)))
    Image.fromarray(noise(8, 8).astype(np.float32)).save(tmp_path / "other.tif")
    assert f"{tmp_path / 'other.tif'}: expected a readable image" in refused("folder", tmp_path)


def test_channels_are_those_of_the_set_or_as_asked(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "0.png")
    coloured = noise(8, 8, 3)
    Image.fromarray(coloured).save(tmp_path / "1.png")  # the first is grey
    pixels = load_images("folder", tmp_path).pixels
    assert pixels.shape == (2, 3, 8, 8)
    assert torch.equal(pixels[1], torch.from_numpy(coloured.transpose(2, 0, 1).copy()))
    assert load_images("folder", tmp_path, channels=1).pixels.shape == (2, 1, 8, 8)
    assert load_images("fashion_mini", None, channels=3).pixels.shape[1] == 3
    np.save(tmp_path / "a.npy", coloured[None])
    grey = load_images("array", tmp_path / "a.npy", channels=1).pixels[0, 0]
    expected = np.asarray(Image.fromarray(coloured).convert("L")).astype(int)
    assert np.abs(grey.numpy().astype(int) - expected).max() <= 1


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "elsewhere", [(8, 8), (8, 8)])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")  # no end of it
    assert len(load_images("folder", tmp_path / "data")) == 2


@pytest.mark.parametrize("name", ["cifar10", "stl10", "celeba"])
def test_parts_of_data_sets_are_taken_if_that_is_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        LAYOUTS[name](tmp_path, patch)  # files whose MD5 sums are not the original ones
        whole = load_images(name, tmp_path).pixels.clone()
    assert "data.verify false takes it as it is" in refused(name, tmp_path)
    assert torch.equal(load_images(name, tmp_path, verify=False).pixels, whole)
    removed = {
        "cifar10": ["cifar-10-batches-py/data_batch_2", "cifar-10-batches-py/batches.meta"],
        "stl10": ["stl10_binary/test_X.bin"],
        "celeba": ["celeba/img_align_celeba/000002.jpg", "celeba/list_attr_celeba.txt"],
    }[name]
    for file in removed:
        (tmp_path / file).unlink()
    n = {"cifar10": len(whole) * 4 // 5, "stl10": len(whole), "celeba": len(whole) - 1}[name]
    assert len(load_images(name, tmp_path, verify=False)) == n


def test_a_fingerprint_is_of_the_images(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", [(8, 8)] * 3)
    write_pictures(tmp_path / "b", [(8, 8)] * 3)
    one, other = (load_images("folder", tmp_path / name).fingerprint for name in ("a", "b"))
    assert one == other == {**one, "name": "folder", "images": 3, "shape": [3, 8, 8]}
    Image.fromarray(255 - noise(8, 8, 3)).save(tmp_path / "b" / "2.png")
    os.utime(tmp_path / "b" / "2.png", ns=(1, 1))
    assert load_images("folder", tmp_path / "b").fingerprint["hash"] != one["hash"]
    assert load_images("folder", tmp_path / "a", resolution=4).fingerprint["hash"] != one["hash"]
    pixels = load_images("folder", tmp_path / "a").pixels
    assert digest(pixels.flip(0)) != digest(pixels) == one["hash"]  # their order counts


def test_turned_pictures_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    picture = noise(8, 8, 3)
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    pixels = load_images("folder", tmp_path).pixels[0]
    assert torch.equal(pixels, torch.from_numpy(np.rot90(picture, -1).transpose(2, 0, 1).copy()))


def test_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    assert refused("folder", tmp_path).startswith(f"{tmp_path}: expected images (.jpg")
    file = tmp_path / "file"
    file.write_text("")
    assert refused("folder", file) == f"{file}: expected a folder of images, got a file"


# The cache of decoded pictures


def caches(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def test_pictures_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, [(8, 8), (8, 8)])
    first = load_images("folder", tmp_path).pixels.clone()
    assert len(caches(tmp_path)) == 1
    monkeypatch.setattr(data_files, "_write", None)  # to be called no more
    assert torch.equal(load_images("folder", tmp_path).pixels, first)


def test_changed_pictures_are_decoded_again(tmp_path: Path) -> None:
    write_pictures(tmp_path, [(8, 8), (8, 8)])
    first = load_images("folder", tmp_path).pixels.clone()
    Image.fromarray(255 - noise(8, 8, 3)).save(tmp_path / "0.png")
    os.utime(tmp_path / "0.png", ns=(1, 1))
    second = load_images("folder", tmp_path).pixels
    assert torch.equal(second[0], 255 - first[0]) and torch.equal(second[1], first[1])
    assert load_images("folder", tmp_path, resolution=4).pixels.shape[-1] == 4
    assert len(caches(tmp_path)) == 3


def test_cache_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "data", [(8, 8)])
    monkeypatch.setenv("FASTSN_CACHE", str(tmp_path / "cache"))
    load_images("folder", tmp_path / "data")
    assert not caches(tmp_path / "data") and len(caches(tmp_path / "cache")) == 1


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "data", [(8, 8)])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTSN_CACHE", str(tmp_path / "file" / "cache"))
    message = refused("folder", tmp_path / "data")
    assert str(tmp_path / "file" / "cache") in message and "Set FASTSN_CACHE" in message


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    write_pictures(tmp_path, [(8, 8)])
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "No space left on device" in refused("folder", tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"0.png", ".fastsn", "lock"}


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_cache_is_made_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path, [(8, 8)])
    first = load_images("folder", tmp_path).pixels.clone()
    (path,) = caches(tmp_path)
    if damage == "truncated":
        truncate(path)
    else:  # one pixel, under the right header and of the right size
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert torch.equal(load_images("folder", tmp_path).pixels, first)
    assert f"{path}: " in capsys.readouterr().err
    assert torch.equal(load_images("folder", tmp_path).pixels, first)
    assert not capsys.readouterr().err


def test_progress_is_told_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(float(20 * i) for i in range(100))
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(now))
    assert list(logs.progress(range(0, 50, 10), "decoding", 10, 50)) == [0, 10, 20, 30, 40]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "decoding: 10 of 50, 80 s left" and len(lines) == 4
    monkeypatch.undo()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(logs.progress(range(0, 50, 10), "decoding", 10, 50)) == [0, 10, 20, 30, 40]
    assert "decoding:   0%|" in capsys.readouterr().err  # a bar


def test_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: locks are of open files, so they exclude each other alike."""
    write_pictures(tmp_path, [(8, 8)] * 20)
    written: list[Path] = []
    write = data_files._write

    def slowly(target: Path, *args: Any) -> None:
        written.append(target)
        time.sleep(0.2)
        write(target, *args)

    monkeypatch.setattr(data_files, "_write", slowly)
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda _: load_images("folder", tmp_path).pixels, range(3)))
    assert len(written) == 1
    assert all(torch.equal(pixels, loaded[0]) for pixels in loaded)


# Arrays


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 1, 8, 8), (5, 8, 8, 3), (5, 3, 8, 8), (5, 10, 8)])
def test_arrays(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array, path = noise(*shape), tmp_path / f"images{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    if array.ndim == 3:
        array = array[:, None]
    if array.shape[-1] == 3:
        array = array.transpose(0, 3, 1, 2)
    if array.shape[2] == 10:
        array = array[:, :, 1:9]
    assert torch.equal(load_images("array", path).pixels, torch.from_numpy(array.copy()))


def test_arrays_with_names(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=noise(2, 8, 8), labels=noise(2))
    assert load_images("array", path).pixels.shape == (2, 1, 8, 8)
    np.savez(path, a=noise(2, 8, 8), b=noise(2))
    assert "named 'images' or a single one, got ['a', 'b']" in refused("array", path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 8, 8), np.float32),
        noise(8, 8),
        noise(2, 5, 8, 8),
        noise(0, 8, 8),
        np.array([{}], dtype=object),
    ],
)
def test_arrays_that_do_not_fit_are_named(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, array, allow_pickle=True)
    assert refused("array", path).startswith(f"{path}: expected")


@pytest.mark.parametrize("damage", [truncate, empty, scramble])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_arrays_are_named(damage: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"images{suffix}"
    np.save(path, noise(5, 8, 8)) if suffix == ".npy" else np.savez(path, noise(5, 8, 8))
    damage(path)
    assert refused("array", path).startswith(f"{path}: expected")


# Preprocessing and sampling


def test_halving_takes_means_of_four_pixels() -> None:
    pixels = torch.tensor([[0, 1, 10, 20], [1, 1, 30, 40]], dtype=torch.uint8)
    pixels = pixels.repeat(2, 1)[None, None]
    assert resize(pixels, 2)[0, 0].tolist() == [[1, 25], [1, 25]]  # 0.75 and 25


def test_strong_reductions_skip_pixels() -> None:
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixels[..., 0, 0] = 255  # bilinear without antialias looks at the middle four of each 4 x 4
    assert not resize(pixels, 2).any()


def test_crop_is_in_the_middle() -> None:
    pixels = torch.arange(218 * 178).view(1, 1, 218, 178)
    assert center_crop(pixels, 128)[0, 0, 0, 0] == 45 * 178 + 25
    assert center_crop(pixels)[0, 0].shape == (178, 178)


def test_samples_are_the_images_in_minus_one_to_one() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)[:, None, None, None]
    images = Images(pixels, "ramp", "every grey value")
    drawn = images.sample(4000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and drawn.shape == (4000, 1, 1, 1)
    assert (drawn.min(), drawn.max()) == (-1, 1)
    values = (drawn.flatten() + 1) * 127.5
    torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-4)
    assert 250 <= len(values.round().unique()) <= 256  # with replacement, but nearly all
    assert abs(drawn.mean()) < 0.05
    again = images.sample(4000, torch.Generator().manual_seed(0))
    other = images.sample(4000, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_images_stay_where_they_are_on_the_cpu(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(3, 8, 8))
    images = load_images("array", tmp_path / "a.npy")
    moved = images.to("cpu")
    assert moved.pixels.data_ptr() == images.pixels.data_ptr() and len(moved) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_images_on_the_gpu_or_beside_it(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastsn.gan.data import images as module

    monkeypatch.setattr(module, "SHARE", share)
    images = load_images("fashion_mini", None).to("cuda")
    assert images.pixels.is_cuda == (share > 0)
    rng = torch.Generator(images.pixels.device).manual_seed(0)
    drawn = images.sample(16, rng)
    assert drawn.is_cuda and drawn.shape == (16, 1, 28, 28)


def test_unknown_names_and_sizes_are_refused() -> None:
    assert "expected a data set of" in refused("cifar", None) and "cifar10" in refused(
        "cifar", None
    )
    assert "expected a positive resolution, got 0" in refused("fashion_mini", None, resolution=0)


# torchvision

IMPORT = """
import json, sys, warnings
from fastsn.gan.data.compat import import_torchvision
assert "torchvision" not in sys.modules
sys.modules["torchvision"] = None  # as if it were not installed
try:
    import_torchvision()
except ImportError as error:
    print(error)
del sys.modules["torchvision"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = import_torchvision(), import_torchvision()
assert first is second and first.datasets.MNIST
print(json.dumps([str(w.message) for w in caught if "torchvision" in str(w.message)]))
"""


def test_torchvision_is_imported_late_and_says_at_most_once_what_it_cannot_do() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True
    )
    missing, messages = result.stdout.splitlines()
    assert "expected torchvision" in missing and "pip install 'fastsn[gan]'" in missing
    said = json.loads(messages)
    assert len(said) <= 1
    assert all("cannot load its compiled operators" in message for message in said)
