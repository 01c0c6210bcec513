"""Notices that tasks end and no callback comes for any of them. Pure: the time is an argument."""

from __future__ import annotations

import math

ENDS_WITHOUT_CALLBACK = 5

SILENCE_S = 60.0
"""Where callbacks have come before: as long may a few polls be the faster ones."""

WARN_EVERY_S = 60.0


class CallbackSilence:
    """Counts the tasks whose end was seen by a poll since the last callback came."""

    def __init__(self, url: str) -> None:
        self._url = url.partition("?")[0]  # a query may hold a secret
        self._ended = 0
        self._came_at = -math.inf
        self._warned_at = -math.inf

    def note_callback(self, now: float) -> None:
        """Take in that one came, for whichever task."""
        self._ended, self._came_at = 0, now

    def note_end(self, now: float) -> str:
        """Take in that a poll saw a task end that has a callback address; return a warning if one is due."""
        self._ended += 1
        is_silent = self._ended >= ENDS_WITHOUT_CALLBACK and now - self._came_at >= SILENCE_S
        if not is_silent or now - self._warned_at < WARN_EVERY_S:
            return ""
        self._warned_at = now
        return (
            f"no callback came for {self._ended} tasks that ended; is {self._url} reachable? "
            f"`kie-async listen --check {self._url}` tries it"
        )
