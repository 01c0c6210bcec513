"""The in-flight table: every task somebody waits for, and the one door through which news of it comes."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import Enum

import attrs

from .errors import (
    ApiError,
    CreateOutcomeUnknown,
    InvalidRequest,
    KieError,
    NotFound,
    RateLimited,
    ResultUnreadable,
    ServerError,
    TaskFailed,
    TaskTimedOut,
    TransportError,
)
from .handle import TaskHandle
from .journal import Journal
from .models import Counters, EventKind, SessionEvent, TaskRecord, TaskResult
from .poller import Poller, Source
from .signing import is_address
from .states import TaskState

_REMEMBERED = 10_000
_ADOPTION_WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_log = logging.getLogger("kie_async")


class _Phase(Enum):
    """How far an intent of ours has come, until it has a task id."""

    CREATING = "creating"
    UNKNOWN = "unknown"
    REFUSED = "refused"


@attrs.define(eq=False)
class _Pending:
    """An intent without a task id."""

    handle: TaskHandle
    phase: _Phase = _Phase.CREATING
    held: TaskRecord | None = None
    """A delivery that outran the create answer; one per intent."""
    is_held_signed: bool = False
    is_adopting: bool = False
    error: CreateOutcomeUnknown | None = None


class InFlight:
    """The table and the door. News changes a handle nowhere else.

    *confirm* reads recordInfo: the record and the callback URL in its ``param``. *trusts_signed* and
    *trusts_all* say whose deliveries settle a handle by themselves; the others only ring.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        counters: Counters,
        callback_secrets: Sequence[bytes],
        confirm_callbacks: bool | None,
        confirm: Callable[[str], Awaitable[tuple[TaskRecord, str | None]]],
        spawn: Callable[[Coroutine[object, object, None]], object],
        free_slot: Callable[[], None],
        on_event: Callable[[SessionEvent], None] | None,
    ) -> None:
        self.callback_secrets = tuple(callback_secrets)
        self.poller: Poller
        self._journal = journal
        self._counters = counters
        self._confirm_callbacks = confirm_callbacks
        self._confirm = confirm
        self._spawn = spawn
        self._free_slot = free_slot
        self._on_event = on_event
        self._by_task: dict[str, TaskHandle] = {}
        self._by_intent: dict[str, TaskHandle] = {}
        self._pending: dict[str, _Pending] = {}
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._settled: OrderedDict[str, str] = OrderedDict()

    # --- the table -----------------------------------------------------------------------------

    @property
    def handles(self) -> list[TaskHandle]:
        """Return the handles in flight, those with unknown creates included."""
        unknown = [p.handle for p in self._pending.values() if p.phase is _Phase.UNKNOWN]
        return [*self._by_task.values(), *unknown]

    def __len__(self) -> int:
        return len(self._by_task)

    @property
    def committed(self) -> int:
        """Return how many tasks were created or may have been, those on their way included."""
        on_their_way = sum(p.phase is _Phase.CREATING for p in self._pending.values())
        return self._counters.creates + self._counters.unknown_creates + on_their_way

    @property
    def committed_credits(self) -> float:
        """Return what was consumed, and what is held for tasks in flight as far as their records say."""
        held = sum((h.record.credits or 0.0) for h in self._by_task.values() if h.record)
        return self._counters.credits_consumed + held

    def get(self, task_id: str) -> TaskHandle | None:
        """Return the handle in flight for a task."""
        return self._by_task.get(task_id)

    def begin(self, handle: TaskHandle) -> None:
        """Expect a task for the handle's intent: from now on its callbacks are known."""
        self._pending[handle._intent_id] = _Pending(handle)

    def cancel(self, handle: TaskHandle) -> None:
        """Forget an intent of which nothing was sent."""
        self._pending.pop(handle._intent_id, None)
        self._release(handle)

    def refuse(self, handle: TaskHandle) -> None:
        """Note that the create was refused; a callback may still prove otherwise."""
        pending = self._pending[handle._intent_id]
        pending.phase = _Phase.REFUSED
        self._refused[handle._intent_id] = None
        if len(self._refused) > _REMEMBERED:
            self._pending.pop(self._refused.popitem(last=False)[0], None)
        self._release(handle)
        self._adopt_held(pending)

    def unknown(self, handle: TaskHandle, error: CreateOutcomeUnknown) -> None:
        """Note that nobody knows what became of the create; the slot is free at once."""
        pending = self._pending[handle._intent_id]
        pending.phase, pending.error = _Phase.UNKNOWN, error
        error.handle = handle
        self._counters.unknown_creates += 1
        _log.warning("%s", error)
        self._release(handle)
        self.poller.watch_deadline(handle)
        self._emit("unknown", handle)
        self._adopt_held(pending)

    def bind(self, handle: TaskHandle, task_id: str) -> None:
        """Join a handle to its task: an answer named it, or an adoption proved it.

        Raises:
            InvalidRequest: The task belongs to another handle.
        """
        if task_id in self._by_task:
            raise InvalidRequest(f"task {task_id} belongs to another handle already")
        pending = self._pending.pop(handle._intent_id, None)
        handle.task_id = task_id
        self._by_task[task_id] = handle
        if handle._intent_id:
            self._by_intent[handle._intent_id] = handle
        if pending is not None and pending.phase is _Phase.CREATING:
            self._counters.creates += 1
        self._emit("created", handle)
        if pending is not None and pending.held is not None:
            self._take_held(pending.held, handle, is_signed=pending.is_held_signed)

    def _take_held(self, record: TaskRecord, handle: TaskHandle, *, is_signed: bool) -> None:
        if record.task_id == handle.task_id:
            self._believe(handle, record, is_signed=is_signed)
        else:
            self.note_rejection("id of another task")

    # --- the door ------------------------------------------------------------------------------

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in news of a task; the first terminal record wins, the rest is silence."""
        handle = self._by_task.get(record.task_id)
        if handle is None or handle._is_ending:
            return
        before = handle.state
        handle._observe(record)
        if record.state.is_terminal:
            handle._is_ending = True
            self.poller.forget(handle)
            if self._journal.is_durable and handle._intent_id:
                self._spawn(self._settle_durably(handle, record, source))
            else:
                self._settle(handle, record, source)
        elif handle.state is not before:
            self._emit("updated", handle)

    async def _settle_durably(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        try:
            await self._journal.settled(handle._intent_id, record)
        except KieError as exc:
            # The result is here and paid; a restart would only read it again.
            _log.error("the end of task %s could not be written: %s", record.task_id, exc)
        self._settle(handle, record, source)

    def _settle(self, handle: TaskHandle, record: TaskRecord, source: Source) -> None:
        self._counters.credits_consumed += record.credits or 0.0
        if source is Source.CALLBACK:
            self._counters.settled_by_callback += 1
        else:
            self._counters.settled_by_poll += 1
        self.close(handle, _outcome(record), source)

    def close(self, handle: TaskHandle, outcome: TaskResult | KieError, source: Source | None = None) -> None:
        """Settle a handle and take it out of the table."""
        self.poller.forget(handle)
        if self._by_task.get(handle.task_id) is handle:
            del self._by_task[handle.task_id]
        intent_id = handle._intent_id
        if self._by_intent.pop(intent_id, None) is not None:
            self._settled[intent_id] = handle.task_id
            if len(self._settled) > _REMEMBERED:
                self._settled.popitem(last=False)
        handle._settle(outcome)
        self._release(handle)
        self._emit("settled", handle, source)

    def expire(self, handle: TaskHandle) -> None:
        """Settle a handle whose deadline passed."""
        pending = self._pending.pop(handle._intent_id, None)
        unknown = pending.error if pending is not None else None
        self.close(handle, unknown or TaskTimedOut(handle.task_id, handle.record))

    def _release(self, handle: TaskHandle) -> None:
        if handle._has_slot:
            handle._has_slot = False
            self._free_slot()

    def _emit(self, kind: EventKind, handle: TaskHandle, source: Source | None = None) -> None:
        if self._on_event is None:
            return
        event = SessionEvent(
            kind=kind,
            task_id=handle.task_id,
            ref=handle.ref,
            source=source.value if source else "",
            record=handle.record,
        )
        try:
            self._on_event(event)
        except Exception:
            _log.exception("the on_event hook raised; the session goes on")

    # --- callbacks -----------------------------------------------------------------------------

    def task_of(self, intent_id: str) -> str | None:
        """Return the task id of an intent, "" while it has none, None if the intent is not known here."""
        if (handle := self._by_intent.get(intent_id)) is not None:
            return handle.task_id
        return "" if intent_id in self._pending else self._settled.get(intent_id)

    def note_rejection(self, reason: str) -> None:
        """Count a delivery that was refused."""
        self._counters.reject(reason)

    def take(self, intent_id: str, record: TaskRecord, *, is_signed: bool) -> None:
        """Take in a delivery that the receiver found right."""
        handle, pending = self._by_intent.get(intent_id), self._pending.get(intent_id)
        if pending is None and (handle is None or handle._is_ending):
            self._counters.callbacks_duplicate += 1
            return
        self._counters.callbacks_accepted += 1
        if handle is not None:
            self._believe(handle, record, is_signed=is_signed)
        elif pending is not None:
            pending.held, pending.is_held_signed = record, is_signed
            if pending.phase is not _Phase.CREATING:
                self._adopt_held(pending)

    def _believe(self, handle: TaskHandle, record: TaskRecord, *, is_signed: bool) -> None:
        """Let a delivery speak if it is trusted and complete; otherwise look for ourselves."""
        is_trusted = is_signed if self._confirm_callbacks is None else not self._confirm_callbacks
        is_empty = record.state is TaskState.SUCCESS and not record.has_result
        if is_trusted and record.state is not TaskState.UNKNOWN and not is_empty:
            self.deliver(record, Source.CALLBACK)
        else:
            self.poller.ring(handle)

    # --- adoption ------------------------------------------------------------------------------

    def _adopt_held(self, pending: _Pending) -> None:
        if pending.held is not None and not pending.is_adopting:
            pending.is_adopting = True
            self._spawn(self._adopt(pending))

    async def _adopt(self, pending: _Pending) -> None:
        """Bind an intent to the task a delivery named, if the service's own record proves it."""
        try:
            while pending.held is not None and pending.handle._intent_id in self._pending:
                record, pending.held = pending.held, None
                await self._try_to_adopt(pending, record.task_id)
        finally:
            pending.is_adopting = False

    async def _try_to_adopt(self, pending: _Pending, task_id: str) -> None:
        handle = pending.handle
        found = await self._confirmed(task_id)
        if found is None or handle._intent_id not in self._pending:
            return
        record, url = found
        if url is None or not self._is_address_of(handle, url) or not _fits(handle, record):
            self.note_rejection("adoption of another task")
            return
        await self.adopt(handle, record, adopted_by="callback")

    async def adopt(self, handle: TaskHandle, record: TaskRecord, *, adopted_by: str) -> None:
        """Bind an intent to a task whose record was read and fits; settle it if the task has ended.

        Raises:
            InvalidRequest: The task belongs to another handle.
            JournalError: The binding could not be written.
        """
        pending = self._pending.get(handle._intent_id)
        await self._journal.created(handle._intent_id, record.task_id, adopted_by=adopted_by)
        if pending is not None and pending.phase is _Phase.REFUSED:
            self._counters.ghost_creates += 1
            _log.error("task %s exists although its create was refused; it is billed", record.task_id)
        self.poller.forget(handle)
        self.bind(handle, record.task_id)
        self._emit("adopted", handle)
        self.poller.watch(handle, expects_callback=True)
        self.deliver(record, Source.CALLBACK)

    async def _confirmed(self, task_id: str) -> tuple[TaskRecord, str | None] | None:
        for wait_s in _ADOPTION_WAITS_S:
            await asyncio.sleep(wait_s)
            try:
                return await self._confirm(task_id)
            except (TransportError, RateLimited, ServerError, NotFound) as exc:
                _log.info("task %s could not be read for adoption yet: %s", task_id, exc)
            except ApiError as exc:
                if exc.code != 422:  # "recordInfo is null": not visible yet
                    _log.warning("task %s cannot be adopted: %s", task_id, exc)
                    return None
        return None

    def _is_address_of(self, handle: TaskHandle, url: str) -> bool:
        intent_id, _, mac = url.rpartition("/")
        is_ours = is_address(handle._intent_id, mac, callback_secrets=self.callback_secrets)
        return is_ours and intent_id.endswith("/" + handle._intent_id)


def _fits(handle: TaskHandle, record: TaskRecord) -> bool:
    """Tell whether a record can be of the task the handle asked for."""
    return handle.request is None or not record.model or record.model == handle.request.model


def _outcome(record: TaskRecord) -> TaskResult | KieError:
    if record.state is TaskState.FAIL:
        return TaskFailed(record.task_id, record)
    if not record.has_result:
        return ResultUnreadable(record.task_id, record)
    return TaskResult(record=record)
