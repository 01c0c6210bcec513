"""Estimates which share of the callbacks never arrives. Pure: the time is an argument."""

from __future__ import annotations

import math
from collections import OrderedDict

_PRIOR_LOST = 0.01

_PRIOR_WEIGHT = 1.0

_CAUTION = 0.4
"""So many standard deviations are added to what was counted."""

_MEMORY_CALLBACKS = 100
"""How many callbacks are remembered; older ones fade."""

_MAX_AWAITED = 10_000


class CallbackLoss:
    """Counts callbacks that came and those that were missed; older ones fade.

    One is missed when a poll finds that a task has ended and its callback does not come within
    *grace_s* of the end: the poll may have been the faster of the two.
    """

    def __init__(self, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._lost = _PRIOR_LOST
        self._all = _PRIOR_WEIGHT
        self._awaited: OrderedDict[str, float] = OrderedDict()
        self.is_proven = False
        """Whether any came, or was missed: before that nobody knows whether the address is right."""

    @property
    def share(self) -> float:
        """Return the share that is lost, by a cautious guess: above 0 and at most 1."""
        return min((self._lost + _CAUTION * math.sqrt(self._lost)) / self._all, 1.0)

    @property
    def next_expiry(self) -> float:
        """Return the instant at which the next awaited callback counts as lost; infinite without one."""
        return next(iter(self._awaited.values()), math.inf)

    def note_callback(self, key: str, *, is_news: bool) -> None:
        """Take in a callback; one that is no news counts only if it was awaited."""
        if self._awaited.pop(key, None) is not None or is_news:
            self._count(0.0)

    def note_polled_end(self, key: str, now: float, *, late_s: float) -> None:
        """Take in that a poll was first to see an end, so many seconds after it."""
        if late_s >= self._grace_s:
            self._count(1.0)
        else:
            self._awaited[key] = now + self._grace_s - late_s
            if len(self._awaited) > _MAX_AWAITED:
                self._awaited.popitem(last=False)

    def expire(self, now: float) -> None:
        """Count as lost what was awaited long enough."""
        while self.next_expiry <= now:
            self._awaited.popitem(last=False)
            self._count(1.0)

    def _count(self, lost: float) -> None:
        fading = _MEMORY_CALLBACKS / (_MEMORY_CALLBACKS + 1)
        # The prior does not fade: however long callbacks come, the share never becomes 0.
        self._lost = self._lost * fading + _PRIOR_LOST * (1 - fading) + lost
        self._all = self._all * fading + _PRIOR_WEIGHT * (1 - fading) + 1
        self.is_proven = True
