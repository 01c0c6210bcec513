"""A ref passes on from one intent to the next with its SENDING, and comes back, alike in every journal."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.journals import intent
from support.slow_journals import CommitGate, CommitWeather, Disk, ModelJournal
from support.stores import DURABLE, EVERY, MemoryStore, Store, store_of

from kie_async import JournalError, TaskRecord, TaskState
from kie_async.journal.base import Journal
from kie_async.journal.intents import IntentState

SECOND = intent(2, ref="r1", replaces="i1")


class ModelStore(MemoryStore):
    """What the kinds are compared with in other tests must do as they do."""

    def make(self, *_: object, **__: object) -> ModelJournal:
        return ModelJournal(Disk(), CommitGate(CommitWeather(random.Random(0))))


def store_or_model(request: pytest.FixtureRequest) -> Store:
    return ModelStore() if request.param == "model" else store_of(request)


@pytest.fixture(params=[*EVERY, "model"])
def store(request: pytest.FixtureRequest) -> Store:
    return store_or_model(request)


@pytest.fixture(params=[*DURABLE, "model"])
def durable_store(request: pytest.FixtureRequest) -> Store:
    return store_or_model(request)


@pytest.fixture
async def journal(store: Store) -> AsyncIterator[Journal]:
    async with store.opened() as journal:
        await journal.mark_sending(intent(1))
        yield journal


@pytest.fixture
async def durable(durable_store: Store) -> AsyncIterator[Journal]:
    async with durable_store.opened() as durable:
        await durable.mark_sending(intent(1))
        yield durable


async def refuse(journal: Journal) -> None:
    await journal.mark_ended("i1", IntentState.REJECTED, reason="oops", code=500)


async def lose(journal: Journal) -> None:
    await journal.mark_ended("i1", IntentState.UNKNOWN, reason="lost")


async def end(journal: Journal, state: TaskState) -> None:
    await journal.mark_created("i1", "t1")
    await journal.mark_settled("i1", TaskRecord(task_id="t1", state=state, raw={"state": state.value}))


async def fail(journal: Journal) -> None:
    await end(journal, TaskState.FAIL)


async def succeed(journal: Journal) -> None:
    await end(journal, TaskState.SUCCESS)


async def create(journal: Journal) -> None:
    await journal.mark_created("i1", "t1")


async def nothing(_: Journal) -> None:
    """It is on its way."""


async def holder(journal: Journal) -> tuple[str, IntentState] | None:
    found = await journal.find_by_ref("r1")
    return None if found is None else (found.intent_id, found.state)


async def unsent(journal: Journal) -> None:
    await journal.mark_unsent("i2")


async def not_created(journal: Journal) -> None:
    await journal.mark_ended("i2", IntentState.NOT_CREATED)


async def refused(journal: Journal) -> None:
    await journal.mark_ended("i2", IntentState.REJECTED, reason="no such model", code=422)


@pytest.mark.parametrize("comes_back", [unsent, not_created, refused])
@pytest.mark.parametrize(("happens", "state"), [(refuse, IntentState.REJECTED), (lose, IntentState.UNKNOWN)])
async def test_a_ref_passes_on_and_comes_back_after_a_sure_no(
    journal: Journal,
    happens: Callable[[Journal], Awaitable[None]],
    state: IntentState,
    comes_back: Callable[[Journal], Awaitable[None]],
) -> None:
    await happens(journal)
    await journal.mark_sending(SECOND)
    assert await holder(journal) == ("i2", IntentState.SENDING)
    await comes_back(journal)
    assert await holder(journal) == ("i1", state)


@pytest.mark.parametrize("comes_back", [unsent, not_created, refused])
async def test_the_ref_of_a_failed_task_passes_on_and_comes_back(
    durable: Journal, comes_back: Callable[[Journal], Awaitable[None]]
) -> None:
    await fail(durable)
    before = await durable.find_by_ref("r1")
    await durable.mark_sending(SECOND)
    assert await holder(durable) == ("i2", IntentState.SENDING)
    former = await durable.find_by_task("t1")
    assert former is not None
    assert (former.ref, former.state) == (None, IntentState.FAILED)
    assert before is not None
    assert former.record == before.record
    await comes_back(durable)
    assert await durable.find_by_ref("r1") == before


@pytest.mark.parametrize("state", [IntentState.UNKNOWN, IntentState.REJECTED])
async def test_a_successor_that_may_be_a_task_keeps_the_ref(journal: Journal, state: IntentState) -> None:
    await refuse(journal)
    await journal.mark_sending(SECOND)
    await journal.mark_ended("i2", state, code=500)
    assert await holder(journal) == ("i2", state)


async def test_a_refused_one_that_was_a_task_after_all_does_not_take_the_ref_back(journal: Journal) -> None:
    await refuse(journal)
    await journal.mark_sending(SECOND)
    await journal.mark_created("i1", "t1", adopted_by="callback")
    await journal.mark_created("i2", "t2")
    assert await holder(journal) == ("i2", IntentState.CREATED)


@pytest.mark.parametrize("happens", [nothing, create, succeed])
async def test_nothing_is_sent_in_the_place_of_what_may_run_or_is_done(
    durable: Journal, happens: Callable[[Journal], Awaitable[None]]
) -> None:
    await happens(durable)
    before = await durable.find_by_ref("r1")
    with pytest.raises(JournalError):
        await durable.mark_sending(SECOND)
    assert await durable.find_by_ref("r1") == before
