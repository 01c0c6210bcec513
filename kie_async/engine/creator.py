"""The way in: a slot, a turn at the limiter, one body on the wire, a handle."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from weakref import WeakValueDictionary

from ..callbacks.address import new_intent_id
from ..creating.create_call import CreateCall
from ..creating.create_transport import CreateTransport
from ..errors import (
    ApiError,
    CreateOutcomeUnknown,
    InvalidRequest,
    JournalError,
    KieError,
    RateLimited,
    RefConflict,
    SessionMisuse,
    TaskAbandoned,
)
from ..events import Counters
from ..handle import TaskHandle
from ..http.query_client import QueryClient
from ..inputs.fingerprint import fingerprint
from ..inputs.request import TaskRequest
from ..journal.base import Intent, IntentState, Journal, TaskAlreadyBound
from ..limits.budget import BudgetGuard
from ..limits.circuit_breaker import CircuitBreaker
from ..limits.rate_limiter import RateLimiter
from ..wire.requests import WireRequest, addressed, encode_create
from .files_tmp import Files
from .pending_creates import Intents
from .reconciler import fits
from .tracker import InFlight

SHUTDOWN_GRACE_S = 10.0

_CLOSED = "the session is closed; open a new one"

_log = logging.getLogger("kie_async")

_Sending = asyncio.Task[TaskHandle | KieError]
"""A create on its way, in a watcher of its own."""


class TaskCreator:
    """Turns requests into handles, so many unsettled at once, first come first served.

    *address* makes the callback URL of an intent; *expects_callbacks* tells whether callbacks come here.
    """

    def __init__(
        self,
        *,
        table: InFlight,
        intents: Intents,
        reader: QueryClient,
        files: Files,
        transport: CreateTransport,
        limiter: RateLimiter,
        breaker: CircuitBreaker,
        journal: Journal,
        counters: Counters,
        slots: asyncio.Semaphore,
        spending: BudgetGuard | None,
        address: Callable[[str], str | None],
        task_timeout_s: float,
        expects_callbacks: bool,
        spawn: Callable[[Coroutine[object, object, None]], object],
        rng: random.Random,
    ) -> None:
        self._table = table
        self._intents = intents
        self._reader = reader
        self._files = files
        self._transport = transport
        self._limiter = limiter
        self._breaker = breaker
        self._journal = journal
        self._counters = counters
        self._slots = slots
        self._spending = spending
        self._address = address
        self._task_timeout_s = task_timeout_s
        self._expects_callbacks = expects_callbacks
        self._spawn = spawn
        self._rng = rng
        self._is_closing = False
        self._refs: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._orphans: dict[str, _Sending] = {}
        self._sending: dict[_Sending, CreateCall] = {}

    async def create(self, wish: TaskRequest, timeout_s: float, *, wait_if_sent: bool = False) -> TaskHandle:
        """Return the handle of a new task, or the one a ref stands for; see `KieSession.create`.

        With *wait_if_sent* a first cancel stops only what has not left; what has left is waited for.
        """
        if wish.ref is None:
            return await self._create(wish, b"", timeout_s, wait_if_sent)
        asked = await asyncio.to_thread(fingerprint, wish)
        async with self._turn_of(wish.ref):
            known = await self._known(wish.ref, asked, timeout_s)
            return known or await self._create(wish, asked, timeout_s, wait_if_sent)

    def _turn_of(self, ref: str | None) -> AbstractAsyncContextManager[object]:
        """Return the turn of who would create for a ref: one at a time, and without a ref all at once."""
        return nullcontext() if ref is None else self._refs.setdefault(ref, asyncio.Lock())

    async def _known(self, ref: str, asked: bytes, timeout_s: float) -> TaskHandle | None:
        """Return the handle a ref stands for, if it stands for one.

        Raises:
            RefConflict: It stands for another request.
        """
        handle = await self._end_of_orphan(ref) or self._table.with_ref(ref)
        if handle is not None:
            _check_same(ref, handle._fingerprint, asked)
            return handle
        intent = await self._journal.find_by_ref(ref)
        if intent is None:
            return None
        _check_same(ref, intent.fingerprint, asked)
        return self._intents.revive(intent, asyncio.get_running_loop().time() + timeout_s)

    async def _end_of_orphan(self, ref: str) -> TaskHandle | None:
        """Wait for a create of this ref whose caller was cancelled; return its handle if it has one."""
        if (orphan := self._orphans.get(ref)) is None:
            return None
        await asyncio.wait({orphan})
        outcome = None if orphan.cancelled() else orphan.result()
        return outcome if isinstance(outcome, TaskHandle) else None

    async def _create(
        self, wish: TaskRequest, asked: bytes, timeout_s: float, wait_if_sent: bool = False
    ) -> TaskHandle:
        intent_id = new_intent_id()
        wish = await self._files.with_uploads(wish)
        request = encode_create(wish, None)  # says what is wrong with it while no address is in sight
        if wish.callback_url is None:
            request = self._addressed(request, intent_id)
        await self._slots.acquire()
        intent = Intent(
            intent_id=intent_id,
            model=wish.model,
            ref=wish.ref,
            fingerprint=asked,
            body=(request.body or b"").decode(),
            expects_callback=wish.callback_url is None and self._expects_callbacks,
        )
        handle = self._intents.new_handle(intent, wish)
        handle._has_slot = True
        self._intents.begin(handle)
        try:
            self._check_open()
            if self._spending is not None:
                self._spending.check()
        except BaseException:
            self._intents.cancel(handle)
            raise
        return await self._send(handle, request, timeout_s, intent, wait_if_sent)

    def _addressed(self, request: WireRequest, intent_id: str) -> WireRequest:
        """Return *request* with the intent's address in it, which no frame that can raise later holds."""
        url = self._address(intent_id)
        return request if url is None else addressed(request, url)

    async def _send(
        self,
        handle: TaskHandle,
        request: WireRequest,
        timeout_s: float,
        intent: Intent,
        wait_if_sent: bool,
    ) -> TaskHandle:
        """Send in a watcher that outlives its caller: a cancel stops only what has not left."""
        loop = handle._loop
        handle.deadline = loop.time() + timeout_s
        creation = CreateCall(
            intent=intent,
            request=request,
            transport=self._transport,
            limiter=self._limiter,
            breaker=self._breaker,
            journal=self._journal,
            counters=self._counters,
            rng=self._rng,
            deadline=handle.deadline,
        )
        work = self._run(handle, creation, timeout_s, intent)
        sending = loop.create_task(work, name="kie_async create")
        self._sending[sending] = creation
        told: asyncio.Future[TaskHandle] = loop.create_future()
        sending.add_done_callback(partial(self._note_sent, handle, told))
        while True:
            try:
                return await told
            except asyncio.CancelledError:
                caller = asyncio.current_task()
                if sending.cancelled() and not (caller and caller.cancelling()):  # by the close, unbegun
                    raise SessionMisuse(_CLOSED) from None
                is_kept_back = creation.stop()
                if is_kept_back:
                    sending.cancel()
                elif wait_if_sent:
                    wait_if_sent = False
                    told = loop.create_future()
                    sending.add_done_callback(partial(_tell, told))
                    continue
                self._leave(sending, creation, handle, is_orphan=not is_kept_back)
                raise

    def _note_sent(self, handle: TaskHandle, told: asyncio.Future[TaskHandle], sending: _Sending) -> None:
        """Let go of a create that is over, and tell its caller."""
        del self._sending[sending]
        if sending.cancelled():
            self._intents.cancel(handle)  # it may not even have begun
        _tell(told, sending)

    def _leave(self, sending: _Sending, creation: CreateCall, handle: TaskHandle, *, is_orphan: bool) -> None:
        """Let a create whose caller is gone come to its end; its ref finds it."""
        creation.is_orphan = is_orphan
        if (ref := handle.ref) is not None and not sending.done():
            self._orphans[ref] = sending
            sending.add_done_callback(lambda _: self._orphans.pop(ref, None))

    async def _run(
        self, handle: TaskHandle, creation: CreateCall, timeout_s: float, intent: Intent
    ) -> TaskHandle | KieError:
        """Return what became of a create: there may be nobody left to take an error that is raised."""
        try:
            task_id = await creation.run()
        except asyncio.CancelledError:
            await self._forget(handle)
            if self._is_closing:  # what was cancelled is the create, and not its caller
                return SessionMisuse(_CLOSED)
            raise
        except KieError as exc:
            await self._note_failure(handle, exc)
            return exc
        try:
            await self._note_created(handle, task_id)
        except KieError as exc:
            return exc
        if (known := self._table.get(task_id)) is not None:  # attached meanwhile: one task, one handle
            self._intents.cancel(handle)
            return known
        handle.deadline = handle._loop.time() + timeout_s
        self._intents.created(handle, task_id, expects_callback=intent.expects_callback)
        if creation.is_orphan:
            _log.warning("task %s was created after its caller was cancelled; it goes on", task_id)
        return handle

    async def _note_created(self, handle: TaskHandle, task_id: str) -> None:
        """Make the id durable before user code sees it.

        Raises:
            CreateOutcomeUnknown: Another intent has this very task: one of the two is lost.
            JournalError: The id could not be committed; it is in the message and in the rescue file.
        """
        if self._table.get(task_id) is None and await self._commit_id(handle, task_id):
            return
        reason = f"the answer names task {task_id}, which belongs to another create"
        error = CreateOutcomeUnknown(handle._intent_id, reason, datetime.now(UTC), handle.ref)
        await self._note_failure(handle, error)
        raise error

    async def _commit_id(self, handle: TaskHandle, task_id: str) -> bool:
        """Note the id in the journal; tell whether no other intent has it."""
        try:
            await self._journal.mark_created(handle._intent_id, task_id)
        except TaskAlreadyBound:
            return False
        except JournalError as exc:
            self._intents.cancel(handle)
            _log.critical("task %s was created and is paid, but could not be noted: %s", task_id, exc)
            raise JournalError(
                f"task {task_id} was created and is paid, but could not be noted: {exc}"
            ) from exc
        return True

    async def _note_failure(self, handle: TaskHandle, error: KieError) -> None:
        """Note in table and journal what a create ended with, if not with a task."""
        if isinstance(error, CreateOutcomeUnknown):
            state, code, reason = IntentState.UNKNOWN, None, error.reason
            settle = partial(self._intents.unknown, handle, error)
        elif isinstance(error, ApiError) and not isinstance(error, RateLimited):
            state, code, reason = IntentState.REJECTED, error.code, error.message
            settle = partial(self._intents.rejected, handle)
        else:
            return await self._forget(handle)
        try:
            with _logged(f"the end of a create ({state})"):
                await self._journal.mark_ended(handle._intent_id, state, reason=reason, code=code)
        finally:  # also when this is cancelled: the slot must not stay behind
            settle()

    async def _forget(self, handle: TaskHandle) -> None:
        """Note that nothing was created."""
        try:
            with _logged("that nothing was created"):
                await self._journal.mark_ended(handle._intent_id, IntentState.NOT_CREATED)
        finally:
            self._intents.cancel(handle)

    async def drain(self) -> None:
        """Keep back what has not left, and give what has left some time to learn its id."""
        self._is_closing = True
        self._slots.release()  # the first in line goes, sees the closed door, and lets the next one go
        for sending, creation in list(self._sending.items()):
            if creation.stop():
                sending.cancel()
        try:
            if self._sending:
                await asyncio.wait(self._sending, timeout=SHUTDOWN_GRACE_S)
        finally:
            for sending in list(self._sending):
                sending.cancel()
            if self._sending:
                await asyncio.wait(self._sending)

    # --- what a handle asks of its session -----------------------------------------------------

    def abandon(self, handle: TaskHandle) -> None:
        """Settle a handle as abandoned; see `TaskHandle.abandon`."""
        if not handle.is_done and not handle._is_ending:
            self._table.close(handle, TaskAbandoned(handle.task_id, handle.record, handle._intent_id))

    async def resolve(self, handle: TaskHandle, task_id: str) -> None:
        """Bind an unknown create to a task; see `TaskHandle.resolve`."""
        record = await self._reader.query(task_id)
        if not fits(handle, record):
            raise InvalidRequest(f"task {task_id} is of model {record.model}, not of {handle._model}")
        await self._intents.adopt(handle, record, adopted_by="hand")

    def write_off(self, handle: TaskHandle) -> None:
        """Settle an unknown create as lost; see `TaskHandle.write_off`."""
        self._spawn(self._write_off(handle))

    async def _write_off(self, handle: TaskHandle) -> None:
        with _logged("that a create was written off"):
            await self._intents.write_off(handle)

    async def resubmit(self, handle: TaskHandle) -> TaskHandle:
        """Send the request of an unknown create as a new task; see `TaskHandle.resubmit`."""
        if handle.request is None:
            raise InvalidRequest("this handle does not hold its request; create a new task")
        async with self._turn_of(handle.ref):
            if not await self._intents.write_off(handle, frees_ref=True):
                raise InvalidRequest(f"the create became task {handle.task_id} meanwhile; await its handle")
            return await self._create(handle.request, handle._fingerprint, self._task_timeout_s)

    # --- checks --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closing:
            raise SessionMisuse(_CLOSED)


def _tell(told: asyncio.Future[TaskHandle], sending: _Sending) -> None:
    """End a caller's wait as the create ended: a shield, with fewer turns of the loop."""
    if told.done():
        return
    if sending.cancelled():
        told.cancel()
        return
    outcome = sending.exception() or sending.result()
    if isinstance(outcome, TaskHandle):
        told.set_result(outcome)
    else:
        told.set_exception(outcome)
        told.exception()  # a caller cancelled in this very turn is no cause to complain


def _check_same(ref: str, noted: bytes, given: bytes) -> None:
    if noted != given:
        raise RefConflict(ref)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log a note that could not be written, where the next open finds SENDING or PLANNED: both are safe."""
    try:
        yield
    except JournalError:
        _log.exception("%s could not be noted; the next open will find out", what)
