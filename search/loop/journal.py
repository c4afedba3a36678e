"""The run's ledger: an append-only file in which every acknowledged record survives a kill at any moment.

Every line is JSON by itself, and starts with the CRC-32 of the rest of it:

    {"crc":"5d0e2c11","seq":0,"time":1767225600.0,"kind":"ask","data":{...}}

The first line names the format. A record is acknowledged when `Journal.append` returns, which is after fsync. Only
the last line can be incomplete, and was then never acknowledged: opening the journal cuts it off.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

from trimtab.errors import BadInput, TrimtabError

__all__ = ["Journal", "Record", "is_written", "read_journal"]


@dataclass(frozen=True)
class Record:
    """One line of the journal: `seq` counts from 0 without gaps, `time` is in seconds since 1970 (UTC)."""

    seq: int
    kind: str
    data: dict[str, Any]
    time: float


def _line(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields, allow_nan=False, separators=(",", ":"))[1:].encode("ascii") + b"\n"
    return b'{"crc":"%08x",' % zlib.crc32(body) + body


_HEADER = _line({"journal": "trimtab", "schema": 1})
_BODY = len(b'{"crc":"01234567",')  # where the part of a line that the checksum covers begins


class Journal:
    """The journal at `path`, created if it does not exist, and locked until it is closed.

    Raises `BadInput` if another process writes it, if it cannot be opened, if it is not a journal, or if a line
    before the last one is damaged. `cut` is the number of bytes of an unacknowledged last line that opening it cut
    off. Threads may share a journal; forked children close their copy of it, so that it ends with the process that
    opened it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._fd = _open_locked(self.path)
        try:
            self._entries, self.cut = _recover(self.path, self._fd)
        except BaseException:
            self.close()
            raise
        _OPEN.add(self)

    def append(self, kind: str, data: dict[str, Any]) -> int:
        """Add a record durably and return its sequence number.

        `data` is plain JSON with string keys; NaN, infinities and other types are a `BadInput`. If it cannot be
        written (a full disk), the file is cut back to what it was and the error is a `TrimtabError`.
        """
        with self._lock:
            if self._fd < 0:
                raise TrimtabError(f"the journal {self.path} is closed")
            seq, end = len(self._entries), self._end()
            try:
                line = _line({"seq": seq, "time": time.time(), "kind": kind, "data": data})
            except (TypeError, ValueError, RecursionError) as error:
                raise BadInput(f"a {kind!r} record cannot be written as JSON: {error}") from error
            record = _parse(line)
            try:
                _write_all(self._fd, line, end)
                os.fsync(self._fd)
                # One step commits: whatever interrupts (Ctrl-C too), file and memory agree on what there is.
                self._entries.append((record, end + len(line)))
            except BaseException as error:
                self._undo()
                if isinstance(error, OSError):
                    raise TrimtabError(
                        f"cannot write to the journal {self.path}: {error.strerror}; the record was not "
                        "acknowledged. Make room, then resume the run"
                    ) from error
                raise
            return seq

    def records(self) -> list[Record]:
        """Return all records, those of earlier processes included, as they would be read back from the file."""
        return [record for record, _ in self._entries]

    def close(self) -> None:
        """Release the file. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> int:
        return self._entries[-1][1] if self._entries else len(_HEADER)

    def _undo(self) -> None:
        try:
            os.ftruncate(self._fd, self._end())
            os.fsync(self._fd)
        except OSError:
            self.close()  # what the file ends with is unknown now: the next opening finds out


def read_journal(path: str | Path) -> list[Record]:
    """Return the complete records of a journal without locking or changing it, even while a run is writing it.

    Raises `BadInput` as `Journal` does.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read the journal {path}: {error.strerror}") from error
    return [record for record, _ in _read(Path(path), content)]


def is_written(path: str | Path) -> bool:
    """Return whether a process on this machine has a journal open, by the kernel's list of locks (proc(5), locks).

    To try the lock would take it for a moment, and a run that was resumed just then would be refused. Where there is no
    such list it is taken to be open, if it is there.
    """
    try:
        number = str(os.stat(path).st_ino)
    except OSError:
        return False
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return True
    # The device is left out: overlays and some file systems give another one there than stat does.
    return any("FLOCK" in line and number in (part.rpartition(":")[2] for part in line.split()) for line in lines)


_OPEN: WeakSet[Journal] = WeakSet()


def _close_in_child() -> None:
    # A forked worker that outlives a killed run would keep the lock, and the run could not be resumed.
    for journal in list(_OPEN):
        journal.close()


os.register_at_fork(after_in_child=_close_in_child)


def _open_locked(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise BadInput(f"cannot open the journal {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BadInput(
                f"the journal {path} is in use by another run; wait for it, stop it, or choose another directory"
            ) from error
        raise BadInput(f"cannot lock the journal {path}: {error.strerror}") from error
    return fd


def _recover(path: Path, fd: int) -> tuple[list[tuple[Record, int]], int]:
    """Read the file, cut a torn tail, and make what is there durable; return the records and the bytes cut."""
    content = _read_all(fd)
    entries = _read(path, content)
    end = entries[-1][1] if entries else len(_HEADER)
    cut = max(len(content) - end, 0)
    try:
        if not content.startswith(_HEADER):
            cut = len(content)
            os.ftruncate(fd, 0)
            _write_all(fd, _HEADER, 0)
        os.ftruncate(fd, end)
        # Also when nothing changed: a killed process may have written a line and not have synced it.
        os.fsync(fd)
        _sync_directory(path.parent)
    except OSError as error:
        raise BadInput(f"cannot write to the journal {path}: {error.strerror}") from error
    return entries, cut


def _read(path: Path, content: bytes) -> list[tuple[Record, int]]:
    """Return every record with the offset of its end. An unreadable last line is left out, any other one an error."""
    if not content.startswith(_HEADER):
        # A beginning of the header, or zeros, is what a crash leaves of a journal that was being created.
        if _HEADER.startswith(content) or not content.strip(b"\0"):
            return []
        raise BadInput(f"{path} is not a trimtab journal, or one of another version")
    entries: list[tuple[Record, int]] = []
    start = len(_HEADER)
    while (newline := content.find(b"\n", start)) >= 0:
        line, number = content[start : newline + 1], len(entries)
        start = newline + 1
        if not _is_whole(line):
            if start == len(content):
                break  # torn: a power failure may lose the middle of a line and keep its end
            raise BadInput(f"{path}, line {number + 2}: the checksum does not match; the file was damaged or edited")
        record = _parse(line)
        if record.seq != number:
            raise BadInput(f"{path}, line {number + 2}: record {record.seq} where {number} is due; the file was edited")
        entries.append((record, start))
    return entries


def _is_whole(line: bytes) -> bool:
    return line[:_BODY] == b'{"crc":"%08x",' % zlib.crc32(line[_BODY:])


def _parse(line: bytes) -> Record:
    fields = json.loads(b"{" + line[_BODY:])
    return Record(fields["seq"], fields["kind"], fields["data"], fields["time"])


def _read_all(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def _write_all(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
