"""Where callbacks knock: an address and a delivery are judged by plain functions, any server may ask.

The address is judged before a body is read. With HMAC keys a delivery must also carry a right and
fresh signature. What a delivery says of the task is for the session to believe or to check.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from .._secrets import as_secrets
from ..errors import CallbackRejected, InvalidRequest
from ..models import TaskRecord
from ..wire.responses import decode_callback
from ..wire.signatures import verify
from .address import is_valid_mac
from .aiohttp_routes import aiohttp_routes
from .asgi import AsgiMount
from .base import _NOWHERE, Address, CallbackVerdict, Headers, Inbox, Read
from .server import ServedReceiver, serve

SIGNATURE_HEADER = "x-webhook-signature"

TIMESTAMP_HEADER = "x-webhook-timestamp"

LOG_EVERY_S = 60.0

_MAX_FORMER_SECRETS = 16
"""Secrets of closed sessions whose addresses are still told from wrong ones."""

_log = logging.getLogger("kie_async")


class CallbackReceiver:
    """Turns deliveries into news for the sessions that were opened with it.

    *hmac_keys* are the keys from the service's webhook settings, several while one is being replaced.
    *tolerance_s* is how far the clocks may differ either way. *max_body* is in bytes.

    Raises:
        InvalidRequest: A key is empty, or a number is not above zero.
    """

    def __init__(
        self,
        hmac_keys: Iterable[str | bytes] = (),
        tolerance_s: float = 300.0,
        max_body: int = 262_144,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        for name, value in (("tolerance_s", tolerance_s), ("max_body", max_body)):
            if not value > 0:
                raise InvalidRequest(f"{name} must be above zero, got {value!r}")
        self._keys = as_secrets(hmac_keys)
        self._tolerance_s = tolerance_s
        self._max_body = max_body
        self._now = now
        self._inboxes: list[Inbox] = []
        self._former: deque[bytes] = deque(maxlen=_MAX_FORMER_SECRETS)
        self._logged: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<CallbackReceiver keys={len(self._keys)} sessions={len(self._inboxes)}>"

    def attach(self, inbox: Inbox) -> None:
        """Begin to bring news to a session; sessions do this when they open."""
        self._inboxes.append(inbox)

    def detach(self, inbox: Inbox) -> None:
        """Stop bringing news to a session; sessions do this when they close."""
        self._inboxes.remove(inbox)
        self._former.extend(secret for secret in inbox.callback_secrets if secret not in self._former)

    # --- the pure pair -----------------------------------------------------------------------------

    def address(self, path_tail: str) -> Address:
        """Judge the part of the path below the mount, ``{intent}/{mac}``, before any body is read.

        Raises:
            CallbackRejected: 404 for a wrong address, 503 when no session is open.
        """
        if not self._inboxes:
            raise CallbackRejected("no session is open", 503)
        intent_id, _, mac = path_tail.strip("/").partition("/")
        inboxes = tuple(
            [i for i in self._inboxes if is_valid_mac(intent_id, mac, callback_secrets=i.callback_secrets)]
        )
        if not inboxes:
            if is_valid_mac(intent_id, mac, callback_secrets=self._former):
                raise CallbackRejected("no session is open", 503)
            for inbox in self._inboxes:
                inbox.note_rejection("wrong address")
            raise CallbackRejected("wrong address", 404)
        return Address(intent_id=intent_id, inboxes=inboxes)

    def receive(self, address: Address, headers: Headers, body: bytes, now: float) -> CallbackVerdict:
        """Judge a delivery; nothing is changed by it. *now* is unix time in seconds."""
        try:
            record = self._read(headers, body, now)
            return self._accepted(address, record, _owner(address, record.task_id))
        except CallbackRejected as exc:
            return _refusal(exc, address)

    def _read(self, headers: Headers, body: bytes, now: float) -> TaskRecord:
        """Return the record that a delivery claims, its signature checked if there are keys."""
        if len(body) > self._max_body:
            raise CallbackRejected("body too large", 413)
        record = decode_callback(body)
        if self._keys:
            self._verify(record.task_id, headers, now)
        return record

    def _accepted(self, address: Address, record: TaskRecord, inbox: Inbox) -> CallbackVerdict:
        return CallbackVerdict(
            status=200,
            record=record,
            is_signed=bool(self._keys),
            intent_id=address.intent_id,
            inbox=inbox,
        )

    def _verify(self, task_id: str, headers: Headers, now: float) -> None:
        if not isinstance(headers, CIMultiDictProxy):  # aiohttp's; others may be read only once
            items = headers.items() if isinstance(headers, Mapping) else headers
            headers = CIMultiDictProxy(CIMultiDict(items))
        signature = _only_header(headers, SIGNATURE_HEADER)
        timestamp = _only_header(headers, TIMESTAMP_HEADER)
        verify(task_id, timestamp, signature, keys=self._keys, now=now, tolerance_s=self._tolerance_s)

    async def feed(self, path_tail: str, headers: Headers, body: bytes) -> CallbackVerdict:
        """Judge a delivery and take it to its session: for any server without a mount of its own.

        *path_tail* is ``{intent}/{mac}``. Answer with the verdict's ``status`` and ``body``.
        """
        address = _NOWHERE
        try:
            address = self.address(path_tail)
            return self._dispatch(address, self._read(headers, body, self._now()))
        except CallbackRejected as exc:
            return self._refuse(exc, address)

    async def _on_request(self, path_tail: str, headers: Headers, read: Read) -> CallbackVerdict:
        """Judge a knock; nothing of the user's runs before it is answered.

        Of many that come together all bodies are read first, then all records, then all are answered:
        the same step again and again finds its code in the processor's caches, which saves a sixth.
        """
        address = _NOWHERE
        try:
            address = self.address(path_tail)
            body = await read(self._max_body)
            await asyncio.sleep(0)
            record = self._read(headers, body, self._now())
            await asyncio.sleep(0)
            return self._dispatch(address, record)
        except CallbackRejected as exc:
            return self._refuse(exc, address)

    def _dispatch(self, address: Address, record: TaskRecord) -> CallbackVerdict:
        """Bring a delivery to the session whose it is as that stands now."""
        inbox = _owner(address, record.task_id)
        inbox.take(address.intent_id, record, is_signed=bool(self._keys))
        return self._accepted(address, record, inbox)

    def _refuse(self, why: CallbackRejected, address: Address) -> CallbackVerdict:
        """Note a refusal, in the sessions too whose address it came to."""
        self._log(why.reason)
        for inbox in address.inboxes:
            inbox.note_rejection(why.reason)
        return _refusal(why, address)

    def _log(self, reason: str) -> None:
        """Log a refusal, each reason once a minute: strangers must not fill a disk."""
        now = self._now()
        if now - self._logged.get(reason, -math.inf) >= LOG_EVERY_S:
            self._logged[reason] = now
            _log.info("callback refused: %s (further ones of this minute are only counted)", reason)

    # --- mounts ------------------------------------------------------------------------------------

    def routes(self, path: str) -> list[web.RouteDef]:
        """Return the routes for an aiohttp application: ``app.router.add_routes(receiver.routes("/kie"))``.

        Bodies are bounded in size and time; slow headers and idle connections are the application's to
        bound. Keep the paths below *path* out of access logs: their last part is a secret.
        """
        return aiohttp_routes(path, self._on_request)

    @property
    def asgi(self) -> AsgiMount:
        """Return an ASGI 3 application for FastAPI, Starlette and the like.

        ``app.mount("/kie", receiver.asgi)``, under any prefix, or as the root application.
        """
        return AsgiMount(self._on_request)

    def serve(
        self,
        host: str = "0.0.0.0",  # noqa: S104  (meant to be reached)
        port: int = 8080,
        path: str = "/kie",
    ) -> AbstractAsyncContextManager[ServedReceiver]:
        """Listen on a port of its own while the ``async with`` block runs; port 0 takes a free one.

        Slow, idle and too many connections are closed.

        Raises:
            OSError: The port cannot be had.
        """
        return serve(host, port, path, self._on_request)


def _refusal(why: CallbackRejected, address: Address) -> CallbackVerdict:
    return CallbackVerdict(status=why.status, reason=why.reason, intent_id=address.intent_id)


def _owner(address: Address, task_id: str) -> Inbox:
    """Return the session that knows the intent, which has this task or none yet.

    Raises:
        CallbackRejected: None does: another worker may get the service's next try. Or it has another task.
    """
    for inbox in address.inboxes:
        if (known := inbox.task_of(address.intent_id)) is not None:
            if known not in {"", task_id}:
                raise CallbackRejected("id of another task", 400)
            return inbox
    raise CallbackRejected("intent is not known here", 503)


def _only_header(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return the one value of a header, whatever its case.

    Raises:
        CallbackRejected: It is missing, or stands there twice.
    """
    values = headers.getall(name, ())
    if len(values) != 1:
        raise CallbackRejected("missing signature" if not values else "signature header stands twice")
    return values[0]
