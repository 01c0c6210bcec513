"""The way in: a slot, a turn at the limiter, one body on the wire, a handle."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from . import wire
from .creates import CreateTransport, Creation
from .errors import ApiError, BudgetExceeded, CreateOutcomeUnknown, KieError, SessionMisuse
from .handle import TaskHandle
from .inflight import InFlight
from .inputs import TaskRequest
from .journal import Intent, Journal
from .limiter import Limiter
from .models import Budget, Counters
from .poller import Poller
from .signing import new_intent_id

SHUTDOWN_GRACE_S = 10.0
_CLOSED = "the session is closed; open a new one"
_log = logging.getLogger("kie_async")


class Intake:
    """Turns requests into handles, so many unsettled at once, first come first served.

    *address* makes the callback URL of an intent, *new_handle* a handle for one; *watches_callbacks*
    tells whether callbacks will come here.
    """

    def __init__(
        self,
        *,
        table: InFlight,
        poller: Poller,
        transport: CreateTransport,
        limiter: Limiter,
        journal: Journal,
        counters: Counters,
        slots: asyncio.Semaphore,
        budget: Budget | None,
        address: Callable[[str], str | None],
        new_handle: Callable[[str, TaskRequest], TaskHandle],
        watches_callbacks: bool,
        rng: random.Random,
    ) -> None:
        self._table = table
        self._poller = poller
        self._transport = transport
        self._limiter = limiter
        self._journal = journal
        self._counters = counters
        self._slots = slots
        self._budget = budget
        self._address = address
        self._new_handle = new_handle
        self._watches_callbacks = watches_callbacks
        self._rng = rng
        self._is_closing = False
        self._sending: dict[asyncio.Task[TaskHandle], Creation] = {}

    async def create(self, wish: TaskRequest, timeout_s: float) -> TaskHandle:
        """Return the handle of a new task; see `KieSession.create` for what it raises."""
        intent_id = new_intent_id()
        own_url = None if wish.callback_url else self._address(intent_id)
        request = wire.encode_create(wish, own_url)
        handle = self._new_handle(intent_id, wish)
        await self._slots.acquire()
        handle._has_slot = True
        self._table.begin(handle)
        try:
            self._check_open()
            self._check_budget()
            intent = Intent(intent_id=intent_id, model=wish.model, ref=wish.ref, body=request.body or b"")
            await self._journal.plan(intent)
        except BaseException:
            self._table.cancel(handle)
            raise
        return await self._send(handle, request, timeout_s, expects_callback=own_url is not None)

    async def _send(
        self, handle: TaskHandle, request: wire.WireRequest, timeout_s: float, *, expects_callback: bool
    ) -> TaskHandle:
        """Send in a watcher that outlives its caller: a cancel stops only what has not left."""
        handle.deadline = asyncio.get_running_loop().time() + timeout_s
        creation = Creation(
            intent_id=handle._intent_id,
            ref=handle.ref,
            request=request,
            transport=self._transport,
            limiter=self._limiter,
            journal=self._journal,
            counters=self._counters,
            rng=self._rng,
            deadline=handle.deadline,
        )
        work = self._run(handle, creation, timeout_s, expects_callback=expects_callback)
        sending = asyncio.get_running_loop().create_task(work, name="kie_async create")
        self._sending[sending] = creation
        sending.add_done_callback(self._sending.pop)
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            if creation.stop():
                sending.cancel()
            else:
                creation.is_orphan = True
            raise

    async def _run(
        self, handle: TaskHandle, creation: Creation, timeout_s: float, *, expects_callback: bool
    ) -> TaskHandle:
        try:
            task_id = await creation.run()
            await self._journal.created(handle._intent_id, task_id)
            handle.deadline = asyncio.get_running_loop().time() + timeout_s
            self._table.bind(handle, task_id)
        except CreateOutcomeUnknown as exc:
            await self._journal.ended(handle._intent_id, "UNKNOWN", exc.reason)
            self._table.unknown(handle, exc)
            raise
        except ApiError as exc:
            await self._journal.ended(handle._intent_id, "REFUSED", str(exc))
            self._table.refuse(handle)
            raise
        except asyncio.CancelledError:
            self._table.cancel(handle)
            self._check_open()
            raise
        except KieError:
            self._table.cancel(handle)
            raise
        if creation.is_orphan:
            _log.warning("task %s was created after its caller was cancelled; it goes on", task_id)
        if not handle.is_done and not handle._is_ending:
            self._poller.watch(handle, expects_callback=expects_callback and self._watches_callbacks)
        return handle

    async def drain(self) -> None:
        """Keep back what has not left, and give what has left some time to learn its id."""
        self._is_closing = True
        self._slots.release()  # the first in line goes, sees the closed door, and lets the next one go
        for sending, creation in list(self._sending.items()):
            if creation.stop():
                sending.cancel()
        if self._sending:
            await asyncio.wait(self._sending, timeout=SHUTDOWN_GRACE_S)
        for sending in list(self._sending):
            sending.cancel()
        if self._sending:
            await asyncio.wait(self._sending)

    def _check_open(self) -> None:
        if self._is_closing:
            raise SessionMisuse(_CLOSED)

    def _check_budget(self) -> None:
        budget = self._budget
        if budget is None:
            return
        if budget.tasks is not None and self._table.committed > budget.tasks:
            raise BudgetExceeded(f"the budget of {budget.tasks} tasks is spent; nothing was sent")
        if budget.credits is not None and self._table.committed_credits >= budget.credits:
            raise BudgetExceeded(f"the budget of {budget.credits:g} credits is spent; nothing was sent")
