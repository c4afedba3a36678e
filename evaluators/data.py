"""Data: images and labels as arrays, and which of them are for what."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import BadInput, unknown_name
from trimtab.evaluators.targets import Targets
from trimtab.files import cache_dir, write_bytes

__all__ = ["DATASETS", "Augmentation", "Images", "Labels", "Splits", "data_root", "load"]

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """The variation of training images that leaves what they show as it is: moved by up to `shift` pixels in either
    direction, and, with `mirror`, left and right exchanged."""

    shift: int = 0
    mirror: bool = False


@dataclass(frozen=True, eq=False)
class Splits:
    """Parts of a data set, each (images (N, C, H, W) float32 as the network sees them, their targets, or None).

    `train` returns the images to fit on (a function: few runs need them), `calibration` is for repairs (part of the
    training images), `selection` for choosing policies, and `final` returns what the reported figure is read from,
    once. These two are disjoint from each other and from the training images; `provenance` says where they come from.
    `classes` are those of labels, 0 where targets are none.
    `signals` are images of one column, which the network takes as (N, C, L). `augmentation` is how training images may
    be varied.
    """

    train: Callable[[], tuple[Images, Targets]]
    calibration: Images
    selection: tuple[Images, Targets]
    final: Callable[[], tuple[Images, Targets]]
    classes: int
    provenance: str
    signals: bool = False
    augmentation: Augmentation = Augmentation()

    @property
    def example(self) -> Images:
        """One input, (1, ...), as the network takes it."""
        first: Images = self.calibration[:1].copy()
        return first.reshape(first.shape[:-1]) if self.signals else first


@dataclass(frozen=True, eq=False)
class Raw:
    """Training and test images, uint8 or float (N, C, H, W), unscaled, with labels, if there are any."""

    train: tuple[npt.NDArray[Any], Labels | None]
    test: tuple[npt.NDArray[Any], Labels | None]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: float = 255.0
    augmentation: Augmentation = Augmentation()


def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    split: str = "held-out",
    calibration: int = 256,
    selection: int = 1000,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Splits:
    """Load a data set and split it by a seeded shuffle.

    `split` says on which images policies are chosen: "held-out" takes `selection` images out of the training split
    and keeps the whole test split for the final figure; "test-half" is for a network that was trained on every
    training image: it chooses on `selection` images of one half of the test split and reports the other half.
    `mean` and `std` are per channel, of images scaled to [0, 1]; `root` defaults to `TRIMTAB_DATA`.
    A missing root, or too few images, is a `BadInput`.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if split not in ("held-out", "test-half"):
        raise BadInput(f"data.split is 'held-out' or 'test-half', not {split!r}")
    raw = DATASETS[name](Source(name, data_root(name, root), download, size or 224, seed))
    scale = _Scale(raw, mean, std)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(raw.train[0]))
    test_order = rng.permutation(len(raw.test[0]))
    if split == "held-out":
        held, rest = order[:selection], order[selection:]
        chosen, last = scale(raw.train, held), np.arange(len(test_order))
        provenance = (
            f"{len(held)} training images that are left out of training; final: all {len(test_order)} test images"
        )
    else:
        half = len(test_order) // 2
        rest = order
        chosen = scale(raw.test, test_order[: min(half, selection)])
        last = np.sort(test_order[half:])
        provenance = f"{len(chosen[0])} images of one half of the test split; final: the other half, {len(last)} images"
    if len(rest) < calibration or len(chosen[0]) == 0:
        raise BadInput(
            f"data set {name!r} has {len(order)} training images: too few for {selection} to choose on and "
            f"{calibration} to calibrate with"
        )
    return Splits(
        train=lambda: scale(raw.train, rest),
        calibration=scale(raw.train, rest[:calibration])[0],
        selection=chosen,
        final=lambda: scale(raw.test, last),
        classes=0 if raw.train[1] is None else int(raw.train[1].max()) + 1,
        provenance=provenance,
        augmentation=raw.augmentation,
    )


class _Scale:
    """Scales images as the network was trained to see them."""

    def __init__(self, raw: Raw, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        channels = raw.train[0].shape[1]
        given = (mean or raw.mean, std or raw.std)
        for key, values in zip(("mean", "std"), given, strict=True):
            if len(values) not in (1, channels):
                raise BadInput(f"data.{key} has {len(values)} values, the images {channels} channels")
        self.largest = raw.largest
        self.mean, self.std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in given)

    def __call__(
        self, part: tuple[npt.NDArray[Any], Labels | None], indices: npt.NDArray[Any]
    ) -> tuple[Images, Labels | None]:
        # C order, whatever the files' own: engines take nothing else and would copy in every evaluation.
        images = part[0][indices].astype(np.float32, order="C")
        images /= np.float32(self.largest)
        images -= self.mean
        images /= self.std
        return images, None if part[1] is None else part[1][indices].astype(np.int64)


@dataclass(frozen=True)
class Source:
    """The place where a loader finds its files."""

    name: str
    root: Path | None
    download: bool
    size: int
    seed: int

    def folder(self) -> Path:
        """Return the existing root, or say what to do."""
        if self.root is None:
            raise BadInput(
                f"data set {self.name!r} needs a root: set data.root or the environment variable TRIMTAB_DATA"
            )
        if not self.root.is_dir():
            raise BadInput(f"the data root {self.root} does not exist (data.root or TRIMTAB_DATA)")
        return self.root


