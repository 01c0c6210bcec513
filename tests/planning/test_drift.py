"""Whether tasks take longer or shorter than they did: a trend, a change, and when there is neither."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from support.tables import together

from kie_async.planning.drift import Trend, changed_at, trend_of
from kie_async.planning.estimate import HIGH, LOW, MEDIAN
from kie_async.planning.recent_ends import MEMORY, RecentEnds
from kie_async.planning.survival import Observed, SurvivalCurve

MEAN_S, EVERY_S = 120.0, 1.2
NOW = 500 * EVERY_S


def seen(
    scale: Callable[[int], float] = lambda _: 1.0, *, sigma: float = 0.3, seed: int = 1, count: int = 500
) -> list[Observed]:
    """Return what was seen at `NOW` of tasks that began one after the other, the last of them just now."""
    rng, tasks = random.Random(seed), []
    for number in range(count):
        began_at = NOW - (count - number) * EVERY_S
        took_s = rng.lognormvariate(math.log(MEAN_S), sigma) * scale(number)
        has_ended = began_at + took_s <= NOW
        tasks.append(Observed(began_at, 0.0, took_s if has_ended else NOW - began_at, has_ended))
    return tasks


def remembered(tasks: list[Observed]) -> tuple[RecentEnds, list[float]]:
    """Return the ends in their order, and when those began that run."""
    ends = RecentEnds()
    for task in sorted(tasks, key=lambda task: task.began_at + task.to_s):
        if task.has_ended:
            ends.add(task.to_s, task.began_at)
    return ends, [task.began_at for task in tasks if not task.has_ended]


def median_of(tasks: list[Observed]) -> float:
    ends, running = remembered(tasks)
    curve = ends.curve(running, NOW)
    assert curve is not None
    return curve.end_of(MEDIAN)


class TestATrend:
    @together("factor", [2.0, 0.5])
    def test_it_is_found_while_tasks_run(self, factor: float) -> None:
        trend = trend_of(seen(lambda number: factor ** (number / 500), sigma=0.15))
        assert trend.per_s * NOW == pytest.approx(math.log(factor), rel=0.25)

    def test_quick_ones_that_end_first_are_none(self) -> None:
        assert all(abs(trend_of(seen(count=150, seed=seed)).per_s) * MEAN_S < 0.2 for seed in range(20))

    def test_where_there_is_none_next_to_none_is_found(self) -> None:
        found = [trend_of(seen(seed=seed)).per_s * MEAN_S for seed in range(20)]
        assert max(map(abs, found)) < 0.06
        assert abs(sum(found)) / 20 < 0.015

    def test_the_less_sure_it_is_the_less_of_it_is_followed(self) -> None:
        sure, unsure = (
            trend_of(seen(lambda number: 2 ** (number / 500), sigma=sigma, seed=3)) for sigma in (0.1, 1.5)
        )
        assert sure.per_s > 1.3 * abs(unsure.per_s)

    def test_few_ends_tell_none(self) -> None:
        assert trend_of(seen(lambda number: 2.0**number, count=40)).per_s == 0

    def test_those_that_began_together_tell_none(self) -> None:
        together_s = [Observed(7.0, 0.0, task.to_s, task.has_ended) for task in seen()]
        assert trend_of(together_s).per_s == 0

    def test_tasks_are_told_by_when_they_began(self) -> None:
        ends, running = remembered(seen(lambda number: 2 ** (number / 500), sigma=0.15))
        curve = ends.curve(running, NOW)
        assert curve is not None
        assert curve.end_of(MEDIAN) == pytest.approx(2 * MEAN_S, rel=0.1)
        assert curve.end_of(MEDIAN, given_s=100.0) < curve.end_of(MEDIAN)

    def test_a_queue_waits_by_what_was_seen(self) -> None:
        ends, running = remembered(seen(lambda number: 2 ** (number / 500), sigma=0.15))
        curve = ends.curve(running, NOW)
        assert curve is not None
        assert curve.mean_s < 0.9 * curve.end_of(MEDIAN)

    def test_it_is_not_carried_on_while_none_begins(self) -> None:
        ends, _ = remembered(seen(lambda number: 2 ** (number / 500), sigma=0.15)[:400])
        soon, late = ends.curve([], NOW), ends.curve([], NOW + 1e6)
        assert soon is not None
        assert late is not None
        assert late.end_of(MEDIAN) == pytest.approx(soon.end_of(MEDIAN))

    def test_of_whom_nobody_knows_when_it_began_it_says_nothing(self) -> None:
        former = Observed(-math.inf, 0.0, 50.0, True)
        trend = trend_of([former, *seen(lambda number: 2 ** (number / 500))])
        assert trend.per_s > 0
        assert trend.taken_out_of([former]) == [former]

    def test_it_is_not_followed_beyond_all_reason(self) -> None:
        trend = Trend(per_s=1.0, middle=0.0)
        assert trend.factor(1e9) == pytest.approx(math.e)
        assert trend.factor(-1e9) == pytest.approx(1 / math.e)


class TestAChange:
    @together(("factor", "after"), [(3.0, 200), (1 / 3, 440)])
    def test_thirty_ends_later_the_median_is_the_new_one(self, factor: float, after: int) -> None:
        tasks = seen(lambda number: factor if number >= after else 1.0)
        assert 25 <= sum(task.has_ended for task in tasks[after:]) <= 40
        assert median_of(tasks) == pytest.approx(factor * MEAN_S, rel=0.15)

    def test_it_is_found_where_it_was(self) -> None:
        tasks = seen(lambda number: 3.0 if number >= 200 else 1.0)
        found = changed_at(tasks, SurvivalCurve.of(tasks))
        assert found is not None
        assert found == pytest.approx(tasks[200].began_at, abs=15 * EVERY_S)

    def test_where_there_is_none_none_is_found(self) -> None:
        for seed in range(60):
            tasks = seen(seed=seed)
            assert changed_at(tasks, SurvivalCurve.of(tasks)) is None

    def test_one_that_hangs_is_none(self) -> None:
        tasks = [Observed(NOW - 1e6, 0.0, 1e6, False), *seen()]
        assert changed_at(tasks, SurvivalCurve.of(tasks)) is None

    def test_it_is_noticed_against_former_sessions(self) -> None:
        rng = random.Random(1)
        ends = RecentEnds.of_former([rng.lognormvariate(math.log(MEAN_S), 0.3) for _ in range(60)])
        for number in range(30):
            ends.add(rng.lognormvariate(math.log(3 * MEAN_S), 0.3), number * EVERY_S)
        curve = ends.curve([], 1e3)
        assert curve is not None
        assert 24 <= curve.ends <= 30
        assert curve.end_of(LOW) > 1.5 * MEAN_S

    def test_what_was_before_it_and_ends_later_does_not_count(self) -> None:
        tasks = seen(lambda number: 3.0 if number >= 300 else 1.0)
        ends, running = remembered(tasks)
        before = ends.curve(running, NOW)
        ends.add(1e5, tasks[0].began_at)
        after = ends.curve(running, NOW)
        assert before is not None
        assert after is not None
        assert after.ends == before.ends < MEMORY
        assert after.end_of(HIGH) == before.end_of(HIGH)
