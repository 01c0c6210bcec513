"""A thousand tasks on a clock of its own: the library's timetable and queue, without sockets and waiting."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from kie_async import PollSchedule
from kie_async.look_queue import LookQueue, Watch
from kie_async.timetable import Timetable

MODEL = "model"
SLOTS, CREATES, PER_S = 100, 20, 10.0
CALLBACK_S = 0.3
"""From the end of a task to its callback."""
_STEPS = 200_000


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


Known = Lognormal | Uniform | Mixture


def bound(durations: Known, longest_s: float = 3000.0) -> float:
    """Return by how much fewer looks the best schedule can do than a fixed interval of the same mean wait."""
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

    looks: float
    wait_s: float
    mean_s: float
    """How long the tasks took."""
    took_s: float
    """How long all of it took."""

    @property
    def gain(self) -> float:
        """Return how many looks a fixed interval of the same mean wait would have taken, as a ratio."""
        return (self.mean_s / (2 * self.wait_s) + 0.5) / self.looks


@attrs.define(eq=False)
class Task:
    """One task of the run."""

    number: int
    began: float
    ran_s: float
    watch: Watch
    is_scout: bool


class Run:
    """One run: creates within slots and limit, looks and callbacks until all are known to have ended."""

    def __init__(
        self,
        schedule: PollSchedule,
        durations: Callable[[random.Random, int], float],
        *,
        seed: int,
        lost: float | None = None,
        queries_per_s: float = math.inf,
        known: int = 0,
        per_s: float = PER_S,
    ) -> None:
        self.rng = random.Random(seed)
        self.durations = durations
        self.lost = lost
        self.gap_s = 1 / queries_per_s
        self.per_s = per_s
        self.table = Timetable(schedule)
        for _ in range(known):
            self.table.finished(MODEL, durations(self.rng, 0), seen_s=0.0)
        self.queue = LookQueue(self._chance, longest_s=schedule.longest_gap_s)
        self.events: list[tuple[float, int, Callable[..., None], Any]] = []
        self.serial = itertools.count()
        self.running: dict[int, Task] = {}
        self.now = self.free_at = 0.0
        self.created: deque[float] = deque(maxlen=CREATES)
        self.count = self.looks = self.begun = 0
        self.waits_s: list[float] = []
        self.ran_s = 0.0

    def to_its_end(self, count: int) -> Found:
        """Run so many tasks."""
        self.count = count
        self._at(0.0, self._create)
        while len(self.waits_s) < count:
            self.now, _, call, argument = heapq.heappop(self.events)
            self.table.lost.give_up(self.now)
            call(argument)
            if self.table.is_tighter():
                for task in self.running.values():
                    self._plan(task, self._next_at(task, self.rng.random()))
        return Found(self.looks / count, sum(self.waits_s) / count, self.ran_s / count, self.now)

    def _at(self, at: float, call: Callable[..., None], argument: Any = None) -> None:
        heapq.heappush(self.events, (at, next(self.serial), call, argument))

    def _create(self, _: object) -> None:
        while self.begun < self.count and len(self.running) < SLOTS:
            if len(self.created) == CREATES and self.created[0] + self.per_s > self.now:
                self._at(self.created[0] + self.per_s, self._create)
                return
            self.created.append(self.now)
            self._begin(self.durations(self.rng, self.begun))

    def _begin(self, ran_s: float) -> None:
        watch = Watch(handle=None, since=self.now, expects_callback=self.lost is not None)
        is_scout = watch.expects_callback and self.table.take_scout()
        task = self.running[self.begun] = Task(self.begun, self.now, ran_s, watch, is_scout)
        handle: Any = task  # the queue hands out watches; all it asks of a handle is to be there
        watch.handle = handle
        self.begun += 1
        self.ran_s += ran_s
        self._plan(task, self._next_at(task, self.rng.random()))
        if self.lost is not None and self.rng.random() >= self.lost:
            self._at(self.now + ran_s + CALLBACK_S, self._call_back, task)

    def _by_callback(self, task: Task) -> bool:
        return task.watch.expects_callback and not (task.is_scout and not self.table.lost.is_proven)

    def _next_at(self, task: Task, chance: float) -> float:
        age_s = self.table.next_look_s(
            MODEL,
            task.watch.looked_s,
            is_first=task.watch.looked_at == -math.inf,
            by_callback=self._by_callback(task),
            chance=chance,
            now=self.now,
        )
        return task.began + age_s

    def _chance(self, watch: Watch, now: float) -> float:
        task: Any = watch.handle
        by_callback = self._by_callback(task)
        return self.table.chance(MODEL, watch.looked_s, now - watch.since, by_callback=by_callback, now=now)

    def _plan(self, task: Task, at: float) -> None:
        task.watch.at = at
        self._at(at, self._due, (task, at))

    def _due(self, planned: tuple[Task, float]) -> None:
        task, at = planned
        if task.number not in self.running or task.watch.at != at or task.watch.is_queued:
            return
        if self._by_callback(task) and self._next_at(task, 0.0) > self.now + 0.05:
            self._plan(task, self._next_at(task, self.rng.random()))
            return
        self.queue.put(task.watch)
        self.free_at = max(self.free_at + self.gap_s, self.now)
        self._at(self.free_at, self._look)

    def _look(self, _: object) -> None:
        if (watch := self.queue.pop(self.now)) is None:
            return
        found: Any = watch.handle
        task: Task = found
        self.looks += 1
        age_s = self.now - task.began
        if age_s >= task.ran_s:
            if watch.expects_callback:
                self.table.lost.found_ended(str(task.number), self.now, late_s=age_s - task.ran_s)
            self._end(task, age_s - task.ran_s)
            return
        self.table.still_running(MODEL, watch.seen_s, age_s)
        watch.seen_s, watch.looked_at = age_s, self.now
        self._plan(task, self._next_at(task, self.rng.random()))

    def _call_back(self, task: Task) -> None:
        is_news = task.number in self.running
        self.table.lost.came(str(task.number), is_news=is_news)
        if is_news:
            self._end(task, CALLBACK_S)

    def _end(self, task: Task, wait_s: float) -> None:
        self.table.finished(MODEL, task.ran_s, seen_s=task.watch.seen_s)
        self.waits_s.append(wait_s)
        task.watch.handle = None
        del self.running[task.number]
        self._create(None)


def run(schedule: PollSchedule, durations: Durations, *, tasks: int, seed: int, **options: Any) -> Found:
    """Run so many tasks of one kind."""
    return Run(schedule, lambda rng, _: durations(rng), seed=seed, **options).to_its_end(tasks)


def run_shifted(
    schedule: PollSchedule, before: Durations, after: Durations, *, tasks: int, seed: int
) -> Found:
    """Run so many tasks, of which the second half is of another kind."""
    drawn = Run(schedule, lambda rng, number: (before if number < tasks // 2 else after)(rng), seed=seed)
    return drawn.to_its_end(tasks)
