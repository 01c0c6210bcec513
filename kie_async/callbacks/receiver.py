"""Receives callbacks: checks the address before the body, then the signature, then asks whose task it is.

What a delivery says of the task is passed on as it stands: the session decides whether to trust it.
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

from .._secrets import Secret, as_secrets
from ..errors import CallbackRejected, InvalidRequest
from ..wire.responses import decode_callback
from ..wire.signatures import verify
from .address import is_valid_mac
from .aiohttp_routes import aiohttp_routes
from .asgi import AsgiMount
from .base import NO_ADDRESS, Address, BodyReader, CallbackVerdict, Delivery, Headers, Inbox
from .body import body_too_large
from .server import ServedReceiver, serve

SIGNATURE_HEADER = "x-webhook-signature"

TIMESTAMP_HEADER = "x-webhook-timestamp"

LOG_EVERY_S = 60.0

_MAX_FORMER_SECRETS = 16
"""Of closed sessions: their addresses get a 503, as another worker may know them, and no 404."""

_log = logging.getLogger("kie_async")


class CallbackReceiver:
    """Verifies deliveries and hands them to the sessions that were opened with it.

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
        self._former_secrets: deque[bytes] = deque(maxlen=_MAX_FORMER_SECRETS)
        self._logged_at: dict[str, float] = {}

    @property
    def hmac_keys(self) -> tuple[Secret, ...]:
        """Return the keys, which show nothing of themselves: sessions keep them out of what they note."""
        return self._keys

    def __repr__(self) -> str:
        return f"<CallbackReceiver keys={len(self._keys)} sessions={len(self._inboxes)}>"

    def attach(self, inbox: Inbox) -> None:
        """Begin to hand deliveries to a session; sessions do this when they open."""
        self._inboxes.append(inbox)

    def detach(self, inbox: Inbox) -> None:
        """Hand no more deliveries to a session; sessions do this when they close."""
        self._inboxes.remove(inbox)
        self._former_secrets.extend(
            secret for secret in inbox.callback_secrets if secret not in self._former_secrets
        )

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
        if inboxes:
            return Address(intent_id=intent_id, inboxes=inboxes)
        if is_valid_mac(intent_id, mac, callback_secrets=self._former_secrets):
            raise CallbackRejected("no session is open", 503)
        for inbox in self._inboxes:
            inbox.note_rejection("wrong address")
        raise CallbackRejected("wrong address", 404)

    def receive(self, address: Address, headers: Headers, body: bytes, now: float) -> CallbackVerdict:
        """Judge a delivery; nothing is changed by it. *now* is unix time in seconds."""
        try:
            delivery = self._verified(address, headers, body, now)
            return _acceptance(delivery, _inbox_for(delivery, address))
        except CallbackRejected as exc:
            return _refusal(exc, address)

    def _verified(self, address: Address, headers: Headers, body: bytes, now: float) -> Delivery:
        """Return the delivery in a body, its signature checked if there are keys."""
        if len(body) > self._max_body:
            raise body_too_large()
        record = decode_callback(body, address.inboxes[0].redactor)
        if self._keys:
            self._verify_signature(record.task_id, headers, now)
        return Delivery(intent_id=address.intent_id, record=record, is_signed=bool(self._keys))

    def _verify_signature(self, task_id: str, headers: Headers, now: float) -> None:
        if not isinstance(headers, CIMultiDictProxy):  # aiohttp's; others may be read only once
            items = headers.items() if isinstance(headers, Mapping) else headers
            headers = CIMultiDictProxy(CIMultiDict(items))
        signature = _only_header(headers, SIGNATURE_HEADER)
        timestamp = _only_header(headers, TIMESTAMP_HEADER)
        verify(task_id, timestamp, signature, keys=self._keys, now=now, tolerance_s=self._tolerance_s)

    # --- what changes a session --------------------------------------------------------------------

    async def feed(self, path_tail: str, headers: Headers, body: bytes) -> CallbackVerdict:
        """Judge a delivery and hand it to its session: for any server without a mount of its own.

        *path_tail* is ``{intent}/{mac}``. Answer with the verdict's ``status`` and ``body``.
        """
        address = NO_ADDRESS
        try:
            address = self.address(path_tail)
            return _dispatch(self._verified(address, headers, body, self._now()), address)
        except CallbackRejected as exc:
            return self._refuse(exc, address)

    async def _on_request(self, path_tail: str, headers: Headers, read: BodyReader) -> CallbackVerdict:
        """Judge a request to a mount; nothing of the user's runs before it is answered."""
        try:
            return await self._read_and_dispatch(path_tail, headers, read)
        except Exception:  # a mistake of ours: the service delivers again after a 500
            _log.exception("a callback was answered with 500")
            return CallbackVerdict(status=500, reason="internal error")

    async def _read_and_dispatch(self, path_tail: str, headers: Headers, read: BodyReader) -> CallbackVerdict:
        address = NO_ADDRESS
        try:
            address = self.address(path_tail)
            body = await read(self._max_body)
            # Requests that came together wait here for each other, so that their answers leave together: a
            # proxy on this machine is then woken once for all, and `send` takes half the time. With 16
            # connections that is 17 % more callbacks in a CPU second, 14 of them by the second sleep alone;
            # with one connection it is 6 % fewer, where nothing is pressing.
            await asyncio.sleep(0)
            delivery = self._verified(address, headers, body, self._now())
            await asyncio.sleep(0)
            return _dispatch(delivery, address)
        except CallbackRejected as exc:
            return self._refuse(exc, address)

    def _refuse(self, why: CallbackRejected, address: Address) -> CallbackVerdict:
        """Note a refusal, in the sessions too whose address it came to."""
        self._log_refusal(why.reason)
        for inbox in address.inboxes:
            inbox.note_rejection(why.reason)
        return _refusal(why, address)

    def _log_refusal(self, reason: str) -> None:
        """Log a refusal, each reason once a minute: strangers must not fill a disk."""
        now = self._now()
        if now - self._logged_at.get(reason, -math.inf) >= LOG_EVERY_S:
            self._logged_at[reason] = now
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


def _dispatch(delivery: Delivery, address: Address) -> CallbackVerdict:
    """Hand a delivery to the session that has its task now: a create answer may have come meanwhile."""
    inbox = _inbox_for(delivery, address)
    inbox.accept(delivery)
    return _acceptance(delivery, inbox)


def _inbox_for(delivery: Delivery, address: Address) -> Inbox:
    """Return the session that knows the intent, which has this task or none yet.

    Raises:
        CallbackRejected: 503 if none does: another worker may get the service's next try. 400 if the
            intent has another task.
    """
    for inbox in address.inboxes:
        if (task_id := inbox.owner_of(address.intent_id)) is not None:
            if task_id not in {"", delivery.record.task_id}:
                raise CallbackRejected("id of another task", 400)
            return inbox
    raise CallbackRejected("intent is not known here", 503)


def _acceptance(delivery: Delivery, inbox: Inbox) -> CallbackVerdict:
    return CallbackVerdict(
        status=200,
        record=delivery.record,
        is_signed=delivery.is_signed,
        intent_id=delivery.intent_id,
        inbox=inbox,
    )


def _refusal(why: CallbackRejected, address: Address) -> CallbackVerdict:
    return CallbackVerdict(status=why.status, reason=why.reason, intent_id=address.intent_id)


def _only_header(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return the one value of a header, whatever its case.

    Raises:
        CallbackRejected: It is missing, or stands there twice.
    """
    values = headers.getall(name, ())
    if len(values) != 1:
        raise CallbackRejected("missing signature" if not values else "signature header stands twice")
    return values[0]
