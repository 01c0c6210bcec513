"""The types that the parts of the callback receiver share: addresses, deliveries, verdicts, and the inbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import attrs
from multidict import CIMultiDict, CIMultiDictProxy

from .._field_help import ShowsFields
from ..models import TaskRecord
from ..wire.redaction import MACS_ONLY as MACS_ONLY
from ..wire.redaction import Redactor as Redactor

_ACCEPTED_BODY = b'{"code":200,"msg":"success"}'


@attrs.frozen(kw_only=True)
class Delivery:
    """One delivery of a callback whose address, and signature if there are keys, were right."""

    intent_id: str
    record: TaskRecord
    """What the delivery says of the task."""
    is_signed: bool
    """Whether the signature was checked; without one, anyone who has seen the address may have sent it."""


class Inbox(Protocol):
    """What a receiver asks of a session."""

    @property
    def callback_secrets(self) -> Sequence[bytes]:
        """Return the secrets under which addresses of this session were made."""

    @property
    def redactor(self) -> Redactor:
        """Return what takes the secrets of this session out of a delivery."""

    def owner_of(self, intent_id: str) -> str | None:
        """Return the task id of an intent, "" while it has none, None if the intent is not in memory."""

    async def find_noted(self, intent_id: str) -> str | None:
        """Return what `owner_of` does, of an intent that only a journal may know.

        Raises:
            CallbackRejected: The journal cannot be asked now: 503.
        """

    async def accept(self, delivery: Delivery) -> None:
        """Take in a delivery that the receiver has verified; it is answered when this returns.

        Raises:
            CallbackRejected: It cannot be kept now, and the service has to try again: 503.
        """

    def note_rejection(self, reason: str) -> None:
        """Count a delivery that was refused."""


@attrs.frozen(kw_only=True)
class Address(metaclass=ShowsFields):
    """A callback address whose mac is right."""

    intent_id: str
    """The id of the create it was made for."""
    inboxes: tuple[Inbox, ...] = attrs.field(repr=False)
    """The sessions whose secret made it."""


NO_ADDRESS = Address(intent_id="", inboxes=())
"""Stands for the address of a request whose own was not right."""


@attrs.frozen(kw_only=True)
class CallbackVerdict(metaclass=ShowsFields):
    """What to answer to a delivery, and why."""

    status: int
    """The HTTP status to answer with."""
    reason: str = ""
    """Empty when the delivery was accepted."""
    record: TaskRecord | None = None
    """What the delivery says of the task, if it was read."""
    is_signed: bool = False
    """Whether its signature was verified with a key."""
    intent_id: str = ""
    """The id of the create whose address it came to."""
    inbox: Inbox | None = attrs.field(default=None, repr=False)
    """The session it belongs to."""

    @property
    def body(self) -> bytes:
        """Return the body to answer with; that of a refusal is empty: strangers learn nothing from it."""
        return _ACCEPTED_BODY if self.status == 200 else b""


METHOD_NOT_ALLOWED = CallbackVerdict(status=405, reason="method not allowed")

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


def as_multidict(headers: Headers) -> CIMultiDictProxy[str]:
    """Return headers as aiohttp has them: others may be read only once."""
    if isinstance(headers, CIMultiDictProxy):
        return headers
    # A dict is one, and asking the abstract class takes ten times longer.
    items = headers.items() if isinstance(headers, (dict, Mapping)) else headers
    return CIMultiDictProxy(CIMultiDict(items))


BodyReader = Callable[[int], Awaitable[bytes]]
"""Reads a body, or raises `CallbackRejected`; of one that is larger than so many bytes, one byte more."""

Handler = Callable[[str, Headers, BodyReader], Awaitable[CallbackVerdict]]
"""Judges a request and takes in its delivery: the end of its path, its headers, a way to read its body."""
