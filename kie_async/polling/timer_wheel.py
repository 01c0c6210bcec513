"""What comes when: entries by the tick and one timer, for any number of watches."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Iterator
from itertools import chain

from .entry import PollEntry

TICK_S = 0.05
"""What is due within one tick is woken for together: a wake-up costs more than a look."""

_REVIEW_S, _MARGIN_S = 60.0, 30.0
"""The list is looked through so often, and so far beyond the next time."""

_FEW_OVER = 32

_ROUNDING_S = 1e-6
"""A tick may lie a float's rounding before what stands under it, and a timer may fire before its tick."""


class TimerWheel:
    """Calls *at_tick* when anything is due; `due` hands it out then. No task, no timer, no heap entry each.

    What comes soon stands under its tick. All else waits in one list, which is looked through once a
    minute: whoever is on it needs no other entry, however often its look is put off.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, at_tick: Callable[[float], None]) -> None:
        self._loop = loop
        self._at_tick = at_tick
        self._soon: dict[int, list[PollEntry]] = {}
        self._ticks: list[int] = []
        self._later: list[PollEntry] = []
        self._horizon = loop.time() + _REVIEW_S + _MARGIN_S
        """Up to here, looks and deadlines stand under their ticks."""
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._over = 0
        self._most_over = _FEW_OVER
        self._is_closed = False

    @property
    def _review_at(self) -> float:
        return self._horizon - _MARGIN_S

    def __len__(self) -> int:
        return len(self._later) + sum(map(len, self._soon.values()))

    def add(self, watch: PollEntry) -> None:
        """Take in a new watch: its deadline is entered, its looks can be."""
        if watch.handle is not None and watch.handle.deadline >= self._horizon:
            self._later.append(watch)
            self._arm(self._review_at)
        elif watch.handle is not None:
            self._enter(watch.handle.deadline, watch)

    def put(self, watch: PollEntry) -> None:
        """Enter the next look of a watch that was taken in; an entry it may have had is void."""
        if watch.at < self._horizon:
            self._enter(watch.at, watch)

    def _enter(self, at: float, watch: PollEntry) -> None:
        tick = math.ceil(at / TICK_S)
        if (entries := self._soon.get(tick)) is not None:
            entries.append(watch)
            return
        self._soon[tick] = [watch]
        heapq.heappush(self._ticks, tick)
        self._arm(tick * TICK_S)

    def due(self, now: float) -> Iterator[PollEntry]:
        """Take out all whose look or deadline may have come; void entries are among them."""
        if now >= self._review_at:
            self._review(now)
        while self._ticks and self._ticks[0] * TICK_S <= now:
            yield from self._soon.pop(heapq.heappop(self._ticks))

    def _review(self, now: float) -> None:
        """Enter what comes before the new horizon; whose deadline does needs the list no more."""
        before, self._horizon = self._horizon, now + _REVIEW_S + _MARGIN_S
        later, self._later = self._later, []
        for watch in later:
            if watch.handle is None:
                continue
            if before <= watch.at < self._horizon:
                self._enter(watch.at, watch)
            if watch.handle.deadline < self._horizon:
                self._enter(watch.handle.deadline, watch)
            else:
                self._later.append(watch)

    def drop(self) -> None:
        """Note that a watch is over; entries that are go when they are many beside those that stayed last."""
        self._over += 1
        if self._over > self._most_over:
            self._later = [watch for watch in self._later if watch.handle is not None]
            for tick, entries in self._soon.items():
                self._soon[tick] = [watch for watch in entries if watch.handle is not None]
            self._over, self._most_over = 0, max(_FEW_OVER, len(self) // 4)

    def watches(self) -> list[PollEntry]:
        """Return everybody who is watched, each once, in an order that a seed repeats."""
        known = dict.fromkeys(chain(self._later, *self._soon.values()))
        return [watch for watch in known if watch.handle is not None]

    def _arm(self, at: float) -> None:
        """Set the one timer, unless it comes before."""
        if self._is_closed or at >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = self._loop.call_at(at, self._tick), at

    def _tick(self) -> None:
        now = max(self._loop.time(), self._wakes_at) + _ROUNDING_S
        self._timer, self._wakes_at = None, math.inf
        self._at_tick(now)
        if self._ticks:
            self._arm(self._ticks[0] * TICK_S)
        if self._later:
            self._arm(self._review_at)

    def close(self) -> None:
        """Forget everybody and call no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._soon.clear()
        self._ticks.clear()
        self._later.clear()
