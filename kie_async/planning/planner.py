"""Decides when each task is polled next, from what earlier ones took. Pure: time and chance are arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import attrs

from ..config import PollSchedule
from .callback_loss import CallbackLoss
from .durations import EDGES_S, DurationModel
from .poll_curve import PollCurve
from .survival import SurvivalCurve

MIN_COMPLETIONS = 3
"""Until so many tasks of a model were seen to end, none is polled more often than the tiers say."""

SHORTEST_GAP_S = 0.4
"""The service asks for three polls a second of one task at most."""

_MAX_PROBES = 5

_REBUILD_S, _REBUILD_NEWS = 1.0, 50
"""A curve is made anew after that long at the soonest, and when there is something new to say."""

_NEWS_PER_COMPLETION = 10
"""A task that ended says as much about its model as ten polls that found one running."""

_SAVE_EVERY = 25

_MAX_MODELS = 100

_REPLAN_FACTOR = 2.0

Learned = Mapping[str, object]
"""What is known of every model, fit for JSON."""


@attrs.define
class _Model:
    """What is known of one model."""

    durations: DurationModel
    curve: PollCurve
    curve_at: float = -math.inf
    news: float = math.inf
    """How much was seen since the curve was made, in polls."""


class PollPlanner:
    """Plans the polls of all tasks of a session, and learns from what they find.

    Ages count from the create, instants (*now*) on one clock of the caller's.
    """

    def __init__(self, schedule: PollSchedule) -> None:
        self.schedule = schedule
        self.callback_loss = CallbackLoss(grace_s=schedule.callback_grace_s)
        self._shortest_s = min(SHORTEST_GAP_S, schedule.first_s)
        self._tiers = PollCurve.of_tiers(schedule.tiers)
        self._models: dict[str, _Model] = {}
        self._planned_loss = self.callback_loss.share
        self._probes = 0
        self._unsaved = 0

    # --- when ----------------------------------------------------------------------------------

    def should_probe(self) -> bool:
        """Tell whether a new task shall be polled as if no callback came, to learn whether they do."""
        self._probes += 1
        return self.schedule.learns and not self.callback_loss.is_proven and self._probes <= _MAX_PROBES

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
        """Return the age for the poll after the one at *last_polled_s*; *chance* is uniform in [0, 1)."""
        schedule, curve = self.schedule, self._curve(model, now)
        stretch = 1 + schedule.jitter * (2 * chance - 1)
        if is_first and not curve.is_learned:
            next_s = last_polled_s + schedule.first_s * stretch
        else:
            next_s = curve.after(last_polled_s, stretch)
        if by_callback:
            # As rare as callbacks are lost; never rarer than the net once the task is late.
            rare_s = curve.after(last_polled_s, stretch / self.callback_loss.share)
            net_s = max(last_polled_s + schedule.safety_net_s * stretch, curve.late_s * stretch)
            next_s = max(next_s, min(rare_s, net_s))
        soonest_s = last_polled_s + self._shortest_s
        latest_s = last_polled_s + schedule.longest_gap_s * stretch
        return soonest_s if next_s < soonest_s else min(next_s, latest_s)

    def chance(self, model: str, from_s: float, to_s: float, *, by_callback: bool, now: float) -> float:
        """Return how likely a task that ran at one age has ended unnoticed at the other."""
        share = self.callback_loss.share if by_callback else 1.0
        return share * self._curve(model, now).chance(from_s, to_s)

    def should_replan(self) -> bool:
        """Tell, once, that callbacks are lost so much more often that all polls must be planned anew."""
        share = self.callback_loss.share
        is_worse = share > self._planned_loss * _REPLAN_FACTOR
        if is_worse or share < self._planned_loss:
            self._planned_loss = share
        return is_worse

    def survival(self, model: str, running_since: Iterable[float], now: float) -> SurvivalCurve | None:
        """Return the share of a model's tasks that run at each age; None until enough were seen to end.

        *running_since* are the instants at which those began that run now.
        """
        known = self._models.get(model)
        return None if known is None else known.durations.recent.curve(running_since, now)

    # --- what was seen -------------------------------------------------------------------------

    def note_running(self, model: str, from_s: float, to_s: float) -> None:
        """Take in that a task ran at both ages."""
        if (known := self._known(model)) is not None:
            known.durations.note_running(from_s, to_s)
            known.news += 1

    def note_finished(
        self,
        model: str,
        duration_s: float,
        *,
        seen_s: float,
        settled_s: float | None = None,
        began_at: float = -math.inf,
    ) -> None:
        """Take in that a task ended, which was known to run at the age *seen_s*.

        The end was known at the age *settled_s*, if that was later; *began_at* is minus infinity where nobody
        knows.
        """
        if (known := self._known(model)) is not None:
            # By fixed intervals nobody notes which tasks run on: the quick ones alone would speak for all.
            if self.schedule.learns:
                known.durations.note_finished(duration_s, seen_s=seen_s)
            known.durations.recent.add(duration_s if settled_s is None else settled_s, began_at)
            known.news += _NEWS_PER_COMPLETION
            self._unsaved += 1

    def take_learned(self, min_completions: int = _SAVE_EVERY) -> Learned | None:
        """Return what is known if so many completions were taken in since it was last returned."""
        if self._unsaved < min_completions:
            return None
        self._unsaved = 0
        return {name: model.durations.dump() for name, model in self._models.items()}

    def restore(self, learned: Learned) -> None:
        """Begin with what another planner had learned; what cannot be read is left out."""
        for name, dumped in learned.items():
            durations = DurationModel.load(dumped)
            if durations is not None and (known := self._known(name)) is not None:
                known.durations = durations

    def _known(self, model: str) -> _Model | None:
        known = self._models.get(model)
        if known is None and len(self._models) < _MAX_MODELS:
            known = self._models[model] = _Model(DurationModel(), self._tiers)
        return known

    def _curve(self, model: str, now: float) -> PollCurve:
        known = self._models.get(model)
        if known is None or not self.schedule.learns:
            return self._tiers
        if known.news > min(known.durations.seen, _REBUILD_NEWS) and now >= known.curve_at + _REBUILD_S:
            schedule, hazards = self.schedule, known.durations.hazards()
            known.curve = PollCurve.of_hazards(EDGES_S, hazards, schedule.wait_s, schedule.wait_share)
            if known.durations.seen < MIN_COMPLETIONS:
                known.curve = known.curve.at_most(self._tiers)
            known.curve_at, known.news = now, 0
        return known.curve
