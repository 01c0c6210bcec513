"""When to look at a task again: a formula of how long it has been running."""

from __future__ import annotations

import math
from typing import Any

import attrs

from .checks import above_zero
from .errors import InvalidRequest

DOCUMENTED: tuple[tuple[float, float], ...] = ((30.0, 2.5), (120.0, 7.5), (math.inf, 22.5))
"""The service's own advice: every 2-3 s for 30 s, every 5-10 s until 2 min, every 15-30 s after.

Source: https://docs.kie.ai/market/common/get-task-detail
"""


def _check_tiers(_: object, __: attrs.Attribute[Any], tiers: tuple[tuple[float, float], ...]) -> None:
    ends = [end_s for end_s, _ in tiers]
    if not tiers or ends != sorted(set(ends)) or ends[-1] != math.inf:
        raise InvalidRequest("tiers must rise and the last must end at math.inf")
    if not all(interval_s > 0 for _, interval_s in tiers):
        raise InvalidRequest("tiers must hold intervals above zero")


def _check_delays(_: object, attribute: attrs.Attribute[Any], delays_s: tuple[float, ...]) -> None:
    if not all(delay_s > 0 for delay_s in delays_s):
        raise InvalidRequest(f"{attribute.name} must hold delays above zero")


def _check_jitter(_: object, __: attrs.Attribute[Any], jitter: float) -> None:
    if not 0 <= jitter < 1:
        raise InvalidRequest(f"jitter must be at least 0 and below 1, got {jitter!r}")


@attrs.frozen(kw_only=True)
class PollSchedule:
    """The rule for the delays between polls of one task."""

    first_s: float = attrs.field(default=2.0, validator=above_zero)
    """The first look at a new task."""
    tiers: tuple[tuple[float, float], ...] = attrs.field(default=DOCUMENTED, validator=_check_tiers)
    """Pairs (until the task is so old, look every so many seconds)."""
    safety_net_s: float = attrs.field(default=60.0, validator=above_zero)
    """The shortest delay for a task whose callback is expected: the poll is then only the net."""
    jitter: float = attrs.field(default=0.2, validator=_check_jitter)
    """The random part of a delay, as a share of it either way."""

    recheck_s: tuple[float, ...] = attrs.field(default=(1.0, 2.0, 4.0), validator=_check_delays)
    """Delays before further looks when a callback outran the record, or a success came without a result."""
    ring_gap_s: float = attrs.field(default=1.0, validator=above_zero)
    """The shortest time between two looks at one task that callbacks ask for."""
    visibility_grace_s: float = attrs.field(default=90.0, validator=above_zero)
    """How long the service may say that it does not know a task before that is believed."""

    @classmethod
    def fixed(cls, interval_s: float, *, jitter: float = 0.1) -> PollSchedule:
        """Return a schedule that looks every *interval_s* seconds, callbacks or not.

        Raises:
            InvalidRequest: The interval is not above zero.
        """
        return cls(
            first_s=interval_s, tiers=((math.inf, interval_s),), safety_net_s=interval_s, jitter=jitter
        )

    def delay_s(self, elapsed_s: float, *, looks: int, expects_callback: bool, chance: float) -> float:
        """Return the seconds until the next look at a task.

        *elapsed_s* is the task's age, *looks* counts earlier looks, *chance* is uniform in [0, 1).
        """
        if looks == 0:
            interval_s = self.first_s
        else:
            tiers = (interval for end_s, interval in self.tiers if elapsed_s < end_s)
            interval_s = next(tiers, self.tiers[-1][1])
        if expects_callback:
            interval_s = max(interval_s, self.safety_net_s)
        return interval_s * (1 + self.jitter * (2 * chance - 1))
