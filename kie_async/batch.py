"""Many requests in, outcomes out as they finish, in bounded memory; run again and nothing is paid twice."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from ._background import BoundToLoop
from ._validation import check_count, check_kind, check_path, check_wait
from .engine.create_queue import QueuedCreate
from .engine.engine import Engine, log_what_goes_on
from .engine.job_states import state_after
from .engine.journal_room import WaitForRoom
from .engine.result_folder import ResultFolder
from .errors import (
    ApiError,
    AuthenticationError,
    BatchStopped,
    BudgetExceeded,
    CreateOutcomeUnknown,
    InsufficientCredits,
    InvalidRequest,
    JournalAway,
    JournalError,
    JournalFull,
    KieError,
    QuotaExceeded,
    ResultUnreadable,
    SessionMisuse,
    TaskError,
    TaskFailed,
    TaskTimedOut,
)
from .handle import TaskHandle
from .inputs.fingerprint import fingerprint
from .inputs.request import TaskRequest, TypedInput, as_request
from .models import JobState, ResultOrError, TaskResult

Requests = Iterable[TaskRequest | TypedInput] | AsyncIterable[TaskRequest | TypedInput]
_STOPPING = (
    AuthenticationError,
    BudgetExceeded,
    InsufficientCredits,
    JournalError,
    QuotaExceeded,
    SessionMisuse,
)
"""What the next request would meet as well."""
MAX_FAILURES_IN_A_ROW = 20
GIVE_UP_AFTER_S = 6 * 3600.0
"""So long a full disk is waited for."""
_WARN_AT_FAILURES = 5
STOP_WAS_CALLED = "stop() was called"
ADOPTION_GRACE_S, _NO_GRACE_S = 5.0, 0.01
"""How long a create of unknown outcome of a former run is given to be adopted, with and without callbacks."""

_log = logging.getLogger("kie_async")


@attrs.frozen(kw_only=True)
class Outcome(ResultOrError):
    """What became of one request of a batch: a result or an error."""

    index: int
    """The request's place in the batch, from 0."""
    ref: str | None
    """The request's own; in a journal, one made of its content if it has none."""
    request: TaskRequest
    """What was asked for, with the ref it got."""
    task_id: str = ""
    """Empty when no task is known."""
    result: TaskResult | None = None
    """Also there when only the download failed."""
    error: KieError | None = None
    """What went wrong; None if nothing did."""
    files: tuple[Path, ...] = ()
    """The downloaded files, if the batch downloads."""
    saved_by: str = ""
    """The other host, and the folder there, that has the files: each result is fetched once by all workers of
    a shared journal. Empty if they are here."""

    @property
    def state(self) -> JobState:
        """How the job stands, in the word that people read."""
        return state_after(self.error, has_task=bool(self.task_id), has_result=self.result is not None)


