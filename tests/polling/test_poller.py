"""One scheduler polls all tasks: when their schedule says so, within one limit, whatever comes back.

The first part asks a poller alone, in virtual time; the second asks the sandbox over sockets.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import attrs
import pytest
from conftest import NO_LIMITS, OpenSession
from support.clock import Clock, settle

from kie_async import (
    ApiError,
    AuthenticationError,
    KieError,
    KieSession,
    Limits,
    NotFound,
    PollSchedule,
    Rate,
    ResultUnreadable,
    Sandbox,
    TaskFailed,
    TaskRecord,
    TaskState,
)
from kie_async.errors import AnswerUnreadable, ServerError, TransportError
from kie_async.events import Source
from kie_async.handle import TaskHandle
from kie_async.limits.query_speed import QueryPace, QuerySpeed
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.limits.weather import NO_SINK
from kie_async.planning.planner import PollPlanner
from kie_async.polling.entry import PollEntry
from kie_async.polling.poller import Poller
from kie_async.polling.sleep import SleepDetector
from kie_async.polling.timer_wheel import TICK_S, TimerWheel
from kie_async.sandbox.window import Window
from kie_async.wire.codes import error_for
from kie_async.wire.records import decode_record

Answer = TaskRecord | Exception


def running(task_id: str) -> TaskRecord:
    return TaskRecord(task_id=task_id, state=TaskState.GENERATING)


def done(task_id: str, *urls: str) -> TaskRecord:
    return TaskRecord(task_id=task_id, state=TaskState.SUCCESS, urls=urls or ("https://files.example/a.mp4",))


class Bench:
    """A poller alone: what it asks is answered by *answer*, what it does is written down."""

    def __init__(
        self, clock: Clock, schedule: PollSchedule, rate: Rate, connections: int, ceiling: Rate | None
    ) -> None:
        self.clock = clock
        self.answer: Callable[[str], Answer] = running
        self.gate: asyncio.Event | None = None
        self.polls: list[tuple[float, str]] = []
        self.news: list[tuple[TaskRecord, Source]] = []
        self.given_up: list[tuple[PollEntry, KieError]] = []
        self.expired: list[PollEntry] = []
        self.entries: dict[str, PollEntry] = {}
        loop = asyncio.get_running_loop()
        self.poller = Poller(
            self,  # type: ignore[arg-type]  (of a query client it reads records only)
            QueryPace(RateLimiter(rate, now=loop.time), QuerySpeed(rate, ceiling)),
            PollPlanner(schedule),
            connections=connections,
            rng=random.Random(1),
        )
        self.poller.start(self)

    async def read_record(self, task_id: str, *, unless: object) -> TaskRecord:
        self.polls.append((self.clock.now, task_id))
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answer(task_id)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def deliver(self, record: TaskRecord, source: Source) -> None:
        self.news.append((record, source))
        if record.state.is_terminal:
            self.poller.forget(self.entries[record.task_id])

    def give_up(self, key: str, error: KieError) -> None:
        self.given_up.append((self.entries[key], error))
        self.poller.forget(self.entries[key])

    def expire(self, key: str) -> None:
        self.expired.append(self.entries[key])
        self.poller.forget(self.entries[key])

    def track(
        self,
        task_id: str = "t",
        *,
        timeout_s: float = math.inf,
        expects_callback: bool = False,
        **options: Any,
    ) -> PollEntry:
        entry = self.entries[task_id] = self.poller.track(
            task_id,
            model="",
            deadline=self.clock.now + timeout_s,
            expects_callback=expects_callback,
            **options,
        )
        return entry

    def times(self, task_id: str = "t") -> list[float]:
        """Return when a task was polled, in seconds since the clock began."""
        return [at - 1000.0 for at, polled in self.polls if polled == task_id]

    def gaps(self, task_id: str = "t") -> list[float]:
        return [later - at for at, later in pairwise(self.times(task_id))]


NewBench = Callable[..., Bench]


@pytest.fixture
async def bench(clock: Clock) -> AsyncIterator[NewBench]:
    """Return a function that makes a poller to try."""
    made: list[Bench] = []

    def new_bench(
        schedule: PollSchedule = PollSchedule(),  # noqa: B008  (frozen)
        rate: Rate = Rate(1000, per_s=0.001),  # noqa: B008
        connections: int = 16,
        ceiling: Rate | None = None,
    ) -> Bench:
        made.append(Bench(clock, schedule, rate, connections, ceiling))
        return made[-1]

    yield new_bench
    for each in made:
        await each.poller.aclose()


EVERY_SECOND = PollSchedule.fixed(1.0, jitter=0.0)


class TestCadence:
    async def test_the_first_poll_comes_after_two_seconds_or_so(self, clock: Clock, bench: NewBench) -> None:
        bench = bench()
        for number in range(100):
            bench.track(f"t{number}")

        await clock.advance(3.0)

        firsts = [at - 1000.0 for at, _ in bench.polls[:100]]
        assert len({task_id for _, task_id in bench.polls[:100]}) == 100
        assert 1.8 <= min(firsts) < 1.9
        assert 2.1 < max(firsts) <= 2.2 + TICK_S

    async def test_polls_follow_the_documented_advice(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(PollSchedule.documented())
        bench.track()

        await clock.advance(1200.0)

        times = bench.times()
        for at, later in pairwise(times):
            low_s = 2.0 if at < 30 else 6.0 if at < 120 else 18.0
            high_s = 3.0 if later < 30 else 9.0 if later < 120 else 27.0
            assert low_s <= later - at <= high_s + TICK_S
        assert times[-1] > 1170

    async def test_jitter_keeps_tasks_that_began_together_apart(self, clock: Clock, bench: NewBench) -> None:
        bench = bench()
        for number in range(200):
            bench.track(f"t{number}")

        await clock.advance(300.0)

        late = Counter(at for at, _ in bench.polls if at > 1200)
        assert max(late.values()) < 10

    async def test_with_a_callback_expected_the_poll_is_only_the_net(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(PollSchedule.documented())
        bench.track(expects_callback=True)

        await clock.advance(1200.0)

        times = [0.0, *bench.times()]
        assert all(48.0 <= later - at <= 72.0 + TICK_S for at, later in pairwise(times))
        assert len(times) > 15

    async def test_tasks_of_former_times_are_polled_at_once_but_not_all_in_one_moment(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench()
        for number in range(500):
            bench.track(f"t{number}", expects_callback=True, at_once=True)

        await clock.advance(2.5)

        assert len({task_id for _, task_id in bench.polls}) == 500
        per_tick = Counter(at for at, _ in bench.polls)
        assert len(per_tick) > 30
        assert max(per_tick.values()) < 50

    async def test_polls_due_within_one_tick_are_woken_together(self, clock: Clock, bench: NewBench) -> None:
        bench = bench()
        for number in range(500):
            bench.track(f"t{number}")

        await clock.advance(3.0)

        ticks = {round((at - 1000.0) / TICK_S, 6) for at, _ in bench.polls}
        assert all(tick.is_integer() for tick in ticks)

    async def test_watching_again_starts_anew(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        entry = bench.track()
        await clock.advance(0.7)

        bench.poller.forget(entry)
        bench.track()
        await clock.advance(0.7)
        assert not bench.polls

        await clock.advance(0.5)
        assert len(bench.polls) == 1

    async def test_a_suspend_makes_one_poll_due_not_all_that_were_missed(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        await clock.advance(10.5)
        before = len(bench.polls)

        clock.jump(3600.0)
        await settle()
        await clock.advance(0.1)

        assert len(bench.polls) == before + 1

    async def test_nothing_is_polled_after_the_close(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.gate = asyncio.Event()
        entries = [bench.track("t0"), bench.track("t1")]
        await clock.advance(1.1)
        assert len(bench.polls) == 2

        await bench.poller.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert all(timer.cancelled() for timer in asyncio.get_running_loop()._scheduled)
        await clock.advance(5.0)
        bench.poller.poll_now(entries[0])
        bench.track("t2")
        await clock.advance(100.0)

        assert len(bench.polls) == 2
        assert not bench.news


class TestDeadlines:
    async def test_a_handle_expires_at_its_deadline(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        entry = bench.track(timeout_s=10.0)

        await clock.advance(9.99)
        assert not bench.expired
        await clock.advance(TICK_S)

        assert bench.expired == [entry]

    async def test_an_expired_handle_is_not_polled_again(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track(timeout_s=10.0)

        await clock.advance(100.0)

        assert max(bench.times()) < 10.1

    async def test_an_endless_deadline_stops_nothing(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track("forever", timeout_s=math.inf)

        await clock.advance(10.5)
        bench.track("later", timeout_s=math.inf)
        await clock.advance(10.5)

        assert len(bench.times("forever")) >= 19
        assert len(bench.times("later")) >= 9

    async def test_a_handle_without_a_task_only_waits_for_its_deadline(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)

        entry = bench.entries["intent"] = bench.poller.track_deadline("intent", clock.now + 5.0)
        await clock.advance(5.1)

        assert bench.expired == [entry]
        assert not bench.polls

    async def test_a_settled_handle_does_not_expire(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.answer = done
        bench.track(timeout_s=10.0)

        await clock.advance(20.0)

        assert not bench.expired


class TestTheLimit:
    async def test_no_window_holds_more_polls_than_the_rate_allows(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(rate=Rate(10, per_s=1.0))
        for number in range(300):
            bench.track(f"t{number}")

        await clock.advance(120.0)

        times = [at for at, _ in bench.polls]
        most = max(bisect_left(times, at + 1.0) - index for index, at in enumerate(times))
        assert most == 10
        assert len(times) > 0.95 * 10 * 118

    async def test_under_overload_each_gets_its_turn(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(rate=Rate(10, per_s=1.0))
        for number in range(500):
            bench.track(f"t{number}")

        await clock.advance(600.0)

        polls = Counter(task_id for _, task_id in bench.polls)
        assert len(polls) == 500
        assert max(polls.values()) - min(polls.values()) <= 2

    async def test_first_polls_go_before_further_ones(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(rate=Rate(10, per_s=1.0))
        for number in range(500):
            bench.track(f"t{number}")
        await clock.advance(120.0)

        bench.track("new")
        await clock.advance(2.4 + TICK_S + 1.0)

        assert bench.times("new")

    async def test_urgent_handles_go_before_all_others(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(rate=Rate(1, per_s=1.0))
        entries = [bench.track(f"t{number}") for number in range(50)]
        await clock.advance(30.0)
        before = len(bench.polls)

        for entry in entries[40:]:
            bench.poller.poll_now(entry)
        await clock.advance(11.0)

        assert {task_id for _, task_id in bench.polls[before : before + 10]} == {
            entry.key for entry in entries[40:]
        }

    async def test_no_more_polls_are_out_at_once_than_connections(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND, connections=4)
        bench.gate = asyncio.Event()
        for number in range(20):
            bench.track(f"t{number}")

        await clock.advance(1.1)
        assert len(bench.polls) == 4

        bench.gate.set()
        await settle(200)
        assert len(bench.polls) == 20


class TestRefusedForTheRate:
    async def test_a_pause_asked_for_holds_every_poll_back(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track("t0")
        await clock.advance(0.5)
        bench.track("t1")

        bench.answer = lambda _: error_for(429, "too often", retry_after_s=7.0)
        await clock.advance(0.55)
        bench.answer = running
        await clock.advance(6.9)
        assert len(bench.polls) == 1

        await clock.advance(0.2)
        assert {task_id for _, task_id in bench.polls[1:]} == {"t0", "t1"}

    async def test_a_pause_asked_for_is_kept_up_to_a_minute(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()

        bench.answer = lambda _: error_for(429, "too often", retry_after_s=3600.0)
        await clock.advance(61.2)

        assert len(bench.polls) == 2

    async def test_where_none_is_asked_for_the_pauses_grow(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(PollSchedule.fixed(0.1, jitter=0.0))
        bench.track()

        bench.answer = lambda _: error_for(429, "too often")
        await clock.advance(300.0)

        for gap_s, pause_s in zip(bench.gaps(), (1, 2, 4, 8, 16, 32, 60), strict=False):
            assert pause_s / 2 <= gap_s <= pause_s + 0.2

    @pytest.mark.parametrize("answer", [running("t"), ServerError(500, "oops")], ids=["record", "error"])
    async def test_any_other_answer_ends_the_growth(
        self, clock: Clock, bench: NewBench, answer: Answer
    ) -> None:
        bench = bench(PollSchedule.fixed(0.1, jitter=0.0))
        bench.track()
        bench.answer = lambda _: error_for(429, "too often")
        await clock.advance(30.0)

        bench.answer = lambda _: answer
        await clock.advance(60.0)
        bench.answer = lambda _: error_for(429, "too often")
        before = len(bench.polls)
        await clock.advance(0.2)
        bench.answer = running
        await clock.advance(1.2)

        assert len(bench.polls) > before + 2

    async def test_one_burst_of_refusals_is_one_refusal(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.gate = asyncio.Event()
        for number in range(10):
            bench.track(f"t{number}")
        bench.answer = lambda _: error_for(429, "too often")
        await clock.advance(1.1)
        assert len(bench.polls) == 10

        bench.gate.set()
        await settle()
        bench.answer = running
        await clock.advance(2.2)

        assert len(bench.polls) >= 20

    async def test_a_refused_poll_is_made_up_for_before_others_are_due_again(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND, Rate(1, per_s=1.0))
        for number in range(5):
            bench.track(f"t{number}")
        await clock.advance(8.5)
        refusals = [error_for(429, "too often")]
        bench.answer = lambda task_id: refusals.pop() if refusals else running(task_id)
        before = len(bench.polls)
        await clock.advance(4.0)
        refused, made_up_for, following = (task_id for _, task_id in bench.polls[before : before + 3])
        assert refused == made_up_for != following

    @pytest.mark.parametrize("order", [range(5), range(4, -1, -1)], ids=["first", "last"])
    async def test_a_task_refused_while_others_get_through_is_held_back_alone(
        self, clock: Clock, bench: NewBench, order: range
    ) -> None:
        bench = bench(EVERY_SECOND, Rate(1000, per_s=1.0))
        for number in order:
            bench.track(f"t{number}")
        bench.answer = lambda task_id: error_for(429, "too often") if task_id == "t0" else running(task_id)
        await clock.advance(60.0)
        assert len(bench.times("t1")) >= 57
        assert len(bench.times("t0")) < 12
        bench.answer = running
        await clock.advance(60.0)
        before = len(bench.times("t0"))
        await clock.advance(10.0)
        assert len(bench.times("t0")) - before >= 9

    async def test_polls_that_are_late_get_faster_until_one_is_refused(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND, Rate(10, per_s=1.0), ceiling=Rate(100, per_s=1.0))
        for number in range(200):
            bench.track(f"t{number}")
        window = Window(15, 1.0)
        bench.answer = lambda task_id: (
            running(task_id) if window.admit(clock.now) else error_for(429, "too often")
        )
        await clock.advance(100.0)
        before = len(bench.polls)
        await clock.advance(10.0)
        assert 130 <= len(bench.polls) - before <= 150

    async def test_it_settles_nothing(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: error_for(429, "too often")

        await clock.advance(3600.0)

        assert not bench.given_up
        assert not bench.news


TRANSIENT = (
    TransportError("the server closed the connection"),
    AnswerUnreadable("the answer holds the record of another task"),
    ServerError(500, "server error"),
    ServerError(502, "no readable answer", 502),
    KeyError("a bug of ours"),
)


REFUSALS = (
    error_for(400, "no"),
    error_for(404, "Task not found"),
    error_for(422, "recordInfo is null"),
    error_for(422, "taskId is malformed", 422),
)
WEATHER = (
    AnswerUnreadable("HTTP 403 without an answer of the service (the answer is not JSON)"),
    AnswerUnreadable("the answer holds no record"),
    TransportError("timed out"),
    error_for(404, "No message available"),
    error_for(404, "no such route"),
    error_for(402, "Credits insufficient"),
    error_for(433, "cap"),
    error_for(451, "no"),
    error_for(505, "disabled"),
    error_for(500, "Server Error"),
    error_for(408, "no readable answer", 408),
    error_for(413, "no readable answer", 413),
    error_for(429, "too often"),
    error_for(455, "maintenance"),
)


class TestFailedPolls:
    @pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: f"{type(error).__name__}: {error}")
    async def test_a_transient_failure_settles_nothing_and_is_asked_again(
        self, clock: Clock, bench: NewBench, error: Exception
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: error

        await clock.advance(1000.5)
        assert not bench.given_up
        assert len(bench.polls) == 1000

        bench.answer = done
        await clock.advance(1.0)
        assert [record.state for record, _ in bench.news] == [TaskState.SUCCESS]

    async def test_failures_are_noted_and_one_warning_comes_when_they_last(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "kie_async")
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: TransportError("timed out")

        await clock.advance(120.5)
        bench.answer = running
        await clock.advance(30.0)

        levels = Counter(record.levelno for record in caplog.records)
        assert levels == {logging.INFO: 121, logging.WARNING: 1}
        assert caplog.messages[4] == "poll 5 of task t failed: timed out"
        assert caplog.messages[31] == (
            "polls of task t have failed for 30 s: timed out; it goes on at the service and is asked again"
        )
        assert caplog.messages[-1] == "task t is answered again, after 120 s"

    async def test_an_outage_is_one_warning_for_all_tasks(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "kie_async")
        bench = bench(EVERY_SECOND)
        for number in range(50):
            bench.track(f"t{number}")
        bench.answer = lambda _: AnswerUnreadable("HTTP 403 without an answer of the service")

        await clock.advance(100.0)
        bench.answer = running
        await clock.advance(2.0)

        said = [record for record in caplog.records if not record.message.startswith("poll ")]
        assert [record.levelno for record in said] == [logging.WARNING, logging.INFO]

    async def test_a_second_outage_is_said_again(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        for _ in range(2):
            bench.answer = lambda _: ServerError(502, "no readable answer", 502)
            await clock.advance(60.0)
            bench.answer = running
            await clock.advance(60.0)

        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2

    async def test_a_warning_whose_task_is_gone_makes_room_for_another(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track("gone")
        await clock.advance(0.5)
        bench.track("left")
        bench.answer = lambda _: TransportError("timed out")
        await clock.advance(60.0)

        bench.poller.forget(bench.entries["gone"])
        await clock.advance(60.0)

        assert [record.message.split()[3] for record in caplog.records] == ["gone", "left"]

    async def test_an_answer_ends_the_row(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        answers = ([TransportError("timed out")] * 4 + [running("t")]) * 10
        bench.answer = lambda _: answers.pop()

        await clock.advance(50.5)

        assert not answers
        assert not caplog.records

    @pytest.mark.parametrize("error", REFUSALS, ids=str)
    async def test_a_refusal_settles_the_handle_when_it_lasts_for_five_minutes(
        self, clock: Clock, bench: NewBench, error: ApiError
    ) -> None:
        bench = bench(EVERY_SECOND)
        entry = bench.track()
        await clock.advance(100.5)
        bench.answer = lambda _: error

        await clock.advance(300.0)
        assert not bench.given_up
        await clock.advance(1.0)

        assert bench.given_up == [(entry, error)]

    async def test_a_refusal_settles_nothing_before_the_fifth_answer(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(PollSchedule.fixed(100.0, jitter=0.0))
        bench.track()
        bench.answer = lambda _: error_for(400, "no")

        await clock.advance(450.0)
        assert len(bench.polls) == 4
        assert not bench.given_up
        await clock.advance(100.0)

        assert len(bench.given_up) == 1

    @pytest.mark.parametrize("error", WEATHER, ids=lambda error: f"{type(error).__name__}: {error}")
    async def test_what_does_not_speak_of_the_task_never_ends_its_wait(
        self, clock: Clock, bench: NewBench, error: KieError
    ) -> None:
        bench = bench(PollSchedule.fixed(5.0, jitter=0.0))
        bench.track()
        bench.answer = lambda _: error

        await clock.advance(3600.0)
        assert not bench.given_up
        bench.answer = done
        await clock.advance(66.0)

        assert [record.state for record, _ in bench.news] == [TaskState.SUCCESS]

    async def test_weather_between_refusals_neither_counts_nor_ends_them(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        row: list[Answer] = [error_for(400, "no"), TransportError("timed out")] * 200
        bench.answer = lambda _: row.pop()

        await clock.advance(298.0)
        assert not bench.given_up
        await clock.advance(10.0)

        assert len(bench.given_up) == 1

    async def test_a_record_between_refusals_begins_a_new_row(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        answers: list[Answer] = [error_for(400, "no"), error_for(400, "no"), running("t")] * 20
        bench.answer = lambda _: answers.pop()

        await clock.advance(60.5)

        assert not answers
        assert not bench.given_up

    @pytest.mark.parametrize(
        "error", [error_for(404, "Task not found"), error_for(422, "recordInfo is null")]
    )
    async def test_a_task_may_be_invisible_for_ninety_seconds(
        self, clock: Clock, bench: NewBench, error: ApiError
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: error

        await clock.advance(389.0)
        assert not bench.given_up
        await clock.advance(3.0)

        assert [given for _, given in bench.given_up] == [error]

    @pytest.mark.parametrize("error", [error_for(404, ""), error_for(422, "taskId is malformed")], ids=str)
    async def test_no_words_of_a_404_or_422_mean_more_than_not_yet_while_a_task_is_young(
        self, clock: Clock, bench: NewBench, error: ApiError, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(attrs.evolve(EVERY_SECOND, visibility_grace_s=1000.0))
        bench.track()
        bench.answer = lambda _: error

        await clock.advance(999.0)

        assert not bench.given_up
        assert not caplog.records

    async def test_an_id_from_elsewhere_is_given_up_when_it_is_still_not_known_after_the_grace(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.poller.mark_foreign(bench.track())
        error = error_for(422, "recordInfo is null")
        bench.answer = lambda _: error

        await clock.advance(89.0)
        assert not bench.given_up
        await clock.advance(4.0)

        assert [given for _, given in bench.given_up] == [error]

    @pytest.mark.parametrize("error", [error_for(400, "no"), error_for(422, "taskId is malformed")], ids=str)
    async def test_an_id_from_elsewhere_is_not_given_up_at_once_for_other_words(
        self, clock: Clock, bench: NewBench, error: ApiError
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.poller.mark_foreign(bench.track())
        bench.answer = lambda _: error

        await clock.advance(200.0)

        assert not bench.given_up

    async def test_an_id_from_elsewhere_that_was_shown_once_is_not_given_up_at_once(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.poller.mark_foreign(bench.track())
        await clock.advance(2.0)
        bench.answer = lambda _: error_for(422, "recordInfo is null")

        await clock.advance(200.0)

        assert not bench.given_up

    async def test_a_refusal_that_comes_after_the_end_settles_nothing_again(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        entry = bench.track()
        bench.answer = lambda _: error_for(400, "no")
        await clock.advance(300.5)
        bench.gate = asyncio.Event()
        await clock.advance(1.0)
        assert len(bench.polls) == 301

        bench.poller.forget(entry)
        bench.gate.set()
        await settle()

        assert not bench.given_up


class TestNoAnswerOfTheProvider:
    async def test_a_task_without_a_result_for_ten_minutes_fails_after_ten_more(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: error_for(408, "No result for over 10 minutes")

        await clock.advance(600.5)
        assert not bench.news
        await clock.advance(1.0)

        ((record, _),) = bench.news
        assert (record.state, record.fail_code) == (TaskState.FAIL, "408")
        assert record.fail_message == "No result for over 10 minutes"
        assert not bench.given_up

    async def test_it_may_still_succeed(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: error_for(408, "No result for over 10 minutes")
        await clock.advance(590.0)

        bench.answer = done
        await clock.advance(1.1)

        assert [record.state for record, _ in bench.news] == [TaskState.SUCCESS]

    async def test_a_record_between_begins_the_ten_minutes_anew(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        row: list[Answer] = ([error_for(408, "no result")] * 590 + [running("t")]) * 3
        bench.answer = lambda _: row.pop()

        await clock.advance(1770.0)

        assert {record.state for record, _ in bench.news} == {TaskState.GENERATING}


class TestUnknownStates:
    def dreaming(self, task_id: str, word: str = "dreaming") -> TaskRecord:
        return TaskRecord(task_id=task_id, raw={"taskId": task_id, "state": word})

    async def test_a_word_nobody_knows_is_warned_of_each_ten_minutes(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = self.dreaming

        await clock.advance(1801.5)

        message = "task t is in a state that is not known, 'dreaming': it counts as running"
        assert caplog.record_tuples == [("kie_async", logging.WARNING, message)] * 4

    async def test_each_word_is_warned_of_once_for_all_tasks(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        for number in range(50):
            bench.track(f"t{number}")
        bench.answer = lambda task_id: self.dreaming(task_id, ("dreaming", "rendering")[task_id > "t3"])

        await clock.advance(100.0)

        assert len(caplog.records) == 2

    @pytest.mark.parametrize("word", ["success", "waiting", "unknown", ""])
    async def test_nothing_is_said_of_other_words(
        self, clock: Clock, bench: NewBench, word: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda task_id: decode_record({"taskId": task_id, "state": word})

        await clock.advance(5.0)

        assert not caplog.records

    async def test_a_word_cannot_forge_a_log_line(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda task_id: self.dreaming(task_id, "x\n[FATAL] \x1b[31mpaid twice")

        await clock.advance(1.1)

        assert "\n" not in caplog.messages[0]
        assert "\x1b" not in caplog.messages[0]

    async def test_endless_new_words_do_not_flood_log_or_memory(
        self, clock: Clock, bench: NewBench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        words = (f"word {number}" + "x" * 10_000 for number in range(10_000))
        bench.answer = lambda task_id: self.dreaming(task_id, next(words))

        await clock.advance(500.0)

        assert len(caplog.records) == 100
        assert max(map(len, caplog.messages)) < 200


class TestRefusedKeys:
    async def test_a_lone_refusal_of_the_key_is_asked_again(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        answers: list[Answer] = [done("t"), *[*[error_for(401, "no")] * 59, running("t")] * 10]
        bench.answer = lambda _: answers.pop()

        await clock.advance(650.0)

        assert not bench.given_up
        assert not answers

    async def test_one_that_lasts_for_a_minute_settles_all_that_wait(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        entries = {bench.track(f"t{number}") for number in range(10)}
        bench.answer = lambda _: error_for(401, "no")

        await clock.advance(60.5)
        assert not bench.given_up
        await clock.advance(1.0)

        assert {entry for entry, _ in bench.given_up} == entries
        assert {type(error) for _, error in bench.given_up} == {AuthenticationError}
        assert len(bench.given_up) == 10

    async def test_it_takes_five_answers_however_long_they_are_apart(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(PollSchedule.fixed(60.0, jitter=0.0))
        bench.track()
        bench.answer = lambda _: error_for(401, "no")

        await clock.advance(290.0)
        assert len(bench.polls) == 4
        assert not bench.given_up
        await clock.advance(15.0)

        assert len(bench.given_up) == 1

    async def test_a_word_about_a_task_shows_that_the_key_is_taken(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.track("denied")
        bench.track("unknown")
        answers = {"denied": error_for(401, "no"), "unknown": error_for(422, "recordInfo is null")}
        bench.answer = answers.__getitem__

        await clock.advance(300.0)

        assert not bench.given_up

    async def test_handles_without_a_task_id_wait_on(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        unknown = bench.entries["intent"] = bench.poller.track_deadline("intent", clock.now + 90.0)
        bench.track()
        bench.answer = lambda _: error_for(401, "no")

        await clock.advance(70.0)
        assert [entry.key for entry, _ in bench.given_up] == ["t"]
        await clock.advance(21.0)

        assert bench.expired == [unknown]

    async def test_what_is_tracked_after_that_has_its_own_minute(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.track()
        bench.answer = lambda _: error_for(401, "no")
        await clock.advance(61.5)
        assert len(bench.given_up) == 1

        bench.track("again")
        await clock.advance(59.5)
        assert len(bench.given_up) == 1
        bench.answer = done
        await clock.advance(1.0)

        assert [record.task_id for record, _ in bench.news] == ["again"]


WITH_CALLBACKS = PollSchedule(learns=False, jitter=0.0)


class TestUrgentPolls:
    async def test_a_callback_is_a_poll_at_once(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(WITH_CALLBACKS)
        bench.answer = done
        entry = bench.track(expects_callback=True)
        await clock.advance(10.0)

        bench.poller.poll_now(entry)
        await settle()

        assert bench.times() == [10.0]
        assert [source for _, source in bench.news] == [Source.CALLBACK]

    async def test_a_thousand_callbacks_are_one_poll(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(WITH_CALLBACKS)
        bench.gate = asyncio.Event()
        entry = bench.track(expects_callback=True)

        for _ in range(1000):
            bench.poller.poll_now(entry)
        await settle()

        assert len(bench.polls) == 1

    async def test_callbacks_while_a_poll_is_out_make_one_more(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(PollSchedule(learns=False, recheck_s=(30.0,)))
        bench.gate = asyncio.Event()
        entry = bench.track(expects_callback=True)
        bench.poller.poll_now(entry)
        await settle()

        for _ in range(1000):
            bench.poller.poll_now(entry)
        bench.gate.set()
        await clock.advance(20.0)

        assert bench.times() == pytest.approx([0.0, 1.0], abs=TICK_S)

    async def test_callbacks_while_the_last_poll_is_out_make_none(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(WITH_CALLBACKS)
        bench.gate = asyncio.Event()
        bench.answer = done
        entry = bench.track(expects_callback=True)
        bench.poller.poll_now(entry)
        await settle()

        bench.poller.poll_now(entry)
        bench.gate.set()
        await clock.advance(20.0)

        assert len(bench.polls) == 1

    async def test_a_flood_of_callbacks_is_one_poll_a_second(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(WITH_CALLBACKS)
        entry = bench.track(expects_callback=True)

        for _ in range(200):
            bench.poller.poll_now(entry)
            await clock.advance(0.1)

        assert 19 <= len(bench.polls) <= 21
        assert min(bench.gaps()) >= 1.0

    async def test_a_callback_that_outran_the_record_is_followed_by_polls_after_one_two_and_four_seconds(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(WITH_CALLBACKS)
        entry = bench.track(expects_callback=True)

        bench.poller.poll_now(entry)
        await clock.advance(60.0)
        assert bench.times() == pytest.approx([0.0, 1.0, 3.0, 7.0], abs=4 * TICK_S)

        await clock.advance(60.0)
        assert len(bench.polls) == 5

    async def test_each_callback_has_further_polls_of_its_own(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(WITH_CALLBACKS)
        entry = bench.track(expects_callback=True)
        bench.poller.poll_now(entry)
        await clock.advance(20.0)
        assert len(bench.polls) == 4

        bench.poller.poll_now(entry)
        await clock.advance(20.0)

        assert len(bench.polls) == 8

    @pytest.mark.parametrize(
        "error",
        [*TRANSIENT, error_for(422, "recordInfo is null"), error_for(401, "no")],
        ids=lambda error: f"{type(error).__name__}: {error}",
    )
    async def test_a_callback_whose_poll_fails_is_not_forgotten(
        self, clock: Clock, bench: NewBench, error: Exception
    ) -> None:
        bench = bench(WITH_CALLBACKS)
        answers: list[Answer] = [done("t"), error]
        bench.answer = lambda _: answers.pop()
        entry = bench.track(expects_callback=True)

        bench.poller.poll_now(entry)
        await clock.advance(1.1)

        assert [record.state for record, _ in bench.news] == [TaskState.SUCCESS]

    async def test_a_callback_goes_before_the_poll_that_is_queued_already(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND, rate=Rate(1, per_s=10.0))
        entries = [bench.track(f"t{number}") for number in range(5)]
        await clock.advance(1.1)
        assert len(bench.polls) == 1

        bench.poller.poll_now(entries[4])
        await clock.advance(40.0)

        order = [task_id for _, task_id in bench.polls]
        assert order[:2] == ["t0", "t4"]
        assert sorted(order[2:]) == ["t1", "t2", "t3"]

    async def test_a_callback_of_a_task_nobody_waits_for_is_nothing(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(WITH_CALLBACKS)
        entry = bench.track(expects_callback=True)
        bench.poller.forget(entry)

        bench.poller.poll_now(entry)
        await clock.advance(100.0)

        assert not bench.polls


class TestEmptySuccesses:
    async def test_a_success_without_a_result_is_asked_again(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        empty = TaskRecord(task_id="t", state=TaskState.SUCCESS)
        answers: list[Answer] = [done("t"), empty, empty]
        bench.answer = lambda _: answers.pop()
        bench.track()

        await clock.advance(10.0)

        assert bench.times() == pytest.approx([1.0, 2.0, 4.0], abs=4 * TICK_S)
        assert [record.has_result for record, _ in bench.news] == [True]

    async def test_one_that_stays_empty_is_delivered_after_three_more_polls(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench(EVERY_SECOND)
        bench.answer = lambda task_id: TaskRecord(task_id=task_id, state=TaskState.SUCCESS)
        bench.track()

        await clock.advance(20.0)

        assert bench.times() == pytest.approx([1.0, 2.0, 4.0, 8.0], abs=5 * TICK_S)
        assert len(bench.news) == 1


class TestMemory:
    async def test_settled_handles_leave_nothing_behind(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        bench.answer = done
        for number in range(5_000):
            bench.track(f"t{number}", timeout_s=3600.0)
            if number % 100 == 99:
                await clock.advance(1.1)

        await clock.advance(2.0)

        assert len(bench.news) == 5_000
        assert len(bench.poller) < 150
        assert not bench.poller._due

    async def test_handles_that_are_given_up_leave_nothing_behind(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench()
        keep = [bench.track(f"keep{number}") for number in range(100)]

        for number in range(10_000):
            bench.poller.forget(bench.track(f"t{number}"))

        assert len(bench.poller) < 500
        await clock.advance(3.0)
        assert {task_id for _, task_id in bench.polls} == {entry.key for entry in keep}

    async def test_those_that_stay_are_polled_and_expire_in_time(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(EVERY_SECOND)
        rng = random.Random(7)
        entries = [bench.track(f"t{n}", timeout_s=rng.uniform(0.1, 0.9)) for n in range(1_000)]

        for entry in entries[::2]:
            bench.poller.forget(entry)
        await clock.advance(0.5)

        late = {entry for entry in entries[1::2] if entry.deadline <= clock.now - TICK_S}
        assert late <= set(bench.expired)
        assert len(bench.expired) < 300

    async def test_a_closed_poller_keeps_no_entry_alive(self, clock: Clock, bench: NewBench) -> None:
        bench = bench(rate=Rate(1, per_s=60.0))
        for number in range(10):
            bench.track(f"alive{number}")
        await clock.advance(3.0)

        await bench.poller.aclose()
        bench.entries.clear()
        gc.collect()

        alive = [found for found in gc.get_objects() if isinstance(found, PollEntry)]
        assert not [entry for entry in alive if entry.key.startswith("alive")]

    async def test_an_entry_in_the_wheel_keeps_nothing_of_its_task_alive(
        self, clock: Clock, bench: NewBench
    ) -> None:
        bench = bench()
        entry = bench.track()
        entry.last_record = running("t")

        bench.poller.forget(entry)

        assert len(bench.poller) > 0
        assert entry.last_record is None


# --- over sockets --------------------------------------------------------------------------------


def envelope(code: int, message: str = "", data: object = None) -> tuple[int, bytes]:
    return 200, json.dumps({"code": code, "msg": message, "data": data}).encode()


async def outcome_of(awaitable: Any) -> object:
    """Return the result, or the error as a value."""
    (outcome,) = await asyncio.gather(awaitable, return_exceptions=True)
    return outcome


class TestAgainstTheSandbox:
    async def test_the_service_never_sees_more_than_the_rate(
        self, leaks: None, open_session: OpenSession, sandbox: Sandbox
    ) -> None:
        strict = Sandbox(query_limit=(10, 0.3), create_limit=None)
        async with strict:
            limits = Limits(create=NO_LIMITS.create, query=Rate(10, per_s=0.3), create_connections=50)
            kie = await open_session(base_url=strict.url, limits=limits)
            handles = [kie.attach(f"task_{number}") for number in range(50)]
            querying = [asyncio.create_task(outcome_of(kie.query("task_1"))) for _ in range(10)]

            await asyncio.sleep(1.5)

            assert strict.counts["query.429"] == 0
            assert 40 <= strict.counts["query"] <= 60
            for waiting in (*handles, *querying):
                waiting.abandon() if isinstance(waiting, TaskHandle) else waiting.cancel()

    @pytest.mark.parametrize("code", [501, 531])
    async def test_an_envelope_may_tell_that_the_task_failed(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, code: int
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        sandbox.faults.query_answers_next = [envelope(code, "generation failed")]

        await clock.advance(0.1)

        with pytest.raises(TaskFailed, match="generation failed") as caught:
            await handle
        assert caught.value.record.fail_code == str(code)

    @pytest.mark.parametrize("as_404", [True, False])
    async def test_a_task_is_found_once_it_becomes_visible(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, as_404: bool
    ) -> None:
        sandbox.faults.invisible_s, sandbox.faults.invisible_as_404 = 3600.0, as_404
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        await clock.advance(1.0)
        assert sandbox.counts["query"] > 5
        assert not handle.is_done

        sandbox.faults.invisible_s = 0.0
        await clock.advance(0.1)

        assert await handle

    async def test_a_task_that_stays_invisible_ends_with_the_services_answer(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(poll=PollSchedule.fixed(10.0))

        handle = kie.attach("nobodys_task")
        sandbox.faults.invisible_as_404 = True
        await clock.advance(420.0)

        with pytest.raises(NotFound):
            await handle

    async def test_a_success_is_asked_again_until_its_url_shows(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        sandbox.faults.empty_result_looks = 1
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)

        await clock.advance(1.0)

        assert (await handle).urls
        assert sandbox.counts["query"] == 2

    async def test_a_success_whose_url_never_shows_is_an_error_with_what_came(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        sandbox.faults.empty_result_rate = 1.0
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)

        await clock.advance(1.0)

        with pytest.raises(ResultUnreadable) as caught:
            await handle
        assert caught.value.record.raw["resultJson"] == '{"resultUrls":[]}'

    @pytest.mark.parametrize("word", ["completed", "failed", "SUCCEEDED?", "", None, 7])
    async def test_a_state_nobody_knows_counts_as_running(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, word: object
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        strange = envelope(200, "success", {"taskId": handle.task_id, "state": word})
        sandbox.faults.query_answers_next = [strange] * 3

        await clock.advance(0.3)
        assert not handle.is_done
        assert handle.record is not None
        sandbox.finish(handle.task_id)
        await clock.advance(0.3)

        assert await handle

    async def test_the_record_of_another_task_is_thrown_away(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        other = {"taskId": "other", "state": "success", "resultJson": '{"resultUrls":["https://x.y/z"]}'}
        sandbox.faults.query_answers_next = [envelope(200, "success", other)] * 3

        await clock.advance(0.3)

        assert not handle.is_done
        assert handle.record is None or handle.record.task_id == handle.task_id

    @pytest.mark.parametrize(
        "answer",
        [
            (200, b""),
            (200, b"null"),
            (200, b"[]"),
            (200, b"{"),
            (200, b"\xff\xfe"),
            (200, b'{"code":200}'),
            (200, b'{"code":200,"data":null}'),
            (200, b'{"code":200,"data":[1]}'),
            (200, b'{"code":200,"data":{"taskId":7,"state":"success"}}'),
            (200, b'{"code":"?","data":{}}'),
            (200, b"[" * 100_000),
            (200, b'"' + b"x" * 2_000_000 + b'"'),
            (204, b""),
            (302, b""),
            (502, b"<html>bad gateway</html>"),
            (503, b'{"code":200,"data":{}}'),
        ],
        ids=lambda answer: f"HTTP {answer[0]} {answer[1][:20]!r}",
    )
    async def test_a_broken_answer_stops_nothing(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, answer: tuple[int, bytes]
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        sandbox.faults.query_answers_next = [answer]

        await clock.advance(0.5)

        assert await handle
        assert sandbox.counts["query"] == 2

    async def test_a_revoked_key_ends_the_waits_and_the_ids_stay_attachable(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handles = [await kie.create("sandbox/echo", {}) for _ in range(5)]
        sandbox.faults.revoke_key = True
        await clock.advance(59.0)
        assert not any(handle.is_done for handle in handles)
        await clock.advance(2.0)
        for handle in handles:
            assert isinstance(await outcome_of(handle), AuthenticationError)

        sandbox.faults.revoke_key = False
        again = [kie.attach(handle.task_id) for handle in handles]
        for handle in handles:
            sandbox.finish(handle.task_id)
        await clock.advance(0.3)

        assert [(await handle).task_id for handle in again] == list(sandbox.tasks)

    async def test_the_pause_that_the_service_asks_for_is_kept(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        sandbox.faults.retry_after_s, sandbox.faults.query_429_next = 5.0, 1
        sandbox.finish(handle.task_id)

        await clock.advance(5.0)
        assert sandbox.counts["query"] == 1
        await clock.advance(0.2)

        assert await handle
        assert kie.stats().rate_limited == 1

    async def test_maintenance_holds_the_polls_back_and_settles_nothing(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        sandbox.faults.maintenance = True
        await clock.advance(60.0)
        assert not handle.is_done
        assert sandbox.counts["query"] < 10

        sandbox.faults.maintenance = False
        await clock.advance(60.0)

        assert await handle

    async def test_an_end_the_service_takes_back_stays(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        await clock.advance(0.1)
        sandbox.faults.query_answers_next = [
            envelope(200, "success", {"taskId": handle.task_id, "state": "generating"})
        ]

        again = kie.attach(handle.task_id)
        await clock.advance(0.1)

        assert (await handle).task_id == handle.task_id
        again.abandon()


def test_what_is_overdue_comes_at_once_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    ticks: list[float] = []

    async def overdue() -> None:
        loop = asyncio.get_running_loop()
        wheel = TimerWheel(loop, ticks.append)
        for late_s in (1.0, 2.0):
            wheel.schedule(PollEntry("t", "", math.inf, 0.0, False, next_at=loop.time() - late_s))
        await asyncio.sleep(0.01)
        wheel.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(overdue())
    assert ticks


# --- a machine that slept ------------------------------------------------------------------------------


class Wall:
    """A clock on the wall that goes on in sleep."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.now + self.ahead_s


