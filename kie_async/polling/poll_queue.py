"""Which task is looked at next, of those that are due."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .entry import PollEntry

PATIENCE_S = 0.5
"""While nobody waits longer than this for a look, they are looked at in the order they came due."""

_ROUND, _ROUND_S = 8, 1.0


class PollQueue:
    """Those that are due: rung ones first, then first looks, then the likeliest to have ended.

    *chance* tells how likely the task of a watch has ended since its last look. It is asked only while
    looks are short, and of all that wait at a time; a task that waited *longest_s* goes before those.
    """

    def __init__(self, chance: Callable[[PollEntry, float], float], *, longest_s: float) -> None:
        self._chance = chance
        self._longest_s = longest_s
        self._rung: deque[PollEntry] = deque()
        self._first: deque[PollEntry] = deque()
        self._again: deque[PollEntry] = deque()
        self._round: deque[PollEntry] = deque()
        self._round_ends = -math.inf

    def __bool__(self) -> bool:
        return bool(self._again or self._first or self._rung or self._round)

    def put(self, watch: PollEntry) -> None:
        """Let a watch wait for its look; one that waits already moves forward if it was rung."""
        if watch.is_queued:
            for queue in (self._first, self._again, self._round):
                with suppress(ValueError):
                    queue.remove(watch)
        watch.is_queued = True
        is_first = watch.last_polled_at == -math.inf
        (self._rung if watch.is_urgent else self._first if is_first else self._again).append(watch)

    def pop(self, now: float) -> PollEntry | None:
        """Take out the watch to look at now, which may be over meanwhile; None if nobody waits."""
        queue = self._rung or self._first
        if not queue:
            self.respond(now)
            queue = self._round or self._again
        if not queue:
            return None
        watch = queue.popleft()
        watch.is_queued = False
        return watch

    def respond(self, now: float) -> None:
        """Set the likeliest quarter of those that wait too long apart: they come first, for a while."""
        if self._round and now > self._round_ends:
            self._again.extendleft(reversed(self._round))
            self._round.clear()
        if self._round or not self._again or self._again[0].at + PATIENCE_S >= now:
            return
        waiting = [watch for watch in self._again if watch.handle is not None]
        ranked = sorted(waiting, key=lambda watch: self._rank(watch, now), reverse=True)
        self._round = deque(ranked[: max(_ROUND, len(ranked) // 4)])
        taken = set(map(id, self._round))
        self._again = deque(watch for watch in waiting if id(watch) not in taken)
        self._round_ends = now + _ROUND_S

    def _rank(self, watch: PollEntry, now: float) -> float:
        if now - watch.at > self._longest_s:
            return 1 + now - watch.at
        return self._chance(watch, now)

    def clear(self) -> None:
        """Forget everybody."""
        for queue in (self._rung, self._first, self._again, self._round):
            queue.clear()
