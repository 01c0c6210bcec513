"""Brings verified deliveries to the task, or the create without a task, that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from ..callbacks.base import Delivery
from ..events import Counters
from ..wire.redaction import Redactor
from .reconciler import Reconciler
from .settings import CallbackPolicy
from .tracker import TaskTracker


class CallbackInbox:
    """What a receiver knows of a session: whose addresses they are, and where deliveries go."""

    def __init__(
        self,
        tracker: TaskTracker,
        reconciler: Reconciler,
        counters: Counters,
        callbacks: CallbackPolicy,
        redactor: Redactor,
    ) -> None:
        self._tracker = tracker
        self._reconciler = reconciler
        self._counters = counters
        self._callbacks = callbacks
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

    def accept(self, delivery: Delivery) -> None:
        """Take in one delivery that the receiver has verified."""
        tracker = self._tracker
        handle = tracker.registry.by_intent(delivery.intent_id)
        if (pending := tracker.pending.get(delivery.intent_id)) is not None:
            pending.delivery = delivery
            self._reconciler.consider(pending)
        elif handle is None or handle.is_settling:
            tracker.note_duplicate(delivery.intent_id)
            return
        else:
            tracker.apply(handle, delivery)
        self._counters.callbacks_accepted += 1

    def note_rejection(self, reason: str) -> None:
        """Count a delivery that was refused."""
        self._counters.reject(reason)
