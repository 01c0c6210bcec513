"""Orders what waits by lanes that take turns, first come first served within one. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
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
        self._served_last: tuple[Hashable] | None = None
        """The lane that has just had its turn, while no new one has passed it."""
        self._count = 0
        self._places: dict[_T, int] | None = None
        """Counted when somebody asks, for all at once, until the next change."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_T]:
        return _in_turn(self._lanes.values())

    def add(self, item: _T) -> None:
        """Put an item at the end of its lane.

        A lane that is new has its turn after all others, but for the one that has just had its own. That one
        is passed once, so that neither can starve the other.
        """
        is_new = item.lane not in self._lanes
        self._lanes.setdefault(item.lane, deque()).append(item)
        if is_new and self._served_last is not None:
            (lane,), self._served_last = self._served_last, None
            if lane in self._lanes:
                self._lanes.move_to_end(lane)
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
                self._served_last = (lane,)
                self.remove(item)
                return item
        return None

    def next_to_begin(self, count: int) -> _T | None:
        """Return the first that nobody makes ready yet, if it is among so many that go next."""
        first = islice(_in_turn(islice(self._lanes.values(), count)), count)
        return next((item for item in first if not item.is_begun), None)

    def place_of(self, item: _T) -> int:
        """Return how many go before it, as things stand."""
        if self._places is None:
            self._places = {waiting: place for place, waiting in enumerate(self)}
        return self._places[item]

    def _change(self, more: int) -> None:
        self._count += more
        self._places = None


def _in_turn(lanes: Iterable[Iterable[_T]]) -> Iterator[_T]:
    turns = [iter(waiting) for waiting in lanes]
    while turns:
        going, turns = turns, []
        for turn in going:
            for item in turn:
                yield item
                turns.append(turn)
                break


def _first_ready(waiting: deque[_T]) -> _T | None:
    for item in waiting:
        if item.is_ready:
            return item
        if not item.is_begun:  # its turn to be made ready comes first, so nobody passes it
            return None
    return None
