"""What looks that bring no record mean: ask later, ask everything later, or give up."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator

from ..errors import ApiError, AuthenticationError, KieError, RateLimited, ServerError
from ..handle import TaskHandle
from ..http.backoff import MAX_RETRY_AFTER_S, delays
from ..limits.rate_limiter import RateLimiter
from ..wire.codes import is_invisible
from .entry import PollEntry

_FATAL_IN_A_ROW = 3

_WARN_AT_FAILURE = 5

_log = logging.getLogger("kie_async")


class FailurePolicy:
    """Judges them: a task that is paid is given up only when the service says no three times in a row."""

    def __init__(
        self,
        *,
        limiter: RateLimiter,
        grace_s: float,
        give_up: Callable[[TaskHandle, KieError], None],
        everybody: Callable[[], Iterable[PollEntry]],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._limiter = limiter
        self._grace_s = grace_s
        self._give_up = give_up
        self._everybody = everybody
        self._now = now
        self._rng = rng
        self._denials = 0
        self._pauses: Iterator[float] | None = None
        self._slowed_at = -math.inf

    def over(self, watch: PollEntry) -> None:
        """Take in that a record came."""
        self._denials = 0
        self._pauses = None
        if watch.setback is not None:
            watch.setback.failures = watch.setback.refusals = 0

    def meet(self, watch: PollEntry, error: Exception) -> None:
        """Judge a look without a record."""
        if isinstance(error, RateLimited):
            self._slow_down(watch, error)
            return
        self._pauses = None
        if isinstance(error, AuthenticationError):
            self._denials += 1
            if self._denials >= _FATAL_IN_A_ROW:
                self._denials = 0
                self._give_up_all(error)
        elif watch.handle is None:
            return  # it settled while the answer was on its way
        elif isinstance(error, ServerError) or not isinstance(error, ApiError):
            _note_failure(watch, watch.handle, error)
        elif not self._may_be_invisible(watch, error):
            setback = watch.need_failures()
            setback.refusals += 1
            if setback.refusals >= _FATAL_IN_A_ROW:
                self._give_up(watch.handle, error)

    def _slow_down(self, watch: PollEntry, error: RateLimited) -> None:
        """Hold every look back; refusals of looks that left before this was last done are the same news."""
        pause_s = error.retry_after_s
        if pause_s is None:
            if watch.last_polled_at < self._slowed_at:
                return
            self._pauses = self._pauses or delays(self._rng, first_s=1.0, ceiling_s=MAX_RETRY_AFTER_S)
            pause_s = next(self._pauses)
        self._slowed_at = self._now()
        self._limiter.throttle(min(pause_s, MAX_RETRY_AFTER_S))

    def _may_be_invisible(self, watch: PollEntry, error: ApiError) -> bool:
        return is_invisible(error.code, error.message) and self._now() - watch.since < self._grace_s

    def _give_up_all(self, error: KieError) -> None:
        for watch in self._everybody():
            if watch.handle is not None and watch.handle.task_id:
                self._give_up(watch.handle, error)


def _note_failure(watch: PollEntry, handle: TaskHandle, error: Exception) -> None:
    setback = watch.need_failures()
    setback.failures += 1
    level = logging.WARNING if setback.failures == _WARN_AT_FAILURE else logging.INFO
    surprise = None if isinstance(error, KieError) else error
    message = "look %d at task %s failed: %s"
    _log.log(level, message, setback.failures, handle.task_id, error, exc_info=surprise)
