"""What is remembered of every intent to pay, and of what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from .errors import JournalError
from .models import TaskRecord


class IntentState(StrEnum):
    """How far an intent has come."""

    PLANNED = "PLANNED"
    """Nothing of it is on the wire: what was to be sent came back, proven unsent."""
    SENDING = "SENDING"
    """The body may be on the wire; found at open, it means UNKNOWN."""
    CREATED = "CREATED"
    REJECTED = "REJECTED"
    NOT_CREATED = "NOT_CREATED"
    UNKNOWN = "UNKNOWN"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    WRITTEN_OFF = "WRITTEN_OFF"


@attrs.frozen(kw_only=True)
class Intent:
    """One wish to create one task, and what is known of it."""

    intent_id: str
    model: str
    ref: str | None = None
    fingerprint: bytes = attrs.field(default=b"", repr=False)
    """SHA-256 of what was asked for; the same ref must mean the same."""
    body: str | None = attrs.field(default=None, repr=False)
    """The request itself, only in a journal that was asked to keep bodies."""
    state: IntentState = IntentState.PLANNED
    task_id: str = ""
    reason: str = ""
    code: int | None = None
    """The service's code, if it refused."""
    credits: float | None = None
    record: str = attrs.field(default="", repr=False)
    """The terminal record, as JSON."""
    expects_callback: bool = False
    planned_ms: int = 0

    @property
    def is_not_a_task(self) -> bool:
        """Tell whether it surely never became a task, so that its ref may be used again.

        A clear no of the service is sure; an ambiguous one, 500 and the like, is not.
        """
        if self.state is IntentState.REJECTED:
            return self.code is not None and 400 <= self.code < 500 and self.code != 408
        return self.state in {IntentState.PLANNED, IntentState.NOT_CREATED}


@attrs.frozen
class Totals:
    """What was spent."""

    tasks: int = 0
    """Created, or perhaps created."""
    settled: int = 0
    credits: float = 0.0
    """Those that the settled ones took."""


class TaskTaken(JournalError):
    """The task of an intent is another intent's."""


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

    async def find(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""
        intent = self._by_ref.get(ref)
        return None if intent is None or intent.is_not_a_task else intent

    async def unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end."""
        return [intent for intent in self._by_ref.values() if intent.state is IntentState.CREATED]

    async def totals(self) -> Totals:
        """Return what former processes spent."""
        return Totals()

    async def learned(self) -> Mapping[str, object]:
        """Return what former processes learned of each model."""
        return {}

    async def keep_learned(self, learned: Mapping[str, object]) -> None:
        """Note what was learned of each model, in a form fit for JSON."""

    async def occurrence(self, key: bytes) -> int:
        """Return how often *key* was asked for since open, this time included; a forgetful journal says 1."""
        return 1

    async def sending(self, intent: Intent) -> None:
        """Note that the body is about to leave; called at the gate, before the first byte.

        The intent takes over the ref of one that never became a task.
        """
        if intent.ref is not None:
            self._by_ref[intent.ref] = attrs.evolve(intent, body=None, state=IntentState.SENDING)
            self._refs[intent.intent_id] = intent.ref

    async def unsent(self, intent_id: str) -> None:
        """Take `sending` back: it is proven that no task was created."""
        self._change(intent_id, state=IntentState.PLANNED)

    async def created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became."""
        self._change(intent_id, state=IntentState.CREATED, task_id=task_id)

    async def ended(
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
        if ref is not None and (frees_ref or self._by_ref[ref].is_not_a_task):
            self.forget(intent_id)

    async def settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task."""
        self.forget(intent_id)

    def forget(self, intent_id: str) -> None:
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
