"""Remembers how long the last tasks of one model took: evidence for the time that others have left. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from .survival import Span, SurvivalCurve

MEMORY = 128
"""So many ends are remembered: enough for two kinds of tasks, few enough for a service that changes."""

MIN_ENDS = 3
"""Until so many tasks of a model ended, nothing counts as learned."""

_SHORTEST_S = 0.001


class RecentEnds:
    """The last ends of a model's tasks: how long each took, and when it began on the caller's clock."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, float]] = deque()
        self._since = -math.inf
        """When the window began: the end of the last task that was let go of."""

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, took_s: float, began_at: float) -> None:
        """Take in an end; *began_at* is infinite where nobody knows it, of a task of a former session."""
        self._ends.append((max(took_s, _SHORTEST_S), began_at))
        if len(self._ends) > MEMORY:
            took_s, began_at = self._ends.popleft()
            if began_at < math.inf:
                self._since = began_at + took_s

    def curve(self, running_since: Iterable[float], now: float) -> SurvivalCurve | None:
        """Return the share that runs at each age, None until enough have ended.

        *running_since* are the instants at which the tasks began that run now: without them the quick ones,
        which end first, would speak for all.
        """
        if len(self._ends) < MIN_ENDS:
            return None
        return SurvivalCurve.of_spans(self._spans(running_since, now))

    def _spans(self, running_since: Iterable[float], now: float) -> Iterator[Span]:
        for took_s, began_at in self._ends:
            yield Span(max(0.0, self._since - began_at), took_s, has_ended=True)
        for began_at in running_since:
            yield Span(max(0.0, self._since - began_at), now - began_at, has_ended=False)

    def dump(self) -> list[float]:
        """Return how long each took, the oldest first, fit for JSON."""
        return [round(took_s, 3) for took_s, _ in self._ends]

    @classmethod
    def of_former(cls, took_s: Sequence[float]) -> RecentEnds:
        """Return what a former session had seen."""
        ends = cls()
        for each_s in took_s[-MEMORY:]:
            ends.add(each_s, math.inf)
        return ends
