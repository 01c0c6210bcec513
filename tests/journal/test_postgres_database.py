"""Jobs on a real PostgreSQL: who waits for whom, and what a server that goes away looks like."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from support.postgres import OwnPostgres

from kie_async import JournalError
from kie_async.errors import JournalAway
from kie_async.journal.postgres_database import MAX_CONNECTIONS, Connection, PostgresDatabase

Open = Callable[..., "asyncio.Future[PostgresDatabase]"]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Return a function that opens a database, to be closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(dsn: str, **options: float) -> PostgresDatabase:
            database = PostgresDatabase(dsn, "public", **options)
            await database.open()
            stack.push_async_callback(database.aclose)
            return database

        yield open_one  # type: ignore[misc]


async def test_a_crowd_of_jobs_waits_for_its_connections_however_long(
    postgres_dsn: str, opened: Open
) -> None:
    database = await opened(postgres_dsn, answer_s=1.0)
    began = time.monotonic()
    jobs = [database.run(lambda db: db.execute("SELECT pg_sleep(0.2)")) for _ in range(MAX_CONNECTIONS * 8)]
    await asyncio.gather(*jobs)
    assert time.monotonic() - began > 1.5  # each was answered in time, though most waited for longer


async def test_a_crowd_does_not_try_one_by_one_a_server_that_answers_nobody(
    own_postgres: OwnPostgres, opened: Open
) -> None:
    server = own_postgres()
    database = await opened(server.dsn, answer_s=0.5)
    await asyncio.gather(*[database.run(lambda db: db.execute("SELECT pg_sleep(0.1)")) for _ in range(4)])
    server.freeze()
    began = time.monotonic()
    jobs = [database.run(lambda db: db.execute("SELECT 1")) for _ in range(MAX_CONNECTIONS * 20)]
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    server.thaw()
    assert {type(outcome) for outcome in outcomes} == {JournalAway}
    assert time.monotonic() - began < 8.0


async def test_a_worker_that_freezes_in_a_transaction_holds_up_nobody_for_long(
    postgres_dsn: str, opened: Open
) -> None:
    frozen, other = await opened(postgres_dsn, answer_s=4.0), await opened(postgres_dsn, answer_s=60.0)
    await other.run(lambda db: db.execute("CREATE TABLE public.thing(key text PRIMARY KEY)"))
    add = "INSERT INTO public.thing VALUES ('mine')"
    has_added, wakes = asyncio.Event(), asyncio.Event()

    async def add_and_freeze(db: Connection) -> None:
        await db.execute(add)
        has_added.set()
        await wakes.wait()

    freezing = asyncio.ensure_future(frozen.run(add_and_freeze))
    await has_added.wait()
    await other.run(lambda db: db.execute(add))
    assert not freezing.done()
    wakes.set()
    with pytest.raises(JournalError):
        await freezing


async def test_a_restart_of_the_server_is_said_once_and_by_the_journal_alone(
    own_postgres: OwnPostgres, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres()
    database = await opened(server.dsn)
    with caplog.at_level(logging.INFO):
        server.kill()
        with pytest.raises(JournalAway):
            await database.run(lambda db: db.execute("SELECT 1"))
        await asyncio.sleep(0.2)  # whoever tries to reconnect of its own accord fails in this time
        server.start()
        await database.run(lambda db: db.execute("SELECT 1"), patience_s=20)
    assert len(caplog.records) == 2, caplog.text
    assert all(record.name.startswith("kie_async") for record in caplog.records), caplog.text
