"""When a task is polled next: the tiers at first, then what was learned; rarely while callbacks come."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from support.tables import together

from kie_async.config import PollSchedule
from kie_async.planning.planner import SHORTEST_GAP_S, PollPlanner

MIDDLE = 0.5
"""The chance that adds no jitter."""
MODEL = "kling/v1-avatar-standard"


def after(
    table: PollPlanner,
    last_polled_s: float,
    *,
    model: str = MODEL,
    first: bool = False,
    callback: bool = False,
    chance: float = MIDDLE,
    now: float = 1e6,
) -> float:
    return table.next_poll_s(
        model, last_polled_s, is_first=first, by_callback=callback, chance=chance, now=now
    )


def polls(table: PollPlanner, until_s: float, **options: Any) -> list[float]:
    found: list[float] = []
    while (at_s := after(table, found[-1] if found else 0.0, first=not found, **options)) < until_s:
        found.append(at_s)
    return found


def taught(*, median_s: float = 120.0, sigma: float = 0.42, count: int = 60, **options: float) -> PollPlanner:
    table, rng = PollPlanner(PollSchedule(**options)), random.Random(3)  # type: ignore[arg-type]
    for _ in range(count):
        table.note_finished(MODEL, median_s * math.exp(rng.gauss(0, sigma)), seen_s=0.0)
    return table


def arrive(table: PollPlanner, count: int) -> None:
    for number in range(count):
        table.callback_loss.note_callback(str(number), is_news=True)


class TestWhileLittleIsKnown:
    def test_the_first_poll_comes_after_two_seconds(self) -> None:
        assert after(PollPlanner(PollSchedule()), 0.0, first=True) == 2.0

    @together(("last_polled_s", "gap_s"), [(5.0, 2.5), (60.0, 7.5), (300.0, 22.5)])
    def test_polls_follow_the_advice_of_the_service(self, last_polled_s: float, gap_s: float) -> None:
        assert after(PollPlanner(PollSchedule()), last_polled_s) == pytest.approx(last_polled_s + gap_s)

    def test_tasks_still_running_spare_younger_ones_the_polls_that_found_nothing(self) -> None:
        table = PollPlanner(PollSchedule())
        for _ in range(20):
            table.note_running(MODEL, 0.0, 30.0)
        assert len(polls(table, 30.0)) <= 6  # the tiers alone make 12
        assert after(table, 60.0) <= 67.6

    def test_another_model_is_another_matter(self) -> None:
        table = taught()
        assert after(table, 5.0, model="another") == pytest.approx(7.5)

    def test_the_hundred_and_first_model_is_polled_by_the_tiers(self) -> None:
        table = PollPlanner(PollSchedule())
        for number in range(101):
            for _ in range(10):
                table.note_finished(f"model {number}", 60.0, seen_s=0.0)
        assert after(table, 5.0, model="model 99") > 20.0
        assert after(table, 5.0, model="model 100") == pytest.approx(7.5)


class TestOnceItHasLearned:
    def test_the_first_poll_waits_until_it_can_pay(self) -> None:
        assert 30.0 < after(taught(), 0.0, first=True) < 75.0

    def test_polls_are_closest_where_ends_are_likeliest(self) -> None:
        table = taught(sigma=0.15)
        assert after(table, 120.0) - 120.0 < (after(table, 60.0) - 60.0) / 5

    def test_a_task_older_than_any_is_still_polled(self) -> None:
        assert after(taught(), 1800.0) <= 1800.0 + 300.0

    def test_no_task_goes_longer_than_the_user_allows(self) -> None:
        table = taught(longest_gap_s=20.0, jitter=0.0)
        found = [0.0, *polls(table, 1000.0)]
        assert max(later - at for at, later in pairwise(found)) <= 20.0 + 1e-9

    def test_a_service_that_got_faster_is_noticed_within_tens_of_tasks(self) -> None:
        table = taught()
        for _ in range(30):
            table.note_finished(MODEL, 30.0, seen_s=0.0)
        assert after(table, 0.0, first=True) < 30.0

    def test_a_service_that_got_slower_is_noticed_within_tens_of_tasks(self) -> None:
        table = taught(median_s=40.0)
        before = len(polls(table, 100.0, now=1e6))
        for _ in range(30):
            table.note_finished(MODEL, 240.0, seen_s=0.0)
        assert len(polls(table, 100.0, now=2e6)) < 0.75 * before

    def test_a_wait_twice_as_long_takes_half_the_polls(self) -> None:
        often, seldom = taught(wait_s=1.5), taught(wait_s=3.0)
        assert len(polls(often, 200.0)) == pytest.approx(2 * len(polls(seldom, 200.0)), abs=2)

    def test_one_task_is_never_asked_for_more_than_the_service_allows(self) -> None:
        table = taught(median_s=2.0, wait_s=0.01)
        found = polls(table, 10.0)
        assert min(later - at for at, later in pairwise(found)) >= SHORTEST_GAP_S - 1e-9

    def test_the_curve_is_made_anew_once_a_second_at_most(self) -> None:
        table = taught()
        before = after(table, 0.0, first=True, now=100.0)
        for _ in range(60):
            table.note_finished(MODEL, 30.0, seen_s=0.0)
        assert after(table, 0.0, first=True, now=100.9) == before
        assert after(table, 0.0, first=True, now=101.1) < before

    def test_jitter_is_a_share_of_the_gap(self) -> None:
        table = PollPlanner(PollSchedule(jitter=0.2))
        assert after(table, 60.0, chance=0.0) == pytest.approx(66.0)
        assert after(table, 60.0, chance=1.0) == pytest.approx(69.0)

    def test_a_schedule_that_does_not_learn_stays_as_it_is(self) -> None:
        table = PollPlanner(PollSchedule.fixed(3.0, jitter=0.0))
        for _ in range(50):
            table.note_finished(MODEL, 60.0, seen_s=0.0)
        assert after(table, 0.0) == pytest.approx(3.0)
        # What it keeps is how long tasks took, for estimates; when to poll, another schedule is yet to learn.
        learned = table.take_learned(1)
        assert learned is not None
        another = PollPlanner(PollSchedule())
        another.restore(learned)
        assert not another._curve(MODEL, 1e6).is_learned


class TestWithCallbacks:
    def test_an_unknown_model_is_polled_once_a_minute(self) -> None:
        table = PollPlanner(PollSchedule())
        assert after(table, 0.0, first=True, callback=True) == pytest.approx(60.0)

    def test_the_first_tasks_are_polled_as_if_none_came_until_one_does(self) -> None:
        table = PollPlanner(PollSchedule())
        assert [table.should_probe() for _ in range(7)] == [True] * 5 + [False] * 2
        another = PollPlanner(PollSchedule())
        arrive(another, 1)
        assert not another.should_probe()

    def test_a_schedule_that_does_not_learn_sends_no_probes(self) -> None:
        assert not PollPlanner(PollSchedule.documented()).should_probe()

    def test_the_net_waits_past_the_expected_end_while_they_come(self) -> None:
        table = taught()
        arrive(table, 100)
        assert after(table, 0.0, first=True, callback=True) > 200.0

    def test_a_task_past_its_expected_end_is_polled_once_a_minute(self) -> None:
        table = taught()
        arrive(table, 100)
        assert after(table, 500.0, callback=True) == pytest.approx(560.0)

    def test_the_polls_are_as_many_as_are_lost(self) -> None:
        table = taught()
        alone = len(polls(table, 200.0))
        for _ in range(30):
            arrive(table, 3)
            table.callback_loss.note_polled_end("x", 0.0, late_s=60.0)
        assert table.callback_loss.share == pytest.approx(0.25, abs=0.05)
        assert len(polls(table, 200.0, callback=True)) == pytest.approx(alone / 4, abs=3)

    def test_when_all_are_lost_it_polls_as_if_there_were_none(self) -> None:
        table = taught()
        for _ in range(100):
            table.callback_loss.note_polled_end("x", 0.0, late_s=60.0)
        assert after(table, 90.0, callback=True) == pytest.approx(after(table, 90.0), rel=0.01)

    def test_a_miss_after_silence_calls_for_new_plans_once(self) -> None:
        table = PollPlanner(PollSchedule())
        assert not table.should_replan()
        table.callback_loss.note_polled_end("x", 0.0, late_s=60.0)
        assert table.should_replan()
        assert not table.should_replan()

    def test_after_better_times_a_miss_calls_for_new_plans_again(self) -> None:
        table = PollPlanner(PollSchedule())
        arrive(table, 200)
        assert not table.should_replan()
        table.callback_loss.note_polled_end("x", 0.0, late_s=60.0)
        assert table.should_replan()

    def test_an_end_unnoticed_is_as_likely_as_the_callback_is_lost(self) -> None:
        table = taught()
        alone = table.chance(MODEL, 60.0, 120.0, by_callback=False, now=1e6)
        expected = table.chance(MODEL, 60.0, 120.0, by_callback=True, now=1e6)
        assert expected == pytest.approx(table.callback_loss.share * alone)
