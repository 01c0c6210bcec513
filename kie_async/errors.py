"""Everything that can go wrong, branched by who must act.

KieError
├── InvalidRequest          you: fix the named argument; nothing was sent (also a ValueError)
│   └── RefConflict         you: this ref was used for another body
├── SessionMisuse           you: the session is not open, closed, or of another event loop
├── QueueFull               you: as many handles wait as max_queued allows; nothing was sent
├── Withdrawn               you called withdraw() before anything left; nothing was sent
├── BudgetExceeded          you: the budget you set is spent; nothing was sent
├── CreatesHalted           you: three creates in a row ended unknown; nothing was sent; find out why first
├── BatchStopped            you: a batch met what every further request would meet; see its cause
├── TransportError          nobody: the network failed and nothing was paid; try again
│   └── AnswerUnreadable    nobody: an answer came and could not be read
├── ApiError                you or them: the service said no, with a code
│   ├── AuthenticationError, InsufficientCredits, QuotaExceeded     you: key, money, cap
│   ├── RequestRejected, NotFound                                   you: fix the request or the id
│   └── RateLimited, Maintenance, ServerError                       them: wait
├── CreateOutcomeUnknown    you: money may have been spent; the handle on it says what to do
├── TaskError               a task exists and yielded no result here
│   ├── TaskFailed          the service ended it in failure
│   ├── TaskTimedOut        you stopped waiting; it goes on (also a TimeoutError)
│   ├── TaskAbandoned       you called abandon(); it goes on
│   ├── TaskDetached        the session closed; it goes on
│   └── ResultUnreadable    it succeeded and its record holds no URL and no object
├── FileError               a file could not be moved
│   ├── UploadRefused, DownloadFailed
│   └── ResultExpired       too late: the service no longer has the file
├── CallbackRejected        someone pretended, or a clock is wrong
└── JournalError            the durable record cannot be trusted or written
    ├── JournalFull         you: its disk is full
    ├── JournalAway         you: its database does not answer
    ├── TaskNotNoted        a task is paid and the journal could not take its id, which is on the error
    └── JournalLocked       another process holds it

Errors carry their fields positionally in ``args`` and survive a pickle.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .handle import TaskHandle
    from .models import TaskRecord


class KieError(Exception):
    """Base of every error this package raises."""


class InvalidRequest(KieError, ValueError):
    """An argument is wrong; nothing was sent."""


class RefConflict(InvalidRequest):
    """A ref that stands for a task was used for another body; ``changed`` names its fields, if known."""

    def __init__(self, ref: str, changed: tuple[str, ...] = ()) -> None:
        super().__init__(ref, changed)
        self.ref = ref
        self.changed = changed

    def __str__(self) -> str:
        what = f" (its {', '.join(self.changed)} changed)" if self.changed else ""
        return f"ref {self.ref!r} was made before from other content{what}; a new ref makes and pays it again"


class SessionMisuse(KieError, RuntimeError):
    """The session was used before open, after close, or from another event loop."""


SESSION_CLOSED = "the session is closed; open a new one"
"""What `SessionMisuse` says to whoever comes too late, wherever that is found out."""


class QueueFull(KieError):
    """As many creates wait in the queue as ``max_queued`` allows; nothing was sent."""

    def __init__(self, max_queued: int) -> None:
        super().__init__(max_queued)
        self.max_queued = max_queued

    def __str__(self) -> str:
        return f"{self.max_queued} creates wait already, as max_queued allows; nothing was sent"


class Withdrawn(KieError):
    """The create was taken back with ``withdraw()``: no task was made and nothing is paid."""

    def __init__(self, ref: str | None = None) -> None:
        super().__init__(ref)
        self.ref = ref

    def __str__(self) -> str:
        named = "" if self.ref is None else f" of ref {self.ref!r}"
        return f"the create{named} was withdrawn before it left; nothing is paid"


class BudgetExceeded(KieError):
    """The budget does not allow another create; nothing was sent."""

    def __init__(self, budget: float, spent: float, held: float, unit: str = "credits") -> None:
        super().__init__(budget, spent, held, unit)
        self.budget = budget
        self.spent = spent
        self.held = held
        self.unit = unit

    def __str__(self) -> str:
        return (
            f"the budget of {self.budget:g} {self.unit} is spent; nothing was sent"
            f" ({self.spent:g} settled, {self.held:g} held for what is not)"
        )


class CreatesHalted(KieError):
    """Too many creates in a row had unknown outcomes; nothing was sent."""

    def __init__(self, unknown_in_a_row: int, until: datetime) -> None:
        super().__init__(unknown_in_a_row, until)
        self.unknown_in_a_row = unknown_in_a_row
        self.until = until

    def __str__(self) -> str:
        return (
            f"{self.unknown_in_a_row} creates in a row are perhaps paid; nothing was sent; "
            f"trying again with one job at {self.until.astimezone():%H:%M:%S}"
        )


class BatchStopped(KieError):
    """A batch met an error that every further request would meet; what was not begun was not sent.

    ``__cause__`` is that error. Of a budget, ``budget``, ``spent`` and ``held`` are its numbers; of a halt of
    creates ``until`` is its end; else they are None.
    """

    def __init__(
        self,
        reason: str,
        budget: float | None = None,
        spent: float | None = None,
        held: float | None = None,
        until: datetime | None = None,
    ) -> None:
        super().__init__(reason, budget, spent, held, until)
        self.reason = reason
        self.budget = budget
        self.spent = spent
        self.held = held
        self.until = until

    def __str__(self) -> str:
        return f"the batch stopped: {self.reason}; requests that had not begun were not sent"


class TransportError(KieError):
    """A request that costs nothing failed on the network."""


class AnswerUnreadable(TransportError):
    """An answer came and is not what the service documents."""


UNKNOWN_TASK = "the service knows no task"
"""How the message of an `ApiError` begins that says so; the service's own words follow in brackets."""


