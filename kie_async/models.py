"""What comes back from the service, and what a session is told about limits: frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import attrs

from . import jsontext
from .checks import above_zero, whole_above_zero
from .states import TaskState


@attrs.frozen(kw_only=True)
class TaskRecord:
    """One observation of a task, from a query or from a callback."""

    task_id: str
    """The service's id; some callbacks call it ``task_id``, some ``taskId``."""
    model: str = ""
    state: TaskState = TaskState.UNKNOWN
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
    updated_at: datetime | None = None
    completed_at: datetime | None = None
    duration_s: float | None = None
    """From creation to completion, queueing included."""
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)
    """All the service sent, unknown keys included. Callback addresses in it have lost their last part."""

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


def decode_object(value: object) -> dict[str, object] | None:
    """Return *value* if it is an object, the object in it if it is JSON text, else None."""
    if isinstance(value, str) and value:
        try:
            value = jsontext.parse(value)
        except jsontext.NotJson:
            return None
    return value if isinstance(value, dict) else None


@attrs.frozen(kw_only=True)
class TaskResult:
    """What a successful task yields."""

    record: TaskRecord

    @property
    def task_id(self) -> str:
        """Return the service's id."""
        return self.record.task_id

    @property
    def urls(self) -> tuple[str, ...]:
        """Return where the results lie; download them at once, they expire."""
        return self.record.urls

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
class UploadedFile:
    """A file the service keeps for three days."""

    url: str
    name: str = ""
    size: int | None = None
    """Bytes."""
    mime_type: str = ""


@attrs.frozen
class Rate:
    """So many requests in any window of so many seconds."""

    count: int = attrs.field(validator=whole_above_zero)
    per_s: float = attrs.field(kw_only=True, validator=above_zero)


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of the account and of this process; the published ones are the defaults.

    Source: https://docs.kie.ai (20 new tasks in 10 seconds, 10 queries a second)
    """

    create: Rate = Rate(20, per_s=10.0)
    query: Rate = Rate(10, per_s=1.0)
    create_connections: int = attrs.field(default=4, validator=whole_above_zero)
    """Creates on the wire at once: also the most that one crash can leave unknown."""
    query_connections: int = attrs.field(default=16, validator=whole_above_zero)


@attrs.frozen(kw_only=True)
class Budget:
    """A hard stop before the next create, for the life of the session (or of its journal)."""

    credits: float | None = attrs.field(default=None, validator=above_zero)
    """What has not settled, or may exist after an unknown create, counts as the mean of what has."""
    tasks: int | None = attrs.field(default=None, validator=whole_above_zero)


@attrs.frozen(kw_only=True)
class SessionStats:
    """What a session did so far."""

    creates: int = 0
    """Tasks created."""
    queries: int = 0
    """recordInfo requests sent."""
    retries: int = 0
    """Requests sent again after a failure, a limit or before the first byte."""
    rate_limited: int = 0
    """Answers that said: too many requests, or maintenance."""
    callbacks_accepted: int = 0
    callbacks_duplicate: int = 0
    """Deliveries for tasks that had settled."""
    callbacks_rejected: Mapping[str, int] = attrs.field(factory=dict)
    """By reason."""
    settled_by_callback: int = 0
    settled_by_poll: int = 0
    unknown_creates: int = 0
    ghost_creates: int = 0
    """Creates judged as not created that turned out to be; should be 0."""
    credits_consumed: float = 0.0
    in_flight: int = 0


EventKind = Literal["created", "updated", "settled", "unknown", "adopted"]


@attrs.frozen(kw_only=True)
class SessionEvent:
    """One thing that happened in a session, for its ``on_event`` hook."""

    kind: EventKind
    task_id: str
    ref: str | None = None
    source: Literal["", "callback", "poll"] = ""
    """Which side settled the task; empty when nobody did: a timeout, a close."""
    record: TaskRecord | None = None


@attrs.define(kw_only=True)
class Counters:
    """The running counts behind `SessionStats`."""

    creates: int = 0
    queries: int = 0
    retries: int = 0
    rate_limited: int = 0
    callbacks_accepted: int = 0
    callbacks_duplicate: int = 0
    callbacks_rejected: dict[str, int] = attrs.field(factory=dict)
    settled_by_callback: int = 0
    settled_by_poll: int = 0
    unknown_creates: int = 0
    ghost_creates: int = 0
    credits_consumed: float = 0.0

    def reject(self, reason: str) -> None:
        """Count one refused delivery."""
        self.callbacks_rejected[reason] = self.callbacks_rejected.get(reason, 0) + 1

    def snapshot(self, *, in_flight: int) -> SessionStats:
        """Return the counts as they stand."""
        return SessionStats(**attrs.asdict(self), in_flight=in_flight)
