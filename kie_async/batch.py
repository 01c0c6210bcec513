"""Many requests in, outcomes out as they finish, in bounded memory; run again and nothing is paid twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import attrs

from .errors import (
    AuthenticationError,
    BatchStopped,
    BudgetExceeded,
    CreateOutcomeUnknown,
    CreatesHalted,
    InsufficientCredits,
    InvalidRequest,
    JournalError,
    KieError,
    QuotaExceeded,
    SessionMisuse,
    TaskTimedOut,
)
from .handle import TaskHandle
from .inputs import TaskRequest, TypedInput, as_request, fingerprint
from .models import TaskResult

Requests = Iterable[TaskRequest | TypedInput] | AsyncIterable[TaskRequest | TypedInput]
_STOPPING = (
    AuthenticationError,
    BudgetExceeded,
    CreatesHalted,
    InsufficientCredits,
    JournalError,
    QuotaExceeded,
    SessionMisuse,
)
"""What the next request would meet as well."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one request of a batch: a result or an error."""

    index: int
    """The request's place in the batch, from 0."""
    ref: str | None
    request: TaskRequest
    task_id: str = ""
    """Empty when no task is known."""
    result: TaskResult | None = None
    error: KieError | None = None
    files: tuple[Path, ...] = ()
    """The downloaded files, if the batch downloads."""

    @property
    def ok(self) -> bool:
        """Tell whether there is a result and nothing went wrong with it."""
        return self.error is None

    def unwrap(self) -> TaskResult:
        """Return the result.

        Raises:
            KieError: The error, if there is one.
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None  # noqa: S101  (without an error there is a result)
        return self.result


class Creator(Protocol):
    """What a batch asks of its session."""

    async def create(self, request: TaskRequest) -> TaskHandle:
        """Create one task."""

    async def download(self, result: TaskResult, folder: str | Path) -> list[Path]:
        """Fetch the files of a result."""


class Batch:
    """An asynchronous iterator of outcomes, in the order they finish.

    A request is pulled only when there is room for it: *room* requests are unfinished or not yet
    looked at. One failure never cancels another. Leaving an ``async with`` block early stops creating;
    what is paid runs on and stands in the journal. When the account or the journal itself says no, the
    iteration ends with `BatchStopped` after the outcomes of everything begun.
    """

    def __init__(
        self,
        requests: Requests,
        *,
        session: Creator,
        room: int,
        creating: int,
        is_durable: bool,
        adoption_grace_s: float,
        download_to: str | Path | None,
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
    ) -> None:
        self._source = _pulled(requests)
        self._session = session
        self._creating = asyncio.Semaphore(creating)
        self._is_durable = is_durable
        self._adoption_grace_s = adoption_grace_s
        self._download_to = download_to
        self._spawn = spawn
        self._room = asyncio.Semaphore(room)
        self._begun_at = datetime.now(UTC)
        self._alike: Counter[bytes] = Counter()
        self._finished: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._feeding: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._stop: KieError | None = None

    # --- reading -------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._feeding is None:
            self._feeding = self._spawn(self._feed())
        outcome = await self._finished.get()
        if outcome is not None:
            self._room.release()
            return outcome
        self._finished.put_nowait(None)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop creating and waiting; tasks in flight stay in flight in the session and its journal."""
        watchers = [*self._running, *([self._feeding] if self._feeding else [])]
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await self._source.aclose()
        self._finished.put_nowait(None)

    # --- feeding -------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Pull requests while there is room; end when all is done, or what was begun after a stop."""
        try:
            await self._pull_all()
        except Exception as exc:  # the iterable is the user's and may raise anything
            self._failure = exc
        while self._running:
            await asyncio.wait(set(self._running))
        if self._stop is not None and self._failure is None:
            self._failure = BatchStopped(str(self._stop))
            self._failure.__cause__ = self._stop
        self._finished.put_nowait(None)

    async def _pull_all(self) -> None:
        index = 0
        while True:
            await self._room.acquire()
            if self._stop is not None:
                return
            try:
                request = as_request(await anext(self._source))
            except StopAsyncIteration:
                return
            running = self._spawn(self._run(index, request))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
            index += 1

    async def _run(self, index: int, request: TaskRequest) -> None:
        outcome = Outcome(index=index, ref=request.ref, request=request)
        try:
            request = await self._with_ref(request)
            outcome = attrs.evolve(outcome, ref=request.ref, request=request)
            handle = await self._create(request)
            outcome = attrs.evolve(outcome, task_id=handle.task_id)
            result = await handle
            outcome = attrs.evolve(outcome, task_id=result.task_id, result=result)
            if self._download_to is not None:
                files = await self._session.download(result, self._download_to)
                outcome = attrs.evolve(outcome, files=tuple(files))
        except KieError as exc:
            outcome = attrs.evolve(outcome, error=exc)
        self._finished.put_nowait(outcome)

    async def _with_ref(self, request: TaskRequest) -> TaskRequest:
        """Return the request with a ref: in a journal, what was asked for names a request that has none."""
        if request.ref is not None or not self._is_durable:
            return request
        asked = await asyncio.to_thread(fingerprint, request)
        self._alike[asked[:12]] += 1
        return attrs.evolve(request, ref=f"auto:{asked[:12].hex()}:{self._alike[asked[:12]]}")

    async def _create(self, request: TaskRequest) -> TaskHandle:
        async with self._creating:
            if self._stop is not None:
                raise BatchStopped(str(self._stop))
            try:
                return await self._session.create(request)
            except _STOPPING as exc:
                self._stop = self._stop or exc
                raise
            except CreateOutcomeUnknown as exc:
                if exc.handle is None or exc.since >= self._begun_at:
                    raise
                unknown = exc
        return await self._adopted(unknown)

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


async def _pulled(requests: Requests) -> AsyncGenerator[TaskRequest | TypedInput, None]:
    """Yield from either kind of iterable, one at a time.

    Raises:
        InvalidRequest: It is neither.
    """
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    elif isinstance(requests, Iterable):
        for request in requests:
            yield request
    else:
        raise InvalidRequest(f"requests must be an iterable of requests, got {type(requests).__name__}")
