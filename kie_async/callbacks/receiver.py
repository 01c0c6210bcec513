"""Receives callbacks: checks the address before the body, then the signature, then asks whose task it is.

What a delivery says of the task is passed on as it stands: the session decides whether to trust it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import product

import attrs
from aiohttp import web

from .._secrets import Secret, as_secrets
from .._validation import check_above_zero, check_count, check_kind, check_mount, check_port
from ..errors import CallbackRejected, InvalidRequest
from .address import has_form_of_address, is_valid_mac, split_address
from .aiohttp_routes import aiohttp_routes
from .asgi import AsgiMount
from .base import NO_ADDRESS, Address, BodyReader, CallbackVerdict, Delivery, Headers, Inbox, as_multidict
from .body import bounded
from .check import CallbackCheck, Checks
from .handover import call_on, run_on, running_loop
from .offers import acceptance, delivery_for, offer
from .refusals import FOREIGN_ADDRESS, NO_SESSION, RefusalLog
from .server import ServedReceiver, serve
from .unread import UnreadDelivery
from .verifier import DeliveryVerifier

_MAX_FORMER_SECRETS = 16
"""Of closed sessions: their addresses get a 503, as another worker may know them, and no 404."""

_log = logging.getLogger("kie_async")


@attrs.frozen(eq=False)
class _Attached:
    """A session and the event loop it runs on, which may be that of another thread."""

    inbox: Inbox
    loop: asyncio.AbstractEventLoop | None


class CallbackReceiver:
    """Verifies deliveries and hands them to the sessions that were opened with it.

    *hmac_keys* are the keys from the service's webhook settings, several while one is being replaced.
    *tolerance_s* is how far the clocks may differ either way. A body of more than *max_body* bytes is not
    read: up to 8 MiB its task is polled at once instead, what is larger is refused.

    Any thread may deliver: a session is only touched on its own event loop.

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
        check_above_zero("tolerance_s", tolerance_s)
        check_count("max_body", max_body)
        if not callable(now):
            raise InvalidRequest(f"now must be a function that returns unix time, got {type(now).__name__}")
        self._keys = as_secrets(hmac_keys)
        self._verifier = DeliveryVerifier(self._keys, tolerance_s, max_body)
        self._now = now
        # Tuples, replaced as a whole: threads that deliver go through them while sessions come and go.
        self._attached: tuple[_Attached, ...] = ()
        self._former_secrets: tuple[bytes, ...] = ()
        self._changing = threading.Lock()
        self._refusals = RefusalLog()
        self._checks = Checks()

    @property
    def hmac_keys(self) -> tuple[Secret, ...]:
        """Return the keys, which show nothing of themselves: sessions keep them out of what they note."""
        return self._keys

    def __repr__(self) -> str:
        return f"<CallbackReceiver keys={len(self._keys)} sessions={len(self._attached)}>"

    def attach(self, inbox: Inbox) -> None:
        """Begin to hand deliveries to a session; sessions do this when they open, on their event loop."""
        with self._changing:
            self._attached = (*self._attached, _Attached(inbox, running_loop()))

    def detach(self, inbox: Inbox) -> None:
        """Hand no more deliveries to a session; sessions do this when they close."""
        with self._changing:
            former = dict.fromkeys([*self._former_secrets, *inbox.callback_secrets])
            self._former_secrets = tuple(former)[-_MAX_FORMER_SECRETS:]
            self._attached = tuple(one for one in self._attached if one.inbox is not inbox)

    # --- the pure pair -----------------------------------------------------------------------------

    def address(self, path_tail: str) -> Address:
        """Judge the part of the path below the mount, ``{intent}/{mac}``, before any body is read.

        Raises:
            CallbackRejected: 404 for a wrong address, 503 when no session is open.
        """
        attached = self._attached
        if not attached:
            raise CallbackRejected(NO_SESSION, 503)
        intent_id, mac = split_address(path_tail)
        inboxes = tuple(
            [
                one.inbox
                for one in attached
                if is_valid_mac(intent_id, mac, callback_secrets=one.inbox.callback_secrets)
            ]
        )
        if inboxes:
            return Address(intent_id=intent_id, inboxes=inboxes)
        if is_valid_mac(intent_id, mac, callback_secrets=self._former_secrets):
            raise CallbackRejected(NO_SESSION, 503)
        for one in attached:
            _note_rejection(one, "wrong address")
        raise CallbackRejected("wrong address", 404)

    def receive(self, address: Address, headers: Headers, body: bytes, now: float) -> CallbackVerdict:
        """Judge a delivery; nothing is changed by it. *now* is unix time in seconds."""
        try:
            news = self._verifier.verify(address, headers, bounded(body, self._verifier.max_body), now)
            for inbox in address.inboxes:
                if (delivery := delivery_for(inbox.owner_of(news.intent_id), news)) is not None:
                    return acceptance(delivery, inbox)
            raise _unknown_intent()
        except CallbackRejected as exc:
            return _refusal(exc, address)

    # --- what changes a session --------------------------------------------------------------------

    async def feed(self, path_tail: str, headers: Headers, body: bytes) -> CallbackVerdict:
        """Judge a delivery and hand it to its session: for any server without a mount of its own.

        *path_tail* is ``{intent}/{mac}``. Answer with the verdict's ``status`` and ``body``. A thread that
        runs no event loop may call ``asyncio.run(receiver.feed(...))``: it waits for the session's loop.

        Raises:
            InvalidRequest: An argument is of a wrong type; the message names it.
        """
        check_kind("path_tail", path_tail, str, "the part of the path below the mount, '{intent}/{mac}'")
        # A dict is iterable, and asking the abstract class takes ten times longer.
        check_kind("headers", headers, (dict, Iterable), "the headers of the request")
        check_kind("body", body, (bytes, bytearray, memoryview), "the bytes of the request's body")
        body = bytes(body)
        if not isinstance(headers, (dict, Mapping)):  # it may be read only once
            headers = as_multidict(headers)

        async def read(limit: int) -> bytes:
            # Many a framework has decompressed it and kept the header.
            is_plain = body.startswith(b"{") or body[:64].lstrip().startswith(b"{")
            content_encoding = "" if is_plain else as_multidict(headers).get("Content-Encoding", "").lower()
            return bounded(body, limit, content_encoding=content_encoding)

        return await self._judge(path_tail, headers, read, is_mounted=False)

    async def _on_request(self, path_tail: str, headers: Headers, read: BodyReader) -> CallbackVerdict:
        """Judge a request to a mount; nothing of the user's runs before it is answered."""
        try:
            return await self._judge(path_tail, headers, read, is_mounted=True)
        except Exception:  # a mistake of ours: the service delivers again after a 500
            _log.exception("a callback was answered with 500")
            return CallbackVerdict(status=500, reason="internal error")

    async def _judge(
        self, path_tail: str, headers: Headers, read: BodyReader, *, is_mounted: bool
    ) -> CallbackVerdict:
        address = NO_ADDRESS
        try:
            if (check := self._checks.find(path_tail, headers)) is not None:
                return await check.arrive(path_tail, headers, read)
            address = self.address(path_tail)
            body = await read(self._verifier.max_body)
            # Requests that came together wait here for each other, so that their answers leave together: a
            # proxy on this machine is then woken once for all, and `send` takes half the time. With 16
            # connections that is 17 % more callbacks in a CPU second, 14 of them by the second sleep alone;
            # with one connection it is 6 % fewer, where nothing is pressing.
            if is_mounted:
                await asyncio.sleep(0)
            news = self._verifier.verify(address, headers, body, self._now())
            if is_mounted:
                await asyncio.sleep(0)
            return await self._dispatch(news, address)
        except CallbackRejected as exc:
            return self._refuse(exc, address, path_tail)

    async def _dispatch(self, news: Delivery | UnreadDelivery, address: Address) -> CallbackVerdict:
        """Hand a delivery to the session that has its task now: a create answer may have come meanwhile."""
        attached = self._attached_of(address)
        if not attached:
            raise CallbackRejected(NO_SESSION, 503)
        here = asyncio.get_running_loop()
        # Journals only after the memory of every session: what is in flight costs no read.
        for is_noted, one in product((False, True), attached):
            if one.loop is here or one.loop is None:
                verdict = await offer(one.inbox, news, is_noted=is_noted)
            else:
                verdict = await run_on(one.loop, partial(offer, one.inbox, news, is_noted=is_noted))
            if verdict is not None:
                if isinstance(news, UnreadDelivery):
                    self._refusals.note_unread(self._now())
                return verdict
        raise _unknown_intent()

    def _attached_of(self, address: Address) -> list[_Attached]:
        """Return the sessions of an address that are still open."""
        return [one for one in self._attached if one.inbox in address.inboxes]

    def _refuse(self, why: CallbackRejected, address: Address, path_tail: str) -> CallbackVerdict:
        """Note a refusal, in the sessions too whose address it came to."""
        is_foreign = why.status == 404 and has_form_of_address(*split_address(path_tail))
        self._refusals.note(
            why.reason,
            self._now(),
            is_genuine=bool(address.intent_id),
            advice=FOREIGN_ADDRESS if is_foreign else "",
        )
        for one in self._attached_of(address):
            _note_rejection(one, why.reason)
        return _refusal(why, address)

    # --- trying it out -----------------------------------------------------------------------------

    async def check(
        self, url: str, *, timeout_s: float = 10.0, ssl_context: ssl.SSLContext | None = None
    ) -> CallbackCheck:
        """Send a request to the public *url* as the service would, and find out where it fails to get here.

        The receiver must be mounted already, in this process; no session need be open. ``print`` what this
        returns: one sentence that names the hop which failed and what to do.

        Raises:
            InvalidRequest: *url* is no absolute http(s) URL.
        """
        return await self._checks.run(url, timeout_s=timeout_s, ssl_context=ssl_context)

    # --- mounts ------------------------------------------------------------------------------------

    def routes(self, path: str) -> list[web.RouteDef]:
        """Return the routes for an aiohttp application: ``app.router.add_routes(receiver.routes("/kie"))``.

        Bodies are bounded in size and time; slow headers and idle connections are the application's to
        bound. Keep the paths below *path* out of access logs: their last part is a secret.

        Raises:
            InvalidRequest: *path* is no plain path.
        """
        check_mount("path", path)
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
            InvalidRequest: An argument is wrong; the message names it.
            OSError: The port cannot be had.
        """
        check_kind("host", host, str, "a host name or an IP address of this machine")
        check_port("port", port)
        check_mount("path", path)
        return serve(host, port, path, self._on_request)


def _note_rejection(attached: _Attached, reason: str) -> None:
    call_on(attached.loop, partial(attached.inbox.note_rejection, reason))


def _unknown_intent() -> CallbackRejected:
    """Return the refusal of a delivery that another worker may get at the service's next try."""
    return CallbackRejected("intent is not known here", 503)


def _refusal(why: CallbackRejected, address: Address) -> CallbackVerdict:
    return CallbackVerdict(status=why.status, reason=why.reason, intent_id=address.intent_id)
