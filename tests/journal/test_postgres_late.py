"""What was given up, since nobody answered, is run by the server all the same: after what followed it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from support.journals import DONE, created, intent
from support.link import Link
from support.postgres import OwnPostgres

from kie_async import JournalAway, PostgresJournal, Rate
from kie_async.journal.intents import IntentState


class Held:
    """A journal whose line can be cut while the processes of the server that serve it stand still."""

    def __init__(self, journal: PostgresJournal, link: Link, connection: Any) -> None:
        self.journal = journal
        self._link = link
        self._connection = connection
        self._pids: list[int] = []

    async def stop(self) -> None:
        """Let those processes stand still: what is sent to them is run when they go on."""
        others = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> $1"
        rows = await self._connection.fetch(others, self._connection.get_server_pid())
        self._pids = [pid for (pid,) in rows]
        self._signal(signal.SIGSTOP)

    async def cut(self) -> None:
        """Break the line; the next connection has it whole again."""
        await asyncio.sleep(0.2)  # what was sent has come
        await self._link.cut()
        await self._link.mend()

    async def go_on(self) -> None:
        """Let the processes go on, and wait until they have run what they were sent."""
        self._signal(signal.SIGCONT)
        await asyncio.sleep(0.5)

    async def give_up_sending(self) -> None:
        """Begin to note that ``i1`` leaves, on a process that stands still, until nobody waits for that."""
        await self.journal.mark_sending(intent(0))  # from here on the statement is prepared
        await self.stop()
        sending = asyncio.ensure_future(self.journal.mark_sending(intent()))
        await self.cut()
        with pytest.raises(JournalAway):
            await sending

    def _signal(self, number: int) -> None:
        for pid in self._pids:
            os.kill(pid, number)

    async def state_of(self, intent_id: str) -> IntentState | None:
        found = await self.journal.find_by_intent(intent_id)
        return None if found is None else found.state


@pytest.fixture
async def held(own_postgres: OwnPostgres) -> AsyncIterator[Held]:
    dsn = own_postgres().dsn
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(Link(dsn))
        journal = PostgresJournal(link.database_url)
        await journal.open()
        stack.push_async_callback(journal.aclose)
        connection = await asyncpg.connect(dsn)
        stack.push_async_callback(connection.close)
        yield Held(journal, link, connection)


async def test_a_create_that_was_taken_back_is_not_noted_as_sending_later(held: Held) -> None:
    await held.give_up_sending()
    unsent = asyncio.gather(*(held.journal.mark_unsent(name) for name in ("i1", "another")))
    await asyncio.sleep(0.5)
    await held.go_on()
    await unsent
    assert await held.state_of("i1") is None


async def test_a_create_that_was_noted_after_all_is_taken_back(held: Held) -> None:
    await held.give_up_sending()
    await held.go_on()
    assert await held.state_of("i1") is IntentState.SENDING
    await held.journal.mark_ended("i1", IntentState.NOT_CREATED)
    assert await held.state_of("i1") is IntentState.NOT_CREATED


async def test_an_id_that_is_noted_twice_is_noted_once(held: Held) -> None:
    await created(held.journal, 0)
    await held.journal.mark_sending(intent(1))
    await held.stop()
    noting = asyncio.ensure_future(held.journal.mark_created("i1", "t1"))
    await held.cut()
    await noting  # on another connection
    await held.journal.mark_settled("i1", DONE)
    await held.go_on()
    assert await held.state_of("i1") is IntentState.SUCCEEDED


async def test_a_permit_that_was_given_back_twice_is_not_two(held: Held) -> None:
    permits = held.journal.share_creates(Rate(1, per_s=0.001))
    for _ in range(2):
        await permits.acquire()
        permits.release()  # from here on the statements are prepared
    await permits.acquire()
    await held.stop()
    permits.release()
    await held.cut()
    async with asyncio.timeout(20):
        await permits.acquire()  # as soon as it was given back on another connection
    await held.go_on()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await permits.acquire()
