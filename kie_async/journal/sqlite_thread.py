"""One connection to SQLite in one thread: jobs run in the order they came, many in one commit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from ..errors import JournalError
from .sqlite_file import JournalFile

_GROUP = 256

_GAP_S = 0.004
"""From one group to the next. A lone note is committed at once; a crowd gathers: a commit costs more."""

_T = TypeVar("_T")

_JOB_ERRORS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
"""SQLite's errors that are one job's; any other is the file's, and takes back all that were to be noted."""

_Answer = tuple[asyncio.Future[Any], Any, JournalError | None]


@attrs.frozen
class _Asked:
    """A job, who waits for it, and what to do if it cannot be committed."""

    job: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    rescue: Callable[[], None] | None


class SqliteThread:
    """Runs jobs on a journal's file. The connection never leaves the thread, so a fork cannot close it."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        """Set when it is closing: then nothing more is worth waiting for."""
        self._rests_until = 0.0
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._is_over = False

    async def start(self) -> None:
        """Open the file.

        Raises:
            JournalError: It cannot be opened or trusted.
        """
        started: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._serve, args=(started,), name="kie_async journal", daemon=True).start()
        await started

    async def run(
        self, job: Callable[[sqlite3.Connection], _T], *, rescue: Callable[[], None] | None = None
    ) -> _T:
        """Run *job* and return when what it did is durable; *rescue* runs in the thread if it cannot be.

        Raises:
            JournalError: It was not committed.
        """
        if os.getpid() != self._pid:
            raise JournalError(f"journal {self._file.path} belongs to the process before the fork")
        if self._is_over:
            raise JournalError(f"journal {self._file.path} is closed")
        done: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put(_Asked(job, done, rescue))  # from here on it is done, whatever becomes of the loop
        return await done

    async def aclose(self) -> None:
        """Finish what was asked and let go of the file."""
        if os.getpid() == self._pid:
            self._is_over = True
            self._hurry.set()
            self._jobs.put(None)
            await asyncio.shield(self._ended)

    # --- in the thread -------------------------------------------------------------------------

    def _serve(self, started: asyncio.Future[None]) -> None:
        try:
            db = self._file.connect()
        except Exception as exc:
            self._is_over = True
            self._tell([(started, None, self._file.error_from(exc)), (self._ended, None, None)])
            return
        self._tell([(started, None, None)])
        while group := self._next_group():
            self._tell(self._commit(db, group))
        self._file.disconnect(db)
        self._tell([(self._ended, None, None)])

    def _next_group(self) -> list[_Asked]:
        """Return what waits to be done, at least one job; nothing when it is over."""
        group: list[_Asked] = []
        while not group or (len(group) < _GROUP and not self._jobs.empty()):
            if (asked := self._jobs.get()) is None:
                self._jobs.put(None)  # to be met again after this group
                break
            group.append(asked)
            if len(group) == 1 and (rest_s := self._rests_until - time.monotonic()) > 0:
                self._hurry.wait(rest_s)
        self._rests_until = time.monotonic() + _GAP_S
        return group

    def _commit(self, db: sqlite3.Connection, group: list[_Asked]) -> list[_Answer]:
        """Run a group of jobs in one transaction; if one fails by itself, each gets one of its own."""
        answers: list[_Answer] = []
        try:
            if self._file.distrust:
                raise JournalError(self._file.distrust)
            db.execute("BEGIN IMMEDIATE")
            for asked in group:
                answers.append((asked.done, asked.job(db), None))  # noqa: PERF401  (those before a failure count)
            db.execute("COMMIT")
            self._file.check()
        except Exception as exc:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            is_of_one_job = len(answers) < len(group) and self._is_of_the_job(exc)
            if is_of_one_job and len(group) > 1:
                return [answer for asked in group for answer in self._commit(db, [asked])]
            error = self._file.error_from(exc)
            for asked in group:
                if asked.rescue is not None and not is_of_one_job:
                    with contextlib.suppress(OSError):  # the error that goes up tells what is lost
                        asked.rescue()
            return [(asked.done, None, type(error)(*error.args)) for asked in group]
        return answers

    def _is_of_the_job(self, exc: Exception) -> bool:
        """Tell whether one job failed by itself, and not the file under all of them."""
        is_of_sqlite = isinstance(exc, sqlite3.Error) and not isinstance(exc, _JOB_ERRORS)
        return not is_of_sqlite and not self._file.distrust

    def _tell(self, answers: list[_Answer]) -> None:
        def tell() -> None:
            for done, value, error in answers:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(tell)
