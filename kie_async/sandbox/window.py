"""A rate limit: counts arrivals in an exact sliding window and refuses what is over."""

from __future__ import annotations

from collections import deque


class Window:
    """Admit at most *count* arrivals in any *per_s* seconds; refused arrivals leave no trace.

    The service rejects what is over the limit and does not queue it.
    https://docs.kie.ai/
    """

    def __init__(self, count: int, per_s: float) -> None:
        self._count = count
        self._per_s = per_s
        self._admitted: deque[float] = deque()

    def has_room(self, now: float) -> bool:
        """Return whether an arrival at *now* (seconds, never going back) would be within the limit."""
        while self._admitted and self._admitted[0] <= now - self._per_s:
            self._admitted.popleft()
        return len(self._admitted) < self._count

    def admit(self, now: float) -> bool:
        """Return whether the arrival at *now* is within the limit; then it counts."""
        has_room = self.has_room(now)
        if has_room:
            self._admitted.append(now)
        return has_room
