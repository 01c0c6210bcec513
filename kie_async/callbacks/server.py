"""An HTTP server for callbacks alone: bounds its connections, and how long each may sit without a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import attrs
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .._field_help import ShowsFields
from .address import path_parts
from .aiohttp_routes import body_reader, response_for
from .base import METHOD_NOT_ALLOWED, CallbackVerdict, Handler
from .body import BODY_TIMEOUT_S

HEADER_TIMEOUT_S = 5.0

IDLE_TIMEOUT_S = 30.0

MAX_CONNECTIONS = 2048

SWEEP_EVERY_S = 1.0

_LINGER_S = 1.0

_STOP_TIMEOUT_S = 1.0

_CONNECTION_OPTIONS: Mapping[str, Any] = {
    "keepalive_timeout": IDLE_TIMEOUT_S,
    "lingering_time": 0.0,  # _answer_and_linger does it, within a second
    "read_bufsize": 16_384,
    "max_line_size": 4096,
    "max_field_size": 4096,
    "max_headers": 64,
    "auto_decompress": False,  # not for strangers: a body is decompressed once its address is known
    "access_log": None,  # paths hold the mac, which is a secret
}

_OVERLOADED_ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_log = logging.getLogger("kie_async")


@attrs.frozen(kw_only=True)
class ServedReceiver(metaclass=ShowsFields):
    """A receiver that listens on its own port."""

    host: str
    """Where it listens."""
    port: int
    """The port, the one that was taken where 0 was asked for."""
    path: str
    """What a callback URL's path begins with."""

    @property
    def url(self) -> str:
        """Return the plain-http URL of the path; behind a proxy, give the session the public one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"


class _Overloaded(asyncio.Protocol):
    """Answers 503 at once and closes, when there are too many connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # uvloop's is no instance of it
        stream.write(_OVERLOADED_ANSWER)
        stream.close()


class _Connection(RequestHandler):
    """One connection. aiohttp's messages on broken HTTP quote the stranger who sent it: none is logged."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            _log.error("a callback was answered with %d: %s", status, type(exc).__name__)
        response = response_for(CallbackVerdict(status=status))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        pass


class _Server(web.Server):
    """Bounds connections in number, and closes those that send no whole request in time.

    aiohttp.web has no timeout for headers, and an hour for idle connections.
    """

    def __init__(self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(self._on_request)
        self._event_loop = asyncio.get_running_loop()
        self._answer = answer
        self._deadlines: dict[RequestHandler, float] = {}
        self._busy: set[RequestHandler] = set()
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._is_stopping = False

    def new_connection(self) -> asyncio.Protocol:
        """Return the protocol for a new connection, which now has to send its headers."""
        if len(self._deadlines) >= MAX_CONNECTIONS:
            return _Overloaded()
        connection = _Connection(self, loop=self._event_loop, **_CONNECTION_OPTIONS)
        self._set_deadline(connection, HEADER_TIMEOUT_S)
        return connection

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._deadlines.pop(handler, None)

    def _set_deadline(self, connection: RequestHandler, timeout_s: float) -> None:
        self._deadlines[connection] = self._event_loop.time() + timeout_s

    async def _on_request(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._busy.add(connection)
        self._all_answered.clear()
        # A second more than a body may take, so that a slow one is answered 408 and not cut off.
        self._set_deadline(connection, BODY_TIMEOUT_S + SWEEP_EVERY_S)
        try:
            response = await self._answer(request)
            if not request.content.is_eof():
                await _answer_and_linger(request, response)
        finally:
            self._release(connection)
        if self._is_stopping:
            response.force_close()
        return response

    def _release(self, connection: RequestHandler) -> None:
        self._busy.discard(connection)
        if not self._busy:
            self._all_answered.set()
        if connection in self._deadlines:
            self._set_deadline(connection, IDLE_TIMEOUT_S)

    async def sweep(self) -> None:
        """Close the connections whose deadline has passed, again and again until cancelled."""
        # One timer for all: a timer for each would be set and cancelled with every request.
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self._close_overdue()  # a call of its own: no local of a sleeping frame keeps a connection alive

    def _close_overdue(self) -> None:
        now = self._event_loop.time()
        for connection in [c for c, deadline in self._deadlines.items() if deadline < now]:
            if connection.transport is not None:
                connection.transport.abort()
            else:  # it was accepted and broke off before `connection_made`
                del self._deadlines[connection]

    async def stop(self) -> None:
        """Close idle connections at once, the others when their requests are answered or time is up."""
        self._is_stopping = True
        for connection in set(self.connections) - self._busy:
            connection.force_close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._all_answered.wait()
        await self.shutdown(_STOP_TIMEOUT_S)


async def _answer_and_linger(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Answer before the body has come, then drop what comes of it for a moment."""
    # Closing with unread bytes resets the connection, and the peer may lose the answer.
    with suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(_LINGER_S):
            while await request.content.readany():
                pass


@asynccontextmanager
async def serve(host: str, port: int, path: str, handler: Handler) -> AsyncIterator[ServedReceiver]:
    """Listen while the block runs, with limits on connections, headers, bodies and idleness."""
    path = "/" + path.strip("/")
    server = _Server(_answer_below(path, handler))
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server.new_connection, host, port, backlog=512)
    sweeping = loop.create_task(server.sweep(), name="kie_async receiver")
    try:
        bound: int = listening.sockets[0].getsockname()[1]
        yield ServedReceiver(host=host, port=bound, path=path)
    finally:
        listening.close()
        try:
            await server.stop()
            await listening.wait_closed()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)


def _answer_below(path: str, handler: Handler) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Return what answers the requests to *path*; those to other paths have no right address."""
    prefix = path_parts(path)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return response_for(METHOD_NOT_ALLOWED)
        parts = path_parts(request.path)
        path_tail = "/".join(parts[len(prefix) :]) if parts[: len(prefix)] == prefix else ""
        content_encoding = request.headers.get("Content-Encoding", "").lower()
        read = body_reader(request, content_encoding=content_encoding)
        return response_for(await handler(path_tail, request.headers, read))

    return answer
