"""An answer that says the same again is not read again, and is as good as if it were."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random

import pytest
from support.clock import Clock

from kie_async.config import Rate
from kie_async.errors import AnswerUnreadable, KieError, RateLimited, ServerError
from kie_async.events import Counters
from kie_async.handle import TaskHandle
from kie_async.http.query_client import QueryClient
from kie_async.limits.query_speed import QueryPace, QuerySpeed
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
        self.pace = QueryPace(limiter, QuerySpeed(Rate(100, per_s=1.0), Rate(1000, per_s=1.0)))
        self.reader = QueryClient(self, self.pace, counters=Counters(), rng=random.Random(0))  # type: ignore[arg-type]
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


# --- what the speed of queries learns ------------------------------------------------------------


@pytest.fixture
async def asked() -> Asked:
    return Asked()


REFUSED, BALANCE = b'{"code": 429, "msg": "too fast"}', b'{"code": 200, "msg": "", "data": 7}'


async def ask(asked: Asked, what: str, answer: bytes) -> None:
    """Send one query, and no retry, that is answered so."""
    asked.response = WireResponse(status=200, body=answer)
    if what == "balance":
        await asked.reader.is_answered()
    else:
        with contextlib.suppress(RateLimited):
            await asked.reader.confirm(what)


@pytest.mark.parametrize("what", ["balance", ID])
async def test_a_429_to_any_query_takes_the_speed_back(what: str, asked: Asked) -> None:
    await ask(asked, what, REFUSED)
    assert asked.pace.speed.count < 100


async def test_while_nobody_gets_through_the_speed_is_taken_back_once(asked: Asked) -> None:
    await ask(asked, "t1", REFUSED)
    once = asked.pace.speed.count
    await ask(asked, "t2", REFUSED)
    assert asked.pace.speed.count == once
    await ask(asked, "balance", BALANCE)
    await ask(asked, "t3", REFUSED)
    assert asked.pace.speed.count < once


async def test_what_had_left_before_a_refusal_is_no_news(asked: Asked) -> None:
    now = asyncio.get_running_loop().time()
    asked.pace.note_refused("t1", now - 1.0, now)
    once = asked.pace.speed.count
    asked.pace.note_answer()
    asked.pace.note_refused("t2", now - 0.5, now + 0.1)
    assert asked.pace.speed.count == once


async def test_queries_that_wait_for_a_permit_make_the_speed_rise(clock: Clock) -> None:
    asked = Asked()
    asked.response = WireResponse(status=200, body=BALANCE)
    reading = [asyncio.create_task(asked.reader.credits()) for _ in range(1000)]
    await clock.advance(5.0)
    assert asked.pace.speed.count > 100
    await clock.advance(10.0)
    await asyncio.gather(*reading)
