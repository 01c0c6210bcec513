"""The poller learns: from ends and from tasks still running, from callbacks that come and those that do not.

A service of known habits stands behind a poller; time is virtual.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.clock import Clock

from kie_async import KieError, KieSession, PollSchedule, Sandbox, TaskRecord, TaskRequest, TaskState
from kie_async.config import Rate
from kie_async.errors import ServerError
from kie_async.events import Source
from kie_async.journal.sqlite import SqliteJournal
from kie_async.limits.query_speed import QueryPace, QuerySpeed
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.planning.durations import DurationModel
from kie_async.planning.planner import PollPlanner
from kie_async.polling.entry import PollEntry
from kie_async.polling.poll_queue import PATIENCE_S, PollQueue
from kie_async.polling.poller import Poller
from kie_async.sandbox.durations import Fixed

MODEL = "kling/v1-avatar-standard"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Service:
    """Runs tasks for so long, calls back if it is told to, and answers the poller beside it."""

    def __init__(self, clock: Clock, schedule: PollSchedule, *, runs_s: Callable[[int], float]) -> None:
        loop = asyncio.get_running_loop()
        self.clock = clock
        self.runs_s = runs_s
        self.callbacks: bool | None = None
        """Whether they come; None if nobody expects any."""
        self.says_duration = True
        self.count = 0
        self.polls: dict[str, list[float]] = {}
        self.waits_s: dict[str, float] = {}
        self._ends: dict[str, float] = {}
        self._begins: dict[str, float] = {}
        self._entries: dict[str, PollEntry] = {}
        self.table = PollPlanner(schedule)
        self.poller = Poller(
            self,  # type: ignore[arg-type]  (of a query client it reads records only)
            QueryPace(
                RateLimiter(Rate(1000, per_s=0.001), now=loop.time), QuerySpeed(Rate(1000, per_s=0.001), None)
            ),
            self.table,
            connections=16,
            rng=random.Random(1),
        )
        self.poller.start(self)

    def create(self, *, began_s: float = 0.0, **options: Any) -> str:
        name = f"t{self.count}"
        self._begins[name] = self.clock.now - began_s
        self._ends[name] = self._begins[name] + self.runs_s(self.count)
        self.count += 1
        self.polls[name] = []
        self._entries[name] = self.poller.track(
            name, model=MODEL, deadline=math.inf, expects_callback=self.callbacks is not None, **options
        )
        if self.callbacks:
            asyncio.get_running_loop().call_at(self._ends[name], self._call_back, name)
        return name

    async def read_record(self, task_id: str, *, unless: object) -> TaskRecord:
        self.polls[task_id].append(self.clock.now - self._begins[task_id])
        return self._record(task_id)

    def _record(self, task_id: str) -> TaskRecord:
        ran_s = min(self.clock.now, self._ends[task_id]) - self._begins[task_id]
        is_done = self.clock.now >= self._ends[task_id]
        return TaskRecord(
            task_id=task_id,
            model=MODEL,
            state=TaskState.SUCCESS if is_done else TaskState.GENERATING,
            urls=("https://files.example/a.mp4",) if is_done else (),
            created_at=BEGAN,
            updated_at=BEGAN + timedelta(seconds=ran_s),
            duration_s=ran_s if is_done and self.says_duration else None,
        )

    def _call_back(self, task_id: str) -> None:
        if task_id not in self.waits_s:
            self.deliver(self._record(task_id), Source.CALLBACK)

    def deliver(self, record: TaskRecord, source: Source) -> None:
        if record.state.is_terminal:
            self.waits_s[record.task_id] = self.clock.now - self._ends[record.task_id]
            self.poller.complete(self._entries[record.task_id], record, source, record.task_id)

    def give_up(self, key: str, error: KieError) -> None:
        raise error

    def expire(self, key: str) -> None:
        self.poller.forget(self._entries[key])

    async def pass_tasks(self, count: int, *, every_s: float = 20.0) -> None:
        for _ in range(count):
            self.create()
            await self.clock.advance(every_s)


def about_a_minute(number: int) -> float:
    return 60.0 + 10 * math.sin(number)


@pytest.fixture
async def serve(clock: Clock) -> Any:
    """Return a function that makes a service with a poller beside it."""
    made: list[Service] = []

    def new(
        schedule: PollSchedule = PollSchedule(),  # noqa: B008  (frozen)
        runs_s: Callable[[int], float] = about_a_minute,
    ) -> Service:
        made.append(Service(clock, schedule, runs_s=runs_s))
        return made[-1]

    yield new
    for each in made:
        await each.poller.aclose()


Serve = Callable[..., Service]


class TestByPolling:
    async def test_a_known_model_is_first_polled_when_an_end_can_be_expected(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve()
        await service.pass_tasks(30)
        known = service.create()
        await clock.advance(100.0)
        assert 35 < service.polls[known][0] < 65
        assert len(service.polls[known]) < len(service.polls["t0"]) / 2
        assert service.waits_s[known] < 5

    async def test_it_learns_from_its_own_polls_where_records_show_no_duration(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve()
        service.says_duration = False
        await service.pass_tasks(30)
        known = service.create()
        await clock.advance(100.0)
        assert 30 < service.polls[known][0] < 65

    async def test_a_duration_that_cannot_be_is_brought_between_what_was_seen(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve()
        tell = service._record

        def lying(task_id: str) -> TaskRecord:
            record = tell(task_id)
            return record if record.duration_s is None else _lasting(record, 60_000.0)

        service._record = lying  # type: ignore[method-assign]
        await service.pass_tasks(30)
        known = service.create()
        await clock.advance(100.0)
        assert 30 < service.polls[known][0] < 75

    async def test_tasks_that_run_on_are_polled_again_and_again(self, clock: Clock, serve: Serve) -> None:
        service = serve(runs_s=lambda number: 60.0 if number < 30 else 3000.0)
        await service.pass_tasks(30)
        stuck = service.create()
        await clock.advance(3400.0)
        polls = [0.0, *service.polls[stuck]]
        assert stuck in service.waits_s
        assert max(later - at for at, later in pairwise(polls)) <= 330.0

    async def test_failed_polls_are_no_evidence(self, clock: Clock, serve: Serve) -> None:
        service = serve()

        async def fail(task_id: str, *, unless: object) -> TaskRecord:
            service.polls[task_id].append(clock.now)
            raise ServerError(500, "down", 500)

        service.read_record = fail  # type: ignore[method-assign]
        for _ in range(20):
            service.create()
        await clock.advance(60.0)
        assert service.table.take_learned(1) is None
        assert all(len(polls) > 10 for polls in service.polls.values())

    async def test_an_older_task_is_as_old_as_the_service_says(self, clock: Clock, serve: Serve) -> None:
        service = serve()
        await service.pass_tasks(40)
        attached = service.create(began_s=20.0, at_once=True)
        await clock.advance(100.0)
        first, second = service.polls[attached][:2]
        assert first < 22.5
        assert 38 < second < 65
        assert service.waits_s[attached] < 5

    async def test_an_older_task_found_ended_teaches_nothing(self, clock: Clock, serve: Serve) -> None:
        service = serve()
        for _ in range(10):
            service.create(began_s=500.0, at_once=True)
        await clock.advance(10.0)
        assert len(service.waits_s) == 10
        assert service.table.take_learned(1) is None

    async def test_a_task_that_is_older_than_it_was_known_here_teaches_nothing(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve()
        service.callbacks = True
        name = service.create(began_s=40.0)
        service._ends[name] = clock.now
        service._call_back(name)
        assert name in service.waits_s
        assert service.table.take_learned(1) is None


class TestWithCallbacks:
    async def test_while_they_come_hardly_anything_is_asked(self, clock: Clock, serve: Serve) -> None:
        service = serve()
        service.callbacks = True
        await service.pass_tasks(100, every_s=5.0)
        await clock.advance(100.0)
        assert len(service.waits_s) == 100
        asked = [len(polls) for polls in service.polls.values()]
        assert sum(asked[5:]) < 10
        assert sum(asked[:5]) > 20

    async def test_it_learns_when_they_came_where_records_tell_no_duration(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve(runs_s=lambda _: 60.0)
        service.callbacks, service.says_duration = True, False
        await service.pass_tasks(30)
        at_s = service.table.next_poll_s(
            MODEL, 0.0, is_first=True, by_callback=False, chance=0.5, now=clock.now + 10
        )
        assert 40 < at_s < 62

    async def test_when_the_first_are_missed_all_others_are_polled(self, clock: Clock, serve: Serve) -> None:
        service = serve(runs_s=lambda _: 20.0)
        service.callbacks = False
        for _ in range(100):
            service.create()
        await clock.advance(45.0)
        assert len(service.waits_s) == 100
        assert max(service.waits_s.values()) < 20

    async def test_a_poll_planned_before_callbacks_came_is_put_off(self, clock: Clock, serve: Serve) -> None:
        service = serve(runs_s=lambda number: 30.0 + number % 10 * 15 if number < 50 else 150.0)
        service.callbacks = True
        for _ in range(50):
            service.create()
        slow = service.create()
        await clock.advance(99.0)
        assert len(service.waits_s) == 25
        assert not service.polls[slow]

    async def test_when_they_stop_coming_it_polls_more_often_until_they_come_again(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve()
        service.callbacks = True
        await service.pass_tasks(60)
        healthy = service.table.callback_loss.share
        service.callbacks = False
        await service.pass_tasks(60)
        deaf = service.table.callback_loss.share
        late = [service.waits_s[f"t{number}"] for number in range(100, 110)]
        service.callbacks = True
        await service.pass_tasks(300)
        assert healthy < 0.01
        assert deaf > 0.3
        assert sum(late) / len(late) < 10
        assert service.table.callback_loss.share < 0.1

    async def test_a_callback_after_the_poll_that_found_the_end_was_not_lost(
        self, clock: Clock, serve: Serve
    ) -> None:
        service = serve(PollSchedule.fixed(1.0))
        service.callbacks = False
        name = service.create()
        await clock.advance(70.0)
        assert name in service.waits_s
        service.poller.note_late_callback(name)
        await clock.advance(30.0)
        service.create()
        await clock.advance(5.0)
        assert service.table.callback_loss.share < 0.05


def _lasting(record: TaskRecord, duration_s: float) -> TaskRecord:
    changes = {"duration_s": duration_s}
    fields = {name: getattr(record, name) for name in TaskRecord.__slots__ if name != "__weakref__"}
    return TaskRecord(**(fields | changes))


class TestWhoIsFirst:
    """While polls are short."""

    def queue(self, **chances: float) -> tuple[PollQueue, dict[str, PollEntry]]:
        queue = PollQueue(longest_s=100.0)
        entries = {name: new_entry(name) for name in chances}
        self.chances = dict(chances)
        for entry in entries.values():
            entry.next_at = entry.last_polled_at = 0.0
            queue.put(entry)
        return queue, entries

    def chance(self, entry: PollEntry, _: float) -> float:
        return self.chances[entry.key]

    def order(self, queue: PollQueue, now: float) -> str:
        found = ""
        while (entry := queue.pop(now, self.chance)) is not None:
            found += entry.key
        return found

    def test_who_need_not_wait_is_served_in_turn(self) -> None:
        queue, _ = self.queue(a=0.1, b=0.9, c=0.5)
        assert self.order(queue, PATIENCE_S / 2) == "abc"

    def test_the_likeliest_to_have_ended_is_first(self) -> None:
        queue, _ = self.queue(a=0.1, b=0.9, c=0.5)
        assert self.order(queue, 10.0) == "bca"

    def test_who_waited_too_long_goes_before_the_likeliest(self) -> None:
        queue, entries = self.queue(a=0.1, b=0.9)
        entries["b"].next_at = 60.0
        assert self.order(queue, 101.0) == "ab"

    def test_an_urgent_and_a_first_poll_go_before_all_others(self) -> None:
        queue, _ = self.queue(a=0.9)
        for name in "fu":
            entry = new_entry(name, next_at=9.0)
            entry.is_urgent = name == "u"
            queue.put(entry)
        assert self.order(queue, 10.0) == "ufa"

    def test_an_urgent_one_moves_forward_and_is_there_once(self) -> None:
        queue, entries = self.queue(a=0.9, b=0.1)
        entries["b"].is_urgent = True
        queue.put(entries["b"])
        assert self.order(queue, 10.0) == "ba"

    def test_who_is_over_is_passed_by(self) -> None:
        queue, entries = self.queue(a=0.9, b=0.1)
        entries["a"].close()
        assert self.order(queue, 10.0) == "b"
        queue, entries = self.queue(a=0.9)
        entries["a"].close()
        assert queue.pop(10.0, self.chance) is None

    def test_of_many_a_quarter_is_chosen_at_a_time(self) -> None:
        asked = []
        queue = PollQueue(longest_s=100.0)

        def chance(entry: PollEntry, _: float) -> float:
            asked.append(entry)
            return entry.begun_at

        for number in range(100):
            entry = new_entry(f"{number}", next_at=0.0)
            entry.begun_at, entry.last_polled_at = number / 100, 0.0
            queue.put(entry)
        first = [queue.pop(10.0, chance) for _ in range(25)]
        assert [round(entry.begun_at * 100) for entry in first if entry] == list(range(99, 74, -1))
        assert len(asked) == 100

    def test_who_was_chosen_a_second_ago_is_judged_anew(self) -> None:
        queue, entries = self.queue(**dict.fromkeys("abcdefgh", 0.5), z=0.1)
        assert queue.pop(10.0, self.chance) is not entries["z"]
        self.chances["z"] = 1.0
        assert queue.pop(10.5, self.chance) is not entries["z"]
        assert queue.pop(11.5, self.chance) is entries["z"]


def new_entry(key: str, *, next_at: float = math.inf) -> PollEntry:
    return PollEntry(key, "", math.inf, 0.0, expects_callback=False, next_at=next_at)


@pytest.fixture
async def quick() -> AsyncIterator[Sandbox]:
    """Return a sandbox whose tasks take no time to speak of."""
    async with Sandbox(durations=Fixed(0.01), create_limit=None, query_limit=None) as sandbox:
        yield sandbox


def learner(sandbox: Sandbox, path: Path) -> KieSession:
    return KieSession("sandbox-key", base_url=sandbox.url, journal=path, poll=PollSchedule(first_s=0.05))


ECHO = TaskRequest(model="sandbox/echo", input={"prompt": "a smile"})


class TestInASession:
    async def test_a_journal_keeps_what_was_learned(self, quick: Sandbox, tmp_path: Path) -> None:
        path = tmp_path / "run.db"
        async with learner(quick, path) as kie:
            await asyncio.gather(*(kie.run(ECHO) for _ in range(10)))
        journal = SqliteJournal(path)
        await journal.open()
        learned = await journal.load_durations()
        await journal.aclose()
        kept = DurationModel.load(learned[ECHO.model])
        assert kept is not None
        assert kept.seen == pytest.approx(10, abs=1)

    async def test_the_next_session_begins_with_it(self, quick: Sandbox, tmp_path: Path) -> None:
        path = tmp_path / "run.db"
        known = DurationModel()
        for _ in range(50):
            known.note_finished(100.0, seen_s=0.0)
        journal = SqliteJournal(path)
        await journal.open()
        await journal.save_durations({ECHO.model: known.dump()})
        await journal.aclose()
        async with learner(quick, path) as kie:
            handle = await kie.create(ECHO)
            await asyncio.sleep(0.3)
            assert not handle.is_done
            assert kie.stats().queries == 0

    async def test_a_journal_is_opened_though_what_was_learned_cannot_be_read(
        self, quick: Sandbox, tmp_path: Path
    ) -> None:
        path = tmp_path / "run.db"
        journal = SqliteJournal(path)
        await journal.open()
        await journal._do(lambda db: db.execute("INSERT INTO learned VALUES ('sandbox/echo', '{')"))
        await journal.aclose()
        async with learner(quick, path) as kie:
            assert (await kie.run(ECHO)).record.state is TaskState.SUCCESS
