"""The rim of the callback receiver: aiohttp routes, an ASGI application, a server of its own.

A mount extracts the end of a path, the headers and a way to read the body; what they mean is judged in
`callbacks`. A knock whose address is wrong is answered before its body is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import attrs
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .aiohttp_routes import _reader, _response
from .base import Handler
from .body import BODY_TIMEOUT_S, respond

HEADER_TIMEOUT_S = 5.0

IDLE_TIMEOUT_S = 30.0

MAX_CONNECTIONS = 2048

_LINGER_S = 1.0

_GRACE_S = 1.0

_WATCH_EVERY_S = 1.0

_LINE_LIMITS: Mapping[str, Any] = {
    "keepalive_timeout": IDLE_TIMEOUT_S,
    "lingering_time": 0.0,  # the door has a way of its own
    "read_bufsize": 16_384,
    "max_line_size": 4096,
    "max_field_size": 4096,
    "max_headers": 64,
    "auto_decompress": False,  # not for strangers: a body is unpacked once its address is known
    "access_log": None,
}

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_log = logging.getLogger("kie_async")


@attrs.frozen(kw_only=True)
class ServedReceiver:
    """A receiver that listens on its own port."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """Return the plain-http URL of the path; behind a proxy, give the session the public one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"


class _Overloaded(asyncio.Protocol):
    """Sends a stranger away at once when there are too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast(asyncio.Transport, transport)  # uvloop's is no instance of it
        wire.write(_BUSY)
        wire.close()


class _Connection(RequestHandler):
    """One connection. What aiohttp says of broken HTTP quotes the stranger who sent it: here it is silent."""

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
        response = _response(status)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        pass


class _Server(web.Server):
    """Counts connections and closes those that sit there without a finished request.

    aiohttp.web has no timeout for headers, and an hour for idle connections.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(self._handle)
        self._event_loop = asyncio.get_running_loop()
        self._answer = handler
        self._deadlines: dict[RequestHandler, float] = {}
        self._wires: dict[RequestHandler, asyncio.Transport] = {}
        self._busy: set[RequestHandler] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._is_stopping = False

    def open(self) -> asyncio.Protocol:
        """Return the protocol for a new connection, which now has to send its headers."""
        if len(self._deadlines) >= MAX_CONNECTIONS:
            return _Overloaded()
        line = _Connection(self, loop=self._event_loop, **_LINE_LIMITS)
        self._put_off(line, HEADER_TIMEOUT_S)
        return line

    def _put_off(self, line: RequestHandler, wait_s: float) -> None:
        self._deadlines[line] = self._event_loop.time() + wait_s

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Remember how to close a connection."""
        super().connection_made(handler, transport)
        self._wires[handler] = transport

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._deadlines.pop(handler, None)
        self._wires.pop(handler, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        line = request.protocol
        self._busy.add(line)
        self._quiet.clear()
        self._put_off(line, BODY_TIMEOUT_S + _WATCH_EVERY_S)
        try:
            response = await self._answer(request)
            if not request.content.is_eof():
                await _answer_and_linger(request, response)
        finally:
            self._busy.discard(line)
            if not self._busy:
                self._quiet.set()
            if line in self._deadlines:
                self._put_off(line, IDLE_TIMEOUT_S)
        if self._is_stopping:
            response.force_close()
        return response

    async def watch(self) -> None:
        """Close what sits there too long, for ever."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            now = self._event_loop.time()
            for line in [line for line, deadline in self._deadlines.items() if deadline < now]:
                if line in self._wires:
                    self._wires[line].abort()
                else:
                    del self._deadlines[line]  # it ended before it began

    async def stop(self) -> None:
        """Close idle connections at once, the others when their requests are answered or time is up."""
        self._is_stopping = True
        for line in self._wires.keys() - self._busy:
            line.force_close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._quiet.wait()
        await self.shutdown(_GRACE_S)


async def _answer_and_linger(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Answer before the body has come, and let it come for a moment: a close at once may lose the answer."""
    with suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(_LINGER_S):
            while await request.content.readany():
                pass


@asynccontextmanager
async def serve(host: str, port: int, path: str, knock: Handler) -> AsyncIterator[ServedReceiver]:
    """Listen while the block runs, with limits on connections, headers, bodies and idleness."""
    path = "/" + path.strip("/")
    prefix = path.rstrip("/") + "/"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return _response(405)
        tail = request.path.removeprefix(prefix) if request.path.startswith(prefix) else ""
        read = _reader(request, packing=request.headers.get("Content-Encoding", "").lower())
        return _response(*await respond(knock, tail, request.headers, read))

    loop = asyncio.get_running_loop()
    door = _Server(handler)
    listening = await loop.create_server(door.open, host, port, backlog=512)
    watching = loop.create_task(door.watch(), name="kie_async receiver")
    try:
        bound: int = listening.sockets[0].getsockname()[1]
        yield ServedReceiver(host=host, port=bound, path=path)
    finally:
        listening.close()
        try:
            await door.stop()
            await listening.wait_closed()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
