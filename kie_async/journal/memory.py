"""TODO"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ..models import TaskRecord
from .base import Intent, IntentState, Totals


class Journal:
    """The record a session keeps. This one, of a session without a path, is lost with the process.

    It forgets what has settled and what has no ref. Every call returns when what it says is as durable
    as it gets; one that cannot be kept raises `JournalError`.
    """

    is_durable = False
    """Whether a restart would find what was noted."""

    def __init__(self) -> None:
        self._by_ref: dict[str, Intent] = {}
        self._refs: dict[str, str] = {}

    async def open(self) -> list[Intent]:
        """Return the intents a former process left unknown, or rejected in words that leave doubt."""
        return []

    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""
        intent = self._by_ref.get(ref)
        return None if intent is None or intent.frees_its_ref else intent

    async def list_unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end."""
        return [intent for intent in self._by_ref.values() if intent.state is IntentState.CREATED]

    async def load_totals(self) -> Totals:
        """Return what former processes spent."""
        return Totals()

    async def load_durations(self) -> Mapping[str, object]:
        """Return what former processes learned of each model."""
        return {}

    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Note what was learned of each model, in a form fit for JSON."""

    async def count_occurrence(self, key: bytes) -> int:
        """Return how often *key* was asked for since open, this time included; a forgetful journal says 1."""
        return 1

    async def mark_sending(self, intent: Intent) -> None:
        """Note that the body is about to leave; called at the gate, before the first byte.

        The intent takes over the ref of one that never became a task.
        """
        if intent.ref is not None:
            self._by_ref[intent.ref] = attrs.evolve(intent, body=None, state=IntentState.SENDING)
            self._refs[intent.intent_id] = intent.ref

    async def mark_unsent(self, intent_id: str) -> None:
        """Take `sending` back: it is proven that no task was created."""
        self._change(intent_id, state=IntentState.PLANNED)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became."""
        self._change(intent_id, state=IntentState.CREATED, task_id=task_id)

    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
        frees_ref: bool = False,
    ) -> None:
        """Note that an intent was rejected, not created, is unknown or written off.

        Of one that was not created there may be no note: nothing was about to leave. With *frees_ref*
        another intent may have its ref, though it may be a task: somebody accepted to pay for both.
        """
        self._change(intent_id, state=state, reason=reason, code=code)
        ref = self._refs.get(intent_id)
        if ref is not None and (frees_ref or self._by_ref[ref].frees_its_ref):
            self.discard(intent_id)

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task."""
        self.discard(intent_id)

    def discard(self, intent_id: str) -> None:
        """Forget an intent whose task has ended, in a journal that forgets."""
        ref = self._refs.pop(intent_id, None)
        if ref is not None and self._by_ref[ref].intent_id == intent_id:
            del self._by_ref[ref]

    def _change(self, intent_id: str, **changes: Any) -> None:
        ref = self._refs.get(intent_id)
        if ref is not None and self._by_ref[ref].intent_id == intent_id:  # else another took the ref over
            self._by_ref[ref] = attrs.evolve(self._by_ref[ref], **changes)

    async def aclose(self) -> None:
        """Finish what was begun and let go."""
