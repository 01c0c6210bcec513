"""Builds the parts of one session, opens and closes them. Nobody else constructs a part."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .._background import BackgroundTasks
from .._validation import is_loopback
from ..config import Budget, Rate
from ..creating.create_call import CreateCalls
from ..creating.create_transport import CreateTransport
from ..creating.create_weather import CreateWeather
from ..errors import JournalLocked, SessionMisuse
from ..events import Counters
from ..files.downloads import Downloads
from ..files.names import check_template, fill
from ..files.upload_client import UploadClient
from ..files.upload_store import MemoryUploadStore, UploadStore
from ..files.uploads import Uploads
from ..handle import TaskHandle
from ..http.query_client import QueryClient
from ..http.transport import Transport
from ..journal.base import Journal
from ..journal.memory import MemoryJournal
from ..journal.postgres import PostgresJournal, is_dsn
from ..journal.shared import SharedJournal
from ..journal.sqlite import SqliteJournal
from ..limits.admission import Admission
from ..limits.budget import BudgetLedger
from ..limits.circuit_breaker import CircuitBreaker
from ..limits.prices import PriceBook
from ..limits.query_speed import QueryPace
from ..limits.rate_limiter import Permits, RateLimiter
from ..models import Estimate
from ..planning.planner import PollPlanner
from ..polling.poller import Poller
from ..wire.redaction import Redactor
from .charges import Charges
from .create_notes import CreateNotes
from .create_queue import CreateQueue
from .creator import TaskCreator
from .estimates import Estimates
from .event_hook import EventHook
from .inbox import CallbackInbox
from .journal_room import WaitForRoom
from .kept_speed import KeptQuerySpeed
from .kept_uploads import JournalUploadStore
from .reconciler import Reconciler
from .recovery import Recovery
from .relay import WorkerRelay
from .result_folder import ResultFolder
from .settings import Settings
from .shared_ledger import SharedLedger
from .submitter import Submitter
from .tracker import TaskTracker

_NAMES_A_LINE = 25

_with_journal: weakref.WeakSet[Engine] = weakref.WeakSet()
"""Those that have a journal, each its own: whoever fails to open it must not close it for the other."""

_log = logging.getLogger("kie_async")
_T = TypeVar("_T")


class Engine:
    """The parts of one open session, on the loop they run on. It is the `HandleOwner` of its handles."""

    def __init__(self, settings: Settings, counters: Counters) -> None:
        self.loop = asyncio.get_running_loop()
        self._is_open = False
        self._is_attached = False
        self.settings = settings
        key, limits, rng, now = settings.key, settings.limits, settings.rng, self.loop.time
        self.journal = _journal_of(settings.journal)
        if any(other.journal is self.journal for other in _with_journal):
            raise JournalLocked(
                "another session has this journal open; give each session a journal object of its own"
            )
        _with_journal.add(self)
        self.background = BackgroundTasks("kie_async watcher")

        self.events = EventHook(settings.on_event)
        redactor = Redactor(settings.secrets)
        query_limiter = RateLimiter(limits.query, now=now)
        account = settings.account
        self._query_speed = KeptQuerySpeed(limits, self.journal, account=account.secret, origin=account.url)
        self._query_pace = QueryPace(query_limiter, self._query_speed)
        self._query_transport = Transport(
            settings.base_url,
            key,
            connections=limits.query_connections,
            network=settings.network,
            redactor=redactor,
        )
        self.queries = QueryClient(self._query_transport, self._query_pace, counters=counters, rng=rng)
        self.uploads = Uploads(
            UploadClient(settings.upload_url, key, rng=rng, network=settings.network, redactor=redactor),
            store=_upload_store(self.journal, settings),
        )
        self.downloads = Downloads(
            allow_loopback=is_loopback(settings.base_url),
            rng=rng,
            network=settings.network,
            api=self._query_transport,
        )
        create_permits = _permits_of(self.journal, limits.create, now)
        self.admission = Admission(settings.max_in_flight)
        self.calls = CreateCalls(
            transport=CreateTransport(
                settings.base_url,
                key,
                connections=limits.create_connections,
                network=settings.network,
                redactor=redactor,
            ),
            rate_limiter=create_permits,
            breaker=CircuitBreaker(now=now, sink=self.events),
            journal=self.journal,
            counters=counters,
            rng=rng,
            weather=CreateWeather(
                api=settings.base_url,
                uploads=settings.upload_url,
                max_in_flight=settings.max_in_flight,
                room=self.admission,
                now=now,
                sink=self.events,
            ),
            timeout_s=settings.create_timeout_s,
            queries=self.queries,
        )

        self.poller = Poller(
            self.queries,
            self._query_pace,
            PollPlanner(settings.poll),
            connections=limits.query_connections,
            rng=rng,
            weather=self.events,
        )
        self.queue = CreateQueue(self.admission, self.calls, settings.max_queued)
        prices = PriceBook()
        self.ledger = self._ledger_of(settings.budget, self.journal, prices)
        self.charges = Charges(self.uploads, prices, self.ledger)
        callbacks = settings.callbacks
        self.tracker = TaskTracker(
            self.poller, self.journal, counters, self.admission, self.charges, self.events, callbacks, self
        )
        self.reconciler = Reconciler(
            self.tracker, self.queries, self.journal, counters, callbacks, self.background
        )
        self.recovery = Recovery(self.tracker, self.journal, self.ledger)
        self.inbox = CallbackInbox(
            self.tracker, self.reconciler, self.recovery, self.journal, counters, callbacks, redactor
        )
        self.relay = self._relay_of(self.journal, settings)
        self.creator = TaskCreator(
            self.tracker,
            self.recovery,
            CreateNotes(self.tracker, self.reconciler, self.journal),
            self.calls,
            self.uploads,
            self.queue,
            self.ledger,
            settings,
        )
        self.estimates = Estimates(self.poller, self.tracker.registry, create_permits, settings, now=now)
        self.submitter = Submitter(self.creator, self.tracker, self.queue, self.background)
        # The one way back up: the tracker asks the poller to poll, the poller hands it what it found.
        self.poller.start(self.tracker)

    def _ledger_of(self, budget: Budget | None, journal: Journal, prices: PriceBook) -> BudgetLedger | None:
        if budget is None:
            return None
        if isinstance(journal, SharedJournal):
            return SharedLedger(budget, prices, journal, self.background)
        return BudgetLedger(budget, prices)

    def _relay_of(self, journal: Journal, settings: Settings) -> WorkerRelay | None:
        if not isinstance(journal, SharedJournal):
            return None
        return WorkerRelay(
            self.recovery,
            self.reconciler,
            self.inbox,
            journal,
            self.events,
            self._query_pace,
            self._query_speed,
            settings,
        )

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the journal and begin to take in callbacks.

        Raises:
            JournalError: The journal cannot be opened or trusted, or belongs to another account.
        """
        try:
            await self.recovery.replay(self.settings.account)
            learned = await self.journal.load_durations()
            self.poller.restore(learned)
            self.charges.restore(learned)
            await self._query_speed.recall(self.loop.time())
            self._query_pace.adjust()
            if self.relay is not None:
                await self.relay.open()
        except BaseException:
            await self.aclose()
            raise
        # Callbacks only after the replay: before it, every intent of the journal would be answered 503.
        self._is_open = True
        self.reconciler.consider_all()
        if self.settings.receiver is not None:
            self.settings.receiver.attach(self.inbox)
            self._is_attached = True

    async def aclose(self) -> None:
        """Stop everything, at once if cancelled meanwhile; tasks in flight go on at the service."""
        caller = asyncio.current_task()
        try:
            await self.creator.drain()
        finally:
            # Shielded: a close cut short would leave the journal open and name no task that goes on.
            stop = self._stop(caller)
            self._stopping = asyncio.get_running_loop().create_task(stop, name="kie_async stop")
            await asyncio.shield(self._stopping)

    async def _stop(self, caller: asyncio.Task[Any] | None) -> None:
        self._is_open = False
        # Nothing new comes in; then what was seen to end is noted; connections and the journal go last.
        if self.settings.receiver is not None and self._is_attached:
            self.settings.receiver.detach(self.inbox)
        if self.relay is not None:
            await self.relay.aclose()
        await self.poller.aclose()
        await self.reconciler.finish_asking()
        await self.background.aclose()
        await self.reconciler.drain()
        await self.tracker.drain()
        await self._query_speed.drain()
        if (learned := self.poller.take_learned()) is not None:
            await self.tracker.save_learned(learned)
        self._detach_all()
        for part in (self.calls.transport, self._query_transport, self.uploads, self.downloads, self.journal):
            await part.aclose()
        _with_journal.discard(self)
        await self.events.drain(caller)

    def __del__(self) -> None:
        """Say what goes on, and close what can be closed, when the event loop ended without `aclose`.

        While the loop runs, its timers hold this; a handle outlives the session object it came from.
        A loop that only stopped, as in a notebook or at the end of the program, is not closed.
        """
        if self._is_open and not self.loop.is_running():
            log_what_goes_on("a session was never closed", self.tracker.registry.handles)
            for part in (self.calls.transport, self._query_transport, self.uploads, self.downloads):
                part.close_nowait()

    def _detach_all(self) -> None:
        handles = [*self.tracker.registry.handles, *self.tracker.pending.unknown_handles]
        if handles:
            log_what_goes_on("session closed", handles)
        self.tracker.detach_all()
        self.submitter.end_all()

    # --- what a batch asks of its session ------------------------------------------------------

    def open_room(self, give_up_after_s: float) -> WaitForRoom:
        """Return what lets the creates of one batch wait while the disk of the journal is full."""
        return WaitForRoom(self.tracker.journal_room, give_up_after_s, self.settings.rng)

    def open_folder(self, folder: Path, give_up_after_s: float, name: str | None = None) -> ResultFolder:
        """Return what saves the results of one batch; *name* is the template of their names, checked.

        Raises:
            InvalidRequest: It is no template.
        """
        if name is not None:
            check_template("name", name)
        return ResultFolder(
            folder,
            give_up_after_s,
            name,
            downloads=self.downloads,
            queries=self.queries,
            journal=self.journal,
            settings=self.settings,
            sink=self.events,
        )

    def fill_name(self, template: str, **fields: str) -> str:
        """Return a safe name for the files of a task.

        Raises:
            InvalidRequest: It is no template of these fields.
        """
        check_template("name", template, tuple(fields))
        return fill(template, fields)

    # --- work that must not outlive the session ------------------------------------------------

    async def until_closed(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what *work* returns, and do not let it outlive the session.

        Raises:
            SessionMisuse: The session closed meanwhile.
        """
        task = self.background.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise SessionMisuse("the session closed before an answer came") from None
            task.cancel()
            raise

    # --- what a handle asks of its session -----------------------------------------------------

    def queue_position(self, handle: TaskHandle) -> int | None:
        """Return how many creates go before a handle's; see `TaskHandle.queue_position`."""
        return self.submitter.queue_position(handle)

    async def until_created(self, handle: TaskHandle) -> None:
        """Wait for the task of a handle; see `TaskHandle.created`."""
        await self.submitter.until_created(handle)

    def withdraw(self, handle: TaskHandle) -> bool:
        """Take back what has not left; see `TaskHandle.withdraw`."""
        return self.submitter.withdraw(handle)

    def estimate(self, handle: TaskHandle) -> Estimate | None:
        """Return how long a handle still takes; see `TaskHandle.estimate`."""
        return self.estimates.of(handle, self.queue_position(handle))

    def abandon(self, handle: TaskHandle) -> None:
        """Settle a handle as abandoned; see `TaskHandle.abandon`."""
        self.tracker.abandon(handle)

    def candidate_of(self, handle: TaskHandle) -> str:
        """Return the task that a create may have become; see `TaskHandle.candidate_task_id`."""
        pending = self.tracker.pending.get(handle.intent_id)
        return "" if pending is None else pending.candidate_task_id

    async def resolve(self, handle: TaskHandle, task_id: str) -> None:
        """Bind an unknown create to a task; see `TaskHandle.resolve`."""
        await self.until_closed(self.reconciler.resolve(handle, task_id))

    def write_off(self, handle: TaskHandle) -> None:
        """Settle an unknown create as lost; see `TaskHandle.write_off`."""
        self.reconciler.write_off_soon(handle)

    async def resubmit(self, handle: TaskHandle) -> TaskHandle:
        """Send the request of an unknown create as a new task; see `TaskHandle.resubmit`."""
        return await self.creator.resubmit(handle)


def log_what_goes_on(why: str, handles: Iterable[TaskHandle]) -> None:
    """Log every task that nobody waits for any more: without a journal its id may stand nowhere else."""
    handles = list(handles)
    names = [_name_of(handle) for handle in handles]
    lines = [", ".join(names[at : at + _NAMES_A_LINE]) for at in range(0, len(names), _NAMES_A_LINE)]
    counted = (
        "1 task in flight; it goes on" if len(names) == 1 else f"{len(names)} tasks in flight; they go on"
    )
    remedy = "; kie.attach(id) waits for one again" if any(handle.task_id for handle in handles) else ""
    _log.warning("%s with %s: %s%s", why, counted, lines[0] if lines else "none", remedy)
    for line in lines[1:]:
        _log.warning("%s, also in flight: %s", why, line)


def _name_of(handle: TaskHandle) -> str:
    ref = f" (ref {handle.ref!r})" if handle.ref is not None else ""
    return (handle.task_id or f"intent {handle.intent_id}") + ref


def _journal_of(given: str | Path | Journal | None) -> Journal:
    if isinstance(given, Journal):
        return given
    if isinstance(given, str) and is_dsn(given):
        return PostgresJournal(given)
    return MemoryJournal() if given is None else SqliteJournal(given)


def _permits_of(journal: Journal, rate: Rate, now: Callable[[], float]) -> Permits:
    return journal.share_creates(rate) if isinstance(journal, SharedJournal) else RateLimiter(rate, now=now)


def _upload_store(journal: Journal, settings: Settings) -> UploadStore:
    if not journal.is_durable:
        return MemoryUploadStore()
    origins = (settings.base_url, settings.upload_url)
    return JournalUploadStore(journal, account=settings.account.secret, origins=origins)
