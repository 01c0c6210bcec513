"""Says, once for all tasks, that the disk of the journal is full; creates of a batch wait meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import ApiError, CreateOutcomeUnknown, JournalFull
from ..http.backoff import delays
from ..limits.weather import Condition, WeatherSink

_T = TypeVar("_T")


class JournalRoom:
    """Whether the journal can be written, as far as its last notes tell."""

    def __init__(self, sink: WeatherSink) -> None:
        self._condition = Condition("disk", sink)

    @property
    def is_full(self) -> bool:
        """Tell whether the last note found no room."""
        return self._condition.is_said

    def note_full(self, error: JournalFull) -> None:
        """Take in that a note found no room."""
        if not self.is_full:
            self._condition.say(f"{error}; nothing more is created, what is paid goes on; make room")

    def note_room(self) -> None:
        """Take in that a note was written."""
        self._condition.end("the journal can be written again")


class WaitForRoom:
    """Lets the creates of a batch wait while the disk of the journal is full, one of them trying."""

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
        """Return what *create* returns, called again while the disk is full.

        Raises:
            JournalFull: It was for too long, or `stop` was called.
            KieError: What *create* raises.
        """
        if not self._room.is_full:
            try:
                return await create()
            except JournalFull as exc:
                if not self._give_up_after_s:
                    raise
                self._room.note_full(exc)
        async with self._trying:
            return await self._try_again(create)

    async def _try_again(self, create: Callable[[], Awaitable[_T]]) -> _T:
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + self._give_up_after_s
        pauses = delays(self._rng)
        while True:
            left_s = gives_up_at - loop.time()
            if self._room.is_full:
                await self._sleep(max(0.0, min(next(pauses), left_s)))
            try:
                made = await create()
            except JournalFull as exc:
                self._room.note_full(exc)
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