class ApiError(KieError):
    """The service answered no."""

    def __init__(self, code: int, message: str, http_status: int = 200) -> None:
        super().__init__(code, message, http_status)
        self.code = code
        self.message = message
        self.http_status = http_status

    def __str__(self) -> str:
        if self.message.startswith(UNKNOWN_TASK):
            return self.message.partition(" (")[0]
        status = "" if self.http_status == 200 else f" (HTTP {self.http_status})"
        return f"code {self.code}{status}: {self.message or 'no message'}"


class AuthenticationError(ApiError):
    """The API key is missing, wrong, revoked, or not allowed from here."""


class InsufficientCredits(ApiError):
    """The balance does not cover the task; nothing was created."""


class QuotaExceeded(ApiError):
    """The key's own hourly, daily or total cap is reached."""


class RequestRejected(ApiError):
    """The service refused the request as it stands."""


class NotFound(ApiError):
    """The service knows no such model, task or endpoint."""


class RateLimited(ApiError):
    """Too many requests; ``retry_after_s`` holds the pause the service asked for, if it did."""

    def __init__(
        self, code: int, message: str, http_status: int = 200, retry_after_s: float | None = None
    ) -> None:
        super().__init__(code, message, http_status)
        self.args = (code, message, http_status, retry_after_s)
        self.retry_after_s = retry_after_s


class Maintenance(RateLimited):
    """The service is down for maintenance."""


class ServerError(ApiError):
    """The service failed."""


class CreateOutcomeUnknown(KieError):
    """The create left this machine and no answer proved what happened.

    The task may be running and paid for, so it is never sent again by itself. ``handle`` stays
    awaitable: a callback adopts the task. ``handle`` does not survive a pickle, the rest does.
    ``candidate_task_id`` is an id that the answer named without a clean yes, empty if it named none.
    """

    def __init__(
        self,
        intent_id: str,
        reason: str,
        since: datetime,
        ref: str | None = None,
        candidate_task_id: str = "",
    ) -> None:
        super().__init__(intent_id, reason, since, ref, candidate_task_id)
        self.intent_id = intent_id
        self.reason = reason
        self.since = since
        self.ref = ref
        self.candidate_task_id = candidate_task_id
        self.handle: TaskHandle | None = None

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), self.args

    def __str__(self) -> str:
        named = f"; the answer named task {self.candidate_task_id}" if self.candidate_task_id else ""
        return (
            f"the create left this machine and no answer proved what happened ({self.reason}{named}); "
            f"the task may be running and paid for; it will not be sent again; intent {self.intent_id}"
        )


