"""The slots of a session: so many unsettled tasks at once, until it closes."""

from __future__ import annotations

from typing import Protocol

from ..errors import SESSION_CLOSED, SessionMisuse


class SlotHolder(Protocol):
    """Who remembers whether it holds a slot: a set of all holders would take 80 bytes for each."""

    def take_slot(self) -> None:
        """Hold a slot from now on."""

    def drop_slot(self) -> bool:
        """Hold no slot any more; tell whether it held one."""


class RoomSink(Protocol):
    """Takes in that a slot is free: whoever says who has it next."""

    def note_room(self) -> None:
        """Take in that a slot came back."""


class Admission:
    """The slots of a session: each is held from before a create until its holder releases it."""

    def __init__(self, max_in_flight: int) -> None:
        self._free = max_in_flight
        self._is_closing = False
        self._sink: RoomSink | None = None

    def start(self, sink: RoomSink) -> None:
        """Tell *sink* of every slot that comes back."""
        self._sink = sink

    @property
    def is_closing(self) -> bool:
        """Tell whether nobody is admitted any more."""
        return self._is_closing

    @property
    def has_room(self) -> bool:
        """Tell whether a slot is free."""
        return self._free > 0

    def take(self) -> None:
        """Take a free slot; `hold` says whose it is."""
        self._free -= 1

    def put_back(self) -> None:
        """Give back a slot that nobody holds."""
        self._free += 1
        if self._sink is not None:
            self._sink.note_room()

    def hold(self, holder: SlotHolder) -> None:
        """Note whose slot the one just taken is."""
        holder.take_slot()

    def transfer(self, holder: SlotHolder, to: SlotHolder) -> None:
        """Let another hold the slot of *holder*; a second one for the same comes back."""
        if holder.drop_slot():
            self.release(to)
            to.take_slot()

    def release(self, holder: SlotHolder) -> None:
        """Give the holder's slot back, if it has one."""
        # By holder and not by count: a handle ends in several ways, some of them one after the other, and a
        # slot given back twice would admit one task too many.
        if holder.drop_slot():
            self.put_back()

    def close(self) -> None:
        """Admit nobody any more."""
        self._is_closing = True

    def check_open(self) -> None:
        """Refuse to go on after the close.

        Raises:
            SessionMisuse: It is closing.
        """
        if self._is_closing:
            raise SessionMisuse(SESSION_CLOSED)
