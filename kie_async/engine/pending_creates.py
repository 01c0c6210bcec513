"""Intents without a task id: on their way, of unknown outcome, or refused; and where callbacks come in."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from ..errors import CreateOutcomeUnknown, InvalidRequest, TaskTimedOut
from ..events import Counters, Source
from ..handle import HandleOwner, TaskHandle
from ..inputs.request import TaskRequest
from ..journal.base import Intent, IntentState, Journal, Totals
from ..models import TaskRecord, TaskState
from ..polling.poller import Poller
from ..wire.codes import error_for
from .reconciler import Pending, Phase, Reconciler
from .tracker import REMEMBERED, InFlight, outcome_of

_log = logging.getLogger("kie_async")


class Intents:
    """Knows every intent without a task, and takes in the callbacks of all intents.

    *confirm* reads recordInfo: the record and the callback URL in its ``param``. *confirm_callbacks*
    is the session's: None believes signed deliveries only, True none, False all.
    """

    def __init__(
        self,
        *,
        table: InFlight,
        journal: Journal,
        counters: Counters,
        callback_secrets: Sequence[bytes],
        confirm_callbacks: bool | None,
        expects_callbacks: bool,
        confirm: Callable[[str], Awaitable[tuple[TaskRecord, str | None]]],
        spawn: Callable[[Coroutine[object, object, None]], object],
    ) -> None:
        self.callback_secrets = tuple(callback_secrets)
        self.prior_totals = Totals()
        """What the journal knew at open."""
        self.poller: Poller
        self.owner: HandleOwner
        self._table = table
        self._journal = journal
        self._counters = counters
        self._confirm_callbacks = confirm_callbacks
        self._expects_callbacks = expects_callbacks
        self._pending: dict[str, Pending] = {}
        self._rejected: OrderedDict[str, None] = OrderedDict()
        self._adoption = Reconciler(
            adopt=self.adopt,
            confirm=confirm,
            is_pending=self._pending.__contains__,
            note_rejection=self.note_rejection,
            callback_secrets=self.callback_secrets,
            spawn=spawn,
        )

    @property
    def unknown_handles(self) -> list[TaskHandle]:
        """Return the handles of unknown creates that somebody may be waiting for."""
        unknown = [p for p in self._pending.values() if p.phase is Phase.UNKNOWN and p.is_awaited]
        return [pending.handle for pending in unknown if not pending.handle.is_done]

    @property
    def creating_count(self) -> int:
        """Return how many creates are on their way."""
        return sum(pending.phase is Phase.CREATING for pending in self._pending.values())

    @property
    def unknown_count(self) -> int:
        """Return how many creates of unknown outcome may have become a task."""
        return sum(pending.phase is Phase.UNKNOWN for pending in self._pending.values())

    def new_handle(self, intent: Intent, request: TaskRequest | None = None) -> TaskHandle:
        """Return a handle for an intent; its deadline is now and yet to be moved."""
        loop = asyncio.get_running_loop()
        return TaskHandle(
            owner=self.owner,
            loop=loop,
            deadline=loop.time(),
            intent_id=intent.intent_id,
            request=request,
            ref=intent.ref,
            model=intent.model,
            fingerprint=intent.fingerprint,
        )

    # --- how a create goes ---------------------------------------------------------------------

    def begin(self, handle: TaskHandle) -> None:
        """Expect a task for the handle's intent: from now on its callbacks are known."""
        self._pending[handle._intent_id] = Pending(handle)

    def cancel(self, handle: TaskHandle) -> None:
        """Forget an intent of which nothing was sent."""
        self._pending.pop(handle._intent_id, None)
        self._table.release(handle)

    def created(self, handle: TaskHandle, task_id: str, *, expects_callback: bool) -> None:
        """Join a handle to the task that the create answer named."""
        pending = self._pending.pop(handle._intent_id)
        self._table.bind(handle, task_id, expects_callback=expects_callback)
        self._counters.creates += 1
        self._table.emit("created", handle)
        if pending.held is None:
            return
        if pending.held.task_id == task_id:
            self._believe(handle, pending.held, is_signed=pending.is_held_signed)
        else:
            self.note_rejection("id of another task")

    def rejected(self, handle: TaskHandle) -> None:
        """Note that the create was refused; a callback may still prove otherwise."""
        pending = self._pending[handle._intent_id]
        self._keep_rejected(pending)
        self._table.release(handle)
        self._adoption.consider(pending)

    def unknown(self, handle: TaskHandle, error: CreateOutcomeUnknown) -> None:
        """Note that nobody knows what became of the create; the slot is free at once."""
        pending = self._pending[handle._intent_id]
        pending.phase, pending.error = Phase.UNKNOWN, error
        error.handle = handle
        self._counters.unknown_creates += 1
        _log.warning("%s", error)
        self._table.release(handle)
        self.poller.wait_for_deadline(handle)
        self._table.emit("unknown", handle)
        self._adoption.consider(pending)

    def expire(self, handle: TaskHandle) -> None:
        """Settle a handle whose deadline passed; an unknown create can be adopted even after that."""
        pending = self._pending.get(handle._intent_id)
        unknown = pending.error if pending is not None else None
        self._table.close(handle, unknown or TaskTimedOut(handle.task_id, handle.record))

    async def write_off(self, handle: TaskHandle, *, frees_ref: bool = False) -> bool:
        """Give up an unknown create; tell whether it was not adopted meanwhile.

        Raises:
            JournalError: That could not be noted.
        """
        async with self._taken(handle) as pending:
            if pending is None:
                return False
            await self._journal.mark_ended(
                handle._intent_id, IntentState.WRITTEN_OFF, reason="written off", frees_ref=frees_ref
            )
        self._table.close(handle, pending.error or TaskTimedOut(handle.task_id, handle.record))
        return True

    @asynccontextmanager
    async def _taken(self, handle: TaskHandle) -> AsyncIterator[Pending | None]:
        """Take an intent out, so that nobody else decides on it meanwhile; back it goes if that fails."""
        pending = self._pending.pop(handle._intent_id, None)
        try:
            yield pending
        except BaseException:
            if pending is not None:
                self._pending[handle._intent_id] = pending
            raise

    def _keep_rejected(self, pending: Pending) -> None:
        pending.phase = Phase.REJECTED
        self._rejected[pending.handle._intent_id] = None
        if len(self._rejected) > REMEMBERED:
            self._pending.pop(self._rejected.popitem(last=False)[0], None)

    # --- what a former process left ------------------------------------------------------------

    async def replay(self) -> None:
        """Read the journal: unknown and rejected creates can be adopted from now on.

        Raises:
            JournalError: It cannot be opened or trusted.
        """
        left = await self._journal.open()
        self.prior_totals = await self._journal.load_totals()
        for intent in left:
            pending = self._pending[intent.intent_id] = Pending(self.new_handle(intent), is_awaited=False)
            if intent.state is IntentState.REJECTED:
                self._keep_rejected(pending)
            else:
                pending.phase, pending.error = Phase.UNKNOWN, _unknown_error(intent)
                pending.error.handle = pending.handle
        unknown = [intent.intent_id for intent in left if intent.state is IntentState.UNKNOWN]
        if unknown:
            _log.warning("%d creates in the journal are of unknown outcome: %s", len(unknown), unknown)

    async def resume(self, deadline: float) -> list[TaskHandle]:
        """Return handles for every unsettled task of the journal, and for creates of unknown outcome."""
        handles = [self.revive(intent, deadline) for intent in await self._journal.list_unsettled()]
        for pending in self._pending.values():
            if pending.phase is Phase.UNKNOWN and not pending.handle.is_done:
                self._await(pending, deadline)
                handles.append(pending.handle)
        return handles

    def revive(self, intent: Intent, deadline: float) -> TaskHandle:
        """Return the handle of an intent found in the journal.

        Raises:
            CreateOutcomeUnknown: Nobody knows what became of it; its handle is on the error.
            ApiError: The service refused it in words that leave doubt, so it is not sent again.
        """
        pending = self._pending.get(intent.intent_id)
        if pending is not None and pending.error is not None:
            self._await(pending, deadline)
            raise pending.error
        if intent.state is IntentState.REJECTED:
            raise error_for(intent.code or 500, intent.reason)
        if not intent.task_id:
            raise _unknown_error(intent)
        if (known := self._table.get(intent.task_id)) is not None:
            return known
        handle = self.new_handle(intent)
        handle.deadline = deadline
        if (record := intent.read_end()) is not None:
            handle.task_id, handle._seen = intent.task_id, True
            handle._observe(record)
            handle._settle(outcome_of(record))
        else:
            expects = intent.expects_callback
            self._table.bind(handle, intent.task_id, expects_callback=expects, at_once=True)
        return handle

    def _await(self, pending: Pending, deadline: float) -> None:
        if not pending.is_awaited:
            pending.is_awaited = True
            pending.handle.deadline = deadline
            self.poller.wait_for_deadline(pending.handle)

    # --- callbacks -----------------------------------------------------------------------------

    def task_of(self, intent_id: str) -> str | None:
        """Return the task id of an intent, "" while it has none, None if the intent is not known here."""
        if (handle := self._table.with_intent(intent_id)) is not None:
            return handle.task_id
        return "" if intent_id in self._pending else self._table.settled_task(intent_id)

    def note_rejection(self, reason: str) -> None:
        """Count a delivery that was refused."""
        self._counters.reject(reason)

    def take(self, intent_id: str, record: TaskRecord, *, is_signed: bool) -> None:
        """Take in a delivery that the receiver found right."""
        handle, pending = self._table.with_intent(intent_id), self._pending.get(intent_id)
        if pending is not None:
            self._counters.callbacks_accepted += 1
            pending.held, pending.is_held_signed = record, is_signed
            self._adoption.consider(pending)
        elif handle is None or handle._is_ending:
            self._counters.callbacks_duplicate += 1
            self.poller.note_late_callback(intent_id)
        else:
            self._counters.callbacks_accepted += 1
            self._believe(handle, record, is_signed=is_signed)

    def _believe(self, handle: TaskHandle, record: TaskRecord, *, is_signed: bool) -> None:
        """Let a delivery speak if it is trusted; otherwise look for ourselves."""
        is_trusted = is_signed if self._confirm_callbacks is None else not self._confirm_callbacks
        if is_trusted:
            self._hear(handle, record)
        else:
            self.poller.ring(handle)

    def _hear(self, handle: TaskHandle, record: TaskRecord) -> None:
        """Take a record as true if it is complete; ask for the rest if it is not."""
        is_empty = record.state is TaskState.SUCCESS and not record.has_result
        if record.state is not TaskState.UNKNOWN and not is_empty:
            self._table.deliver(record, Source.CALLBACK)
        else:
            self.poller.ring(handle)

    # --- adoption ------------------------------------------------------------------------------

    async def adopt(self, handle: TaskHandle, record: TaskRecord, *, adopted_by: str) -> None:
        """Bind an intent to a task whose record was read and fits; settle it if the task has ended.

        Raises:
            InvalidRequest: The task belongs to another handle.
            JournalError: The binding could not be noted.
        """
        if self._table.get(record.task_id) is not None:
            raise InvalidRequest(f"task {record.task_id} belongs to another handle already")
        async with self._taken(handle) as pending:
            if pending is None:
                raise InvalidRequest("the outcome of this create is not unknown any more")
            await self._journal.mark_created(handle._intent_id, record.task_id, adopted_by=adopted_by)
        is_ghost = pending.phase is Phase.REJECTED
        if is_ghost:
            self._counters.ghost_creates += 1
            _log.error("task %s exists although its create was refused; it is billed", record.task_id)
        if handle.is_done:  # too late for its awaiters; journal and counts still hear the end
            handle = self.new_handle(Intent(intent_id=handle._intent_id, model=handle._model, ref=handle.ref))
            handle._seen = True
        if is_ghost or handle._seen or not pending.is_awaited:
            handle.deadline = math.inf
        self._table.bind(handle, record.task_id, expects_callback=self._expects_callbacks)
        self._table.emit("adopted", handle)
        self._hear(handle, record)


def _unknown_error(intent: Intent) -> CreateOutcomeUnknown:
    since = datetime.fromtimestamp(intent.planned_ms / 1000, tz=UTC)
    return CreateOutcomeUnknown(intent.intent_id, intent.reason, since, intent.ref)
