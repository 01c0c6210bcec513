"""Opens a journal's SQLite file for one session, checks it, and notices when it is lost or changed.

A journal that was cut, mixed up or lost in part must not pass for an empty one: what it no longer knows
would be paid again. https://www.sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

from ..errors import JournalError, JournalFull, JournalLocked
from .owner import read_owner
from .sqlite_lock import FileReplaced, NoFileLocks, hold, key_of, read_header, release
from .sqlite_schema import (
    APPLICATION_ID,
    FIRST_WITH_STRICT,
    OCCURRENCE_TABLE,
    OLDEST_SQLITE,
    VERSION,
    bring_up_to_date,
    has_strict_tables,
    make_journal,
)

_SMALLEST_PAGE_BYTES = 512
"""SQLite takes a shorter file for an empty database."""

_NO_LOCK_CODES = {
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
}

_CACHE_KIB = 256


class _Marks(NamedTuple):
    """What shows that a file is the one it was (device and inode) and as it was (size and time of change)."""

    key: tuple[int, int]
    size: int
    changed_ns: int
    header: bytes = b""


class JournalFile:
    """One journal's file, the log beside it, and who may have them.

    The path may be a symbolic link. SQLite follows it and keeps its log beside the file that it means, so
    everything but what people read is about that file; it is found once, at open.
    """

    begin = "BEGIN IMMEDIATE"
    """How a transaction begins."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        """As it was given: for messages, and for what a later open would find there."""
        self.distrust = ""
        """Why nothing may rely on the file any more; empty while it can be trusted."""
        self._target = _resolved(self.path)
        self._is_link = self._target != self.path
        self._key = (0, 0)
        self._marks: tuple[_Marks, _Marks] | None = None
        self._is_overwritten = False

    @property
    def log_path(self) -> Path:
        """Return where SQLite keeps what is not in the file yet."""
        return self._target.with_name(self._target.name + "-wal")

    @property
    def rescue_path(self) -> Path:
        """Return where ids go that could not be committed; read again at the next open."""
        return _rescue_path(self._target)

    @property
    def rescue_paths(self) -> list[Path]:
        """Return where rescued ids may be: former versions wrote them beside the link."""
        return list(dict.fromkeys((self.rescue_path, _rescue_path(self.path))))

    def connect(self) -> sqlite3.Connection:
        """Return the only connection to the file, which is made if it is not there.

        Raises:
            JournalError: It is not a journal of this version, is damaged or cannot be written.
            JournalLocked: Another session or process has it.
        """
        self.distrust, self._is_overwritten, self._marks = "", False, None
        self._find()
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            needed = ".".join(map(str, OLDEST_SQLITE))
            raise JournalError(f"a journal needs SQLite {needed}; this Python has {sqlite3.sqlite_version}")
        if not self._target.exists():
            self._refuse_to_replace_a_lost_one()
            make_journal(self._target)
        self._claim()
        try:
            db = self._open()
            try:
                self.check_identity()
            except BaseException:
                db.close()
                raise
        except BaseException:
            release(self._target, self._key)
            raise
        return db

    def _find(self) -> None:
        self._target = _resolved(self.path)
        self._is_link = self._target != self.path

    def disconnect(self, db: sqlite3.Connection) -> None:
        """Close the connection and let go of the file."""
        with contextlib.suppress(JournalError):
            self.check_content()
        if self._is_overwritten:
            # Closing would put the log into what is another's content now. An interrupt keeps SQLite from it.
            db.interrupt()
            db.close()
        else:
            _end_run(db)
        release(self._target, self._key)

    def check_identity(self) -> None:
        """Refuse to go on when the file is gone: what is noted in it would be lost.

        To be called whenever we may have written: as the file is then it must stay.

        Raises:
            JournalError: It, the log beside it or the link to it was deleted, replaced or cut.
        """
        former, self._marks = self._marks, self._read_marks()
        for now, before in zip(self._marks, former or self._marks, strict=True):
            if now.key != before.key:
                self._distrust_lost()
            if now.size < before.size:  # SQLite itself never shortens them while they are open
                self._distrust_overwritten()

    def check_content(self) -> None:
        """Refuse to go on when another program has written to the file since our last write.

        Locks do not keep a copy or a cut from happening, and inodes do not show it.

        Raises:
            JournalError: That happened, or it is gone.
        """
        if self._read_marks() != self._marks:
            self._distrust_overwritten()

    def error_from(self, exc: Exception) -> JournalError:
        """Return what an exception means for the journal, in one sentence."""
        if isinstance(exc, JournalError):
            return exc
        name, code = f"journal {self.path}", getattr(exc, "sqlite_errorcode", 0) or 0
        kind = code & 0xFF
        if isinstance(exc, OSError):
            return JournalError(f"{name} cannot be opened for writing: {exc.strerror or exc}")
        if kind == sqlite3.SQLITE_FULL:
            return JournalFull(f"{name}: {exc}")
        if kind in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return self._locked()
        if code in _NO_LOCK_CODES:
            return self._no_locks()
        if '"STRICT"' in str(exc) and not has_strict_tables():
            newer = ".".join(map(str, FIRST_WITH_STRICT))
            return JournalError(
                f"{name} was made with SQLite {newer} or newer; this Python has {sqlite3.sqlite_version}"
            )
        if kind == sqlite3.SQLITE_CANTOPEN:
            return JournalError(f"{name} cannot be opened: its folder must be there and writable")
        if kind in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            self.distrust = f"{name} is damaged or no journal at all ({exc}); restore a copy of it"
        elif kind == sqlite3.SQLITE_IOERR and code != sqlite3.SQLITE_IOERR_WRITE:
            # After a failed fsync nobody knows what the disk holds, and asking again would not tell.
            self.distrust = f"{name} cannot be trusted any more ({exc}); nothing more is sent with it"
        else:
            return JournalError(f"{name}: {exc}")
        return JournalError(self.distrust)

    # --- opening -------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        has_log = self.log_path.exists() and self.log_path.stat().st_size > 0
        db = sqlite3.connect(self._target, isolation_level=None, timeout=0.0)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("BEGIN EXCLUSIVE")
            self._check_content(db, has_log=has_log)
            bring_up_to_date(db)
            db.execute("COMMIT")
            if _select_one(db, "PRAGMA journal_mode = WAL") != "wal":
                raise JournalError(f"journal {self.path}: this file system cannot hold a write-ahead log")
        except BaseException:
            db.close()
            raise
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")
            db.execute(OCCURRENCE_TABLE)
            # SQLite's default cache is 2 MB each; the operating system caches the file as well.
            for schema in ("main", "temp"):
                db.execute(f"PRAGMA {schema}.cache_size = -{_CACHE_KIB}")
            db.execute("UPDATE run SET is_open = 1")
            # The file itself must say so, not only the log: it is the log that may be missing next time.
            db.execute("PRAGMA wal_checkpoint(FULL)")
        except BaseException:
            _end_run(db)
            raise
        return db

    def _check_content(self, db: sqlite3.Connection, *, has_log: bool) -> None:
        """Refuse what is not ours, of another version, damaged, or not all there."""
        if _select_one(db, "PRAGMA application_id") != APPLICATION_ID:
            raise JournalError(f"{self.path} is a database, but not a journal of kie_async")
        if (version := _select_one(db, "PRAGMA user_version")) not in range(1, VERSION + 1):
            raise JournalError(f"journal {self.path} has version {version}; this kie_async reads {VERSION}")
        # Unlike quick_check this compares the indexes too: every id, ref and state stands twice.
        if (verdict := _select_one(db, "PRAGMA integrity_check(1)")) != "ok":
            found = " ".join(str(verdict).split())
            raise JournalError(f"journal {self.path} is damaged ({found}); restore a copy of it")
        if _select_one(db, "SELECT is_open FROM run") and not has_log:
            remedy = f"sqlite3 {self.path.name} 'UPDATE run SET is_open = 0'"  # noqa: S608  (words to a person)
            raise JournalError(
                f"journal {self.path} was not closed and {self.log_path.name}, which holds its last notes, is"
                " missing: put it back; or, if another program opened the journal since and nothing is lost,"
                f" say so with {remedy}"
            )

    def _refuse_to_replace_a_lost_one(self) -> None:
        for left in (self.log_path, *self.rescue_paths):
            if left.exists():
                raise JournalError(
                    f"journal {self.path} is gone, but {left.name} is still there and names paid tasks;"
                    " put the journal back, or move that file away to begin a new one"
                )

    # --- holding -------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Hold the file against every other session."""
        try:
            self._key = hold(self._target, self._check_size)
        except BlockingIOError:
            raise self._locked() from None
        except NoFileLocks:
            raise self._no_locks() from None
        except FileReplaced:
            raise JournalError(f"journal {self.path} was replaced while it was opened; try again") from None

    def _check_size(self, status: os.stat_result) -> None:
        if status.st_size < _SMALLEST_PAGE_BYTES and stat.S_ISREG(status.st_mode):
            raise JournalError(
                f"journal {self.path} was cut off, or is none; restore a copy or delete it to begin anew"
            )

    def _locked(self) -> JournalLocked:
        owner = read_owner(self._target)
        by = f": {owner}" if owner is not None else ""
        return JournalLocked(f"journal {self.path} is open in another session or process{by}")

    def _no_locks(self) -> JournalError:
        return JournalError(
            f"journal {self.path}: its file system has no file locks, which keep two runs from paying twice;"
            " put it on a local disk"
        )

    def _read_marks(self) -> tuple[_Marks, _Marks]:
        """Return the marks of the file and its log.

        Raises:
            JournalError: One is gone, or the path means another file than the one that is held.
        """
        try:
            status, log = os.stat(self._target), _marks_of(os.stat(f"{self._target}-wal"))
            # Size and time can be put back to those of before; the counter in the header tells all the same.
            file = _marks_of(status, read_header(key_of(status)))
            given = _marks_of(os.stat(self.path)) if self._is_link else file
        except OSError:
            self._distrust_lost()
        if not file.key == given.key == self._key:
            self._distrust_lost()
        return file, log

    def _distrust_overwritten(self) -> NoReturn:
        self._is_overwritten = True
        self.distrust = (
            f"journal {self.path} was changed by another program while in use; nothing more is sent with it"
        )
        raise JournalError(self.distrust)

    def _distrust_lost(self) -> NoReturn:
        self.distrust = (
            f"journal {self.path} was deleted or replaced while in use; nothing more is sent with it"
        )
        raise JournalError(self.distrust)


def _marks_of(status: os.stat_result, header: bytes = b"") -> _Marks:
    # Windows sets the time of an open file whenever it likes.
    changed_ns = 0 if sys.platform == "win32" else status.st_mtime_ns
    return _Marks(key_of(status), status.st_size, changed_ns, header)


def _resolved(path: Path) -> Path:
    """Return the path behind symbolic links; one that cannot be a path as it is: its open will say why."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return path


def _rescue_path(path: Path) -> Path:
    return path.with_name(path.name + ".rescue.jsonl")


def _end_run(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        db.execute("UPDATE run SET is_open = 0")
    with contextlib.suppress(sqlite3.Error):
        db.close()  # puts the log into the file, unless that was moved away


def _select_one(db: sqlite3.Connection, query: str) -> object:
    return db.execute(query).fetchone()[0]
