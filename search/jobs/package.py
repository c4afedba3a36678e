"""The package of a job: the code that runs here, the resolved configuration and the checkpoint, in one archive.

Nothing of the working folder is in it, and no data. It has the content of a wheel and is none: Ray installs a wheel
with all that it depends on, on every node, and only unpacks an archive.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import trimtab
from trimtab.errors import BadInput
from trimtab.files import cache_dir, write_bytes
from trimtab.kernels import _native
from trimtab.search.setup.config import Config

__all__ = ["CHECKPOINT", "CONFIG", "HASH", "LARGEST", "Package", "file_hash", "make_package"]

#: Bytes of an archive. Ray's job server fails beyond 100 MiB, whatever it says.
LARGEST = 50 * 2**20

#: The names of the configuration, of the checkpoint without its suffix, and of the hash of one that is not packed.
CONFIG, CHECKPOINT, HASH = "config.yaml", "checkpoint", "checkpoint.sha256"

#: The files of a folder of code that run; what kernels are built from stays here.
CODE = (".py", ".yaml", ".typed")


@dataclass(frozen=True)
class Package:
    """An archive, `path`, named after the `hash` of what is in it; `sizes` are bytes in the archive by name."""

    path: Path
    hash: str
    sizes: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self.path.stat().st_size

    def largest(self, count: int = 3) -> str:
        """Return its largest files, in words."""
        names = sorted(self.sizes, key=lambda name: -self.sizes[name])[:count]
        return ", ".join(f"{name} {self.sizes[name] / 2**20:.1f} MiB" for name in names)


def make_package(config: Config, with_checkpoint: bool = True) -> Package:
    """Return the package of a run, made once and kept in the cache; one of more than `LARGEST` bytes is a `BadInput`.

    Without its checkpoint, the hash of that is in it, and nodes find the file where it is found here.
    """
    files = dict(_code())
    if config.network.checkpoint is not None:
        path = Path(config.network.checkpoint).expanduser().absolute()
        if with_checkpoint:
            files[CHECKPOINT + path.suffix] = _read(path)
        else:
            files[HASH] = file_hash(path).encode()
        there = CHECKPOINT + path.suffix if with_checkpoint else str(path)
        network = config.network.model_copy(update={"checkpoint": there})
        config = config.model_copy(update={"network": network})
    files[CONFIG] = config.to_yaml().encode()
    return _archived(files)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's file; one that cannot be read is a `BadInput`."""
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"the checkpoint {path} cannot be read: {error.strerror}") from error


def _code() -> Iterator[tuple[str, bytes]]:
    """The files of the package trimtab as it runs here, by their names in an archive."""
    for root in trimtab.__path__:
        for folder, _, names in os.walk(root, followlinks=True):
            for name in names:
                if name.endswith(CODE):
                    path = Path(folder) / name
                    yield (Path("trimtab") / path.relative_to(root)).as_posix(), path.read_bytes()
    yield f"trimtab/kernels/{Path(_native.__file__).name}", Path(_native.__file__).read_bytes()
    yield f"trimtab-{trimtab.__version__}.dist-info/METADATA", str(distribution("trimtab").metadata).encode()


def _archived(files: Mapping[str, bytes]) -> Package:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    folder = cache_dir() / "packages"
    folder.mkdir(exist_ok=True)
    path = folder / f"{digest.hexdigest()[:32]}.zip"
    if not path.is_file():
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                # The date of a file is not of its content.
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED, 1)
        write_bytes(path, content.getvalue(), durable=False)
    with zipfile.ZipFile(path) as archive:
        package = Package(path, digest.hexdigest(), {each.filename: each.compress_size for each in archive.infolist()})
    if package.size > LARGEST:
        raise BadInput(
            f"the package has {package.size / 2**20:.0f} MiB, and {LARGEST / 2**20:.0f} may be sent; largest in it: "
            f"{package.largest()}. A checkpoint that the nodes see too may stay where it is: --checkpoint-stays"
        )
    return package
