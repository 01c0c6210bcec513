"""Sends a request to a receiver's public URL, as the service would, and says where it fails to arrive."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import socket
import ssl
import time
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

import attrs

from .._field_help import ShowsFields
from .._validation import check_above_zero, check_url, is_loopback
from ..errors import CallbackRejected
from .address import address_below, callback_mac, new_intent_id, split_address
from .base import BodyReader, CallbackVerdict, Headers, as_multidict

Hop = Literal["", "name", "connection", "certificate", "answer", "path", "headers", "body"]

_CHECK_HEADER = "X-Kie-Async-Check"

_BODY_LIMIT = 262_144

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})")

_LOCATION = re.compile(rb"\r\nlocation: *([^\r?#]{1,200})", re.IGNORECASE)

_PROXY_ADVICE = "a proxy answers, but what is behind it does not: is the application running, on that port?"

_STATUS_ADVICE = {
    401: "the host asks for a login: let the path through without one",
    403: "the host or its firewall refuses strangers: let the path through",
    404: (
        "nothing is there: does the URL end in the path of the mount, does a proxy cut it off, "
        "and does this process answer, not another worker?"
    ),
    405: "POST is not allowed there: is it the path of the mount?",
    413: "a proxy refuses bodies: raise its limit",
    502: _PROXY_ADVICE,
    503: _PROXY_ADVICE,
    504: _PROXY_ADVICE,
}


@attrs.frozen(kw_only=True)
class CallbackCheck(metaclass=ShowsFields):
    """What `CallbackReceiver.check` found; as text it is one sentence."""

    url: str
    """What was checked, without its query."""
    failed_hop: Hop = ""
    """Where the request was lost or changed, in the order of its way; empty when it arrived as sent."""
    message: str = ""
    """What happened there, and what to do."""

    @property
    def is_ok(self) -> bool:
        """Return whether a callback would arrive."""
        return not self.failed_hop

    def __str__(self) -> str:
        return f"{self.url}: {self.message}"


class Checks:
    """The checks of a receiver that are under way."""

    def __init__(self) -> None:
        self._running: dict[str, _Check] = {}

    def find(self, path_tail: str, headers: Headers) -> _Check | None:
        """Return the check that a request belongs to, even if its path was changed on the way."""
        if not self._running:
            return None
        found = self._running.get(split_address(path_tail)[0])
        return found or self._running.get(as_multidict(headers).get(_CHECK_HEADER, ""))

    async def run(self, url: str, *, timeout_s: float, ssl_context: ssl.SSLContext | None) -> CallbackCheck:
        """Send one request to *url* and judge what became of it."""
        check_url("url", url)
        check_above_zero("timeout_s", timeout_s)
        check = _Check(url)
        self._running[check.intent_id] = check
        try:
            return await check.run(timeout_s, ssl_context)
        finally:
            del self._running[check.intent_id]


class _Check:
    """One request that was sent to ourselves, and how it arrived."""

    def __init__(self, url: str) -> None:
        self.intent_id = new_intent_id()
        self._mac = callback_mac(self.intent_id, secret=secrets.token_bytes(32))
        self._url = url
        self._hop: Hop = "name"
        self._has_arrived = False
        self._changed: Hop = ""
        self._body = b'{"code":200,"msg":"kie_async check","data":{"text":"\xc3\xa4"}}'
        self._headers = {
            "Content-Type": "application/json",
            "X-Webhook-Timestamp": str(int(time.time())),
            "X-Webhook-Signature": base64.b64encode(secrets.token_bytes(32)).decode(),
        }

    # --- where it arrives; perhaps on another thread -----------------------------------------------

    async def arrive(self, path_tail: str, headers: Headers, read: BodyReader) -> CallbackVerdict:
        """Take in the request and compare it with what was sent."""
        try:
            body = await read(_BODY_LIMIT)
        except CallbackRejected:
            body = b""
        given = as_multidict(headers)
        if split_address(path_tail) != (self.intent_id, self._mac):
            self._changed = "path"
        elif any(given.getall(name, []) != [value] for name, value in self._headers.items()):
            self._changed = "headers"
        elif body != self._body:
            self._changed = "body"
        self._has_arrived = True
        return CallbackVerdict(status=200, intent_id=self.intent_id)

    # --- where it starts ---------------------------------------------------------------------------

    async def run(self, timeout_s: float, ssl_context: ssl.SSLContext | None) -> CallbackCheck:
        """Send the request and judge what became of it."""
        try:
            async with asyncio.timeout(timeout_s):
                head = await self._send(ssl_context)
        except TimeoutError:
            return self._failed(self._hop, f"nothing came within {timeout_s:g} s; {_advice_for(self._hop)}")
        except ssl.SSLError as exc:
            why = getattr(exc, "verify_message", "") or exc.reason or "TLS failed"
            return self._failed(
                "certificate", f"{why}; the service will not connect: mend the certificate, chain included"
            )
        except (OSError, EOFError, asyncio.LimitOverrunError, UnicodeError) as exc:
            return self._failed(self._hop, f"{_words_of(exc)}; {_advice_for(self._hop)}")
        return self._judge(head)

    async def _send(self, ssl_context: ssl.SSLContext | None) -> bytes:
        parts = urlsplit(address_below(self._url, f"{self.intent_id}/{self._mac}"))
        is_tls = parts.scheme.lower() == "https"
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port or (443 if is_tls else 80)
        loop = asyncio.get_running_loop()
        await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._hop = "connection"
        context = (ssl_context or await asyncio.to_thread(ssl.create_default_context)) if is_tls else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            self._hop = "answer"
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            writer.write(self._request(target, parts.netloc))
            return await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()
            with suppress(OSError):  # however it ends, the answer is known
                await writer.wait_closed()

    def _request(self, target: str, host: str) -> bytes:
        lines = [f"POST {target} HTTP/1.1", f"Host: {host.encode('idna').decode()}"]
        fields = {**self._headers, _CHECK_HEADER: self.intent_id, "Content-Length": len(self._body)}
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + self._body

    def _judge(self, head: bytes) -> CallbackCheck:
        found = _STATUS_LINE.match(head)
        if found is None:
            return self._failed("answer", "what answers there does not speak HTTP/1.1; is the port right?")
        status = int(found[1])
        if not self._has_arrived:
            return self._failed(
                "path", f"answered by somebody else, HTTP {status}: {_status_advice(status, head)}"
            )
        if status != 200:
            return self._failed("answer", f"it arrived, but the answer became HTTP {status} on its way back")
        if self._changed:
            return self._failed(self._changed, _CHANGED[self._changed])
        note = "; but only this machine can reach it, the service cannot" if is_loopback(self._url) else ""
        return CallbackCheck(url=self._shown_url, message=f"callbacks arrive as they were sent{note}")

    def _failed(self, hop: Hop, message: str) -> CallbackCheck:
        return CallbackCheck(url=self._shown_url, failed_hop=hop, message=message)

    @property
    def _shown_url(self) -> str:
        return self._url.partition("?")[0]


_CHANGED: dict[Hop, str] = {
    "path": (
        "it arrived with another path: a proxy cuts off or adds a part; "
        "mount the receiver where the request comes to"
    ),
    "headers": "it arrived without its X-Webhook headers as they were sent: let the proxy pass them on",
    "body": "it arrived with another body: let the proxy pass it on unchanged",
}


def _advice_for(hop: Hop) -> str:
    return {
        "name": "is the host spelled right, and published in DNS?",
        "connection": "is anything listening there, is the tunnel up, does a firewall drop it?",
        "answer": "something takes the connection and does not answer: is the application blocked?",
    }.get(hop, "")


def _status_advice(status: int, head: bytes) -> str:
    if 300 <= status < 400:
        place = _LOCATION.search(head)
        shown = place[1].decode("ascii", "replace") if place else "another place"
        return f"it redirects to {shown}: give the session the URL that is redirected to"
    if status == 200:
        return "another server, or a warning page of the tunnel, answers at this URL"
    return _STATUS_ADVICE.get(status, "is the application behind this URL the one with the receiver?")


def _words_of(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the connection was closed without an answer"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
