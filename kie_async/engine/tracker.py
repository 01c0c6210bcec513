"""The in-flight table: every task somebody waits for, and the one door through which news of it comes."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from ..errors import InvalidRequest, KieError, ResultUnreadable, TaskFailed
from ..events import Counters, EventKind, SessionEvent, Source
from ..handle import TaskHandle
from ..journal.base import Journal
from ..models import TaskRecord, TaskResult, TaskState
from ..polling.poller import Poller

REMEMBERED = 10_000
"""Settled and rejected intents whose late callbacks are still understood."""

_log = logging.getLogger("kie_async")


class InFlight:
    """The table and the door: news changes a handle nowhere else."""

    def __init__(
        self,
        *,
        journal: Journal,
        counters: Counters,
        free_slot: Callable[[], None],
        on_event: Callable[[SessionEvent], None] | None,
    ) -> None:
        self.poller: Poller
        self.detached_ids: set[str] | None = None
        """Unsettled tasks of ours that have no handle here; None while nobody counts what they cost."""
        self._journal = journal
        self._counters = counters
        self._free_slot = free_slot
        self._on_event = on_event
        self._by_task: dict[str, TaskHandle] = {}
        self._by_intent: dict[str, TaskHandle] = {}
        self._by_ref: dict[str, TaskHandle] = {}
        self._settled: OrderedDict[str, str] = OrderedDict()
        self._settling: set[asyncio.Task[None]] = set()

    # --- the table -----------------------------------------------------------------------------

    @property
    def handles(self) -> list[TaskHandle]:
        """Return the handles in the table."""
        return list(self._by_task.values())

    def __len__(self) -> int:
        return len(self._by_task)

    def get(self, task_id: str) -> TaskHandle | None:
        """Return the handle in flight for a task."""
        return self._by_task.get(task_id)

    def with_intent(self, intent_id: str) -> TaskHandle | None:
        """Return the handle in flight for an intent."""
        return self._by_intent.get(intent_id)

    def with_ref(self, ref: str) -> TaskHandle | None:
        """Return the handle in flight for a ref."""
        return self._by_ref.get(ref)

    def settled_task(self, intent_id: str) -> str | None:
        """Return the task id of an intent that settled not too long ago."""
        return self._settled.get(intent_id)

    def held_credits(self, mean: float) -> float:
        """Return what unsettled tasks will cost, those that have not told it *mean*."""
        records = [handle.record for handle in self._by_task.values()]
        told = [record.credits for record in records if record is not None and record.credits is not None]
        return sum(told) + mean * (len(records) - len(told) + len(self.detached_ids or ()))

    def bind(
        self, handle: TaskHandle, task_id: str, *, expects_callback: bool, at_once: bool = False
    ) -> None:
        """Join a handle to its task and begin to look at it.

        Raises:
            InvalidRequest: The task belongs to another handle.
        """
        if task_id in self._by_task:
            raise InvalidRequest(f"task {task_id} belongs to another handle already")
        handle.task_id = task_id
        self._by_task[task_id] = handle
        if self.detached_ids is not None:
            self.detached_ids.discard(task_id)
        if handle._intent_id and expects_callback:  # else nobody will ask for it
            self._by_intent[handle._intent_id] = handle
        if handle.ref is not None:
            self._by_ref.setdefault(handle.ref, handle)  # a ghost of a refused create finds it taken
        self.poller.watch(handle, expects_callback=expects_callback, at_once=at_once)

    # --- the door ------------------------------------------------------------------------------

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in news of a task; the first terminal record wins, the rest is silence."""
        handle = self._by_task.get(record.task_id)
        if handle is None or handle._is_ending:
            return
        before = handle.state
        handle._observe(record)
        if not record.state.is_terminal:
            if handle.state is not before:
                self.emit("updated", handle)
            return
        self.poller.ended(handle, record, source)
        if self._journal.is_durable and handle._intent_id:
            work = self._settle_durably(handle, record, source)
            settling = asyncio.get_running_loop().create_task(work, name="kie_async settle")
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
        else:
            self._journal.discard(handle._intent_id)
            self._settle(handle, record, source)

    async def _settle_durably(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        try:
            await self._journal.mark_settled(handle._intent_id, record)
        except KieError:
            # The result is here and paid; a restart would only read it again.
            _log.exception("the end of task %s could not be noted", record.task_id)
        self._settle(handle, record, source)

    def _settle(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        self._counters.credits_consumed += record.credits or 0.0
        if source is Source.CALLBACK:
            self._counters.settled_by_callback += 1
        else:
            self._counters.settled_by_poll += 1
        self.close(handle, outcome_of(record), source)

    def close(self, handle: TaskHandle, outcome: TaskResult | KieError, source: Source | None = None) -> None:
        """Settle a handle and take it out of the table; one that has settled is left alone."""
        if handle.is_done:
            return
        if self.detached_ids is not None and handle._intent_id and handle.task_id and not handle._is_ending:
            self.detached_ids.add(handle.task_id)
        self.poller.forget(handle)
        if self._by_task.get(handle.task_id) is handle:
            del self._by_task[handle.task_id]
        if handle.ref is not None and self._by_ref.get(handle.ref) is handle:
            del self._by_ref[handle.ref]
        if self._by_intent.pop(handle._intent_id, None) is not None:
            self._settled[handle._intent_id] = handle.task_id
            if len(self._settled) > REMEMBERED:
                self._settled.popitem(last=False)
        self.emit("settled", handle, source)  # first in the loop's line: awaiters find the hook told
        handle._settle(outcome)
        self.release(handle)

    def release(self, handle: TaskHandle) -> None:
        """Give the handle's slot back, if it has one."""
        if handle._has_slot:
            handle._has_slot = False
            self._free_slot()

    async def drain(self) -> None:
        """Wait until every end that was seen is noted and told."""
        while self._settling:
            await asyncio.wait(set(self._settling))

    def emit(self, kind: EventKind, handle: TaskHandle, source: Source | None = None) -> None:
        """Tell the user's hook at the loop's next turn: a callback is answered before any of their code."""
        if self._on_event is None:
            return
        event = SessionEvent(
            kind=kind,
            task_id=handle.task_id,
            ref=handle.ref,
            source=source.value if source else "",
            record=handle.record,
        )
        asyncio.get_running_loop().call_soon(self._tell, self._on_event, event)

    def _tell(self, hook: Callable[[SessionEvent], None], event: SessionEvent) -> None:
        try:
            hook(event)
        except Exception:
            _log.exception("the on_event hook raised; the session goes on")


def outcome_of(record: TaskRecord) -> TaskResult | KieError:
    """Return what awaiting a task with this terminal record yields or raises."""
    if record.state is TaskState.FAIL:
        return TaskFailed(record.task_id, record)
    if not record.has_result:
        return ResultUnreadable(record.task_id, record)
    return TaskResult(record=record)
