"""When to look next at which task, by what was seen so far. Pure: time and chance are arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from ..config import PollSchedule
from .callback_loss import CallbackLoss
from .durations import EDGES_S, DurationModel
from .poll_curve import PollCurve

ENOUGH = 3
"""So many ends of a model must be seen before they are believed."""

SHORTEST_GAP_S = 0.4
"""The service asks for three looks a second at one task at most."""

_SCOUTS = 5

_REBUILD_S, _NEWS = 1.0, 50
"""A curve is made anew after that long at the soonest, and when there is something new to say."""

_MOST_MODELS = 100

_TIGHTER = 2.0

Learned = Mapping[str, object]
"""What is known of every model, fit for JSON."""


@attrs.define
class _Model:
    """What is known of one model."""

    durations: DurationModel
    curve: PollCurve
    curve_at: float = -math.inf
    news: float = math.inf
    """How much was seen since the curve was made; an end weighs as much as ten looks."""


class PollPlanner:
    """Plans looks for all tasks of a session, and learns from what they find.

    Ages count from the create, instants (*now*) on one clock of the caller's.
    """

    def __init__(self, schedule: PollSchedule) -> None:
        self.schedule = schedule
        self.lost = CallbackLoss(grace_s=schedule.callback_grace_s)
        self._shortest_s = min(SHORTEST_GAP_S, schedule.first_s)
        self._tiers = PollCurve.of_tiers(schedule.tiers)
        self._models: dict[str, _Model] = {}
        self._share_planned = self.lost.share
        self._probes = 0
        self._lessons = 0

    # --- when ----------------------------------------------------------------------------------

    def should_probe(self) -> bool:
        """Tell whether a new task shall be looked at as if no callback came, to learn whether they do."""
        self._probes += 1
        return self.schedule.learns and not self.lost.is_proven and self._probes <= _SCOUTS

    def next_poll_s(
        self,
        model: str,
        last_polled_s: float,
        *,
        is_first: bool,
        by_callback: bool,
        chance: float,
        now: float,
    ) -> float:
        """Return the age for the look after the one at *last_polled_s*; *chance* is uniform in [0, 1)."""
        schedule, curve = self.schedule, self._curve(model, now)
        stretch = 1 + schedule.jitter * (2 * chance - 1)
        if is_first and not curve.is_learned:
            next_s = last_polled_s + schedule.first_s * stretch
        else:
            next_s = curve.after(last_polled_s, stretch)
        if by_callback:
            rare_s = curve.after(last_polled_s, stretch / self.lost.share)
            net_s = max(last_polled_s + schedule.safety_net_s * stretch, curve.late_s * stretch)
            next_s = max(next_s, min(rare_s, net_s))
        soonest_s, latest_s = (
            last_polled_s + self._shortest_s,
            last_polled_s + schedule.longest_gap_s * stretch,
        )
        return soonest_s if next_s < soonest_s else min(next_s, latest_s)

    def chance(self, model: str, from_s: float, to_s: float, *, by_callback: bool, now: float) -> float:
        """Return how likely a task that ran at one age has ended unnoticed at the other."""
        share = self.lost.share if by_callback else 1.0
        return share * self._curve(model, now).chance(from_s, to_s)

    def is_tighter(self) -> bool:
        """Tell whether callbacks are lost so much more often than before that all looks are planned anew."""
        share = self.lost.share
        tighter = share > self._share_planned * _TIGHTER
        if tighter or share < self._share_planned:
            self._share_planned = share
        return tighter

    # --- what was seen -------------------------------------------------------------------------

    def still_running(self, model: str, from_s: float, to_s: float) -> None:
        """Take in that a task ran at both ages."""
        if (known := self._known(model)) is not None:
            known.durations.still_running(from_s, to_s)
            known.news += 1

    def finished(self, model: str, duration_s: float, *, seen_s: float) -> None:
        """Take in that a task ended, which was known to run at the age *seen_s*."""
        if (known := self._known(model)) is not None:
            known.durations.finished(duration_s, seen_s=seen_s)
            known.news += 10
            self._lessons += 1

    def worth_keeping(self, lessons: int = 25) -> Learned | None:
        """Return what is known if so many ends were taken in since it was last returned."""
        if self._lessons < lessons:
            return None
        self._lessons = 0
        return {name: model.durations.dump() for name, model in self._models.items()}

    def restore(self, learned: Learned) -> None:
        """Begin with what another timetable had learned; what cannot be read is left out."""
        for name, dumped in learned.items():
            durations = DurationModel.load(dumped)
            if durations is not None and (known := self._known(name)) is not None:
                known.durations = durations

    def _known(self, model: str) -> _Model | None:
        known = self._models.get(model)
        if known is None and self.schedule.learns and len(self._models) < _MOST_MODELS:
            known = self._models[model] = _Model(DurationModel(), self._tiers)
        return known

    def _curve(self, model: str, now: float) -> PollCurve:
        known = self._models.get(model)
        if known is None:
            return self._tiers
        if known.news > min(known.durations.seen, _NEWS) and now >= known.curve_at + _REBUILD_S:
            schedule, hazards = self.schedule, known.durations.hazards()
            known.curve = PollCurve.of_hazards(EDGES_S, hazards, schedule.wait_s, schedule.wait_share)
            if known.durations.seen < ENOUGH:
                known.curve = known.curve.at_most(self._tiers)
            known.curve_at, known.news = now, 0
        return known.curve
