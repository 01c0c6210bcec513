"""The table of creates that have no task id: on their way, of unknown outcome, or refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum

import attrs

from ..callbacks.base import Delivery
from ..errors import CreateOutcomeUnknown
from ..handle import TaskHandle
from ..journal.base import Intent
from .registry import REMEMBERED


class Phase(Enum):
    """How far a create has come without a task id."""

    CREATING = "creating"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


@attrs.define(eq=False)
class PendingCreate:
    """A create without a task id."""

    intent: Intent
    handle: TaskHandle
    phase: Phase = Phase.CREATING
    delivery: Delivery | None = None
    """The latest callback that names a task for it; not looked into yet."""
    is_reconciling: bool = False
    is_taken: bool = False
    """Somebody is just deciding what became of it: nobody else may."""
    is_awaited: bool = True
    """False for one read from a journal that nobody has asked for yet."""
    error: CreateOutcomeUnknown | None = None


class PendingCreates:
    """Who has no task id yet. A plain table: it changes no handle and notes nothing."""

    def __init__(self) -> None:
        self._by_intent: dict[str, PendingCreate] = {}
        self._rejected: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, pending: PendingCreate) -> bool:
        return self._by_intent.get(pending.intent.intent_id) is pending

    def __iter__(self) -> Iterator[PendingCreate]:
        return iter(list(self._by_intent.values()))

    def get(self, intent_id: str) -> PendingCreate | None:
        """Return the pending create of an intent."""
        return self._by_intent.get(intent_id)

    def add(self, pending: PendingCreate) -> None:
        """Take in a create; from now on its callbacks are known."""
        self._by_intent[pending.intent.intent_id] = pending
        if pending.phase is Phase.REJECTED:
            self._remember_rejected(pending)

    def remove(self, pending: PendingCreate) -> None:
        """Take out a create that became a task, or of which nothing was sent."""
        self._by_intent.pop(pending.intent.intent_id, None)

    def mark_rejected(self, pending: PendingCreate) -> None:
        """Note that it was refused; a callback may still prove otherwise."""
        pending.phase = Phase.REJECTED
        self._remember_rejected(pending)

    def _remember_rejected(self, pending: PendingCreate) -> None:
        self._rejected[pending.intent.intent_id] = None
        if len(self._rejected) > REMEMBERED:
            self._by_intent.pop(self._rejected.popitem(last=False)[0], None)

    def count(self, phase: Phase) -> int:
        """Return how many have come so far."""
        return sum(pending.phase is phase for pending in self._by_intent.values())

    @property
    def unknown_handles(self) -> list[TaskHandle]:
        """Return the handles of unknown creates that somebody may be waiting for."""
        unknown = [p for p in self._by_intent.values() if p.phase is Phase.UNKNOWN and p.is_awaited]
        return [pending.handle for pending in unknown if not pending.handle.is_done]
