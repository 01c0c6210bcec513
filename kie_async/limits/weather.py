"""Says what keeps a session from getting on: when it begins to matter, while it lasts, when it is over."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from ..events import Weather, WeatherKind

FAILURES_IN_A_ROW = 3
"""So many requests of one kind must fail before it is worth a line."""

REPEAT_S = 60.0

REPEATED = "is_repeated"
"""The attribute of a record of the log that only says that something goes on: a board says so anyway."""

# By a name of its own, which the command line lets through.
_log = logging.getLogger("kie_async.weather")


class WeatherSink(Protocol):
    """Who is handed the weather beside the log: the hook of the session."""

    def emit_weather(self, weather: Weather) -> None:
        """Take in what begins, goes on or is over."""


class _NoSink:
    def emit_weather(self, weather: Weather) -> None:
        """Drop it."""


NO_SINK: WeatherSink = _NoSink()


class Condition:
    """One thing that can keep a session from getting on. It is said for all tasks together."""

    def __init__(self, kind: WeatherKind, sink: WeatherSink = NO_SINK) -> None:
        self._kind = kind
        self._sink = sink
        self._since: datetime | None = None

    @property
    def is_said(self) -> bool:
        """Tell whether it was said and is not over."""
        return self._since is not None

    def say(
        self,
        message: str,
        *,
        for_s: float = 0.0,
        until: datetime | None = None,
        level: int = logging.WARNING,
        surprise: Exception | None = None,
    ) -> None:
        """Say that it goes on; *for_s* is how long it had gone on when it was said first."""
        is_repeated, self._since = self.is_said, self._since or ago(for_s)
        _log.log(level, "%s", message, exc_info=surprise, extra={REPEATED: is_repeated})
        self._sink.emit_weather(Weather(kind=self._kind, message=message, since=self._since, until=until))

    def end(self, message: str) -> None:
        """Say that it is over, if it was said at all."""
        since, self._since = self._since, None
        if since is not None:
            _log.info("%s", message)
            self._sink.emit_weather(Weather(kind=self._kind, message=message, since=since, is_over=True))


class Outage:
    """Requests of one kind that keep failing, whoever sends them: one line for all of them.

    *what* names them and where they go; *remedy* is what is done about it. The first line is a warning, and
    another one comes each minute.
    """

    def __init__(
        self,
        kind: WeatherKind,
        what: str,
        remedy: str,
        *,
        now: Callable[[], float],
        sink: WeatherSink = NO_SINK,
    ) -> None:
        self._condition = Condition(kind, sink)
        self._what = what
        self._remedy = remedy
        self._now = now
        self._count = 0
        self._say_at = 0.0
        self.since: float | None = None
        """When the first of the failures that go on began; None while there are none."""
        self._failed_at = -math.inf
        self.reason = ""
        """What the last one was."""

    @property
    def failed_lately(self) -> bool:
        """Tell whether the last failure is news still."""
        return self._now() - self._failed_at < REPEAT_S

    def record_failure(
        self, reason: str, *, begun_at: float, count: int = 1, at_least_s: float = 0.0
    ) -> None:
        """Take in that requests failed; it is said once they have for *at_least_s*, three in a row."""
        now = self._now()
        self.since = begun_at if self.since is None else min(self.since, begun_at)
        self.reason, self._failed_at = reason, now
        self._count += count
        if self._count < FAILURES_IN_A_ROW or now - self.since < at_least_s or now < self._say_at:
            return
        # Counted from when it was due and not from now: one line a minute, and not one less each few.
        self._say_at = (
            max(self._say_at, now - REPEAT_S) + REPEAT_S if self._condition.is_said else now + REPEAT_S
        )
        lasted = f"{show_time(ago(now - self.since))}, {show_duration(now - self.since)} ago"
        self._condition.say(
            f"{self._what} have failed since {lasted}, {self._count} in a row: {reason}; {self._remedy}",
            for_s=now - self.since,
        )

    def record_success(self) -> None:
        """Take in that a request got through."""
        if self.since is None:
            return
        lasted = show_duration(self._now() - self.since)
        self.since, self._count, self._say_at = None, 0, 0.0
        self._condition.end(f"{self._what} get through again, after {lasted}")


def ago(seconds: float) -> datetime:
    """Return the time of the day of so many seconds before now; after now if they are negative."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def show_time(at: datetime) -> str:
    """Return a time of the day as people here have it."""
    return f"{at.astimezone():%H:%M:%S}"


def show_duration(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
