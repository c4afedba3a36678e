from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trimtab.errors import BadInput
from trimtab.evaluators.data import IMAGENET_MEAN, IMAGENET_STD, Raw, Splits, _Scale, load

Array = Any


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)


def rows(images: Array) -> set[bytes]:
    return {np.ascontiguousarray(image).tobytes() for image in images}


def parts(splits: Splits) -> list[set[bytes]]:
    """The training, selection and final images."""
    return [rows(part) for part in (splits.train()[0], splits.selection[0], splits.final()[0])]


# digits, which scikit-learn brings along


@pytest.mark.parametrize(("split", "chosen", "final"), [("held-out", 300, 400), ("test-half", 200, 200)])
def test_splits_are_disjoint(split: str, chosen: int, final: int) -> None:
    splits = load("digits", split=split, selection=300)
    train, selection, last = parts(splits)
    assert (len(splits.selection[1]), len(splits.final()[1])) == (chosen, final)
    assert not train & selection
    assert not train & last
    assert not selection & last
    assert rows(splits.calibration) <= train
    assert len(splits.calibration) == 256


def test_every_image_is_used() -> None:
    from sklearn.datasets import load_digits

    count = len(load_digits().target)
    splits = load("digits", selection=300)
    assert len(splits.train()[1]) + len(splits.selection[1]) + len(splits.final()[1]) == count
    halves = load("digits", split="test-half", selection=10**6)
    assert len(halves.train()[1]) + len(halves.selection[1]) + len(halves.final()[1]) == count


def test_the_seed_decides_the_split() -> None:
    first, same, other = (load("digits", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.selection[0], same.selection[0])
    np.testing.assert_array_equal(first.calibration, same.calibration)
    np.testing.assert_array_equal(first.train()[0], first.train()[0])
    assert rows(first.selection[0]) != rows(other.selection[0])
    assert rows(first.final()[0]) == rows(other.final()[0])  # the whole test split


def test_labels_stay_with_their_images() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    label_of = {
        image.astype(np.float32).tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    splits = load("digits", mean=(0.0,), std=(1.0,))
    for images, labels in (splits.train(), splits.selection, splits.final()):
        for image, label in zip(images, labels, strict=True):
            assert label_of[(image[0] * 16).astype(np.float32).tobytes()] == label


def test_provenance_says_which_images() -> None:
    held = load("digits", selection=123).provenance
    assert "123 training images" in held
    assert "left out of training" in held
    assert "all 400 test images" in held
    half = load("digits", split="test-half").provenance
    assert "200 images of one half of the test split" in half
    assert "the other half, 200 images" in half


def test_images_are_what_networks_take() -> None:
    splits = load("digits")
    for images, labels in (splits.train(), splits.selection, splits.final()):
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)
        assert images.shape[1:] == (1, 8, 8)
        assert images.flags.c_contiguous
        assert set(labels) == set(range(splits.classes))
    assert abs(splits.train()[0].mean()) < 0.05
    assert abs(splits.train()[0].std() - 1) < 0.05


def test_scaling_is_by_mean_and_deviation() -> None:
    plain = load("digits", mean=(0.0,), std=(1.0,)).selection[0]
    assert (plain.min(), plain.max()) == (0.0, 1.0)
    scaled = load("digits", mean=(0.25,), std=(0.5,)).selection[0]
    np.testing.assert_allclose(scaled, (plain - 0.25) / 0.5, rtol=1e-6)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_scaling_by_too_many_channels_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match=rf"data\.{key} has 3 values, the images 1 channels"):
        load("digits", **{key: (0.5, 0.5, 0.5)})  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [{"selection": 1300}, {"selection": 2000}, {"calibration": 1398}, {"selection": 0}])
def test_too_few_images_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="1397 training images: too few"):
        load("digits", **sizes)  # type: ignore[arg-type]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(BadInput, match=r"unknown data set 'digit'; did you mean 'digits'\? .*cifar10"):
        load("digit")
    with pytest.raises(BadInput, match="'held-out' or 'test-half', not 'test'"):
        load("digits", split="test")


# data under a root


