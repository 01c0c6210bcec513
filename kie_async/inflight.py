"""The in-flight table: every task somebody waits for, and the one door through which news of it comes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from enum import Enum

import attrs

from .codes import error_for
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
from .journal import Intent, IntentState, Journal
from .models import Counters, EventKind, SessionEvent, TaskRecord, TaskResult, decode_object
from .poller import Poller, Source
from .records import decode_record
from .signing import is_address
from .states import TaskState

_REMEMBERED = 10_000
_ADOPTION_WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_log = logging.getLogger("kie_async")


class _Phase(Enum):
    """How far an intent of ours has come, until it has a task id."""

    CREATING = "creating"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


@attrs.define(eq=False)
class _Pending:
    """An intent without a task id."""

    handle: TaskHandle
    phase: _Phase = _Phase.CREATING
    held: TaskRecord | None = None
    """A delivery that outran the create answer; one per intent."""
    is_held_signed: bool = False
    is_adopting: bool = False
    is_awaited: bool = True
    """False for one read from a journal that nobody has asked for yet."""
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
        new_handle: Callable[[Intent], TaskHandle],
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
        self._new_handle = new_handle
        self._on_event = on_event
        self._by_task: dict[str, TaskHandle] = {}
        self._by_intent: dict[str, TaskHandle] = {}
        self._by_ref: dict[str, TaskHandle] = {}
        self._pending: dict[str, _Pending] = {}
        self._rejected: OrderedDict[str, None] = OrderedDict()
        self._settling: set[asyncio.Task[None]] = set()
        self._spent_before = (0, 0.0)
        self._settled: OrderedDict[str, str] = OrderedDict()

    # --- the table -----------------------------------------------------------------------------

    @property
    def handles(self) -> list[TaskHandle]:
        """Return the handles that somebody may be waiting for."""
        pending = [p.handle for p in self._pending.values() if p.phase is _Phase.UNKNOWN and p.is_awaited]
        return [handle for handle in (*self._by_task.values(), *pending) if not handle.is_done]

    def __len__(self) -> int:
        return len(self._by_task)

    def get(self, task_id: str) -> TaskHandle | None:
        """Return the handle in flight for a task."""
        return self._by_task.get(task_id)

    def with_ref(self, ref: str) -> TaskHandle | None:
        """Return the handle in flight for a ref."""
        handle = self._by_ref.get(ref)
        return handle if handle is not None and handle.task_id in self._by_task else None

    @property
    def committed(self) -> int:
        """Return how many tasks were created or may have been, those on their way included."""
        on_their_way = sum(p.phase is _Phase.CREATING for p in self._pending.values())
        return self._spent_before[0] + self._counters.creates + self._counters.unknown_creates + on_their_way

    @property
    def committed_credits(self) -> float:
        """Return what was consumed and what is held; tasks not looked at yet count as the mean so far."""
        done = self._counters.settled_by_callback + self._counters.settled_by_poll
        mean = self._counters.credits_consumed / done if done else 0.0
        records = [handle.record for handle in self._by_task.values()]
        held = sum(mean if r is None or r.credits is None else r.credits for r in records)
        return self._spent_before[1] + self._counters.credits_consumed + held

    def begin(self, handle: TaskHandle) -> None:
        """Expect a task for the handle's intent: from now on its callbacks are known."""
        self._pending[handle._intent_id] = _Pending(handle)

    def cancel(self, handle: TaskHandle) -> None:
        """Forget an intent of which nothing was sent."""
        self._pending.pop(handle._intent_id, None)
        self._release(handle)

    def reject(self, handle: TaskHandle) -> None:
        """Note that the create was refused; a callback may still prove otherwise."""
        pending = self._pending[handle._intent_id]
        self._keep_rejected(pending)
        self._release(handle)
        self._adopt_held(pending)

    def _keep_rejected(self, pending: _Pending) -> None:
        pending.phase = _Phase.REJECTED
        self._rejected[pending.handle._intent_id] = None
        if len(self._rejected) > _REMEMBERED:
            self._pending.pop(self._rejected.popitem(last=False)[0], None)

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

    # --- what a former process left -------------------------------------------------------------

    async def replay(self) -> None:
        """Read the journal: unknown and rejected creates can be adopted from now on.

        Raises:
            JournalError: It cannot be opened or trusted.
        """
        left = await self._journal.open()
        self._spent_before = await self._journal.totals()
        for intent in left:
            pending = self._pending[intent.intent_id] = _Pending(self._new_handle(intent), is_awaited=False)
            if intent.state is IntentState.REJECTED:
                self._keep_rejected(pending)
                continue
            pending.phase = _Phase.UNKNOWN
            since = datetime.fromtimestamp(intent.planned_ms / 1000, tz=UTC)
            pending.error = CreateOutcomeUnknown(intent.intent_id, intent.reason, since, intent.ref)
            pending.error.handle = pending.handle
        unknown = [p.handle._intent_id for p in self._pending.values() if p.phase is _Phase.UNKNOWN]
        if unknown:
            _log.warning(
                "the journal holds %d creates of unknown outcome: %s", len(unknown), ", ".join(unknown)
            )

    async def resume(self, deadline: float) -> list[TaskHandle]:
        """Return handles for every unsettled task of the journal, and for creates of unknown outcome."""
        handles = [self.revive(intent, deadline) for intent in await self._journal.unsettled()]
        for pending in self._pending.values():
            if pending.phase is _Phase.UNKNOWN and not pending.handle.is_done:
                self._await(pending, deadline)
                handles.append(pending.handle)
        return handles

    def revive(self, intent: Intent, deadline: float) -> TaskHandle:
        """Return the handle of an intent found in the journal.

        Raises:
            CreateOutcomeUnknown: Nobody knows what became of it; its handle is on the error.
            ApiError: The service refused it in words that leave doubt, so it is not sent again.
        """
        if (pending := self._pending.get(intent.intent_id)) is not None and pending.error is not None:
            self._await(pending, deadline)
            raise pending.error
        if intent.state is IntentState.REJECTED:
            raise error_for(intent.code or 500, intent.reason)
        if not intent.task_id:
            since = datetime.fromtimestamp(intent.planned_ms / 1000, tz=UTC)
            raise CreateOutcomeUnknown(intent.intent_id, intent.reason, since, intent.ref)
        if (known := self._by_task.get(intent.task_id)) is not None:
            return known
        handle = self._new_handle(intent)
        handle.deadline = deadline
        if intent.record:
            handle.task_id, handle._seen = intent.task_id, True
            handle._observe(record := decode_record(decode_object(intent.record) or {}))
            handle._settle(_outcome(record))
        else:
            self.bind(handle, intent.task_id)
            self.poller.watch(handle, expects_callback=intent.expects_callback, at_once=True)
        return handle

    def _await(self, pending: _Pending, deadline: float) -> None:
        if not pending.is_awaited:
            pending.is_awaited = True
            pending.handle.deadline = deadline
            self.poller.watch_deadline(pending.handle)

    # --- from create to settle -----------------------------------------------------------------

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
        if handle.ref is not None:
            self._by_ref[handle.ref] = handle
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
                settling = asyncio.get_running_loop().create_task(
                    self._settle_durably(handle, record, source), name="kie_async settle"
                )
                self._settling.add(settling)
                settling.add_done_callback(self._settling.discard)
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

    async def drain(self) -> None:
        """Wait until every end that was seen is written and told."""
        while self._settling:
            await asyncio.wait(set(self._settling))

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
        if handle.ref is not None and self._by_ref.get(handle.ref) is handle:
            del self._by_ref[handle.ref]
        intent_id = handle._intent_id
        if self._by_intent.pop(intent_id, None) is not None:
            self._settled[intent_id] = handle.task_id
            if len(self._settled) > _REMEMBERED:
                self._settled.popitem(last=False)
        handle._settle(outcome)
        self._release(handle)
        self._emit("settled", handle, source)

    def expire(self, handle: TaskHandle) -> None:
        """Settle a handle whose deadline passed; an unknown create can be adopted even after that."""
        pending = self._pending.get(handle._intent_id)
        unknown = pending.error if pending is not None else None
        self.close(handle, unknown or TaskTimedOut(handle.task_id, handle.record))

    async def write_off(self, handle: TaskHandle) -> None:
        """Give up an unknown create."""
        await self._journal.ended(handle._intent_id, IntentState.WRITTEN_OFF, reason="written off")
        self.expire(handle)
        self._pending.pop(handle._intent_id, None)

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
        await self._journal.created(handle._intent_id, record.task_id, adopted_by=adopted_by)
        pending = self._pending.get(handle._intent_id)
        if pending is not None and pending.phase is _Phase.REJECTED:
            self._counters.ghost_creates += 1
            _log.error("task %s exists although its create was refused; it is billed", record.task_id)
        if handle.is_done:  # too late for its awaiters; the journal and the counts still hear the end
            late = Intent(intent_id=handle._intent_id, model=handle._model, ref=handle.ref)
            handle = self._new_handle(late)
            handle._seen = True
        if pending is None or not pending.is_awaited or pending.phase is _Phase.REJECTED:
            handle.deadline = math.inf
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
    return not handle._model or not record.model or record.model == handle._model


def _outcome(record: TaskRecord) -> TaskResult | KieError:
    if record.state is TaskState.FAIL:
        return TaskFailed(record.task_id, record)
    if not record.has_result:
        return ResultUnreadable(record.task_id, record)
    return TaskResult(record=record)
