"""Polls every tracked task when its plan says so: one scheduler, one timer, one shared query limit."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from typing import Protocol

from .._background import BackgroundTasks
from ..errors import ApiError, KieError
from ..events import Source
from ..http.query_client import QueryClient
from ..limits.query_speed import QueryPace
from ..limits.weather import NO_SINK, WeatherSink
from ..models import TaskRecord, TaskState
from ..planning.planner import Learned, PollPlanner
from ..planning.survival import SurvivalCurve
from ..wire.records import failed_record
from .entry import NEVER, PollEntry, PollStep
from .failures import LASTING_S, Decision, FailurePolicy, StateWarnings
from .learner import Learner
from .poll_queue import PollQueue
from .sleep import SleepDetector
from .timer_wheel import TICK_S, TimerWheel


class PollSink(Protocol):
    """Who takes in what polling found: the tracker; a list in tests. Keys are those of the entries."""

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in one observation of a task."""

    def give_up(self, key: str, error: KieError) -> None:
        """Take in that the service keeps refusing to show a task."""

    def expire(self, key: str) -> None:
        """Take in that a deadline has passed."""


class Poller:
    """Polls when the planner says so, and at once when a callback asks for it.

    No asyncio task and no timer is held per tracked task.
    """

    def __init__(
        self,
        queries: QueryClient,
        pace: QueryPace,
        planner: PollPlanner,
        *,
        connections: int,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop | None = None,
        weather: WeatherSink = NO_SINK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queries = queries
        self._rate_limiter = pace.limiter
        self._pace = pace
        self._planner = planner
        self._schedule = planner.schedule
        self._connections = connections
        self._loop = loop or asyncio.get_running_loop()
        self._now = self._loop.time
        self._rng = rng
        self._sink: PollSink
        self._wheel = TimerWheel(self._loop, self._on_due)
        self._due = PollQueue(longest_s=self._schedule.longest_gap_s)
        self._learner = Learner(planner)
        self._failures = FailurePolicy(
            pace, grace_s=self._schedule.visibility_grace_s, rng=rng, weather=weather
        )
        self._sleep = SleepDetector(clock=clock, sink=weather)
        self._state_warnings = StateWarnings()
        self._workers = BackgroundTasks("kie_async poller")
        self._idle = 0
        self._worker_count = 0
        """Counted here and not in `_workers`: an eager task runs before its owner has it."""
        self._probes: set[PollEntry] = set()
        """Polled as if no callback were expected, until one came or was missed."""
        self._grace: asyncio.TimerHandle | None = None
        self._is_closed = False

    # --- what is tracked -----------------------------------------------------------------------

    def start(self, sink: PollSink) -> None:
        """Say who takes in what is found; before that nothing may be tracked."""
        self._sink = sink

    def track(
        self,
        task_id: str,
        *,
        model: str,
        deadline: float,
        expects_callback: bool,
        at_once: bool = False,
        read_at: float = NEVER,
    ) -> PollEntry:
        """Begin to poll a task; *at_once* is for tasks that began long ago.

        *read_at* is when its record was read before that: no callback makes it be read again at once.
        """
        entry = PollEntry(task_id, model, deadline, self._now(), expects_callback)
        self._wheel.add(entry)
        if at_once:
            entry.last_seen_running_s = math.inf
            entry.next_at = entry.begun_at + self._schedule.first_s * self._rng.random()
        else:
            # Until a callback has come nobody knows whether the address is right: some tasks are polled as
            # if they had none, so that a wrong one is noticed early.
            if expects_callback and self._planner.should_probe():
                self._probes.add(entry)
            entry.next_at = self._plan(entry, self._rng.random(), entry.begun_at)
        entry.last_polled_at = read_at
        entry.next_at = max(entry.next_at, self._soonest(entry))
        self._wheel.schedule(entry)
        return entry

    def track_deadline(self, key: str, deadline: float) -> PollEntry:
        """Only wait for a deadline: of a create whose task id is not known."""
        entry = PollEntry(key, "", deadline, self._now(), expects_callback=True)
        self._wheel.add(entry)
        return entry

    def outlast_weather(self, entry: PollEntry | None) -> None:
        """Let a deadline wait for an answer while polls fail."""
        if entry is not None:
            entry.outlasts_weather = True

    def mark_foreign(self, entry: PollEntry | None) -> None:
        """Take in that the id may be mistyped: the journal does not know it."""
        if entry is not None and entry.last_record is None:
            self._failures.mark_foreign(entry)

    def forget(self, entry: PollEntry | None) -> None:
        """Never poll this again."""
        if entry is not None and not entry.is_closed:
            entry.close()
            self._failures.forget(entry)
            self._wheel.note_closed()

    def poll_now(self, entry: PollEntry | None) -> None:
        """Poll at once: a callback came. Many calls while one poll is due or on its way make one poll."""
        if entry is None or entry.is_closed or entry.is_urgent:
            return
        entry.is_urgent = True
        if entry.failures is not None:
            entry.failures.urgent_polls = 0
        if entry.step is not PollStep.ON_ITS_WAY:
            self._schedule_next(entry, None, self._now())

    def poll_soon(self, entry: PollEntry) -> None:
        """Poll at the next turn, as if its time had come: something in the record is wanted."""
        if entry.step is PollStep.PLANNED and not entry.is_closed:
            now = self._now()
            self._poll_at(entry, max(now, self._soonest(entry)), now)

    def __len__(self) -> int:
        return len(self._wheel)

    async def aclose(self) -> None:
        """Stop polling."""
        self._is_closed = True
        self._wheel.close()
        if self._grace is not None:
            self._grace.cancel()
        await self._workers.aclose()
        self._due.clear()

    # --- what the ends teach -------------------------------------------------------------------

    def complete(
        self, entry: PollEntry, record: TaskRecord, source: Source, intent_id: str
    ) -> Learned | None:
        """Learn from an end and poll the task never again; return what is known if it is time to save it."""
        if entry.is_closed:
            return None
        self._learner.record_end(entry, record, source, intent_id, self._now())
        if entry.expects_callback and source is Source.POLL:
            self._await_late_callbacks()
        self.forget(entry)
        self._tighten()
        return self._planner.take_learned()

    def take_learned(self) -> Learned | None:
        """Return what is known, if any end was taken in since it was last returned."""
        return self._planner.take_learned(1)

    def survival(self, model: str) -> SurvivalCurve | None:
        """Return the share of a model's tasks that run at each age; None until enough were seen to end."""
        running_since = (entry.begun_at for entry in self.list_running() if entry.model == model)
        return self._planner.survival(model, running_since, self._now())

    def list_running(self) -> list[PollEntry]:
        """Return the entries of all tasks whose age is known."""
        return [
            entry
            for entry in self._wheel.list_entries()
            if entry.next_at < math.inf and entry.last_seen_running_s < math.inf
        ]

    def restore(self, learned: Learned) -> None:
        """Begin with what another session had learned."""
        self._planner.restore(learned)

    def note_late_callback(self, intent_id: str) -> None:
        """Learn that a callback came for a task whose end was known: it was not lost."""
        self._learner.record_late_callback(intent_id)

    def _await_late_callbacks(self) -> None:
        """Judge what is missing when its time is over, though nothing else may be due then."""
        until = self._planner.callback_loss.next_expiry
        if self._grace is None and until < math.inf and not self._is_closed:
            self._grace = self._loop.call_at(until + TICK_S, self._give_up_late_callbacks)

    def _give_up_late_callbacks(self) -> None:
        self._grace = None
        self._planner.callback_loss.expire(self._now())
        self._tighten()
        self._await_late_callbacks()

    def _tighten(self) -> None:
        """Bring polls forward if callbacks turn out to be lost; the rest is put off when it comes due."""
        if not self._planner.should_replan():
            return
        now = self._now()
        for entry in self._wheel.list_entries():
            is_waiting = entry.next_at < math.inf and entry.step is PollStep.PLANNED
            if entry.expects_callback and is_waiting:
                at = self._plan(entry, self._rng.random(), now)
                if at < entry.next_at - TICK_S:
                    entry.next_at = at
                    self._wheel.schedule(entry)

    # --- when ----------------------------------------------------------------------------------

    def _plan(self, entry: PollEntry, chance: float, now: float) -> float:
        """Return the instant of the poll after the last, as the planner has it."""
        age_s = self._planner.next_poll_s(
            entry.model,
            entry.last_polled_s,
            is_first=entry.is_first,
            by_callback=self._is_by_callback(entry),
            chance=chance,
            now=now,
        )
        return entry.begun_at + age_s

    def _is_by_callback(self, entry: PollEntry) -> bool:
        if not entry.expects_callback:
            return False
        if self._probes and self._planner.callback_loss.is_proven:
            self._probes.clear()
        return entry not in self._probes

    def _chance(self, entry: PollEntry, now: float) -> float:
        """Return how likely the task has ended unnoticed since its last poll."""
        return self._planner.chance(
            entry.model,
            entry.last_polled_s,
            now - entry.begun_at,
            by_callback=self._is_by_callback(entry),
            now=now,
        )

    def _on_due(self, now: float) -> None:
        self._sleep.note_turn(now, self._wheel.late_s)
        for entry in self._wheel.take_due(now):
            if entry.is_closed:
                continue
            if entry.deadline <= now:
                self._expire(entry, now)
            # Void unless its time has come: when that moves, what stands in the wheel is left there.
            elif entry.next_at <= now and entry.step is PollStep.PLANNED and not self._is_put_off(entry, now):
                self._due.put(entry)
        self._dispatch()

    def _expire(self, entry: PollEntry, now: float) -> None:
        """End the wait for a task, unless the weather kept it from being asked for."""
        deadline = self._sleep.spared_deadline(entry)
        if deadline is None and entry.outlasts_weather and entry.is_failing:
            deadline = now + LASTING_S
        if deadline is None:
            self._sink.expire(entry.key)
            return
        entry.deadline = deadline
        self._wheel.add(entry)
        if entry.next_at < math.inf:  # else it has no task to poll
            self.poll_soon(entry)

    def _is_put_off(self, entry: PollEntry, now: float) -> bool:
        """Put a poll off that callbacks have made needless since it was planned."""
        is_asked_for = entry.is_urgent or entry.failures is not None or entry.last_seen_running_s == math.inf
        if is_asked_for or not self._is_by_callback(entry) or self._plan(entry, 0.0, now) <= now + TICK_S:
            return False
        entry.next_at = self._plan(entry, self._rng.random(), now)
        self._wheel.schedule(entry)
        return True

    def _schedule_next(self, entry: PollEntry, delay_s: float | None, now: float) -> None:
        """Set the next poll; without *delay_s* the planner says when."""
        if entry.is_urgent:  # callbacks of strangers must not become a flood of queries
            at = self._soonest(entry)
        elif delay_s is not None:
            at = now + delay_s
        else:
            at = self._plan(entry, self._rng.random(), now)
        self._poll_at(entry, at, now)

    def _soonest(self, entry: PollEntry) -> float:
        """Return the instant before which nobody's word makes a task be read again."""
        return entry.last_polled_at + self._schedule.ring_gap_s

    def _poll_at(self, entry: PollEntry, at: float, now: float) -> None:
        entry.next_at = at
        if at > now:
            self._wheel.schedule(entry)
        else:
            self._due.put(entry)
            self._dispatch()

    # --- poll ----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Have one worker more at hand than polls right now, as long as there is anything to poll."""
        has_room = self._worker_count < self._connections and not self._is_closed
        if not self._idle and self._due and has_room:
            self._idle += 1
            self._worker_count += 1
            self._workers.spawn(self._poll_while_due())

    async def _poll_while_due(self) -> None:
        try:
            while self._due:
                # The permit first and the choice after it: what matters most may change in the wait.
                now = await self._rate_limiter.acquire()
                entry = self._due.pop(now, self._chance)
                if entry is None or entry.is_closed:
                    self._rate_limiter.release_unused()
                    continue
                self._pace.note_wait(now - entry.next_at, now)
                self._idle -= 1
                self._dispatch()
                try:
                    await self._poll(entry, now)
                finally:
                    self._idle += 1
                entry = None  # whoever waits for a permit keeps no task alive
        finally:
            self._idle -= 1
            self._worker_count -= 1

    async def _poll(self, entry: PollEntry, now: float) -> None:
        """Read one record and hand it to the sink."""
        source = Source.CALLBACK if entry.is_urgent else Source.POLL
        entry.begin_poll(now)
        try:
            try:
                record = await self._queries.read_record(entry.key, unless=entry)
            finally:
                now = self._rate_limiter.release()
                entry.step = PollStep.PLANNED
        except Exception as exc:  # whatever a poll ends in, the task is paid and will be polled again
            self._act_on_failure(entry, exc)
            delay_s = self._failures.retry_delay_s(entry)
            if delay_s is None:
                delay_s = self._urgent_delay_s(entry, source)
        else:
            self._failures.record_success(entry, now)
            delay_s = self._act_on_record(entry, record, source)
        if not entry.is_closed:
            self._schedule_next(entry, delay_s, now)

    def _act_on_failure(self, entry: PollEntry, error: Exception) -> None:
        decision = self._failures.record_failure(entry, error, self._now())
        # A mistake of ours must not cost a paid task: only what the service itself said can end one.
        if decision is Decision.FAIL and isinstance(error, ApiError):
            self._sink.deliver(failed_record(entry.key, error.code, error.message), Source.POLL)
        elif not isinstance(error, KieError):
            return
        elif decision is Decision.GIVE_UP:
            self._sink.give_up(entry.key, error)
        elif decision is Decision.GIVE_UP_ALL:
            for other in self._wheel.list_entries():
                # A create without an id has nothing to poll: a refused key proves nothing about it.
                if other.next_at < math.inf:
                    self._sink.give_up(other.key, error)

    def _act_on_record(self, entry: PollEntry, record: TaskRecord, source: Source) -> float | None:
        """Take a record to the sink; return the delay to the next poll, if the planner shall not say it."""
        entry.model = entry.model or record.model
        if not record.state.is_terminal:
            self._state_warnings.note(record, entry.last_polled_at)
            self._learner.record_running(entry, record)
        elif record.state is TaskState.SUCCESS and not record.has_result:
            # The state may be written before the URLs are: a paid result is asked for a few times more
            # before it is called unreadable.
            delays_s, failures = self._schedule.recheck_s, entry.need_failures()
            if failures.empty_successes < len(delays_s):
                failures.empty_successes += 1
                return delays_s[failures.empty_successes - 1]
        self._sink.deliver(record, source)
        return self._urgent_delay_s(entry, source)

    def _urgent_delay_s(self, entry: PollEntry, source: Source) -> float | None:
        """Return the delay of a poll after an urgent one, which comes soon; None after any other."""
        if source is Source.POLL and (entry.failures is None or not entry.failures.urgent_polls):
            return None
        delays_s, failures = self._schedule.recheck_s, entry.need_failures()
        if failures.urgent_polls == len(delays_s):
            return None
        failures.urgent_polls += 1  # the callback outran the record, or somebody called for fun
        return delays_s[failures.urgent_polls - 1]
