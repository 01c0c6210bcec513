"""Connections to a real PostgreSQL: what they keep where no pooler stands in between, and when they go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from support.pooler import pooler

from kie_async.journal.postgres_connections import Connections
from kie_async.journal.postgres_database import UNFLUSHED, PostgresDatabase, Single, fetching

PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%mine%'"
SLOW = "SELECT pg_sleep(0.1) AS mine"
"""So slow that each of several, asked at once, has a connection of its own."""


@asynccontextmanager
async def opened(place: Any) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(place, "public")
    await database.open()
    try:
        yield database
    finally:
        await database.aclose()


async def value_of(database: PostgresDatabase, query: str) -> Any:
    return (await database.run(fetching(query)))[0][0]


async def test_a_direct_connection_keeps_what_it_prepared(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as database:
        for _ in range(2):
            await database.run(fetching("SELECT 1 AS mine"))
        assert database.is_direct
        assert await value_of(database, PREPARED) == 2  # that question too


async def test_behind_a_pooler_nothing_stays_prepared_and_that_is_said_once(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kie_async")
    async with pooler(postgres_dsn) as url, opened(url) as database:
        await asyncio.gather(*(database.run(fetching(SLOW)) for _ in range(4)))
        assert not database.is_direct
        assert await value_of(database, PREPARED) == 0
    assert caplog.text.count("a pooler stands before the database") == 1


async def test_a_pool_that_was_given_is_taken_for_a_pooler(postgres_dsn: str) -> None:
    async with asyncpg.create_pool(postgres_dsn, min_size=1, max_size=3) as pool, opened(pool) as database:
        assert not database.is_direct
        assert await value_of(database, "SHOW search_path") == "public"
        assert await pool.fetchval("SHOW search_path") == '"$user", public'


async def test_what_another_process_has_prepared_is_prepared_anew(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kie_async")
    forget = "SELECT pg_sleep(0.1); DEALLOCATE ALL"
    async with opened(postgres_dsn) as database:
        await asyncio.gather(*(database.run(fetching(SLOW)) for _ in range(4)))
        await asyncio.gather(*(database.run(lambda db: db.execute(forget)) for _ in range(4)))
        assert database.is_direct
        await asyncio.gather(*(database.run(fetching(SLOW)) for _ in range(4)))
        assert not database.is_direct
        assert await value_of(database, PREPARED) == 0
    assert caplog.text.count("has what was prepared") == 1


async def test_a_single_statement_waits_for_the_disk_whatever_the_role_has(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    name = urlsplit(postgres_dsn).path[1:]
    await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await connection.close()
    async with opened(postgres_dsn) as database:
        for _ in range(2):
            assert await value_of(database, "SHOW synchronous_commit") == "on"
            assert await value_of(database, f"SELECT {UNFLUSHED}") == "off"  # for this one alone


async def test_what_a_single_statement_leaves_open_is_done_in_a_transaction(postgres_dsn: str) -> None:
    async def nothing(db: Any) -> int | None:
        return await db.fetchval("SELECT NULL::int")  # type: ignore[no-any-return]

    async def much(db: Any) -> int:
        await db.execute("CREATE TABLE t(n int)")
        await db.execute("INSERT INTO t VALUES (7)")
        return await db.fetchval("SELECT n FROM t")  # type: ignore[no-any-return]

    async with opened(postgres_dsn) as database:
        assert await database.run(Single(nothing, much)) == 7


async def test_a_connection_that_nobody_needed_for_long_is_closed(postgres_dsn: str) -> None:
    connections = Connections(postgres_dsn, "public", idle_s=0.2)
    both = [await connections.acquire() for _ in range(2)]
    for connection in both:
        await connections.release(connection)
    await asyncio.sleep(0.3)
    assert await connections.acquire() is both[1]
    await connections.release(both[1])
    assert [connection.is_closed() for connection in both] == [True, False]
    await connections.aclose()
    assert both[1].is_closed()
