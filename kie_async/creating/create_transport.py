"""One attempt to create a task: at most one body on the wire, and what can be proven of it afterwards.

The body leaves only through a method of ours, behind a gate. Whether the gate opened decides if money
may be gone; an exception's class never does.
"""

from __future__ import annotations

import asyncio
import math
from functools import lru_cache

import aiohttp
import attrs
from yarl import URL

from .._secrets import Secret
from ..config import Network
from ..errors import SessionMisuse
from ..http.backoff import read_retry_after
from ..http.transport import (
    CONNECT_TIMEOUT_S,
    close_http_session,
    close_http_session_nowait,
    describe_failure,
    headers_for,
    make_connector,
    open_http_session,
    read_body,
)
from ..wire.codes import CreateVerdict
from ..wire.create_answers import CreateAnswer, decode_create
from ..wire.envelope import WireResponse
from ..wire.redaction import Redactor
from ..wire.requests import WireRequest
from .kept_connection import CAN_PEEK, KEEP_S, KeptConnection
from .send_gate import ConnectionEnded, OneShotBody, SendGate

CREATE_TIMEOUT_S = 60.0

_LATE_ANSWER_S = 0.05

# What is not packed cannot be lost by an unpacker.
_UNPACKED = {"Accept-Encoding": "identity"}

_MOCKED = "nothing asked for the body; test with kie_async.Sandbox"


@attrs.frozen(kw_only=True)
class Attempt:
    """One attempt to create: what it proved, and what broke if something did."""

    answer: CreateAnswer
    reason: str = ""
    is_final: bool = False
    """Whether trying again is useless although nothing was created."""
    is_untrusted: bool = False
    """Whether nothing was created for a certificate that does not fit: a mistake, or a portal that may go."""
    needs_new_connection: bool = False
    """Whether nothing was sent only because a kept connection ended; the next one is to be taken at once."""


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
        # Our own cancel is taken back: what is left is somebody else's, and is not swallowed.
        if self._has_cut:
            self._task.uncancel()
        return self._task.cancelling() > self._cancels


class CreateTransport:
    """Sends creates, and only creates.

    A connection carries a further one under the rule of `kept_connection`; no redirects, no cookies, no
    user's middleware, and aiohttp repeats no POST: nothing can send a body a second time. A proxy is done
    with before the gate: it answers a CONNECT, and what came after is the service's.
    """

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        connections: int,
        timeout_s: float = CREATE_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        network: Network = Network(),  # noqa: B008  (frozen)
        redactor: Redactor | None = None,
    ) -> None:
        self._base_url = base_url
        self._key = key
        self._redactor = redactor or Redactor([key])
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self.connections = connections
        self.connection_slots = asyncio.Semaphore(connections)
        """Held from before the turn at the limiter until the answer: who waits can still be held back."""
        self._http = open_http_session(
            make_connector(
                network,
                limit=connections,
                keep_alive_s=KEEP_S if CAN_PEEK else 0.0,
                connection_type=KeptConnection,
            ),
            timeout=aiohttp.ClientTimeout(total=None),
            proxy=network.http_proxy_for(base_url),
            is_for_service=True,
        )

    async def post(
        self, request: WireRequest, gate: SendGate, *, connect_within_s: float = math.inf
    ) -> Attempt:
        """Send *request* once and judge what happened. Cancelling it keeps back what has not left.

        It is given up when there is no connection within *connect_within_s*, or the usual time.

        Raises:
            SessionMisuse: This aiohttp is not one that is known.
        """
        _check_aiohttp(aiohttp.__version__)
        patience = _CallTimeout(gate, self._timeout_s, min(self._connect_timeout_s, connect_within_s))
        try:
            attempt = await self._exchange(request, gate)
        finally:
            is_cancelled = patience.end()
        if not is_cancelled:
            return attempt
        # Only a create that never left may end as cancelled; of any other the verdict must be known.
        if attempt.answer.verdict is CreateVerdict.NOT_SENT:
            raise asyncio.CancelledError
        return attrs.evolve(attempt, is_final=True)  # an id that is here is not thrown away

    async def _exchange(self, request: WireRequest, gate: SendGate) -> Attempt:
        body, partial = OneShotBody(request.body or b"", gate), bytearray()
        response: WireResponse | None = None
        reason, is_final, is_untrusted, is_cut = "", False, False, False
        try:
            async with self._http.post(
                URL(self._base_url + request.path, encoded=True),
                data=body,
                headers=headers_for(self._key, json=False) | _UNPACKED,
                allow_redirects=False,
            ) as answer:
                gate.close()  # who answers before the body has left does not get it any more
                # Of an answer really received; an exception's status may be invented by aiohttp.
                retry_after_s = read_retry_after(answer.headers)
                response = WireResponse(
                    status=answer.status, body=b"", retry_after_s=retry_after_s, redactor=self._redactor
                )
                await read_body(answer, partial)
                if answer.content.at_eof():
                    is_chunked = "Transfer-Encoding" in answer.headers
                    body.keep_connection(bytes(partial), is_chunked=is_chunked)
        except asyncio.CancelledError:  # the time is over, or somebody wants it to be: `post` knows which
            is_cut = True
        except Exception as exc:  # whatever it is: the gate and the bytes decide, not its class
            reason = describe_failure(exc)
            is_final = isinstance(exc, aiohttp.InvalidURL)
            is_untrusted = isinstance(exc, aiohttp.ClientSSLError)
        gate.close()
        if not body.was_asked_for and not (is_cut or is_final or is_untrusted or self._http.closed):
            response, is_final = None, True
            reason = f"{reason}; {_MOCKED}" if reason else _MOCKED
        return Attempt(
            answer=decode_create(
                response,
                sent=gate.sent,
                partial=bytes(partial),
                raw_answer=body.raw_answer if gate.sent else b"",
            ),
            reason=reason or _unread(response, gate),
            is_final=is_final,
            is_untrusted=is_untrusted,
            needs_new_connection=not is_cut and _met_an_end(body, gate, has_answer=response is not None),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await close_http_session(self._http)

    def close_nowait(self) -> None:
        """Close without an event loop."""
        close_http_session_nowait(self._http)


def _met_an_end(body: OneShotBody, gate: SendGate, *, has_answer: bool) -> bool:
    """Tell whether only a kept connection kept the body back: it ended, or spoke before it was asked."""
    if gate.sent or not body.is_on_kept_connection:
        return False
    has_failed_otherwise = isinstance(gate.failure, Exception) and not isinstance(
        gate.failure, ConnectionEnded
    )
    return has_answer or not has_failed_otherwise


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
