"""The share of a model's tasks that still run at each age, from those that ended and those that run. Pure.

The product-limit estimate of Kaplan and Meier, in which each task counts from the age at which it came
into the window that is remembered, with room for one task more (Hill's A(n)): of tasks that reached an age
which n others passed, each gap between their ends, and all beyond the last, gets the next end alike. So an
interval is as wide as few ends make it, and covers what it says from the first ends on.

Kaplan, Meier: Nonparametric estimation from incomplete observations, JASA 53 (1958) 457-481
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from operator import mul
from statistics import NormalDist, fmean
from typing import NamedTuple

_ASSUMED_SPREAD = 0.5
"""Of the logarithm of a duration, before it was seen; weighs as much as two ends."""

_ASSUMED_ENDS = 2

_TAIL_SHARE = 0.55
"""Beyond the longest end, how much longer a task runs on average, in spreads."""

_GRID = 40
"""Quantiles that stand for all tasks of a model where many are reckoned with."""


class Observed(NamedTuple):
    """The ages between which a task was under observation, and whether it ended then."""

    began_at: float
    """On the caller's clock; minus infinity where nobody knows, which is before all others."""
    from_s: float
    to_s: float
    has_ended: bool
    weight: int = 1
    """How many running tasks it stands for."""


class SurvivalCurve:
    """The share of tasks that still run at each age: straight lines, and a tail of the power of the age.

    *stretch* says how many times as long tasks take that have an age now, where there is a trend.
    """

    def __init__(
        self,
        ages_s: Sequence[float],
        shares: Sequence[float],
        *,
        tail: float,
        ends: int,
        stretch: Callable[[float], float] | None = None,
    ) -> None:
        self._ages_s = ages_s
        self._shares = shares
        self._falling = [-share for share in shares]  # which bisect takes as it stands
        self._tail = tail
        self._stretch = stretch
        self.ends = ends
        """How many ends it was made of; 0 for one that was assumed."""

    @classmethod
    def of(
        cls, tasks: Sequence[Observed], *, stretch: Callable[[float], float] | None = None
    ) -> SurvivalCurve:
        """Return the curve of what was observed; at least one task must have ended."""
        at_risk, steps = 0, []
        for age_s, weight, has_ended in _comings_and_goings(tasks):
            at_risk += weight
            if has_ended:
                steps.append((age_s, at_risk / (at_risk + 1)))
        steps.reverse()
        ends = [age_s for age_s, _ in steps]
        spread = _spread(ends)
        ages_s = [0.0, ends[0] * math.exp(-spread), *ends]
        shares = [1.0, *accumulate((staying for _, staying in steps), mul, initial=1.0)]
        share = shares[-1]
        # Where many run on, the ends that were seen say little of how long: up to twice the age is assumed.
        unseen = 2 * share / (1 + share)
        tail = spread * _TAIL_SHARE * (1 - unseen) + unseen
        return cls(ages_s, shares, tail=tail, ends=len(ends), stretch=stretch)

    @classmethod
    def assumed(cls, median_s: float) -> SurvivalCurve:
        """Return the curve of a model of which no more is known than its median."""
        normal = NormalDist(math.log(median_s), _ASSUMED_SPREAD)
        ended = [number / _GRID for number in range(1, _GRID)]
        ages_s = [0.0, *(math.exp(normal.inv_cdf(share)) for share in ended)]
        return cls(ages_s, [1.0, *(1 - share for share in ended)], tail=_ASSUMED_SPREAD / 2, ends=0)

    def running(self, age_s: float) -> float:
        """Return the share of tasks that run at an age, were there no trend."""
        ages_s, shares = self._ages_s, self._shares
        if age_s >= ages_s[-1]:
            return shares[-1] * math.pow(age_s / ages_s[-1], -1 / self._tail)
        return _between(age_s, ages_s, shares, bisect_right(ages_s, age_s))

    def ends_by(self, age_s: float) -> float:
        """Return how many ends a task has to expect by an age; beyond the longest end none more."""
        return self._hazards[bisect_right(self._ages_s, age_s) - 1]

    def end_of(self, share: float, *, given_s: float = 0.0) -> float:
        """Return the age by which such a share of the tasks has ended that ran at the age *given_s*."""
        return self.ends_of((share,), given_s=given_s)[0]

    def ends_of(self, shares: Sequence[float], *, given_s: float) -> list[float]:
        """Return the ages by which such shares of the tasks have ended that ran at the age *given_s*."""
        longer = 1.0 if self._stretch is None else self._stretch(given_s)
        if given_s >= longer * self._ages_s[-1]:
            return [given_s * math.pow(1 - share, -self._tail) for share in shares]
        running = self.running(given_s / longer)
        return [max(given_s, longer * self._age_of(running * (1 - share))) for share in shares]

    def _age_of(self, running: float) -> float:
        """Return the age at which such a share of the tasks runs, were there no trend."""
        ages_s, last = self._ages_s, self._shares[-1]
        if running < last:
            return ages_s[-1] * math.pow(running / last, -self._tail)
        return _between(-running, self._falling, ages_s, bisect_left(self._falling, -running) or 1)

    @cached_property
    def _hazards(self) -> list[float]:
        return [-math.log(share) for share in self._shares]

    @cached_property
    def grid_s(self) -> tuple[float, ...]:
        """Durations as likely as each other, were there no trend."""
        # Without what is open below the shortest end and beyond the longest: it would make the mean larger.
        open_share = 1 / (self.ends + 1) if self.ends else 0.0
        middles = ((number + 0.5) / _GRID for number in range(_GRID))
        return tuple(self._age_of(1 - open_share / 2 - middle * (1 - open_share)) for middle in middles)

    @cached_property
    def mean_s(self) -> float:
        """How long tasks take on average."""
        return fmean(self.grid_s)

    @cached_property
    def deviation_s(self) -> float:
        """The standard deviation of how long they take."""
        return math.sqrt(fmean((each_s - self.mean_s) ** 2 for each_s in self.grid_s))


def _comings_and_goings(tasks: Sequence[Observed]) -> list[tuple[float, int, bool]]:
    """Return from the longest age back how many were still observed, or no longer, and what was an end."""
    events = [(task.to_s, task.weight, task.has_ended) for task in tasks]
    events += [(task.from_s, -task.weight, False) for task in tasks if task.from_s]
    return sorted(events, reverse=True)


def _spread(ends_s: Sequence[float]) -> float:
    """Return the deviation of the logarithms, drawn towards the assumed one while there are few."""
    logs = [math.log(end_s) for end_s in ends_s]
    middle = fmean(logs)
    squares = sum((log - middle) ** 2 for log in logs) + _ASSUMED_ENDS * _ASSUMED_SPREAD**2
    return math.sqrt(squares / (len(logs) - 1 + _ASSUMED_ENDS))


def _between(at: float, xs: Sequence[float], ys: Sequence[float], after: int) -> float:
    """Return the value at *at* on the straight line between the points before and at *after*."""
    before = after - 1
    width = xs[after] - xs[before]
    return ys[after] if width == 0 else ys[before] + (at - xs[before]) / width * (ys[after] - ys[before])
