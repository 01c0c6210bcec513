"""Hands out handles at once, and has their creates made when it is their turn."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Hashable
from copy import copy

from .._background import BackgroundTasks
from ..errors import SESSION_CLOSED, CreateOutcomeUnknown, KieError, SessionMisuse, Withdrawn
from ..handle import TaskHandle
from ..inputs.request import TaskRequest
from ..journal.intents import Intent
from .create_queue import CreateQueue, QueuedCreate
from .creator import TaskCreator
from .tracker import TaskTracker

FINDERS = 8
"""So many refs are asked for in the journal at once: what is known need not wait for a turn."""

_log = logging.getLogger("kie_async")


class Submitter:
    """The handles that were given out before their tasks exist. It is the `QueueSink` of the queue.

    Most that wait have no asyncio task: the queue says which are to be made ready.
    """

    def __init__(
        self, creator: TaskCreator, tracker: TaskTracker, queue: CreateQueue, background: BackgroundTasks
    ) -> None:
        self._creator = creator
        self._tracker = tracker
        self._queue = queue
        self._background = background
        self._by_ref: dict[str, QueuedCreate] = {}
        self._to_find: deque[QueuedCreate] = deque()
        self._finders = 0
        self._driven: set[QueuedCreate] = set()
        queue.start(self)

    # --- what a session and its handles ask for ------------------------------------------------

    def submit(self, request: TaskRequest, timeout_s: float, lane: Hashable) -> TaskHandle:
        """Return a handle that is not created yet, or the one that its ref stands for.

        Raises:
            QueueFull: So many wait already as may.
        """
        if (known := self._known_here(request)) is not None:
            return known
        self._queue.check_room()
        handle = self._tracker.new_handle(Intent(intent_id="", model=request.model, ref=request.ref), request)
        handle.move_deadline(math.inf)  # its time begins with its turn
        entry = QueuedCreate(lane=lane, handle=handle, timeout_s=timeout_s, is_begun=False)
        handle.track(entry)
        self._queue.add(entry)
        if request.ref is not None:
            self._by_ref.setdefault(request.ref, entry)
            self._find_soon(entry)
        # Eager tasks would leave the queue at once, each before the next one comes: no lane would take turns.
        self._queue.advance_soon()
        return handle

    def _known_here(self, request: TaskRequest) -> TaskHandle | None:
        """Return the handle of the very same request, if one is in sight. Another one is judged later."""
        if request.ref is None:
            return None
        entry, in_flight = self._by_ref.get(request.ref), self._tracker.registry.by_ref(request.ref)
        handle = in_flight[0] if in_flight is not None else entry.handle if entry is not None else None
        return handle if handle is not None and handle.request == request else None

    def queue_position(self, handle: TaskHandle) -> int | None:
        """Return how many creates go before; None if it does not wait in the queue."""
        entry = _entry_of(handle)
        return None if entry is None else self._queue.place_of(entry)

    def withdraw(self, handle: TaskHandle) -> bool:
        """Take back a create that has not left; see `TaskHandle.withdraw`."""
        entry = _entry_of(handle)
        if entry is None or entry.may_have_left:
            return False
        # In this very step: a body that is on its way to the gate finds it closed.
        entry.stop()
        self._end(entry, Withdrawn(handle.ref))
        return True

    async def until_created(self, handle: TaskHandle) -> None:
        """Wait for the task of a handle that has none yet; see `TaskHandle.created`.

        Raises:
            KieError: What kept it from being made.
        """
        entry = _entry_of(handle)
        if entry is not None:
            waiter = asyncio.get_running_loop().create_future()
            entry.waiters = (*(other for other in entry.waiters if not other.done()), waiter)
            await waiter
            return
        pending = self._tracker.pending.get(handle.intent_id)
        error = None if pending is None else pending.copy_error()
        if error is not None:
            raise error

    # --- refs that are known -------------------------------------------------------------------

    def _find_soon(self, entry: QueuedCreate) -> None:
        self._to_find.append(entry)
        if self._finders < FINDERS:
            self._finders += 1
            self._background.spawn(self._find_all())

    async def _find_all(self) -> None:
        try:
            while self._to_find:
                await self._find(self._to_find.popleft())
        finally:
            self._finders -= 1

    async def _find(self, entry: QueuedCreate) -> None:
        """Give a handle what its ref stands for, if that is known before its turn has come."""
        handle = _handle_of(entry)
        if entry.is_begun or not entry.is_queued or handle.request is None or handle.ref is None:
            return
        try:
            known = await self._creator.find_known(handle.request, handle.ref, entry.timeout_s)
        except KieError as exc:
            if not entry.is_begun and entry.is_queued:
                self._end(entry, exc)
            return
        if known is not None and not entry.is_begun and entry.is_queued:
            self._join(entry, known)

    # --- its turn ------------------------------------------------------------------------------

    def begin(self, entry: QueuedCreate) -> None:
        """Begin to make a create ready; it waits for its turn when it is."""
        self._driven.add(entry)
        entry.driver = self._background.spawn(self._drive(entry))

    async def _drive(self, entry: QueuedCreate) -> None:
        handle = _handle_of(entry)
        request = handle.request
        try:
            self._queue.admission.check_open()
            assert request is not None  # noqa: S101  (it was given out with one)
            made = await self._creator.create(request, entry.timeout_s, entry=entry)
        except asyncio.CancelledError:
            if not entry.may_have_left:  # else the create goes on, and the handle with it
                self._end(entry, SessionMisuse(SESSION_CLOSED))
            raise
        except KieError as exc:
            self._end(entry, exc)
        except Exception as exc:  # nobody else is there to take it
            _log.exception("a create failed in a way that was not foreseen")
            self._end(entry, KieError(f"the create failed: {exc!r}"))
        else:
            self._join(entry, made)

    def _join(self, entry: QueuedCreate, made: TaskHandle) -> None:
        """Let a handle be, or go along with, the one that its create or its ref led to."""
        handle = _handle_of(entry)
        if made is not handle and not handle.is_done and not handle.task_id:
            handle.track(None)
            self._tracker.binder.go_along(handle, made)
        self._end(entry)

    def _end(self, entry: QueuedCreate, error: KieError | None = None) -> None:
        """Let go of an entry; its handle ends with *error*, unless a task may still turn up for it."""
        handle, waiters = _handle_of(entry), [waiter for waiter in entry.waiters if not waiter.done()]
        entry.waiters = ()
        self._driven.discard(entry)
        self._queue.remove(entry)
        if handle.ref is not None and self._by_ref.get(handle.ref) is entry:
            del self._by_ref[handle.ref]
        is_unknown = isinstance(error, CreateOutcomeUnknown) and error.handle is handle
        if error is not None and not is_unknown and not handle.is_done:
            handle.track(None)
            if waiters or isinstance(error, SessionMisuse):  # told, or said once for all
                handle.mark_retrieved()
            handle.settle(_copied(error))  # without the frames of the create, which hold the handle
            self._tracker.let_go(handle)
        for waiter in waiters:
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(_copied(error))
                waiter.exception()  # one cancelled in this very turn is no cause to complain

    # --- the close -----------------------------------------------------------------------------

    def keep_back(self, entry: QueuedCreate) -> None:
        """End a create that nobody has begun: the session closes."""
        self._end(entry, SessionMisuse(SESSION_CLOSED))

    def end_all(self) -> None:
        """End whoever is left, now that nothing runs any more."""
        for entry in list(self._driven):
            self.keep_back(entry)


def _entry_of(handle: TaskHandle) -> QueuedCreate | None:
    """Return the create of a handle that has no task yet."""
    return handle.poll_entry if isinstance(handle.poll_entry, QueuedCreate) else None


def _handle_of(entry: QueuedCreate) -> TaskHandle:
    assert entry.handle is not None  # noqa: S101  (only such entries come here)
    return entry.handle


def _copied(given: KieError) -> KieError:
    """Return the error for one who asks: raised by many, it would grow by the traceback of each."""
    error = copy(given)
    if isinstance(given, CreateOutcomeUnknown) and isinstance(error, CreateOutcomeUnknown):
        error.handle = given.handle
    return error
