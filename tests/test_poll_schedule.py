"""When to look again: the service's own advice, jittered, stretched while a callback is expected."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async.errors import InvalidRequest
from kie_async.poll_schedule import DOCUMENTED, PollSchedule

MIDDLE = 0.5
"""The chance that adds no jitter."""


def delay(schedule: PollSchedule, elapsed_s: float, *, looks: int = 1, callback: bool = False) -> float:
    return schedule.delay_s(elapsed_s, looks=looks, expects_callback=callback, chance=MIDDLE)


@pytest.mark.parametrize(
    ("elapsed_s", "delay_s"),
    [
        (0.0, 2.5),
        (29.9, 2.5),
        (30.0, 7.5),
        (119.9, 7.5),
        (120.0, 22.5),
        (86_400.0, 22.5),
        (math.inf, 22.5),
    ],
)
def test_the_advice_of_the_service_is_the_default(elapsed_s: float, delay_s: float) -> None:
    assert delay(PollSchedule(), elapsed_s) == delay_s


@pytest.mark.parametrize(("tier", "low_s", "high_s"), [(0, 2, 3), (1, 5, 10), (2, 15, 30)])
def test_jitter_stays_within_the_advice(tier: int, low_s: float, high_s: float) -> None:
    interval_s = DOCUMENTED[tier][1]
    assert low_s <= interval_s * 0.8
    assert interval_s * 1.2 <= high_s


def test_the_first_look_comes_sooner() -> None:
    assert delay(PollSchedule(first_s=1.5), 0.0, looks=0) == 1.5


@pytest.mark.parametrize("elapsed_s", [0.0, 60.0, 600.0])
@pytest.mark.parametrize("looks", [0, 5])
def test_a_poll_is_only_the_net_while_a_callback_is_expected(elapsed_s: float, looks: int) -> None:
    assert delay(PollSchedule(), elapsed_s, looks=looks, callback=True) == 60.0


def test_the_net_never_looks_more_often_than_the_tier() -> None:
    assert delay(PollSchedule(safety_net_s=5.0), 600.0, callback=True) == 22.5


@pytest.mark.parametrize("callback", [True, False])
@pytest.mark.parametrize("looks", [0, 1, 9])
@pytest.mark.parametrize("elapsed_s", [0.0, 600.0])
def test_a_fixed_schedule_is_fixed(elapsed_s: float, looks: int, callback: bool) -> None:
    assert delay(PollSchedule.fixed(0.05), elapsed_s, looks=looks, callback=callback) == 0.05


def test_no_jitter_makes_a_delay_exact() -> None:
    schedule = PollSchedule.fixed(3.0, jitter=0.0)
    assert {schedule.delay_s(0, looks=1, expects_callback=False, chance=c) for c in (0.0, 0.3, 0.99)} == {3.0}


@given(
    elapsed_s=st.floats(0, 1e9),
    looks=st.integers(0, 1000),
    expects_callback=st.booleans(),
    chance=st.floats(0, 1, exclude_max=True),
    jitter=st.floats(0, 0.99),
)
def test_a_delay_is_above_zero_and_within_its_jitter(
    elapsed_s: float, looks: int, expects_callback: bool, chance: float, jitter: float
) -> None:
    schedule = PollSchedule(jitter=jitter)
    middle_s = delay(schedule, elapsed_s, looks=looks, callback=expects_callback)
    delay_s = schedule.delay_s(elapsed_s, looks=looks, expects_callback=expects_callback, chance=chance)
    assert delay_s > 0
    assert middle_s * (1 - jitter) * 0.999 <= delay_s <= middle_s * (1 + jitter) * 1.001


@given(younger_s=st.floats(0, 1e6), older_s=st.floats(0, 1e6))
def test_an_older_task_is_never_looked_at_more_often(younger_s: float, older_s: float) -> None:
    younger_s, older_s = sorted((younger_s, older_s))
    assert delay(PollSchedule(), younger_s) <= delay(PollSchedule(), older_s)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), None, "2"])
@pytest.mark.parametrize("field", ["first_s", "safety_net_s", "ring_gap_s", "visibility_grace_s"])
def test_a_time_that_is_not_above_zero_is_refused_by_name(field: str, bad: object) -> None:
    with pytest.raises(InvalidRequest, match=field):
        PollSchedule(**{field: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, float("nan")])
def test_a_jitter_that_could_stop_the_clock_is_refused(bad: float) -> None:
    with pytest.raises(InvalidRequest, match="jitter"):
        PollSchedule(jitter=bad)


@pytest.mark.parametrize(
    "bad",
    [
        (),
        ((30.0, 2.5),),
        ((math.inf, 2.5), (30.0, 2.5)),
        ((30.0, 2.5), (30.0, 5.0), (math.inf, 9.0)),
        ((60.0, 2.5), (30.0, 5.0), (math.inf, 9.0)),
        ((math.inf, 0.0),),
        ((math.inf, -1.0),),
        ((math.inf, float("nan")),),
    ],
)
def test_tiers_that_leave_a_gap_are_refused(bad: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(InvalidRequest, match="tiers"):
        PollSchedule(tiers=bad)


@pytest.mark.parametrize("bad", [(0.0,), (1.0, -1.0), (float("nan"),)])
def test_a_recheck_without_a_pause_is_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="recheck_s"):
        PollSchedule(recheck_s=bad)


def test_there_may_be_no_rechecks() -> None:
    assert PollSchedule(recheck_s=()).recheck_s == ()


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_a_fixed_schedule_refuses_an_interval_that_is_not_above_zero(bad: float) -> None:
    with pytest.raises(InvalidRequest):
        PollSchedule.fixed(bad)


def test_a_schedule_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PollSchedule().first_s = 1.0  # type: ignore[misc]
