"""What the poller knows of one task: when to poll it, what the last answer was, what went wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum

import attrs

from ..models import TaskRecord

CLOSED = -math.inf
"""The deadline of a closed entry."""
NEVER = -math.inf
"""The instant of what was not yet. Named, since each ``-math.inf`` that is computed is an object more."""


class PollStep(Enum):
    """How far the next poll of a task has come."""

    PLANNED = "planned"
    QUEUED = "queued"
    ON_ITS_WAY = "on its way"


@attrs.define
class Streak:
    """Answers of one kind without another one between them: since when, and how many."""

    since: float = math.inf
    count: int = 0

    def add(self, now: float) -> None:
        """Count one more."""
        self.since = min(self.since, now)
        self.count += 1

    def lasts(self, now: float, *, at_least_s: float, answers: int = 0) -> bool:
        """Tell whether it has gone on for so long, and so often."""
        return self.count >= answers and now - self.since >= at_least_s


@attrs.define
class PollFailures:
    """What went wrong with the polls of one task, and which of them are extra."""

    failed: Streak = attrs.field(factory=Streak)
    """Polls without a record, whatever the reason."""
    denied: Streak = attrs.field(factory=Streak)
    """Answers that the service does not know the task, or will not show it."""
    unanswered: Streak = attrs.field(factory=Streak)
    """Answers that nothing came from whoever makes the result."""
    urgent_polls: int = 0
    """Polls that followed an urgent one, since its callback may have outrun the record."""
    empty_successes: int = 0
    pauses: Iterator[float] | None = None
    """Growing delays while the service refuses this task for the rate, and no other."""
    pause_s: float = 0.0
    refused: int = 0
    """How many of its last polls were refused for the rate, one after the other."""


@attrs.define(eq=False, weakref_slot=False)
class PollEntry:
    """One tracked task. It holds no handle: whoever is given it finds that by *key*.

    Instants are on the loop's clock, ages count from *begun_at*. There may be a hundred thousand of
    these: what most never need is made when it is needed.
    """

    key: str
    """The task id, or the intent id of a create that has none: then only the deadline is waited for."""
    model: str
    """Empty until a record of an attached task names it."""
    deadline: float
    """`CLOSED` once the entry is: a flag of its own would take 16 bytes more for each."""
    begun_at: float
    expects_callback: bool
    next_at: float = math.inf
    """When it is polled next; infinite if only the deadline is waited for."""
    last_polled_at: float = NEVER
    """When its record was last asked for, by this entry or by whoever had the task before."""
    last_seen_running_s: float = 0.0
    """The age at which it was last seen running; infinite until an older task was seen for the first time."""
    last_digest: int | None = None
    """Of the last answer: one with the same digest is `last_record` again and is not decoded."""
    last_record: TaskRecord | None = None
    failures: PollFailures | None = None
    step: PollStep = PollStep.PLANNED
    is_urgent: bool = False
    outlasts_weather: bool = False
    """Whether its deadline waits, too, for an answer after polls have failed."""

    @property
    def is_failing(self) -> bool:
        """Tell whether its last poll failed."""
        return self.failures is not None and self.failures.failed.count > 0

    @property
    def is_closed(self) -> bool:
        """Tell whether it is never polled again; what is left of it in the wheel is void."""
        return self.deadline == CLOSED

    @property
    def last_polled_s(self) -> float:
        """Return the age at the last poll; 0 before the first."""
        return max(0.0, self.last_polled_at - self.begun_at)

    @property
    def is_first(self) -> bool:
        """Tell whether it was never polled."""
        return self.last_polled_at == NEVER

    @property
    def is_unanswered(self) -> bool:
        """Tell whether it was never polled, or its last poll was refused for the rate.

        One that is refused again has no claim: it could keep all others from being polled.
        """
        return self.is_first or (self.failures is not None and self.failures.refused == 1)

    def need_failures(self) -> PollFailures:
        """Return its failures, made if it has none."""
        if self.failures is None:
            self.failures = PollFailures()
        return self.failures

    def begin_poll(self, now: float) -> None:
        """Note that a poll is on its way; a callback that comes meanwhile makes another one urgent."""
        self.step, self.is_urgent = PollStep.ON_ITS_WAY, False
        self.last_polled_at = now

    def find_answer(self, digest: int) -> TaskRecord | None:
        """Return the record of the last answer, if it had this digest."""
        return self.last_record if digest == self.last_digest else None

    def remember_answer(self, digest: int, record: TaskRecord) -> None:
        """Keep what the last answer said, unless it was the end: that is not polled again."""
        is_over = record.state.is_terminal or self.is_closed
        self.last_digest, self.last_record = (None, None) if is_over else (digest, record)

    def close(self) -> None:
        """Keep nothing of the task alive."""
        self.deadline = CLOSED
        self.last_record = None