_AGAIN = "a new ref, or kie.batch(..., retry_failed=True), makes it again"


class TaskError(KieError):
    """A task yielded no result here; ``task_id`` is on the error, ``intent_id`` if no task is known."""

    message_tail = "ended without a result"

    def __init__(self, task_id: str, record: TaskRecord | None = None, intent_id: str = "") -> None:
        super().__init__(task_id, record, intent_id)
        self.task_id = task_id
        self.record = record
        self.intent_id = intent_id

    def __str__(self) -> str:
        intent = f" of intent {self.intent_id}" if self.intent_id else ""
        name = f"task {self.task_id}" if self.task_id else f"the task{intent}, if any,"
        return f"{name} {self.message_tail}"


class TaskFailed(TaskError):
    """The service ended the task in failure; ``record`` has its code and words.

    ``ref`` is what was asked for, if the journal knew that its task had failed; then nothing was sent.
    """

    def __init__(
        self, task_id: str, record: TaskRecord | None = None, intent_id: str = "", ref: str | None = None
    ) -> None:
        super().__init__(task_id, record, intent_id)
        self.args = (task_id, record, intent_id, ref)
        self.ref = ref

    def __str__(self) -> str:
        code = self.record.fail_code if self.record else ""
        words = self.record.fail_message if self.record else ""
        said = f"task {self.task_id} failed: {words or 'no reason given'}" + (f" ({code})" if code else "")
        return said if self.ref is None else f"{said}; {_AGAIN}"


class TaskTimedOut(TaskError, TimeoutError):
    """No terminal state was seen in time; the task goes on and can be attached again."""

    message_tail = "was not seen to end in time; it goes on and is billed; attach its id to wait again"


class TaskAbandoned(TaskError):
    """The wait was given up with ``abandon()``; the task goes on and is billed."""

    message_tail = "was abandoned here; it goes on and is billed"


class TaskDetached(TaskError):
    """The session closed while the task was in flight; it goes on and can be attached again."""

    message_tail = (
        "was in flight when the session closed; it goes on and is billed; attach its id to wait again"
    )


class ResultUnreadable(TaskError):
    """The task succeeded and its record holds neither URL nor object; ``record.raw`` has what came."""

    message_tail = "succeeded but its record holds no result; see record.raw"


class FileError(KieError):
    """A file could not be moved."""


class UploadRefused(FileError):
    """The upload service did not take the file.

    ``may_pass`` tells that this says nothing about the file: a limit, maintenance, a gateway's page.
    """

    def __init__(self, reason: str, may_pass: bool = False) -> None:
        super().__init__(reason, may_pass)
        self.reason = reason
        self.may_pass = may_pass

    def __str__(self) -> str:
        return self.reason


class DownloadFailed(FileError):
    """A result file could not be fetched; ask again, the task is paid and done."""


class ResultExpired(DownloadFailed):
    """The service no longer has the file."""


class CallbackRejected(KieError):
    """A delivery cannot be trusted; ``reason`` is one of a few fixed words."""

    def __init__(self, reason: str, status: int = 401) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return f"callback rejected: {self.reason}"


class JournalError(KieError):
    """The journal cannot be opened, trusted or written."""


class JournalFull(JournalError):
    """The disk of the journal is full: nothing was noted, so nothing was sent."""


class JournalAway(JournalError):
    """The database of the journal does not answer now: nothing is created, and what is paid goes on."""


class TaskNotNoted(JournalError):
    """A task was created and is paid, but the journal could not take its id, which is here."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task_id} was created and is paid, but could not be noted: {self.reason}"


class JournalLocked(JournalError):
    """Another session or process has the journal open."""
