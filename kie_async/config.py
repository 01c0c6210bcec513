"""What a user may set: rate limits, a budget, and when tasks are polled."""

from __future__ import annotations

import math
from typing import Any

import attrs

from ._validation import above_zero, whole_above_zero
from .errors import InvalidRequest


@attrs.frozen
class Rate:
    """So many requests in any window of so many seconds."""

    count: int = attrs.field(validator=whole_above_zero)
    per_s: float = attrs.field(kw_only=True, validator=above_zero)


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of the account and of this process; the published ones are the defaults.

    Source: https://docs.kie.ai (20 new tasks in 10 seconds, 10 queries a second)
    """

    create: Rate = Rate(20, per_s=10.0)
    query: Rate = Rate(10, per_s=1.0)
    create_connections: int = attrs.field(default=4, validator=whole_above_zero)
    """Creates on the wire at once: also the most that one crash can leave unknown."""
    query_connections: int = attrs.field(default=16, validator=whole_above_zero)


@attrs.frozen(kw_only=True)
class Budget:
    """A hard stop before the next create, for the life of the session (or of its journal)."""

    credits: float | None = attrs.field(default=None, validator=above_zero)
    """What has not settled, or may exist after an unknown create, counts as the mean of what has."""
    tasks: int | None = attrs.field(default=None, validator=whole_above_zero)


DOCUMENTED: tuple[tuple[float, float], ...] = ((30.0, 2.5), (120.0, 7.5), (math.inf, 22.5))
"""The service's own advice: every 2-3 s for 30 s, every 5-10 s until 2 min, every 15-30 s after.

Source: https://docs.kie.ai/market/common/get-task-detail
"""


def _check_tiers(_: object, __: attrs.Attribute[Any], tiers: tuple[tuple[float, float], ...]) -> None:
    ages_s = [age_s for age_s, _ in tiers]
    do_rise = ages_s == sorted(set(ages_s)) and all(age_s > 0 for age_s in ages_s)  # false for a nan
    if not tiers or not do_rise or ages_s[-1] != math.inf:
        raise InvalidRequest("tiers must rise and the last must end at math.inf")
    if not all(interval_s > 0 for _, interval_s in tiers):
        raise InvalidRequest("tiers must hold intervals above zero")


def _check_delays(_: object, attribute: attrs.Attribute[Any], delays_s: tuple[float, ...]) -> None:
    if not all(delay_s > 0 for delay_s in delays_s):
        raise InvalidRequest(f"{attribute.name} must hold delays above zero")


def _check_share(_: object, attribute: attrs.Attribute[Any], share: float) -> None:
    if not 0 <= share < 1:
        raise InvalidRequest(f"{attribute.name} must be at least 0 and below 1, got {share!r}")


@attrs.frozen(kw_only=True)
class PollSchedule:
    """The rule for the times at which a task is polled.

    By itself it learns: from the tasks of a model that ended, and from those that still run, how likely
    an end is at each age, and polls as often as the square root of that (the optimum: J. B. Keller 1974,
    https://doi.org/10.1287/mnsc.21.3.256, derived in `kie_async.planning.poll_curve`). Until it has seen
    three tasks of a model end it polls no more often than *tiers* say. `documented` always goes by them,
    `fixed` by one interval.

    With callbacks, polls are as rare as the share of lost callbacks allows: the mean wait over all
    tasks stays *wait_s*, whoever brings the news.
    """

    learns: bool = True
    """Whether *tiers* give way to what was seen."""
    wait_s: float = attrs.field(default=1.5, validator=above_zero)
    """How long an end may go unnoticed, on average."""
    wait_share: float = attrs.field(default=0.01, validator=_check_share)
    """The same as a share of what a model's tasks take; the longer of the two counts."""
    first_s: float = attrs.field(default=2.0, validator=above_zero)
    """The delay before the first poll of a new task, by the tiers."""
    tiers: tuple[tuple[float, float], ...] = attrs.field(default=DOCUMENTED, validator=_check_tiers)
    """Pairs (until the task is so old, poll every so many seconds)."""
    longest_gap_s: float = attrs.field(default=300.0, validator=above_zero)
    """No task goes without a poll for longer, whatever was learned and however well callbacks come."""
    safety_net_s: float = attrs.field(default=60.0, validator=above_zero)
    """With callbacks: the delay between polls of a task of unknown length, or one past its expected end."""
    callback_grace_s: float = attrs.field(default=10.0, validator=above_zero)
    """How long after the end of its task a callback counts as lost."""
    jitter: float = attrs.field(default=0.1, validator=_check_share)
    """The random part of a delay, as a share of it either way."""
    recheck_s: tuple[float, ...] = attrs.field(default=(1.0, 2.0, 4.0), validator=_check_delays)
    """Delays before further polls when a callback outran the record, or a success came without a result."""
    ring_gap_s: float = attrs.field(default=1.0, validator=above_zero)
    """The shortest time between two polls of one task that callbacks ask for."""
    visibility_grace_s: float = attrs.field(default=90.0, validator=above_zero)
    """How long the service may say that it does not know a task before that counts as an answer."""

    @classmethod
    def fixed(cls, interval_s: float, *, jitter: float = 0.1) -> PollSchedule:
        """Return a schedule that polls every *interval_s* seconds, callbacks or not.

        Raises:
            InvalidRequest: The interval is not above zero.
        """
        return cls(
            learns=False,
            first_s=interval_s,
            tiers=((math.inf, interval_s),),
            longest_gap_s=interval_s,
            safety_net_s=interval_s,
            jitter=jitter,
        )

    @classmethod
    def documented(cls) -> PollSchedule:
        """Return a schedule that goes by the service's own advice."""
        return cls(learns=False)
