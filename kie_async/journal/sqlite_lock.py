"""Locks the file of a journal for one session, against those of this process and of all others."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .owner import remove_owner, write_owner

if sys.platform != "win32":
    import fcntl

_NO_LOCK_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_LOCKED_BYTE = 0x40000000 + 1024
"""On Windows a lock keeps others from the bytes too. SQLite stores nothing here: its own locks lie before it.
https://www.sqlite.org/fileformat2.html#the_lock_byte_page
"""

_COPIED_BYTES = 1 << 20

_HEADER_BYTES = 100

_held: dict[tuple[int, int], int] = {}
"""The journals this process has open, by device and inode, each with the descriptor that holds its lock."""

_holding = threading.Lock()


class NoFileLocks(OSError):
    """The file system has no locks."""


class FileReplaced(OSError):
    """The path means another file than a moment ago."""


def key_of(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from every other: its device and inode."""
    return status.st_dev, status.st_ino


def hold(path: Path, check: Callable[[os.stat_result], None]) -> tuple[int, int]:
    """Hold a file against every other session, note beside it whose it is, and return its `key_of`.

    SQLite's own lock is lost as soon as anything in this process closes a descriptor of the file,
    so that a file held here is not even opened, and a lock that lasts is taken beside it.
    *check* may refuse a file that is not held here by its status, before it is opened.

    Raises:
        BlockingIOError: Another session or process has it.
        NoFileLocks: No file can be locked there.
        FileReplaced: It was replaced while it was opened.
        OSError: It cannot be opened for writing.
    """
    with _holding:
        status = path.stat()
        key = key_of(status)
        if key in _held:
            raise BlockingIOError(errno.EAGAIN, "held in this process")
        check(status)
        descriptor = os.open(path, os.O_RDWR)
        try:
            _lock(descriptor)
            if key_of(os.fstat(descriptor)) != key:
                raise FileReplaced
        except BaseException as exc:
            os.close(descriptor)
            if isinstance(exc, OSError) and exc.errno in _NO_LOCK_ERRORS:
                raise NoFileLocks(exc.errno, exc.strerror) from None
            raise
        _held[key] = descriptor
        write_owner(path)
    return key


def release(path: Path, key: tuple[int, int]) -> None:
    """Let go of a file; one that is not held stays as it is."""
    with _holding:
        if (descriptor := _held.pop(key, None)) is not None:
            remove_owner(path)
            os.close(descriptor)


def read_header(key: tuple[int, int]) -> bytes:
    """Return the header of a file that is held, which has its change counter; nothing on Windows.

    https://www.sqlite.org/fileformat2.html#the_database_header
    """
    with _holding:
        held = _held.get(key)
        return b"" if held is None or sys.platform == "win32" else os.pread(held, _HEADER_BYTES, 0)


def copy_beside_locks(source: Path, target: Path) -> None:
    """Copy a journal's file, and cost nobody a lock, whoever has it open.

    A session of this process would lose SQLite's own lock when any descriptor of the file is closed, so that
    one that is held here is read by the descriptor that holds it.

    Raises:
        OSError: It cannot be read, or the copy cannot be written.
    """
    with _holding, target.open("wb") as copy:
        held = _held.get(key_of(source.stat()))
        if held is None or sys.platform == "win32":
            with source.open("rb") as file:
                shutil.copyfileobj(file, copy, _COPIED_BYTES)
            return
        at = 0
        while block := os.pread(held, _COPIED_BYTES, at):
            at += copy.write(block)


def _lock(descriptor: int) -> None:
    """Lock a file until its descriptor is closed.

    Raises:
        BlockingIOError: Another process has it.
        OSError: Here no file can be locked.
    """
    if sys.platform == "win32":
        lock_with_msvcrt(descriptor)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_with_msvcrt(descriptor: int) -> None:
    """Lock a file as Windows does: one byte of it, wherever that file ends.

    Raises:
        BlockingIOError: Another process has it.
    """
    windows: Any = importlib.import_module("msvcrt")
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        windows.locking(descriptor, windows.LK_NBLCK, 1)
    except PermissionError as exc:
        raise BlockingIOError(exc.errno, exc.strerror) from None


def _let_go_after_fork() -> None:
    """In a forked child: the parent's locks must not live on in it."""
    global _holding
    _holding = threading.Lock()
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)
