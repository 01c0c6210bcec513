"""An answer that says the same again is not read again, and is as good as if it were."""

from __future__ import annotations

import asyncio
import json
import math
import random

import pytest

from kie_async.config import Rate
from kie_async.errors import AnswerUnreadable, KieError, ServerError
from kie_async.events import Counters
from kie_async.handle import TaskHandle
from kie_async.http.query_client import QueryClient
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.models import TaskRecord, TaskState
from kie_async.polling.entry import PollEntry
from kie_async.wire.envelope import WireResponse
from kie_async.wire.requests import WireRequest

ID = "t1"


def body(**data: object) -> bytes:
    return json.dumps({"code": 200, "msg": "", "data": {"taskId": ID, "state": "waiting", **data}}).encode()


class Asked:
    """A reader, a handle, and a service that answers what it is told to."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.response = WireResponse(status=200, body=body())
        limiter = RateLimiter(Rate(100, per_s=1.0), now=loop.time)
        self.reader = QueryClient(self, limiter, counters=Counters(), rng=random.Random(0))  # type: ignore[arg-type]
        self.entry = PollEntry(ID, "", math.inf, 0.0, expects_callback=False)

    async def send(self, _: WireRequest) -> WireResponse:
        return self.response

    async def poll(self) -> TaskRecord:
        """Do what the poller does."""
        return await self.reader.read_record(ID, unless=self.entry)


async def test_the_same_answer_leaves_the_record_as_it_is() -> None:
    asked = Asked()
    first = await asked.poll()
    asked.response = WireResponse(status=200, body=bytes(bytearray(asked.response.body)))
    assert await asked.poll() is first


async def test_another_answer_is_read() -> None:
    asked = Asked()
    await asked.poll()
    asked.response = WireResponse(status=200, body=body(creditsConsumed=7))
    assert (await asked.poll()).credits == 7


@pytest.mark.parametrize(("status", "error"), [(500, ServerError), (204, AnswerUnreadable)])
async def test_the_same_body_under_another_status_is_judged(status: int, error: type[KieError]) -> None:
    asked = Asked()
    await asked.poll()
    asked.response = WireResponse(status=status, body=asked.response.body)
    with pytest.raises(error):
        await asked.poll()


async def test_the_same_answer_after_other_news_is_news() -> None:
    asked = Asked()
    handle = TaskHandle(owner=None, deadline=0.0, task_id=ID)  # type: ignore[arg-type]
    first = await asked.poll()
    handle.observe(first)
    handle.observe(TaskRecord(task_id=ID, state=TaskState.WAITING, credits=9))
    handle.observe(await asked.poll())
    assert handle.record == first


async def test_a_closed_entry_holds_no_answer() -> None:
    asked = Asked()
    first = await asked.poll()
    asked.entry.close()
    assert await asked.poll() is not first


async def test_without_an_entry_every_answer_is_read() -> None:
    asked = Asked()
    assert await asked.reader.read_record(ID) is not await asked.reader.read_record(ID)
