"""Reads the body of a delivery and verifies its signature."""

from __future__ import annotations

from functools import partial

from multidict import CIMultiDictProxy

from .._secrets import Secret
from ..errors import CallbackRejected
from ..wire.responses import decode_callback
from ..wire.signatures import verify
from .base import Address, Delivery, Headers, as_multidict
from .unread import UnreadDelivery

SIGNATURE_HEADER = "x-webhook-signature"

TIMESTAMP_HEADER = "x-webhook-timestamp"

_UNREADABLE = "unreadable body"


class DeliveryVerifier:
    """Takes bodies of up to *max_body* bytes, signed with one of the *keys* if there are any."""

    def __init__(self, keys: tuple[Secret, ...], tolerance_s: float, max_body: int) -> None:
        self._keys = keys
        self._tolerance_s = tolerance_s
        self.max_body = max_body

    def verify(
        self, address: Address, headers: Headers, body: bytes, now: float
    ) -> Delivery | UnreadDelivery:
        """Return the delivery in a body, its signature checked if there are keys.

        Of a body that is too large or broken nothing counts but that it came, to a right address. *now* is
        unix time in seconds.

        Raises:
            CallbackRejected: Its ids disagree, or the signature is missing, wrong or too old.
        """
        try:
            record = (
                decode_callback(body, address.inboxes[0].redactor) if len(body) <= self.max_body else None
            )
        except CallbackRejected as exc:
            if exc.reason != _UNREADABLE:
                raise
            record = None
        if record is None:
            verify_signature = partial(self._verify_signature, headers=as_multidict(headers), now=now)
            return UnreadDelivery(
                intent_id=address.intent_id,
                body=body,
                is_large=len(body) > self.max_body,
                verify_signature=verify_signature if self._keys else None,
            )
        if self._keys:
            self._verify_signature(record.task_id, headers, now)
        return Delivery(intent_id=address.intent_id, record=record, is_signed=bool(self._keys))

    def _verify_signature(self, task_id: str, headers: Headers, now: float) -> None:
        headers = as_multidict(headers)
        signature = _only_header(headers, SIGNATURE_HEADER)
        timestamp = _only_header(headers, TIMESTAMP_HEADER)
        verify(task_id, timestamp, signature, keys=self._keys, now=now, tolerance_s=self._tolerance_s)


def _only_header(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return the one value of a header, whatever its case.

    Raises:
        CallbackRejected: It is missing, or stands there twice.
    """
    values = headers.getall(name, ())
    if len(values) != 1:
        raise CallbackRejected("missing signature" if not values else "signature header stands twice")
    return values[0]
