"""Runs jobs on one SQLite connection in a thread of its own, in the order they came, many in one commit."""

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

_MAX_JOBS_A_COMMIT = 256

_COMMIT_GAP_S = 0.004
"""From one commit to the next. A lone job is committed at once; of many, more share the cost of one fsync."""

_T = TypeVar("_T")

_JOB_ERRORS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
"""SQLite's errors that one job is to blame for; any other is the file's, and fails the whole group."""

_Outcome = tuple[asyncio.Future[Any], Any, JournalError | None]


@attrs.frozen
class _Job:
    """What to run, whose future waits for it, and what to do if it cannot be committed."""

    run: Callable[[sqlite3.Connection], Any]
    waiter: asyncio.Future[Any]
    rescue: Callable[[], None] | None


class SqliteThread:
    """Runs jobs on a journal's file. The connection never leaves the thread, so that no fork can close it."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._next_commit_at = 0.0
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._takes_jobs = True

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
        if not self._takes_jobs:
            raise JournalError(f"journal {self._file.path} is closed")
        waiter: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put(_Job(job, waiter, rescue))  # from here on it is done, whatever becomes of the loop
        return await waiter

    async def aclose(self) -> None:
        """Finish the jobs that wait and let go of the file."""
        if os.getpid() == self._pid:
            self._takes_jobs = False
            self._is_closing.set()
            self._jobs.put(None)
            await asyncio.shield(self._ended)

    # --- in the thread -------------------------------------------------------------------------

    def _serve(self, started: asyncio.Future[None]) -> None:
        try:
            db = self._file.connect()
        except Exception as exc:
            self._takes_jobs = False
            self._post_outcomes([(started, None, self._file.error_from(exc)), (self._ended, None, None)])
            return
        self._post_outcomes([(started, None, None)])
        while group := self._next_group():
            self._post_outcomes(self._commit(db, group))
        self._file.disconnect(db)
        self._post_outcomes([(self._ended, None, None)])

    def _next_group(self) -> list[_Job]:
        """Return what waits to be done, at least one job; nothing when it is over."""
        group: list[_Job] = []
        while not group or (len(group) < _MAX_JOBS_A_COMMIT and not self._jobs.empty()):
            if (job := self._jobs.get()) is None:
                self._jobs.put(None)  # put back: it ends the thread only after this group
                break
            group.append(job)
            if len(group) == 1 and (wait_s := self._next_commit_at - time.monotonic()) > 0:
                self._is_closing.wait(wait_s)
        self._next_commit_at = time.monotonic() + _COMMIT_GAP_S
        return group

    def _commit(self, db: sqlite3.Connection, group: list[_Job]) -> list[_Outcome]:
        """Run a group of jobs in one transaction; if one fails by itself, each gets one of its own."""
        outcomes: list[_Outcome] = []
        try:
            if self._file.distrust:
                raise JournalError(self._file.distrust)
            # Before anything is read: an overwritten file may no longer know a ref that is paid for.
            self._file.check_content()
            db.execute(self._file.begin)
            for job in group:
                outcomes.append((job.waiter, job.run(db), None))  # noqa: PERF401  (their number shows which job failed)
            db.execute("COMMIT")
            self._file.check_identity()
        except Exception as exc:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            with contextlib.suppress(JournalError):  # what was rolled back may have grown the log
                self._file.check_identity()
            # The others of the group did nothing wrong: they are tried again, each by itself.
            is_of_one_job = len(outcomes) < len(group) and self._is_of_the_job(exc)
            if is_of_one_job and len(group) > 1:
                return [outcome for job in group for outcome in self._commit(db, [job])]
            error = self._file.error_from(exc)
            if not is_of_one_job:
                _rescue(group)
            # Each waiter gets an error of its own: one raised twice would mix up two tracebacks.
            return [(job.waiter, None, type(error)(*error.args)) for job in group]
        return outcomes

    def _is_of_the_job(self, exc: Exception) -> bool:
        """Tell whether one job failed by itself, and not the file under all of them."""
        is_of_sqlite = isinstance(exc, sqlite3.Error) and not isinstance(exc, _JOB_ERRORS)
        return not is_of_sqlite and not self._file.distrust

    def _post_outcomes(self, outcomes: list[_Outcome]) -> None:
        def post() -> None:
            for waiter, value, error in outcomes:
                if not waiter.done():
                    waiter.set_exception(error) if error else waiter.set_result(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it whoever waited
            self._loop.call_soon_threadsafe(post)


def _rescue(group: list[_Job]) -> None:
    for job in group:
        if job.rescue is not None:
            with contextlib.suppress(OSError):  # the error that the waiter gets names what is lost
                job.rescue()
