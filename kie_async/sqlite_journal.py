"""The durable journal: one SQLite file, one connection in one thread, many notes in one commit.

The rules it keeps: a body leaves only after SENDING is committed; an id is committed before user code
sees it; an intent is sent at most once, says the schema; a commit that failed sends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .errors import JournalError, JournalLocked
from .journal import Intent, IntentState, Journal
from .models import TaskRecord
from .states import TaskState

_APPLICATION_ID = 0x6B696541
_VERSION = 1
_GROUP = 256
_T = TypeVar("_T")

_SCHEMA = f"""
CREATE TABLE intent(
  seq INTEGER PRIMARY KEY,
  intent_id TEXT UNIQUE NOT NULL,
  ref TEXT UNIQUE,
  former_ref TEXT,
  model TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  body TEXT,
  state TEXT NOT NULL CHECK(state IN ({", ".join(f"'{state}'" for state in IntentState)})),
  task_id TEXT UNIQUE,
  sends INTEGER NOT NULL DEFAULT 0 CHECK(sends <= 1),
  expects_callback INTEGER NOT NULL DEFAULT 0,
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
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""
_COLUMNS = (
    "intent_id, model, ref, fingerprint, body, state, task_id, reason, code, credits, record, "
    "expects_callback, planned_ms"
)
# An answer that clearly says no lets the ref be used again; an ambiguous one (500 and the like) does not.
_RESENDABLE = (
    "(state IN ('PLANNED', 'NOT_CREATED')"
    " OR (state = 'REJECTED' AND code BETWEEN 400 AND 499 AND code != 408))"
)
_Job = Callable[[sqlite3.Connection], Any]


class SqliteJournal(Journal):
    """A journal in one file: it survives crashes, and one process at a time has it.

    Raises:
        JournalError: The file is no journal of this version, is damaged or cannot be written.
        JournalLocked: Another process has it open.
    """

    is_durable = True

    def __init__(self, path: str | Path, *, keep_bodies: bool = False) -> None:
        self._path = Path(path)
        self._keep_bodies = keep_bodies
        self._jobs: queue.SimpleQueue[tuple[_Job, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._inode = 0
        self._pid = os.getpid()
        self._poison = ""

    @property
    def rescue_path(self) -> Path:
        """Return where ids go that could not be committed; read again at the next open."""
        return self._path.with_name(self._path.name + ".rescue.jsonl")

    # --- reading -------------------------------------------------------------------------------

    async def open(self) -> list[Intent]:
        """Open or make the file; return what a former process left unknown or may have created."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._serve, args=(opened,), name="kie_async journal", daemon=True
        )
        self._thread.start()
        await opened
        await self._do(self._replay)
        self.rescue_path.unlink(missing_ok=True)
        return await self._select("state = 'UNKNOWN' OR (state = 'REJECTED' AND sends = 1)")

    async def find(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""
        found = await self._select(f"ref = ? AND NOT {_RESENDABLE}", ref)
        return found[0] if found else None

    async def unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end."""
        return await self._select("state = 'CREATED'")

    async def everything(self) -> list[Intent]:
        """Return all intents in the order they were planned."""
        return await self._select("true")

    async def totals(self) -> tuple[int, float]:
        """Return how many tasks were created or may have been, and the credits they took."""
        query = "SELECT count(*), total(credits) FROM intent WHERE sends = 1 AND state != 'REJECTED'"
        count, credits_taken = await self._do(lambda db: db.execute(query).fetchone())
        return count, credits_taken

    async def _select(self, where: str, *values: object) -> list[Intent]:
        query = f"SELECT {_COLUMNS} FROM intent WHERE {where} ORDER BY seq"  # noqa: S608  (no value in it)
        rows = await self._do(lambda db: db.execute(query, values).fetchall())
        return [_intent(row) for row in rows]

    # --- writing -------------------------------------------------------------------------------

    async def plan(self, intent: Intent) -> None:
        """Note an intent; nothing was sent. It takes over the ref of one that never became a task."""
        fields = {
            "intent_id": intent.intent_id,
            "ref": intent.ref,
            "model": intent.model,
            "fingerprint": intent.fingerprint,
            "body": intent.body if self._keep_bodies else None,
            "expects_callback": intent.expects_callback,
            "state": IntentState.PLANNED.value,
            "planned_ms": _now_ms(),
        }
        insert = f"INSERT INTO intent({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})"  # noqa: S608

        def job(db: sqlite3.Connection) -> None:
            # One written off got here by a resubmit only: any other create of its ref was answered before.
            free = f"ref = ? AND (state = 'WRITTEN_OFF' OR {_RESENDABLE})"
            db.execute(f"UPDATE intent SET former_ref = ref, ref = NULL WHERE {free}", (intent.ref,))  # noqa: S608
            db.execute(insert, tuple(fields.values()))

        await self._do(job)

    async def sending(self, intent_id: str) -> None:
        """Note that the body is about to leave; called inside the hook before the first byte."""
        self._check_file()
        change = (
            "state = 'SENDING', sends = sends + 1, sending_ms = ? WHERE intent_id = ? AND state = 'PLANNED'"
        )
        await self._update(change, _now_ms(), intent_id)

    async def unsent(self, intent_id: str) -> None:
        """Take `sending` back: it is proven that no task was created."""
        await self._update("state = 'PLANNED', sends = 0 WHERE intent_id = ?", intent_id)

    async def created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became; if that fails, the id goes to `rescue_path`."""
        change = (
            "state = 'CREATED', task_id = ?, sends = 1, created_ms = ?, adopted_by = ?"
            " WHERE intent_id = ? AND (task_id IS NULL OR task_id = ?)"
        )
        try:
            await self._update(change, task_id, _now_ms(), adopted_by, intent_id, task_id)
        except JournalError:
            line = json.dumps({"intent_id": intent_id, "task_id": task_id}) + "\n"
            with contextlib.suppress(OSError):  # the error that goes up carries the id as well
                await asyncio.to_thread(_append, self.rescue_path, line)
            raise

    async def ended(
        self, intent_id: str, state: IntentState, *, reason: str = "", code: int | None = None
    ) -> None:
        """Note that an intent was rejected, not created, is unknown or written off."""
        sends = ", sends = 0" if state is IntentState.NOT_CREATED else ""
        change = f"state = ?, reason = ?, code = ?{sends} WHERE intent_id = ? AND task_id IS NULL"
        await self._update(change, state.value, reason[:500], code, intent_id)

    async def settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task."""
        state = IntentState.SUCCEEDED if record.state is TaskState.SUCCESS else IntentState.FAILED
        text = json.dumps(dict(record.raw) or {"taskId": record.task_id, "state": record.state.value})
        change = "state = ?, record = ?, credits = ?, terminal_ms = ? WHERE intent_id = ?"
        await self._update(change, state.value, text, record.credits, _now_ms(), intent_id)

    async def aclose(self) -> None:
        """Finish what was begun and let go of the file."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def _update(self, change: str, *values: object) -> None:
        def job(db: sqlite3.Connection) -> None:
            if db.execute(f"UPDATE intent SET {change}", values).rowcount != 1:  # noqa: S608  (no value in it)
                raise JournalError("the journal does not hold this intent in the state it must be in")

        await self._do(job)

    def _check_file(self) -> None:
        """Refuse to send when the file is gone: what is noted in it would be lost."""
        try:
            inode = self._path.stat().st_ino
        except OSError:
            inode = 0
        if inode != self._inode:
            raise JournalError(f"journal {self._path} was deleted or replaced while in use; nothing was sent")

    # --- the thread ----------------------------------------------------------------------------

    async def _do(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run *job* in the journal's thread and return when its commit is durable."""
        if self._thread is None:
            raise JournalError(f"journal {self._path} is closed")
        if os.getpid() != self._pid:
            raise JournalError(f"journal {self._path} belongs to the process before the fork; open it anew")
        done: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put((job, done))
        return await done

    def _serve(self, opened: asyncio.Future[None]) -> None:
        try:
            db = self._connect()
        except (sqlite3.Error, OSError, JournalError) as exc:
            self._post([(opened, None, self._translated(exc))])
            return
        self._post([(opened, None, None)])
        while (first := self._jobs.get()) is not None:
            group, is_last = [first], False
            while len(group) < _GROUP and not self._jobs.empty():
                if (more := self._jobs.get()) is None:
                    is_last = True
                    break
                group.append(more)
            self._post(self._commit(db, group))
            if is_last:
                break
        db.close()

    def _commit(
        self, db: sqlite3.Connection, group: list[tuple[_Job, asyncio.Future[Any]]]
    ) -> list[tuple[asyncio.Future[Any], Any, JournalError | None]]:
        """Run a group of jobs in one transaction; one that fails takes only itself back."""
        answers: list[tuple[asyncio.Future[Any], Any, JournalError | None]] = []
        try:
            if self._poison:
                raise JournalError(self._poison)
            db.execute("BEGIN IMMEDIATE")
            for job, done in group:
                answers.append((done, *self._run_one(db, job)))
            db.execute("COMMIT")
        except (sqlite3.Error, JournalError) as exc:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            error = self._translated(exc)
            return [(done, None, error) for _, done in group]
        return answers

    def _run_one(self, db: sqlite3.Connection, job: _Job) -> tuple[Any, JournalError | None]:
        db.execute("SAVEPOINT one")
        try:
            value = job(db)
        except sqlite3.OperationalError:
            raise  # the file, not the job
        except Exception as exc:
            db.execute("ROLLBACK TO one")
            return None, self._translated(exc)
        db.execute("RELEASE one")
        return value, None

    def _post(self, answers: list[tuple[asyncio.Future[Any], Any, JournalError | None]]) -> None:
        def tell() -> None:
            for done, value, error in answers:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(tell)

    def _translated(self, exc: Exception) -> JournalError:
        if isinstance(exc, JournalError):
            return exc
        if isinstance(exc, OSError):
            return JournalError(f"journal {self._path} cannot be opened for writing: {exc.strerror}")
        code = getattr(exc, "sqlite_errorcode", 0) or 0
        if code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return JournalLocked(f"journal {self._path} is open in another session or process")
        if code in {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC} or code & 0xFF in {
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
        }:
            # After a failed fsync nobody knows what the disk holds: no more bodies leave.
            self._poison = f"journal {self._path} cannot be trusted any more ({exc}); nothing more is sent"
            return JournalError(self._poison)
        return JournalError(f"journal {self._path}: {exc}")

    def _connect(self) -> sqlite3.Connection:
        if not self._path.exists():
            _make(self._path)
        elif not self._path.stat().st_size:
            raise JournalError(f"journal {self._path} is empty: it was cut off; delete it to begin a new one")
        os.close(os.open(self._path, os.O_RDWR))  # says at once, and in plain words, what may not be written
        db = sqlite3.connect(self._path, isolation_level=None, timeout=0.0)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
            self._check_schema(db)
            db.execute("COMMIT")
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise JournalError(f"journal {self._path}: this file system cannot hold a write-ahead log")
            db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
        self._inode = self._path.stat().st_ino
        return db

    def _check_schema(self, db: sqlite3.Connection) -> None:
        """Refuse a file that is not ours, newer, or damaged."""
        if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise JournalError(f"{self._path} is a database, but not a journal of kie_async")
        if (version := db.execute("PRAGMA user_version").fetchone()[0]) != _VERSION:
            raise JournalError(f"journal {self._path} has version {version}; this kie_async reads {_VERSION}")
        if (verdict := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise JournalError(f"journal {self._path} is damaged ({verdict}); restore a copy of it")

    def _replay(self, db: sqlite3.Connection) -> None:
        """Bring up to date what a former process left: rescued ids first, then what may be on its way."""
        if self.rescue_path.exists():
            for line in self.rescue_path.read_text().splitlines():
                found = json.loads(line)
                db.execute(
                    "UPDATE OR IGNORE intent SET state = 'CREATED', task_id = ?, created_ms = ?"
                    " WHERE intent_id = ? AND task_id IS NULL",
                    (found["task_id"], _now_ms(), found["intent_id"]),
                )
        db.execute("UPDATE intent SET state = 'UNKNOWN', reason = 'crash' WHERE state = 'SENDING'")
        db.execute("UPDATE intent SET state = 'NOT_CREATED', reason = 'never sent' WHERE state = 'PLANNED'")


def _make(path: Path) -> None:
    """Make an empty journal, whole or not at all: a crash must not leave a file that looks cut off."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        db = sqlite3.connect(draft, isolation_level=None)
        try:
            db.executescript(_SCHEMA)
        finally:
            db.close()
        with contextlib.suppress(FileExistsError):  # another process was faster; its journal is as good
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _intent(row: tuple[Any, ...]) -> Intent:
    found = dict(zip(_COLUMNS.split(", "), row, strict=True))
    found["state"] = IntentState(found["state"])
    found["task_id"] = found["task_id"] or ""
    found["expects_callback"] = bool(found["expects_callback"])
    return Intent(**found)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _append(path: Path, line: str) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
