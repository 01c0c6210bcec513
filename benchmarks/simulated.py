"""Simulates a thousand tasks in virtual time with the library's own poller, without sockets or waiting."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from kie_async import Limits, PollSchedule, Rate, TaskRecord, TaskState
from kie_async.events import Source
from kie_async.limits.query_speed import QueryPace, QuerySpeed
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.planning.planner import PollPlanner
from kie_async.polling.entry import PollEntry
from kie_async.polling.poller import Poller

from .floor import MANY
from .makespan import Hurried

MODEL = "model"
SLOTS, CREATES = 100, Limits().create
CALLBACK_S = 0.3
"""From the end of a task to its callback."""
_STEPS = 200_000
_RUNNING = TaskRecord(task_id="any", state=TaskState.GENERATING)


class Durations(Protocol):
    """How long tasks take."""

    def __call__(self, rng: random.Random) -> float:
        """Return how long the next one takes."""


@attrs.frozen
class Lognormal:
    """Most take the median or so, some much longer."""

    median_s: float
    sigma: float

    def __call__(self, rng: random.Random) -> float:
        """Draw one."""
        return rng.lognormvariate(math.log(self.median_s), self.sigma)

    def density(self, age_s: float) -> float:
        """Return the density of ends at an age."""
        off = math.log(age_s / self.median_s) / self.sigma
        return math.exp(-off * off / 2) / (age_s * self.sigma * math.sqrt(2 * math.pi))

    def running(self, age_s: float) -> float:
        """Return the share that still runs at an age."""
        return math.erfc(math.log(age_s / self.median_s) / self.sigma / math.sqrt(2)) / 2 if age_s else 1.0


@attrs.frozen
class Uniform:
    """Anything from the one to the other, and nothing else."""

    low_s: float
    high_s: float

    def __call__(self, rng: random.Random) -> float:
        """Draw one."""
        return rng.uniform(self.low_s, self.high_s)

    def density(self, age_s: float) -> float:
        """Return the density of ends at an age."""
        return 1 / (self.high_s - self.low_s) if self.low_s <= age_s <= self.high_s else 0.0

    def running(self, age_s: float) -> float:
        """Return the share that still runs at an age."""
        return min(1.0, max(0.0, (self.high_s - age_s) / (self.high_s - self.low_s)))


@attrs.frozen
class Mixture:
    """A share of tasks of one kind, the rest of another."""

    share: float
    one: Lognormal
    other: Lognormal

    def __call__(self, rng: random.Random) -> float:
        """Draw one."""
        return (self.one if rng.random() < self.share else self.other)(rng)

    def density(self, age_s: float) -> float:
        """Return the density of ends at an age."""
        return self.share * self.one.density(age_s) + (1 - self.share) * self.other.density(age_s)

    def running(self, age_s: float) -> float:
        """Return the share that still runs at an age."""
        return self.share * self.one.running(age_s) + (1 - self.share) * self.other.running(age_s)


Known = Lognormal | Uniform | Mixture


def bound(durations: Known, longest_s: float = 3000.0) -> float:
    """Return by how much fewer polls the best schedule can do than a fixed interval of the same mean wait."""
    step_s = longest_s / _STEPS
    running, whole, mean_s = 1.0, 0.0, 0.0
    for number in range(_STEPS):
        age_s = (number + 0.5) * step_s
        density = durations.density(age_s)
        whole += math.sqrt(max(density * (running - density * step_s / 2), 0.0)) * step_s
        mean_s += age_s * density * step_s
        running -= density * step_s
    return mean_s / whole**2


@attrs.frozen
class Found:
    """What a run came to, per task."""

    polls: float
    wait_s: float
    mean_s: float
    """How long the tasks took."""
    took_s: float
    """How long all of it took."""

    @property
    def gain(self) -> float:
        """Return how many polls a fixed interval of the same mean wait would have taken, as a ratio."""
        return (self.mean_s / (2 * self.wait_s) + 0.5) / self.polls


@attrs.frozen(eq=False)
class Task:
    """One task of the run."""

    entry: PollEntry
    ends_at: float
    ended: TaskRecord
    """What a poll reads then."""


class Run:
    """One run: creates within slots and limit, polls and callbacks until all are known to have ended.

    The poller is that of a session. The service answers its polls at once and sends the callbacks.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        schedule: PollSchedule,
        durations: Callable[[random.Random, int], float],
        *,
        seed: int,
        lost: float | None = None,
        creates: Rate = CREATES,
        queries: Rate = MANY,
        ceiling: Rate | None = None,
        slots: int = SLOTS,
        known: int = 0,
    ) -> None:
        self.loop = loop
        self.rng = random.Random(seed)
        self.durations = durations
        self.lost = lost
        self.slots, self.slots_count = asyncio.Semaphore(slots), slots
        self.creates = RateLimiter(creates, now=loop.time)
        table = PollPlanner(schedule)
        for _ in range(known):
            table.note_finished(MODEL, durations(self.rng, 0), seen_s=0.0)
        self.poller = Poller(
            self,  # type: ignore[arg-type]  (of a query client it reads records only)
            QueryPace(RateLimiter(queries, now=loop.time), QuerySpeed(queries, ceiling)),
            table,
            connections=Limits().query_connections,
            rng=self.rng,
            loop=loop,
        )
        self.poller.start(self)
        self.running: dict[str, Task] = {}
        self.polls = 0
        self.waited_s = self.ran_s = 0.0

    async def to_its_end(self, count: int) -> Found:
        """Run so many tasks."""
        began = self.loop.time()
        for number in range(count):
            await self.slots.acquire()
            await self.creates.acquire()
            self._begin(str(number), self.durations(self.rng, number))
            self.creates.release()
        for _ in range(self.slots_count):
            await self.slots.acquire()  # all of them are free once the last task is known to have ended
        took_s = self.loop.time() - began
        await self.poller.aclose()
        return Found(self.polls / count, self.waited_s / count, self.ran_s / count, took_s)

    def _begin(self, name: str, ran_s: float) -> None:
        ended = TaskRecord(task_id=name, state=TaskState.SUCCESS, urls=("url",), duration_s=ran_s)
        entry = self.poller.track(
            name, model=MODEL, deadline=math.inf, expects_callback=self.lost is not None
        )
        self.running[name] = Task(entry, self.loop.time() + ran_s, ended)
        self.ran_s += ran_s
        if self.lost is not None and self.rng.random() >= self.lost:
            self.loop.call_later(ran_s + CALLBACK_S, self._call_back, ended)

    async def read_record(self, task_id: str, *, unless: object = None) -> TaskRecord:
        """Answer a poll."""
        self.polls += 1
        return self.record_of(task_id)

    def record_of(self, task_id: str) -> TaskRecord:
        """Return the record of a task as it is now."""
        task = self.running[task_id]
        return task.ended if task.ends_at <= self.loop.time() else _RUNNING

    def _call_back(self, ended: TaskRecord) -> None:
        if ended.task_id in self.running:
            self.deliver(ended, Source.CALLBACK)
        else:
            self.poller.note_late_callback(ended.task_id)

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in news."""
        if not record.state.is_terminal:
            return
        task = self.running.pop(record.task_id)
        self.waited_s += self.loop.time() - task.ends_at
        self.poller.complete(task.entry, record, source, record.task_id)
        self.slots.release()

    def give_up(self, key: str, error: Exception) -> None:
        """Never be called: no poll fails here."""
        raise error

    def expire(self, key: str) -> None:
        """Never be called: no task is late."""
        raise AssertionError(key)


def run(schedule: PollSchedule, durations: Durations, *, tasks: int, seed: int, **options: Any) -> Found:
    """Run so many tasks of one kind."""
    return _run(schedule, lambda rng, _: durations(rng), tasks, seed=seed, **options)


def run_shifted(
    schedule: PollSchedule, before: Durations, after: Durations, *, tasks: int, seed: int
) -> Found:
    """Run so many tasks, of which the second half is of another kind."""
    return _run(
        schedule, lambda rng, number: (before if number < tasks // 2 else after)(rng), tasks, seed=seed
    )


def _run(
    schedule: PollSchedule, durations: Callable[[random.Random, int], float], tasks: int, **options: Any
) -> Found:
    with asyncio.Runner(loop_factory=Hurried) as runner:
        return runner.run(Run(runner.get_loop(), schedule, durations, **options).to_its_end(tasks))
