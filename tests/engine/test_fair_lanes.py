"""Lanes are fair: a thousand jobs of one delay a single one of another by a turn, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import attrs
import pytest
from support.clock import Clock
from support.model_client import ModelClient
from support.model_service import MODEL, ModelService

from kie_async import Limits, PollSchedule, Rate, TaskHandle, TaskRequest
from kie_async.limits.rate_limiter import RateLimiter

MANY, SINGLES = 1000, 20
LATE_S = 2.5
"""So much later than the moment when a permit could have been its own may a single job be created."""


class Service(ModelService):
    """A service in good weather, behind a network that takes its time."""

    def __init__(self, rng: random.Random, latency_s: tuple[float, float]) -> None:
        super().__init__(rng)
        self.is_bad = False
        self._latency_s = latency_s

    def latency_s(self) -> float:
        return self.rng.uniform(*self._latency_s)


@attrs.frozen
class Single:
    """One job of a lane of its own: when it was asked for, and when it had its id."""

    asked_at: float
    created_at: float


class Permits(RateLimiter):
    """A limiter that notes when each permit was taken."""

    def __init__(self, rate: Rate, *, now: Callable[[], float]) -> None:
        super().__init__(rate, now=now)
        self.taken_at: list[float] = []

    async def acquire(self) -> float:
        taken_at = await super().acquire()
        self.taken_at.append(taken_at)
        return taken_at


async def until_created(handle: TaskHandle) -> Single:
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    await handle.created()
    return Single(asked_at, loop.time())


def lateness(singles: Sequence[Single], permits: Sequence[float]) -> list[float]:
    """Return how long after the first permit that came when it was asked for each was created.

    Of several that wait each has a permit of its own, in their order.
    """
    free, late = sorted(permits), []
    for single in sorted(singles, key=lambda single: single.asked_at):
        could_be = next(at for at in free if at >= single.asked_at)
        free.remove(could_be)
        late.append(single.created_at - could_be)
    return late


def request(name: str) -> TaskRequest:
    return TaskRequest(model=MODEL, input={"prompt": name})


@pytest.mark.parametrize("latency_s", [(0.01, 0.01), (0.1, 0.5)], ids=["near", "far"])
async def test_twenty_single_jobs_are_not_delayed_by_a_thousand_of_another_lane(
    clock: Clock, latency_s: tuple[float, float]
) -> None:
    rng = random.Random(3)
    service = Service(rng, latency_s)
    client = ModelClient(service, max_in_flight=2 * MANY, poll=PollSchedule.fixed(1e6))
    await client.open()
    permits = client.engine.calls.rate_limiter = Permits(Limits().create, now=lambda: clock.now)
    permits.start(lambda: asyncio.get_running_loop().call_soon(client.engine.queue.advance))
    begun_at = clock.now
    many = [client.kie.submit(request(f"many {number}"), lane="many") for number in range(MANY)]
    creating: list[asyncio.Task[Single]] = []
    for number in range(SINGLES):
        await clock.advance(rng.uniform(0.0, 25.0))
        handle = client.kie.submit(request(f"single {number}"), lane=number)
        creating.append(asyncio.create_task(until_created(handle)))
    await clock.advance(15.0)
    singles = await asyncio.gather(*creating)
    assert max(lateness(singles, permits.taken_at)) <= LATE_S
    assert not service.counts["429"]

    # And nobody pays for that with permits: the thousand go on at the full rate.
    window_s = 10.0 + 2 * latency_s[1]  # counted from the answer
    await clock.advance(window_s * (MANY + SINGLES) / 20 - (clock.now - begun_at) + 20.0)
    assert all(handle.task_id for handle in many)
    order = [int(task.prompt[5:]) for task in service.tasks.values() if task.prompt.startswith("many")]
    assert sorted(order) == list(range(MANY))
    # Several are on the wire at once, and may overtake each other there; not here.
    assert all(abs(number - place) <= 4 for place, number in enumerate(order))
    await client.kie.aclose()


async def test_with_all_slots_taken_a_single_job_has_the_first_slot_that_comes_back(clock: Clock) -> None:
    service = Service(random.Random(5), (0.02, 0.02))
    client = ModelClient(service, max_in_flight=4, poll=PollSchedule.fixed(1e6))
    await client.open()
    many = [client.kie.submit(request(f"many {number}"), lane="many") for number in range(500)]
    await clock.advance(1.0)
    single = client.kie.submit(request("single"), lane="single")
    assert single.queue_position == 0
    await clock.advance(1.0)
    for number in (0, 1):
        many[number].abandon()
        await clock.advance(30.0)
    assert [task.prompt for task in service.tasks.values()][4:] == ["single", "many 4"]
    await client.kie.aclose()
