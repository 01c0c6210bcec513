"""Nobody's word makes the record of a task be read twice within a second: no callback, adoption or claim.

Everything is in virtual time on a model of the service whose callbacks prove nothing by themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import time_passes
from support.clock import Clock
from support.model_client import ModelClient, tail_of
from support.model_service import ModelService, ServiceTask
from support.slow_journals import CommitGate, CommitWeather, SteadySqliteJournal

from kie_async import Budget, CreateOutcomeUnknown, Limits, PollSchedule, Rate
from kie_async.journal.base import Journal
from kie_async.journal.intents import Intent

SELDOM = PollSchedule(learns=False, first_s=3600.0, safety_net_s=3600.0, longest_gap_s=3600.0)
"""Whatever is read was asked for."""
AT_ONCE = PollSchedule(learns=False, first_s=0.001, safety_net_s=3600.0, longest_gap_s=3600.0)


@asynccontextmanager
async def unsigned(
    service: ModelService, journal: Journal | None = None, gate: CommitGate | None = None, **options: Any
) -> AsyncIterator[ModelClient]:
    client = ModelClient(service, journal, gate, is_signed=False, **({"poll": SELDOM} | options))
    await client.open()
    try:
        yield client
    finally:
        await client.kie.aclose()


@pytest.fixture
def service(clock: Clock) -> ModelService:
    service = ModelService(random.Random(0))
    service.is_bad, service.lasts_s = False, 3600.0
    return service


async def unknown_create(client: ModelClient, service: ModelService) -> ServiceTask:
    service.create_fates = ["lost"]
    with pytest.raises(CreateOutcomeUnknown):
        await client.create("a", ref="a")
    (task,) = service.tasks.values()
    return task


def shortest_gap_s(service: ModelService, *task_ids: str) -> float:
    times = [at for at, task_id in service.reads if task_id in task_ids]
    assert len(times) > 1, "nothing was read again"
    return min(later - at for at, later in pairwise(times))


async def flood(client: ModelClient, task: ServiceTask, *, seconds: float = 4.0) -> None:
    """Deliver a callback of a task that goes on, over and over."""
    for _ in range(int(seconds / 0.05)):
        await client.call_back(task)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("budget", [None, Budget(credits=1000)], ids=["no budget", "budget"])
@pytest.mark.parametrize("order", ["adoption, callbacks", "callbacks, adoption", "attached, adoption"])
async def test_a_task_that_was_read_to_be_adopted_is_not_read_at_once_again(
    order: str, budget: Budget | None, service: ModelService
) -> None:
    with time_passes():
        async with unsigned(service, budget=budget) as client:
            task = await unknown_create(client, service)
            if order == "attached, adoption":
                client.kie.attach(task.task_id)
            if order == "callbacks, adoption":
                service.query_gate = asyncio.Event()
                asyncio.get_running_loop().call_later(0.3, service.query_gate.set)
            else:
                await client.call_back(task)
                await asyncio.sleep(0.1)
            await flood(client, task)
            assert client.kie.attach(task.task_id).intent_id == task.intent_id
    assert shortest_gap_s(service, task.task_id) >= 0.999


async def test_a_task_that_was_read_by_hand_is_not_read_at_once_again(service: ModelService) -> None:
    with time_passes():
        async with unsigned(service) as client:
            task = await unknown_create(client, service)
            (handle,) = await client.kie.resume()
            await handle.resolve(task.task_id)
            await flood(client, task)
    assert shortest_gap_s(service, task.task_id) >= 0.999


class SlowToFind(SteadySqliteJournal):
    """Answers when an attached task was polled already."""

    async def find_by_task(self, task_id: str) -> Intent | None:
        await asyncio.sleep(0.3)
        return await super().find_by_task(task_id)


async def test_a_task_that_was_read_before_its_create_was_known_is_not_read_at_once_again(
    service: ModelService, tmp_path: Path
) -> None:
    def opened(poll: PollSchedule) -> Any:
        gate = CommitGate(CommitWeather(random.Random(0)))
        return unsigned(service, SlowToFind(tmp_path / "run.db", gate), gate, poll=poll)

    with time_passes():
        async with opened(SELDOM) as client:
            await client.create("a", ref="a")
        (task,) = service.tasks.values()
        async with opened(AT_ONCE) as client:
            handle = client.kie.attach(task.task_id)
            await flood(client, task)
            assert handle.intent_id == task.intent_id
    assert shortest_gap_s(service, task.task_id) >= 0.999


async def test_claims_of_one_create_are_read_apart_also_when_the_rate_limit_held_the_first_up(
    service: ModelService,
) -> None:
    with time_passes():
        async with unsigned(service, limits=Limits(query=Rate(2, per_s=1.0))) as client:
            task = await unknown_create(client, service)
            foreign = service.make_foreign()
            queries = [asyncio.create_task(client.kie.query(foreign.task_id)) for _ in range(2)]
            await asyncio.sleep(0)
            for number in range(2):
                body = b'{"code": 200, "data": {"taskId": "made-up-%d", "state": "success"}}' % number
                verdict = await client.receiver.feed(tail_of(task.intent_id), {}, body)
                assert verdict.status == 200
            await asyncio.gather(*queries)
            await asyncio.sleep(10.0)
    assert shortest_gap_s(service, "made-up-0", "made-up-1") >= 1.0
