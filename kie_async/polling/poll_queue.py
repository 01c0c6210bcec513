"""Orders the polls that are due: urgent and first ones, refused ones, then tasks likeliest to have ended."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .entry import PollEntry, PollStep

PATIENCE_S = 0.5
"""While nobody waits longer than this for a poll, tasks are polled in the order they came due."""
_ROUND_LENGTH, _ROUND_S = 8, 1.0

Chance = Callable[[PollEntry, float], float]
"""How likely the task of an entry has ended since its last poll, at an instant."""


class PollQueue:
    """Those that are due: urgent ones, then first and refused polls, then the likeliest to have ended.

    The chance is asked only while polls are short, and of all that wait at a time; a task that waited
    *longest_s* goes before those.
    """

    def __init__(self, *, longest_s: float) -> None:
        self._longest_s = longest_s
        self._urgent: deque[PollEntry] = deque()
        self._first: deque[PollEntry] = deque()
        self._again: deque[PollEntry] = deque()
        self._round: deque[PollEntry] = deque()
        """The likeliest of those that waited too long, polled before the rest for a while."""
        self._round_ends_at = -math.inf

    def __bool__(self) -> bool:
        return bool(self._again or self._first or self._urgent or self._round)

    def put(self, entry: PollEntry) -> None:
        """Let an entry wait for its poll; one that waits already moves forward if it became urgent."""
        if entry.step is PollStep.QUEUED:
            for queue in (self._first, self._again, self._round):
                with suppress(ValueError):
                    queue.remove(entry)
        entry.step = PollStep.QUEUED
        (self._urgent if entry.is_urgent else self._first if entry.is_unanswered else self._again).append(
            entry
        )

    def pop(self, now: float, chance: Chance) -> PollEntry | None:
        """Take out the entry to poll now, which may be closed meanwhile; None if nobody waits."""
        queue = self._urgent or self._first
        if not queue:
            self._form_round(now, chance)
            queue = self._round or self._again
        if not queue:
            return None
        entry = queue.popleft()
        entry.step = PollStep.PLANNED
        return entry

    def _form_round(self, now: float, chance: Chance) -> None:
        """Set the likeliest quarter of those that wait too long apart: they come first, for a while."""
        if self._round and now > self._round_ends_at:
            self._again.extendleft(reversed(self._round))
            self._round.clear()
        if self._round or not self._again or self._again[0].next_at + PATIENCE_S >= now:
            return
        # Ranked once for a while and not for each poll: with thousands waiting, sorting would cost more.
        waiting = [entry for entry in self._again if not entry.is_closed]
        ranked = sorted(waiting, key=lambda entry: self._rank(entry, now, chance), reverse=True)
        self._round = deque(ranked[: max(_ROUND_LENGTH, len(ranked) // 4)])
        taken = set(map(id, self._round))
        self._again = deque(entry for entry in waiting if id(entry) not in taken)
        self._round_ends_at = now + _ROUND_S

    def _rank(self, entry: PollEntry, now: float, chance: Chance) -> float:
        if now - entry.next_at > self._longest_s:
            return 1 + now - entry.next_at
        return chance(entry, now)

    def clear(self) -> None:
        """Forget everybody."""
        for queue in (self._urgent, self._first, self._again, self._round):
            queue.clear()