def data_root(name: str, root: str | Path | None = None) -> Path | None:
    """Return the absolute folder that a data set is looked for in: `root`, or `TRIMTAB_DATA`; None where there is
    neither, and for what a package brings along."""
    given = root or os.environ.get("TRIMTAB_DATA")
    return Path(given).expanduser().absolute() if given and name not in EMBEDDED else None


def _digits(source: Source) -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(20160108).permutation(len(labels))
    test, train = order[:400], order[400:]
    return Raw((images[train], labels[train]), (images[test], labels[test]), (0.305,), (0.376,), largest=16.0)


def _cifar10(source: Source) -> Raw:
    from torchvision.datasets import CIFAR10

    parts = [_torchvision(CIFAR10, source, ("cifar10", "."), train) for train in (True, False)]
    train, test = ((np.transpose(d.data, (0, 3, 1, 2)), np.asarray(d.targets)) for d in parts)
    return Raw(train, test, IMAGENET_MEAN, IMAGENET_STD, augmentation=Augmentation(4, mirror=True))


def _mnist(source: Source) -> Raw:
    from torchvision.datasets import MNIST

    return _grey(MNIST, source, ("mnist", "."), (0.1307,), (0.3081,), Augmentation(2))


def _fashion_mnist(source: Source) -> Raw:
    from torchvision.datasets import FashionMNIST

    folders = ("fashion-mnist", "fashion_mnist", ".")
    return _grey(FashionMNIST, source, folders, (0.2860,), (0.3530,), Augmentation(2, mirror=True))


def _grey(
    kind: Any,
    source: Source,
    folders: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augmentation: Augmentation,
) -> Raw:
    parts = [_torchvision(kind, source, folders, train) for train in (True, False)]
    train, test = ((d.data.numpy()[:, None], d.targets.numpy()) for d in parts)
    return Raw(train, test, mean, std, augmentation=augmentation)


def _torchvision(kind: Any, source: Source, folders: tuple[str, ...], train: bool) -> Any:
    root = source.folder()
    for folder in folders:
        place = _unpacked(kind, root / folder)
        try:
            return kind(str(place), train=train, download=False)
        except RuntimeError:
            continue
    if source.download:
        return kind(str(root / folders[0]), train=train, download=True)
    raise BadInput(
        f"data set {source.name!r} is not under {root} (looked in {', '.join(str(root / f) for f in folders)}); "
        "pass --download to fetch it there"
    )


def _unpacked(kind: Any, place: Path) -> Path:
    """MNIST's loader reads unpacked files only: where just the archives lie, unpack them into the cache."""
    raw = place / kind.__name__ / "raw"
    archives = sorted(raw.glob("*-ubyte.gz")) if raw.is_dir() else []
    if not archives or all((raw / archive.stem).exists() for archive in archives):
        return place
    import gzip
    import zlib

    # Another root, or other archives, are other data: they must not be served from the first one's copy.
    facts = [(str(archive.resolve()), archive.stat().st_size, archive.stat().st_mtime_ns) for archive in archives]
    root = cache_dir() / "data" / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    target = root / kind.__name__ / "raw"
    target.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        final = target / archive.stem
        if not final.exists():
            try:
                with gzip.open(archive) as packed:
                    plain = packed.read()
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise BadInput(f"{archive} is damaged: {error}") from error
            write_bytes(final, plain)
    return root


def _image_folder(source: Source) -> Raw:
    """`root/train/<class>/*` and `root/val/<class>/*` (or `test`), or images without classes in `root/train` and
    `root/val`: resized, centre-cropped to data.size."""
    from torchvision.transforms import v2

    root = source.folder()
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise BadInput(
            f"an image folder needs {root}/train and {root}/val (or test), with a folder per class in each, or images"
        )
    shape = v2.Compose([v2.Resize(round(source.size * 256 / 224)), v2.CenterCrop(source.size), v2.PILToTensor()])
    folders = (root / "train", test)
    labelled = [any(each.is_dir() for each in folder.iterdir()) for folder in folders]
    if labelled[0] != labelled[1]:
        raise BadInput(f"one of {root}/train and {test} has a folder per class, the other has not")
    read = _with_classes if labelled[0] else _without_classes
    try:
        train, final = read(folders, lambda image: shape(image).numpy())
    except OSError as error:  # no class folder, an empty one, or a file that is no image
        raise BadInput(f"cannot read the images under {root}: {error}") from error
    varied = Augmentation(source.size // 8, mirror=True)
    return Raw(train, final, IMAGENET_MEAN, IMAGENET_STD, augmentation=varied)


def _with_classes(folders: Sequence[Path], shape: Callable[[Any], Any]) -> list[tuple[npt.NDArray[Any], Labels | None]]:
    from torchvision.datasets import ImageFolder

    parts = [ImageFolder(str(folder), shape) for folder in folders]
    if parts[0].classes != parts[1].classes:
        raise BadInput(f"{folders[0]} and {folders[1]} do not have the same classes")
    return [(np.stack([x for x, _ in part]), np.asarray(part.targets)) for part in parts]


def _without_classes(
    folders: Sequence[Path], shape: Callable[[Any], Any]
) -> list[tuple[npt.NDArray[Any], Labels | None]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader

    found: list[tuple[npt.NDArray[Any], Labels | None]] = []
    for folder in folders:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise BadInput(f"{folder} has neither a folder per class nor images")
        found.append((np.stack([shape(default_loader(str(file))) for file in files]), None))
    return found


#: Data sets that need no files.
EMBEDDED = frozenset({"digits"})

#: Name -> loader.
DATASETS: dict[str, Callable[[Source], Raw]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "image-folder": _image_folder,
}
