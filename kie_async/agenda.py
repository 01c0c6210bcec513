"""What comes when: one heap and one timer for any number of entries."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable

from .look_queue import Watch

TICK_S = 0.05
"""What is due within one tick is woken for together: a wake-up costs more than a look."""
_FEW_STALE = 64


class Agenda:
    """Calls *at_tick* when anything is due; `due` hands it out then. No task and no timer per entry."""

    def __init__(self, loop: asyncio.AbstractEventLoop, at_tick: Callable[[float], None]) -> None:
        self._loop = loop
        self._at_tick = at_tick
        self._heap: list[tuple[float, Watch]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stale = 0
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, at: float, watch: Watch) -> None:
        """Enter *watch* at an instant, besides the entries it may have."""
        heapq.heappush(self._heap, (at, watch))
        if self._heap[0][1] is watch:
            self.arm()

    def due(self, now: float) -> tuple[float, Watch] | None:
        """Take out the next entry that is due and not over; None if there is none."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if entry[1].handle is not None:
                return entry
        return None

    def drop(self) -> None:
        """Note that a watch is over; entries that are go when they are many."""
        self._stale += 1
        if self._stale > _FEW_STALE and self._stale > len(self._heap) // 4:
            self._heap = [entry for entry in self._heap if entry[1].handle is not None]
            heapq.heapify(self._heap)
            self._stale = 0

    def watches(self) -> set[Watch]:
        """Return everybody who has an entry: whoever is watched has one for the deadline."""
        return {watch for _, watch in self._heap if watch.handle is not None}

    def arm(self) -> None:
        """Set the one timer to the tick in which the next entry is due."""
        due = self._heap[0][0] if self._heap else math.inf
        if self._is_closed or due == math.inf:
            return
        when = max(due, math.ceil(due / TICK_S) * TICK_S)  # a float's rounding must not wake us before
        if self._timer is not None:
            if self._timer.when() <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._at_tick(self._loop.time())
        self.arm()

    def close(self) -> None:
        """Forget everybody and call no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
