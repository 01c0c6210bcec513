"""What the service says of tasks and files, as frozen records; and how a task's state may change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

import attrs

from ._field_help import ShowsFields
from ._json import decode_object
from .errors import InvalidRequest, KieError

TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What an id of the service looks like; anything else never goes into a URL or a signature."""


class TaskState(StrEnum):
    """Where a task stands, in the service's own words; ``str()`` gives the wire word.

    Source: https://docs.kie.ai/market/common/get-task-detail
    """

    UNKNOWN = "unknown"
    """No state was read, or a word this version does not know. Counts as still running."""
    WAITING = "waiting"
    QUEUING = "queuing"
    GENERATING = "generating"
    SUCCESS = "success"
    FAIL = "fail"

    rank: int
    """How far the task has come: a state of a lower rank is older news."""
    is_terminal: bool
    """Whether the task has ended."""

    def __init__(self, word: str) -> None:
        # Attributes, not properties: every poll reads them, and asking a set of members costs ten times more.
        self.rank = len(type(self).__members__)
        self.is_terminal = word in {"success", "fail"}


class TaskPhase(StrEnum):
    """How far a handle has come."""

    QUEUED = "queued"
    """It waits for its turn here: nothing has left, and `TaskHandle.withdraw` takes it back."""
    SENDING = "sending"
    """It is its turn: its create waits for the rate limit, or is on the wire."""
    RUNNING = "running"
    """Its task exists, is paid, and was not seen to end."""
    DONE = "done"
    """Awaiting it returns, or raises, at once."""
    UNKNOWN = "unknown"
    """Its create left and nothing proves what happened: it is perhaps paid."""


class JobState(StrEnum):
    """How a job stands, in the one word that people read: on the command line, in results and reports."""

    QUEUED = "queued"
    """It waits for its turn here."""
    SENDING = "sending"
    """Its create is on the wire."""
    RUNNING = "running"
    """Its task exists at the service, is paid, and was not seen to end."""
    DONE = "done"
    NOT_SAVED = "done, not saved"
    """There is a result, and a file of it could not be fetched."""
    FAILED = "failed"
    """The service ended its task without a result."""
    REFUSED = "refused"
    """The service, or a check before it, said no to this job: no task was made."""
    NOT_SENT = "not sent"
    PERHAPS_PAID = "perhaps paid"
    """The outcome of its create is unknown: money may have been spent."""


def advance(current: TaskState, observed: TaskState) -> TaskState:
    """Return the state after *observed*; terminal states stay, a stale replica moves nothing back."""
    return current if current.is_terminal or observed.rank <= current.rank else observed


@attrs.frozen(kw_only=True)
class TaskRecord(metaclass=ShowsFields):
    """One observation of a task, from a query or from a callback."""

    task_id: str
    """The service's id; some callbacks call it ``task_id``, some ``taskId``."""
    model: str = ""
    """The model's id, as the service says it."""
    state: TaskState = TaskState.UNKNOWN
    """How it stands."""
    urls: tuple[str, ...] = ()
    """Where the results lie. The service keeps them from one to fourteen days: download at once."""
    result_object: Mapping[str, object] | None = attrs.field(default=None, hash=False)
    """What the result holds besides URLs: text and masks, watermarked copies, first and last frames."""
    fail_code: str = ""
    """Empty unless the state is FAIL. Numbers and words, as text: ``500``, ``GENERATION_FAILED``."""
    fail_message: str = ""
    """Empty unless the state is FAIL. The service's words, not translated."""
    credits: float | None = None
    """The price: a hold while the task runs, 0 after a failure. None when the record does not say."""
    remaining_credits: float | None = None
    """The account's balance, in the records that carry it."""
    created_at: datetime | None = None
    """When it was created, by the service's clock."""
    updated_at: datetime | None = None
    """When it last changed, by the service's clock."""
    completed_at: datetime | None = None
    """When it ended, by the service's clock; None before."""
    duration_s: float | None = None
    """From creation to completion, queueing included."""
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)
    """All the service sent, unknown keys included, but for what was broken. Keys, and the last parts
    of callback addresses, are stars in it."""

    @property
    def param(self) -> Mapping[str, object] | None:
        """Return the create request as the service stored it, its ``input`` decoded; None if unreadable.

        The service sends JSON in a string in a string; it is decoded here, at each call.
        """
        param = decode_object(self.raw.get("param") or self.raw.get("paramJson"))
        if param is None:
            return None
        inner = decode_object(param.get("input"))
        return param if inner is None else {**param, "input": inner}

    @property
    def has_result(self) -> bool:
        """Tell whether there is anything to hand out."""
        return bool(self.urls or self.result_object)

    @property
    def is_complete(self) -> bool:
        """Tell whether this observation can move or end a task by itself.

        It cannot if its state is unknown, or if it is a success without a result: then it is read again.
        """
        is_known = self.state is not TaskState.UNKNOWN
        return is_known and (self.state is not TaskState.SUCCESS or self.has_result)


