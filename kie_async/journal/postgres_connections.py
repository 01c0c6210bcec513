"""Keeps the connections of a journal on PostgreSQL, and finds out whether a pooler stands in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, cast

import attrs

if TYPE_CHECKING:
    import asyncpg

    PoolConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection = PoolConnection | asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # the driver is an extra: without it nothing here may fail to be imported
    Connection = Pool = object

CONNECT_S = 5.0

_IDLE_S = 300.0
"""After so long a connection that nobody needed is closed: hundreds of workers may share a server."""

# A pooler tells its clients numbers of its own, not those of the server's processes. One message is one
# transaction: if this one does not belong to the connection, nothing is set.
_BEGIN_DIRECT = """
DO $$BEGIN IF pg_backend_pid() <> {pid} THEN RAISE 'a pooler stands before the database'; END IF; END$$;
SET synchronous_commit = on; SET default_transaction_isolation = 'read committed';
SET search_path = "{schema}"
"""

_STARTED_AT = "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"

_log = logging.getLogger("kie_async")


@attrs.frozen
class ServerProcess:
    """A connection as the server knows it; *pid* alone may be another one's later."""

    pid: int
    started_at: datetime


class Connections:
    """The connections of a journal: of its own to a DSN, or those of a pool that was given.

    Where *is_direct* is set, each leads to one process of the server from begin to end, which keeps the
    schema, commits that wait for the disk, and the statements that it has prepared. A pooler in transaction
    mode takes another process for each transaction, and of a pool that was given nothing is known.
    """

    def __init__(self, given: str | Pool, schema: str, *, idle_s: float = _IDLE_S) -> None:
        self._given = given
        self._idle_s = idle_s
        self._schema = schema
        self.is_direct = isinstance(given, str)
        self.given_up: set[ServerProcess] = set()
        """Who may yet run the last that was sent to it, though nobody waits for that."""
        self._processes: dict[Connection, ServerProcess] = {}
        self._idle: deque[tuple[float, Connection]] = deque()

    async def acquire(self) -> Connection:
        """Return a connection that nobody else has, by preference the one that was used last."""
        if not isinstance(self._given, str):
            return await self._given.acquire(timeout=CONNECT_S)
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._processes.pop(connection, None)
        return await self._connect(self._given)

    async def release(self, connection: Connection) -> None:
        """Take back a connection of `acquire`; one that is closed may have been in the middle of a job."""
        if not isinstance(self._given, str):
            await self._given.release(cast("PoolConnection", connection), timeout=CONNECT_S)
        elif connection.is_closed():
            if process := self._processes.pop(connection, None):
                self.given_up.add(process)
        elif connection in self._processes and not self.is_direct:
            self._terminate(connection)
        else:
            now = time.monotonic()
            self._idle.append((now, connection))
            if self._idle[0][0] < now - self._idle_s:
                self._terminate(self._idle.popleft()[1])

    async def disconnect(self, connection: Connection) -> None:
        """Give back a connection of `acquire` that is not to be used again."""
        self._processes.pop(connection, None)
        try:
            async with asyncio.timeout(CONNECT_S):
                if isinstance(self._given, str):
                    await connection.close()
                else:
                    await connection.reset(timeout=CONNECT_S)  # or the pool warns of who listens
                    await self._given.release(cast("PoolConnection", connection))
        except Exception:
            with suppress(Exception):  # a pool that was closed has ended it
                connection.terminate()

    async def aclose(self) -> None:
        """Close what nobody has; a pool that was given stays open."""
        idle = [connection for _, connection in self._idle]
        self._idle.clear()
        await asyncio.gather(*map(self.disconnect, idle))

    def assume_pooler(self, why: str) -> bool:
        """Go on as behind a pooler, for good; tell whether that can help."""
        if self.is_direct:
            self.is_direct = False
            _log.info("each statement is prepared anew from now on, since %s", why)
            while self._idle:
                self._terminate(self._idle.pop()[1])
        return isinstance(self._given, str)

    async def _connect(self, dsn: str) -> Connection:
        import asyncpg

        if self.is_direct:
            connection = await asyncpg.connect(dsn, timeout=CONNECT_S)
            try:
                await self._begin_direct(connection)
                return connection
            except asyncpg.RaiseError as exc:
                await self.disconnect(connection)
                self.assume_pooler(str(exc))
            except BaseException:
                connection.terminate()
                raise
        return await asyncpg.connect(dsn, timeout=CONNECT_S, statement_cache_size=0)

    async def _begin_direct(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        pid = connection.get_server_pid()
        await connection.execute(_BEGIN_DIRECT.format(pid=pid, schema=self._schema), timeout=CONNECT_S)
        started_at = await connection.fetchval(_STARTED_AT, timeout=CONNECT_S)
        self._processes[connection] = ServerProcess(pid, started_at)

    def _terminate(self, connection: Connection) -> None:
        self._processes.pop(connection, None)
        connection.terminate()
