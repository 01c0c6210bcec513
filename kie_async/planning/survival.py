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
from collections.abc import Iterable, Sequence
from statistics import NormalDist, fmean, pstdev

import attrs

_ASSUMED_SPREAD = 0.5
"""Of the logarithm of a duration, before it was seen; weighs as much as two ends."""

_ASSUMED_ENDS = 2

_TAIL_SHARE = 0.55
"""Beyond the longest end, how much longer a task runs on average, in spreads."""

_GRID = 40
"""Quantiles that stand for all tasks of a model where many are reckoned with."""


@attrs.frozen
class Span:
    """The ages between which a task was under observation, and whether it ended then."""

    from_s: float
    to_s: float
    has_ended: bool


class SurvivalCurve:
    """The share of tasks that still run at each age: straight lines, and a tail of the power of the age."""

    def __init__(self, ages_s: Sequence[float], shares: Sequence[float], *, tail: float, ends: int) -> None:
        self._ages_s = ages_s
        self._shares = shares
        self._falling = [-share for share in shares]  # which bisect takes as it stands
        self._tail = tail
        self.ends = ends
        """How many ends it was made of; 0 for one that was assumed."""
        # Without what is open below the shortest end and beyond the longest: it would make the mean larger.
        open_share = 1 / (ends + 1) if ends else 0.0
        middles = ((number + 0.5) / _GRID for number in range(_GRID))
        self.grid_s = tuple(self.end_of(open_share / 2 + middle * (1 - open_share)) for middle in middles)
        """Durations as likely as each other."""
        self.mean_s = fmean(self.grid_s)
        self.deviation_s = pstdev(self.grid_s)

    @classmethod
    def of_spans(cls, spans: Iterable[Span]) -> SurvivalCurve:
        """Return the curve of what was observed; at least one task must have ended."""
        observed = [span for span in spans if span.to_s > span.from_s]
        entries = sorted(span.from_s for span in observed)
        exits = sorted(span.to_s for span in observed)
        ends = sorted(span.to_s for span in observed if span.has_ended)
        spread = _spread(ends)
        ages_s, shares, share = [0.0, ends[0] * math.exp(-spread)], [1.0, 1.0], 1.0
        for end_s in ends:
            at_risk = max(1, bisect_left(entries, end_s) - bisect_left(exits, end_s))
            share *= at_risk / (at_risk + 1)
            ages_s.append(end_s)
            shares.append(share)
        # Where most run on, the ends that were seen say little of how long: up to twice the age is assumed.
        tail = spread * _TAIL_SHARE * (1 - share) + share
        return cls(ages_s, shares, tail=tail, ends=len(ends))

    @classmethod
    def assumed(cls, median_s: float) -> SurvivalCurve:
        """Return the curve of a model of which no more is known than its median."""
        normal = NormalDist(math.log(median_s), _ASSUMED_SPREAD)
        ended = [number / _GRID for number in range(1, _GRID)]
        ages_s = [0.0, *(math.exp(normal.inv_cdf(share)) for share in ended)]
        return cls(ages_s, [1.0, *(1 - share for share in ended)], tail=_ASSUMED_SPREAD / 2, ends=0)

    def running(self, age_s: float) -> float:
        """Return the share of tasks that run at an age."""
        ages_s, shares = self._ages_s, self._shares
        if age_s >= ages_s[-1]:
            return shares[-1] * math.pow(age_s / ages_s[-1], -1 / self._tail)
        after = bisect_right(ages_s, age_s)
        return _between(age_s, ages_s[after - 1 : after + 1], shares[after - 1 : after + 1])

    def end_of(self, share: float, *, given_s: float = 0.0) -> float:
        """Return the age by which such a share of the tasks has ended that ran at the age *given_s*."""
        ages_s, shares = self._ages_s, self._shares
        if given_s >= ages_s[-1]:
            return given_s * math.pow(1 - share, -self._tail)
        running = self.running(given_s) * (1 - share)
        if running < shares[-1]:
            return ages_s[-1] * math.pow(running / shares[-1], -self._tail)
        after = bisect_left(self._falling, -running) or 1
        return max(given_s, _between(running, shares[after - 1 : after + 1], ages_s[after - 1 : after + 1]))


def _spread(ends_s: Sequence[float]) -> float:
    """Return the deviation of the logarithms, drawn towards the assumed one while there are few."""
    logs = [math.log(end_s) for end_s in ends_s]
    middle = fmean(logs)
    squares = sum((log - middle) ** 2 for log in logs) + _ASSUMED_ENDS * _ASSUMED_SPREAD**2
    return math.sqrt(squares / (len(logs) - 1 + _ASSUMED_ENDS))


def _between(at: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the value at *at* on the straight line between two points."""
    width = xs[1] - xs[0]
    return ys[1] if width == 0 else ys[0] + (at - xs[0]) / width * (ys[1] - ys[0])
