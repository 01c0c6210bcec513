"""The rim of the callback receiver: aiohttp routes, an ASGI application, a server of its own.

A mount extracts the end of a path, the headers and a way to read the body; what they mean is judged in
`callbacks`. A knock whose address is wrong is answered before its body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import attrs
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .errors import CallbackRejected

HEADER_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 2048
_WATCH_EVERY_S = 1.0
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Read = Callable[[int], Awaitable[bytes]]
"""Reads a body of at most so many bytes, or raises `CallbackRejected`."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Answer(Protocol):
    """What a mount sends back."""

    @property
    def status(self) -> int:
        """Return the HTTP status."""

    @property
    def body(self) -> bytes:
        """Return the body."""


Knock = Callable[[str, Headers, Read], Awaitable[Answer]]
"""Judges a delivery and takes it in: the end of its path, its headers, a way to read its body."""


async def read_bounded(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Return a body of at most *limit* bytes that came in time.

    Raises:
        CallbackRejected: It is too large, too slow, or broke off.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise CallbackRejected("body too large", 413)
    except TimeoutError:
        raise CallbackRejected("body too slow", 408) from None
    return bytes(body)


# --- aiohttp -------------------------------------------------------------------------------------


def aiohttp_routes(path: str, knock: Knock) -> list[web.RouteDef]:
    """Return the route below *path* for an aiohttp application; other methods get a 405."""

    async def on_post(request: web.Request) -> web.Response:
        return await _answer(request, f"{request.match_info['intent']}/{request.match_info['mac']}", knock)

    return [web.post(f"{path.rstrip('/')}/{{intent}}/{{mac}}", on_post)]


async def _answer(request: web.BaseRequest, tail: str, knock: Knock) -> web.Response:
    async def read(limit: int) -> bytes:
        try:
            return await read_bounded(aiter(request.content.iter_any()), limit)
        except web.RequestPayloadError:
            raise CallbackRejected("unreadable body", 400) from None

    answer = await knock(tail, request.headers, read)
    return web.Response(status=answer.status, body=answer.body, content_type="application/json")


# --- ASGI ----------------------------------------------------------------------------------------


class AsgiMount:
    """An ASGI 3 application: mounted under any prefix, or the root itself."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan events are nodded through, anything else is refused."""
        if scope["type"] == "lifespan":
            await _nod(receive, send)
        elif scope["type"] == "http":
            status, body = await self._judge(scope, receive)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _judge(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        if scope["method"] != "POST":
            return 405, b""

        async def read(limit: int) -> bytes:
            return await read_bounded(_chunks(receive), limit)

        tail = "/".join(str(scope["path"]).rstrip("/").rsplit("/", 2)[-2:])
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        answer = await self._knock(tail, headers, read)
        return answer.status, answer.body


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise CallbackRejected("unreadable body", 400)
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _nod(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": event + ".complete"})
        if event == "lifespan.shutdown":
            return


# --- a server of its own -------------------------------------------------------------------------


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


class _Busy(asyncio.Protocol):
    """Sends a stranger away at once when there are too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.write(_BUSY)
            transport.close()


class _Door(web.Server):
    """Counts connections and closes those that sit there without a finished request.

    aiohttp.web has no timeout for headers, and an hour for idle connections.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(self._handle, access_log=None, keepalive_timeout=IDLE_TIMEOUT_S)
        self._clock = asyncio.get_running_loop().time
        self._judge = handler
        self._deadlines: dict[object, float] = {}

    def open(self) -> asyncio.Protocol:
        """Return the protocol for a new connection."""
        return _Busy() if len(self._deadlines) >= MAX_CONNECTIONS else self()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Begin to wait for headers."""
        super().connection_made(handler, transport)
        self._deadlines[handler] = self._clock() + HEADER_TIMEOUT_S

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._deadlines.pop(handler, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._deadlines[request.protocol] = self._clock() + HEADER_TIMEOUT_S + BODY_TIMEOUT_S
        try:
            return await self._judge(request)
        finally:
            if request.protocol in self._deadlines:
                self._deadlines[request.protocol] = self._clock() + IDLE_TIMEOUT_S

    async def watch(self) -> None:
        """Close what sits there too long, for ever."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            now = self._clock()
            for handler in [handler for handler, deadline in self._deadlines.items() if deadline < now]:
                if isinstance(handler, RequestHandler) and handler.transport is not None:
                    handler.transport.abort()


@asynccontextmanager
async def serve(host: str, port: int, path: str, knock: Knock) -> AsyncIterator[ServedReceiver]:
    """Listen while the block runs, with limits on connections, headers, bodies and idleness."""
    prefix = path.rstrip("/") + "/"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.startswith(prefix):
            return web.Response(status=404)
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        return await _answer(request, request.path.removeprefix(prefix), knock)

    loop = asyncio.get_running_loop()
    door = _Door(handler)
    listening = await loop.create_server(door.open, host, port, backlog=512)
    watching = loop.create_task(door.watch(), name="kie_async receiver")
    try:
        bound: int = listening.sockets[0].getsockname()[1]
        yield ServedReceiver(host=host, port=bound, path=path)
    finally:
        listening.close()
        door.pre_shutdown()
        await door.shutdown(5.0)  # requests under way may end
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await listening.wait_closed()
