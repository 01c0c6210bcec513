"""One attempt to create a task: at most one body on the wire, and what can be proven of it afterwards.

The body leaves only through a method of ours, behind a gate. Whether the gate opened decides if money
may be gone; an exception's class never does.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache

import aiohttp
import attrs
from yarl import URL

from .._secrets import Secret
from ..errors import SessionMisuse
from ..http.backoff import read_retry_after
from ..http.transport import (
    CONNECT_TIMEOUT_S,
    close_http_session,
    close_http_session_nowait,
    describe_failure,
    headers_for,
    open_http_session,
    read_body,
)
from ..wire.codes import CreateVerdict
from ..wire.redaction import Redactor
from ..wire.requests import WireRequest
from ..wire.responses import CreateAnswer, WireResponse, decode_create
from .send_gate import OneShotBody, SendGate

CREATE_TIMEOUT_S = 60.0

_LATE_ANSWER_S = 0.05


@attrs.frozen(kw_only=True)
class Attempt:
    """One attempt to create: what it proved, and what broke if something did."""

    answer: CreateAnswer
    reason: str = ""
    is_final: bool = False
    """Whether trying again is useless although nothing was created: a certificate that does not fit."""


class _CallTimeout:
    """Ends an exchange of the running task that takes too long: first nothing leaves, then it is cut.

    Not aiohttp's own timeouts: after a blocked loop they would throw away an answer that already lies in
    the socket.
    """

    __slots__ = ("_cancels", "_ends_at", "_gate", "_has_cut", "_loop", "_task", "_timer")

    def __init__(self, gate: SendGate, timeout_s: float, connect_timeout_s: float) -> None:
        loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101  (a coroutine of ours runs in one)
        self._task = task
        self._cancels = task.cancelling()
        self._has_cut = False
        self._gate = gate
        now = loop.time()
        self._ends_at = now + timeout_s
        self._timer = loop.call_at(now + min(connect_timeout_s, timeout_s), self._check_connection)

    def _check_connection(self) -> None:
        if self._gate.may_be_noted:  # there is one: a body came to the gate
            self._timer = self._loop.call_at(self._ends_at, self._close)
        else:
            self._close()

    def _close(self) -> None:
        self._gate.close()  # what leaves now would have no time to be answered
        self._timer = self._loop.call_later(_LATE_ANSWER_S, self._cut)

    def _cut(self) -> None:
        self._has_cut = True
        self._task.cancel()

    def end(self) -> bool:
        """Cut nothing any more; tell whether somebody else cancelled the task meanwhile."""
        self._timer.cancel()
        if self._has_cut:
            self._task.uncancel()
        return self._task.cancelling() > self._cancels


class CreateTransport:
    """Sends creates, and only creates.

    A connection of its own for each, since a reused one may die unseen; no redirects, no cookies, no
    proxies, no user's middleware: nothing can send a body a second time.
    """

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        connections: int,
        timeout_s: float = CREATE_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        ssl_context: ssl.SSLContext | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self._base_url = base_url
        self._key = key
        self._redactor = redactor or Redactor([key])
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self.connection_slots = asyncio.Semaphore(connections)
        """Held from before the turn at the limiter until the answer: who waits can still be held back."""
        self._http = open_http_session(
            aiohttp.TCPConnector(limit=connections, force_close=True, ssl=ssl_context or True),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def post(self, request: WireRequest, gate: SendGate) -> Attempt:
        """Send *request* once and judge what happened. Cancelling it keeps back what has not left.

        Raises:
            SessionMisuse: This aiohttp is not one that is known.
        """
        _check_aiohttp(aiohttp.__version__)
        patience = _CallTimeout(gate, self._timeout_s, self._connect_timeout_s)
        try:
            attempt = await self._exchange(request, gate)
        finally:
            is_cancelled = patience.end()
        if not is_cancelled:
            return attempt
        if attempt.answer.verdict is CreateVerdict.NOT_SENT:
            raise asyncio.CancelledError
        return attrs.evolve(attempt, is_final=True)  # an id that is here is not thrown away

    async def _exchange(self, request: WireRequest, gate: SendGate) -> Attempt:
        body = bytearray()
        response: WireResponse | None = None
        reason, is_final = "", False
        try:
            async with self._http.post(
                URL(self._base_url + request.path, encoded=True),
                data=OneShotBody(request.body or b"", gate),
                headers=headers_for(self._key, json=False),
                allow_redirects=False,
            ) as answer:
                gate.close()  # who answers before the body has left does not get it any more
                # Of an answer really received; an exception's status may be invented by aiohttp.
                retry_after_s = read_retry_after(answer.headers)
                response = WireResponse(
                    status=answer.status, body=b"", retry_after_s=retry_after_s, redactor=self._redactor
                )
                await read_body(answer, body)
        except asyncio.CancelledError:  # the time is over, or somebody wants it to be: `post` knows which
            pass
        except Exception as exc:  # whatever it is: the gate and the bytes decide, not its class
            reason = describe_failure(exc)
            is_final = isinstance(exc, aiohttp.ClientSSLError | aiohttp.InvalidURL)
        gate.close()
        return Attempt(
            answer=decode_create(response, sent=gate.sent, partial=bytes(body)),
            reason=reason or _unread(response, gate),
            is_final=is_final,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await close_http_session(self._http)

    def close_nowait(self) -> None:
        """Close without an event loop."""
        close_http_session_nowait(self._http)


def _unread(response: WireResponse | None, gate: SendGate) -> str:
    if response is not None:
        return f"unreadable answer, HTTP {response.status}"
    return "no answer in time" if gate.may_be_noted else "no connection in time"


@lru_cache(maxsize=1)
def _check_aiohttp(version: str) -> None:
    """Refuse an aiohttp of which it was never seen when it asks for a body.

    Raises:
        SessionMisuse: With what to install.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    if major != 3 or minor < 14:
        raise SessionMisuse(
            f"aiohttp {version} is not known to be safe for paid creates; use aiohttp>=3.14,<4"
        )
