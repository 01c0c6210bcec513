"""Remembers how long the last tasks of one model took: evidence for the time that others have left. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

from .drift import changed_at, trend_of
from .survival import Observed, SurvivalCurve

MEMORY = 400
"""So many ends are remembered: enough for two kinds of tasks, and to see a trend."""

MIN_ENDS = 3
"""Until so many tasks of a model ended, nothing counts as learned."""

_SHORTEST_S = 0.001

_MOST_RUNNING = 1000
"""So many running tasks are reckoned with; of more each stands for several."""


class RecentEnds:
    """The last ends of a model's tasks: how long each took, and when it began on the caller's clock."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, float]] = deque()
        self._since = -math.inf
        """When the window began: the end of the last task that was let go of."""
        self._changed_at = -math.inf
        """Tasks that began before took another time; they are let go of."""

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, took_s: float, began_at: float) -> None:
        """Take in an end; *began_at* is minus infinity where nobody knows it, as of a former session."""
        if began_at < self._changed_at:
            return
        self._ends.append((began_at, max(took_s, _SHORTEST_S)))
        if len(self._ends) > MEMORY:
            self._since = max(self._since, sum(self._ends.popleft()))

    def curve(self, running_since: Iterable[float], now: float) -> SurvivalCurve | None:
        """Return the share that runs at each age, None until enough have ended.

        *running_since* are the instants at which the tasks began that run now: without them the quick ones,
        which end first, would speak for all. What a change has made untrue is forgotten.
        """
        if len(self._ends) < MIN_ENDS:
            return None
        running = sorted(running_since)
        while True:
            observed = self._observed(running, now)
            trend = trend_of(observed)
            tasks = trend.taken_out_of(observed)
            curve = SurvivalCurve.of(tasks, stretch=trend.stretch(now))
            changed = changed_at(tasks, curve)
            if changed is None:
                return curve
            self._changed_at = changed
            self._ends = deque(end for end in self._ends if end[0] >= changed)

    def _observed(self, running: Sequence[float], now: float) -> list[Observed]:
        """Return what was seen of the tasks, the one that began first before the others."""
        first = bisect_left(running, self._changed_at)
        each = math.ceil((len(running) - first) / _MOST_RUNNING) or 1
        tasks = [
            Observed(began_at, self._seen_from(began_at), took_s, True) for began_at, took_s in self._ends
        ]
        tasks += [
            Observed(began_at, self._seen_from(began_at), now - began_at, False, each)
            for began_at in running[first::each]
        ]
        return sorted(task for task in tasks if task.to_s > task.from_s)

    def _seen_from(self, began_at: float) -> float:
        """Return how old a task was when the window began."""
        return max(0.0, self._since - began_at) if began_at > -math.inf else 0.0

    def dump(self) -> list[float]:
        """Return how long each took, the oldest first, fit for JSON."""
        return [round(took_s, 3) for _, took_s in self._ends]

    @classmethod
    def of_former(cls, took_s: Sequence[float]) -> RecentEnds:
        """Return what a former session had seen."""
        ends = cls()
        for each_s in took_s[-MEMORY:]:
            ends.add(each_s, -math.inf)
        return ends