def only_url(urls: tuple[str, ...]) -> str:
    """Return the URL of a result that is one file.

    Raises:
        InvalidRequest: It is several files, or none.
    """
    if len(urls) != 1:
        several = f"{len(urls)} files: take one of its urls"
        raise InvalidRequest(f"the result is {several if urls else 'no file: see result_object'}")
    return urls[0]


@attrs.frozen(kw_only=True)
class TaskResult(metaclass=ShowsFields):
    """What a successful task yields."""

    record: TaskRecord
    """The record that says so."""

    @property
    def task_id(self) -> str:
        """Return the service's id."""
        return self.record.task_id

    @property
    def urls(self) -> tuple[str, ...]:
        """Return where the results lie; download them at once, they expire."""
        return self.record.urls

    @property
    def url(self) -> str:
        """Return where the result lies, of a result that is one file.

        Raises:
            InvalidRequest: It is several files, or none.
        """
        return only_url(self.urls)

    @property
    def result_object(self) -> Mapping[str, object] | None:
        """Return what the result holds besides URLs."""
        return self.record.result_object

    @property
    def credits(self) -> float | None:
        """Return the price in credits; one credit is 0.005 USD."""
        return self.record.credits

    @property
    def duration_s(self) -> float | None:
        """Return the seconds from creation to completion, queueing included."""
        return self.record.duration_s


@attrs.frozen(kw_only=True)
class UploadedFile(metaclass=ShowsFields):
    """A file the service keeps for a day."""

    url: str
    """Where the service finds it; it goes into a model's input."""
    name: str = ""
    """Its name at the service."""
    size: int | None = None
    """Bytes."""
    mime_type: str = ""
    """Its type, as the service says it."""
    uploaded_at: datetime | None = None
    """By the clock of the service, if its answer says so."""
    expires_at: datetime | None = None
    """When the service deletes it, if its answer says so; else that is 24 hours later."""


@attrs.frozen(kw_only=True)
class Estimate(metaclass=ShowsFields):
    """How long a task may still take, from now to its end; see `TaskHandle.estimate`."""

    remaining_s: float
    """The median: as many tasks take longer as take less. The wait for its turn is in it."""
    low_s: float
    """One task in ten is over sooner."""
    high_s: float
    """One task in ten takes longer."""
    waiting_s: float = 0.0
    """How much of it is the wait here, for a slot and for the service's limit; 0 of a task that runs."""
    progress: float
    """How far it has come, from 0 to 0.99; for one handle it never falls."""
    is_learned: bool
    """Whether it comes from tasks of the model that ended, and not from the table of durations alone."""


@attrs.frozen(kw_only=True)
class Price(metaclass=ShowsFields):
    """What a task is expected to cost, in credits; see `KieSession.price`."""

    credits: float
    """As expected."""
    low: float
    """The least that is likely."""
    high: float
    """The most that is likely: what a budget reserves for it."""
    usd: float
    """The expected price in US dollars."""
    basis: str
    """What it was reckoned from, in words."""


class ResultOrError(metaclass=ShowsFields):
    """How an end is read: what has come to one has a result or an error."""

    __slots__ = ()

    result: TaskResult | None
    error: KieError | None

    @property
    def ok(self) -> bool:
        """Tell whether there is a result and nothing went wrong with it."""
        return self.error is None

    def unwrap(self) -> TaskResult:
        """Return the result.

        Raises:
            KieError: The error, if there is one.
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None  # noqa: S101  (without an error there is a result)
        return self.result


@attrs.frozen(kw_only=True)
class SettledTask(ResultOrError):
    """A task that a journal knows to have ended: with a result or an error."""

    ref: str | None
    """The caller's own key; in a batch, one made of the request's content if it had none."""
    task_id: str
    """The service's id."""
    model: str
    """The name of the generator."""
    ended_at: datetime
    """When its end was noted, by the clock of this machine. In UTC."""
    result: TaskResult | None = None
    """What it yielded; None if it failed."""
    error: KieError | None = None
    """Why there is no result; None if there is one."""
