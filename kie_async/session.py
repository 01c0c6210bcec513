"""The session with the service: what a user opens, creates tasks with and closes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ._background import BoundToLoop
from ._secrets import Secret, as_secrets
from ._validation import (
    check_above_zero,
    check_callback_url,
    check_count,
    check_journal_path,
    check_kind,
    check_origin,
    check_path,
    check_task_id,
    host_of,
    is_loopback,
    read_account,
    read_environment,
    read_key,
)
from .batch import GIVE_UP_AFTER_S, MAX_FAILURES_IN_A_ROW, Batch, Requests
from .callbacks.address import derive_callback_secret
from .callbacks.receiver import CallbackReceiver
from .config import Budget, Limits, Network, PollSchedule
from .engine.create_queue import QueuedCreate
from .engine.engine import Engine
from .engine.event_hook import check_hook
from .engine.settings import CallbackPolicy, Settings, with_environment
from .errors import SESSION_CLOSED, InvalidRequest, SessionMisuse
from .events import Counters, SessionEvent, SessionStats
from .handle import TaskHandle
from .inputs.media import Media
from .inputs.request import TaskRequest, TypedInput, as_request
from .journal.account import Account, derive_account_name
from .journal.base import Journal
from .journal.postgres import is_dsn
from .models import Price, SettledTask, TaskRecord, TaskResult, UploadedFile, only_url

BASE_URL = "https://api.kie.ai"
_log = logging.getLogger("kie_async")
UPLOAD_URL = "https://kieai.redpandaai.co"

_JOURNAL = "the path of a file, a postgresql:// URL, a SqliteJournal or a PostgresJournal"

MAX_READ_BYTES = 64 * 1024 * 1024


class KieSession(BoundToLoop):
    """A session with the Kie.ai jobs API: ``async with KieSession() as kie``.

    Without *api_key* the environment's ``KIE_API_KEY`` is used, without *base_url* its ``KIE_BASE_URL``,
    else the service. *callback_url* is where the service can reach *receiver*. *max_in_flight* tasks
    exist unsettled at most, and *max_queued* creates wait for a slot and their turn, None for any number.
    *journal* is the path of the durable record, or a `SqliteJournal`; a ``postgresql://...`` URL, or a
    `PostgresJournal`, is one that several workers share; without one a crash forgets paid tasks.
    *task_timeout_s* is how long a created task is waited for.
    *confirm_callbacks* None confirms deliveries by a query when the receiver has no keys, True always,
    False never. *callback_secrets* sign callback addresses, the first one new ones; by default they
    derive from the key. *account* is a name of your own for the account, never sent anywhere: needed where
    keys are rotated, since a journal that was given the name takes each key of the account, and refuses every
    other account. Keep *callback_secrets* over a rotation too, or what came before it is polled for.
    *network* names a proxy, certificates and networks that are let in. *on_event*
    is called with each `SessionEvent`, on the loop; what it returns is awaited if it can be.

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
        journal: str | Path | Journal | None = None,
        max_in_flight: int = 100,
        max_queued: int | None = None,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        poll: PollSchedule = PollSchedule(),  # noqa: B008  (frozen)
        task_timeout_s: float = 3600.0,
        create_timeout_s: float | None = 120.0,
        budget: Budget | None = None,
        confirm_callbacks: bool | None = None,
        callback_secrets: Sequence[str | bytes] = (),
        account: str | None = None,
        allow_insecure_callbacks: bool = False,
        network: Network = Network(),  # noqa: B008  (frozen)
        on_event: Callable[[SessionEvent], Awaitable[None] | None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        for field, value, kind, what in (
            ("receiver", receiver, (CallbackReceiver, type(None)), "a CallbackReceiver"),
            ("journal", journal, (str, Path, Journal, type(None)), _JOURNAL),
            ("limits", limits, Limits, "Limits(...)"),
            ("poll", poll, PollSchedule, "a PollSchedule"),
            ("budget", budget, (Budget, type(None)), "a Budget, such as Budget(credits=500)"),
            ("confirm_callbacks", confirm_callbacks, (bool, type(None)), "True, False or None"),
            ("allow_insecure_callbacks", allow_insecure_callbacks, bool, "True or False"),
            ("network", network, Network, "a Network"),
            ("rng", rng, (random.Random, type(None)), "a random.Random"),
        ):
            check_kind(field, value, kind, what)
        if isinstance(journal, str | Path) and not is_dsn(str(journal)):
            check_journal_path(journal)
        check_hook(on_event)
        check_count("max_in_flight", max_in_flight)
        if max_queued is not None:
            check_count("max_queued", max_queued)
        check_above_zero("task_timeout_s", task_timeout_s)
        if create_timeout_s is not None:
            check_above_zero("create_timeout_s", create_timeout_s)
        if receiver is not None and callback_url is None:
            raise InvalidRequest("callback_url is missing: a receiver gets nothing without it")
        key = Secret(read_key(api_key))
        name = read_account(account)
        base_url = _base_url(base_url, network)
        secrets = as_secrets(callback_secrets, field="callback_secrets")
        if callback_url is not None:
            is_local = (
                allow_insecure_callbacks or is_loopback(base_url) or network.allows_http(host_of(base_url))
            )
            callback_url = check_callback_url(callback_url, allow_insecure=is_local)
        self._settings = Settings(
            account=Account(url=base_url, key=key, name=None if name is None else derive_account_name(name)),
            upload_url=check_origin(
                "upload_url", upload_url or _upload_url_for(base_url), http_hosts=network.allow_http_to
            ),
            receiver=receiver,
            callbacks=CallbackPolicy(
                url=callback_url,
                secrets=secrets or (derive_callback_secret(key.reveal()),),
                confirm=confirm_callbacks,
                is_received=receiver is not None,
            ),
            journal=journal,
            max_in_flight=max_in_flight,
            max_queued=max_queued,
            limits=limits,
            network=with_environment(network, base_url),
            poll=poll,
            task_timeout_s=task_timeout_s,
            create_timeout_s=create_timeout_s,
            budget=budget,
            on_event=on_event,
            rng=rng or random.Random(),
        )
        self._counters = Counters()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: Engine | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._opened else "not open"
        return f"<KieSession {self._settings.base_url} {state}>"

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the session on the running event loop; ``async with`` does it for you.

        Raises:
            SessionMisuse: It was opened before.
            JournalError: The journal cannot be opened or trusted, or belongs to another account or service.
            JournalLocked: Another session or process has it open.
        """
        if self._loop is not None or self._is_closed:
            raise SessionMisuse("a session opens once; make a new KieSession")
        self._loop = asyncio.get_running_loop()
        engine = Engine(self._settings, self._counters)
        await engine.open()
        self._opened = engine
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

        Raises:
            SessionMisuse: Called on another event loop.
        """
        if self._opened is not None and not self._is_closed:
            self._check_loop()
        was_closed, self._is_closed = self._is_closed, True
        if self._opened is not None and not was_closed:
            await self._opened.aclose()

    @property
    def _engine(self) -> Engine:
        """Return the open session's parts.

        Raises:
            SessionMisuse: It is not open here.
        """
        if self._is_closed:
            raise SessionMisuse(SESSION_CLOSED)
        if self._opened is None:
            raise SessionMisuse("the session is not open; use 'async with KieSession() as kie'")
        self._check_loop()
        return self._opened

    def _check_loop(self) -> None:
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if not is_here:
            raise SessionMisuse("this session belongs to another event loop; open one per loop")

    # --- tasks ---------------------------------------------------------------------------------

    async def create(
        self,
        request: TaskRequest | TypedInput | str,
        input: Mapping[str, Any] | None = None,
        *,
        ref: str | None = None,
        lane: str | int | None = None,
        timeout_s: float | None = None,
    ) -> TaskHandle:
        """Create one task and return its handle: of ``KlingAvatar(...)``, or of ``"any/model", {...}``.

        It is `submit` and the wait for `TaskHandle.created`: waits its turn when *max_in_flight* tasks are
        unsettled or the create limit is used up, as `submit` says; cancelling that wait sends nothing. A
        cancel after the body has left stops only the caller: the task is watched on. *timeout_s* bounds the
        wait for the task's end.

        *ref* is your own key, such as the id of an order or a message: one ref, one paid task, for as long
        as the journal lives. Asked for again, it is the same task. Without a journal it is forgotten when
        the task ends.

        Raises:
            InvalidRequest: An argument is wrong; nothing was sent.
            RefConflict: The ref stands for another request; nothing was sent.
            ApiError: The service refused; nothing was created.
            TransportError: Nothing was sent; the service was out of reach for *create_timeout_s*.
            CreateOutcomeUnknown: The body left and nothing proves what happened; never sent again.
            BudgetExceeded: The budget is spent; nothing was sent.
            QueueFull: *max_queued* creates wait already; nothing was sent.
            SessionMisuse: The session is not open here.
        """
        engine = self._engine
        asked, timeout_s = as_request(request, input, ref), self._timeout_s(timeout_s)
        return await engine.creator.create(asked, timeout_s, entry=QueuedCreate(lane=_checked_lane(lane)))

    def submit(
        self,
        request: TaskRequest | TypedInput | str,
        input: Mapping[str, Any] | None = None,
        *,
        ref: str | None = None,
        lane: str | int | None = None,
        timeout_s: float | None = None,
    ) -> TaskHandle:
        """Return the handle of a task that is yet to be created, at once; takes the arguments of `create`.

        It waits in the queue, as `TaskHandle.queue_position` says, and `TaskHandle.withdraw` takes it back.
        Requests with a *lane*, the id of a chat or a customer, take turns lane by lane, first come first
        served within one; those without are one lane, and each batch has one of its own. Nobody need await
        the handle: it runs, and a failure that nobody asked for is logged. What keeps a task from being made
        is raised by `TaskHandle.created` and by awaiting the handle.

        A *ref* that is known gives the handle it stands for, or one that shares its task.

        Raises:
            InvalidRequest: An argument is wrong.
            QueueFull: *max_queued* creates wait already.
            SessionMisuse: The session is not open here.
        """
        engine = self._engine
        asked, timeout_s = as_request(request, input, ref), self._timeout_s(timeout_s)
        return engine.submitter.submit(asked, timeout_s, _checked_lane(lane))

    async def run(
        self,
        request: TaskRequest | TypedInput | str,
        input: Mapping[str, Any] | None = None,
        *,
        ref: str | None = None,
        lane: str | int | None = None,
        timeout_s: float | None = None,
    ) -> TaskResult:
        """Create one task and return its result; takes the arguments of `create`.

        One *ref* is one paid task: asked for again, it yields the same result as long as the journal lives.

        Raises:
            KieError: Whatever `create` or awaiting its handle raises.
        """
        handle = await self.create(request, input, ref=ref, lane=lane, timeout_s=timeout_s)
        try:
            return await handle
        except asyncio.CancelledError:
            if not handle.is_done:  # its caller never saw the id, and a wait_for or a TaskGroup loses it
                _log.warning("%s; kie.attach(%r) waits for it again", _goes_on(handle), handle.task_id)
            raise

    def attach(self, task_id: str, *, timeout_s: float | None = None) -> TaskHandle:
        """Return a handle for a task created earlier, perhaps by another process; does no I/O itself.

        Polling starts at once. An id that is in flight here has one handle, which is returned again.

        Raises:
            InvalidRequest: The id is not one of the service's.
            SessionMisuse: The session is not open here.
        """
        engine = self._engine
        check_task_id(task_id)
        return engine.tracker.attach(task_id, self._deadline(timeout_s))

    async def resume(self) -> list[TaskHandle]:
        """Return a handle for every unsettled task of the journal; each is polled at once. Sends no create.

        Creates of unknown outcome are among them, without a task id: they settle if a callback
        adopts them. Calling it again returns the same handles.

        Raises:
            JournalError: The journal cannot be read.
            SessionMisuse: The session is not open here.
        """
        return await self._engine.recovery.resume(self._deadline(None))

    def unknown_creates(self) -> list[TaskHandle]:
        """Return a handle for every create of unknown outcome, those of the journal too; polls nothing.

        Each can `resolve`, `write_off` or `resubmit`; the last needs a journal that keeps bodies, or the same
        request created again.

        Raises:
            SessionMisuse: The session is not open here.
        """
        return self._engine.recovery.list_unknown(self._deadline(None))

    async def find_unknown_create(self, name: str) -> TaskHandle | None:
        """Return the handle of a create of unknown outcome by its ref or its intent; None if there is none.

        In a journal that workers share it may be any worker's.

        Raises:
            JournalError: The journal cannot be read.
            SessionMisuse: The session is not open here.
        """
        check_kind("name", name, str, "a ref or the id of an intent")
        return await self._engine.recovery.find_unknown(name, self._deadline(None))

    def taken_over(self) -> AsyncIterator[TaskHandle]:
        """Return the tasks of workers that are gone, as this one takes them over, to be iterated.

        A bot answers those of its refs. They are followed, and their ends noted, whether anybody iterates or
        not. The iteration ends when the session closes; of several, each gets some.

        Raises:
            InvalidRequest: No other worker has this journal: it is not on PostgreSQL.
            SessionMisuse: The session is not open here.
        """
        relay = self._engine.relay
        if relay is None:
            raise InvalidRequest("taken_over needs a journal that workers share: journal='postgresql://...'")
        return relay.taken_over()

    def settled(self, *, since: datetime | None = None, ref_prefix: str = "") -> AsyncIterator[SettledTask]:
        """Return the tasks that the journal knows to have ended: ``async for task in kie.settled()``.

        For a bot that died between the end of a task and its answer: all are given again each time, the
        oldest end first. *since* is an aware datetime, compared with `SettledTask.ended_at`; *ref_prefix* is
        how their refs begin. Asks the service nothing. Without a durable journal there are none.

        Raises:
            InvalidRequest: An argument is wrong.
            JournalError: From the iteration: the journal cannot be read.
            SessionMisuse: The session is not open here.
        """
        check_kind("since", since, (datetime, type(None)), "an aware datetime")
        if since is not None and since.utcoffset() is None:
            raise InvalidRequest("since has no time zone; give an aware datetime: datetime.now(UTC) - ...")
        check_kind("ref_prefix", ref_prefix, str, "how the refs begin")
        return self._engine.recovery.iterate_settled(since, ref_prefix)

    def batch(
        self,
        requests: Requests,
        *,
        download_to: str | Path | None = None,
        name: str | None = None,
        max_failures_in_a_row: int | None = MAX_FAILURES_IN_A_ROW,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        retry_failed: bool = False,
    ) -> Batch:
        """Return the outcomes of many requests as they finish: ``async for outcome in kie.batch(jobs)``.

        *requests* is a sync or async iterable of any length, pulled only when there is room, so that
        memory stays bounded. One ref is one paid task: as long as the journal lives, refs that have settled
        are answered from it and unsettled ones are waited for again; a request without a ref is known by its
        content. Without a journal a ref is forgotten when its task ends. With *download_to*
        the files of each result are fetched into that folder, which is tried before anything is sent, as is
        the host that results come from. A disk that fills up stops creating; after *give_up_after_s* without
        room the batch ends, at once if that is 0. When so many tasks of one model fail in a row without a
        success, the batch stops; None is never. An unreachable service, its limits, and a halt after creates
        of unknown outcome are waited out, as the log and the ``weather`` events say.

        *name* is how the files are named, such as ``"{ref}"``; `{task_id}`, `{model}` and `{index}`, which is
        `Outcome.index`, may stand in it too. What no file system takes becomes ``_``, several files of a
        result get a number, and where another has the name the end of the task id follows. Without it they
        are named after task id and number. Files of former runs keep their names.

        With *retry_failed* a request whose task failed in a former run, or that was refused, gets a new
        attempt, which is paid, under the same ref; its content may be another. Never one that may be running
        or is perhaps paid; and no ref gets two attempts in one batch.

        Raises:
            InvalidRequest: An argument is wrong; or, from the iteration, no result could be saved.
            BatchStopped: From the iteration, when no further request could succeed.
            SessionMisuse: The session is not open here.
        """
        return Batch(
            requests,
            self._engine,
            download_to=download_to,
            name=name,
            max_failures_in_a_row=max_failures_in_a_row,
            give_up_after_s=give_up_after_s,
            retry_failed=retry_failed,
        )

    async def query(self, task_id: str) -> TaskRecord:
        """Return the record of a task as it stands; transient failures are asked again a few times.

        Raises:
            InvalidRequest: The id is not one of the service's.
            ApiError: The service said no; `NotFound` or `RequestRejected` when it does not know the task.
            TransportError: No readable answer came.
            SessionMisuse: The session is not open here.
        """
        engine = self._engine
        return await engine.until_closed(engine.queries.query(task_id))

    async def credits(self) -> float:
        """Return the account's balance; one credit is 0.005 USD.

        Raises:
            ApiError: The service said no.
            TransportError: No readable answer came.
            SessionMisuse: The session is not open here.
        """
        engine = self._engine
        return await engine.until_closed(engine.queries.credits())

    async def upload(self, file: Media) -> UploadedFile:
        """Give the service a local file, bytes, a binary stream, or a file it shall fetch from a URL.

        It is kept for a day. A local file that the service still has is not sent again; bytes and streams
        are, and a stream is read from its beginning. Files of any kind go up, of any size: images of 10 MB
        and audio of 100 MB are the most the service takes.

        Raises:
            InvalidRequest: The file is missing or too large; nothing was sent.
            UploadRefused: The upload service said no.
            TransportError: It could not be reached.
            AuthenticationError: The key is not good.
            SessionMisuse: The session is not open here, or closed meanwhile.
        """
        return await self._engine.uploads.upload(file)

    async def download(
        self, result: TaskResult | TaskRecord, folder: str | Path, *, name: str | None = None
    ) -> list[Path]:
        """Fetch all files of a result into *folder* and return their paths, in the order of the URLs.

        Names are ours: task id, number, and an ending by the content, else by the type. *name* is another
        one, in which `{task_id}` and `{model}` may stand, as in `batch`; it gets the ending too. A file
        appears under its name only when it is complete; one that broke off goes on where its host allows. A
        file of this task that is there already is not fetched again, whatever its name.

        Raises:
            ResultExpired: The service no longer has a file.
            DownloadFailed: A file could not be fetched; the task is done and paid, ask again.
            InvalidRequest: An argument is wrong, or the record's task id is not fit for a file name.
            SessionMisuse: The session is not open here, or closed meanwhile.
        """
        engine = self._engine
        check_kind("result", result, (TaskResult, TaskRecord), "a TaskResult, which awaiting a handle yields")
        check_path("folder", folder)
        stem = None
        if name is not None:
            stem = engine.fill_name(name, task_id=result.task_id, model=_record_of(result).model)
        return await engine.downloads.download(result.urls, folder, task_id=result.task_id, name=stem)

    async def read(self, result: TaskResult | TaskRecord | str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Return the one file of a result, or of a URL of a result, as bytes.

        Raises:
            ResultExpired: The service no longer has the file.
            DownloadFailed: It could not be fetched, or has more than *max_bytes*.
            InvalidRequest: The result is several files, or none.
            SessionMisuse: The session is not open here.
        """
        engine = self._engine
        check_count("max_bytes", max_bytes)
        return await engine.downloads.read(_url_of(result), max_bytes=max_bytes)

    async def stream(self, result: TaskResult | TaskRecord | str) -> AsyncGenerator[bytes, None]:
        """Yield the file of a URL, or of a result, block by block: ``async for block in kie.stream(url)``.

        A connection that breaks is made again, and the file goes on where it broke off. A loop that is left
        early keeps its connection until the generator is closed: ``contextlib.aclosing`` does that at once.

        Raises:
            ResultExpired: The service no longer has the file.
            DownloadFailed: It could not be fetched to its end.
            InvalidRequest: The result is several files, or none.
            SessionMisuse: The session is not open here.
        """
        async with aclosing(self._engine.downloads.stream(_url_of(result))) as blocks:
            async for block in blocks:
                yield block

    def price(
        self, request: TaskRequest | TypedInput | str, input: Mapping[str, Any] | None = None
    ) -> Price | None:
        """Return what a task is expected to cost, before it exists; takes the request as `create` does.

        From what the last tasks of the model took that ended here, or in earlier runs with the journal; else
        from the service's price table. Local audio is measured by the headers of its file, which takes some
        milliseconds; that of a URL is known if `upload` gave it here. None if nobody knows.

        Raises:
            InvalidRequest: An argument is wrong.
            SessionMisuse: The session is not open here.
        """
        return self._engine.charges.price(as_request(request, input, None))

    def expected_s(self, model: str) -> float | None:
        """Return how many seconds a task of a model takes in the median, queueing at the service included.

        From the tasks of the model that ended here, or in earlier runs with the journal; before three did,
        from a table of what users measured, and None where that does not know the model.

        Raises:
            SessionMisuse: The session is not open here.
        """
        check_kind("model", model, str, "the name of a model")
        return self._engine.estimates.expected_s(model)

    def stats(self) -> SessionStats:
        """Return what the session did so far."""
        engine = self._opened
        if engine is None:
            return self._counters.snapshot(in_flight=0, queued=0)
        return self._counters.snapshot(in_flight=len(engine.tracker.registry), queued=len(engine.queue))

    def _timeout_s(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._settings.task_timeout_s
        check_above_zero("timeout_s", timeout_s)
        return timeout_s

    def _deadline(self, timeout_s: float | None) -> float:
        return asyncio.get_running_loop().time() + self._timeout_s(timeout_s)


def _checked_lane(lane: str | int | None) -> str | int | None:
    check_kind("lane", lane, (str, int, type(None)), "a text or a number, such as the id of a chat")
    return lane


def _goes_on(handle: TaskHandle) -> str:
    ref = f" (ref {handle.ref!r})" if handle.ref is not None else ""
    return f"task {handle.task_id}{ref} goes on and is billed, though run() was cancelled"


def _base_url(given: str | None, network: Network) -> str:
    """Return where the API is: as given, as ``KIE_BASE_URL`` says, or at the service."""
    named = read_environment("KIE_BASE_URL")
    field, url = ("base_url", given) if given or not named else ("KIE_BASE_URL", named)
    return check_origin(field, url or BASE_URL, http_hosts=network.allow_http_to)


def _upload_url_for(base_url: str) -> str:
    """Return where files go: a sandbox takes them itself."""
    return UPLOAD_URL if base_url == BASE_URL else base_url


def _record_of(result: TaskResult | TaskRecord) -> TaskRecord:
    return result.record if isinstance(result, TaskResult) else result


def _url_of(result: TaskResult | TaskRecord | str) -> str:
    if isinstance(result, TaskResult | TaskRecord):
        return only_url(result.urls)
    if not isinstance(result, str):
        raise InvalidRequest(f"result must be a TaskResult or a URL, got {type(result).__name__}")
    return result
