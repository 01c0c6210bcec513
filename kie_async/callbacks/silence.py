"""Notices that tasks end and no callback comes for any of them. Pure: it is given all it knows."""

from __future__ import annotations

import math

ENDS_WITHOUT_CALLBACK = 5

WARN_EVERY_S = 60.0


class CallbackSilence:
    """Counts the tasks that ended, by a poll, since the last callback came."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = 0
        self._warned_at = -math.inf

    def note_callback(self) -> None:
        """Take in that one came, for whichever task."""
        self._ended = 0

    def note_end(self, now: float) -> str:
        """Take in that a poll saw a task end that has a callback address; return a warning if one is due."""
        self._ended += 1
        if self._ended < ENDS_WITHOUT_CALLBACK or now - self._warned_at < WARN_EVERY_S:
            return ""
        self._warned_at = now
        return (
            f"no callback came for {self._ended} tasks that ended; is {self._url} reachable? "
            f"try: kie-async listen --check {self._url}"
        )
