"""What comes when: nothing is lost or early, however far away, and what is over does not stay."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest
from support.clock import Clock

from kie_async.polling.entry import PollEntry
from kie_async.polling.timer_wheel import TICK_S, TimerWheel


class Noted:
    """A wheel whose ticks are written down: who was handed out when, and void entries left out."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.wheel = TimerWheel(asyncio.get_running_loop(), self.tick)
        self.polled: list[tuple[PollEntry, float]] = []
        self.expired: list[tuple[PollEntry, float]] = []
        self.wakes = 0

    def tick(self, now: float) -> None:
        self.wakes += 1
        for entry in self.wheel.take_due(now):
            if not entry.is_closed and entry.deadline <= now:
                entry.close()
                self.expired.append((entry, self.clock.now))
            elif not entry.is_closed and entry.next_at <= now:
                entry.next_at = math.inf
                self.polled.append((entry, self.clock.now))

    def add(self, *, poll_s: float = math.inf, deadline_s: float = math.inf) -> PollEntry:
        now = self.clock.now
        entry = PollEntry("t", "", now + deadline_s, now, expects_callback=False, next_at=now + poll_s)
        self.wheel.add(entry)
        self.wheel.schedule(entry)
        return entry


@pytest.fixture
async def noted(clock: Clock) -> Any:
    noted = Noted(clock)
    yield noted
    noted.wheel.close()


FAR = [0.0, 0.01, 0.05, 1.0, 59.9, 60.0, 89.99, 90.0, 90.01, 119.0, 150.0, 151.0, 3600.0]


async def test_a_poll_comes_within_a_tick_of_its_time_however_far_away(clock: Clock, noted: Noted) -> None:
    planned = {id(noted.add(poll_s=far_s)): clock.now + far_s for far_s in FAR}
    await clock.advance(4000.0)
    late = [at - planned[id(entry)] for entry, at in noted.polled]
    assert len(late) == len(FAR)
    assert min(late) >= -1e-5
    assert max(late) <= TICK_S + 1e-5


async def test_a_deadline_comes_within_a_tick_of_its_time_however_far_away(
    clock: Clock, noted: Noted
) -> None:
    planned = {id(noted.add(deadline_s=far_s)): clock.now + far_s for far_s in FAR}
    await clock.advance(4000.0)
    late = [at - planned[id(entry)] for entry, at in noted.expired]
    assert len(late) == len(FAR)
    assert min(late) >= -1e-5
    assert max(late) <= TICK_S + 1e-5


async def test_polls_planned_again_and_again_come_once_each(clock: Clock, noted: Noted) -> None:
    rng, came = random.Random(5), 0
    entries = [noted.add(deadline_s=rng.uniform(1.0, 20_000.0)) for _ in range(200)]
    for _ in range(300):
        entry = rng.choice(entries)
        if entry.is_closed:
            continue
        for _ in range(rng.randrange(1, 4)):  # only the last one holds
            entry.next_at = clock.now + rng.choice([0.02, 1.0, 30.0, 100.0, 200.0]) * rng.random()
            noted.wheel.schedule(entry)
        planned = entry.next_at
        await clock.advance(planned - clock.now + 2 * TICK_S)
        came += 1
        assert entry.next_at == math.inf or entry.is_closed
    assert came > 100
    assert len(noted.polled) <= came


async def test_after_hours_of_nothing_a_poll_comes_in_time(clock: Clock, noted: Noted) -> None:
    await clock.advance(10_000.0)
    planned = {id(noted.add(poll_s=far_s, deadline_s=7000.0)): clock.now + far_s for far_s in FAR}
    await clock.advance(4000.0)
    late = [at - planned[id(entry)] for entry, at in noted.polled]
    assert len(late) == len(FAR)
    assert max(late) <= TICK_S + 1e-5


async def test_who_is_over_leaves(clock: Clock, noted: Noted) -> None:
    for number in range(10_000):
        entry = noted.add(poll_s=1.0 + number % 200, deadline_s=3600.0)
        entry.close()
        noted.wheel.note_closed()
    assert len(noted.wheel) < 200
    await clock.advance(300.0)
    assert len(noted.wheel) == 0
    assert not noted.polled


async def test_those_who_wait_for_long_cost_a_wake_up_a_minute(clock: Clock, noted: Noted) -> None:
    for _ in range(1000):
        noted.add(poll_s=3500.0, deadline_s=86_400.0)
    await clock.advance(3000.0)
    assert noted.wakes <= 51


async def test_nobody_is_handed_out_after_the_close(clock: Clock, noted: Noted) -> None:
    noted.add(poll_s=1.0)
    noted.wheel.close()
    noted.add(poll_s=1.0)
    await clock.advance(10.0)
    assert not noted.polled
