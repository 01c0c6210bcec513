"""After a restart a callback is answered by what the journal knows: 200 for what ended, else 503."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import time_passes
from support.clock import Clock
from support.model_client import MOUNT, SECRET, ModelClient, headers_of, tail_of
from support.model_service import ModelService, ServiceTask
from support.slow_journals import CommitGate, CommitWeather, SteadySqliteJournal
from support.tables import each

from kie_async import KieError, KieSession
from kie_async.journal.base import Journal
from kie_async.journal.intents import Intent
from kie_async.journal.memory import MemoryJournal


class CountingJournal(SteadySqliteJournal):
    """Counts how often, and how often at once, it is asked for an intent; a gate may hold the answers."""

    def __init__(self, path: Path) -> None:
        self.weather = CommitWeather(random.Random(0))
        self.gate = CommitGate(self.weather)
        super().__init__(path, self.gate)
        self.asked = self.at_once = self.most_at_once = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await self.answers.wait()
            return await super().find_by_intent(intent_id)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def run(
    service: ModelService, journal: Journal | None, *, is_signed: bool = True
) -> AsyncIterator[ModelClient]:
    """Open a session in virtual time."""
    gate = journal.gate if isinstance(journal, CountingJournal) else None
    with time_passes():
        client = await ModelClient(service, journal, gate, is_signed=is_signed).open()
        try:
            yield client
        finally:
            await client.kie.aclose()


@pytest.fixture
def service(clock: Clock) -> ModelService:
    service = ModelService(random.Random(0))
    service.is_bad, service.lasts_s = False, 0.0
    return service


@pytest.fixture
def new_journal(tmp_path: Path) -> Callable[[], CountingJournal]:
    """Return what opens the same file again."""
    return lambda: CountingJournal(tmp_path / "run.db")


async def ended(service: ModelService, journal: Journal | None, *, end: str = "success") -> ServiceTask:
    """Let a task end in a run of its own."""
    service.lasts_s = 60.0
    async with run(service, journal) as client:
        handle = await client.create("a", ref="a")
        (task,) = service.tasks.values()
        service.finish(task)
        task.end = end
        await asyncio.gather(handle, return_exceptions=True)
        assert (await client.call_back(task)).status == 200  # in the same run memory knows it
    return task


@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("end", ["success", "fail"])
async def test_a_task_that_ended_in_a_former_run_is_a_duplicate_and_read_once(
    end: str, is_signed: bool, service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    task = await ended(service, new_journal(), end=end)
    queries = service.counts["query"]
    async with run(service, journal := new_journal(), is_signed=is_signed) as client:
        verdicts = [await client.call_back(task) for _ in range(3)]
        assert [verdict.status for verdict in verdicts] == [200, 200, 200]
        assert client.kie.stats().callbacks_duplicate == 3
        assert journal.asked == 1
    assert service.counts["query"] == queries


async def test_a_body_that_cannot_be_read_is_a_duplicate_as_well(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    task = await ended(service, new_journal())
    async with run(service, new_journal(), is_signed=False) as client:
        verdict = await client.receiver.feed(tail_of(task.intent_id), {}, b'{"taskId": "' + b"x" * 300_000)
        assert verdict.status == 200


async def test_another_task_at_the_address_of_one_that_ended_is_refused(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    task = await ended(service, new_journal())
    other = service.make_foreign()
    async with run(service, new_journal()) as client:
        body = service.callback(other.task_id)
        verdict = await client.receiver.feed(tail_of(task.intent_id), headers_of(other.task_id), body)
        assert (verdict.status, verdict.reason) == (400, "id of another task")


async def test_without_a_file_nothing_is_known_of_a_former_run(service: ModelService) -> None:
    task = await ended(service, None)
    for journal in (None, MemoryJournal()):
        async with run(service, journal) as client:
            assert (await client.call_back(task)).status == 503


FATES = {
    "422": 200,  # refused, however clearly: the callback of a ghost is welcome
    "500, created": 200,
    "lost": 200,
    "429": 503,  # nothing was created, so nothing ended
}


async def test_what_did_not_end_is_told_from_what_did(service: ModelService, tmp_path: Path) -> None:
    async def check(row: tuple[str, int]) -> None:
        fate, status = row
        path = tmp_path / f"{fate}.db"
        service.create_fates = [fate] if fate != "429" else ["429"] * 100
        async with run(service, CountingJournal(path)) as client:
            with pytest.raises(KieError):
                await client.create("a", ref="a", timeout_s=30.0)
        service.create_fates = []
        intent_id = service.bodies[-1][0]
        async with run(service, CountingJournal(path)) as client:
            foreign = service.make_foreign()
            body = service.callback(foreign.task_id)
            verdict = await client.receiver.feed(tail_of(intent_id), headers_of(foreign.task_id), body)
            assert verdict.status == status

    await each(FATES.items(), check)


async def test_an_intent_that_the_journal_does_not_know_stays_refused(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    task = await ended(service, new_journal())
    async with run(service, new_journal()) as client:
        verdict = await client.receiver.feed(
            tail_of("e" * 32), headers_of(task.task_id), service.callback(task.task_id)
        )
        assert (verdict.status, verdict.reason) == (503, "intent is not known here")
        assert client.kie.stats().callbacks_duplicate == 0


async def test_a_task_that_goes_on_is_refused_until_the_run_is_resumed_in_either_order(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    service.lasts_s = 3000.0
    async with run(service, new_journal()) as client:
        await client.create("a", ref="a")
    (task,) = service.tasks.values()
    async with run(service, journal := new_journal()) as client:
        assert (await client.call_back(task)).status == 503
        journal.answers.clear()
        calling = asyncio.create_task(client.call_back(task))
        await asyncio.sleep(0.1)
        await client.kie.resume()  # while the journal is being asked
        journal.answers.set()
        assert (await calling).status == 200
        assert (await client.call_back(task)).status == 200
        assert client.kie.stats().callbacks_duplicate == 0


async def test_a_stranger_causes_no_read_and_one_who_knows_an_address_a_few_at_once(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    task = await ended(service, new_journal())
    async with run(service, journal := new_journal()) as client:
        body, headers = service.callback(task.task_id), headers_of(task.task_id)
        assert (await client.receiver.feed(f"{task.intent_id}/{'a' * 26}", headers, body)).status == 404
        assert (await client.receiver.feed(tail_of(task.intent_id), {}, body)).status == 401
        assert journal.asked == 0
        journal.answers.clear()
        calls = [asyncio.create_task(client.call_back(task)) for _ in range(200)]
        await asyncio.sleep(0.1)
        journal.answers.set()
        statuses = [(await call).status for call in calls]
        assert journal.most_at_once == statuses.count(200) == 16
        assert statuses.count(503) == 184


async def test_a_journal_that_cannot_be_asked_means_try_again(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    task = await ended(service, new_journal())
    async with run(service, journal := new_journal()) as client:
        journal.weather.failing = 1.0
        assert (await client.call_back(task)).status == 503
        journal.weather.failing = 0.0
        assert (await client.call_back(task)).status == 200


async def test_of_two_sessions_the_one_that_has_the_task_is_found_without_a_read(
    service: ModelService, new_journal: Callable[[], CountingJournal]
) -> None:
    service.lasts_s = 3000.0
    async with run(service, journal := new_journal()) as first:
        with first.wire.installed():
            second = KieSession(
                "key-of-the-model",
                base_url="http://127.0.0.1:9",
                receiver=first.receiver,
                callback_url=MOUNT,
                callback_secrets=[SECRET],
            )
            await second.open()
        try:
            await second.create("sandbox/echo", {"prompt": "a"})
            (task,) = service.tasks.values()
            assert (await first.call_back(task)).status == 200
            assert second.stats().callbacks_accepted == 1
            assert journal.asked == 0
        finally:
            await second.aclose()
