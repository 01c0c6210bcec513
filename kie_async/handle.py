"""The awaitable claim on what becomes of one task."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Generator
from typing import Any, NoReturn, Protocol

from ._background import BoundToLoop
from ._validation import check_task_id, check_wait
from .errors import (
    CreateOutcomeUnknown,
    InvalidRequest,
    KieError,
    SessionMisuse,
    TaskAbandoned,
    TaskDetached,
    TaskFailed,
    TaskTimedOut,
    Withdrawn,
)
from .inputs.request import TaskRequest
from .models import Estimate, TaskPhase, TaskRecord, TaskResult, TaskState, advance

_ALREADY_LOGGED = (TaskDetached, TaskAbandoned, CreateOutcomeUnknown, Withdrawn)
"""Ends that were logged when they came, or that the user asked for."""
_log = logging.getLogger("kie_async")


class HandleOwner(Protocol):
    """What a handle asks of the session that made it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that the session runs on."""

    def queue_position(self, handle: TaskHandle) -> int | None:
        """Return how many creates go before; None if it does not wait in the queue."""

    async def until_created(self, handle: TaskHandle) -> None:
        """Wait for the task of a handle that has none yet, or raise what kept it from being made."""

    def withdraw(self, handle: TaskHandle) -> bool:
        """Take back a create that has not left; tell whether it is taken back."""

    def estimate(self, handle: TaskHandle) -> Estimate | None:
        """Return how long the handle still takes; None if nobody knows."""

    def abandon(self, handle: TaskHandle) -> None:
        """Settle the handle as abandoned."""

    def candidate_of(self, handle: TaskHandle) -> str:
        """Return the task that a create may have become; empty if nobody named one."""

    async def resolve(self, handle: TaskHandle, task_id: str) -> None:
        """Bind an unknown create to a task."""

    def write_off(self, handle: TaskHandle) -> None:
        """Settle an unknown create as lost."""

    async def resubmit(self, handle: TaskHandle) -> TaskHandle:
        """Send the request of an unknown create as a new task."""


class TaskHandle(BoundToLoop):
    """A claim on one task: it can be awaited by many, at any time, and made again from its id.

    ``await handle`` returns the `TaskResult` or raises what kept it from being. Cancelling one
    awaiter disturbs nobody, and nothing here stops the task: the service has no such call.

    What awaits anything takes handles: `asyncio.gather`, `asyncio.wait_for`, `asyncio.as_completed` and
    `asyncio.shield`. In an `asyncio.TaskGroup` write ``group.create_task(handle.result())``, for
    `asyncio.wait` make a task of each with `asyncio.ensure_future`.
    """

    __slots__ = (
        "__weakref__",
        "_awaiters",
        "_has_slot",
        "_is_retrieved",
        "_outcome",
        "_owner",
        "_readers",
        "_state",
        "deadline",
        "intent_id",
        "model",
        "poll_entry",
        "record",
        "ref",
        "request",
        "task_id",
    )

    def __init__(
        self,
        *,
        owner: HandleOwner,
        deadline: float,
        task_id: str = "",
        intent_id: str = "",
        request: TaskRequest | None = None,
        ref: str | None = None,
        model: str = "",
    ) -> None:
        self.task_id = task_id
        """The service's id; empty while the task is not known to exist."""
        self.intent_id = intent_id
        """The session's own id of the create, as in journals and messages; empty for an attached task."""
        self.request = request
        """What was asked for; None for an attached or resumed task."""
        self.ref = request.ref if request else ref
        """The caller's own key, as `TaskRequest.ref` says."""
        self.model = request.model if request else model
        """Empty for an attached task."""
        self.record: TaskRecord | None = None
        """The latest observation."""
        self.deadline = deadline
        """The instant on the loop's clock at which the wait ends with `TaskTimedOut`."""
        self.poll_entry: object = None
        """For the engine only: what the poller knows of the task, or the queue of its create."""
        self._owner = owner
        self._state: TaskState | None = None
        """None before anything was observed; unknown of a create whose outcome nobody knows."""
        self._outcome: TaskResult | KieError | None = None
        self._awaiters: asyncio.Future[TaskResult] | list[asyncio.Future[TaskResult]] | None = None
        self._readers: dict[asyncio.Future[None], None] | None = None
        self._has_slot = False
        self._is_retrieved = False

    def __repr__(self) -> str:
        done = " done" if self.is_done else ""
        if self.task_id:
            return f"<TaskHandle {self.task_id} {self.state}{done}>"
        if self.intent_id:
            return f"<TaskHandle intent {self.intent_id} {self._state or 'new'}{done}>"
        ref = "" if self.ref is None else f" ref {self.ref!r}"
        return f"<TaskHandle {self.model}{ref} queued{done}>"

    def __del__(self) -> None:
        # As asyncio does for an exception never retrieved: a paid failure must not pass in silence.
        error = self._outcome
        if not self._is_retrieved and isinstance(error, KieError) and not isinstance(error, _ALREADY_LOGGED):
            _log.warning("nobody awaited a task that yielded no result: %s", error)

    @property
    def state(self) -> TaskState:
        """Return the furthest state observed; a stale answer moves nothing back.

        Before anything was observed a task is waiting; unknown is only a create whose outcome nobody knows.
        """
        if self._state is None or (self._state is TaskState.UNKNOWN and self.task_id):
            return TaskState.WAITING
        return self._state

    @property
    def phase(self) -> TaskPhase:
        """Return how far it has come: queued, sending, running, done, or unknown."""
        if self.is_done:
            return TaskPhase.DONE
        if self.task_id:
            return TaskPhase.RUNNING
        if self._state is TaskState.UNKNOWN:
            return TaskPhase.UNKNOWN
        return TaskPhase.SENDING if self.queue_position is None else TaskPhase.QUEUED

    @property
    def queue_position(self) -> int | None:
        """Return how many creates of this session go before it, 0 if it is next; None if it is not queued.

        Lanes take turns, so those of another lane count as far as their turns come before. It may grow, when
        a lane begins to wait whose turns come in between.
        """
        return None if self.task_id or self.is_done else self._owner.queue_position(self)

    @property
    def candidate_task_id(self) -> str:
        """Return the task that a create of unknown outcome may have become; empty if nobody named one.

        A callback at its address named it, or an answer in which something else was wrong. It is confirmed
        with the service as long as the session is open; `resolve` without an argument takes it at once.
        """
        return "" if self.task_id else self._owner.candidate_of(self)

    @property
    def is_done(self) -> bool:
        """Tell whether awaiting would return at once."""
        return self._outcome is not None

    def __await__(self) -> Generator[Any, None, TaskResult]:
        return self._claim().__await__()  # no frame of ours waits along: a thousand awaiters are cheap

    async def result(self, timeout_s: float | None = None) -> TaskResult:
        """Return the result; *timeout_s* bounds this wait alone, the handle lives on.

        Raises:
            InvalidRequest: *timeout_s* is no number.
            TaskError: The task yielded no result here; its subclasses tell why.
            TaskTimedOut: Also when *timeout_s* ran out.
            CreateOutcomeUnknown: The create was written off, or nothing was found out in time.
            AuthenticationError: The key was refused while polling.
            SessionMisuse: Awaited from another event loop.
        """
        if timeout_s is not None:
            check_wait("timeout_s", timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self
        except TimeoutError:
            if not self.is_done:
                raise TaskTimedOut(self.task_id, self.record) from None
        return await self

    def estimate(self) -> Estimate | None:
        """Return how long it may still take, from now until the news of its end, without asking the service.

        From how long the tasks of its model took that ended here, or in earlier runs with the journal, given
        that this one still runs at its age; before three ended, from a table of what users measured. None
        where that does not know the model, and of a handle that is done or whose outcome is unknown.
        """
        return self._owner.estimate(self)

    async def updates(self) -> AsyncIterator[TaskRecord]:
        """Yield the latest record whenever it changed, the terminal one last.

        Of a handle that `submit` gave out it begins with the queue: a record without a task id, whose state
        is waiting, whenever `queue_position` or `phase` changed, a few times a second at most. A slow reader
        sees the newest, not all. A failed task ends the loop without raising; await the handle for the error.

        Raises:
            KieError: The handle settled without a terminal record.
        """
        shown: TaskRecord | None = None
        shown_place: tuple[int | None] | None = None
        while True:
            if self.record is not None and self.record != shown:
                shown = self.record
                yield shown
            elif self.is_done:
                break
            elif (place := self._place_before_the_task()) not in {None, shown_place}:
                shown_place = place
                yield TaskRecord(task_id="", model=self.model, state=TaskState.WAITING)
            else:
                await self._wait_for_update()
        self._is_retrieved = True
        if isinstance(self._outcome, KieError) and not isinstance(self._outcome, TaskFailed):
            await self

    async def created(self) -> TaskHandle:
        """Return this handle once its task exists: ``await kie.submit(...).created()``.

        Cancelling this wait takes nothing back; `withdraw` does.

        Raises:
            KieError: What `KieSession.create` raises, or `Withdrawn`.
            SessionMisuse: Awaited from another event loop.
        """
        if not self.task_id and not self.is_done:
            self._check_loop()
            await self._owner.until_created(self)
        if not self.task_id and self.is_done:  # without a task: refused, withdrawn, abandoned, closed
            await self
        return self

    def withdraw(self) -> bool:
        """Take the create back if it has not left; tell whether it is taken back.

        True: no task was made of it and nothing will be sent; awaiters get `Withdrawn`. False changes
        nothing: its body has left, or all is over. A body that the service turned away for a limit does not
        count.

        Raises:
            SessionMisuse: Called on another event loop.
        """
        if isinstance(self._outcome, Withdrawn):
            return True
        if self.task_id or self.is_done:
            return False
        self._check_loop()
        return self._owner.withdraw(self)

    def abandon(self) -> None:
        """Stop waiting here: awaiters get `TaskAbandoned`, the task runs on and is billed.

        One that is queued is sent all the same when it is its turn; `withdraw` takes it back.
        """
        self._owner.abandon(self)

    async def resolve(self, task_id: str | None = None) -> None:
        """Say which task an unknown create became; its record is read and must fit the request.

        Without *task_id* it is `candidate_task_id`.

        Raises:
            InvalidRequest: The outcome of this create is not unknown, the task is not this one, or there
                is no candidate.
        """
        self._must_be_unknown()
        task_id = task_id or self.candidate_task_id
        if not task_id:
            raise InvalidRequest("task_id is missing: nobody named a task for this create yet")
        check_task_id(task_id)
        await self._owner.resolve(self, task_id)

    def write_off(self) -> None:
        """Settle an unknown create as lost, once that is noted; money may have been spent on it.

        Raises:
            InvalidRequest: The outcome of this create is not unknown.
        """
        self._must_be_unknown()
        self._owner.write_off(self)

    async def resubmit(self, *, accept_double_charge: bool) -> TaskHandle:
        """Send the request of an unknown create again, as a new task that may be paid twice.

        Raises:
            InvalidRequest: The double charge is not accepted, or the outcome is not unknown.
        """
        self._must_be_unknown()
        if accept_double_charge is not True:
            raise InvalidRequest("resubmit may pay twice; say accept_double_charge=True to allow it")
        return await self._owner.resubmit(self)

    def add_done_callback(self, *_: object, **__: object) -> NoReturn:
        """Refuse: a handle is no future; `asyncio.wait`, which asks for this, takes tasks.

        Raises:
            TypeError: With what to write instead.
        """
        raise TypeError(
            "asyncio.wait takes tasks, not handles: asyncio.wait([asyncio.ensure_future(handle), ...]); "
            "gather, wait_for, as_completed and shield take handles as they are"
        )

    def _must_be_unknown(self) -> None:
        if self.task_id or self.is_done or self._state is not TaskState.UNKNOWN:
            raise InvalidRequest("only a create whose outcome is unknown can be resolved by hand")

    def _claim(self) -> asyncio.Future[TaskResult]:
        """Return a future for one awaiter alone: cancelling it takes nothing from others.

        Raises:
            SessionMisuse: It would have to wait, and in another event loop.
        """
        future: asyncio.Future[TaskResult] = self._owner.loop.create_future()
        # An end that is here can be had from any loop; only a wait needs the handle's own.
        if self._outcome is not None:
            self._resolve_awaiter(future, self._outcome)
            return future
        self._check_loop()
        if self._awaiters is None:
            self._awaiters = future  # the one that most have needs no list
        else:
            others = self._list_awaiters()
            if (count := len(others)) & (count - 1) == 0:  # now and then, who left is let go of
                others = [awaiter for awaiter in others if not awaiter.done()]
            others.append(future)
            self._awaiters = others
        return future

    def _list_awaiters(self) -> list[asyncio.Future[TaskResult]]:
        if self._awaiters is None:
            return []
        return self._awaiters if isinstance(self._awaiters, list) else [self._awaiters]

    def _resolve_awaiter(self, future: asyncio.Future[TaskResult], outcome: TaskResult | KieError) -> None:
        """Settle one awaiter's future; an error as a copy, whose traceback and context are his alone."""
        self._is_retrieved = True
        if isinstance(outcome, KieError):
            future.set_exception(copy.copy(outcome))
            future.exception()  # an awaiter cancelled in this very turn is no cause to complain
        else:
            future.set_result(outcome)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._owner.loop:
            raise SessionMisuse("this handle belongs to another event loop; await it where its session runs")

    def _place_before_the_task(self) -> tuple[int | None] | None:
        """Return what may be told of a create without a task: its place, which is None while it is sent."""
        if self.task_id or self._state is TaskState.UNKNOWN:
            return None
        return (self.queue_position,)

    async def _wait_for_update(self) -> None:
        """Wait for the next record, or for the end."""
        self._check_loop()
        readers = self._readers = {} if self._readers is None else self._readers
        future: asyncio.Future[None] = self._owner.loop.create_future()
        readers[future] = None
        try:
            await future
        finally:
            readers.pop(future, None)

    # --- for the engine only -------------------------------------------------------------------

    def begin(self, intent_id: str, request: TaskRequest) -> None:
        """Take in that it is the turn of its create, which is sent as *request* says."""
        self.intent_id, self.request = intent_id, request
        self.note_progress()

    def bind(self, task_id: str) -> None:
        """Name the task."""
        self.task_id = task_id
        self.note_progress()

    def move_deadline(self, deadline: float) -> None:
        """Let the wait end at another instant."""
        self.deadline = deadline

    def track(self, entry: object) -> None:
        """Keep what the poller knows of the task; None when it is not polled."""
        self.poll_entry = entry

    def take_slot(self) -> None:
        """Hold one of the session's slots; `Admission` counts them."""
        self._has_slot = True

    def drop_slot(self) -> bool:
        """Hold no slot any more; tell whether it held one."""
        had_slot, self._has_slot = self._has_slot, False
        return had_slot

    @property
    def is_settling(self) -> bool:
        """Tell whether the end is known: what is left is to note it and to wake the awaiters."""
        return self._state is not None and self._state.is_terminal

    def mark_unknown(self) -> None:
        """Note that nobody knows what became of the create: from now on it can be decided by hand."""
        self._state = TaskState.UNKNOWN
        self.note_progress()

    def hold_request(self, request: TaskRequest) -> None:
        """Hold what was asked for, as `resubmit` needs it."""
        self.request = request

    def forget_request(self) -> None:
        """Hold what was asked for no longer."""
        self.request = None

    def join(self, intent_id: str, ref: str | None, model: str, request: TaskRequest | None) -> None:
        """Learn which create the task of this handle came from."""
        self.intent_id, self.ref, self.model = intent_id, ref, model or self.model
        self.request = self.request or request

    def mark_retrieved(self) -> None:
        """Log no failure that nobody awaits: the user asked for no wait."""
        self._is_retrieved = True

    def observe(self, record: TaskRecord) -> bool:
        """Take in a record, unless it is staler than the last; tell whether the state has changed."""
        if record is self.record:
            return False
        before = self._state or TaskState.UNKNOWN
        state = advance(before, record.state)
        # Answers overtake each other: one that would move the state back is the older of two.
        if record.state is not TaskState.UNKNOWN and state is not record.state:
            return False
        has_news = record != self.record
        self._state, self.record = state, record
        if has_news and self._readers:
            self._wake_readers()
        return state is not before

    def observe_like(self, other: TaskHandle) -> None:
        """Take in what another handle of the same task has seen."""
        if other.record is not None:
            self.observe(other.record)

    def settle_like(self, other: TaskHandle) -> None:
        """Settle as another handle of the same task did."""
        self.observe_like(other)
        if other._outcome is not None:
            self.settle(other._outcome)

    def note_progress(self) -> None:
        """Wake those who follow it: its place or its phase has changed."""
        if self._readers:
            self._wake_readers()

    def settle(self, outcome: TaskResult | KieError) -> None:
        """Settle once and wake everybody; later calls change nothing."""
        if self._outcome is None:
            self._outcome = outcome
            awaiters, self._awaiters = self._list_awaiters(), None
            for future in awaiters:
                if not future.done():
                    self._resolve_awaiter(future, outcome)
            if self._readers:
                self._wake_readers()

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, None
        for future in readers or ():
            if not future.done():
                future.set_result(None)
