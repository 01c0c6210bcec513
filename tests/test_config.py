"""What a user may set of the times at which tasks are polled, and what is refused."""

from __future__ import annotations

import math

import attrs
import pytest
from support.tables import together

from kie_async.config import DOCUMENTED, Limits, PollSchedule, Rate
from kie_async.errors import InvalidRequest


@together(("tier", "low_s", "high_s"), [(0, 2, 3), (1, 5, 10), (2, 15, 30)])
def test_jitter_stays_within_the_advice_of_the_service(tier: int, low_s: float, high_s: float) -> None:
    jitter, interval_s = PollSchedule().jitter, DOCUMENTED[tier][1]
    assert low_s <= interval_s * (1 - jitter)
    assert interval_s * (1 + jitter) <= high_s


def test_it_learns_unless_set_otherwise() -> None:
    assert PollSchedule().learns
    assert not PollSchedule.documented().learns
    assert not PollSchedule.fixed(3.0).learns


NUMBERS = (
    "wait_s",
    "first_s",
    "longest_gap_s",
    "safety_net_s",
    "callback_grace_s",
    "ring_gap_s",
    "visibility_grace_s",
)


@together("field", NUMBERS)
@together("bad", [0.0, -1.0, math.nan, None, "2"])
def test_a_time_that_is_not_above_zero_is_refused_by_name(field: str, bad: object) -> None:
    with pytest.raises(InvalidRequest, match=field):
        PollSchedule(**{field: bad})  # type: ignore[arg-type]


@together("field", ["jitter", "wait_share"])
@together("bad", [-0.1, 1.0, 1.5, math.nan])
def test_a_share_that_could_stop_the_clock_is_refused_by_name(field: str, bad: float) -> None:
    with pytest.raises(InvalidRequest, match=field):
        PollSchedule(**{field: bad})  # type: ignore[arg-type]


@together(
    "bad",
    [
        (),
        ((30.0, 2.5),),
        ((30.0, 2.5), (30.0, 5.0), (math.inf, 9.0)),
        ((120.0, 2.5), (30.0, 5.0), (math.inf, 9.0)),
        ((math.inf, 0.0),),
        ((30.0, -1.0), (math.inf, 9.0)),
        ((math.nan, 1.0), (math.inf, 9.0)),
    ],
)
def test_tiers_that_leave_an_age_without_an_interval_are_refused(
    bad: tuple[tuple[float, float], ...],
) -> None:
    with pytest.raises(InvalidRequest, match="tiers"):
        PollSchedule(tiers=bad)


@together("bad", [(0.0,), (1.0, -2.0), (math.nan,)])
def test_recheck_delays_are_above_zero(bad: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="recheck_s"):
        PollSchedule(recheck_s=bad)


def test_rechecks_can_be_left_out() -> None:
    assert PollSchedule(recheck_s=()).recheck_s == ()


@together("bad", [0.0, -3.0, math.nan])
def test_a_fixed_interval_is_above_zero(bad: float) -> None:
    with pytest.raises(InvalidRequest):
        PollSchedule.fixed(bad)


def test_it_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PollSchedule().first_s = 1.0  # type: ignore[misc]


# --- limits ---------------------------------------------------------------------------------------


@together(
    ("query", "ceiling"),
    [
        (Rate(10, per_s=1.0), Rate(100, per_s=1.0)),
        (Rate(1, per_s=10.0), Rate(100, per_s=1.0)),
        (Rate(100, per_s=1.0), Rate(100, per_s=1.0)),
        (Rate(30, per_s=0.1), Rate(30, per_s=0.1)),
    ],
)
def test_queries_come_to_a_hundred_a_second_or_to_what_they_begin_with(query: Rate, ceiling: Rate) -> None:
    assert Limits(query=query).query_ceiling == ceiling


def test_a_ceiling_may_be_left_out_or_be_where_queries_begin() -> None:
    assert Limits(query_ceiling=None).query_ceiling is None
    assert Limits(query_ceiling=Rate(10, per_s=1.0)).query_ceiling == Rate(10, per_s=1.0)
    assert Limits(query_ceiling=Rate(600, per_s=60.0)).query_ceiling == Rate(600, per_s=60.0)


@together("bad", [9, "100", Rate(9, per_s=1.0), Rate(599, per_s=60.0), (100, 1.0)])
def test_a_ceiling_below_where_queries_begin_is_refused_by_name(bad: object) -> None:
    with pytest.raises(InvalidRequest, match="query_ceiling"):
        Limits(query_ceiling=bad)  # type: ignore[arg-type]


@together("bad", [None, 10, "10"])
def test_a_rate_of_queries_that_is_none_is_refused_by_its_own_name(bad: object) -> None:
    with pytest.raises(InvalidRequest, match="query must be"):
        Limits(query=bad)  # type: ignore[arg-type]
