"""Brings verified deliveries to the task, or the create without a task, that they belong to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ..callbacks.base import Delivery
from ..errors import CallbackRejected, JournalError
from ..events import Counters
from ..journal.base import Journal
from ..journal.intents import Claim, ClaimSource, Intent
from ..journal.notes import encode_note
from ..journal.shared import SharedJournal, StoredDelivery
from ..wire.redaction import Redactor
from .pending_creates import PendingCreate
from .reconciler import Reconciler
from .recovery import Recovery
from .settings import CallbackPolicy
from .tracker import TaskTracker

_MAX_LOOKUPS = 16
"""At once: whoever knows one address may call it often, and the journal has more to do."""

_log = logging.getLogger("kie_async")


class CallbackInbox:
    """What a receiver knows of a session: whose addresses they are, and where deliveries go."""

    def __init__(
        self,
        tracker: TaskTracker,
        reconciler: Reconciler,
        recovery: Recovery,
        journal: Journal,
        counters: Counters,
        callbacks: CallbackPolicy,
        redactor: Redactor,
    ) -> None:
        self._recovery = recovery
        self._journal = journal
        self._tracker = tracker
        self._reconciler = reconciler
        self._counters = counters
        self._callbacks = callbacks
        self._lookups = 0
        self.redactor = redactor

    @property
    def callback_secrets(self) -> Sequence[bytes]:
        """Return the secrets under which addresses of this session were made."""
        return self._callbacks.secrets

    def owner_of(self, intent_id: str) -> str | None:
        """Return the task id of an intent, "" while it has none, None if the intent is not known here."""
        registry = self._tracker.registry
        if (handle := registry.by_intent(intent_id)) is not None:
            return handle.task_id
        return "" if self._tracker.pending.get(intent_id) is not None else registry.settled_task(intent_id)

    async def find_noted(self, intent_id: str) -> str | None:
        """Return the task id of an intent that ended, as the journal has it, before this session or in it.

        Raises:
            CallbackRejected: 503, since the journal could not be asked.
        """
        if not self._journal.is_durable or self._lookups >= _MAX_LOOKUPS:
            return None
        self._lookups += 1
        try:
            intent = await self._journal.find_by_intent(intent_id)
        except JournalError as exc:
            _log.info("the journal could not be asked for intent %s: %s", intent_id, exc)
            raise CallbackRejected("journal", 503) from None
        finally:
            self._lookups -= 1
        known = self.owner_of(intent_id)  # a resume may have made it known meanwhile
        if intent is None or known is not None:
            return known
        if not intent.has_ended:
            return self._find_shared(intent)
        self._tracker.registry.note_settled(intent_id, intent.task_id)
        return intent.task_id

    def _find_shared(self, intent: Intent) -> str | None:
        """Return the task id of an intent that another worker has, "" while it has none."""
        if not isinstance(self._journal, SharedJournal) or intent.frees_its_ref:
            return None
        return intent.task_id if intent.task_id or not self._recovery.expect(intent) else ""

    async def accept(self, delivery: Delivery) -> None:
        """Take in one delivery that the receiver has verified; what it claims is noted before this returns.

        Raises:
            CallbackRejected: 503, since it could not be noted: the service shall deliver it again.
        """
        if isinstance(self._journal, SharedJournal) and self.owner_of(delivery.intent_id) is None:
            self._tracker.silence.note_callback(asyncio.get_running_loop().time())
            await self._store(self._journal, delivery)
            return
        await self.accept_stored(delivery)

    async def _store(self, journal: SharedJournal, delivery: Delivery) -> None:
        """Keep a delivery for the worker whose task it is of.

        Raises:
            CallbackRejected: It could not be kept.
        """
        record = delivery.record
        raw = dict(record.raw) or {"taskId": record.task_id}
        try:
            await journal.save_delivery(
                StoredDelivery(
                    number=0,
                    intent_id=delivery.intent_id,
                    task_id=record.task_id,
                    is_signed=delivery.is_signed,
                    record=encode_note(raw),
                )
            )
        except JournalError as exc:
            _log.warning("a callback could not be noted, so it was refused: %s", exc)
            raise CallbackRejected("journal", 503) from None
        self._counters.callbacks_accepted += 1

    async def accept_stored(self, delivery: Delivery) -> None:
        """Take in a delivery for a task or a create of this worker; see `accept`.

        Raises:
            CallbackRejected: It could not be noted, or is of another task.
        """
        tracker = self._tracker
        tracker.silence.note_callback(asyncio.get_running_loop().time())
        pending = tracker.pending.get(delivery.intent_id)
        if pending is not None:
            # Signed or not, it proves nothing about a create without an id: the signature covers the task's
            # id and the time, not whose task it is. The service is asked.
            async with pending.noting:
                await self._accept_claim(pending, delivery)
            if pending in tracker.pending:
                self._reconciler.consider(pending)
                self._counters.callbacks_accepted += 1
                return
        # Its create was answered, or adopted, while that was noted.
        handle = tracker.registry.by_intent(delivery.intent_id)
        if handle is None or handle.is_settling:
            tracker.note_duplicate(delivery.intent_id)
            return
        if handle.task_id != delivery.record.task_id:
            raise CallbackRejected("id of another task", 400)
        tracker.apply(handle, delivery)
        self._counters.callbacks_accepted += 1

    async def _accept_claim(self, pending: PendingCreate, delivery: Delivery) -> None:
        """Make durable what a callback claims: it may be the only word of a paid task's id.

        Raises:
            CallbackRejected: It could not be kept.
        """
        task_id, source = delivery.record.task_id, _source_of(delivery)
        known = pending.find_claim(task_id)
        is_noted = known is not None and known.is_noted and (known.is_strong or not delivery.is_signed)
        if not is_noted and pending in self._tracker.pending:
            try:
                await self._make_room(pending, delivery)
                await self._journal.save_claim(
                    Claim(intent_id=delivery.intent_id, task_id=task_id, source=source)
                )
            except JournalError as exc:
                _log.warning("a callback could not be noted, so it was refused: %s", exc)
                raise CallbackRejected("journal", 503) from None
        pending.add_claim(task_id, source, delivery).is_noted = True

    async def _make_room(self, pending: PendingCreate, delivery: Delivery) -> None:
        """Let another claim give way if there are too many.

        Raises:
            CallbackRejected: None may.
        """
        if pending.has_room_for(delivery.record.task_id):
            return
        now = asyncio.get_running_loop().time()
        weakest = pending.find_weakest(now, for_signed=delivery.is_signed)
        if weakest is None:
            raise CallbackRejected("too many claims of one create", 503)
        await self._journal.drop_claim(pending.intent.intent_id, weakest.task_id)
        pending.drop_claim(weakest.task_id)

    def note_rejection(self, reason: str) -> None:
        """Count a delivery that was refused; one to a right address shows all the same that they come."""
        if reason != "wrong address":
            self._tracker.silence.note_callback(asyncio.get_running_loop().time())
        self._counters.reject(reason)


def _source_of(delivery: Delivery) -> ClaimSource:
    return ClaimSource.SIGNED if delivery.is_signed else ClaimSource.UNSIGNED
