"""Runs jobs on a PostgreSQL database, each in a transaction of its own, and says what went wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from .._background import BackgroundTasks
from ..errors import InvalidRequest, JournalAway, JournalError, JournalFull
from .base import RefTaken, TaskAlreadyBound

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    OwnConnection = Connection | asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # the driver is an extra: without it nothing here may fail to be imported
    Connection = OwnConnection = Pool = object

MAX_CONNECTIONS = 4
"""Of one session's pool, besides the one that listens: jobs are short, and hundreds of workers may share."""

CONNECT_S = 5.0

ANSWER_S = 10.0
"""So long a transaction may take, since it touches a few rows. One that asks nothing for half of it has a
worker that is frozen or gone: the server ends it, or its locks would hold up all others."""

UNFLUSHED = "set_config('synchronous_commit', 'off', true)"
"""Returned by a statement whose commit need not wait for the disk. The next one that waits takes it along."""

_RETRY_S = 0.25

_CONFLICTS = 5
"""So often a transaction is run again that met another one."""

_AWAY_STATES = re.compile("08|57P|53300|25006|25P03")
"""SQLSTATEs of a server that is shutting down, starting, full of connections, read-only after a failover, or
tired of a transaction in which nothing happens.
https://www.postgresql.org/docs/current/errcodes-appendix.html"""

_CONFLICT_STATES = ("40001", "40P01", "55P03")

_FULL_STATE, _UNIQUE_STATE, _ZERO_BYTE_STATE = "53100", "23505", "22021"

# By a name of its own, which the command line lets through.
_log = logging.getLogger("kie_async.weather")

_T = TypeVar("_T")

Job = Callable[[Connection], Awaitable[_T]]


def import_asyncpg() -> None:
    """Raise in one sentence if the driver is not installed.

    Raises:
        InvalidRequest: It is not.
    """
    try:
        import asyncpg  # noqa: F401
    except ImportError:
        raise InvalidRequest(
            "a journal on PostgreSQL needs asyncpg: pip install 'kie_async[postgres]'"
        ) from None


@attrs.define
class _Absence:
    """Since when the database does not answer, said once when it begins and once when it is over."""

    since: float = math.inf
    failed_at: float = -math.inf

    def note_failure(self, label: str, why: str) -> None:
        self.failed_at = time.monotonic()
        if self.since == math.inf:
            self.since = time.monotonic()
            _log.warning("%s cannot be reached; nothing is created meanwhile, tasks go on: %s", label, why)

    @property
    def is_going_on(self) -> bool:
        return self.since < math.inf

    def note_answer(self, label: str) -> None:
        if self.is_going_on:
            _log.warning("%s answers again, after %.0f s", label, time.monotonic() - self.since)
            self.since = math.inf


