"""Notices that the machine slept, whether or not the loop's clock went on meanwhile, and spares deadlines."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..limits.weather import Condition, WeatherSink, show_duration
from .entry import PollEntry
from .timer_wheel import TICK_S

SLEPT_S = 30.0
"""So much later than planned nothing runs on a machine that is awake."""

AWAKE_S = 30.0
"""So long a task whose deadline passed in the sleep is asked for at least: it may have ended long ago."""


class SleepDetector:
    """Compares two clocks at each turn of the poller: the loop's, and that of the wall."""

    def __init__(self, *, clock: Callable[[], float], sink: WeatherSink) -> None:
        self._clock = clock
        self._condition = Condition("asleep", sink)
        self._seen_at: tuple[float, float] | None = None
        self._slept_at = self._woke_at = -math.inf

    def note_turn(self, now: float, late_s: float) -> None:
        """Take in a turn at *now* on the loop's clock, that comes *late_s* after it was planned."""
        wall = self._clock()
        was_at, wall_was = self._seen_at or (now, wall)
        self._seen_at = now, wall
        # Some systems stop the loop's clock in sleep: then only the wall shows it.
        missing_s = (wall - wall_was) - (now - was_at)
        if late_s >= SLEPT_S:
            # At some time after the turn before: what it was woken for now may be a deadline itself.
            self._slept_at, self._woke_at = min(was_at, now - late_s - TICK_S), now
        if max(late_s, missing_s) < SLEPT_S:
            return
        slept = show_duration(max(late_s, missing_s))
        self._condition.say(f"nothing ran here for {slept}: the machine slept, or its event loop was blocked")
        self._condition.end("awake again; every task is asked for, and no deadline ends in sleep")

    def spared_deadline(self, entry: PollEntry) -> float | None:
        """Return the new deadline of an entry that had no chance to be asked for since the sleep."""
        if not self._slept_at < entry.deadline < self._woke_at + AWAKE_S:
            return None
        rest_s = min(entry.deadline, self._woke_at) - self._slept_at
        return self._woke_at + max(rest_s, AWAKE_S)
