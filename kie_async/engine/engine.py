"""What runs inside an open session: the parts, how they hang together, how they stop."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .._secrets import Secret
from .._validation import is_loopback
from ..callbacks.address import callback_mac
from ..callbacks.receiver import CallbackReceiver
from ..config import Budget, Limits, PollSchedule
from ..creating.create_transport import CreateTransport
from ..errors import JournalError, SessionMisuse, TaskDetached
from ..events import Counters, SessionEvent
from ..http.query_client import QueryClient
from ..http.transport import Transport
from ..journal.base import Journal
from ..journal.memory import MemoryJournal
from ..journal.sqlite import SqliteJournal
from ..limits.budget import BudgetGuard
from ..limits.circuit_breaker import CircuitBreaker
from ..limits.rate_limiter import RateLimiter
from ..planning.planner import Learned, PollPlanner
from ..polling.poller import Poller
from .creator import TaskCreator
from .files_tmp import Files
from .pending_creates import Intents
from .tracker import InFlight

_NAMES_A_LINE = 25

_log = logging.getLogger("kie_async")

_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Settings:
    """What a session was told, checked."""

    key: Secret
    base_url: str
    upload_url: str
    callback_url: str | None
    callback_secrets: tuple[bytes, ...] = attrs.field(repr=False)
    receiver: CallbackReceiver | None
    journal: str | Path | Journal | None
    max_in_flight: int
    limits: Limits
    poll: PollSchedule
    task_timeout_s: float
    budget: Budget | None
    confirm_callbacks: bool | None
    on_event: Callable[[SessionEvent], None] | None
    rng: random.Random

    def address(self, intent_id: str) -> str | None:
        """Return the callback URL of an intent: the path is its address, the last part proves it is ours."""
        if self.callback_url is None:
            return None
        return f"{self.callback_url}/{intent_id}/{callback_mac(intent_id, secret=self.callback_secrets[0])}"


class Engine:
    """The parts of one open session, made on the loop they run on."""

    def __init__(self, settings: Settings, counters: Counters) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._is_open = False
        limits, rng = settings.limits, settings.rng
        self._settings = settings
        self._watchers: set[asyncio.Task[Any]] = set()
        self._is_attached = False
        self.journal = _journal(settings.journal)
        self._creates = CreateTransport(
            settings.base_url, settings.key, connections=limits.create_connections
        )
        self._queries = Transport(settings.base_url, settings.key, connections=limits.query_connections)
        query_limiter = RateLimiter(limits.query, now=loop.time)
        slots = asyncio.Semaphore(settings.max_in_flight)
        expects_callbacks = settings.callback_url is not None and settings.receiver is not None
        self.reader = QueryClient(self._queries, query_limiter, counters=counters, rng=rng)
        self.files = Files(
            settings.upload_url, settings.key, allow_private=is_loopback(settings.base_url), rng=rng
        )
        self.table = InFlight(
            journal=self.journal, counters=counters, free_slot=slots.release, on_event=settings.on_event
        )
        self.intents = Intents(
            table=self.table,
            journal=self.journal,
            counters=counters,
            callback_secrets=settings.callback_secrets,
            confirm_callbacks=settings.confirm_callbacks,
            expects_callbacks=expects_callbacks,
            confirm=self.reader.confirm,
            spawn=self.spawn,
        )
        self._timetable = PollPlanner(settings.poll)
        self._poller = Poller(
            ask=lambda task_id: self.reader.ask(task_id, self.table.get(task_id)),
            deliver=self.table.deliver,
            give_up=self.table.close,
            expire=self.intents.expire,
            limiter=query_limiter,
            timetable=self._timetable,
            connections=limits.query_connections,
            loop=loop,
            rng=rng,
            keep=lambda learned: self.spawn(self._keep(learned)),
        )
        self.table.poller = self.intents.poller = self._poller
        spending = None
        if (budget := settings.budget) is not None:
            spending = BudgetGuard(budget, table=self.table, intents=self.intents, counters=counters)
        self.intake = self.intents.owner = TaskCreator(
            table=self.table,
            intents=self.intents,
            reader=self.reader,
            files=self.files,
            transport=self._creates,
            limiter=RateLimiter(limits.create, now=loop.time),
            breaker=CircuitBreaker(now=loop.time),
            journal=self.journal,
            counters=counters,
            slots=slots,
            spending=spending,
            task_timeout_s=settings.task_timeout_s,
            address=settings.address,
            expects_callbacks=expects_callbacks,
            spawn=self.spawn,
            rng=rng,
        )

    async def open(self) -> None:
        """Read the journal and begin to hear callbacks.

        Raises:
            JournalError: The journal cannot be opened or trusted.
        """
        try:
            await self.intents.replay()
            if self._settings.budget is not None:
                self.table.detached_ids = {intent.task_id for intent in await self.journal.list_unsettled()}
            self._timetable.restore(await self.journal.load_durations())
        except BaseException:
            await self.aclose()
            raise
        self._is_open = True
        if self._settings.receiver is not None:
            self._settings.receiver.attach(self.intents)
            self._is_attached = True

    async def aclose(self) -> None:
        """Stop everything, at once if cancelled meanwhile; tasks in flight go on at the service."""
        try:
            await self.intake.drain()
        finally:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name="kie_async stop")
            await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._is_open = False
        if self._settings.receiver is not None and self._is_attached:
            self._settings.receiver.detach(self.intents)
        await self._poller.aclose()
        for watcher in list(self._watchers):
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self.table.drain()
        if (learned := self._timetable.worth_keeping(1)) is not None:
            await self._keep(learned)
        self._detach_all()
        for part in (self._creates, self._queries, self.files, self.journal):
            await part.aclose()

    async def _keep(self, learned: Learned) -> None:
        try:
            await self.journal.save_durations(learned)
        except JournalError as exc:  # the next session begins with less; nothing that was paid is lost
            _log.info("what was learned could not be noted: %s", exc)

    def __del__(self) -> None:
        """Say what goes on, and close what can be closed, when the event loop ended without `aclose`.

        While the loop runs, its timers hold this; a handle outlives the session object it came from.
        """
        if self._is_open and self._loop.is_closed():
            names = [handle.task_id for handle in self.table.handles]
            _tell_what_goes_on("a session was never closed", names)
            for part in (self._creates, self._queries, self.files):
                part.close_nowait()

    def _detach_all(self) -> None:
        known, unknown = self.table.handles, self.intents.unknown_handles
        if not known and not unknown:
            return
        names = [handle.task_id for handle in known] + [f"intent {h._intent_id}" for h in unknown]
        _tell_what_goes_on("session closed", names)
        for handle in known:
            self.table.close(handle, TaskDetached(handle.task_id, handle.record))
        for handle in unknown:
            self.intents.expire(handle)

    async def until_closed(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what *work* returns, and do not let it outlive the session.

        Raises:
            SessionMisuse: The session closed meanwhile.
        """
        watcher = self.spawn(work)
        try:
            return await asyncio.shield(watcher)
        except asyncio.CancelledError:
            if watcher.cancelled():
                raise SessionMisuse("the session closed before an answer came") from None
            watcher.cancel()
            raise

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run *work* beside everything else, until it ends or the session closes."""
        watcher = asyncio.get_running_loop().create_task(work, name="kie_async watcher")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return watcher


def _tell_what_goes_on(why: str, names: Sequence[str]) -> None:
    """Log every task that nobody waits for any more: without a journal its id may stand nowhere else."""
    lines = [", ".join(names[at : at + _NAMES_A_LINE]) for at in range(0, len(names), _NAMES_A_LINE)]
    _log.warning("%s with %d tasks in flight; they go on: %s", why, len(names), lines[0] if lines else "none")
    for line in lines[1:]:
        _log.warning("%s, also in flight: %s", why, line)


def _journal(given: str | Path | Journal | None) -> Journal:
    if isinstance(given, Journal):
        return given
    return MemoryJournal() if given is None else SqliteJournal(given)
