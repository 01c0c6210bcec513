"""Queries get faster while polls are late and fall back when refused, but not for one task alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import together

from kie_async.config import Rate
from kie_async.limits.query_speed import QuerySpeed
from kie_async.sandbox.window import Window

TEN, HUNDRED = Rate(10, per_s=1.0), Rate(100, per_s=1.0)


@attrs.define
class Days:
    """A speed, and the time that passes for it."""

    speed: QuerySpeed = attrs.field(factory=lambda: QuerySpeed(TEN, HUNDRED))
    now: float = 1000.0

    def be_late(self, for_s: float, *, every_s: float = 1.0) -> int:
        """Let polls be late for so long; return the speed then."""
        until = self.now + for_s
        while self.now < until - 1e-9:
            self.speed.note_wait(9.0, self.now)
            self.now += every_s
        self.speed.note_wait(9.0, self.now)
        return self.speed.count

    def be_refused(self, task_id: str) -> int:
        """Have one query refused that left just now; return the speed then."""
        self.speed.note_refused(task_id, self.now - 0.1, self.now)
        return self.speed.count


@pytest.fixture
def days() -> Days:
    return Days()


# --- faster ---------------------------------------------------------------------------------------


@together(("for_s", "count"), [(0, 10), (10, 12), (20, 15), (50, 30), (100, 93), (104, 100), (1000, 100)])
def test_while_polls_are_late_it_rises_by_a_quarter_each_ten_seconds(for_s: float, count: int) -> None:
    assert Days().be_late(for_s) == count


def test_it_rises_by_one_query_at_a_time(days: Days) -> None:
    counts = [days.be_late(0.3, every_s=0.1) for _ in range(400)]
    assert {later - count for count, later in pairwise(counts)} == {0, 1}


def test_polls_that_hardly_wait_make_it_no_faster(days: Days) -> None:
    for second in range(1000):
        days.speed.note_wait(0.5, 1000.0 + second)
    assert days.speed.count == 10


def test_polls_that_are_late_now_and_then_make_it_no_faster(days: Days) -> None:
    days.be_late(1000, every_s=6.0)
    assert days.speed.count == 10


@together("ceiling", [None, TEN, Rate(20, per_s=2.0)])
def test_without_room_to_rise_it_stays_and_no_refusal_slows_it_down(ceiling: Rate | None) -> None:
    days = Days(QuerySpeed(TEN, ceiling))
    assert (days.be_late(1000), days.be_refused("t1"), days.be_refused("t2")) == (10, 10, 10)
    assert days.speed.take_note() is None


def test_the_ceiling_may_have_another_window(days: Days) -> None:
    days = Days(QuerySpeed(Rate(5, per_s=0.5), Rate(120, per_s=10.0)))
    assert days.be_late(60) == 6


# --- refused --------------------------------------------------------------------------------------


def test_a_refusal_takes_it_back_to_what_held_for_two_minutes(days: Days) -> None:
    assert days.be_late(5) == 11
    assert days.be_refused("t1") == 10
    assert days.be_late(119) == 10
    assert days.be_late(6) == 11


def test_it_goes_back_to_before_a_query_left_that_was_slow_to_arrive(days: Days) -> None:
    assert days.be_late(60) == 38
    days.speed.note_refused("t1", days.now - 8.0, days.now)
    assert days.speed.count == 30  # that of ten seconds ago: the last window before it left


def test_what_is_refused_each_time_is_tried_half_as_often_each_time(days: Days) -> None:
    tried_at = []
    for task in range(5):
        while days.be_late(1) == 10:
            pass
        tried_at.append(days.now)
        assert days.be_refused(f"t{task}") == 10
    waits_s = [later - at for at, later in pairwise(tried_at)]
    assert [round(wait_s / 120) for wait_s in waits_s] == [1, 2, 4, 8]


def test_what_holds_after_all_is_tried_as_soon_as_ever_when_more_is_refused(days: Days) -> None:
    days.be_late(5)
    for task in range(3):
        days.be_refused(f"t{task}")
        days.be_late(1000)
    assert days.speed.count == 100
    days.be_refused("t9")
    assert days.be_late(119) < 97
    assert days.be_late(15) > 97


def test_refused_again_within_a_minute_it_halves_and_comes_back(days: Days) -> None:
    days.be_late(60)
    held = days.be_refused("t1")
    days.be_late(30)
    assert days.be_refused("t2") <= held / 2
    assert held * 0.9 < days.be_late(40) < held


def test_it_never_gets_slower_than_a_tenth_of_where_it_began() -> None:
    days = Days(QuerySpeed(Rate(30, per_s=1.0), HUNDRED))
    for task in range(50):
        days.be_refused(f"t{task}")
    assert days.speed.count == 3


# --- of one task ----------------------------------------------------------------------------------


def test_a_task_that_is_refused_again_was_refused_for_itself(days: Days) -> None:
    before = days.be_late(60)
    assert days.speed.note_refused("t1", days.now, days.now)
    assert days.speed.count < before
    days.now += 2
    assert not days.speed.note_refused("t1", days.now, days.now)
    assert days.speed.count == before
    assert days.be_late(10) > before


def test_further_refusals_of_such_a_task_change_nothing(days: Days) -> None:
    for _ in range(50):
        days.be_refused("t1")
        days.be_late(4)
    assert days.speed.count > 40


def test_several_such_tasks_are_forgiven_once_each_was_refused_again(days: Days) -> None:
    before = days.be_late(60)
    for task in ("t1", "t2", "t3", "t2", "t1"):
        assert days.be_refused(task) < before
    assert days.be_refused("t3") == before


def test_one_that_was_not_refused_again_speaks_for_the_key(days: Days) -> None:
    before = days.be_late(60)
    days.be_refused("t1")
    days.be_refused("t2")
    assert days.be_refused("t2") < before


def test_who_was_refused_is_forgotten_after_minutes(days: Days) -> None:
    before = days.be_late(60)
    days.be_refused("t1")
    days.now += 301
    assert days.speed.note_refused("t1", days.now, days.now)
    assert days.speed.count < before


# --- the next session -----------------------------------------------------------------------------


def test_the_next_session_begins_with_what_held_and_tries_no_more_for_as_long(days: Days) -> None:
    days.be_late(60)
    held = days.be_refused("t1")
    following = Days(QuerySpeed(TEN, HUNDRED))
    following.speed.restore(days.speed.take_note(), following.now)
    assert following.speed.count == held
    assert following.be_late(119) == held
    assert following.be_late(10) > held


def test_there_is_a_note_only_when_there_is_something_new(days: Days) -> None:
    days.be_late(60)
    assert days.speed.take_note() is None
    days.be_refused("t1")
    assert days.speed.take_note()
    assert days.speed.take_note() is None
    days.be_refused("t1")  # for itself
    assert days.speed.take_note() == {}


def test_a_note_holds_for_another_window_too(days: Days) -> None:
    other = QuerySpeed(Rate(5, per_s=0.5), HUNDRED)
    other.restore({"a_second": 40.0, "patience_s": 120.0}, 0.0)
    assert other.count == 20


@together(
    "note",
    [
        None,
        {},
        [],
        "fast",
        {"a_second": 20.0},
        {"a_second": "20", "patience_s": 120.0},
        {"a_second": -20.0, "patience_s": 120.0},
        {"a_second": float("nan"), "patience_s": 120.0},
        {"a_second": float("inf"), "patience_s": 120.0},
        {"a_second": 20.0, "patience_s": float("inf")},
        {"a_second": True, "patience_s": True},
        {"a_second": 1e9, "patience_s": 120.0},
        {"a_second": 100.0, "patience_s": 120.0},
    ],
)
def test_a_note_that_says_nothing_is_left_out(note: object) -> None:
    days = Days()
    days.speed.restore(note, days.now)
    assert (days.speed.count, days.be_late(20)) == (10, 15)


def test_a_fixed_speed_listens_to_no_note() -> None:
    speed = QuerySpeed(TEN, None)
    speed.restore({"a_second": 5.0, "patience_s": 120.0}, 0.0)
    assert speed.count == 10


# --- any service ----------------------------------------------------------------------------------


def run(admits: Callable[[float], bool], rng: random.Random, *, for_s: float) -> Outcome:
    """Send queries as the limiter would, polls always late; return what came of it."""
    speed, sent, refused, paused_from, paused_until = QuerySpeed(TEN, HUNDRED), 0, 0, 0.0, 0.0
    permits, count, now, way_s = [0.0] * TEN.count, TEN.count, 0.0, rng.uniform(0.001, 0.2)
    late = 0
    while now < for_s:
        now = max(now, heappop(permits), paused_until)
        speed.note_wait(9.0, now)
        sent += 1
        late += now >= for_s / 2
        if not admits(now + way_s):
            refused += 1
            if now >= paused_from:
                paused_from = now + 2 * way_s
                paused_until = paused_from + rng.uniform(0.5, 1.0)
                speed.note_refused(f"t{rng.randrange(10_000)}", now, paused_from)
        heappush(permits, now + 2 * way_s + 1.0)
        for number in range(speed.count - count):
            heappush(permits, now + 1.0 / (number + 1))
        for _ in range(count - speed.count):
            heappop(permits)
        count = speed.count
    return Outcome(sent, refused, late / (for_s / 2))


@attrs.frozen
class Outcome:
    """What came of a run."""

    sent: int
    refused: int
    per_s: float
    """The speed in its second half."""


@given(limit=st.integers(10, 130), seed=st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_whatever_the_limit_of_a_key_few_are_refused_and_most_of_it_is_used(limit: int, seed: int) -> None:
    window = Window(limit, 1.0)
    found = run(window.admit, random.Random(seed), for_s=400.0)
    assert found.refused <= found.sent / 500
    assert min(50, limit * 0.6) <= found.per_s <= limit + 1


@given(before=st.integers(30, 100), after=st.integers(10, 25), seed=st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_a_limit_that_comes_down_is_found_within_a_minute(before: int, after: int, seed: int) -> None:
    wide, narrow = Window(before, 1.0), Window(after, 1.0)
    late: list[bool] = []

    def admits(now: float) -> bool:
        is_admitted = (wide if now < 300 else narrow).admit(now)
        if now > 360:
            late.append(is_admitted)
        return is_admitted

    found = run(admits, random.Random(seed), for_s=900.0)
    assert late.count(False) <= len(late) / 500
    assert after * 0.5 <= found.per_s <= after + 1
