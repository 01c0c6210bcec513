"""TODO"""

from __future__ import annotations

import math

import attrs

from ..handle import TaskHandle


@attrs.define
class PollFailures:
    """What went wrong with the looks at one task, and which of them are extra."""

    failures: int = 0
    refusals: int = 0
    rechecks: int = 0
    empties: int = 0


@attrs.define(eq=False, weakref_slot=False)
class PollEntry:
    """What the poller knows of one handle. Instants are on the loop's clock, ages count from *since*.

    There may be a hundred thousand of these: what most never need is made when it is needed.
    """

    handle: TaskHandle | None
    """None once it is over: what is left in the agenda keeps no handle alive."""
    since: float
    expects_callback: bool
    at: float = math.inf
    """When it is looked at next."""
    seen_s: float = 0.0
    """The age at which it was last seen running; infinite until an older task was seen for the first time."""
    last_polled_at: float = -math.inf
    setback: PollFailures | None = None
    is_urgent: bool = False
    is_queued: bool = False
    is_polling: bool = False

    @property
    def last_polled_s(self) -> float:
        """Return the age at the last look; 0 before the first."""
        return 0.0 if self.last_polled_at == -math.inf else self.last_polled_at - self.since

    def need_failures(self) -> PollFailures:
        """Return its setback, made if it has none."""
        if self.setback is None:
            self.setback = PollFailures()
        return self.setback
