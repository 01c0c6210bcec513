"""What a user may set of the times at which tasks are polled, and what is refused."""

from __future__ import annotations

import math

import attrs
import pytest
from support.tables import together

from kie_async.config import DOCUMENTED, PollSchedule
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
