"""Which share of the callbacks never comes. Pure: the time is an argument."""

from __future__ import annotations

import math
from collections import OrderedDict

_PRIOR_LOST = 0.01

_PRIOR_WEIGHT = 1.0

_CAUTION = 0.4
"""So many standard deviations are added to what was counted."""

_MEMORY = 100

_MOST_AWAITED = 10_000


class CallbackLoss:
    """Counts callbacks that came and those that were missed; older ones fade.

    One is missed when a look finds that a task has ended and its callback does not come within
    *grace_s* of the end: the look may have been the faster of the two.
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

    def came(self, key: str, *, is_news: bool) -> None:
        """Take in a callback; one that is no news counts only if it was being waited for."""
        if self._awaited.pop(key, None) is not None or is_news:
            self._count(0.0)

    def found_ended(self, key: str, now: float, *, late_s: float) -> None:
        """Take in that a look was first to see an end, so many seconds after it."""
        if late_s >= self._grace_s:
            self._count(1.0)
        else:
            self._awaited[key] = now + self._grace_s - late_s
            if len(self._awaited) > _MOST_AWAITED:
                self._awaited.popitem(last=False)

    @property
    def until(self) -> float:
        """Return the instant at which something will have been waited for long enough."""
        return next(iter(self._awaited.values()), math.inf)

    def give_up(self, now: float) -> None:
        """Count what was waited for long enough."""
        while self.until <= now:
            self._awaited.popitem(last=False)
            self._count(1.0)

    def _count(self, lost: float) -> None:
        fading = _MEMORY / (_MEMORY + 1)
        self._lost = self._lost * fading + lost
        self._all = self._all * fading + 1
        self._lost += _PRIOR_LOST * (1 - fading)  # the prior does not fade
        self._all += _PRIOR_WEIGHT * (1 - fading)
        self.is_proven = True
