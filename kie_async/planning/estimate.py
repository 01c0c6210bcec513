"""Estimates the time that a task has left, and how far it has come. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

from ..models import Estimate
from .queue_wait import NO_WAIT, Wait
from .survival import SurvivalCurve

LOW, MEDIAN, HIGH = 0.1, 0.5, 0.9

MOST_PROGRESS = 0.99
"""What is not over shows no full bar."""

_MOST_AROUND = 0.15
"""So far around the median a quantile may be to stand for it."""

_NEAR = 2.6
"""So many times as far as the first may the last of them be, to be near; of exponential ends it is 2.4."""

_REACH = NormalDist().inv_cdf(HIGH)
"""From the median to `HIGH`, in standard deviations."""


def estimate(
    curve: SurvivalCurve, age_s: float, *, wait: Wait = NO_WAIT, elapsed_s: float, progress: float = 0.0
) -> Estimate:
    """Return what is left of a task that still runs at this age, or of one that waits for its turn.

    *elapsed_s* is since somebody asked for it, the wait included; *progress* is what was shown last.
    """
    low_s, median_s, high_s = _left(curve, age_s)
    off_s = _REACH * wait.deviation_s
    remaining_s = wait.s + median_s
    now = elapsed_s / (elapsed_s + remaining_s) if elapsed_s > 0 else 0.0
    return Estimate(
        remaining_s=remaining_s,
        low_s=max(0.0, remaining_s - math.hypot(median_s - low_s, off_s)),
        high_s=remaining_s + math.hypot(high_s - median_s, off_s),
        waiting_s=wait.s,
        progress=max(progress, min(now, MOST_PROGRESS)),
        is_learned=curve.ends > 0,
    )


def _left(curve: SurvivalCurve, age_s: float) -> tuple[float, float, float]:
    """Return `LOW`, the middle and `HIGH` of what is left.

    One quantile of few ends jumps from one to the next. So the middle is that of three, as far from the
    median as chance moves it; but not in the gap between two kinds of tasks.
    """
    around = min(_MOST_AROUND, 1 / math.sqrt(max(curve.ends * curve.running(age_s), 1)))
    shares = (LOW, MEDIAN - around, MEDIAN, MEDIAN + around, HIGH)
    low_s, *middles_s, high_s = (end_s - age_s for end_s in curve.ends_of(shares, given_s=age_s))
    is_near = middles_s[-1] <= _NEAR * middles_s[0]
    return low_s, math.cbrt(math.prod(middles_s)) if is_near else middles_s[1], high_s
