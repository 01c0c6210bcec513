"""Keeps a session in step with the other workers of its journal: what they note, and what they leave."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import suppress

from .._background import BackgroundTasks
from ..callbacks.base import Delivery
from ..errors import CallbackRejected, JournalError
from ..handle import TaskHandle
from ..journal.intents import Intent, IntentState
from ..journal.notes import decode_note
from ..journal.shared import SharedJournal, StoredDelivery
from ..limits.query_speed import QueryPace
from ..wire.records import decode_record
from .event_hook import EventHook
from .inbox import CallbackInbox
from .kept_speed import KeptQuerySpeed
from .reconciler import Reconciler
from .recovery import Recovery
from .settings import Settings

_READ_EVERY_S = 2.0
"""So often all that is waited for is read, where a pooler in between may pass on no notifications."""

_READ_AGAIN_S = 10.0
"""So often it is read where news are notified. Hundreds of workers may share a server, and most are idle."""

_SWEEP_EVERY_S = 5.0

_SWEEP_JITTER = 0.2

_NAMED = 5

_log = logging.getLogger("kie_async")


class WorkerRelay:
    """Reads what other workers noted, takes in deliveries that came to them, and takes over from the dead.

    It is the journal's `NewsSink`.
    """

    def __init__(
        self,
        recovery: Recovery,
        reconciler: Reconciler,
        inbox: CallbackInbox,
        journal: SharedJournal,
        events: EventHook,
        pace: QueryPace,
        speed: KeptQuerySpeed,
        settings: Settings,
    ) -> None:
        self._reconciler = reconciler
        self._recovery = recovery
        self._inbox = inbox
        self._journal = journal
        self._events = events
        self._pace = pace
        self._speed = speed
        self._task_timeout_s = settings.task_timeout_s
        self._rng = settings.rng
        self._news: dict[str, None] = {}
        self._has_news = asyncio.Event()
        self._has_deliveries = False
        self._may_sweep = asyncio.Event()
        self._taken: asyncio.Queue[TaskHandle | None] = asyncio.Queue()
        self._background = BackgroundTasks("kie_async relay")

    async def open(self) -> None:
        """Begin to follow the others, and take over what nobody has any more.

        Raises:
            JournalError: The journal cannot be read.
        """
        await self._sweep()
        self._journal.listen(self)
        self._background.spawn(self._read_on())
        self._background.spawn(self._sweep_on())

    async def aclose(self) -> None:
        """Follow nobody any more."""
        await self._background.aclose()
        self._taken.put_nowait(None)

    async def taken_over(self) -> AsyncIterator[TaskHandle]:
        """Yield the handle of each task that was a dead worker's, until the session closes."""
        while (handle := await self._taken.get()) is not None:
            yield handle
        self._taken.put_nowait(None)  # for whoever else iterates

    # --- what others note ----------------------------------------------------------------------

    def note_news(self, intent_id: str) -> None:
        """Take in that something of an intent was noted; see `NewsSink`."""
        if self._recovery.is_waited_for(intent_id):
            self._news[intent_id] = None
            self._has_news.set()

    def note_deliveries(self) -> None:
        """Take in that a delivery was stored for this worker."""
        self._has_deliveries = True
        self._has_news.set()

    def note_missed(self) -> None:
        """Take in that news may have been missed, and that a worker may be gone."""
        self._news.update(dict.fromkeys(self._recovery.list_waited_for()))
        self._has_deliveries = True
        self._has_news.set()
        self._may_sweep.set()

    def note_gone(self) -> None:
        """Take in that another worker has been silent for its lease."""
        self._may_sweep.set()

    async def _read_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_READ_AGAIN_S if self._journal.is_notified else _READ_EVERY_S):
                    await self._has_news.wait()
            if not self._has_news.is_set():
                self._news.update(dict.fromkeys(self._recovery.list_waited_for()))
                self._has_deliveries = True
            self._has_news.clear()
            try:
                await self._read()
            except JournalError as exc:
                _log.debug("what other workers noted cannot be read now: %s", exc)
                await asyncio.sleep(_READ_EVERY_S)

    async def _read(self) -> None:
        news, self._news = list(self._news), {}
        if news:
            try:
                found = await self._journal.read_intents(news)
            except JournalError:
                self._news.update(dict.fromkeys(news))
                raise
            for intent in found:
                self._recovery.take_news(intent)
        if self._has_deliveries:
            await self._take_in_deliveries()

    async def _take_in_deliveries(self) -> None:
        self._has_deliveries = False  # one that comes from now on may not be among those that are listed
        try:
            stored = await self._journal.list_deliveries()
            if taken := [each.number for each in stored if await self._takes_in(each)]:
                await self._journal.drop_deliveries(taken)
        except JournalError:
            self._has_deliveries = True
            raise

    async def _takes_in(self, stored: StoredDelivery) -> bool:
        """Take in a delivery; tell whether it is not to come again."""
        try:
            await self._inbox.accept_stored(_delivery_of(stored))
        except CallbackRejected as exc:
            _log.info("a delivery for intent %s was not taken: %s", stored.intent_id, exc.reason)
            return exc.status != 503
        return True

    # --- what others leave behind --------------------------------------------------------------

    async def _sweep_on(self) -> None:
        while True:
            pause_s = _SWEEP_EVERY_S * (1 + _SWEEP_JITTER * self._rng.uniform(-1, 1))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._may_sweep.wait()
                    await asyncio.sleep(self._rng.uniform(0, _SWEEP_JITTER))  # all were woken at once
            self._may_sweep.clear()
            try:
                await self._sweep()
            except JournalError as exc:
                _log.debug("tasks of dead workers cannot be taken over now: %s", exc)

    async def _sweep(self) -> None:
        await self._speed.recall(asyncio.get_running_loop().time())
        self._pace.share_with(self._journal.alive_workers)
        while taken := await self._journal.take_over():
            claims = await self._journal.list_claims()  # of these, and of others that mean nothing here
            handles = [self._take(intent) for intent in taken if intent.state is not IntentState.NOT_CREATED]
            self._recovery.take_claims(claims)
            self._reconciler.consider_all()
            if handles:
                self._say(handles)
            self.note_deliveries()

    def _take(self, intent: Intent) -> TaskHandle:
        """Make a handle for what was a dead worker's, or go on with the one that followed it."""
        deadline = (
            math.inf if not intent.task_id else asyncio.get_running_loop().time() + self._task_timeout_s
        )
        handle = self._recovery.take_over(intent, deadline)
        self._events.emit("taken over", handle)
        self._taken.put_nowait(handle)
        return handle

    def _say(self, handles: list[TaskHandle]) -> None:
        names = ", ".join(handle.ref or handle.task_id or handle.intent_id for handle in handles[:_NAMED])
        more = f" ... and {len(handles) - _NAMED} more" if len(handles) > _NAMED else ""
        _log.warning("took over %d of a worker that is gone: %s%s", len(handles), names, more)


def _delivery_of(stored: StoredDelivery) -> Delivery:
    raw = decode_note(stored.record) or {"taskId": stored.task_id}
    return Delivery(intent_id=stored.intent_id, record=decode_record(raw), is_signed=stored.is_signed)
