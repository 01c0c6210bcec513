"""Says how long tasks still take: of what was learned of their models, the queue and the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import attrs

from ..handle import TaskHandle
from ..inputs.durations import MODEL_DURATIONS_S
from ..limits.rate_limiter import Permits
from ..models import Estimate, TaskState
from ..planning.estimate import MEDIAN, estimate
from ..planning.queue_wait import NO_WAIT, Queue, Wait
from ..planning.survival import SurvivalCurve
from ..polling.entry import PollEntry
from ..polling.poller import Poller
from .binder import entry_of
from .registry import TaskRegistry
from .settings import Settings

_FRESH_S, _FRESH_S_PER_TASK = 1.0, 5e-5
"""So long what was reckoned holds, and longer the more tasks it was reckoned from."""


@attrs.define
class _Shown:
    """What was shown of a handle: since when it is waited for, and how far it had come."""

    since: float
    progress: float = 0.0


class Estimates:
    """Estimates what is left for handles; what one asks for serves all others of its model for a second."""

    def __init__(
        self,
        poller: Poller,
        registry: TaskRegistry,
        create_permits: Permits,
        settings: Settings,
        *,
        now: Callable[[], float],
    ) -> None:
        self._poller = poller
        self._registry = registry
        self._now = now
        self._create_permits = create_permits
        self._slots = settings.max_in_flight
        self._creates = settings.limits.create
        self._curves: dict[str, tuple[float, SurvivalCurve | None]] = {}
        self._waits: dict[str, tuple[float, Sequence[Wait]]] = {}
        # Beside the handles, of which there may be a hundred thousand: few are asked.
        self._shown: WeakKeyDictionary[TaskHandle, _Shown] = WeakKeyDictionary()

    def expected_s(self, model: str) -> float | None:
        """Return how long a task of a model takes in the median; None if nobody knows."""
        curve = self._curve(model)
        return None if curve is None else round(curve.end_of(MEDIAN), 3)  # the curve is one of logarithms

    def of(self, handle: TaskHandle, position: int | None) -> Estimate | None:
        """Return what is left for a handle, which has a place in the queue or is past it.

        None if nobody knows its model, and where there is nothing to wait for.
        """
        is_over = handle.is_done or handle.is_settling or handle.state is TaskState.UNKNOWN
        model = handle.model or (handle.record.model if handle.record is not None else "")
        curve = None if is_over else self._curve(model)
        if curve is None:
            return None
        now, entry = self._now(), self._entry_of(handle)
        began_at = now if entry is None else min(entry.begun_at, now)
        shown = self._shown.get(handle) or self._shown.setdefault(handle, _Shown(began_at))
        shown.since = min(shown.since, began_at)
        found = estimate(
            curve,
            now - began_at,
            wait=NO_WAIT if position is None else self._wait(model, curve, position),
            elapsed_s=now - shown.since,
            progress=shown.progress,
        )
        shown.progress = found.progress
        return found

    def _entry_of(self, handle: TaskHandle) -> PollEntry | None:
        """Return what the poller knows of the task, also where it is polled for another handle."""
        polled = self._registry.by_task(handle.task_id) if handle.task_id else None
        return entry_of(handle if polled is None else polled)

    def _curve(self, model: str) -> SurvivalCurve | None:
        made = self._curves.get(model)
        if made is None or self._is_stale(made[0]):
            median_s = MODEL_DURATIONS_S.get(model)
            assumed = None if median_s is None else SurvivalCurve.assumed(median_s)
            made = self._now(), self._poller.survival(model) or assumed
            if made[1] is not None:
                self._curves[model] = made
        return made[1]

    def _wait(self, model: str, curve: SurvivalCurve, position: int) -> Wait:
        made, now = self._waits.get(model), self._now()
        if made is None or self._is_stale(made[0]) or len(made[1]) <= position:
            count = max(position + 1, 0 if made is None else len(made[1]))
            made = self._waits[model] = now, self._queue().waits(count, curve)
        wait = made[1][position]
        return attrs.evolve(wait, s=max(0.0, wait.s - (now - made[0])))

    def _queue(self) -> Queue:
        now = self._now()
        return Queue(
            slots=self._slots,
            running_s=[now - entry.begun_at for entry in self._poller.list_running()],
            permits=self._creates.count,
            window_s=self._creates.per_s,
            permits_back_s=self._create_permits.list_back_s(),
        )

    def _is_stale(self, made_at: float) -> bool:
        fresh_s = _FRESH_S + len(self._poller) * _FRESH_S_PER_TASK
        return self._now() - made_at >= fresh_s
