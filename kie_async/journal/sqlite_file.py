"""Opens a journal's SQLite file: makes it whole, locks it for one session, checks it, notices its loss.

A journal that was cut, mixed up or lost in part must not pass for an empty one: what it no longer knows
would be paid again. https://www.sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import secrets
import shutil
import sqlite3
import stat
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import JournalError, JournalLocked
from .exclusive_rename import rename_exclusively
from .intents import IntentState
from .owner import read_owner, remove_owner, write_owner

if sys.platform != "win32":
    import fcntl

APPLICATION_ID = 0x6B696541

VERSION = 2

_OLDEST_SQLITE, _FIRST_WITH_STRICT = (3, 26), (3, 37)

_SMALLEST_PAGE_BYTES = 512
"""SQLite takes a shorter file for an empty database."""

_STATES = ", ".join(f"'{state}'" for state in IntentState)

_CLAIM_TABLE = """
CREATE TABLE claim(
  intent_id TEXT NOT NULL,
  task_id TEXT NOT NULL,
  source TEXT NOT NULL CHECK(source IN ('signed', 'unsigned', 'answer')),
  noted_ms INTEGER NOT NULL,
  PRIMARY KEY(intent_id, task_id)
) STRICT, WITHOUT ROWID;
"""

SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE intent(
  seq INTEGER PRIMARY KEY,
  intent_id TEXT UNIQUE NOT NULL,
  ref TEXT UNIQUE,
  former_ref TEXT,
  model TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  body TEXT,
  state TEXT NOT NULL CHECK(state IN ({_STATES})),
  task_id TEXT UNIQUE,
  sends INTEGER NOT NULL DEFAULT 0 CHECK(sends <= 1),
  expects_callback INTEGER NOT NULL DEFAULT 0,
  replaces TEXT NOT NULL DEFAULT '',
  planned_ms INTEGER NOT NULL,
  sending_ms INTEGER,
  created_ms INTEGER,
  terminal_ms INTEGER,
  code INTEGER,
  reason TEXT NOT NULL DEFAULT '',
  adopted_by TEXT NOT NULL DEFAULT '',
  record TEXT NOT NULL DEFAULT '',
  credits REAL
) STRICT;
CREATE INDEX intent_by_state ON intent(state);
CREATE TABLE run(is_open INTEGER NOT NULL) STRICT;
INSERT INTO run VALUES (0);
{_CLAIM_TABLE}
"""  # noqa: S608  (made of constants)

_FROM_VERSION_1 = (
    "ALTER TABLE intent ADD COLUMN replaces TEXT NOT NULL DEFAULT ''",
    _CLAIM_TABLE,
    f"PRAGMA user_version = {VERSION}",
)

_LEARNED_TABLE = """
CREATE TABLE IF NOT EXISTS learned(
  model TEXT PRIMARY KEY,
  durations TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""
"""Made at open: it is no part of the promise, and journals without it are as good."""

_NOTE_TABLE = """
CREATE TABLE IF NOT EXISTS note(
  key TEXT PRIMARY KEY,
  note TEXT NOT NULL,
  noted_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL
) STRICT
"""
"""Made at open, as `_LEARNED_TABLE` is, with an index for each way in which a note goes."""

_NOTE_INDEXES = (
    "CREATE INDEX IF NOT EXISTS note_by_time ON note(noted_ms)",
    "CREATE INDEX IF NOT EXISTS note_by_end ON note(expires_ms)",
)

_SETTLED_INDEX = (
    "CREATE INDEX IF NOT EXISTS intent_by_end ON intent(terminal_ms) WHERE terminal_ms IS NOT NULL"
)
"""Made at open too: what ended is read in the order of its ends."""

_COLUMN = re.compile(r"^  (\w+) (TEXT|INTEGER|REAL|BLOB)\b(.*?)(,?)$", re.MULTILINE)

_STORED_AS = {
    "TEXT": "'text', 'null'",
    "INTEGER": "'integer', 'null'",
    "REAL": "'real', 'integer', 'null'",
    "BLOB": "'blob', 'null'",
}
"""What a column of a STRICT table takes; of NULL its NOT NULL decides."""

_NO_LOCK_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_NO_LOCK_CODES = {
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
}

_LOCKED_BYTE = 0x40000000 + 1024
"""On Windows a lock keeps others from the bytes too. SQLite stores nothing here: its own locks lie before it.
https://www.sqlite.org/fileformat2.html#the_lock_byte_page
"""

_CACHE_KIB = 256

_OCCURRENCE_TABLE = "CREATE TEMP TABLE occurrence(key BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID"
"""Temporary: a batch that runs again counts again."""

_COPIED_BYTES = 1 << 20

_held: dict[tuple[int, int], int] = {}
"""The journals this process has open, by device and inode, each with the descriptor that holds its lock."""

_holding = threading.Lock()


class _Marks(NamedTuple):
    """What shows that a file is the one it was (device and inode) and as it was (size and time of change)."""

    key: tuple[int, int]
    size: int
    changed_ns: int


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
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            needed = ".".join(map(str, _OLDEST_SQLITE))
            raise JournalError(f"a journal needs SQLite {needed}; this Python has {sqlite3.sqlite_version}")
        if not self._target.exists():
            self._refuse_to_replace_a_lost_one()
            _make(self._target)
        self._claim()
        try:
            db = self._open()
            try:
                self.check_identity()
            except BaseException:
                db.close()
                raise
        except BaseException:
            self._release()
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
        self._release()

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
        if kind in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return self._locked()
        if code in _NO_LOCK_CODES:
            return self._no_locks()
        if '"STRICT"' in str(exc) and not has_strict_tables():
            newer = ".".join(map(str, _FIRST_WITH_STRICT))
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
            db.execute(_OCCURRENCE_TABLE)
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
        if (version := _select_one(db, "PRAGMA user_version")) not in {1, VERSION}:
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
        """Hold the file against every other session.

        SQLite's own lock is lost as soon as anything in this process closes a descriptor of the file,
        so that a file held here is not even opened, and a lock that lasts is taken beside it.
        """
        with _holding:
            status = self._target.stat()
            key = (status.st_dev, status.st_ino)
            if key in _held:
                raise self._locked()
            if status.st_size < _SMALLEST_PAGE_BYTES and stat.S_ISREG(status.st_mode):
                raise JournalError(
                    f"journal {self.path} was cut off, or is none; restore a copy or delete it to begin anew"
                )
            descriptor = os.open(self._target, os.O_RDWR)
            try:
                _lock(descriptor)
                if _marks_of(os.fstat(descriptor)).key != key:
                    raise JournalError(f"journal {self.path} was replaced while it was opened; try again")
            except BaseException as exc:
                os.close(descriptor)
                if isinstance(exc, OSError) and exc.errno in _NO_LOCK_ERRORS:
                    raise self._no_locks() from None
                raise self._locked() if isinstance(exc, BlockingIOError) else exc from None
            _held[key], self._key = descriptor, key
            write_owner(self._target)

    def _release(self) -> None:
        with _holding:
            if (descriptor := _held.pop(self._key, None)) is not None:
                remove_owner(self._target)
                os.close(descriptor)

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
            file, log = _marks_of(os.stat(self._target)), _marks_of(os.stat(f"{self._target}-wal"))
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


def _marks_of(status: os.stat_result) -> _Marks:
    # Windows sets the time of an open file whenever it likes.
    changed_ns = 0 if sys.platform == "win32" else status.st_mtime_ns
    return _Marks((status.st_dev, status.st_ino), status.st_size, changed_ns)


def _resolved(path: Path) -> Path:
    """Return the path behind symbolic links; one that cannot be a path as it is: its open will say why."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return path


