"""Decides what polls that bring no record mean: poll later, poll everything later, or give up."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from enum import Enum

from ..errors import ApiError, AuthenticationError, KieError, RateLimited, ServerError
from ..http.backoff import MAX_RETRY_AFTER_S, delays
from ..limits.rate_limiter import RateLimiter
from ..wire.codes import is_invisible
from .entry import PollEntry

_FATAL_IN_A_ROW = 3
_WARN_AT_FAILURE = 5
_log = logging.getLogger("kie_async")


class Decision(Enum):
    """What follows from a poll without a record."""

    POLL_LATER = "poll later"
    GIVE_UP = "give up this task"
    GIVE_UP_ALL = "give up every task"


class FailurePolicy:
    """Judges failed polls: a paid task is given up only when the service says no three times in a row."""

    def __init__(self, rate_limiter: RateLimiter, *, grace_s: float, rng: random.Random) -> None:
        self._rate_limiter = rate_limiter
        self._grace_s = grace_s
        self._rng = rng
        self._denials = 0
        self._pauses: Iterator[float] | None = None
        self._throttled_at = -math.inf

    def record_success(self, entry: PollEntry) -> None:
        """Take in that a record came."""
        self._denials = 0
        self._pauses = None
        if entry.failures is not None:
            entry.failures.failures = entry.failures.refusals = 0

    def record_failure(self, entry: PollEntry, error: Exception, now: float) -> Decision:
        """Take in a poll without a record and decide what follows."""
        if isinstance(error, RateLimited):
            self._throttle(entry, error, now)
            return Decision.POLL_LATER
        self._pauses = None
        if isinstance(error, AuthenticationError):
            return self._record_denial()
        if entry.is_closed:  # it settled while the answer was on its way
            return Decision.POLL_LATER
        # The service's trouble or the network's: the task runs on, so no number of these gives it up.
        if isinstance(error, ServerError) or not isinstance(error, ApiError):
            _note_failure(entry, error)
        elif not self._may_be_invisible(entry, error, now):
            failures = entry.need_failures()
            failures.refusals += 1
            if failures.refusals >= _FATAL_IN_A_ROW:
                return Decision.GIVE_UP
        return Decision.POLL_LATER

    def _record_denial(self) -> Decision:
        # Counted over all tasks, since it is the key that is refused; and more than once, since one odd
        # answer of a proxy must not end thousands of paid tasks.
        self._denials += 1
        if self._denials < _FATAL_IN_A_ROW:
            return Decision.POLL_LATER
        self._denials = 0
        return Decision.GIVE_UP_ALL

    def _throttle(self, entry: PollEntry, error: RateLimited, now: float) -> None:
        """Hold every poll back; refusals of polls that left before this was last done are the same news."""
        pause_s = error.retry_after_s
        if pause_s is None:
            if entry.last_polled_at < self._throttled_at:
                return
            self._pauses = self._pauses or delays(self._rng, first_s=1.0, ceiling_s=MAX_RETRY_AFTER_S)
            pause_s = next(self._pauses)
        self._throttled_at = now
        self._rate_limiter.throttle(min(pause_s, MAX_RETRY_AFTER_S))

    def _may_be_invisible(self, entry: PollEntry, error: ApiError, now: float) -> bool:
        return is_invisible(error.code, error.message) and now - entry.begun_at < self._grace_s


def _note_failure(entry: PollEntry, error: Exception) -> None:
    failures = entry.need_failures()
    failures.failures += 1
    level = logging.WARNING if failures.failures == _WARN_AT_FAILURE else logging.INFO
    surprise = None if isinstance(error, KieError) else error
    message = "poll %d of task %s failed: %s"
    _log.log(level, message, failures.failures, entry.key, error, exc_info=surprise)
