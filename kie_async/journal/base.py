"""What a journal is: the record of every create that may cost money, and of what became of it."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import attrs

from ..errors import JournalError, JournalFull
from ..models import JobState, TaskRecord, TaskState
from ..wire.codes import error_for, is_of_account
from ..wire.records import decode_record
from .account import Account

MOST_SMALL_NOTES = 10_000
"""How many a journal remembers: the uploads of a long night."""

_LONGEST_S = 10 * 365 * 86_400.0

_log = logging.getLogger("kie_async")


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
    replaces: str = ""
    """The intent in whose place this one is sent. It is of unknown outcome, and somebody accepted to pay for
    both; or it failed or was refused, and this is the next attempt."""
    former_ref: str | None = None
    """The ref it had before another intent took that over."""

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


class TaskAlreadyBound(JournalError):
    """The task of an intent is another intent's."""


class Journal(ABC):
    """Keeps every intent and what became of it.

    `list_`, `iterate_`, `load_` and `find_` read; `mark_` and `save_` write, and return only when what they
    noted is as durable as this journal makes it. A session relies on the order: SENDING is noted before the
    first byte leaves, an id before user code sees it, an end before a handle settles. Every call but
    `discard`, `recall` and `remember` raises `JournalError` when it cannot be done; then nothing of it was
    noted.
    """

    is_durable: bool = False
    """Whether a restart would find what was noted."""

    @property
    def path(self) -> Path | None:
        """Return the file it is kept in, for messages; None if there is none."""
        return None

    @abstractmethod
    async def open(self) -> list[Intent]:
        """Return the intents a former process left unknown, or rejected in words that leave doubt.

        Raises:
            JournalError: It cannot be opened or trusted.
            JournalLocked: Another session or process has it open.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was begun and let go; a second call does nothing."""

    async def check_account(self, account: Account) -> None:  # noqa: B027  (a journal may serve any)
        """Refuse every account but the one it belongs to, which is noted; called right after `open`.

        As long as it holds no task that may be paid, it belongs to nobody. By default it takes any account.

        Raises:
            JournalError: It belongs to another account or service; the message says to which.
        """

    # --- reading -------------------------------------------------------------------------------

    @abstractmethod
    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""

    @abstractmethod
    async def list_unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end."""

    @abstractmethod
    async def find_by_task(self, task_id: str) -> Intent | None:
        """Return the intent that became a task; a journal that forgets may not know it any more."""

    async def list_last_results(self, count: int) -> list[Intent]:
        """Return the last *count* intents whose task succeeded; a journal that forgets has none."""
        return []

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        """Return an intent; one that forgets may not know it any more, and this base knows none."""
        return None

    @abstractmethod
    async def list_claims(self) -> list[Claim]:
        """Return what is claimed of intents that have no task, in the order it was noted."""

    async def iterate_settled(self, *, since_ms: int = 0, ref_prefix: str = "") -> AsyncIterator[Intent]:
        """Yield the intents whose task ended since then, the oldest end first; one that forgets has none."""
        forgotten: tuple[Intent, ...] = ()
        for intent in forgotten:
            yield intent

    @abstractmethod
    async def load_totals(self) -> Totals:
        """Return what was spent by all processes that had this journal."""

    @abstractmethod
    async def load_prices(self) -> Mapping[str, float]:
        """Return the most that one task of each model has cost, in credits."""

    @abstractmethod
    async def load_durations(self) -> Mapping[str, object]:
        """Return what former processes learned of each model; what cannot be read is left out."""

    # --- writing -------------------------------------------------------------------------------

    @abstractmethod
    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Note what was learned of each model, in a form fit for JSON, in the place of what was noted."""

    @abstractmethod
    async def count_occurrence(self, key: bytes) -> int:
        """Count *key* and return how often it was counted since open; a journal that forgets says 1."""

    @abstractmethod
    async def mark_sending(self, intent: Intent) -> None:
        """Note that the body is about to leave; called before the first byte.

        The intent takes over the ref of one that never became a task. In the same step the intent that it
        replaces, if any, passes its ref on, and is written off if its outcome is unknown; that is taken back
        when this one is proven to have created nothing.

        Raises:
            JournalError: It could not be noted, was sent before, its ref is another's, or the intent that
                it replaces became a task that has not failed: do not send.
        """

    @abstractmethod
    async def mark_unsent(self, intent_id: str) -> None:
        """Take SENDING back: it is proven that no task was created."""

    @abstractmethod
    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became; saying it twice is no error.

        *adopted_by* says how the id was found, if not in the answer to the create.

        Raises:
            TaskAlreadyBound: The task belongs to another intent.
        """

    @abstractmethod
    async def save_claim(self, claim: Claim) -> None:
        """Note what is claimed of an intent; a stronger source takes the place of a weaker one."""

    @abstractmethod
    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        """Forget a claim that was disproven."""

    @abstractmethod
    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
    ) -> None:
        """Note that an intent was rejected, not created, is unknown or written off.

        Of one that was not created there may be no note: nothing was about to leave.
        """

    @abstractmethod
    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task.

        An end that was noted stays, unless it cannot be read: then the same end takes its place.
        """

    def discard(self, intent_id: str) -> None:  # noqa: B027  (only a journal that forgets has a use for it)
        """Forget an intent whose task has ended, if this journal forgets."""

    # --- small notes, which save work and are no part of the promise -----------------------------

    async def recall(self, key: str) -> object | None:
        """Return what was last remembered under *key*, None if that is nothing, too old or unreadable.

        A note from the future does not count: the clock that dated it was wrong. Never raises.
        """
        return None

    async def remember(self, key: str, note: object, *, for_s: float) -> None:  # noqa: B027  (it may forget)
        """Keep a small *note*, fit for JSON, in the place of the former one, for *for_s* by the wall clock.

        Only so many are kept: the oldest make room. What cannot be kept is logged. Never raises.
        """