class Batch(BoundToLoop):
    """An asynchronous iterator of outcomes, in the order they finish.

    A request is pulled only when there is room for it: so many are unsettled, and as many again
    downloading or not yet read. One failure never cancels another. When the account or the
    journal itself says no, or a disk stays full, the iteration ends with `BatchStopped` after the
    outcomes of all that was pulled. An unreachable service, its limits and a halt of creates are waited
    out. Leaving the loop early stops creating; what is paid runs on and stands in the journal.
    Under ``async with`` that is so when the block ends, else as soon as nobody holds the batch.
    """

    def __init__(
        self,
        requests: Requests,
        engine: Engine,
        *,
        download_to: str | Path | None = None,
        name: str | None = None,
        max_failures_in_a_row: int | None = MAX_FAILURES_IN_A_ROW,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        retry_failed: bool = False,
    ) -> None:
        if download_to is not None:
            check_path("download_to", download_to)
        if max_failures_in_a_row is not None:
            check_count("max_failures_in_a_row", max_failures_in_a_row)
        check_wait("give_up_after_s", give_up_after_s)
        check_kind("retry_failed", retry_failed, bool, "True or False")
        if name is not None and download_to is None:
            raise InvalidRequest("name goes with download_to: it says how the files are named in that folder")
        folder = None if download_to is None else engine.open_folder(Path(download_to), give_up_after_s, name)
        streaks = _FailureStreaks(max_failures_in_a_row)
        room = engine.open_room(give_up_after_s)
        self._run = _BatchRun(requests, engine, folder, streaks, room, retry_failed=retry_failed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        return await self._run.next()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if (run := getattr(self, "_run", None)) is not None:
            run.close_nowait()

    def stop(self) -> None:
        """Create nothing more; the outcomes of what is begun still come.

        Requests that were pulled and whose create has not left become outcomes with a `BatchStopped`.
        """
        self._run.stop()

    async def aclose(self) -> None:
        """Stop creating and waiting, once creates on the wire know their id; tasks in flight go on."""
        await self._run.aclose()


class _BatchRun:
    """What runs behind a `Batch`. It does not hold the batch, so one that is let go can be noticed."""

    def __init__(
        self,
        requests: Requests,
        engine: Engine,
        folder: ResultFolder | None,
        streaks: _FailureStreaks,
        room: WaitForRoom,
        *,
        retry_failed: bool,
    ) -> None:
        self._pull = _pull_from(requests)
        self._engine = engine
        self._folder = folder
        self._room = room
        self._streaks = streaks
        self._attempted: set[str] | None = set() if retry_failed else None
        """Refs of attempts under way or failed in this run, which get no other in it; None if no ref does."""
        self._loop = asyncio.get_running_loop()
        self._begun_at = datetime.now(UTC)
        self._token = secrets.token_bytes(8)
        settings = engine.settings
        self._adoption_grace_s = ADOPTION_GRACE_S if settings.receiver is not None else _NO_GRACE_S
        # A row waits in up to seven queues, always in this order: a slot of the batch, a turn to create, its
        # ref's turn, a slot of the session, a connection, the rate limit, an unread slot. Whoever holds one
        # gives it back without waiting for an earlier one (a session's slot comes back when a task settles,
        # which needs none of them), so no circle of rows can wait for each other. Only a reader that stops
        # reading stops them all, as it should.
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._unread_slots = asyncio.Semaphore(settings.max_in_flight)
        self._creating = asyncio.Semaphore(settings.limits.create_connections)
        self._pulling: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._creates: set[asyncio.Task[TaskHandle]] = set()
        self._awaited: set[TaskHandle] = set()
        self._finished: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._is_stopped = False
        self._reason: KieError | None = None
        """What stopped creating, if it was not the user."""
        self._failure: BaseException | None = None
        """What the iteration ends with."""

    # --- reading -------------------------------------------------------------------------------

    async def next(self) -> Outcome:
        """Return the next outcome; the first call sets everything going."""
        if self._pulling is None and not self._is_stopped:
            self._pulling = self._begin(self._pull_all())
        outcome = None if self._is_over else await self._finished.get()
        if outcome is not None:
            self._unread_slots.release()
            return outcome
        self._finished.put_nowait(None)  # for whoever asks again
        failure, self._failure = self._failure, None
        raise failure or StopAsyncIteration

    @property
    def _is_over(self) -> bool:
        return not self._running and self._finished.empty()

    # --- stopping ------------------------------------------------------------------------------

    def stop(self, reason: KieError | None = None) -> None:
        """Create nothing more; see `Batch.stop`. *reason* is what the next request would meet as well."""
        if self._is_stopped:
            return
        self._is_stopped, self._reason = True, reason
        self._room.stop()
        if self._folder is not None:
            self._folder.stop()
        for task in (self._pulling, *self._creates):
            if task is not None and task is not asyncio.current_task(self._loop):
                task.cancel()

    async def aclose(self) -> None:
        """Stop creating and waiting; see `Batch.aclose`."""
        self.stop()
        try:
            # Their rows must wait: what is on the wire may be paid, and has to learn its id first.
            if self._creates:
                await asyncio.wait(self._creates)
        finally:
            if left := [handle for handle in self._awaited if not handle.is_done]:
                log_what_goes_on("a batch was left", left)
            running = list(self._running)
            for task in running:
                task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def close_nowait(self) -> None:
        """Close without waiting, from wherever the last reference was dropped."""
        if self._running and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_soon)

    def _close_soon(self) -> None:
        if self._running:
            self._engine.background.spawn(self.aclose())

    def _not_sent(self) -> BatchStopped:
        why = self._reason
        numbers = [getattr(why, name, None) for name in ("budget", "spent", "held")]
        return BatchStopped(str(why) if why else STOP_WAS_CALLED, *numbers)

    # --- running -------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._engine.background.spawn(work)
        self._running.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Keep count; when nothing runs any more, tell the reader."""
        self._running.discard(task)
        if task.cancelled():
            if not self._is_stopped:  # not by us
                self.stop(SessionMisuse("the session closed"))
        elif (error := task.exception()) is not None:
            self._failure = self._failure or error
            if task is not self._pulling:
                self.stop()
        if not self._running:
            if self._reason is not None and self._failure is None:
                self._failure = self._not_sent()
                self._failure.__cause__ = self._reason
            self._finished.put_nowait(None)

    async def _pull_all(self) -> None:
        """Pull requests while there is room. What the user's iterable raises ends the iteration, later.

        Raises:
            InvalidRequest: No result could be saved.
        """
        if self._folder is not None:
            await self._folder.check()
        for index in itertools.count():
            await self._slots.acquire()
            if (pulled := await self._pull()) is None:
                return
            try:
                request = as_request(pulled[0])
            except InvalidRequest as exc:
                raise InvalidRequest(f"requests[{index}]: {exc}") from exc
            self._begin(self._run_one(index, request))
            if self._is_stopped:
                return

    async def _run_one(self, index: int, request: TaskRequest) -> None:
        try:
            outcome = await self._settled(Outcome(index=index, ref=request.ref, request=request))
            await self._unread_slots.acquire()  # with the slot still taken: a slow reader slows the pulling
        finally:
            self._slots.release()
        try:
            if outcome.result is not None and self._folder is not None:
                outcome = await self._downloaded(outcome, outcome.result, self._folder)
        except BaseException:
            self._unread_slots.release()  # no reader of the outcome will
            raise
        self._finished.put_nowait(outcome)

    async def _settled(self, outcome: Outcome) -> Outcome:
        """Create the task and wait for its end."""
        try:
            request, digest = await self._with_ref(outcome.request)
            outcome = attrs.evolve(outcome, ref=request.ref, request=request)
            handle = await self._handle_for(request, digest)
            self._engine.tracker.outlast_weather(handle)
            outcome = attrs.evolve(outcome, task_id=handle.task_id)
            try:
                outcome = attrs.evolve(outcome, result=await self._result_of(handle))
            finally:
                if handle.is_done:
                    self._awaited.discard(handle)
        except KieError as exc:
            outcome = attrs.evolve(outcome, error=exc)
        if self._attempted is not None and not isinstance(outcome.error, TaskFailed | ApiError):
            self._attempted.discard(outcome.ref or "")
        return outcome

    async def _result_of(self, handle: TaskHandle) -> TaskResult:
        """Wait for a task's end; stop the batch when its model does nothing but fail.

        Raises:
            KieError: What awaiting the handle raises.
        """
        if handle.is_done:  # in a former run, as the journal says: that is no news of the model
            return await handle
        try:
            result = await handle
        except (TaskFailed, ResultUnreadable) as exc:
            if (reason := self._streaks.count_failure(handle.model, exc)) is not None:
                self.stop(reason)
            raise
        self._streaks.count_success(handle.model)
        return result

    async def _downloaded(self, outcome: Outcome, result: TaskResult, folder: ResultFolder) -> Outcome:
        try:
            saved = await folder.save(result, ref=outcome.ref, index=outcome.index)
            return attrs.evolve(outcome, files=saved.files, saved_by=saved.by)
        except KieError as exc:
            if folder.reason_to_stop is not None:
                self.stop(folder.reason_to_stop)
            return attrs.evolve(outcome, error=exc)

    async def _with_ref(self, request: TaskRequest) -> tuple[TaskRequest, bytes | None]:
        """Return the request with a ref, and its fingerprint if that was needed.

        In a journal, what was asked for names a request that has none.
        """
        if request.ref is not None or not self._engine.journal.is_durable or self._is_stopped:
            return request, None
        digest = await asyncio.to_thread(fingerprint, request)
        name = digest[:12]
        # Equal rows are as many tasks as there are rows; the number tells them apart, in any run the same.
        number = await self._engine.journal.count_occurrence(self._token + name)
        return attrs.evolve(request, ref=f"auto:{name.hex()}:{number}"), digest

    # --- creating ------------------------------------------------------------------------------

    async def _handle_for(self, request: TaskRequest, digest: bytes | None) -> TaskHandle:
        async with self._creating:
            if self._folder is not None:
                await self._folder.wait_for_room()
            try:
                return await self._room.create(lambda: self._create(request, digest))
            except _STOPPING as exc:
                # The disk that was full for the id of one task is waited for by the others.
                if not isinstance(exc.__cause__, JournalFull | JournalAway):
                    self.stop(exc)
                raise
            except CreateOutcomeUnknown as exc:
                # An unknown create of this run stays one for now; the callback of one of a former run may
                # be coming.
                if exc.handle is None or exc.since >= self._begun_at:
                    raise
                unknown = exc
        return await self._adopted(unknown)

    async def _create(self, request: TaskRequest, digest: bytes | None) -> TaskHandle:
        """Create in a task of its own, so that `stop` can keep back what has not left.

        Raises:
            BatchStopped: It was kept back.
            KieError: What `KieSession.create` raises.
        """
        if self._is_stopped:
            raise self._not_sent()
        timeout_s = self._engine.settings.task_timeout_s
        create = self._engine.background.spawn(
            self._engine.creator.create(
                request,
                timeout_s,
                wait_if_sent=True,
                known_fingerprint=digest,
                attempted=self._attempted,
                entry=QueuedCreate(lane=self),
            )
        )
        self._creates.add(create)
        create.add_done_callback(self._note_create)
        await asyncio.wait({create})
        if create.cancelled():
            self.stop(SessionMisuse("the session closed"))
            raise self._not_sent()
        return create.result()

    def _note_create(self, create: asyncio.Task[TaskHandle]) -> None:
        self._creates.discard(create)
        if not create.cancelled() and create.exception() is None:
            self._awaited.add(create.result())

    async def _adopted(self, unknown: CreateOutcomeUnknown) -> TaskHandle:
        """Return the handle of an unknown create of a former run, if a callback adopts it soon.

        Raises:
            CreateOutcomeUnknown: None did.
        """
        handle = unknown.handle
        assert handle is not None  # noqa: S101  (checked by the caller)
        try:
            await handle.result(timeout_s=self._adoption_grace_s)
        except TaskTimedOut:
            if not handle.task_id:
                raise unknown from None
        except KieError:
            if not handle.task_id:
                raise
        return handle


class _FailureStreaks:
    """Knows, model by model, the tasks that failed without a success in between."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        # By id, since several requests of one ref share a task; no more of them than are counted.
        self._failed: dict[str, set[str]] = {}
        self._warned: set[str] = set()

    def count_success(self, model: str) -> None:
        """Begin anew."""
        self._failed.pop(model, None)

    def count_failure(self, model: str, error: TaskError) -> KieError | None:
        """Count one more; return why to stop, if it is time."""
        failed = self._failed.setdefault(model, set())
        if len(failed) < (self._most or _WARN_AT_FAILURES):
            failed.add(error.task_id)
        words = f"{len(failed)} tasks of {model} failed in a row without a success, the last: {error}"
        if len(failed) == self._most:
            return KieError(words)
        if len(failed) == _WARN_AT_FAILURES and model not in self._warned:
            self._warned.add(model)
            _log.warning("%s", words)
        return None


def _pull_from(requests: Requests) -> Callable[[], Awaitable[tuple[TaskRequest | TypedInput] | None]]:
    """Return what pulls the next item out of either kind of iterable, and None after the last.

    What was given is borrowed: it is not closed, so the rest of a generator stays the caller's.

    Raises:
        InvalidRequest: It is neither kind.
    """
    if isinstance(requests, AsyncIterable):
        later = aiter(requests)

        async def pull_later() -> tuple[TaskRequest | TypedInput] | None:
            async for request in later:
                return (request,)
            return None

        return pull_later
    if not isinstance(requests, Iterable):
        raise InvalidRequest(f"requests must be an iterable of requests, got {type(requests).__name__}")
    now = iter(requests)

    async def pull_now() -> tuple[TaskRequest | TypedInput] | None:
        for request in now:
            return (request,)
        return None

    return pull_now
