"""Admits so many unsettled tasks at once, first come first served, until the session closes."""

from __future__ import annotations

import asyncio

from ..errors import SessionMisuse


class Admission:
    """The slots of a session: each is held from before a create until its holder releases it."""

    def __init__(self, max_in_flight: int) -> None:
        self._slots = asyncio.Semaphore(max_in_flight)
        self._holders: set[object] = set()
        self._is_closing = False

    @property
    def is_closing(self) -> bool:
        """Tell whether nobody is admitted any more."""
        return self._is_closing

    @property
    def has_room(self) -> bool:
        """Tell whether a slot is free."""
        return not self._slots.locked()

    async def acquire(self) -> None:
        """Wait for a slot; `hold` says whose it is."""
        await self._slots.acquire()

    def hold(self, holder: object) -> None:
        """Note whose slot the one just acquired is."""
        self._holders.add(holder)

    def transfer(self, holder: object, to: object) -> None:
        """Let another hold the slot of *holder*; a second one for the same comes back."""
        if holder in self._holders and to in self._holders:
            self.release(holder)
        elif holder in self._holders:
            self._holders.remove(holder)
            self._holders.add(to)

    def release(self, holder: object) -> None:
        """Give the holder's slot back, if it has one."""
        # By holder and not by count: a handle ends in several ways, some of them one after the other, and a
        # slot given back twice would admit one task too many.
        if holder in self._holders:
            self._holders.remove(holder)
            self._slots.release()

    def close(self) -> None:
        """Admit nobody any more: the first in line goes, sees the closed door, and lets the next one go."""
        self._is_closing = True
        self._slots.release()

    def check_open(self) -> None:
        """Refuse to go on after the close.

        Raises:
            SessionMisuse: It is closing.
        """
        if self._is_closing:
            raise SessionMisuse("the session is closed; open a new one")