def encode_note(note: object) -> str:
    """Return *note* as JSON text that UTF-8 can hold.

    Raises:
        JournalError: It has no JSON form, or is nested too deeply.
    """
    try:
        # Escapes take six bytes for a letter of two: a long text in Cyrillic would be three times as large.
        text = json.dumps(note, ensure_ascii=False)
        return text if _is_utf8(text) else json.dumps(note)
    except (ValueError, TypeError, RecursionError) as exc:
        raise JournalError(f"this cannot be noted as JSON: {str(exc)[:200]}") from None


def decode_note(text: str) -> dict[str, object] | None:
    """Return the object in a note of our own, None if it cannot be read.

    The limits for answers of the service do not hold here: what was noted must be read, however large.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@attrs.frozen
class SmallNote:
    """What was remembered, and from when to when it holds, in milliseconds since the epoch."""

    text: str
    noted_ms: int
    expires_ms: int

    @classmethod
    def of(cls, note: object, *, for_s: float, now_ms: int) -> SmallNote:
        """Return *note* as it is kept.

        Raises:
            JournalError: It has no JSON form.
        """
        return cls(encode_note(note), now_ms, now_ms + int(min(for_s, _LONGEST_S) * 1000))

    def read(self, now_ms: int) -> object | None:
        """Return the note, None if it is too old, from the future or not to be read."""
        if not self.noted_ms <= now_ms < self.expires_ms:
            return None
        try:
            found: object = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        return found


def _is_utf8(text: str) -> bool:
    """Tell whether there is no half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def log_failed_note(what: str) -> Iterator[None]:
    """Log a note that could not be written, where the next open finds SENDING or PLANNED: both are safe."""
    try:
        yield
    except JournalError as exc:
        # A full disk is said once, for all that could not be noted.
        level = logging.INFO if isinstance(exc, JournalFull) else logging.ERROR
        _log.log(level, "%s could not be noted (%s); the next open will find out", what, exc)


@contextmanager
def log_lost_note(key: str) -> Iterator[None]:
    """Log a small note that could not be read or kept: work is done again, and nothing paid is lost."""
    try:
        yield
    except JournalError as exc:
        _log.warning("the note %r could not be read or kept: %s", key, exc)
