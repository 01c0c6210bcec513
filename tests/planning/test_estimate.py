"""The time that is left: from ends and from what still runs, and from the wait for a turn."""

from __future__ import annotations

import json
import math
import random

import pytest
from support.tables import together

from kie_async.planning.durations import DurationModel
from kie_async.planning.estimate import HIGH, LOW, MEDIAN, estimate
from kie_async.planning.queue_wait import Queue, Wait
from kie_async.planning.recent_ends import MEMORY, MIN_ENDS, RecentEnds
from kie_async.planning.survival import Observed, SurvivalCurve


def drawn(count: int, median_s: float = 120.0, sigma: float = 0.42, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [rng.lognormvariate(math.log(median_s), sigma) for _ in range(count)]


def learned(*took_s: float) -> SurvivalCurve:
    curve = RecentEnds.of_former(took_s).curve([], 0.0)
    assert curve is not None
    return curve


class TestHowManyRunOn:
    @together("share", [LOW, MEDIAN, HIGH])
    def test_quantiles_are_those_of_what_ended(self, share: float) -> None:
        took_s = drawn(MEMORY)
        assert learned(*took_s).end_of(share) == pytest.approx(sorted(took_s)[int(share * MEMORY)], rel=0.05)

    def test_the_next_end_falls_into_each_gap_alike(self) -> None:
        curve = learned(10.0, 20.0, 30.0, 40.0)
        assert [curve.running(age_s) for age_s in (10.0, 20.0, 30.0, 40.0)] == pytest.approx(
            [0.8, 0.6, 0.4, 0.2]
        )

    def test_few_ends_make_a_wide_interval(self) -> None:
        few, many = learned(100.0, 120.0, 140.0), learned(*[100.0, 120.0, 140.0] * 30)
        assert few.end_of(HIGH) - few.end_of(LOW) > 2 * (many.end_of(HIGH) - many.end_of(LOW))

    @together("age_s", [0.0, 5.0, 119.0, 250.0, 1e4, 1e9, 1e-9])
    def test_what_runs_at_an_age_ends_after_it(self, age_s: float) -> None:
        for curve in (learned(*drawn(30)), learned(7.0, 7.0, 7.0), SurvivalCurve.assumed(300.0)):
            ends_s = [curve.end_of(share, given_s=age_s) for share in (LOW, MEDIAN, HIGH)]
            assert age_s <= ends_s[0] <= ends_s[1] <= ends_s[2] < math.inf

    def test_the_quick_ones_do_not_speak_for_those_that_run(self) -> None:
        ends = RecentEnds()
        for number in range(10):
            ends.add(50.0 + number, 0.0)
        alone, among_many = ends.curve([], 70.0), ends.curve([0.0] * 90, 70.0)
        assert alone is not None
        assert among_many is not None
        assert alone.running(60.0) < 0.1
        assert among_many.running(60.0) > 0.85

    def test_a_task_counts_from_the_age_at_which_the_window_began(self) -> None:
        seen_late = Observed(0.0, 50.0, 100.0, has_ended=False)
        curve = SurvivalCurve.of([Observed(0.0, 0.0, 20.0, has_ended=True), seen_late])
        assert curve.running(20.0) == pytest.approx(0.5)

    def test_one_may_stand_for_many(self) -> None:
        ended, running = Observed(0.0, 0.0, 20.0, has_ended=True), Observed(0.0, 0.0, 30.0, has_ended=False)
        one = SurvivalCurve.of([ended, running._replace(weight=50)])
        many = SurvivalCurve.of([ended, *[running] * 50])
        assert one.running(20.0) == many.running(20.0) == pytest.approx(51 / 52)

    def test_where_many_run_on_nobody_knows_for_how_long(self) -> None:
        ended = [Observed(0.0, 0.0, 60.0 + number / 10, has_ended=True) for number in range(30)]
        running = [Observed(0.0, 0.0, 65.0, has_ended=False)] * 20
        assert SurvivalCurve.of(ended).end_of(HIGH, given_s=65.0) < 100.0
        assert SurvivalCurve.of([*ended, *running]).end_of(HIGH, given_s=65.0) > 200.0

    def test_what_is_assumed_has_its_median_and_is_wide(self) -> None:
        curve = SurvivalCurve.assumed(300.0)
        assert curve.end_of(MEDIAN) == pytest.approx(300.0)
        assert curve.end_of(HIGH) > 1.5 * 300.0
        assert curve.ends == 0


class TestWhatIsRemembered:
    def test_before_a_few_have_ended_nothing_is_known(self) -> None:
        assert RecentEnds.of_former([9.0] * (MIN_ENDS - 1)).curve([], 0.0) is None
        assert RecentEnds.of_former([9.0] * MIN_ENDS).curve([], 0.0) is not None

    def test_the_last_ones_are_and_no_more(self) -> None:
        ends = RecentEnds()
        for number in range(1000):
            ends.add(float(number), 0.0)
        assert ends.dump() == [float(number) for number in range(1000 - MEMORY, 1000)]

    def test_after_a_change_those_before_it_are_forgotten(self) -> None:
        ends, now = RecentEnds(), 0.0
        for took_s in [*drawn(200, 120.0, 0.3), *drawn(MEMORY, 40.0, 0.3)]:
            ends.add(took_s, now)
            now += took_s
        curve = ends.curve([], now)
        assert curve is not None
        assert curve.end_of(MEDIAN) == pytest.approx(40.0, rel=0.15)

    def test_of_a_crowd_that_runs_some_stand_for_all(self) -> None:
        few, crowd = (
            RecentEnds.of_former(drawn(30)).curve([number / each for number in range(1000 * each)], 1000.0)
            for each in (1, 7)
        )
        assert few is not None
        assert crowd is not None
        assert crowd.ends == few.ends == 30
        assert crowd.running(100.0) > few.running(100.0)

    def test_it_outlives_a_session(self) -> None:
        model = DurationModel()
        for took_s in drawn(40):
            model.note_finished(took_s, seen_s=0.0)
            model.recent.add(took_s, 5.0)
        again = DurationModel.load(json.loads(json.dumps(model.dump())))
        assert again is not None
        assert again.recent.dump() == model.recent.dump()

    def test_a_journal_that_did_not_keep_it_is_read_by_its_bins(self) -> None:
        model = DurationModel()
        for took_s in drawn(60):
            model.note_finished(took_s, seen_s=0.0)
        dumped = model.dump()
        del dumped["recent"]
        again = DurationModel.load(dumped)
        assert again is not None
        curve = again.recent.curve([], 0.0)
        assert curve is not None
        assert curve.end_of(MEDIAN) == pytest.approx(120.0, rel=0.15)

    @together("recent", [[-1.0], ["x"], [float("nan")], 5, [1e12]])
    def test_what_is_damaged_is_not_read(self, recent: object) -> None:
        model = DurationModel()
        model.note_finished(3.0, seen_s=0.0)
        assert DurationModel.load({**model.dump(), "recent": recent}) is None


class TestTheWaitForATurn:
    CURVE = learned(*drawn(MEMORY))

    def queue(self, **options: object) -> Queue:
        given: dict[str, object] = {"slots": 10, "running_s": [], "permits": 20, "window_s": 10.0}
        return Queue(**(given | options))  # type: ignore[arg-type]

    def test_who_has_a_slot_and_a_permit_waits_for_nothing(self) -> None:
        assert self.queue().waits(10, self.CURVE) == [Wait(0.0)] * 10

    def test_permits_come_a_window_later(self) -> None:
        waits = self.queue(slots=100, permits=5).waits(12, self.CURVE)
        assert [wait.s for wait in waits] == [0.0] * 5 + [10.0] * 5 + [20.0] * 2

    def test_permits_that_are_used_come_back_first(self) -> None:
        waits = self.queue(slots=100, permits=2, permits_back_s=[3.0, 7.0]).waits(3, self.CURVE)
        assert [wait.s for wait in waits] == [3.0, 7.0, 13.0]

    def test_the_next_waits_for_the_first_of_those_that_run(self) -> None:
        (young,) = self.queue(running_s=[1.0] * 10).waits(1, self.CURVE)
        (old,) = self.queue(running_s=[100.0] * 10).waits(1, self.CURVE)
        assert 0 < old.s < young.s < 120.0

    def test_a_long_queue_moves_at_the_speed_of_the_slots(self) -> None:
        waits = self.queue(running_s=[60.0] * 10).waits(200, self.CURVE)
        assert waits[199].s == pytest.approx(199 / 10 * self.CURVE.mean_s, rel=0.1)
        assert waits[199].deviation_s > waits[20].deviation_s > 0
        assert [wait.s for wait in waits] == sorted(wait.s for wait in waits)

    def test_all_of_a_wait_is_in_doubt_that_is_one_for_slots(self) -> None:
        few = learned(*drawn(30))
        wait = self.queue(permits=1, window_s=8.0).waits(101, few)[100]
        assert wait.s > 900.0  # and 800 s of it the permits alone take
        assert wait.deviation_s > wait.s * few.deviation_s / few.mean_s / math.sqrt(30)

    def test_what_permits_alone_take_is_in_no_doubt(self) -> None:
        assert self.queue(slots=1000, permits=1).waits(101, self.CURVE)[100] == Wait(1000.0)

    def test_a_crowd_is_reckoned_as_a_smaller_one(self) -> None:
        small = self.queue(slots=500, running_s=[50.0] * 500, permits=500).waits(500, self.CURVE)
        large = self.queue(slots=5000, running_s=[50.0] * 5000, permits=5000).waits(5000, self.CURVE)
        assert large[4999].s == pytest.approx(small[499].s, rel=0.1)


class TestAnEstimate:
    CURVE = learned(*drawn(MEMORY))

    def test_the_wait_is_part_of_it(self) -> None:
        at_once = estimate(self.CURVE, 0.0, elapsed_s=0.0)
        later = estimate(self.CURVE, 0.0, wait=Wait(60.0, 30.0), elapsed_s=0.0)
        assert later.waiting_s == 60.0
        assert later.remaining_s == pytest.approx(at_once.remaining_s + 60.0)
        assert later.high_s - later.low_s > at_once.high_s - at_once.low_s

    def test_progress_is_the_share_of_the_way(self) -> None:
        found = estimate(self.CURVE, 50.0, elapsed_s=50.0)
        assert found.progress == pytest.approx(50.0 / (50.0 + found.remaining_s))

    def test_progress_never_falls_and_is_never_full(self) -> None:
        progress, shown = 0.0, []
        for age_s in range(0, 100_000, 50):
            progress = estimate(self.CURVE, float(age_s), elapsed_s=float(age_s), progress=progress).progress
            shown.append(progress)
        assert shown == sorted(shown)
        assert shown[0] == 0.0
        assert shown[-1] <= 0.99

    def test_between_two_kinds_it_is_one_of_them(self) -> None:
        curve = learned(
            *[60.0 + number / 10 for number in range(20)], *[240.0 + number for number in range(40)]
        )
        assert estimate(curve, 0.0, elapsed_s=0.0).remaining_s > 230.0

    def test_it_does_not_lean_towards_the_other_kind(self) -> None:
        quick, slow = sorted(drawn(120, 60.0, 0.2)), sorted(drawn(60, 240.0, 0.2))
        found = estimate(learned(*quick, *slow), 0.0, elapsed_s=0.0)
        assert found.remaining_s == pytest.approx([*quick, *slow][90], rel=0.05)

    @pytest.mark.parametrize("seed", range(3))
    def test_eight_in_ten_end_within_the_interval(self, seed: int) -> None:
        rng, hits, count = random.Random(seed), 0, 0
        for _ in range(60):
            curve = learned(*drawn(30, seed=rng.randrange(10**9)))
            for took_s in drawn(40, seed=rng.randrange(10**9)):
                age_s = rng.uniform(0.0, 200.0)
                if took_s > age_s:
                    found = estimate(curve, age_s, elapsed_s=age_s)
                    hits += found.low_s <= took_s - age_s <= found.high_s
                    count += 1
        assert 0.75 < hits / count < 0.85
