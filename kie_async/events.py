"""What a session counts, and what it reports to its ``on_event`` hook."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

import attrs

from ._field_help import ShowsFields
from .models import TaskRecord


@attrs.frozen(kw_only=True)
class SessionStats(metaclass=ShowsFields):
    """What a session did so far."""

    creates: int = 0
    """Tasks created."""
    queries: int = 0
    """recordInfo requests sent."""
    retries: int = 0
    """Requests sent again after a failure, a limit or before the first byte."""
    rate_limited: int = 0
    """Answers that said: too many requests, or maintenance."""
    callbacks_accepted: int = 0
    """Deliveries that were news of a task."""
    callbacks_duplicate: int = 0
    """Deliveries for tasks that had settled."""
    callbacks_rejected: Mapping[str, int] = attrs.field(factory=dict)
    """By reason."""
    settled_by_callback: int = 0
    """Tasks whose end a callback brought."""
    settled_by_poll: int = 0
    """Tasks whose end a poll found."""
    unknown_creates: int = 0
    """Creates whose outcome is unknown, those that were adopted later included."""
    ghost_creates: int = 0
    """Creates judged as not created that turned out to be; should be 0."""
    credits_consumed: float = 0.0
    """What the settled tasks cost, as their records say."""
    in_flight: int = 0
    """Tasks that have not settled."""
    queued: int = 0
    """Creates that wait for a slot and their turn."""


class Source(StrEnum):
    """Which side the news came from."""

    POLL = "poll"
    CALLBACK = "callback"


EventKind = Literal["created", "updated", "settled", "unknown", "adopted", "taken over", "weather"]
"""What happened to a task. ``unknown``: nobody knows whether a create made one; ``adopted``: it did.
``taken over``: it was another worker's, which is gone.
``weather`` is of no task: see `Weather`."""

WeatherKind = Literal[
    "unreachable",
    "held back",
    "no answer",
    "halted",
    "unanswered",
    "uploads",
    "downloads",
    "disk",
    "journal",
    "asleep",
]
"""What keeps a session from getting on: creates that do not reach the service, that it holds back by a limit
or maintenance, that it does not answer, or that are halted after unknown outcomes; polls that are unanswered;
uploads and downloads that fail; a disk that is full, under a folder or the journal; a journal's database that
is away; a machine that slept."""


@attrs.frozen(kw_only=True)
class Weather(metaclass=ShowsFields):
    """What keeps a session from getting on, though it goes on by itself: begun, going on, or over."""

    kind: WeatherKind
    """What is the matter."""
    message: str
    """What is done about it too, in the words of the log."""
    since: datetime
    """When it began."""
    until: datetime | None = None
    """When it is tried again, or given up; None if that is not known."""
    is_over: bool = False
    """Whether it has passed."""


@attrs.frozen(kw_only=True)
class SessionEvent(metaclass=ShowsFields):
    """One thing that happened in a session, for its ``on_event`` hook."""

    kind: EventKind
    """What happened."""
    task_id: str
    """The task's id; empty while none is known, and in news of the weather."""
    ref: str | None = None
    """The ref the task was created with."""
    source: Literal["", "callback", "poll"] = ""
    """Which side settled the task; empty when nobody did: a timeout, a close."""
    record: TaskRecord | None = None
    """What was observed, if it was news of the task itself."""
    weather: Weather | None = None
    """What keeps the session from getting on, if it is news of that."""


@attrs.define(kw_only=True)
class Counters:
    """The running counts behind `SessionStats`."""

    creates: int = 0
    queries: int = 0
    retries: int = 0
    rate_limited: int = 0
    callbacks_accepted: int = 0
    callbacks_duplicate: int = 0
    callbacks_rejected: dict[str, int] = attrs.field(factory=dict)
    settled_by_callback: int = 0
    settled_by_poll: int = 0
    unknown_creates: int = 0
    ghost_creates: int = 0
    credits_consumed: float = 0.0

    def reject(self, reason: str) -> None:
        """Count one refused delivery."""
        self.callbacks_rejected[reason] = self.callbacks_rejected.get(reason, 0) + 1

    def settle(self, record: TaskRecord, source: Source) -> None:
        """Count one task that ended, and its price."""
        self.credits_consumed += record.credits or 0.0
        if source is Source.CALLBACK:
            self.settled_by_callback += 1
        else:
            self.settled_by_poll += 1

    def snapshot(self, *, in_flight: int, queued: int) -> SessionStats:
        """Return the counts as they stand."""
        return SessionStats(**attrs.asdict(self), in_flight=in_flight, queued=queued)
