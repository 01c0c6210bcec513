"""Tells whether a model's tasks take longer or shorter than they did: by and by, or all at once. Pure.

Both are told from the ends that came, beside those to be expected of tasks so old (the log-rank test): a task
that still runs counts as what it is, and not as a slow one.

Tsiatis: Estimating regression parameters using linear rank tests for censored data, Annals of Statistics 18
(1990) 354-372
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import attrs

from .survival import Observed, SurvivalCurve

_TREND_ENDS = 48
"""Fewer ends say nothing of a trend."""

_CHANGE_ENDS = 12
"""Fewer ends, before it or after, say nothing of a change."""

_USUAL = 0.15
"""How much more or less tasks take, as a rule, after the time that one of them takes; of its logarithm."""

_MOST = 1.0
"""No trend is followed further than that from its middle; of the logarithm too."""

_SURE = 4.0
"""So many standard deviations off must the ends be that prove a change: by chance they hardly ever are."""


@attrs.frozen
class Trend:
    """How much longer tasks take that begin later."""

    per_s: float = 0.0
    """Of the logarithm of what they take."""
    middle: float = 0.0
    """When those began, on average, that it was told from."""
    latest: float = math.inf
    """When the last of them began: what goes on since then nobody has seen."""

    def factor(self, began_at: float) -> float:
        """Return how many times as long as in the middle a task takes that began then."""
        late_s = min(began_at, self.latest) - self.middle
        return math.exp(max(-_MOST, min(self.per_s * late_s, _MOST)))

    def taken_out_of(self, tasks: Sequence[Observed]) -> Sequence[Observed]:
        """Return the tasks as they were if all had begun in the middle."""
        return [self._moved(*task) for task in tasks] if self.per_s else tasks

    def stretch(self, now: float) -> Callable[[float], float] | None:
        """Return how many times as long tasks take by the age they have now, None if all take the same."""
        return (lambda age_s: self.factor(now - age_s)) if self.per_s else None

    def _moved(self, began_at: float, from_s: float, to_s: float, has_ended: bool, weight: int) -> Observed:
        pace = 1 / self.factor(began_at) if began_at > -math.inf else 1.0
        return Observed(began_at, from_s * pace, to_s * pace, has_ended, weight)


def trend_of(tasks: Sequence[Observed]) -> Trend:
    """Return the trend of tasks, the oldest first: the less sure it is, the nearer to none."""
    known = [task for task in tasks if task.began_at > -math.inf]
    ended = [task for task in known if task.has_ended]
    if len(ended) < _TREND_ENDS:
        return Trend()
    middle, latest = fmean(task.began_at for task in ended), known[-1].began_at
    usual = _USUAL / fmean(task.to_s for task in ended)
    score, variance = _score(known, Trend(0.0, middle))
    if not score or variance <= 0:
        return Trend()
    per_s = math.copysign(usual, -score)
    for _ in range(2):  # false position: the score is nearly a straight line
        left, _ = _score(known, Trend(per_s, middle))
        per_s /= max(1 - left / score, 0.25)
    deviation = abs(per_s / score) * math.sqrt(variance)
    return Trend(per_s / (1 + (deviation / usual) ** 2), middle, latest)


def _score(tasks: Sequence[Observed], trend: Trend) -> tuple[float, float]:
    """Return by how much those end sooner that began later, were it not for a trend, and its variance."""
    events = []
    for began_at, from_s, to_s, has_ended, weight in tasks:
        late_s = began_at - trend.middle
        pace = math.exp(-trend.per_s * late_s)
        events.append((to_s * pace, late_s, weight, has_ended))
        if from_s:
            events.append((from_s * pace, late_s, -weight, False))
    events.sort(reverse=True)
    at_risk = total = squares = score = variance = 0.0
    for _, late_s, weight, has_ended in events:
        at_risk += weight
        total += weight * late_s
        squares += weight * late_s * late_s
        if has_ended:
            mean = total / at_risk
            score += late_s - mean
            variance += squares / at_risk - mean * mean
    return score, variance


def changed_at(tasks: Sequence[Observed], curve: SurvivalCurve) -> float | None:
    """Return since when tasks, the oldest first, take another time than *curve* says; None if they do not.

    Of all instants it is that since which the ends are furthest from what was to be expected.
    """
    expected = [task.weight * (curve.ends_by(task.to_s) - curve.ends_by(task.from_s)) for task in tasks]
    all_expected, all_ends = sum(expected), sum(task.has_ended for task in tasks)
    ends, so_far, surest, found = 0, 0.0, _SURE, None
    for number in range(len(tasks) - 1, 0, -1):
        ends += tasks[number].has_ended
        so_far += expected[number]
        if all_ends - ends < _CHANGE_ENDS:
            break
        began_at = tasks[number].began_at
        if ends >= _CHANGE_ENDS and tasks[number - 1].began_at < began_at:
            off = abs(ends - so_far) / math.sqrt(so_far * (1 - so_far / all_expected))
            if off > surest:
                surest, found = off, began_at
    return found
