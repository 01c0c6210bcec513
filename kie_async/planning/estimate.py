"""Estimates the time that a task has left, and how far it has come. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist, geometric_mean

from ..models import Estimate
from .queue_wait import NO_WAIT, Wait
from .survival import SurvivalCurve

LOW, MEDIAN, HIGH = 0.1, 0.5, 0.9

MOST_PROGRESS = 0.99
"""What is not over shows no full bar."""

_AROUND = (0.35, MEDIAN, 0.65)

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
    low_s, high_s = (curve.end_of(share, given_s=age_s) - age_s for share in (LOW, HIGH))
    median_s = _median(curve, age_s)
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


def _median(curve: SurvivalCurve, age_s: float) -> float:
    """Return the middle of what is left.

    One quantile of few ends jumps from one to the next; three that are near each other are steadier. In the
    gap between two kinds of tasks they are not.
    """
    around_s = [max(curve.end_of(share, given_s=age_s) - age_s, 1e-9) for share in _AROUND]
    is_near = around_s[-1] <= _NEAR * around_s[0]
    return geometric_mean(around_s) if is_near else around_s[1]