@pytest.mark.usefixtures("no_root")
@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion-mnist", "image-folder"])
def test_a_missing_root_names_the_variable(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="TRIMTAB_DATA"):
        load(name)
    monkeypatch.setenv("TRIMTAB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"nowhere does not exist .*TRIMTAB_DATA"):
        load(name)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion-mnist"])
def test_an_empty_root_says_where_it_looked(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{name}.*looked in .*--download"):
        load(name, root=tmp_path)


def idx(array: Array) -> bytes:
    """The format of the MNIST files: magic (unsigned bytes, rank), sizes, values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root: Path, seed: int = 0, kind: str = "MNIST", packed: bool = True) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 20)):
        arrays[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count) % 10
        for name, array in ((f"{part}-images-idx3-ubyte", arrays[part]), (f"{part}-labels-idx1-ubyte", labels)):
            if packed:
                (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / name).write_bytes(idx(array))
    return arrays


SMALL = {"selection": 10, "calibration": 8}
PLAIN = {"mean": (0.0,), "std": (1.0,)}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "kind", "folder"),
    [("mnist", "MNIST", "mnist"), ("mnist", "MNIST", "."), ("fashion-mnist", "FashionMNIST", ".")],
)
def test_mnist_files_are_read(name: str, kind: str, folder: str, packed: bool, tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path / folder, kind=kind, packed=packed)
    splits = load(name, root=tmp_path, **SMALL, **PLAIN)  # type: ignore[arg-type]
    images, labels = splits.final()
    np.testing.assert_allclose(images, arrays["t10k"][:, None] / np.float32(255), rtol=1e-6)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    assert splits.classes == 10


def test_archives_are_unpacked_into_the_cache_only(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "data"
    write_mnist(root)
    before = sorted(root.rglob("*"))
    load("mnist", root=root, **SMALL)  # type: ignore[arg-type]
    assert sorted(root.rglob("*")) == before
    unpacked = sorted(path.name for path in cache.rglob("*-ubyte"))
    assert len(unpacked) == 4
    assert not list(cache.rglob("*.part"))


def test_archives_are_unpacked_once(tmp_path: Path, cache: Path) -> None:
    write_mnist(tmp_path / "data")
    times = []
    for _ in range(2):
        load("mnist", root=tmp_path / "data", **SMALL)  # type: ignore[arg-type]
        times.append({path: path.stat().st_mtime_ns for path in cache.rglob("*-ubyte")})
    assert times[0] == times[1]


def test_another_root_is_other_data(tmp_path: Path) -> None:
    for seed in (1, 2):
        arrays = write_mnist(tmp_path / str(seed), seed)
        splits = load("mnist", root=tmp_path / str(seed), **SMALL, **PLAIN)  # type: ignore[arg-type]
        np.testing.assert_allclose(splits.final()[0], arrays["t10k"][:, None] / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize("damage", [lambda packed: packed[: len(packed) // 2], lambda packed: b"no archive"])
def test_a_damaged_archive_is_named(damage: Callable[[bytes], bytes], tmp_path: Path, cache: Path) -> None:
    write_mnist(tmp_path / "data")
    archive = tmp_path / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(BadInput, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load("mnist", root=tmp_path / "data", **SMALL)  # type: ignore[arg-type]
    assert not list(cache.rglob("*.part"))


COLOURS = {"blue": (0, 0, 250), "green": (0, 200, 0), "red": (150, 0, 0)}


def write_folder(root: Path, test: str = "val", count: int = 6, colours: dict[str, tuple[int, ...]] = COLOURS) -> None:
    for part in ("train", test):
        for name, colour in colours.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 50), colour).save(root / part / name / f"{i}.png")


@pytest.mark.parametrize("test", ["val", "test"])
def test_an_image_folder_is_read(test: str, tmp_path: Path) -> None:
    write_folder(tmp_path, test)
    splits = load("image-folder", root=tmp_path, size=32, selection=5, calibration=4)
    images, labels = splits.final()
    assert (images.shape, splits.classes) == ((18, 3, 32, 32), 3)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for image, label in zip(images, labels, strict=True):
        colour = np.array(COLOURS[sorted(COLOURS)[label]]).reshape(3, 1, 1)
        np.testing.assert_allclose(image, np.broadcast_to((colour / 255 - mean) / std, image.shape), atol=1e-5)


def test_an_image_folder_needs_both_parts(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(BadInput, match="val \\(or test\\), with a folder per class"):
        load("image-folder", root=tmp_path)


def test_an_image_folder_needs_the_same_classes(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "yellow")
    with pytest.raises(BadInput, match="do not have the same classes"):
        load("image-folder", root=tmp_path, size=16)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val" / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match="cannot read the images"):
        load("image-folder", root=tmp_path, size=16)


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for image in (tmp_path / "train" / "red").iterdir():
        image.unlink()
    with pytest.raises(BadInput, match="cannot read the images"):
        load("image-folder", root=tmp_path, size=16)


def test_channels_last_files_give_channels_first_images() -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)  # as CIFAR-10 is read: (N, H, W, C)
    raw = (colours.transpose(0, 3, 1, 2), np.array([0, 1]))
    scale = _Scale(Raw(raw, raw, (0.5, 0.25, 0.125), (0.5, 2.0, 4.0)), None, None)
    images, _ = scale(raw, np.array([1, 0]))
    assert images.flags.c_contiguous
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.25, 2.0), (0.125, 4.0)]):
        expected = (colours[::-1, :, :, channel] / 255 - mean) / std
        np.testing.assert_allclose(images[:, channel], expected, rtol=1e-5, atol=1e-6)


# real data


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get("TRIMTAB_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("TRIMTAB_DATA does not name a folder with data")
    return Path(root)


def needs(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} is not under TRIMTAB_DATA")


@pytest.mark.data
def test_cifar10_is_read(data_root: Path) -> None:
    needs(data_root / "cifar10" / "cifar-10-batches-py")
    splits = load("cifar10", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, labels = splits.final()
    assert (images.shape, splits.classes) == ((10000, 3, 32, 32), 10)
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(np.bincount(labels), 1000)
    # The published channel means of the training images are 0.4914, 0.4822, 0.4465.
    assert splits.selection[0].mean((0, 2, 3)) == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.02)
    assert len(splits.selection[1]) == 1000


@pytest.mark.data
def test_mnist_is_read(data_root: Path) -> None:
    needs(data_root / "mnist" / "MNIST" / "raw")
    splits = load("mnist")
    images, labels = splits.final()
    assert images.shape == (10000, 1, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(splits.train()[0].mean()) < 0.01
    assert abs(splits.train()[0].std() - 1) < 0.01
