"""Simulates what a session knows while tasks come, wait and run, and how right its estimates are; no waiting.

At instants that have nothing to do with the tasks everything is judged at once. *Covered* is how likely the
time that is left falls into the interval, of tasks that run or wait then: what is left of a task that runs is
known by its distribution, so that no luck of one task is in it. *Errors* are those of the median for tasks
more, of durations spread evenly over the distribution, which have come so many tenths of their way then.
Only what was learned and the length of the queue are left to chance: a few instants of each of many worlds,
so far apart that each has seen other ends, are worth more than many of one.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter, mul
from typing import NamedTuple

import attrs

from kie_async import Estimate, Limits
from kie_async.planning.estimate import MEDIAN, MOST_PROGRESS, estimate
from kie_async.planning.queue_wait import NO_WAIT, Queue, Wait
from kie_async.planning.recent_ends import RecentEnds
from kie_async.planning.survival import SurvivalCurve

from .simulated import Known

SLOTS, CREATES = 100, Limits().create
TENTHS = 10
TASKS, INSTANTS = 1000, 3
_STRATA, _WATCHED = 8, 12
_GOLDEN = 0.6180339887498949
_GRID, _QUANTILES = 4000, 1000
_SCALES = [math.exp(step / 50) for step in range(-40, 41)]


@attrs.frozen
class Way:
    """What befalls the service, and from when on it is judged."""

    name: str
    scale: Callable[[int], float] = lambda _: 1.0
    """How many times as long as its kind says a task takes, by its number."""
    queued: int = 0
    """How long the queue is, from the beginning and as long as tasks come; 0 if each comes with its slot."""
    known: int = 30
    """So many ends were seen before the first comes."""
    learns: bool = True
    """Whether more is seen than those."""
    at_once: bool = False
    """Whether all are asked of only when they have just come."""
    first: int = 0
    """Tasks of lower numbers are not judged, and their ends do not count."""
    since: int = 30
    """Judged once so many have ended, those known included."""
    until: int | None = None
    """Judged until so many have ended."""


class Task(NamedTuple):
    """What a task went through."""

    came_at: float
    began_at: float
    ended_at: float
    scale: float


@attrs.frozen
class Asked:
    """A task more that is asked of, at a tenth of its way, and in whose place of the queue it is."""

    tenth: int
    number: int
    task: Task


@attrs.define
class Found:
    """What was found of one world."""

    covered: float = 0.0
    seen: int = 0
    errors_s: list[float] = attrs.field(factory=lambda: [0.0] * TENTHS)
    oracles_s: list[float] = attrs.field(factory=lambda: [0.0] * TENTHS)
    same_s: list[float] = attrs.field(factory=lambda: [0.0] * TENTHS)
    """Of one who knows the distribution but for its scale, and has seen the same ends."""
    falls: int = 0
    """How often the progress of a task fell, or was full too soon."""


@cache
def known_curve(kind: Known, scale: float = 1.0) -> SurvivalCurve:
    """Return the curve of one who knows the distribution."""
    high_s = 1.0
    while kind.running(high_s) > 1e-7:
        high_s *= 1.05
    ages_s = [high_s * number / _GRID for number in range(_GRID + 1)]
    shares = [max(kind.running(age_s), 1e-9) for age_s in ages_s]
    return SurvivalCurve([age_s * scale for age_s in ages_s], shares, tail=0.05, ends=10**9)


@cache
def quantiles(kind: Known) -> Sequence[float]:
    """Return durations as likely as each other."""
    return [known_curve(kind).end_of((number + 0.5) / _QUANTILES) for number in range(_QUANTILES)]


def likely_scale(kind: Known, took_s: Sequence[float]) -> float:
    """Return how many times as long as its kind says tasks seem to take, each scale as likely beforehand."""
    logs = [
        sum(math.log(max(kind.density(each_s / scale) / scale, 1e-300)) for each_s in took_s)
        for scale in _SCALES
    ]
    weights = [math.exp(log - max(logs)) for log in logs]
    return sum(map(mul, weights, _SCALES)) / sum(weights)


def world(way: Way, kind: Known, rng: random.Random) -> list[Task]:
    """Let all tasks come, wait for their turn, run and end."""
    free = [0.0] * SLOTS
    tasks: list[Task] = []
    for number in range((SLOTS if way.at_once else TASKS) + way.queued):
        permitted_at = tasks[-CREATES.count].began_at + CREATES.per_s if number >= CREATES.count else 0.0
        began_at = max(heapq.heappop(free), permitted_at)
        scale = way.scale(number)
        ended_at = began_at + kind(rng) * scale
        heapq.heappush(free, ended_at)
        # Whoever leaves the queue makes room for the next.
        came_at = began_at
        if way.queued:
            came_at = tasks[number - way.queued].began_at if number >= SLOTS + way.queued else 0.0
        tasks.append(Task(came_at, began_at, ended_at, scale))
    return tasks


class Run:
    """One world, judged at some instants."""

    def __init__(self, way: Way, kind: Known, seed: int) -> None:
        self.way, self.kind, self.found = way, kind, Found()
        self.rng = random.Random(seed)
        known_s = [kind(self.rng) * way.scale(0) for _ in range(way.known)]
        self.ends = RecentEnds.of_former(known_s)
        self.likely_scale = 1.0 if way.learns else likely_scale(kind, known_s)
        self.tasks = world(way, kind, self.rng)
        self.came_at = [task.came_at for task in self.tasks]
        self.began_at = [task.began_at for task in self.tasks]
        self.progress: dict[int, float] = {}
        self._ending = sorted(self.tasks, key=attrgetter("ended_at"), reverse=True)
        self._stratum = self.rng.random()

    def judged(self) -> Found:
        """Go through all instants."""
        since, until = self._span()
        instants = INSTANTS if self.way.learns else 1
        for number in range(instants):
            now = since + (number + self.rng.random()) / instants * (until - since)
            while self.way.learns and self._ending[-1].ended_at <= now:
                task = self._ending.pop()
                self.ends.add(task.ended_at - task.began_at, task.began_at)
            Instant(self, now).judge()
        return self.found

    def _span(self) -> tuple[float, float]:
        """Return from when to when it is judged, at most as long as tasks come."""
        way = self.way
        last_at = math.inf if way.at_once else self.came_at[-1]
        ends = sorted(task.ended_at for task in self.tasks[way.first :])
        known = 0 if way.first else way.known
        since = ends[way.since - known - 1] if way.since > known else 0.0
        return since, last_at if way.until is None else min(last_at, ends[way.until - known - 1])

    def next_duration_s(self) -> float:
        """Return how long one more task takes, were its scale 1: evenly spread over the distribution."""
        self._stratum = (self._stratum + _GOLDEN) % 1
        return quantiles(self.kind)[int(self._stratum * _QUANTILES)]


class Instant:
    """What is known and asked at one instant."""

    def __init__(self, run: Run, now: float) -> None:
        self.run, self.now = run, now
        self.begun = bisect_right(run.began_at, now)
        self.running = [number for number in range(self.begun) if run.tasks[number].ended_at > now]
        self.queued = min(run.way.queued + 1, len(run.tasks) - self.begun) if run.way.queued else 0
        curve = run.ends.curve([run.began_at[number] for number in self.running if run.way.learns], now)
        assert curve is not None
        self.curve = curve
        self.waits = self._waits(curve)

    def judge(self) -> None:
        """Judge the intervals, and the median at each tenth of the way."""
        every = (SLOTS + self.run.way.queued) // _WATCHED
        for number in [*self.running, *range(self.begun, self.begun + self.queued)]:
            if number >= self.run.way.first and number % every == 0:
                self._watch(number)
        tenths = 1 if self.run.way.at_once else TENTHS
        more = [self._one_more(tenth) for tenth in range(tenths) for _ in range(_STRATA)]
        asked = [one for one in more if one is not None and one.task.ended_at > self.now]
        found, kind = self.run.found, self.run.kind
        self._compare(asked, found.oracles_s, known_curve(kind))
        if not self.run.way.learns:
            self._compare(asked, found.same_s, known_curve(kind, self.run.likely_scale))
        for one in asked:
            left_s = self._told(one.number, one.task).remaining_s
            found.errors_s[one.tenth] += abs(left_s - (one.task.ended_at - self.now))

    def _waits(self, curve: SurvivalCurve, scale: float = 1.0) -> list[Wait]:
        """Return how long those in the queue wait, where tasks take so many times as long as a curve says."""
        latest = self.run.began_at[max(0, self.begun - CREATES.count) : self.begun]
        queue = Queue(
            slots=SLOTS,
            running_s=[(self.now - self.run.began_at[number]) / scale for number in self.running],
            permits=CREATES.count,
            window_s=CREATES.per_s / scale,
            permits_back_s=[max(0.0, at + CREATES.per_s - self.now) / scale for at in latest],
        )
        waits = queue.waits(self.queued, curve) if self.queued else []
        return waits if scale == 1 else [Wait(wait.s * scale, wait.deviation_s * scale) for wait in waits]

    def _watch(self, number: int) -> None:
        """Judge what a user is told of a task."""
        run, task = self.run, self.run.tasks[number]
        before = run.progress.get(number, 0.0)
        told = self._told(number, task, before)
        run.found.falls += not before <= told.progress <= MOST_PROGRESS
        run.progress[number] = told.progress
        starts_s = max(task.began_at - self.now, 0.0)
        running, after_low, after_high = (
            run.kind.running(max(self.now + left_s - task.began_at, 0.0) / task.scale)
            for left_s in (starts_s, max(told.low_s, starts_s), max(told.high_s, starts_s))
        )
        run.found.covered += (after_low - after_high) / running
        run.found.seen += 1

    def _told(self, number: int, task: Task, before: float = 0.0) -> Estimate:
        """Return what a user would be told of a task that has the place of such a number."""
        wait, age_s = self._place(number, task, self.waits)
        return estimate(self.curve, age_s, wait=wait, elapsed_s=self.now - task.came_at, progress=before)

    def _one_more(self, tenth: int) -> Asked | None:
        """Return one more task that has come so many tenths of its way by now; None if none can have."""
        run, took_s = self.run, self.run.next_duration_s()
        if run.way.at_once:
            number = run.rng.randrange(self.begun, self.begun + self.queued)
            one = run.tasks[number]
            return Asked(tenth, number, one._replace(ended_at=one.began_at + took_s))

        def there_at(task: Task) -> float:
            return task.came_at + (task.began_at + took_s * task.scale - task.came_at) * tenth / TENTHS

        after = bisect_right(run.tasks, self.now, lo=run.way.first, hi=len(run.tasks) - 1, key=there_at)
        if after == run.way.first:
            return None
        one, other = run.tasks[after - 1], run.tasks[after]
        share = (self.now - there_at(one)) / (there_at(other) - there_at(one))
        came_at = one.came_at + share * (other.came_at - one.came_at)
        began_at = one.began_at + share * (other.began_at - one.began_at)
        return Asked(tenth, after - 1, Task(came_at, began_at, began_at + took_s * one.scale, one.scale))

    def _compare(self, asked: Sequence[Asked], errors_s: list[float], known: SurvivalCurve) -> None:
        """Add up the errors of one who knows the distribution."""
        waits = self._waits(known, self.run.way.scale(self.begun))
        for one in asked:
            wait, age_s = self._place(one.number, one.task, waits)
            scale = one.task.scale
            left_s = wait.s + scale * known.end_of(MEDIAN, given_s=age_s / scale) - age_s
            errors_s[one.tenth] += abs(left_s - (one.task.ended_at - self.now))

    def _place(self, number: int, task: Task, waits: Sequence[Wait]) -> tuple[Wait, float]:
        """Return how long a task waits for its turn, and how old it is."""
        if task.began_at <= self.now or not waits:
            return NO_WAIT, max(self.now - task.began_at, 0.0)
        return waits[min(max(number - self.begun, 0), len(waits) - 1)], 0.0
