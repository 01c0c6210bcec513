"""Says, once for all tasks, that the journal cannot be written; creates of a batch wait for it.

Its disk is full, or its database is away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import ApiError, CreateOutcomeUnknown, JournalAway, JournalError, JournalFull
from ..http.backoff import delays
from ..limits.weather import Condition, WeatherSink

CANNOT_NOTE = (JournalFull, JournalAway)
"""What passes: nothing was noted, so nothing was sent."""

_T = TypeVar("_T")


class JournalRoom:
    """Whether the journal can be written, as far as its last notes tell."""

    def __init__(self, sink: WeatherSink) -> None:
        self._full = Condition("disk", sink)
        self._away = Condition("journal", sink)

    @property
    def is_shut(self) -> bool:
        """Tell whether the last note could not be written."""
        return self._full.is_said or self._away.is_said

    def note_failure(self, error: JournalError) -> None:
        """Take in that a note could not be written for now."""
        if self.is_shut:
            return
        words = f"{error}; nothing more is created, what is paid goes on"
        if isinstance(error, JournalFull):
            self._full.say(f"{words}; make room")
        else:
            self._away.say(words, level=logging.DEBUG)  # the journal has warned of it itself

    def note_room(self) -> None:
        """Take in that a note was written."""
        for condition in (self._full, self._away):
            condition.end("the journal can be written again")


class WaitForRoom:
    """Lets the creates of a batch wait while the journal cannot be written, one of them trying."""

    def __init__(self, room: JournalRoom, give_up_after_s: float, rng: random.Random) -> None:
        self._room = room
        self._give_up_after_s = give_up_after_s
        self._rng = rng
        self._trying = asyncio.Lock()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Wait no more."""
        self._stopped.set()

    async def create(self, create: Callable[[], Awaitable[_T]]) -> _T:
        """Return what *create* returns, called again while the journal cannot be written.

        Raises:
            JournalFull, JournalAway: It could not for too long, or `stop` was called.
            KieError: What *create* raises.
        """
        if not self._room.is_shut:
            try:
                return await create()
            except CANNOT_NOTE as exc:
                if not self._give_up_after_s:
                    raise
                self._room.note_failure(exc)
        async with self._trying:
            return await self._try_again(create)

    async def _try_again(self, create: Callable[[], Awaitable[_T]]) -> _T:
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + self._give_up_after_s
        pauses, has_failed = delays(self._rng), False
        while True:
            left_s = gives_up_at - loop.time()
            if self._room.is_shut or has_failed:
                await self._sleep(max(0.0, min(next(pauses), left_s)))
            try:
                made = await create()
            except CANNOT_NOTE as exc:
                has_failed = True
                self._room.note_failure(exc)
                if self._stopped.is_set() or left_s <= 0:
                    raise
            except (ApiError, CreateOutcomeUnknown):  # it was noted before it was sent
                self._room.note_room()
                raise
            else:
                self._room.note_room()
                return made

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            pass
