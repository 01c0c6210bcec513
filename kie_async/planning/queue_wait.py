"""How long a request waits for its turn: for a slot, and for a permit of the create limit. Pure.

The queue is gone through once: each request ahead takes the slot that is free first, and a permit, and
keeps the slot for as long as a task may take. What the tasks take is spread evenly over the curve.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence

import attrs

from .survival import SurvivalCurve

_MOST = 1000
"""So many running tasks, and requests ahead, are gone through; of more each stands for several."""

_GOLDEN = 0.6180339887498949
"""Its multiples modulo 1 are spread evenly, however many there are."""


@attrs.frozen
class Wait:
    """How long a request waits for its turn."""

    s: float
    """As expected."""
    deviation_s: float = 0.0
    """The standard deviation of what it will be."""


NO_WAIT = Wait(0.0)


@attrs.frozen(kw_only=True)
class Queue:
    """What stands between a request and its task, in plain numbers."""

    slots: int
    """How many tasks may be unsettled at once."""
    running_s: Sequence[float]
    """The ages of the tasks that hold a slot."""
    permits: int
    """How many creates may leave in each window."""
    window_s: float
    permits_back_s: Sequence[float] = ()
    """In how many seconds each permit comes back that is used now."""

    def waits(self, count: int, curve: SurvivalCurve) -> list[Wait]:
        """Return how long each of the first *count* in the queue waits; tasks take what *curve* says."""
        thin = math.ceil(max(self.slots, count, 1) / _MOST)
        starts = self._starts(math.ceil(count / thin), curve, thin)
        waits = [self._wait(number * thin, start, curve) for number, start in enumerate(starts)]
        return [waits[number // thin] for number in range(count)]

    def _starts(self, count: int, curve: SurvivalCurve, thin: int) -> list[tuple[float, float]]:
        """Return when each starts, and when it could if there were slots for all."""
        slots = max(1, self.slots // thin)
        running_s = self.running_s[::thin][:slots]
        free = [
            curve.end_of((number + 0.5) * _GOLDEN % 1, given_s=age_s) - age_s
            for number, age_s in enumerate(running_s)
        ]
        free += [0.0] * (slots - len(free))
        heapq.heapify(free)
        permits = max(1, self.permits // thin)
        back = deque(sorted(self.permits_back_s)[::thin][-permits:])
        back.extendleft([0.0] * (permits - len(back)))
        free_permits, starts, grid_s = deque(back), [], curve.grid_s
        for number in range(count):
            permitted_s = back.popleft()
            back.append(permitted_s + self.window_s)
            start_s = max(heapq.heappop(free), free_permits.popleft())
            free_permits.append(start_s + self.window_s)
            heapq.heappush(free, start_s + grid_s[int((number + 0.5) * _GOLDEN % 1 * len(grid_s))])
            starts.append((start_s, permitted_s))
        return starts

    def _wait(self, number: int, start: tuple[float, float], curve: SurvivalCurve) -> Wait:
        """Return a wait with its deviation: by the ends of others, and by how few ends have taught."""
        start_s, permitted_s = start
        for_slots_s = max(0.0, start_s - permitted_s)
        if not for_slots_s or not curve.mean_s:
            return Wait(start_s)
        spread = curve.deviation_s / curve.mean_s
        of_others_s = curve.deviation_s * math.sqrt(number + 1) / self.slots
        of_learning_s = min(for_slots_s, start_s * spread / math.sqrt(curve.ends or 1))
        return Wait(start_s, math.hypot(of_others_s, of_learning_s))
