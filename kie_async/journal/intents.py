"""The rows of a journal: intents, how far each has come, and what is claimed of those without a task."""

from __future__ import annotations

from enum import StrEnum

import attrs

from ..models import JobState, TaskRecord, TaskState
from ..wire.codes import error_for, is_of_account
from ..wire.records import decode_record
from .notes import decode_note


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

    @classmethod
    def of_end(cls, record: TaskRecord) -> IntentState:
        """Return the state of an intent whose task ended with this record."""
        return cls.SUCCEEDED if record.state is TaskState.SUCCESS else cls.FAILED


_JOB_STATES = {
    IntentState.PLANNED: JobState.NOT_SENT,
    IntentState.SENDING: JobState.SENDING,
    IntentState.CREATED: JobState.RUNNING,
    IntentState.REJECTED: JobState.REFUSED,
    IntentState.NOT_CREATED: JobState.NOT_SENT,
    IntentState.UNKNOWN: JobState.PERHAPS_PAID,
    IntentState.SUCCEEDED: JobState.DONE,
    IntentState.FAILED: JobState.FAILED,
    # A person stopped waiting for it; that changes nothing about the money.
    IntentState.WRITTEN_OFF: JobState.PERHAPS_PAID,
}


@attrs.frozen(kw_only=True)
class Intent:
    """The intent to create one task, and what is known of it."""

    intent_id: str
    model: str
    ref: str | None = None
    fingerprint: bytes = attrs.field(default=b"", repr=False)
    """SHA-256 of the request; the same ref must mean the same request."""
    body: str | None = attrs.field(default=None, repr=False)
    """The request itself, only in a journal that was asked to keep bodies."""
    state: IntentState = IntentState.PLANNED
    task_id: str = ""
    reason: str = ""
    code: int | None = None
    """The service's code, if it refused."""
    credits: float | None = None
    record: str = attrs.field(default="", repr=False)
    """The terminal record as it was noted, as JSON; see `read_end`."""
    expects_callback: bool = False
    planned_ms: int = 0
    """Unix time in milliseconds, by the clock of the run that planned it."""
    terminal_ms: int | None = None
    """When its end was noted, in the same way; None while it was not seen to end."""
    audio_s: float | None = None
    """The seconds of its audio, where they were known and a budget asked for them."""
    expected_credits: float | None = None
    """What it was expected to cost when its body left; None without a budget, or where nothing was known."""
    held_credits: float | None = None
    """What a record said that the service holds for its task; None until one said it."""
    replaces: str = ""
    """The intent in whose place this one is sent. It is of unknown outcome, and somebody accepted to pay for
    both; or it failed or was refused, and this is the next attempt."""
    former_ref: str | None = None
    """The ref it had before another intent took that over."""
    is_of_another: bool = False
    """Whether another worker has it that was alive when this was read: only in a journal of several."""

    @property
    def job_state(self) -> JobState:
        """How it stands, in the word that people read."""
        if self.state is IntentState.REJECTED and is_of_account(error_for(self.code or 0, self.reason)):
            return JobState.NOT_SENT
        return _JOB_STATES[self.state]

    @property
    def frees_its_ref(self) -> bool:
        """Tell whether it surely never became a task, so that its ref may be used again.

        A clear no of the service is sure; an ambiguous one, 500 and the like, is not.
        """
        if self.state is IntentState.REJECTED:
            return self.code is not None and 400 <= self.code < 500 and self.code != 408
        return self.state in {IntentState.PLANNED, IntentState.NOT_CREATED}

    @property
    def is_superseded(self) -> bool:
        """Tell whether its ref is another's: a later attempt's, or went back to the one before."""
        return self.ref is None and self.former_ref is not None

    @property
    def may_be_retried(self) -> bool:
        """Tell whether its ref may pass on to a new attempt: nothing of it runs, nor is perhaps paid."""
        return self.state in {IntentState.FAILED, IntentState.REJECTED}

    @property
    def has_ended(self) -> bool:
        """Tell whether its task was seen to end."""
        return self.state in {IntentState.SUCCEEDED, IntentState.FAILED}

    def read_end(self) -> TaskRecord | None:
        """Return the terminal record, None if there is none that can be read: then poll the task again."""
        if (found := decode_note(self.record)) is None:
            return None
        record = decode_record(found)
        is_whole = record.has_result if record.state is TaskState.SUCCESS else record.state.is_terminal
        return record if is_whole else None


class ClaimSource(StrEnum):
    """Who says that a create without an id became a certain task."""

    SIGNED = "signed"
    """A callback at the intent's own address, signed with the webhook key."""
    UNSIGNED = "unsigned"
    """A callback at the intent's own address."""
    ANSWER = "answer"
    """The create's own answer, in which something else was wrong."""


@attrs.frozen(kw_only=True)
class Claim:
    """That a create without an id became this task: neither proven nor disproven."""

    intent_id: str
    task_id: str
    source: ClaimSource


@attrs.frozen
class Totals:
    """What was spent."""

    tasks: int = 0
    """Created, or perhaps created."""
    settled: int = 0
    credits: float = 0.0
    """Those that the settled ones took."""