def _rescue_path(path: Path) -> Path:
    return path.with_name(path.name + ".rescue.jsonl")


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Give a journal what this version has more than the one that wrote it.

    To be called in one transaction: it is brought up to date or as it was.
    """
    former = _FROM_VERSION_1 if _select_one(db, "PRAGMA user_version") == 1 else ()
    for statement in (*former, _LEARNED_TABLE, _NOTE_TABLE, *_NOTE_INDEXES, _SETTLED_INDEX):
        db.execute(schema_text(statement))


def copy_beside_locks(source: Path, target: Path) -> None:
    """Copy a journal's file, and cost nobody a lock, whoever has it open.

    A session of this process would lose SQLite's own lock when any descriptor of the file is closed, so that
    one that is held here is read by the descriptor that holds it.

    Raises:
        OSError: It cannot be read, or the copy cannot be written.
    """
    with _holding, target.open("wb") as copy:
        status = source.stat()
        held = _held.get((status.st_dev, status.st_ino))
        if held is None or sys.platform == "win32":
            with source.open("rb") as file:
                shutil.copyfileobj(file, copy, _COPIED_BYTES)
            return
        at = 0
        while block := os.pread(held, _COPIED_BYTES, at):
            at += copy.write(block)


def has_strict_tables() -> bool:
    """Tell whether this SQLite knows STRICT tables."""
    return sqlite3.sqlite_version_info >= _FIRST_WITH_STRICT


def schema_text(tables: str, *, is_strict: bool | None = None) -> str:
    """Return the text that makes *tables* here: where SQLite knows no STRICT, a CHECK of each column instead.

    A file made in either way is good for both; only a STRICT one cannot be read by an SQLite without.
    """
    if has_strict_tables() if is_strict is None else is_strict:
        return tables
    checked = _COLUMN.sub(
        lambda column: (
            f"  {column[1]} {column[2]}{column[3]}"
            f" CHECK(typeof({column[1]}) IN ({_STORED_AS[column[2]]})){column[4]}"
        ),
        tables,
    )
    return checked.replace(") STRICT, ", ") ").replace(") STRICT", ")")


def _make(path: Path) -> None:
    """Make an empty journal, whole or not at all: a crash must not leave a file that looks cut off."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        db = sqlite3.connect(draft, isolation_level=None)
        try:
            db.executescript(f"BEGIN; {schema_text(SCHEMA)} COMMIT")
        finally:
            db.close()
        with contextlib.suppress(FileExistsError):  # another process was faster; its journal is as good
            rename_exclusively(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _end_run(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        db.execute("UPDATE run SET is_open = 0")
    with contextlib.suppress(sqlite3.Error):
        db.close()  # puts the log into the file, unless that was moved away


def _select_one(db: sqlite3.Connection, query: str) -> object:
    return db.execute(query).fetchone()[0]


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
