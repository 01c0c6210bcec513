"""Writes result files under a temporary name and renames them when they are complete."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from .media_types import ENDINGS, ENDINGS_BY_TYPE, HEAD_BYTES

_PROBE_BYTES = 1024 * 1024
"""What must fit on a disk that results are to be saved on."""


class PartFile:
    """A file that gets its final name when it is complete, and is removed if it never is."""

    def __init__(self, folder: Path, name: str) -> None:
        self.size = 0
        self.head = b""
        self._path = folder / f".{name}.{secrets.token_hex(8)}.part"
        self._file: BinaryIO = io.BytesIO()  # until it is open

    def begin(self) -> None:
        """Create the file, readable by its owner alone until it is complete; or empty it, to begin anew."""
        if self.size:
            self._file.seek(0)
            self._file.truncate()
            self.size, self.head = 0, b""
            return
        self._file = open(self._path, "xb", opener=open_no_link)  # noqa: SIM115  closed in seal or discard
        # Read back, since the umask cannot be asked for without changing it for every thread.
        self._mode = stat.S_IMODE(os.fstat(self._file.fileno()).st_mode)
        self._change_mode(0o600)

    def write(self, block: bytes) -> None:
        """Append *block*."""
        self.size += len(block)
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + block)[:HEAD_BYTES]
        self._file.write(block)

    def seal(self, name: str) -> Path:
        """Rename the file, once every byte of it lies on the disk, and return its path."""
        # Synced before it is renamed: after a power cut a name must never stand on half a file.
        self._file.flush()
        os.fsync(self._file.fileno())
        self._change_mode(self._mode)
        self._file.close()
        return self._path.replace(self._path.with_name(name))

    def _change_mode(self, mode: int) -> None:
        with contextlib.suppress(PermissionError, AttributeError):  # where there are no modes: FAT, Windows
            os.fchmod(self._file.fileno(), mode)

    def discard(self) -> None:
        """Close the file, and remove it unless it is sealed."""
        with contextlib.suppress(OSError):  # a full disk says so again at close
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def open_no_link(path: str, flags: int) -> int:
    """Open a file unless a link is in its place, which may lead anywhere: for `open`."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def find_complete(folder: Path, name: str, url: str) -> Path | None:
    """Return the complete file of that name; others may lie beside it, a poster made of a film."""
    address = url.partition("?")[0].lower()
    for ending in sorted(ENDINGS, key=lambda ending: not address.endswith(ending)):
        if ending in ENDINGS_BY_TYPE and not address.endswith(ending):
            continue  # subtitles and notes are what people put beside a film
        path = folder / (name + ending)
        if is_complete(path):
            return path
    return None


def is_complete(path: Path) -> bool:
    """Tell whether there is a file in the name, and something in it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def try_to_write(folder: Path) -> None:
    """Make *folder* if need be, and write a file there that is gone again: before money is spent for more.

    Raises:
        OSError: It cannot be made or written to, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        with probe.open("xb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
