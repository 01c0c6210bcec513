"""Limits requests to so many in a window, which may change; callers wait in the order they came."""

from __future__ import annotations

import asyncio
import math
from bisect import insort
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ..config import Rate

SHORTEST_SLEEP_S = 0.001


class Permits(Protocol):
    """What a request asks for its turn: of one session alone, or shared by many workers."""

    async def acquire(self) -> float:
        """Wait for a permit and return when it came; a cancelled wait takes none."""

    def release(self) -> float:
        """Give a permit back that was used: its answer is here. Return now."""

    def release_unused(self) -> None:
        """Give a permit back at once: no request was sent with it."""

    def throttle(self, pause_s: float) -> None:
        """Let nobody through for so many seconds."""

    def list_back_s(self) -> list[float]:
        """Return in how many seconds each permit can be had that is used, as far as that is known here."""

    def start(self, on_release: Callable[[], object]) -> None:
        """Call *on_release* whenever there may be a permit for another."""

    @property
    def free_count(self) -> int:
        """Return how many more requests would have a permit at once, as far as that is known here."""

    @property
    def free_in_s(self) -> float:
        """Return when the next permit will be there; infinite if only a release will tell."""


class RateLimiter:
    """Permits that come back ``per_s`` after the *answer* they were used for.

    A request reaches the service before its answer reaches us, so no window of the service can
    hold more than the rate allows, whatever the network does. Nobody has to guess a margin.
    """

    def __init__(self, rate: Rate, *, now: Callable[[], float]) -> None:
        self._per_s = rate.per_s
        self._count = rate.count
        self._now = now
        self._unused = rate.count
        """Below zero while permits are out, or not back yet, that there shall not be any more."""
        self._back_at: deque[float] = deque()
        self._paused_until = -math.inf
        self._waiting_count = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._on_release: Callable[[], object] | None = None

    def start(self, on_release: Callable[[], object]) -> None:
        """Call *on_release* whenever a permit is given back, or nobody waits before."""
        self._on_release = on_release

    async def acquire(self) -> float:
        """Wait for a permit, in the order of the calls, and return when it came.

        A cancelled wait takes none.
        """
        now = self._now()
        # Behind those that wait, even if a permit is free in this very turn: first come, first served.
        if self._waiting_count or self._wait_s(now) > 0:
            self._waiting_count += 1
            try:
                now = await self._wait_for_turn()
            finally:
                self._waiting_count -= 1
                if self._on_release is not None:
                    self._on_release()
        self._unused -= 1
        return now

    async def _wait_for_turn(self) -> float:
        async with self._turn:
            while (wait_s := self._wait_s(now := self._now())) > 0:
                self._changed.clear()
                # Without an end when every permit is out and unanswered: only a release changes that. Never
                # shorter than a clock can measure, or this would spin.
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_s == math.inf else max(wait_s, SHORTEST_SLEEP_S)):
                        await self._changed.wait()
            return now

    def release(self) -> float:
        """Give a permit back, to be used again ``per_s`` from now: its answer is here. Return now."""
        now = self._now()
        self._back_at.append(now + self._per_s)
        self._note_change()
        return now

    def release_unused(self) -> None:
        """Give a permit back at once: no request was sent with it."""
        self._unused += 1
        self._note_change()

    def _note_change(self) -> None:
        if self._waiting_count:
            self._changed.set()
        if self._on_release is not None:
            self._on_release()

    @property
    def is_used_up(self) -> bool:
        """Tell whether the next request would have to wait for a permit."""
        return self._unused <= 0

    @property
    def free_count(self) -> int:
        """Return how many more requests would have a permit at once."""
        return 0 if self._waiting_count or self._wait_s(self._now()) > 0 else self._unused

    def list_back_s(self) -> list[float]:
        """Return in how many seconds each permit can be had; one that is out, as if its answer came now."""
        now = self._now()
        self._wait_s(now)  # takes back what has come back
        back_s = [at - now for at in self._back_at] + [0.0] * max(0, self._unused)
        back_s += [self._per_s] * (self._count - len(back_s))
        until_s = max(0.0, self._paused_until - now)
        return [max(each_s, until_s) for each_s in back_s]

    @property
    def free_in_s(self) -> float:
        """Return when the next permit will be there; infinite if all are out and unanswered."""
        return max(0.0, self._wait_s(self._now()))

    def set_count(self, count: int) -> None:
        """Let so many requests through in a window from now on.

        More of them come spread over a window, not in a burst; fewer are taken from those that come back.
        """
        more, self._count = count - self._count, count
        if more <= 0:
            self._unused += more
            return
        now = self._now()
        for number in range(1, more + 1):
            insort(self._back_at, now + self._per_s * number / more)
        if self._waiting_count:
            self._changed.set()

    def throttle(self, pause_s: float) -> None:
        """Let nobody through for so many seconds; the longest of several pauses counts."""
        self._paused_until = max(self._paused_until, self._now() + pause_s)

    def _wait_s(self, now: float) -> float:
        while self._back_at and self._back_at[0] <= now:
            self._back_at.popleft()
            self._unused += 1
        # A pause stops every permit: the service itself has said when to come again.
        if self._paused_until > now:
            return self._paused_until - now
        if self._unused > 0:
            return 0.0
        return self._back_at[0] - now if self._back_at else math.inf
