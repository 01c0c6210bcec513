"""Which task is looked at next, of those that are due."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import attrs

from .handle import TaskHandle

PATIENCE_S = 0.5
"""While nobody waits longer than this for a look, they are looked at in the order they came due."""
_ROUND, _ROUND_S = 8, 1.0


@attrs.define
class Setback:
    """What went wrong with the looks at one task, and which of them are extra."""

    failures: int = 0
    refusals: int = 0
    rechecks: int = 0
    empties: int = 0


@attrs.define(eq=False, weakref_slot=False)
class Watch:
    """What the poller knows of one handle. Instants are on the loop's clock, ages count from *since*.

    There may be a hundred thousand of these: what most never need is made when it is needed.
    """

    handle: TaskHandle | None
    """None once it is over: what is left in the agenda keeps no handle alive."""
    since: float
    expects_callback: bool
    at: float = math.inf
    """When it is looked at next."""
    seen_s: float = 0.0
    """The age at which it was last seen running; infinite until an older task was seen for the first time."""
    looked_at: float = -math.inf
    setback: Setback | None = None
    is_rung: bool = False
    is_queued: bool = False
    is_looking: bool = False

    @property
    def looked_s(self) -> float:
        """Return the age at the last look; 0 before the first."""
        return 0.0 if self.looked_at == -math.inf else self.looked_at - self.since

    def need_setback(self) -> Setback:
        """Return its setback, made if it has none."""
        if self.setback is None:
            self.setback = Setback()
        return self.setback


class LookQueue:
    """Those that are due: rung ones first, then first looks, then the likeliest to have ended.

    *chance* tells how likely the task of a watch has ended since its last look. It is asked only while
    looks are short, and of all that wait at a time; a task that waited *longest_s* goes before those.
    """

    def __init__(self, chance: Callable[[Watch, float], float], *, longest_s: float) -> None:
        self._chance = chance
        self._longest_s = longest_s
        self._rung: deque[Watch] = deque()
        self._first: deque[Watch] = deque()
        self._again: deque[Watch] = deque()
        self._round: deque[Watch] = deque()
        self._round_ends = -math.inf

    def __bool__(self) -> bool:
        return bool(self._again or self._first or self._rung or self._round)

    def put(self, watch: Watch) -> None:
        """Let a watch wait for its look; one that waits already moves forward if it was rung."""
        if watch.is_queued:
            for queue in (self._first, self._again, self._round):
                with suppress(ValueError):
                    queue.remove(watch)
        watch.is_queued = True
        is_first = watch.looked_at == -math.inf
        (self._rung if watch.is_rung else self._first if is_first else self._again).append(watch)

    def pop(self, now: float) -> Watch | None:
        """Take out the watch to look at now, which may be over meanwhile; None if nobody waits."""
        queue = self._rung or self._first
        if not queue:
            self._judge(now)
            queue = self._round or self._again
        if not queue:
            return None
        watch = queue.popleft()
        watch.is_queued = False
        return watch

    def _judge(self, now: float) -> None:
        """Set the likeliest quarter of those that wait too long apart: they come first, for a while."""
        if self._round and now > self._round_ends:
            self._again.extendleft(reversed(self._round))
            self._round.clear()
        if self._round or not self._again or self._again[0].at + PATIENCE_S >= now:
            return
        waiting = [watch for watch in self._again if watch.handle is not None]
        ranked = sorted(waiting, key=lambda watch: self._rank(watch, now), reverse=True)
        self._round = deque(ranked[: max(_ROUND, len(ranked) // 4)])
        taken = set(map(id, self._round))
        self._again = deque(watch for watch in waiting if id(watch) not in taken)
        self._round_ends = now + _ROUND_S

    def _rank(self, watch: Watch, now: float) -> float:
        if now - watch.at > self._longest_s:
            return 1 + now - watch.at
        return self._chance(watch, now)

    def clear(self) -> None:
        """Forget everybody."""
        for queue in (self._rung, self._first, self._again, self._round):
            queue.clear()
