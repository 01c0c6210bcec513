"""One scheduler for all handles: an agenda, a tick, one shared query limit."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

from ..errors import KieError
from ..events import Source
from ..handle import TaskHandle
from ..limits.rate_limiter import RateLimiter
from ..models import TaskRecord, TaskState
from ..planning.planner import Learned, PollPlanner
from .entry import PollEntry
from .failures import FailurePolicy
from .poll_queue import PollQueue
from .timer_wheel import TICK_S, TimerWheel

_BEFORE_ANSWER_S = 1.0
"""A task may run for so long before its create is answered."""


class Poller:
    """Looks at every watched task when its schedule says so, and at once when a callback rings.

    *ask* reads one record, *deliver* takes it to the session, *give_up* settles a handle with an
    error, *expire* one whose deadline passed, *keep* notes what was learned. No task and no timer is
    held per handle.
    """

    def __init__(
        self,
        *,
        ask: Callable[[str], Awaitable[TaskRecord]],
        deliver: Callable[[TaskRecord, Source], None],
        give_up: Callable[[TaskHandle, KieError], None],
        expire: Callable[[TaskHandle], None],
        limiter: RateLimiter,
        timetable: PollPlanner,
        connections: int,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        keep: Callable[[Learned], object] = lambda _: None,
    ) -> None:
        self._ask = ask
        self._keep = keep
        self._deliver = deliver
        self._expire = expire
        self._limiter = limiter
        self._timetable = timetable
        self._schedule = timetable.schedule
        self._connections = connections
        self._loop = loop
        self._rng = rng
        self._agenda = TimerWheel(loop, self._tick)
        self._due = PollQueue(self._chance, longest_s=timetable.schedule.longest_gap_s)
        self._pollers: set[asyncio.Task[None]] = set()
        self._probes: set[PollEntry] = set()
        """Looked at as if no callback were expected, until one came or was missed."""
        self._idle = 0
        self._now = loop.time
        self._setbacks = FailurePolicy(
            limiter=limiter,
            grace_s=timetable.schedule.visibility_grace_s,
            give_up=give_up,
            everybody=self._agenda.watches,
            now=loop.time,
            rng=rng,
        )
        self._grace: asyncio.TimerHandle | None = None
        self._is_closed = False

    def watch(self, handle: TaskHandle, *, expects_callback: bool, at_once: bool = False) -> None:
        """Begin to look at the task of *handle*; *at_once* is for tasks that began long ago."""
        watch = self._register(handle, expects_callback=expects_callback)
        if at_once:
            watch.seen_s = math.inf
            watch.at = watch.since + self._schedule.first_s * self._rng.random()
        else:
            if expects_callback and self._timetable.should_probe():
                self._probes.add(watch)
            watch.at = self._next_at(watch, self._rng.random(), watch.since)
        self._agenda.put(watch)

    def wait_for_deadline(self, handle: TaskHandle) -> None:
        """Only wait for the deadline of a handle whose task id is not known."""
        self._register(handle, expects_callback=True)

    def _register(self, handle: TaskHandle, *, expects_callback: bool) -> PollEntry:
        self.forget(handle)
        watch = PollEntry(handle=handle, since=self._now(), expects_callback=expects_callback)
        handle._watch = watch
        self._agenda.add(watch)
        return watch

    def forget(self, handle: TaskHandle) -> None:
        """Never look at *handle* again."""
        if isinstance(handle._watch, PollEntry):
            handle._watch.handle = None
            handle._watch = None
            self._agenda.drop()

    def ring(self, handle: TaskHandle) -> None:
        """Look at once: a callback came. Many rings while one look is due or on its way make one look."""
        watch = handle._watch
        if not isinstance(watch, PollEntry) or watch.is_urgent:
            return
        watch.is_urgent = True
        if watch.setback is not None:
            watch.setback.rechecks = 0
        if not watch.is_polling:
            self._plan(watch, None, self._now())

    async def aclose(self) -> None:
        """Stop looking."""
        self._is_closed = True
        self._agenda.close()
        if self._grace is not None:
            self._grace.cancel()
        for looker in self._pollers:
            looker.cancel()
        await asyncio.gather(*self._pollers, return_exceptions=True)
        self._due.clear()

    # --- what the ends teach -----------------------------------------------------------------------

    def ended(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        """Learn from the end of a task, and never look at it again."""
        watch = handle._watch
        if not isinstance(watch, PollEntry):
            return
        now = self._now()
        age_s = now - watch.since
        told_s = age_s if record.duration_s is None and source is Source.CALLBACK else record.duration_s
        ran_s = self._ran_s(watch, age_s, told_s)
        if ran_s is not None:
            self._timetable.note_finished(self._model(watch), ran_s, seen_s=watch.seen_s)
            if watch.expects_callback and source is Source.POLL:
                self._timetable.callback_loss.note_polled_end(handle._intent_id, now, late_s=age_s - ran_s)
                self._wait_for_callback()
        if source is Source.CALLBACK:
            self._timetable.callback_loss.note_callback(handle._intent_id, is_news=True)
        self.forget(handle)
        self._tighten()
        if (learned := self._timetable.take_learned()) is not None:
            self._keep(learned)

    def _ran_s(self, watch: PollEntry, age_s: float, told_s: float | None) -> float | None:
        """Return how long a task ran, within what was seen of it; None if nobody here saw its beginning."""
        latest_s = age_s + _BEFORE_ANSWER_S
        if watch.seen_s > age_s or (not watch.seen_s and told_s is not None and told_s > latest_s):
            return None  # attached, or adopted: it is older than it was known here
        found_s = (watch.seen_s + age_s) / 2 if told_s is None else told_s
        return max(min(found_s, latest_s), watch.seen_s)

    def note_late_callback(self, intent_id: str) -> None:
        """Learn that a callback came for a task whose end was known: it was not lost."""
        self._timetable.callback_loss.note_callback(intent_id, is_news=False)

    def _wait_for_callback(self) -> None:
        """Judge what is missing when its time is over, though nothing else may be due then."""
        until = self._timetable.callback_loss.next_expiry
        if self._grace is None and until < math.inf and not self._is_closed:
            self._grace = self._loop.call_at(until + TICK_S, self._miss)

    def _miss(self) -> None:
        self._grace = None
        self._timetable.callback_loss.expire(self._now())
        self._tighten()
        self._wait_for_callback()

    def _tighten(self) -> None:
        """Bring looks forward if callbacks turn out to be lost; the rest is put off when it comes due."""
        if not self._timetable.should_replan():
            return
        now = self._now()
        for watch in self._agenda.watches():
            is_waiting = watch.at < math.inf and not watch.is_queued and not watch.is_polling
            if watch.expects_callback and is_waiting:
                at = self._next_at(watch, self._rng.random(), now)
                if at < watch.at - TICK_S:
                    watch.at = at
                    self._agenda.put(watch)

    # --- when --------------------------------------------------------------------------------------

    def _next_at(self, watch: PollEntry, chance: float, now: float) -> float:
        """Return the instant of the look after the last, as the timetable has it."""
        age_s = self._timetable.next_poll_s(
            self._model(watch),
            watch.last_polled_s,
            is_first=watch.last_polled_at == -math.inf,
            by_callback=self._is_by_callback(watch),
            chance=chance,
            now=now,
        )
        return watch.since + age_s

    def _is_by_callback(self, watch: PollEntry) -> bool:
        if not watch.expects_callback:
            return False
        if self._probes and self._timetable.callback_loss.is_proven:
            self._probes.clear()
        return watch not in self._probes

    def _model(self, watch: PollEntry) -> str:
        handle = watch.handle
        if handle is None:
            return ""
        return handle._model or (handle.record.model if handle.record else "")

    def _chance(self, watch: PollEntry, now: float) -> float:
        """Return how likely the task of *watch* has ended unnoticed since its last look."""
        return self._timetable.chance(
            self._model(watch),
            watch.last_polled_s,
            now - watch.since,
            by_callback=self._is_by_callback(watch),
            now=now,
        )

    def _tick(self, now: float) -> None:
        for watch in self._agenda.due(now):
            if watch.handle is None:
                continue
            if watch.handle.deadline <= now:
                self._expire(watch.handle)
            elif watch.at <= now and not (
                watch.is_queued or watch.is_polling or self._is_put_off(watch, now)
            ):
                self._due.put(watch)
        self._dispatch()

    def _is_put_off(self, watch: PollEntry, now: float) -> bool:
        """Put a look off that callbacks have made needless since it was planned."""
        is_asked_for = watch.is_urgent or watch.setback is not None or watch.seen_s == math.inf
        if is_asked_for or not self._is_by_callback(watch) or self._next_at(watch, 0.0, now) <= now + TICK_S:
            return False
        watch.at = self._next_at(watch, self._rng.random(), now)
        self._agenda.put(watch)
        return True

    def _dispatch(self) -> None:
        """Have one looker more at hand than look right now, as long as there is anything to look at."""
        if not self._idle and self._due and len(self._pollers) < self._connections and not self._is_closed:
            self._idle += 1
            looker = self._loop.create_task(self._look_while_due(), name="kie_async poller")
            self._pollers.add(looker)
            looker.add_done_callback(self._pollers.discard)

    # --- look --------------------------------------------------------------------------------------

    async def _look_while_due(self) -> None:
        try:
            while self._due:
                now = await self._limiter.acquire()
                watch = self._due.pop(now)
                if watch is None or watch.handle is None:
                    self._limiter.release_unused()
                    continue
                self._idle -= 1
                self._dispatch()
                try:
                    await self._look(watch, watch.handle, now)
                finally:
                    self._idle += 1
                watch = None  # who waits for a permit keeps no handle alive
        finally:
            self._idle -= 1

    async def _look(self, watch: PollEntry, handle: TaskHandle, now: float) -> None:
        source = Source.CALLBACK if watch.is_urgent else Source.POLL
        watch.is_polling, watch.is_urgent = True, False
        watch.last_polled_at = now
        try:
            try:
                record = await self._ask(handle.task_id)
            finally:
                now = self._limiter.release()
                watch.is_polling = False
        except Exception as exc:  # whatever a look ends in, the task is paid and will be looked at again
            self._setbacks.meet(watch, exc)
            wait_s = self._recheck_s(watch, source)
        else:
            self._setbacks.over(watch)
            wait_s = self._after_record(watch, record, source)
        if watch.handle is not None:
            self._plan(watch, wait_s, now)

    def _plan(self, watch: PollEntry, wait_s: float | None, now: float) -> None:
        if watch.is_urgent:  # rings of strangers must not become a flood of queries
            at = watch.last_polled_at + self._schedule.ring_gap_s
        elif wait_s is not None:
            at = now + wait_s
        else:
            at = self._next_at(watch, self._rng.random(), now)
        watch.at = at
        if at > now:
            self._agenda.put(watch)
        else:
            self._due.put(watch)
            self._dispatch()

    def _after_record(self, watch: PollEntry, record: TaskRecord, source: Source) -> float | None:
        """Take news to the session; return the delay to the next look, if the timetable shall not say it."""
        if not record.state.is_terminal:
            self._still_running(watch, record)
        elif record.state is TaskState.SUCCESS and not record.has_result:
            rechecks, setback = self._schedule.recheck_s, watch.need_failures()
            if setback.empties < len(rechecks):
                setback.empties += 1
                return rechecks[setback.empties - 1]
        self._deliver(record, source)
        return self._recheck_s(watch, source)

    def _still_running(self, watch: PollEntry, record: TaskRecord) -> None:
        age_s = watch.last_polled_at - watch.since
        if watch.seen_s != math.inf:
            if self._schedule.learns:
                self._timetable.note_running(self._model(watch), watch.seen_s, age_s)
        elif record.created_at and record.updated_at and record.updated_at > record.created_at:
            # An older task: its age is no less than that, by the service's own clock alone.
            watch.since = min(
                watch.since, watch.last_polled_at - (record.updated_at - record.created_at).total_seconds()
            )
            age_s = watch.last_polled_at - watch.since
        watch.seen_s = age_s

    def _recheck_s(self, watch: PollEntry, source: Source) -> float | None:
        """Return the delay of a look after a ring, which comes soon; None for any other."""
        if source is Source.POLL and (watch.setback is None or not watch.setback.rechecks):
            return None
        rechecks, setback = self._schedule.recheck_s, watch.need_failures()
        if setback.rechecks == len(rechecks):
            return None
        setback.rechecks += 1  # the callback outran the record, or somebody rang for fun
        return rechecks[setback.rechecks - 1]
