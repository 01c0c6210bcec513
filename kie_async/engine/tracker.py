"""Follows every task that somebody waits for; news changes a handle here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable

from .._background import BackgroundTasks
from ..callbacks.base import Delivery
from ..errors import (
    CreateOutcomeUnknown,
    JournalError,
    KieError,
    ResultUnreadable,
    TaskAbandoned,
    TaskFailed,
    TaskTimedOut,
)
from ..events import Counters, Source
from ..handle import HandleOwner, TaskHandle
from ..inputs.request import TaskRequest
from ..journal.base import Intent, Journal, Totals
from ..limits.admission import Admission
from ..limits.budget import Usage
from ..models import TaskRecord, TaskResult, TaskState
from ..planning.planner import Learned
from ..polling.entry import PollEntry
from ..polling.poller import Poller
from .event_hook import EventHook
from .pending_creates import PendingCreate, PendingCreates, Phase
from .registry import TaskRegistry
from .settings import CallbackPolicy

_log = logging.getLogger("kie_async")


class TaskTracker:
    """Binds handles to tasks, takes in what polls and callbacks say of them, and settles them.

    It is the poller's `PollSink`. Creates without a task id are in `pending`, tasks in `registry`.
    """

    def __init__(
        self,
        poller: Poller,
        journal: Journal,
        counters: Counters,
        admission: Admission,
        events: EventHook,
        callbacks: CallbackPolicy,
        owner: HandleOwner,
    ) -> None:
        self.registry = TaskRegistry()
        self.pending = PendingCreates()
        self._poller = poller
        self._journal = journal
        self._counters = counters
        self._admission = admission
        self._events = events
        self._callbacks = callbacks
        self._owner = owner
        self._background = BackgroundTasks("kie_async settle")
        self._prior = Totals()
        self._detached_ids: set[str] | None = None
        """Unsettled tasks of ours that have no handle here; None while nobody counts what they cost."""

    # --- creates without a task ----------------------------------------------------------------

    def new_handle(self, intent: Intent, request: TaskRequest | None = None) -> TaskHandle:
        """Return a handle for an intent; its deadline is now and yet to be moved."""
        loop = asyncio.get_running_loop()
        return TaskHandle(
            owner=self._owner,
            loop=loop,
            deadline=loop.time(),
            intent_id=intent.intent_id,
            request=request,
            ref=intent.ref,
            model=intent.model,
        )

    def begin(self, intent: Intent, request: TaskRequest | None) -> PendingCreate:
        """Expect a task for an intent: from now on its callbacks are known."""
        pending = PendingCreate(intent, self.new_handle(intent, request))
        self.pending.add(pending)
        return pending

    def cancel(self, pending: PendingCreate) -> None:
        """Forget a create of which nothing was sent."""
        self.pending.remove(pending)
        self._admission.release(pending.handle)

    def mark_created(self, pending: PendingCreate, task_id: str) -> None:
        """Join a handle to the task that the create answer named."""
        self.pending.remove(pending)
        intent, handle = pending.intent, pending.handle
        self.bind(handle, task_id, intent.fingerprint, expects_callback=intent.expects_callback)
        self._counters.creates += 1
        self._events.emit("created", handle)
        # A callback that outran this answer was kept, since only the answer says whose task it is.
        if (delivery := pending.delivery) is None:
            return
        if delivery.record.task_id == task_id:
            self.apply(handle, delivery)
        else:
            self._counters.reject("id of another task")

    def mark_rejected(self, pending: PendingCreate) -> None:
        """Take in that the create was refused; a callback may still prove otherwise."""
        self.pending.mark_rejected(pending)
        self._admission.release(pending.handle)

    def mark_unknown(self, pending: PendingCreate, error: CreateOutcomeUnknown) -> None:
        """Take in that nobody knows what became of the create; the slot is free at once."""
        handle = error.handle = pending.handle
        pending.phase, pending.error = Phase.UNKNOWN, error
        handle.mark_unknown()
        self._counters.unknown_creates += 1
        _log.warning("%s", error)
        # At once: nobody knows when this ends, and a few dead connections must not stop all creates. What
        # it may have cost stays counted in `usage`, and the breaker stops a row of them.
        self._admission.release(handle)
        self.await_deadline(handle)
        self._events.emit("unknown", handle)

    def adopt(self, pending: PendingCreate, record: TaskRecord) -> None:
        """Join the handle of a create to the task it turned out to have become; that is noted already."""
        self.pending.remove(pending)
        intent, handle = pending.intent, pending.handle
        is_ghost, is_late = pending.phase is Phase.REJECTED, handle.is_done
        if is_ghost:
            self._counters.ghost_creates += 1
            _log.error("task %s exists although its create was refused; it is billed", record.task_id)
        if is_late:  # too late for its awaiters; journal and counts still hear the end
            handle = self.new_handle(intent)
            handle.mark_retrieved()
        # Nobody waits with a clock: it is followed to its end, for the journal and the budget.
        if is_ghost or is_late or not pending.is_awaited:
            handle.move_deadline(math.inf)
        is_expected = self._callbacks.is_received
        self.bind(handle, record.task_id, intent.fingerprint, expects_callback=is_expected)
        self._events.emit("adopted", handle)
        self._apply_record(handle, record)
        if (delivery := pending.delivery) is not None and delivery.record.task_id == record.task_id:
            self.apply(handle, delivery)

    def await_deadline(self, handle: TaskHandle) -> None:
        """Wait for the deadline of a handle that has no task to poll."""
        self._poller.forget(_entry_of(handle))
        handle.track(self._poller.track_deadline(handle.intent_id, handle.deadline))

    # --- tasks ---------------------------------------------------------------------------------

    def bind(
        self,
        handle: TaskHandle,
        task_id: str,
        fingerprint: bytes = b"",
        *,
        expects_callback: bool,
        at_once: bool = False,
    ) -> None:
        """Join a handle to its task and begin to poll it.

        Raises:
            InvalidRequest: The task belongs to another handle.
        """
        before = handle.task_id
        handle.bind(task_id)
        try:
            self.registry.add(handle, fingerprint=fingerprint, expects_callback=expects_callback)
        except BaseException:
            handle.bind(before)
            raise
        if self._detached_ids is not None:
            self._detached_ids.discard(task_id)
        self._poller.forget(_entry_of(handle))
        entry = self._poller.track(
            task_id,
            model=handle.model,
            deadline=handle.deadline,
            expects_callback=expects_callback,
            at_once=at_once,
        )
        handle.track(entry)

    def attach(self, task_id: str, deadline: float) -> TaskHandle:
        """Return the handle of a task, a new one unless it is in flight here."""
        handle = self.registry.by_task(task_id)
        if handle is None:
            handle = self.new_handle(Intent(intent_id="", model=""))
            handle.move_deadline(deadline)
            self.bind(handle, task_id, expects_callback=False, at_once=True)
        return handle

    # --- news ----------------------------------------------------------------------------------

    def apply(self, handle: TaskHandle, delivery: Delivery) -> None:
        """Let a callback speak if it is trusted and complete; otherwise poll at once."""
        if self._callbacks.trusts(delivery):
            self._apply_record(handle, delivery.record)
        else:
            self._poller.poll_now(_entry_of(handle))

    def _apply_record(self, handle: TaskHandle, record: TaskRecord) -> None:
        """Take a record as true if it is complete; poll for the rest if it is not."""
        if record.is_complete:
            self.deliver(record, Source.CALLBACK)
        else:
            self._poller.poll_now(_entry_of(handle))

    def note_duplicate(self, intent_id: str) -> None:
        """Take in a callback for a task whose end is known already."""
        self._counters.callbacks_duplicate += 1
        self._poller.note_late_callback(intent_id)

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in one observation of a task; the first terminal record wins, later ones change nothing."""
        handle = self.registry.by_task(record.task_id)
        if handle is None or handle.is_settling:
            return
        has_changed = handle.observe(record)
        if not record.state.is_terminal:
            if has_changed:
                self._events.emit("updated", handle)
            return
        if (entry := _entry_of(handle)) is not None:
            self._poller.complete(entry, record, source, handle.intent_id)
            self._save_learned()
        # Committed before the handle shows it: who acts on a result finds it noted after any crash.
        if self._journal.is_durable and handle.intent_id:
            self._background.spawn(self._note_and_settle(handle, record, source))
        else:
            self._journal.discard(handle.intent_id)
            self._settle_ended(handle, record, source)

    async def _note_and_settle(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        try:
            await self._journal.mark_settled(handle.intent_id, record)
        except KieError:  # the result is here and paid; a restart would only read it again
            _log.exception("the end of task %s could not be noted", record.task_id)
        self._settle_ended(handle, record, source)

    def _settle_ended(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        self._counters.settle(record, source)
        self.settle(handle, outcome_of(record), source)

    def give_up(self, key: str, error: KieError) -> None:
        """Settle a task that the service keeps refusing to show."""
        if (handle := self.registry.by_task(key)) is not None:
            self.settle(handle, error)

    def expire(self, key: str) -> None:
        """Settle a handle whose deadline passed; an unknown create can be adopted even after that."""
        handle, pending = self.registry.by_task(key), self.pending.get(key)
        if handle is not None:
            self.settle(handle, TaskTimedOut(handle.task_id, handle.record))
        elif pending is not None and not pending.is_taken:  # else whoever decides on it names its task
            self.expire_pending(pending)

    def expire_pending(self, pending: PendingCreate) -> None:
        """Settle the handle of a create that has no task in time."""
        handle = pending.handle
        self.settle(handle, pending.error or TaskTimedOut("", handle.record, handle.intent_id))

    def expire_if_late(self, pending: PendingCreate) -> None:
        """Expire a create whose deadline passed while somebody was deciding on it."""
        is_waiting = pending.phase is Phase.UNKNOWN and pending.is_awaited
        if is_waiting and pending.handle.deadline <= asyncio.get_running_loop().time():
            self.expire_pending(pending)

    def abandon(self, handle: TaskHandle) -> None:
        """Settle a handle that its user gave up; see `TaskHandle.abandon`."""
        if not handle.is_done and not handle.is_settling:
            self.settle(handle, TaskAbandoned(handle.task_id, handle.record, handle.intent_id))

    def settle(
        self, handle: TaskHandle, outcome: TaskResult | KieError, source: Source | None = None
    ) -> None:
        """Settle a handle and stop tracking it; a second call does nothing."""
        if handle.is_done:
            return
        if self._detached_ids is not None and handle.intent_id and handle.task_id and not handle.is_settling:
            # It goes on at the service and will cost something that nobody here is going to see.
            self._detached_ids.add(handle.task_id)
        self._poller.forget(_entry_of(handle))
        handle.track(None)
        self.registry.remove(handle)
        self._events.emit("settled", handle, source)  # before the awaiters: they find the hook called
        handle.settle(outcome)
        self._admission.release(handle)

    async def drain(self) -> None:
        """Wait until every end that was seen is noted and settled."""
        await self._background.drain()

    # --- learned and spent ---------------------------------------------------------------------

    def _save_learned(self) -> None:
        if (learned := self._poller.take_learned()) is not None:
            self._background.spawn(self.save_learned(learned))

    async def save_learned(self, learned: Learned) -> None:
        """Note what the poller has learned, for the next session."""
        try:
            await self._journal.save_durations(learned)
        except JournalError as exc:  # the next session begins with less; nothing that was paid is lost
            _log.info("what was learned could not be noted: %s", exc)

    def restore_usage(self, prior: Totals, detached_ids: Iterable[str] | None) -> None:
        """Go on from what former sessions spent; with *detached_ids* count what they left unsettled."""
        self._prior = prior
        self._detached_ids = None if detached_ids is None else set(detached_ids)

    def usage(self) -> Usage:
        """Return what was spent and what may be spent already; without the create that asks."""
        counters, prior = self._counters, self._prior
        # The create that asks has begun already; it must not be held against itself.
        on_the_way = self.pending.count(Phase.CREATING) - 1
        records = [handle.record for handle in self.registry.handles]
        held = [record.credits for record in records if record is not None and record.credits is not None]
        untold = len(records) - len(held) + len(self._detached_ids or ())
        return Usage(
            tasks=prior.tasks + counters.creates + counters.unknown_creates + on_the_way,
            settled=prior.settled + counters.settled_by_callback + counters.settled_by_poll,
            spent=prior.credits + counters.credits_consumed,
            held=sum(held),
            untold=untold + on_the_way + self.pending.count(Phase.UNKNOWN),
        )


def _entry_of(handle: TaskHandle) -> PollEntry | None:
    return handle.poll_entry if isinstance(handle.poll_entry, PollEntry) else None


def outcome_of(record: TaskRecord) -> TaskResult | KieError:
    """Return what awaiting a task with this terminal record yields or raises."""
    if record.state is TaskState.FAIL:
        return TaskFailed(record.task_id, record)
    if not record.is_complete:
        return ResultUnreadable(record.task_id, record)
    return TaskResult(record=record)
