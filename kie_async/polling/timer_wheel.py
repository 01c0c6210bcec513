"""Wakes the poller when a poll or a deadline is due: buckets by the tick, and one timer for all tasks."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Iterator
from itertools import chain

from .entry import CLOSED, PollEntry

TICK_S = 0.05
"""What is due within one tick is woken for together: a wake-up costs more than a poll."""

_REVIEW_S, _MARGIN_S = 60.0, 30.0
"""The list is gone through so often, and so far beyond the next time."""

_MIN_VOID = 32

_ROUNDING_S = 1e-6
"""A tick may lie a float's rounding before what stands under it, and a timer may fire before its tick."""


class TimerWheel:
    """Calls *on_due* when anything is due; `take_due` hands it out then. No task and no timer for each.

    What comes soon stands under its tick. All else waits in one list, which is gone through once a
    minute: whoever is on it needs no other place, however often its poll is put off.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[float], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._soon: dict[int, list[PollEntry]] = {}
        self._ticks: list[int] = []
        self._later: list[PollEntry] = []
        self._horizon = loop.time() + _REVIEW_S + _MARGIN_S
        """Up to here, polls and deadlines stand under their ticks."""
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._void = 0
        self._max_void = _MIN_VOID
        self._is_closed = False
        self.late_s = 0.0
        """How much later than it was set to the timer fired last."""

    @property
    def _review_at(self) -> float:
        return self._horizon - _MARGIN_S

    def __len__(self) -> int:
        return len(self._later) + sum(map(len, self._soon.values()))

    def add(self, entry: PollEntry) -> None:
        """Take in a new entry: its deadline is set, its polls can be."""
        if entry.deadline >= self._horizon:
            self._later.append(entry)
            self._arm(self._review_at)
        else:
            self._set(entry.deadline, entry)

    def schedule(self, entry: PollEntry) -> None:
        """Set the next poll of an entry that was taken in; a time that was set before is void."""
        if entry.next_at < self._horizon:
            self._set(entry.next_at, entry)

    def _set(self, at: float, entry: PollEntry) -> None:
        tick = math.ceil(at / TICK_S)
        if (bucket := self._soon.get(tick)) is not None:
            bucket.append(entry)
            return
        self._soon[tick] = [entry]
        heapq.heappush(self._ticks, tick)
        self._arm(tick * TICK_S)

    def take_due(self, now: float) -> Iterator[PollEntry]:
        """Take out all whose poll or deadline may have come; void ones are among them."""
        if now >= self._review_at:
            self._review(now)
        while self._ticks and self._ticks[0] * TICK_S <= now:
            yield from self._soon.pop(heapq.heappop(self._ticks))

    def _review(self, now: float) -> None:
        """Set what comes before the new horizon; whose deadline does needs the list no more."""
        before, self._horizon = self._horizon, now + _REVIEW_S + _MARGIN_S
        later, self._later = self._later, []
        for entry in later:
            if entry.is_closed:
                continue
            if before <= entry.next_at < self._horizon:
                self._set(entry.next_at, entry)
            if entry.deadline < self._horizon:
                self._set(entry.deadline, entry)
            else:
                self._later.append(entry)

    def note_closed(self) -> None:
        """Note that an entry was closed; void ones go when they are many beside those that stayed last."""
        self._void += 1
        if self._void > self._max_void:
            # `is_closed` spelled out: as a call for each entry it would be 1 % of what a callback costs.
            self._later = [entry for entry in self._later if entry.deadline != CLOSED]
            for tick, bucket in self._soon.items():
                self._soon[tick] = [entry for entry in bucket if entry.deadline != CLOSED]
            self._void, self._max_void = 0, max(_MIN_VOID, len(self) // 4)

    def list_entries(self) -> list[PollEntry]:
        """Return every entry that is not closed, each once, in an order that a seed repeats."""
        known = dict.fromkeys(chain(self._later, *self._soon.values()))
        return [entry for entry in known if not entry.is_closed]

    def _arm(self, at: float) -> None:
        """Set the one timer, unless it comes before."""
        # An idle wheel's review is long past when somebody comes: that is no sleep, in which a timer is late.
        at = max(at, self._loop.time())
        if self._is_closed or at >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = self._loop.call_at(at, self._on_timer), at

    def _on_timer(self) -> None:
        now = max(self._loop.time(), self._wakes_at) + _ROUNDING_S
        self.late_s = now - self._wakes_at
        self._timer, self._wakes_at = None, math.inf
        self._on_due(now)
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
