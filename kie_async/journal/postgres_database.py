"""Runs jobs on a PostgreSQL database, each in a transaction of its own, and says what went wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from .._background import BackgroundTasks
from ..errors import InvalidRequest, JournalAway, JournalError, JournalFull, KieError
from .postgres_connections import CONNECT_S, Connection, Connections, Pool
from .postgres_errors import error_from

if TYPE_CHECKING:
    import asyncpg

MAX_CONNECTIONS = 4
"""Of one journal, besides the one that listens: jobs are short, and hundreds of workers may share."""

ANSWER_S = 10.0
"""So long a transaction may take, since it touches a few rows. One that asks nothing for half of it has a
worker that is frozen or gone: the server ends it, or its locks would hold up all others."""

UNFLUSHED = "set_config('synchronous_commit', 'off', true)"
"""Returned by a statement whose commit need not wait for the disk. The next one that waits takes it along."""

_RETRY_S = 0.25

_CONFLICTS = 5
"""So often a transaction is run again that met another one."""

_CONFLICT_STATES = ("40001", "40P01", "55P03")

_LOST_STATEMENT_STATES = ("26000", "42P05")
"""What is said of a prepared statement where another process has it: nothing was done."""

_ENDED_WITHIN_MS = 5_000

_END_PROCESS = (
    "SELECT pg_terminate_backend(pid, $3) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2"
)

# By a name of its own, which the command line lets through.
_log = logging.getLogger("kie_async.weather")

PASSING = (JournalAway, JournalFull)
"""What is true may be noted later all the same."""

_T = TypeVar("_T")

Job = Callable[[Connection], Awaitable[_T]]


@attrs.frozen
class Single(Generic[_T]):
    """A job of a single *statement*, which is committed by itself: one round trip instead of three.

    Whoever gives it up does not know whether it is yet to begin; see `PostgresDatabase.end_given_up`. If it
    returns None, *otherwise* is run, in a transaction as every job.
    """

    statement: Job[_T | None]
    otherwise: Job[_T]

    async def __call__(self, db: Connection) -> _T:
        """Run it as a job like any other."""
        made = await self.statement(db)
        return await self.otherwise(db) if made is None else made


def fetching(query: str, *values: object) -> Single[list[asyncpg.Record]]:
    """Return the job of one statement, whose rows it returns; it must not ask whose an intent is."""

    async def fetch(db: Connection) -> list[asyncpg.Record]:
        return await db.fetch(query, *values)

    return Single(fetch, fetch)


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
        self._answer_s = answer_s
        self._connections = Connections(dsn_or_pool, schema)
        # Whoever waits for a connection of ours does not wait for the database.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self.schema = schema
        self.worker_id = ""
        """Whose reads tell other workers' intents from its own."""
        self._is_open = False
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
        return self._is_open

    @property
    def is_direct(self) -> bool:
        """Tell whether no pooler stands before the database; see `Connections`."""
        return self._connections.is_direct

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; a pool that was given is connected when it is needed.

        Raises:
            JournalError: That cannot be done; the message says why.
        """
        if self._is_open:
            raise JournalError(f"{self.label} is open already")
        try:
            await self._connections.release(await self._connections.acquire())
        except Exception as exc:
            raise error_from(exc, self.label) from None
        self._is_open, self._is_closing = True, False

    async def finish_jobs(self) -> None:
        """Finish what was begun, and take nothing more but the last jobs."""
        self._is_closing = True
        await self._jobs.drain()

    async def aclose(self) -> None:
        """Finish what was begun and disconnect; a pool that was given stays open."""
        await self._jobs.drain()
        self._is_open = False
        await self._connections.aclose()

    async def connect(self) -> Connection:
        """Return a connection for the caller to keep, besides those of the jobs.

        Raises:
            JournalError: It cannot be had.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._connections.acquire()
        except Exception as exc:
            raise self._note_failure(exc) from None

    async def disconnect(self, connection: Connection) -> None:
        """Give a connection of `connect` up."""
        await self._connections.disconnect(connection)

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

        While the database is away it is tried again for *patience_s*, or until the close. One that *is_last*
        is taken after `finish_jobs` too.

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
            except PASSING:
                if self._is_closing or time.monotonic() + _RETRY_S >= gives_up_at:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _run_again(self, job: Job[_T]) -> _T:
        """Run *job* again after it met another transaction."""
        import asyncpg

        for _ in range(_CONFLICTS):
            try:
                return await self._run_in_turn(job)
            except asyncpg.PostgresError as exc:
                if exc.sqlstate not in _CONFLICT_STATES and not self._has_lost_statement(exc):
                    raise self._note_failure(exc) from None
            except JournalError:
                raise
            except Exception as exc:
                raise self._note_failure(exc) from None
        raise JournalAway(f"{self.label} is too busy: a transaction met others {_CONFLICTS} times")

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

        if not self._is_open:
            raise JournalError(f"{self.label} is closed")
        async with asyncio.timeout(self._answer_s):
            connection = await self._connections.acquire()
            try:
                made = await self._run_on(connection, job)
            except (asyncpg.PostgresError, KieError):
                with suppress(Exception):
                    if connection.is_in_transaction():
                        await connection.execute("ROLLBACK")
                raise
            except BaseException:  # no answer in time, or a lost connection: another query gets none either
                connection.terminate()
                raise
            finally:
                with suppress(Exception):  # a pool itself drops what it cannot reset
                    await self._connections.release(connection)
        self._absence.note_answer(self.label)
        return made

    async def _run_on(self, connection: Connection, job: Job[_T]) -> _T:
        if isinstance(job, Single) and self.is_direct:
            made: _T | None = await job.statement(connection)
            if made is not None:
                return made
            job = job.otherwise
        await connection.execute(self.begin)
        done = await job(connection)
        await connection.execute("COMMIT")
        return done

    def _has_lost_statement(self, exc: asyncpg.PostgresError) -> bool:
        """Tell whether a job may go on without what was prepared, which another process has."""
        is_lost = exc.sqlstate in _LOST_STATEMENT_STATES
        return is_lost and self._connections.assume_pooler("another process has what was prepared")

    async def end_given_up(self, db: Connection) -> None:
        """End each process of the server that was given up in the middle of something, or before it began.

        Raises:
            JournalAway: One goes on.
        """
        for process in list(self._connections.given_up):
            has_ended = await db.fetchval(_END_PROCESS, process.pid, process.started_at, _ENDED_WITHIN_MS)
            if has_ended is False:
                raise JournalAway(f"{self.label} is yet to end what was given up")
            self._connections.given_up.discard(process)

    @property
    def begin(self) -> str:
        """Return what begins a transaction: no commit is answered before it is on the disk."""
        return (
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; "
            f'SET LOCAL search_path = "{self.schema}"; '
            f"SET LOCAL kie_async.worker = '{self.worker_id}'; "
            f"SET LOCAL idle_in_transaction_session_timeout = {self._answer_s * 500:.0f}"
        )

    async def listen(
        self, connection: Connection, channel: str, listener: Callable[[object, int, str, object], None]
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
        self, connection: Connection, query: str, *values: object, within_s: float
    ) -> Mapping[str, Any] | None:
        """Return the one row of a query on a connection of `connect`, in a transaction.

        Raises:
            JournalError: The connection is lost.
        """
        try:
            async with asyncio.timeout(within_s):
                rows = await self._run_on(connection, fetching(query, *values))
                return dict(rows[0]) if rows else None
        except Exception as exc:
            raise self._note_failure(exc) from None

    # --- what went wrong -----------------------------------------------------------------------

    def _note_failure(self, exc: Exception) -> JournalError:
        error = error_from(exc, self.label)
        if isinstance(error, JournalAway):
            self._absence.note_failure(self.label, str(exc) or type(exc).__name__)
        return error


def _take_error(job: asyncio.Task[Any]) -> None:
    """Have nobody complain of an error that nobody waits for any more."""
    if not job.cancelled():
        job.exception()
