"""TODO"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from ..models import TaskRecord

_ACCEPTED_BODY = b'{"code":200,"msg":"success"}'


class Inbox(Protocol):
    """What a receiver asks of a session."""

    @property
    def callback_secrets(self) -> Sequence[bytes]:
        """Return the secrets under which addresses of this session were made."""

    def task_of(self, intent_id: str) -> str | None:
        """Return the task id of an intent, "" while it has none, None if the intent is not known here."""

    def take(self, intent_id: str, record: TaskRecord, *, is_signed: bool) -> None:
        """Take in a delivery that was found right."""

    def note_rejection(self, reason: str) -> None:
        """Count a delivery that was refused."""


@attrs.frozen(kw_only=True)
class Address:
    """A callback address whose mac is right."""

    intent_id: str
    inboxes: tuple[Inbox, ...] = attrs.field(repr=False)
    """The sessions whose secret made it."""


_NOWHERE = Address(intent_id="", inboxes=())
"""Where a knock came to whose address was not right."""


@attrs.frozen(kw_only=True)
class CallbackVerdict:
    """What to answer to a delivery, and why."""

    status: int
    reason: str = ""
    """Empty when the delivery was accepted."""
    record: TaskRecord | None = None
    is_signed: bool = False
    intent_id: str = ""
    inbox: Inbox | None = attrs.field(default=None, repr=False)

    @property
    def body(self) -> bytes:
        """Return the body to answer with; refusals tell a stranger nothing."""
        return _ACCEPTED_BODY if self.status == 200 else b""


Headers = Mapping[str, str] | Iterable[tuple[str, str]]

Read = Callable[[int], Awaitable[bytes]]
"""Reads a body of at most so many bytes, or raises `CallbackRejected`."""


class Answer(Protocol):
    """What a mount sends back."""

    @property
    def status(self) -> int:
        """Return the HTTP status."""

    @property
    def body(self) -> bytes:
        """Return the body."""


Handler = Callable[[str, Headers, Read], Awaitable[Answer]]
"""Judges a delivery and takes it in: the end of its path, its headers, a way to read its body."""