class PostgresDatabase:
    """A pool of connections to the database of a journal, whose tables are in *schema*.

    No password is ever in a message: *label* stands for the journal.
    """

    def __init__(self, dsn_or_pool: str | Pool, schema: str, *, answer_s: float = ANSWER_S) -> None:
        self._given = dsn_or_pool
        self._answer_s = answer_s
        # Whoever waits for a connection of ours does not wait for the database.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self.schema = schema
        self.worker_id = ""
        """Whose reads tell other workers' intents from its own."""
        self._pool: Pool | None = None
        self._is_closing = False
        self._jobs = BackgroundTasks("kie_async journal")
        self._absence = _Absence()

    @property
    def label(self) -> str:
        """Return what messages call it."""
        return f"the journal on PostgreSQL ({self.schema})"

    def act_as(self, worker_id: str) -> None:
        """Read from now on as this worker; as nobody, if it is empty."""
        self.worker_id = worker_id

    @property
    def is_open(self) -> bool:
        """Tell whether jobs are taken."""
        return self._pool is not None

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, or take the pool that was given.

        Raises:
            JournalError: That cannot be done; the message says why.
        """
        if self._pool is not None:
            raise JournalError(f"{self.label} is open already")
        import asyncpg

        self._is_closing = False

        if not isinstance(self._given, str):
            self._pool = self._given
            return
        try:
            pool = await asyncpg.create_pool(
                self._given,
                min_size=0,  # else the pool itself tries to reconnect, and logs each failure
                max_size=MAX_CONNECTIONS,
                timeout=CONNECT_S,
                # A pooler in transaction mode gives each transaction another server connection.
                statement_cache_size=0,
                reset=_keep,
            )
            async with pool.acquire(timeout=CONNECT_S):
                self._pool = pool
        except Exception as exc:
            raise self._error_from(exc) from None

    async def finish_jobs(self) -> None:
        """Finish what was begun, and take nothing more but the last jobs."""
        self._is_closing = True
        await self._jobs.drain()

    async def aclose(self) -> None:
        """Finish what was begun and disconnect; a pool that was given stays open."""
        await self._jobs.drain()
        pool, self._pool = self._pool, None
        if pool is not None and pool is not self._given:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await pool.close()
            except Exception:
                pool.terminate()

    async def connect(self) -> OwnConnection:
        """Return a connection beside the pool's, for the caller to keep and to close.

        Raises:
            JournalError: It cannot be had.
        """
        import asyncpg

        try:
            async with asyncio.timeout(CONNECT_S):
                if isinstance(self._given, str):
                    return await asyncpg.connect(self._given, timeout=CONNECT_S, statement_cache_size=0)
                return await self._given.acquire()
        except Exception as exc:
            raise self._note_failure(exc) from None

    async def disconnect(self, connection: OwnConnection) -> None:
        """Give a connection of `connect` up."""
        try:
            async with asyncio.timeout(CONNECT_S):
                if isinstance(self._given, str):
                    await connection.close()
                else:
                    await self._given.release(cast("Connection", connection))
        except Exception:
            connection.terminate()

    # --- jobs ----------------------------------------------------------------------------------

    async def run(self, job: Job[_T], *, patience_s: float = 0.0, is_last: bool = False) -> _T:
        """Run *job* in a transaction and return when what it did is durable; see `start`.

        Whoever is cancelled stops waiting; the job goes on, since a commit that may have happened cannot be
        undone.

        Raises:
            JournalAway: The database was away; it may have been committed all the same.
            JournalError: It was not committed.
        """
        running = self.start(job, patience_s=patience_s, is_last=is_last)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(_take_error)
            raise

    def start(self, job: Job[_T], *, patience_s: float = 0.0, is_last: bool = False) -> asyncio.Task[_T]:
        """Begin to run *job* in a transaction.

        While the database is away it is tried again for *patience_s*. One that *is_last* is taken after
        `finish_jobs` too.

        Raises:
            JournalError: It is closed.
        """
        if self._is_closing and not is_last:
            raise JournalError(f"{self.label} is closed")
        return self._jobs.spawn(self._run_patiently(job, patience_s))

    async def _run_patiently(self, job: Job[_T], patience_s: float) -> _T:
        gives_up_at = time.monotonic() + patience_s
        while True:
            try:
                return await self._run_again(job)
            except JournalAway:
                if time.monotonic() + _RETRY_S >= gives_up_at:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _run_again(self, job: Job[_T]) -> _T:
        """Run *job* again after it met another transaction."""
        import asyncpg

        for _ in range(_CONFLICTS):
            try:
                return await self._run_in_turn(job)
            except asyncpg.PostgresError as exc:
                if exc.sqlstate not in _CONFLICT_STATES:
                    raise self._note_failure(exc) from None
            except JournalError:
                raise
            except Exception as exc:
                raise self._note_failure(exc) from None
        raise JournalError(f"{self.label} is too busy: a transaction met others {_CONFLICTS} times")

    async def _run_in_turn(self, job: Job[_T]) -> _T:
        """Run *job* when a connection is free; not if nobody has answered meanwhile."""
        queued_at = time.monotonic()
        async with self._turns:
            is_late = time.monotonic() - queued_at > self._answer_s / 2
            if is_late and self._absence.is_going_on and self._absence.failed_at > queued_at:
                raise JournalAway(f"{self.label} cannot be reached: it has not answered others either")
            return await self._run_once(job)

    async def _run_once(self, job: Job[_T]) -> _T:
        import asyncpg

        if self._pool is None:
            raise JournalError(f"{self.label} is closed")
        async with asyncio.timeout(self._answer_s):
            connection = await self._pool.acquire(timeout=CONNECT_S)
            try:
                await connection.execute(self.begin)
                made = await job(connection)
                await connection.execute("COMMIT")
            except (asyncpg.PostgresError, JournalError):
                with suppress(Exception):
                    await connection.execute("ROLLBACK")
                raise
            except BaseException:  # no answer in time, or a lost connection: another query gets none either
                connection.terminate()
                raise
            finally:
                await self._release(connection)
        self._absence.note_answer(self.label)
        return made

    async def _release(self, connection: Connection) -> None:
        if self._pool is None:
            return
        with suppress(Exception):  # the pool itself drops what it cannot reset
            await self._pool.release(connection, timeout=CONNECT_S)

    @property
    def begin(self) -> str:
        """Return what begins a transaction: no commit is answered before it is on the disk."""
        return (
            f'BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL search_path = "{self.schema}"; '
            f"SET LOCAL kie_async.worker = '{self.worker_id}'; "
            f"SET LOCAL idle_in_transaction_session_timeout = {self._answer_s * 500:.0f}"
        )

    async def listen(
        self, connection: OwnConnection, channel: str, listener: Callable[[object, int, str, object], None]
    ) -> None:
        """Call *listener* with each notification that comes on a connection of `connect`.

        Raises:
            JournalError: The connection is lost.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.add_listener(channel, listener)
        except Exception as exc:
            raise self._note_failure(exc) from None

    async def fetch_row(
        self, connection: OwnConnection, query: str, *values: object, within_s: float
    ) -> Mapping[str, Any] | None:
        """Return the one row of a query on a connection of `connect`, in a transaction.

        Raises:
            JournalError: The connection is lost.
        """
        try:
            async with asyncio.timeout(within_s):
                await connection.execute(self.begin)
                row = await connection.fetchrow(query, *values)
                await connection.execute("COMMIT")
                return None if row is None else dict(row)
        except Exception as exc:
            raise self._note_failure(exc) from None

    # --- what went wrong -----------------------------------------------------------------------

    def _note_failure(self, exc: Exception) -> JournalError:
        error = self._error_from(exc)
        if isinstance(error, JournalAway):
            self._absence.note_failure(self.label, str(exc) or type(exc).__name__)
        return error

    def _error_from(self, exc: Exception) -> JournalError:
        """Return the error of ours for one of the driver; what it says of a DSN may hold the password."""
        import asyncpg

        if isinstance(exc, JournalError):
            return exc
        if isinstance(exc, asyncpg.PostgresError):
            return self._error_from_server(exc)
        if isinstance(exc, (UnicodeError, asyncpg.DataError)):
            return JournalError(f"{self.label} cannot hold this text")
        if isinstance(exc, (asyncpg.exceptions.ClientConfigurationError, ValueError)):
            return JournalError(
                "the URL of the journal is no PostgreSQL URL: postgresql://user@host/database"
            )
        # The driver calls its own error what comes of a server that ends a connection in the middle.
        if isinstance(exc, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
            why = "no answer in time" if isinstance(exc, TimeoutError) else _first_line(exc)
            return JournalAway(f"{self.label} cannot be reached: {why}")
        raise exc

    def _error_from_server(self, exc: asyncpg.PostgresError) -> JournalError:
        why, state = _first_line(exc), exc.sqlstate or ""
        if state == _FULL_STATE:
            return JournalFull(f"the disk of {self.label} is full: {why}")
        if state == _UNIQUE_STATE and exc.constraint_name == "intent_ref_key":
            return RefTaken("another worker was faster with this ref; nothing was sent")
        if state == _UNIQUE_STATE and exc.constraint_name == "intent_task_id_key":
            return TaskAlreadyBound("the task belongs to another intent")
        if state == _ZERO_BYTE_STATE:
            return JournalError(f"{self.label} cannot hold this text: {why}")
        if _AWAY_STATES.match(state):
            return JournalAway(f"{self.label} cannot be reached: {why}")
        return JournalError(f"{self.label} refused: {why}")


async def _keep(_: object) -> None:
    """Give a connection back as it is: whatever a job sets lasts for its transaction."""


def _take_error(job: asyncio.Task[Any]) -> None:
    """Have nobody complain of an error that nobody waits for any more."""
    if not job.cancelled():
        job.exception()


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
