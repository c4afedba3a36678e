"""Files that are there whole or not at all, and the folder for what is kept between runs."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from trimtab.errors import BadInput

__all__ = ["cache_dir", "check_folder", "file_name", "write_bytes", "write_text"]


def cache_dir() -> Path:
    """Return the folder for what trimtab measures and trains: `TRIMTAB_CACHE`, or the user's cache folder.

    It is made; one that cannot be is a `BadInput`.
    """
    root = os.environ.get("TRIMTAB_CACHE")
    folder = Path(root or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"the cache {folder} cannot be made ({error.strerror}): let TRIMTAB_CACHE name a folder that can"
        ) from error
    return folder


def check_folder(folder: Path) -> None:
    """Raise `BadInput` unless files may be written into a folder, which is not made yet where it does not exist."""
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise BadInput(f"{folder} cannot be made: {above} is not a folder that may be written to")


def file_name(text: str) -> str:
    """Return a text as part of a file's name: what is neither a letter, a figure nor a point becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def write_bytes(path: str | os.PathLike[str], content: bytes, durable: bool = True) -> None:
    """Write a file into a folder that exists, whole or not at all, whoever else writes it at the same time.

    A `durable` one is there after a power cut too.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())
