"""What comes when: one heap and one timer for any number of watches, and their deadlines by the minute."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable

from .look_queue import Watch

TICK_S = 0.05
"""What is due within one tick is woken for together: a wake-up costs more than a look."""
_FEW_STALE = 64
_MINUTE_S = 60.0


class Agenda:
    """Calls *at_tick* when anything is due; `due` hands it out then. No task and no timer per entry.

    Deadlines, which hardly any task reaches, wait in lists and enter the heap in their last minute.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, at_tick: Callable[[float], None]) -> None:
        self._loop = loop
        self._at_tick = at_tick
        self._heap: list[tuple[float, Watch]] = []
        self._deadlines: dict[float, list[Watch]] = {}
        self._next_minute = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._stale = 0
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._heap) + sum(map(len, self._deadlines.values()))

    def put(self, at: float, watch: Watch) -> None:
        """Enter *watch* at an instant, besides the entries it may have."""
        heapq.heappush(self._heap, (at, watch))
        if self._heap[0][1] is watch:
            self._arm()

    def put_deadline(self, at: float, watch: Watch) -> None:
        """Enter the deadline of *watch*."""
        minute = at // _MINUTE_S * _MINUTE_S if at < math.inf else math.inf
        self._deadlines.setdefault(minute, []).append(watch)
        if minute < self._next_minute:
            self._next_minute = minute
            self._arm()

    def due(self, now: float) -> tuple[float, Watch] | None:
        """Take out the next entry that is due and not over; None if there is none."""
        while self._next_minute <= now:
            self._begin_minute()
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if entry[1].handle is not None:
                return entry
        return None

    def _begin_minute(self) -> None:
        for watch in self._deadlines.pop(self._next_minute):
            if watch.handle is not None:
                heapq.heappush(self._heap, (watch.handle.deadline, watch))
        self._next_minute = min(self._deadlines, default=math.inf)

    def drop(self) -> None:
        """Note that a watch is over; entries that are go when they are many."""
        self._stale += 1
        if self._stale > _FEW_STALE and self._stale > len(self._heap) // 4:
            self._sweep()

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[1].handle is not None]
        heapq.heapify(self._heap)
        for minute, watches in self._deadlines.items():
            self._deadlines[minute] = [watch for watch in watches if watch.handle is not None]
        self._stale = 0

    def watches(self) -> set[Watch]:
        """Return everybody who is watched."""
        waiting = {watch for _, watch in self._heap}.union(*self._deadlines.values())
        return {watch for watch in waiting if watch.handle is not None}

    def _arm(self) -> None:
        """Set the one timer to the tick in which the next entry is due."""
        due = min(self._heap[0][0] if self._heap else math.inf, self._next_minute)
        if self._is_closed or due == math.inf:
            return
        when = max(due, math.ceil(due / TICK_S) * TICK_S)  # a float's rounding must not wake us before
        if when >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = self._loop.call_at(when, self._tick), when

    def _tick(self) -> None:
        self._timer, self._wakes_at = None, math.inf
        self._at_tick(self._loop.time())
        self._arm()

    def close(self) -> None:
        """Forget everybody and call no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
        self._deadlines.clear()
