"""Learns from what polls and callbacks show: how long a model's tasks run, how many callbacks are lost."""

from __future__ import annotations

import math

from ..events import Source
from ..models import TaskRecord
from ..planning.planner import PollPlanner
from .entry import PollEntry

_BEFORE_ANSWER_S = 1.0
"""A task may run for so long before its create is answered."""


class Learner:
    """Turns observations of tasks into evidence for the planner."""

    def __init__(self, planner: PollPlanner) -> None:
        self._planner = planner

    def record_end(
        self, entry: PollEntry, record: TaskRecord, source: Source, intent_id: str, now: float
    ) -> None:
        """Take in that a task has ended, and which side said so first."""
        age_s = now - entry.begun_at
        # A callback that names no duration came at the end: its arrival says how long the task ran. A poll
        # may have come long after.
        is_said = record.duration_s is not None or source is not Source.CALLBACK
        ran_s = _ran_s(entry, age_s, record.duration_s if is_said else age_s)
        if ran_s is not None:
            self._planner.note_finished(
                entry.model or record.model,
                ran_s,
                seen_s=entry.last_seen_running_s,
                # Whoever waits, waits for the news; but what a machine slept through is no wait of a task's.
                settled_s=min(age_s, ran_s + self._planner.schedule.longest_gap_s),
                began_at=entry.begun_at,
            )
            if entry.expects_callback and source is Source.POLL:
                self._planner.callback_loss.note_polled_end(intent_id, now, late_s=age_s - ran_s)
        if source is Source.CALLBACK:
            self._planner.callback_loss.note_callback(intent_id, is_news=True)

    def record_late_callback(self, intent_id: str) -> None:
        """Take in that a callback came for a task whose end was known: it was not lost."""
        self._planner.callback_loss.note_callback(intent_id, is_news=False)

    def record_running(self, entry: PollEntry, record: TaskRecord) -> None:
        """Take in that a poll found a task running."""
        age_s = entry.last_polled_at - entry.begun_at
        if entry.last_seen_running_s != math.inf:
            if self._planner.schedule.learns:
                self._planner.note_running(entry.model, entry.last_seen_running_s, age_s)
        elif record.created_at and record.updated_at and record.updated_at > record.created_at:
            # An older task: its age is no less than that, by the service's own clock alone.
            known_s = (record.updated_at - record.created_at).total_seconds()
            entry.begun_at = min(entry.begun_at, entry.last_polled_at - known_s)
            age_s = entry.last_polled_at - entry.begun_at
        entry.last_seen_running_s = age_s


def _ran_s(entry: PollEntry, age_s: float, said_s: float | None) -> float | None:
    """Return how long a task ran, within what was seen of it; None if nobody here saw its beginning."""
    latest_s, seen_s = age_s + _BEFORE_ANSWER_S, entry.last_seen_running_s
    if seen_s > age_s or (not seen_s and said_s is not None and said_s > latest_s):
        return None  # attached, or adopted: it is older than it was known here
    found_s = (seen_s + age_s) / 2 if said_s is None else said_s
    return max(min(found_s, latest_s), seen_s)
