"""Notes of one intent on PostgreSQL keep their order, though jobs run side by side and answers get lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from support.journals import intent

from kie_async import PostgresJournal
from kie_async.journal import postgres_queries as sql
from kie_async.journal.base import RefTaken
from kie_async.journal.intents import IntentState


@pytest.fixture
async def journal(postgres_dsn: str) -> AsyncIterator[PostgresJournal]:
    opened = PostgresJournal(postgres_dsn)
    await opened.open()
    yield opened
    await opened.aclose()


@asynccontextmanager
async def transaction(dsn: str) -> AsyncIterator[Any]:
    """Give a connection in a transaction of its own, which is committed at the end."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "kie_async_main"})
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def state_of(journal: PostgresJournal, intent_id: str) -> IntentState | None:
    found = await journal.find_by_intent(intent_id)
    return None if found is None else found.state


async def test_what_is_taken_back_after_a_cancel_waits_for_what_was_begun(
    journal: PostgresJournal, postgres_dsn: str
) -> None:
    async with transaction(postgres_dsn) as db:
        await db.execute("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE")  # which only a create reads
        sending = asyncio.ensure_future(journal.mark_sending(intent()))
        await asyncio.sleep(0.2)
        sending.cancel()
        unsent = asyncio.ensure_future(journal.mark_unsent("i1"))
        await asyncio.sleep(0.2)
        assert not unsent.done()
    await unsent
    assert await state_of(journal, "i1") is IntentState.PLANNED


async def test_an_end_waits_for_the_commit_that_was_given_up(
    journal: PostgresJournal, postgres_dsn: str
) -> None:
    async with transaction(postgres_dsn) as given_up:
        values = ("i1", journal.worker_id, "r1", "m", b"", None, False, "", None, None)
        assert await given_up.fetchval(sql.SEND_IF_FREE, *values, 10.0, 0)
        ending = asyncio.ensure_future(journal.mark_ended("i1", IntentState.NOT_CREATED))
        await asyncio.sleep(0.3)
        assert not ending.done()
    await ending
    assert await state_of(journal, "i1") is IntentState.NOT_CREATED


async def test_what_was_never_noted_needs_no_taking_back(journal: PostgresJournal) -> None:
    await journal.mark_unsent("i1")
    assert await state_of(journal, "i1") is None


async def test_nobody_complains_of_a_note_that_failed_after_its_cancel(
    journal: PostgresJournal, postgres_dsn: str
) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await journal.mark_sending(intent(1, ref="r"))
    async with transaction(postgres_dsn) as db:
        await db.execute("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE")
        sending = asyncio.ensure_future(journal.mark_sending(intent(2, ref="r")))
        await asyncio.sleep(0.2)
        sending.cancel()
    await journal.mark_unsent("i2")
    with pytest.raises(RefTaken):
        await journal.mark_sending(intent(3, ref="r"))
    assert await state_of(journal, "i2") is None
    del sending
    await asyncio.sleep(0)
    assert not complaints
