"""One scheduler for all handles: a heap, a tick, one shared query limit."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from enum import StrEnum

import attrs

from .codes import is_invisible
from .errors import (
    ApiError,
    AuthenticationError,
    KieError,
    RateLimited,
    ServerError,
)
from .handle import TaskHandle
from .limiter import Limiter
from .models import TaskRecord
from .poll_schedule import PollSchedule
from .states import TaskState
from .transport import MAX_RETRY_AFTER_S, delays

TICK_S = 0.05
"""Looks due within one tick are woken together: a wake-up costs more than a poll."""
_FATAL_IN_A_ROW = 3
_WARN_AT_FAILURE = 5
_log = logging.getLogger("kie_async")


class Source(StrEnum):
    """Which side the news came from."""

    POLL = "poll"
    CALLBACK = "callback"


class _Rank:
    """Who is looked at first when permits are short."""

    RUNG, FIRST, AGAIN = range(3)


@attrs.define(eq=False)
class _Watch:
    """What the poller knows of one handle."""

    handle: TaskHandle | None
    """None once it is over: what is left in the heap keeps no handle alive."""
    since: float
    expects_callback: bool
    due: float = math.inf
    looks: int = 0
    failures: int = 0
    refusals: int = 0
    rechecks: int = 0
    empties: int = 0
    last_look: float = -math.inf
    is_rung: bool = False
    is_queued: bool = False
    is_looking: bool = False


class Poller:
    """Looks at every watched task when its schedule says so, and at once when a callback rings.

    *ask* reads one record, *deliver* takes it to the session, *give_up* settles a handle with an
    error, *expire* one whose deadline passed. No task and no timer is held per handle.
    """

    def __init__(
        self,
        *,
        ask: Callable[[str], Awaitable[TaskRecord]],
        deliver: Callable[[TaskRecord, Source], None],
        give_up: Callable[[TaskHandle, KieError], None],
        expire: Callable[[TaskHandle], None],
        limiter: Limiter,
        schedule: PollSchedule,
        connections: int,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
    ) -> None:
        self._ask = ask
        self._deliver = deliver
        self._give_up = give_up
        self._expire = expire
        self._limiter = limiter
        self._schedule = schedule
        self._connections = connections
        self._loop = loop
        self._rng = rng
        self._serial = itertools.count()
        self._heap: list[tuple[float, int, _Watch]] = []
        self._ready: list[tuple[int, float, int, _Watch]] = []
        self._lookers: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = 0
        self._stale = 0
        self._denials = 0
        self._pauses: Iterator[float] | None = None
        self._slowed_at = -math.inf
        self._is_closed = False

    def watch(self, handle: TaskHandle, *, expects_callback: bool, at_once: bool = False) -> None:
        """Begin to look at the task of *handle*; *at_once* is for tasks that began long ago."""
        watch = self._register(handle, expects_callback=expects_callback)
        delay_s = self._schedule.delay_s(
            0.0, looks=0, expects_callback=expects_callback and not at_once, chance=self._rng.random()
        )
        self._look_in(watch, delay_s * self._rng.random() if at_once else delay_s)

    def watch_deadline(self, handle: TaskHandle) -> None:
        """Only wait for the deadline of a handle whose task id is not known."""
        self._register(handle, expects_callback=True)
        self._arm()

    def _register(self, handle: TaskHandle, *, expects_callback: bool) -> _Watch:
        self.forget(handle)
        watch = _Watch(handle=handle, since=self._loop.time(), expects_callback=expects_callback)
        handle._watch = watch
        heapq.heappush(self._heap, (handle.deadline, next(self._serial), watch))
        return watch

    def forget(self, handle: TaskHandle) -> None:
        """Never look at *handle* again."""
        if isinstance(handle._watch, _Watch):
            handle._watch.handle = None
            handle._watch = None
            self._stale += 1
            if self._stale > 64 and self._stale > len(self._heap) // 4:
                self._sweep()

    def _sweep(self) -> None:
        """Drop what is over, so that settled handles leave no trace until their deadline."""
        self._heap = [entry for entry in self._heap if entry[-1].handle is not None]
        heapq.heapify(self._heap)
        self._stale = 0

    def ring(self, handle: TaskHandle) -> None:
        """Look at once: a callback came. Many rings while one look is due or on its way make one look."""
        watch = handle._watch
        if not isinstance(watch, _Watch) or watch.is_rung:
            return
        watch.is_rung = True
        watch.rechecks = 0
        if not watch.is_looking:
            self._look_in(watch, self._ring_delay_s(watch))

    async def aclose(self) -> None:
        """Stop looking."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for looker in self._lookers:
            looker.cancel()
        await asyncio.gather(*self._lookers, return_exceptions=True)
        self._heap.clear()
        self._ready.clear()

    # --- when --------------------------------------------------------------------------------------

    def _look_in(self, watch: _Watch, delay_s: float) -> None:
        watch.due = self._loop.time() + delay_s
        if delay_s <= 0:
            self._enqueue(watch)
            self._dispatch()
        else:
            heapq.heappush(self._heap, (watch.due, next(self._serial), watch))
            self._arm()

    def _arm(self) -> None:
        """Set the one timer to the tick in which the next entry is due."""
        due = self._heap[0][0] if self._heap else math.inf
        if self._is_closed or due == math.inf:
            return
        when = max(due, math.ceil(due / TICK_S) * TICK_S)  # a float's rounding must not wake us before
        if self._timer is not None:
            if self._timer.when() <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            due, _, watch = heapq.heappop(self._heap)
            if watch.handle is None:
                continue
            if watch.handle.deadline <= now:
                self._expire(watch.handle)
            elif due == watch.due:
                self._enqueue(watch)
        self._arm()
        self._dispatch()

    def _enqueue(self, watch: _Watch) -> None:
        watch.is_queued = True
        rank = _Rank.RUNG if watch.is_rung else _Rank.AGAIN if watch.looks else _Rank.FIRST
        heapq.heappush(self._ready, (rank, watch.due, next(self._serial), watch))

    def _dispatch(self) -> None:
        while (
            not self._is_closed and self._idle < len(self._ready) and len(self._lookers) < self._connections
        ):
            self._idle += 1
            looker = self._loop.create_task(self._look_while_ready(), name="kie_async poller")
            self._lookers.add(looker)
            looker.add_done_callback(self._lookers.discard)

    # --- look --------------------------------------------------------------------------------------

    async def _look_while_ready(self) -> None:
        try:
            while self._ready:
                await self._limiter.acquire()
                watch, handle = self._next_ready()
                if watch is None or handle is None:
                    self._limiter.unused()
                    return
                self._idle -= 1
                try:
                    await self._look(watch, handle)
                finally:
                    self._idle += 1
        finally:
            self._idle -= 1

    def _next_ready(self) -> tuple[_Watch, TaskHandle] | tuple[None, None]:
        """Return the most urgent handle that still waits for a look."""
        while self._ready:
            watch = heapq.heappop(self._ready)[-1]
            if watch.is_queued and watch.handle is not None:
                watch.is_queued = False
                return watch, watch.handle
        return None, None

    async def _look(self, watch: _Watch, handle: TaskHandle) -> None:
        source = Source.CALLBACK if watch.is_rung else Source.POLL
        watch.is_looking, watch.is_rung = True, False
        watch.last_look = self._loop.time()
        watch.looks += 1
        try:
            record = await self._ask(handle.task_id)
        except Exception as exc:  # whatever a look ends in, the task is paid and will be looked at again
            self._after_error(watch, exc)
            delay_s = self._next_delay_s(watch, source)
        else:
            self._denials = watch.failures = watch.refusals = 0
            self._pauses = None
            delay_s = self._after_record(watch, record, source)
        finally:
            self._limiter.answered()
            watch.is_looking = False
        if watch.handle is not None:
            self._look_in(watch, self._ring_delay_s(watch) if watch.is_rung else delay_s)

    def _after_record(self, watch: _Watch, record: TaskRecord, source: Source) -> float:
        """Take news to the session; return the delay to the next look, if the handle goes on."""
        rechecks = self._schedule.recheck_s
        if record.state is TaskState.SUCCESS and not record.has_result and watch.empties < len(rechecks):
            watch.empties += 1
            return rechecks[watch.empties - 1]
        self._deliver(record, source)
        return self._next_delay_s(watch, source)

    def _after_error(self, watch: _Watch, error: Exception) -> None:
        """Judge a look without a record."""
        if isinstance(error, RateLimited):
            self._slow_down(watch, error)
            return
        self._pauses = None
        if isinstance(error, AuthenticationError):
            self._denials += 1
            if self._denials >= _FATAL_IN_A_ROW:
                self._denials = 0
                self._give_up_all(error)
        elif watch.handle is None:
            return  # it settled while the answer was on its way
        elif isinstance(error, ServerError) or not isinstance(error, ApiError):
            self._note_failure(watch, watch.handle, error)
        elif not self._may_be_invisible(watch, error):
            watch.refusals += 1
            if watch.refusals >= _FATAL_IN_A_ROW:
                self._give_up(watch.handle, error)

    def _slow_down(self, watch: _Watch, error: RateLimited) -> None:
        """Hold every look back; refusals of looks that left before this was last done are the same news."""
        pause_s = error.retry_after_s
        if pause_s is None:
            if watch.last_look < self._slowed_at:
                return
            self._pauses = self._pauses or delays(self._rng, first_s=1.0, ceiling_s=MAX_RETRY_AFTER_S)
            pause_s = next(self._pauses)
        self._slowed_at = self._loop.time()
        self._limiter.pause(min(pause_s, MAX_RETRY_AFTER_S))

    def _may_be_invisible(self, watch: _Watch, error: ApiError) -> bool:
        age_s = self._loop.time() - watch.since
        return is_invisible(error.code, error.message) and age_s < self._schedule.visibility_grace_s

    def _note_failure(self, watch: _Watch, handle: TaskHandle, error: Exception) -> None:
        watch.failures += 1
        level = logging.WARNING if watch.failures == _WARN_AT_FAILURE else logging.INFO
        surprise = None if isinstance(error, KieError) else error
        _log.log(
            level,
            "look %d at task %s failed: %s",
            watch.failures,
            handle.task_id,
            error,
            exc_info=surprise,
        )

    def _give_up_all(self, error: KieError) -> None:
        for watch in {watch for *_, watch in self._heap}:  # every deadline stands in the heap
            if watch.handle is not None and watch.handle.task_id:
                self._give_up(watch.handle, error)

    def _next_delay_s(self, watch: _Watch, source: Source) -> float:
        """Return the delay to the next look; those after a ring come soon."""
        rechecks = self._schedule.recheck_s
        if (source is Source.CALLBACK or watch.rechecks) and watch.rechecks < len(rechecks):
            watch.rechecks += 1  # the callback outran the record, or somebody rang for fun
            return rechecks[watch.rechecks - 1]
        return self._delay_s(watch)

    def _delay_s(self, watch: _Watch) -> float:
        return self._schedule.delay_s(
            self._loop.time() - watch.since,
            looks=watch.looks,
            expects_callback=watch.expects_callback,
            chance=self._rng.random(),
        )

    def _ring_delay_s(self, watch: _Watch) -> float:
        """Return how long a ring waits: rings of strangers must not become a flood of queries."""
        return watch.last_look + self._schedule.ring_gap_s - self._loop.time()
