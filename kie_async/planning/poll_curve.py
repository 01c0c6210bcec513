"""How many polls a task gets by each age: by fixed intervals, or by Keller's rule from a hazard. Pure.

Polls cost, and so does learning of an end late. Between polls ``d`` seconds apart an end waits ``d / 2``
on average. Of tasks whose share ``S(t)`` still runs at age t and whose ends have the density ``f(t)``, polls
with the spacing d(t) cost ``integral S / d`` polls and ``integral f * d / 2`` seconds of waiting. The least
of the one for a given other has d(t) proportional to ``sqrt(S / f)``, one over the square root of the
hazard: poll often where ends are likely, hardly ever where they are not. For a mean wait of w seconds

    d(t) = 2 * w / I * sqrt(S / f),    I = integral sqrt(f * S),

which takes ``I**2 / (2 * w)`` polls where a fixed interval takes ``mean / (2 * w)``.

The rule is of J. B. Keller, Optimum checking schedules for systems subject to random failure,
Management Science 21 (1974) 256-260, https://doi.org/10.1287/mnsc.21.3.256
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

_LATE_SHARE = 0.02
"""The share of tasks that are older than `PollCurve.late_s` when they end."""

_ASSUMED_MEAN_S = 120.0
"""What a task of an unknown model is taken to run on average."""


class PollCurve:
    """How many polls a task has had by each age, and what its hazard adds up to until then."""

    def __init__(
        self, edges_s: Sequence[float], polls: Sequence[float], cumulative_hazard: Sequence[float]
    ) -> None:
        self._edges_s = edges_s
        self._polls = polls
        self._cumulative_hazard = cumulative_hazard
        steps = zip(pairwise(edges_s), pairwise(polls), strict=True)
        self._per_s = [
            0.0,
            *((after - before) / (to_s - from_s) for (from_s, to_s), (before, after) in steps),
        ]
        self.is_learned = False
        self.late_s = 0.0
        """The age that few tasks reach; 0 while nothing is known."""

    @classmethod
    def of_tiers(cls, tiers: Sequence[tuple[float, float]]) -> PollCurve:
        """Return the curve of fixed intervals, each until an age."""
        edges_s, polls = [0.0], [0.0]
        for end_s, interval_s in tiers:
            end_s = min(end_s, max(edges_s[-1] * 2, 86_400.0))
            polls.append(polls[-1] + (end_s - edges_s[-1]) / interval_s)
            edges_s.append(end_s)
        return cls(edges_s, polls, [edge_s / _ASSUMED_MEAN_S for edge_s in edges_s])

    @classmethod
    def of_hazards(
        cls, edges_s: Sequence[float], hazards: Sequence[float], wait_s: float, wait_share: float = 0.0
    ) -> PollCurve:
        """Return the curve whose polls come *wait_s* late on average, or that share of the mean age."""
        running, whole, mean_s, cumulative, roots = 1.0, 0.0, 0.0, [0.0], []
        for (from_s, to_s), hazard in zip(pairwise(edges_s), hazards, strict=False):
            width_s = to_s - from_s
            root = math.sqrt(hazard * width_s)  # the integral of sqrt(hazard per second) over the bin
            ended = running * -math.expm1(-hazard)
            on_average = ended / hazard if hazard else running
            roots.append(root)
            whole += root * on_average
            mean_s += width_s * on_average
            running -= ended
            cumulative.append(cumulative[-1] + hazard)
        wait_s = max(wait_s, mean_s * wait_share)
        polls = [0.0]
        for root in roots:
            polls.append(polls[-1] + root * whole / (2 * wait_s))
        curve = cls(edges_s[: len(polls)], polls, cumulative)
        curve.is_learned = True
        curve.late_s = curve.end_of(1 - _LATE_SHARE)
        return curve

    def at_most(self, other: PollCurve) -> PollCurve:
        """Return the curve that nowhere polls more often than this one or the other."""
        others = [other.polls_until(edge_s) for edge_s in self._edges_s]
        polls = [0.0]
        for (low, high), (before, after) in zip(pairwise(others), pairwise(self._polls), strict=True):
            polls.append(polls[-1] + min(after - before, high - low))
        return PollCurve(self._edges_s, polls, self._cumulative_hazard)

    def polls_until(self, age_s: float) -> float:
        """Return how many polls lie before an age."""
        return _value(self._edges_s, self._polls, age_s)

    def after(self, age_s: float, polls: float) -> float:
        """Return the age at which so many polls more were made; infinite if that is never."""
        edges_s, made = self._edges_s, self._polls
        number = min(bisect_left(edges_s, age_s), len(edges_s) - 1) or 1
        wanted = made[number] - (edges_s[number] - age_s) * self._per_s[number] + polls
        if wanted > made[number]:
            number = bisect_left(made, wanted, number)
            if number == len(made):
                return math.inf
        return edges_s[number] - (made[number] - wanted) / self._per_s[number]

    def end_of(self, share: float) -> float:
        """Return the age by which such a share of the tasks has ended; infinite if that is never."""
        return _inverse(self._edges_s, self._cumulative_hazard, -math.log1p(-share))

    def chance(self, from_s: float, to_s: float) -> float:
        """Return how likely a task that ran at one age has ended at the other."""
        edges_s, cumulative = self._edges_s, self._cumulative_hazard
        return -math.expm1(_value(edges_s, cumulative, from_s) - _value(edges_s, cumulative, to_s))


def _value(edges_s: Sequence[float], values: Sequence[float], age_s: float) -> float:
    number = min(bisect_left(edges_s, age_s), len(edges_s) - 1) or 1
    return _between(age_s, edges_s, values, number)


def _inverse(edges_s: Sequence[float], values: Sequence[float], value: float) -> float:
    number = bisect_left(values, value)
    if number == len(values):
        return math.inf
    return _between(value, values, edges_s, number or 1)


def _between(at: float, xs: Sequence[float], ys: Sequence[float], number: int) -> float:
    """Return the value at *at* on the straight line that ends at the edge *number*."""
    from_x, from_y = xs[number - 1], ys[number - 1]
    return from_y + (at - from_x) * (ys[number] - from_y) / (xs[number] - from_x)
