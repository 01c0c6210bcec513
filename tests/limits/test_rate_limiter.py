"""The limiter is never refused, hardly slower than the limit allows, and fair."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest
from support.clock import Clock, settle

from kie_async.config import Rate
from kie_async.limits.rate_limiter import RateLimiter

TWENTY_IN_TEN = Rate(20, per_s=10.0)


class Service:
    """Accepts so many requests in any window, to the tick, and refuses the rest."""

    def __init__(self, rate: Rate) -> None:
        self.accepted: list[float] = []
        self.refused = 0
        self._rate = rate
        self._window: deque[float] = deque()

    def arrive(self, now: float) -> None:
        while self._window and self._window[0] <= now - self._rate.per_s:
            self._window.popleft()
        if len(self._window) < self._rate.count:
            self._window.append(now)
            self.accepted.append(now)
        else:
            self.refused += 1


async def send_all(count: int, rate: Rate, rng: random.Random, clock: Clock, *, counts_from: str) -> Service:
    """Send so many requests at once through a limiter, over a network that takes its time."""
    service, limiter, start = Service(rate), RateLimiter(rate, now=lambda: clock.now), clock.now

    async def send() -> None:
        await limiter.acquire()
        if counts_from == "send":
            limiter.release()
        await asyncio.sleep(rng.uniform(0.005, 0.15))
        service.arrive(clock.now - start)
        await asyncio.sleep(rng.uniform(0.005, 0.15))
        if counts_from == "answer":
            limiter.release()

    sending = asyncio.gather(*(send() for _ in range(count)))
    await clock.advance(2 * count / rate.count * rate.per_s)
    await sending
    return service


@pytest.mark.parametrize("seed", range(5))
async def test_a_thousand_creates_are_never_refused_and_hardly_late(clock: Clock, seed: int) -> None:
    service = await send_all(1000, TWENTY_IN_TEN, random.Random(seed), clock, counts_from="answer")
    ideal_s = (1000 / 20 - 1) * 10
    assert service.refused == 0
    assert len(service.accepted) == 1000
    assert service.accepted[-1] <= 1.03 * ideal_s


async def test_the_service_would_refuse_who_counts_from_the_send(clock: Clock) -> None:
    service = await send_all(1000, TWENTY_IN_TEN, random.Random(0), clock, counts_from="send")
    assert service.refused > 0


async def test_no_window_of_the_service_ever_holds_more_than_the_rate(clock: Clock) -> None:
    service = await send_all(300, Rate(7, per_s=1.0), random.Random(3), clock, counts_from="answer")
    times = service.accepted
    assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[7:], strict=False))


# --- permits --------------------------------------------------------------------------------------


class Line:
    """Waiters of one limiter, and the order in which they got through."""

    def __init__(self, clock: Clock, rate: Rate) -> None:
        self.limiter = RateLimiter(rate, now=lambda: clock.now)
        self.through: list[int] = []
        self.waiters: list[asyncio.Task[None]] = []

    async def join(self, count: int) -> None:
        """Let so many wait, and whoever can pass."""
        for _ in range(count):
            self.waiters.append(asyncio.create_task(self._wait(len(self.waiters))))
        await settle()

    async def _wait(self, number: int) -> None:
        await self.limiter.acquire()
        self.through.append(number)

    async def leave(self) -> None:
        for waiter in self.waiters:
            waiter.cancel()
        await asyncio.gather(*self.waiters, return_exceptions=True)


@pytest.fixture
async def line(clock: Clock) -> Line:
    """Return a line before a limiter of three in ten seconds."""
    return Line(clock, Rate(3, per_s=10.0))


async def test_the_first_ones_pass_at_once_and_the_next_waits(line: Line) -> None:
    await line.join(4)
    assert line.through == [0, 1, 2]
    await line.leave()


async def test_without_an_answer_no_permit_comes_back_however_long_it_takes(line: Line, clock: Clock) -> None:
    await line.join(4)
    await clock.advance(1e6)
    assert line.through == [0, 1, 2]
    await line.leave()


async def test_a_permit_comes_back_its_time_after_the_answer_and_not_before(line: Line, clock: Clock) -> None:
    await line.join(4)
    await clock.advance(100)
    line.limiter.release()
    await clock.advance(9.9)
    assert line.through == [0, 1, 2]
    await clock.advance(0.11)
    assert line.through == [0, 1, 2, 3]


async def test_an_unused_permit_comes_back_at_once(line: Line) -> None:
    await line.join(4)
    line.limiter.release_unused()
    await settle()
    assert line.through == [0, 1, 2, 3]


async def test_an_unused_permit_is_not_slept_over_by_who_waits_for_another(line: Line, clock: Clock) -> None:
    await line.join(3)
    line.limiter.release()  # back in ten seconds
    await line.join(1)
    await clock.advance(1)
    line.limiter.release_unused()
    await settle()
    assert line.through == [0, 1, 2, 3]


async def test_they_pass_in_the_order_they_came(line: Line, clock: Clock) -> None:
    await line.join(50)
    for _ in range(20):
        line.limiter.release()
        line.limiter.release()
        line.limiter.release()
        await clock.advance(11)
    assert line.through == list(range(50))


async def test_who_comes_as_permits_come_back_does_not_overtake(line: Line) -> None:
    await line.join(5)
    line.limiter.release_unused()
    line.limiter.release_unused()
    await line.join(1)  # its turn comes after number 3 has moved and before number 4 does
    assert line.through == [0, 1, 2, 3, 4]
    await line.leave()


async def test_who_leaves_the_line_frees_the_place_and_takes_no_permit(line: Line, clock: Clock) -> None:
    await line.join(10)
    for leaving in (3, 5, 6):  # the head of the line among them
        line.waiters[leaving].cancel()
    await settle()
    for _ in range(3):
        line.limiter.release()
    await clock.advance(10.1)
    assert line.through == [0, 1, 2, 4, 7, 8]
    await line.leave()


async def test_who_leaves_as_the_permit_comes_leaves_it_to_the_next(line: Line) -> None:
    await line.join(5)
    line.limiter.release_unused()
    line.waiters[3].cancel()
    await settle()
    assert line.through == [0, 1, 2, 4]


@pytest.mark.parametrize("seed", range(20))
async def test_no_permit_is_lost_or_made_whoever_leaves_when(seed: int, clock: Clock) -> None:
    rng, rate = random.Random(seed), Rate(3, per_s=1.0)
    line, given_back = Line(clock, rate), 0
    for _ in range(200):
        await line.join(rng.randint(0, 3))
        if line.waiters and rng.random() < 0.5:
            rng.choice(line.waiters).cancel()
        await clock.advance(rng.uniform(0, 0.8))
        held = len(line.through) - given_back
        assert 0 <= held <= rate.count
        if held and rng.random() < 0.8:
            rng.choice([line.limiter.release, line.limiter.release_unused])()
            given_back += 1
    await line.leave()
    for _ in range(len(line.through) - given_back):
        line.limiter.release_unused()
    await clock.advance(2)
    last = Line(clock, rate)
    last.limiter = line.limiter
    await last.join(10)
    assert len(last.through) == rate.count  # all are there again, and no more
    await last.leave()


# --- another number -------------------------------------------------------------------------------


async def test_more_permits_come_spread_over_a_window(line: Line, clock: Clock) -> None:
    await line.join(20)
    line.limiter.set_count(8)
    came = []
    for _ in range(10):
        await clock.advance(1.01)
        came.append(len(line.through))
    assert came == [3, 4, 4, 5, 5, 6, 6, 7, 7, 8]
    await line.leave()


async def test_fewer_permits_are_taken_from_those_nobody_uses(line: Line) -> None:
    line.limiter.set_count(1)
    await line.join(3)
    assert line.through == [0]
    await line.leave()


async def test_fewer_permits_are_taken_from_those_that_come_back(line: Line, clock: Clock) -> None:
    await line.join(9)
    line.limiter.set_count(1)
    for _ in range(3):
        line.limiter.release()
    await clock.advance(100)
    assert line.through == [0, 1, 2, 3]
    await line.leave()


async def test_fewer_and_more_again_leaves_as_many_as_there_were(line: Line, clock: Clock) -> None:
    await line.join(3)
    line.limiter.set_count(1)
    line.limiter.set_count(3)
    for _ in range(3):
        line.limiter.release()
    await clock.advance(10.1)
    await line.join(5)
    assert line.through == [0, 1, 2, 3, 4, 5]
    await line.leave()


@pytest.mark.parametrize("seed", range(10))
async def test_no_window_holds_more_than_the_most_that_was_allowed_in_it(seed: int, clock: Clock) -> None:
    rng, limiter = random.Random(seed), RateLimiter(Rate(5, per_s=1.0), now=lambda: clock.now)
    sent: list[float] = []
    allowed = [(clock.now, 5)]

    async def send_on() -> None:
        while True:
            sent.append(await limiter.acquire())
            await asyncio.sleep(rng.uniform(0.0, 0.2))
            limiter.release()

    sending = [asyncio.create_task(send_on()) for _ in range(16)]
    for _ in range(20):
        await clock.advance(rng.uniform(0.1, 3.0))
        allowed.append((clock.now, rng.randint(1, 12)))
        limiter.set_count(allowed[-1][1])
    await clock.advance(3.0)
    for task in sending:
        task.cancel()
    for ends_at in sent:
        begins_at = ends_at - 1.0
        in_force = [count for at, count in allowed if begins_at < at <= ends_at]
        in_force.append([count for at, count in allowed if at <= max(begins_at, allowed[0][0])][-1])
        assert sum(begins_at < at <= ends_at for at in sent) <= max(in_force)
    last = [at for at in sent if at > clock.now - 1.5]
    assert len(last) >= allowed[-1][1]  # and all that is allowed is used


# --- pauses ---------------------------------------------------------------------------------------


async def test_a_pause_holds_everybody_back_though_permits_are_there(line: Line, clock: Clock) -> None:
    line.limiter.throttle(5)
    await line.join(2)
    await clock.advance(4.9)
    assert line.through == []
    await clock.advance(0.2)
    assert line.through == [0, 1]


async def test_the_longest_of_several_pauses_counts(line: Line, clock: Clock) -> None:
    line.limiter.throttle(5)
    line.limiter.throttle(1)
    await line.join(1)
    await clock.advance(4)
    line.limiter.throttle(2)
    await clock.advance(1.9)
    assert line.through == []
    await clock.advance(0.2)
    assert line.through == [0]


async def test_a_pause_reaches_who_waits_for_a_permit_already(line: Line, clock: Clock) -> None:
    await line.join(4)
    line.limiter.release()
    await clock.advance(9)
    line.limiter.throttle(30)
    await clock.advance(29)
    assert line.through == [0, 1, 2]
    await clock.advance(1.1)
    assert line.through == [0, 1, 2, 3]


async def test_a_pause_reaches_who_waits_for_any_answer(line: Line, clock: Clock) -> None:
    await line.join(4)
    line.limiter.throttle(30)
    line.limiter.release_unused()
    await clock.advance(29)
    assert line.through == [0, 1, 2]
    await clock.advance(1.1)
    assert line.through == [0, 1, 2, 3]