async def test_a_sleep_in_which_the_loops_clock_stood_still_is_said_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    wall = Wall()
    detector = SleepDetector(clock=wall, sink=NO_SINK)
    for turn in range(10):
        if turn == 5:
            wall.ahead_s += 7200.0
        detector.note_turn(clock.now, 0.0)
        await clock.advance(1.0)
    assert caplog.messages == ["nothing ran here for 2.0 h: the machine slept, or its event loop was blocked"]


@pytest.mark.parametrize("step_s", [-7200.0, -1.0, 20.0])
async def test_a_clock_that_is_set_back_or_a_bit_forward_is_no_sleep(
    clock: Clock, caplog: pytest.LogCaptureFixture, step_s: float
) -> None:
    wall = Wall()
    detector = SleepDetector(clock=wall, sink=NO_SINK)
    for _ in range(3):
        detector.note_turn(clock.now, 0.0)
        wall.ahead_s += step_s
        await clock.advance(1.0)
    assert not caplog.messages


@pytest.mark.parametrize(("outlasts", "ends_after_s"), [(False, 60.0), (True, 630.0)])
async def test_a_deadline_waits_for_an_answer_where_that_is_wanted(
    clock: Clock, bench: NewBench, outlasts: bool, ends_after_s: float
) -> None:
    bench = bench(EVERY_SECOND)
    entry = bench.track(timeout_s=60.0)
    if outlasts:
        bench.poller.outlast_weather(entry)
    bench.answer = lambda _: TransportError("timed out")
    await clock.advance(600.0)
    bench.answer = running
    await clock.advance(1.5)
    assert bool(bench.expired) is not outlasts
    await clock.advance(ends_after_s - 600.0 + 1.0 if outlasts else 0.0)
    assert bench.expired
