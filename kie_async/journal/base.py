"""What is remembered of every intent to pay, and of what became of it."""

from __future__ import annotations

from enum import StrEnum

import attrs

from ..errors import JournalError


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
    def frees_its_ref(self) -> bool:
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


class TaskAlreadyBound(JournalError):
    """The task of an intent is another intent's."""
