"""The session: what the user opens, asks and closes."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from . import wire
from .callbacks import CallbackReceiver
from .checks import check_above_zero, check_callback_url, check_origin, is_loopback
from .creates import Breaker, CreateTransport
from .errors import (
    InvalidRequest,
    RateLimited,
    ServerError,
    SessionMisuse,
    TaskAbandoned,
    TaskDetached,
    TransportError,
)
from .files import Files
from .handle import TaskHandle
from .inflight import InFlight
from .inputs import TaskRequest, TypedInput, as_request
from .intake import Intake
from .journal import Intent, Journal
from .limiter import Limiter
from .models import (
    Budget,
    Counters,
    Limits,
    SessionEvent,
    SessionStats,
    TaskRecord,
    TaskResult,
    UploadedFile,
)
from .poll_schedule import PollSchedule
from .poller import Poller
from .signing import address_mac, as_keys, derive_callback_secret
from .sqlite_journal import SqliteJournal
from .states import TASK_ID
from .transport import Secret, Transport, delays

BASE_URL = "https://api.kie.ai"
UPLOAD_URL = "https://kieai.redpandaai.co"
_QUERY_ATTEMPTS = 4
_log = logging.getLogger("kie_async")
_T = TypeVar("_T")


class KieSession:
    """A session with the Kie.ai jobs API: ``async with KieSession() as kie``.

    Without *api_key* the environment's ``KIE_API_KEY`` is used, without *base_url* its ``KIE_BASE_URL``,
    else the service. *callback_url* is where the service can reach *receiver*. *max_in_flight* tasks
    exist unsettled at most. *journal* is the path of the durable record; without it a crash forgets
    paid tasks. *task_timeout_s* is how long a created task is waited for.
    *confirm_callbacks* None confirms deliveries by a query when the receiver has no keys, True always,
    False never. *callback_secrets* sign callback addresses, the first one new ones; by default they
    derive from the key. *on_event* is called with each `SessionEvent`, on the loop.

    Raises:
        InvalidRequest: An argument is wrong; the message names it.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        upload_url: str | None = None,
        callback_url: str | None = None,
        receiver: CallbackReceiver | None = None,
        journal: str | Path | None = None,
        max_in_flight: int = 100,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        poll: PollSchedule = PollSchedule(),  # noqa: B008  (frozen)
        task_timeout_s: float = 3600.0,
        budget: Budget | None = None,
        confirm_callbacks: bool | None = None,
        callback_secrets: Sequence[str | bytes] = (),
        allow_insecure_callbacks: bool = False,
        on_event: Callable[[SessionEvent], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        check_above_zero("max_in_flight", max_in_flight)
        check_above_zero("task_timeout_s", task_timeout_s)
        self._key = Secret(_read_key(api_key))
        base_url = base_url or os.environ.get("KIE_BASE_URL") or BASE_URL
        self._base_url = check_origin("base_url", base_url)
        self._upload_url = check_origin("upload_url", upload_url or _upload_url_for(self._base_url))
        self._callback_url = _check_callbacks(
            callback_url, receiver, allow_insecure=allow_insecure_callbacks or is_loopback(self._base_url)
        )
        self._receiver = receiver
        self._limits = limits
        self._schedule = poll
        self._task_timeout_s = task_timeout_s
        self._budget = budget
        self._rng = rng or random.Random()
        self._counters = Counters()
        self._journal = Journal() if journal is None else SqliteJournal(journal)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closing = False
        self._is_attached = False
        self._watchers: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(max_in_flight)
        self._in_flight = InFlight(
            journal=self._journal,
            counters=self._counters,
            callback_secrets=_secrets(callback_secrets, self._key),
            confirm_callbacks=confirm_callbacks,
            confirm=self._confirm,
            spawn=self._spawn,
            free_slot=self._slots.release,
            new_handle=self._new_handle,
            on_event=on_event,
        )

    def __repr__(self) -> str:
        return f"<KieSession {self._base_url} in_flight={len(self._in_flight)}>"

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the session on the running event loop; ``async with`` does it for you.

        Raises:
            SessionMisuse: It was opened before.
            JournalError: The journal cannot be opened or trusted.
            JournalLocked: Another session or process has it open.
        """
        if self._loop is not None:
            raise SessionMisuse("a session opens once; make a new KieSession")
        loop = self._loop = asyncio.get_running_loop()
        self._creates = CreateTransport(
            self._base_url, self._key, connections=self._limits.create_connections
        )
        self._queries = Transport(self._base_url, self._key, connections=self._limits.query_connections)
        self._query_limiter = Limiter(self._limits.query, now=loop.time)
        allow_private = is_loopback(self._base_url)
        self._files = Files(self._upload_url, self._key, allow_private=allow_private, rng=self._rng)
        self._in_flight.poller = self._poller = Poller(
            ask=self._ask,
            deliver=self._in_flight.deliver,
            give_up=self._in_flight.close,
            expire=self._in_flight.expire,
            limiter=self._query_limiter,
            schedule=self._schedule,
            connections=self._limits.query_connections,
            loop=loop,
            rng=self._rng,
        )
        self._intake = Intake(
            table=self._in_flight,
            poller=self._poller,
            files=self._files,
            transport=self._creates,
            breaker=Breaker(now=loop.time),
            limiter=Limiter(self._limits.create, now=loop.time),
            journal=self._journal,
            counters=self._counters,
            slots=self._slots,
            budget=self._budget,
            address=self._address,
            new_handle=self._new_handle,
            watches_callbacks=self._receiver is not None,
            rng=self._rng,
        )
        try:
            await self._in_flight.replay()
        except BaseException:
            await self.aclose()
            raise
        if self._receiver is not None:
            self._receiver.attach(self._in_flight)
            self._is_attached = True
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session; a second call does nothing.

        Creates whose body has left get ten seconds to learn their id. Handles still in flight settle
        with `TaskDetached`; their tasks go on and can be attached again.
        """
        if self._loop is None or self._is_closing:
            self._is_closing = True
            return
        self._check_loop()
        self._is_closing = True
        await self._intake.drain()
        if self._receiver is not None and self._is_attached:
            self._receiver.detach(self._in_flight)
        await self._poller.aclose()
        for watcher in list(self._watchers):
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._in_flight.drain()
        self._detach_all()
        for closing in (self._creates, self._queries, self._files, self._journal):
            await closing.aclose()

    def _detach_all(self) -> None:
        handles = self._in_flight.handles
        if not handles:
            return
        names = ", ".join(handle.task_id or f"intent {handle._intent_id}" for handle in handles)
        _log.warning("session closed with %d tasks in flight; they go on: %s", len(handles), names)
        for handle in handles:
            if handle.task_id:
                self._in_flight.close(handle, TaskDetached(handle.task_id, handle.record))
            else:
                self._in_flight.expire(handle)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise SessionMisuse("this session belongs to another event loop; open one per loop")

    def _check_usable(self) -> None:
        if self._loop is None:
            raise SessionMisuse("the session is not open; use 'async with KieSession() as kie'")
        if self._is_closing:
            raise SessionMisuse("the session is closed; open a new one")
        self._check_loop()

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        watcher = asyncio.get_running_loop().create_task(work)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return watcher

    # --- tasks ---------------------------------------------------------------------------------

    async def create(
        self,
        request: TaskRequest | TypedInput | str,
        input: Mapping[str, Any] | None = None,
        *,
        ref: str | None = None,
        timeout_s: float | None = None,
    ) -> TaskHandle:
        """Create one task and return its handle: of ``KlingAvatar(...)``, or of ``"any/model", {...}``.

        Waits its turn when *max_in_flight* tasks are unsettled or the create limit is used up, first
        come first served; cancelling that wait sends nothing. A cancel after the body has left stops
        only the caller: the task is watched on. *timeout_s* bounds the wait for the task's end.

        Raises:
            InvalidRequest: An argument is wrong; nothing was sent.
            ApiError: The service refused; nothing was created.
            TransportError: Nothing was sent.
            CreateOutcomeUnknown: The body left and nothing proves what happened; never sent again.
            BudgetExceeded: The budget is spent; nothing was sent.
            SessionMisuse: The session is not open here.
        """
        self._check_usable()
        wish = as_request(request, input, ref)
        timeout_s = self._timeout_s(timeout_s)
        return await self._intake.create(wish, timeout_s)

    async def run(
        self,
        request: TaskRequest | TypedInput | str,
        input: Mapping[str, Any] | None = None,
        *,
        ref: str | None = None,
        timeout_s: float | None = None,
    ) -> TaskResult:
        """Create one task and return its result; takes the arguments of `create`.

        Raises:
            KieError: Whatever `create` or awaiting its handle raises.
        """
        return await (await self.create(request, input, ref=ref, timeout_s=timeout_s))

    def attach(self, task_id: str, *, timeout_s: float | None = None) -> TaskHandle:
        """Return a handle for a task created earlier, perhaps by another process; does no I/O itself.

        Polling starts at once. An id that is in flight here has one handle, which is returned again.

        Raises:
            InvalidRequest: The id is not one of the service's.
            SessionMisuse: The session is not open here.
        """
        self._check_usable()
        _check_task_id(task_id)
        timeout_s = self._timeout_s(timeout_s)
        handle = self._in_flight.get(task_id)
        if handle is None:
            handle = self._new_handle(Intent(intent_id="", model=""))
            handle.deadline += timeout_s
            self._in_flight.bind(handle, task_id)
            self._poller.watch(handle, expects_callback=False, at_once=True)
        return handle

    async def resume(self) -> list[TaskHandle]:
        """Return a handle for every unsettled task of the journal; each is polled at once. Sends no create.

        Creates of unknown outcome are among them, without a task id: they settle if a callback
        adopts them. Calling it again returns the same handles.

        Raises:
            JournalError: The journal cannot be read.
            SessionMisuse: The session is not open here.
        """
        self._check_usable()
        return await self._in_flight.resume(asyncio.get_running_loop().time() + self._task_timeout_s)

    async def query(self, task_id: str) -> TaskRecord:
        """Return the record of a task as it stands; transient failures are asked again a few times.

        Raises:
            InvalidRequest: The id is not one of the service's.
            ApiError: The service said no; `NotFound` or `RequestRejected` when it does not know the task.
            TransportError: No readable answer came.
            SessionMisuse: The session is not open here.
        """
        _check_task_id(task_id)
        return await self._retrying(lambda: self._ask(task_id))

    async def credits(self) -> float:
        """Return the account's balance; one credit is 0.005 USD.

        Raises:
            ApiError: The service said no.
            TransportError: No readable answer came.
            SessionMisuse: The session is not open here.
        """
        return await self._retrying(self._read_credits)

    async def upload(self, file: str | Path | bytes) -> UploadedFile:
        """Give the service a local file, its bytes, or a file it shall fetch from a URL; kept three days.

        Images are JPEG, PNG or WebP, audio is MP3, WAV, AAC, M4A or OGG, told by their first bytes.

        Raises:
            InvalidRequest: The file is missing, too large or of another kind; nothing was sent.
            UploadRefused: The upload service said no.
            TransportError: It could not be reached.
        """
        self._check_usable()
        return await self._files.upload(file)

    async def download(self, result: TaskResult | TaskRecord, folder: str | Path) -> list[Path]:
        """Fetch all files of a result into *folder* and return their paths, in the order of the URLs.

        Names are ours: task id, number, and an ending told by the content. A file appears under its
        name only when it is complete.

        Raises:
            ResultExpired: The service no longer has a file.
            DownloadFailed: A file could not be fetched; the task is done and paid, ask again.
        """
        self._check_usable()
        return await self._files.download(result.urls, folder, task_id=result.task_id)

    def stats(self) -> SessionStats:
        """Return what the session did so far."""
        return self._counters.snapshot(in_flight=len(self._in_flight))

    # --- what a handle asks of its session -----------------------------------------------------

    def abandon(self, handle: TaskHandle) -> None:
        """Settle a handle as abandoned; see `TaskHandle.abandon`."""
        if not handle.is_done:
            self._in_flight.close(handle, TaskAbandoned(handle.task_id, handle.record))

    async def resolve(self, handle: TaskHandle, task_id: str) -> None:
        """Bind an unknown create to a task; see `TaskHandle.resolve`.

        Raises:
            InvalidRequest: The task is of another model, or belongs to another handle.
        """
        record = await self.query(task_id)
        if handle._model and record.model and record.model != handle._model:
            raise InvalidRequest(f"task {task_id} is of model {record.model}, not of {handle._model}")
        await self._in_flight.adopt(handle, record, adopted_by="hand")

    def write_off(self, handle: TaskHandle) -> None:
        """Settle an unknown create as lost; see `TaskHandle.write_off`."""
        self._spawn(self._in_flight.write_off(handle))

    async def resubmit(self, handle: TaskHandle) -> TaskHandle:
        """Send the request of an unknown create as a new task; see `TaskHandle.resubmit`."""
        if handle.request is None:
            raise InvalidRequest("this handle does not hold its request; create a new task")
        await self._in_flight.write_off(handle)
        return await self.create(attrs.evolve(handle.request, ref=None))

    # --- reading -------------------------------------------------------------------------------

    async def _ask(self, task_id: str) -> TaskRecord:
        record, _ = await self._confirm(task_id)
        return record

    async def _confirm(self, task_id: str) -> tuple[TaskRecord, str | None]:
        self._counters.queries += 1
        response = await self._queries.send(wire.encode_query(task_id))
        try:
            return wire.decode_confirmation(response, task_id)
        except RateLimited:
            self._counters.rate_limited += 1
            raise

    async def _read_credits(self) -> float:
        return wire.decode_credits(await self._queries.send(wire.encode_credits()))

    async def _retrying(self, read: Callable[[], Awaitable[_T]]) -> _T:
        """Read once, and a few times more if that may help."""
        self._check_usable()
        waits = delays(self._rng)
        for _ in range(_QUERY_ATTEMPTS - 1):
            try:
                return await self._limited(read)
            except (TransportError, ServerError, RateLimited) as exc:
                wait_s = exc.retry_after_s if isinstance(exc, RateLimited) else None
                await asyncio.sleep(next(waits) if wait_s is None else wait_s)
                self._counters.retries += 1
        return await self._limited(read)

    async def _limited(self, read: Callable[[], Awaitable[_T]]) -> _T:
        await self._query_limiter.acquire()
        try:
            return await read()
        finally:
            self._query_limiter.answered()

    # --- making --------------------------------------------------------------------------------

    def _new_handle(self, intent: Intent, request: TaskRequest | None = None) -> TaskHandle:
        loop = asyncio.get_running_loop()
        return TaskHandle(
            owner=self,
            loop=loop,
            deadline=loop.time(),
            intent_id=intent.intent_id,
            request=request,
            ref=intent.ref,
            model=intent.model,
            fingerprint=intent.fingerprint,
        )

    def _address(self, intent_id: str) -> str | None:
        if self._callback_url is None:
            return None
        mac = address_mac(intent_id, secret=self._in_flight.callback_secrets[0])
        return f"{self._callback_url}/{intent_id}/{mac}"

    def _timeout_s(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._task_timeout_s
        check_above_zero("timeout_s", timeout_s)
        return timeout_s


def _read_key(api_key: str | None) -> str:
    key = os.environ.get("KIE_API_KEY", "") if api_key is None else api_key
    if not key.strip():
        raise InvalidRequest("api_key is missing: pass KieSession(api_key) or set KIE_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key.strip():
        raise InvalidRequest("api_key holds characters that no key has; copy it again from kie.ai/api-key")
    return key.strip()


def _upload_url_for(base_url: str) -> str:
    """Return where files go: a sandbox takes them itself."""
    return UPLOAD_URL if base_url == BASE_URL else base_url


def _check_callbacks(
    url: str | None, receiver: CallbackReceiver | None, *, allow_insecure: bool
) -> str | None:
    if url is None:
        if receiver is not None:
            raise InvalidRequest("callback_url is missing: a receiver hears nothing without it")
        return None
    return check_callback_url(url, allow_insecure=allow_insecure)


def _secrets(given: Sequence[str | bytes], key: Secret) -> tuple[bytes, ...]:
    return as_keys(given, field="callback_secrets") or (derive_callback_secret(key.reveal()),)


def _check_task_id(task_id: str) -> None:
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise InvalidRequest(f"task_id must be 1 to 128 letters, digits, - or _, got {str(task_id)[:40]!r}")
