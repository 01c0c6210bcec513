"""Orders what waits by lanes that take turns, first come first served within one. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class InLane(Protocol):
    """What waits in a lane."""

    @property
    def lane(self) -> Hashable:
        """Return whose turn it takes."""

    @property
    def is_begun(self) -> bool:
        """Tell whether somebody makes it ready."""

    @property
    def is_ready(self) -> bool:
        """Tell whether it could go now."""


_T = TypeVar("_T", bound=InLane)


class Lanes(Generic[_T]):
    """What waits, in the order in which it will go: one of each lane, then the next one of each."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Hashable, deque[_T]] = OrderedDict()
        """The lane whose turn is next comes first; none is empty."""
        self._count = 0
        self._places: dict[_T, int] | None = None
        """Counted when somebody asks, for all at once, until the next change."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_T]:
        turns = [iter(waiting) for waiting in self._lanes.values()]
        while turns:
            going, turns = turns, []
            for turn in going:
                for item in turn:
                    yield item
                    turns.append(turn)
                    break

    def add(self, item: _T) -> None:
        """Put an item at the end of its lane; a lane that is new has its turn after all others."""
        self._lanes.setdefault(item.lane, deque()).append(item)
        self._change(1)

    def remove(self, item: _T) -> None:
        """Take an item out, wherever it stands."""
        waiting = self._lanes[item.lane]
        waiting.remove(item)
        if not waiting:
            del self._lanes[item.lane]
        self._change(-1)

    def take(self) -> _T | None:
        """Take out whose turn it is, if one is ready; what is still made ready is overtaken."""
        for lane, waiting in self._lanes.items():
            if (item := _first_ready(waiting)) is not None:
                self._lanes.move_to_end(lane)
                self.remove(item)
                return item
        return None

    def next_to_begin(self) -> _T | None:
        """Return the first one, in the order in which they go, that nobody makes ready yet."""
        return next((item for item in self if not item.is_begun), None)

    def place_of(self, item: _T) -> int:
        """Return how many go before it, as things stand."""
        if self._places is None:
            self._places = {waiting: place for place, waiting in enumerate(self)}
        return self._places[item]

    def _change(self, more: int) -> None:
        self._count += more
        self._places = None


def _first_ready(waiting: deque[_T]) -> _T | None:
    for item in waiting:
        if item.is_ready:
            return item
        if not item.is_begun:  # its turn to be made ready comes first, so nobody passes it
            return None
    return None
