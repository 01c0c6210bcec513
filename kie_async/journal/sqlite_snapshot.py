"""Reads a journal that others may write to: takes no lock and changes nothing, since it reads a copy.

A session holds its file alone, so SQLite lets nobody else in; a bot that starts must not be kept out by one
who only reads; and a reader may have no right to write beside the file, which SQLite needs for its log.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import JournalError
from .owner import read_owner
from .sqlite_file import JournalFile
from .sqlite_lock import copy_beside_locks
from .sqlite_schema import bring_up_to_date

_LOG_HEADER_BYTES = 32

_MOST_TRIES = 20

_TRY_GAP_S = 0.05


class JournalSnapshot(JournalFile):
    """A journal's file as it was at one moment: read like the file itself, never written to.

    *finish* does to the copy what a session does at open, such as reading the rescue files; it is told
    whether nobody has the journal open.
    """

    begin = "BEGIN"  # a reader's: one that may write is refused here

    def __init__(self, path: str | Path, finish: Callable[[sqlite3.Connection, bool], object]) -> None:
        super().__init__(path)
        self._finish = finish
        self._folder = ""

    def connect(self) -> sqlite3.Connection:
        """Return a connection to a copy of the file.

        Raises:
            JournalError: There is none, it is no journal of this version, is damaged or cannot be copied.
        """
        self._find()
        self._folder = tempfile.mkdtemp(prefix="kie-journal-")
        try:
            copy = Path(self._folder, "copy.db")
            was_over = self._is_over()
            self._copy(copy)
            # Whoever opened it meanwhile may be sending: that is not the end of a former process.
            return self._open_copy(copy, is_over=was_over and self._is_over())
        except BaseException:
            self._remove_copy()
            raise

    def disconnect(self, db: sqlite3.Connection) -> None:
        """Close the connection and remove the copy."""
        db.close()
        self._remove_copy()

    def error_from(self, exc: Exception) -> JournalError:
        """Return what an exception means for the journal, in one sentence."""
        if isinstance(exc, OSError):
            return JournalError(f"journal {self.path} cannot be read: {exc.strerror or exc}")
        if (getattr(exc, "sqlite_errorcode", 0) or 0) & 0xFF == sqlite3.SQLITE_READONLY:
            return JournalError(f"journal {self.path} was opened to be read only")
        return super().error_from(exc)

    def check_identity(self) -> None:
        """Do nothing: the copy is ours alone."""

    def check_content(self) -> None:
        """Do nothing: the copy is ours alone."""

    def _is_over(self) -> bool:
        """Tell whether nobody has it open, as far as that can be told."""
        owner = read_owner(self._target)
        return owner is None or owner.is_gone

    def _copy(self, copy: Path) -> None:
        """Copy file and log so that they fit together.

        The file changes only by what the log holds already, and the log only grows until it begins anew
        with another header. So a log that is copied after the file makes up for every change meanwhile.
        https://www.sqlite.org/fileformat2.html#the_write_ahead_log
        """
        for _ in range(_MOST_TRIES):
            before = self._generation()
            copy_beside_locks(self._target, copy)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.log_path, f"{copy}-wal")
            if self._generation() == before:
                return
            Path(f"{copy}-wal").unlink(missing_ok=True)
            time.sleep(_TRY_GAP_S)
        raise JournalError(f"journal {self.path} changes faster than it can be read; try again")

    def _generation(self) -> tuple[object, ...]:
        """Return what stays the same as long as the log only grows."""
        status = self._target.stat()
        identity = (status.st_dev, status.st_ino)
        try:
            with self.log_path.open("rb") as log:
                header = log.read(_LOG_HEADER_BYTES)
        except FileNotFoundError:
            header = b""
        # Without a log the file itself is all there is.
        return (*identity, header) if header else (*identity, status.st_size, status.st_mtime_ns)

    def _open_copy(self, copy: Path, *, is_over: bool) -> sqlite3.Connection:
        has_log = _size_of(Path(f"{copy}-wal")) > 0
        db = sqlite3.connect(copy, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN EXCLUSIVE")
            self._check_content(db, has_log=has_log)
            bring_up_to_date(db)
            self._finish(db, is_over)
            db.execute("COMMIT")
            db.execute("PRAGMA query_only = ON")
        except BaseException:
            db.close()
            raise
        return db

    def _remove_copy(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
