"""Follows every task that somebody waits for; news changes a handle here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import math
from copy import copy
from datetime import UTC, datetime

import attrs

from .._background import BackgroundTasks
from ..callbacks.base import Delivery
from ..callbacks.silence import CallbackSilence
from ..errors import (
    CreateOutcomeUnknown,
    JournalError,
    KieError,
    ResultUnreadable,
    TaskAbandoned,
    TaskDetached,
    TaskFailed,
    TaskTimedOut,
    TransportError,
)
from ..events import Counters, Source
from ..handle import HandleOwner, TaskHandle
from ..inputs.request import TaskRequest
from ..journal.base import Journal
from ..journal.intents import ClaimSource, Intent
from ..journal.notes import log_failed_note
from ..limits.admission import Admission
from ..models import JobState, TaskRecord, TaskResult, TaskState
from ..planning.planner import Learned
from ..polling.poller import Poller
from ..wire.codes import name_task
from .binder import HandleBinder, entry_of
from .charges import Charges
from .event_hook import EventHook
from .journal_room import CANNOT_NOTE, JournalRoom
from .pending_creates import PendingCreate, PendingCreates, Phase
from .registry import CountedEnds, TaskRegistry
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
        charges: Charges,
        events: EventHook,
        callbacks: CallbackPolicy,
        owner: HandleOwner,
    ) -> None:
        self.registry = TaskRegistry()
        self.pending = PendingCreates()
        self._ends = CountedEnds()
        self.binder = HandleBinder(self.registry, self._ends, poller, admission, charges.ledger, self)
        self._poller = poller
        self._journal = journal
        self._counters = counters
        self._admission = admission
        self._charges = charges
        self._ledger = charges.ledger
        self._events = events
        self._callbacks = callbacks
        self._owner = owner
        self._background = BackgroundTasks("kie_async settle")
        self.silence = CallbackSilence(callbacks.url or "")
        self.journal_room = JournalRoom(events)
        self._is_closed = False

    # --- creates without a task ----------------------------------------------------------------

    def new_handle(self, intent: Intent, request: TaskRequest | None = None) -> TaskHandle:
        """Return a handle for an intent; its deadline is now and yet to be moved."""
        return TaskHandle(
            owner=self._owner,
            deadline=self._owner.loop.time(),
            intent_id=intent.intent_id,
            request=request,
            ref=intent.ref,
            model=intent.model,
        )

    def begin(
        self,
        intent: Intent,
        request: TaskRequest,
        former: PendingCreate | None = None,
        handle: TaskHandle | None = None,
    ) -> PendingCreate:
        """Expect a task for an intent, sent in the place of *former*: from now on its callbacks are known.

        *handle* is the one of a create that was given out before.
        """
        if handle is None:
            handle = self.new_handle(intent, request)
        else:
            handle.begin(intent.intent_id, request)
        pending = PendingCreate(intent, handle, former=former)
        if former is not None:
            former.is_replaced = True
        self.pending.add(pending)
        return pending

    def cancel(self, pending: PendingCreate) -> None:
        """Forget a create of which nothing was sent."""
        self.pending.remove(pending)
        self._release(pending)

    def mark_created(self, pending: PendingCreate, task_id: str) -> TaskHandle:
        """Join a create to the task that its answer named; return the one handle of that task."""
        self.pending.remove(pending)
        expects, handle = pending.intent.expects_callback, pending.handle
        if handle.is_done:  # abandoned on its way; journal and counts still take in the end
            handle = self.new_handle(pending.intent)
            handle.mark_retrieved()
            handle.move_deadline(pending.handle.deadline)
            self._admission.transfer(pending.handle, handle)
        handle = self.binder.bind_or_join(handle, pending.intent, task_id, expects_callback=expects)
        self._counters.creates += 1
        _log.debug("task %s was created", task_id)
        self._events.emit("created", handle)
        for claim in pending.claims.values():
            if claim.task_id != task_id:
                self._counters.reject("id of another task")
            elif claim.delivery is not None:
                self.apply(handle, claim.delivery)
        return handle

    def mark_unnoted(self, pending: PendingCreate, task_id: str) -> None:
        """Take in a task whose id could not be noted: it is adopted as soon as the journal takes it."""
        intent = pending.intent
        reason = f"task {task_id} was created and could not be noted"
        pending.phase, pending.is_awaited = Phase.UNKNOWN, False
        pending.error = CreateOutcomeUnknown(intent.intent_id, reason, datetime.now(UTC), intent.ref)
        pending.handle.mark_unknown()
        pending.add_claim(task_id, ClaimSource.ANSWER)
        self._counters.creates += 1
        self._admission.release(pending.handle)

    def mark_rejected(self, pending: PendingCreate) -> None:
        """Take in that the create was refused; a callback may still prove otherwise."""
        self.pending.give_up(pending, Phase.REJECTED)
        pending.handle.forget_request()  # nobody has this handle, and the request may be large
        self._release(pending)

    def let_go(self, handle: TaskHandle) -> None:
        """Hold the handle of a refused create no longer: it has its end, and may be all that somebody had."""
        pending = self.pending.get(handle.intent_id)
        if pending is not None and pending.phase is Phase.REJECTED:
            pending.handle = self.new_handle(pending.intent)

    def _release(self, pending: PendingCreate) -> None:
        if pending.former is not None:  # it surely created nothing
            pending.former.is_replaced = False
        self._admission.release(pending.handle)
        if self._ledger is not None:
            self._ledger.release(pending.intent.intent_id)

    def write_off(self, pending: PendingCreate) -> None:
        """Take in that a create was given up; a callback may still prove that it became a task."""
        self.pending.give_up(pending, Phase.WRITTEN_OFF)
        self.expire_pending(pending)

    def write_off_former(self, pending: PendingCreate) -> None:
        """Take in that a create may have become a task: whatever it was sent in the place of is given up."""
        former, pending.former = pending.former, None
        # One that was refused stays refused.
        if former is not None and former in self.pending and former.phase is Phase.UNKNOWN:
            self.write_off(former)

    def mark_unknown(self, pending: PendingCreate, error: CreateOutcomeUnknown) -> None:
        """Take in that nobody knows what became of the create; the slot is free at once."""
        handle = error.handle = pending.handle
        pending.phase, pending.error = Phase.UNKNOWN, copy(error)  # the other's traceback holds its body
        handle.mark_unknown()
        self._counters.unknown_creates += 1
        if self._ledger is not None:
            self._ledger.note_left(handle.intent_id)
        _log.warning("%s", error)
        # At once: nobody knows when this ends, and a few dead connections must not stop all creates. What
        # it may have cost stays counted in `usage`, and the breaker stops a row of them.
        self._admission.release(handle)
        self.await_deadline(handle)
        self._events.emit("unknown", handle)

    def adopt(self, pending: PendingCreate, record: TaskRecord) -> None:
        """Join a create to the task it turned out to have become; that is noted already."""
        self.pending.remove(pending)
        is_ghost = pending.phase in {Phase.REJECTED, Phase.WRITTEN_OFF}
        if is_ghost:
            self._counters.ghost_creates += 1
            if self._ledger is not None:
                self._ledger.reopen(pending.intent.intent_id, pending.intent.model)
            _log.error(
                "task %s exists although its create was %s; it is billed", record.task_id, pending.phase.value
            )
        handle, intent = pending.handle, pending.intent
        if is_ghost and pending.is_replaced:  # whoever asks for its ref means the later one
            intent = attrs.evolve(intent, ref=None)
        # Too late for its awaiters; journal and counts still take in the end.
        if (is_late := handle.is_done) or intent is not pending.intent:
            handle = self.new_handle(intent)
            handle.mark_retrieved()
        # Nobody waits with a clock: it is followed to its end, for the journal and the budget.
        if is_ghost or is_late or not pending.is_awaited:
            handle.move_deadline(math.inf)
        expects = self._callbacks.is_received
        handle = self.binder.bind_or_join(
            handle, intent, record.task_id, expects_callback=expects, is_read=True
        )
        self._events.emit("adopted", handle)
        self._apply_record(handle, record)
        claim = pending.find_claim(record.task_id)
        delivery = None if claim is None else claim.delivery
        if delivery is not None and self._callbacks.trusts(delivery):  # else: the record was just read
            self.apply(handle, delivery)

    def note_nothing_created(self, pending: PendingCreate) -> None:
        """Take in that the worker which was to send a create, and was taken for dead, has not sent it."""
        self.pending.remove(pending)
        handle = pending.handle
        self._poller.forget(entry_of(handle))
        handle.track(None)
        handle.settle(TransportError("nothing was sent: the worker that was to send it found out in time"))

    def adopt_noted(self, pending: PendingCreate, intent: Intent) -> None:
        """Join a create to the task that another worker, or a person, found it to have become."""
        self.pending.remove(pending)
        handle = pending.handle
        if handle.is_done:  # too late for its awaiters
            return
        if not pending.is_awaited:
            handle.move_deadline(math.inf)
        if intent.is_of_another:
            self.binder.follow(handle, intent)
        else:
            expects = self._callbacks.is_received
            handle = self.binder.bind_or_join(handle, intent, intent.task_id, expects_callback=expects)
        self._events.emit("adopted", handle)

    def await_deadline(self, handle: TaskHandle) -> None:
        """Wait for the deadline of a handle that has no task to poll."""
        self._poller.forget(entry_of(handle))
        handle.track(self._poller.track_deadline(handle.intent_id, handle.deadline))
        if self._is_closed:
            self.expire(handle.intent_id)

    # --- tasks ---------------------------------------------------------------------------------

    def note_bound(self, handle: TaskHandle) -> None:
        """Let go of a handle that was bound too late: whoever asked waited for the journal meanwhile."""
        if self._is_closed:
            self.settle(handle, TaskDetached(handle.task_id, handle.record))

    def attach(self, task_id: str, deadline: float) -> TaskHandle:
        """Return the handle of a task, a new one unless it is in flight here."""
        handle = self.registry.by_task(task_id)
        if handle is None:
            handle = self.new_handle(Intent(intent_id="", model=""))
            handle.move_deadline(deadline)
            self.binder.bind(handle, task_id, expects_callback=False, at_once=True)
            if self._journal.is_durable:
                self._background.spawn(self._join_noted(handle))
        return handle

    async def _join_noted(self, handle: TaskHandle) -> None:
        """Join a handle to the create that the journal knows of its task."""
        try:
            intent = await self._journal.find_by_task(handle.task_id)
        except JournalError as exc:
            _log.info("the journal could not be asked for task %s: %s", handle.task_id, exc)
            return
        if intent is None:
            self._poller.mark_foreign(entry_of(handle))
        if intent is None or handle.is_done:
            return
        self.binder.join(handle, intent)
        if (record := intent.read_end()) is not None:
            handle.observe(record)
            self.settle(handle, outcome_of(record))

    # --- news ----------------------------------------------------------------------------------

    def apply(self, handle: TaskHandle, delivery: Delivery) -> None:
        """Let a callback speak if it is trusted and complete; otherwise poll at once."""
        if self._callbacks.trusts(delivery):
            self._apply_record(handle, delivery.record)
        else:
            self._poller.poll_now(entry_of(handle))

    def _apply_record(self, handle: TaskHandle, record: TaskRecord) -> None:
        """Take a record as true if it is complete; poll for the rest if it is not."""
        if record.is_complete:
            self.deliver(record, Source.CALLBACK)
        else:
            self._poller.poll_now(entry_of(handle))

    def note_duplicate(self, intent_id: str) -> None:
        """Take in a callback for a task whose end is known already."""
        _log.debug("a callback came again, for intent %s", intent_id)
        self._counters.callbacks_duplicate += 1
        self._poller.note_late_callback(intent_id)

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in one observation of a task; the first terminal record wins, later ones change nothing."""
        handle = self.registry.by_task(record.task_id)
        if handle is None or handle.is_settling:
            return
        has_changed = handle.observe(record)
        for twin in self.binder.twins_of(record.task_id):
            twin.observe(record)
        if not record.state.is_terminal:
            self._note_hold(handle, record.credits)
            if has_changed:
                self._events.emit("updated", handle)
            return
        if (entry := entry_of(handle)) is not None:
            learned = self._poller.complete(entry, record, source, handle.intent_id)
            if learned is not None:
                self._background.spawn(self.save_learned(learned))
            if source is Source.POLL and entry.expects_callback:
                self._note_silence()
        if self._journal.is_durable:
            self._background.spawn(self._note_and_settle(handle, record, source))
        else:
            self._journal.discard(handle.intent_id)
            self._settle_ended(handle, record, source)

    def _note_hold(self, handle: TaskHandle, credits: float | None) -> None:
        """Take in what the service holds for a task; the journal notes it once."""
        if self._ledger is not None and self._ledger.note_hold(handle.intent_id, credits) and credits:
            self._background.spawn(self._save_hold(handle.intent_id, credits))

    async def _save_hold(self, intent_id: str, credits: float) -> None:
        with log_failed_note(f"what is held for intent {intent_id}"):
            await self._journal.mark_held(intent_id, credits)

    def _note_silence(self) -> None:
        """Take in that a poll, and no callback, brought an end."""
        if warning := self.silence.note_end(asyncio.get_running_loop().time()):
            _log.warning("%s", warning)

    async def _note_and_settle(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        try:
            if not handle.intent_id:
                await self._join_noted(handle)
            if handle.intent_id and not handle.is_done:
                await self._journal.mark_settled(handle.intent_id, record)
                self.journal_room.note_room()
        except CANNOT_NOTE as exc:
            self.journal_room.note_failure(exc)
        except KieError as exc:  # the result is here and paid; a restart would only read it again
            _log.error("the end of task %s could not be noted: %s", record.task_id, exc)
        self._settle_ended(handle, record, source)

    def _settle_ended(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        if self._ledger is not None:  # by intent, once: it may have been attached, and ended, before
            is_failed = record.state is TaskState.FAIL
            self._ledger.settle(handle.intent_id, record.credits or 0.0 if is_failed else record.credits)
        if not handle.is_done and self._ends.count(handle.task_id):
            self._counters.settle(record, source)
            self._charges.learn_end(handle, record.credits)
            end = JobState.DONE if record.state is TaskState.SUCCESS else JobState.FAILED
            _log.debug("task %s is %s, told by %s", record.task_id, end, source)
        self.settle(handle, outcome_of(record), source)

    def give_up(self, key: str, error: KieError) -> None:
        """Settle a task that the service keeps refusing to show."""
        if (handle := self.registry.by_task(key)) is not None:
            self.settle(handle, name_task(error, key))

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

    def outlast_weather(self, handle: TaskHandle) -> None:
        """Let the deadline of a handle wait for an answer while polls fail."""
        self._poller.outlast_weather(entry_of(handle))

    def abandon(self, handle: TaskHandle) -> None:
        """Settle a handle that its user gave up; see `TaskHandle.abandon`."""
        handle = self.registry.by_task(handle.task_id) or handle  # the one that its twins go along with
        if not handle.is_done and not handle.is_settling:
            self.settle(handle, TaskAbandoned(handle.task_id, handle.record, handle.intent_id))

    def settle(
        self, handle: TaskHandle, outcome: TaskResult | KieError, source: Source | None = None
    ) -> None:
        """Settle a handle and stop tracking it; a second call does nothing."""
        if handle.is_done:
            return
        if self._ledger is not None and handle.intent_id and handle.task_id and not handle.is_settling:
            self._ledger.note_left(handle.intent_id)
        self._poller.forget(entry_of(handle))
        handle.track(None)
        self._ends.forget(handle.task_id)
        self.binder.unfollow(handle)
        self.registry.remove(handle)
        self._events.emit("settled", handle, source)  # before the awaiters: they find the hook called
        handle.settle(outcome)
        for twin in self.binder.take_twins(handle.task_id):
            twin.settle(outcome)
        self._admission.release(handle)

    def detach_all(self) -> None:
        """Settle whoever waits still, and from now on whoever comes too late: the session is closed."""
        self._is_closed = True
        for handle in self.registry.handles:
            self.settle(handle, TaskDetached(handle.task_id, handle.record))
        for handle in self.pending.unknown_handles:
            self.expire(handle.intent_id)

    async def drain(self) -> None:
        """Wait until every end that was seen is noted and settled."""
        await self._background.drain()

    # --- learned -------------------------------------------------------------------------------

    async def save_learned(self, learned: Learned) -> None:
        """Note what the poller has learned, for the next session."""
        try:
            await self._journal.save_durations(self._charges.add_to(learned))
        except JournalError as exc:  # the next session begins with less; nothing that was paid is lost
            _log.info("what was learned could not be noted: %s", exc)


def outcome_of(record: TaskRecord) -> TaskResult | KieError:
    """Return what awaiting a task with this terminal record yields or raises."""
    if record.state is TaskState.FAIL:
        return TaskFailed(record.task_id, record)
    if not record.is_complete:
        return ResultUnreadable(record.task_id, record)
    return TaskResult(record=record)
