"""The rim of the callback receiver: aiohttp routes, an ASGI application, a server of its own.

A mount extracts the end of a path, the headers and a way to read the body; what they mean is judged in
`callbacks`. A knock whose address is wrong is answered before its body is read.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, cast

import attrs
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from .errors import CallbackRejected

HEADER_TIMEOUT_S = 5.0
BODY_TIMEOUT_S = 10.0
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
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEADERS = CIMultiDict({"Server": "", "Content-Type": "application/json"})
_log = logging.getLogger("kie_async")

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


async def _judge(knock: Knock, tail: str, headers: Headers, read: Read) -> tuple[int, bytes]:
    """Return status and body of the answer to a knock: the service tries again after a mistake of ours."""
    try:
        answer = await knock(tail, headers, read)
    except Exception:
        _log.exception("a callback was answered with 500")
        return 500, b""
    return answer.status, answer.body


# --- bodies --------------------------------------------------------------------------------------


async def read_bounded(next_chunk: Callable[[], Awaitable[bytes]], limit: int, *, packing: str = "") -> bytes:
    """Return a body of at most *limit* bytes, packed and unpacked, that came in time.

    *next_chunk* returns nothing at the end of the body. *packing* is its content encoding.

    Raises:
        CallbackRejected: It is too large, too slow, broke off, or is packed in a way not known here.
    """
    unpack = _unpacker(packing)
    packed_size, body = 0, bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while chunk := await next_chunk():
                packed_size += len(chunk)
                body += unpack(chunk, limit + 1 - len(body))
                if max(packed_size, len(body)) > limit:
                    raise CallbackRejected("body too large", 413)
    except TimeoutError:
        raise CallbackRejected("body too slow", 408) from None
    except (web.RequestPayloadError, ConnectionError, zlib.error):
        raise CallbackRejected("unreadable body", 400) from None
    return bytes(body)


def _unpacker(packing: str) -> Callable[[bytes, int], bytes]:
    """Return what turns a chunk into at most so many bytes."""
    if packing in ("", "identity"):
        return lambda chunk, _: chunk
    if packing not in ("gzip", "deflate"):
        raise CallbackRejected("unknown content encoding", 415)
    return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress  # 32: zlib or gzip, as its header says


# --- aiohttp -------------------------------------------------------------------------------------


def aiohttp_routes(path: str, knock: Knock) -> list[web.RouteDef]:
    """Return the routes at and below *path* for an aiohttp application; other methods get a 405."""
    path = path.strip("/")
    prefix = f"/{path}" if path else ""

    async def on_post(request: web.Request) -> web.Response:
        tail = f"{request.match_info['intent']}/{request.match_info['mac']}"
        read = _reader(request)  # the application unpacks what is packed
        return _response(*await _judge(knock, tail, request.headers, read))

    async def on_get(_: web.Request) -> web.Response:
        return _response(405)

    async def on_expect(_: web.Request) -> None:
        """Say "100 Continue" not here but when the body is wanted."""

    routes = [web.post(f"{prefix}/{{intent}}/{{mac}}", on_post, expect_handler=on_expect)]
    return [*routes, web.get(prefix, on_get)] if prefix else routes


def _reader(request: web.BaseRequest, *, packing: str = "") -> Read:
    async def read(limit: int) -> bytes:
        content = request.content
        if content.is_eof() and not packing and content.exception() is None:  # all of it is here
            body = content.read_nowait()
            if len(body) > limit:
                raise CallbackRejected("body too large", 413)
            return body
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(_GO_ON)
            request.writer.output_size = 0  # the answer is yet to begin
        return await read_bounded(content.readany, limit, packing=packing)

    return read


def _response(status: int, body: bytes = b"") -> web.Response:
    response = web.Response(status=status, body=body, headers=_HEADERS)
    if status == 405:
        response.headers["Allow"] = "POST"
    return response


# --- ASGI ----------------------------------------------------------------------------------------


class AsgiMount:
    """An ASGI 3 application: mounted under any prefix, or the root itself."""

    def __init__(self, knock: Knock) -> None:
        self._knock = knock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan events are nodded through, websockets refused."""
        if scope["type"] == "lifespan":
            await _nod(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["method"] != "POST":
            await _send(send, 405, b"", (b"allow", b"POST"))
        else:
            # The last two parts, since servers differ in whether the mount's own path is in there.
            tail = "/".join(str(scope["path"]).rstrip("/").rsplit("/", 2)[-2:])
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
            packing = next((value for name, value in headers if name.lower() == "content-encoding"), "")

            async def read(limit: int) -> bytes:
                return await read_bounded(_chunks(receive), limit, packing=packing.lower())

            await _send(send, *await _judge(self._knock, tail, headers, read))


async def _send(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _chunks(receive: Receive) -> Callable[[], Awaitable[bytes]]:
    """Return what returns the next chunk of a request's body, and nothing at its end."""
    is_over = False

    async def next_chunk() -> bytes:
        nonlocal is_over
        chunk = b""
        while not chunk and not is_over:
            message = await receive()
            if message["type"] != "http.request":
                raise CallbackRejected("unreadable body", 400)
            chunk, is_over = message.get("body", b""), not message.get("more_body", False)
        return chunk

    return next_chunk


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
        wire = cast(asyncio.Transport, transport)  # uvloop's is no instance of it
        wire.write(_BUSY)
        wire.close()


class _Line(RequestHandler):
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


class _Door(web.Server):
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
            return _Busy()
        line = _Line(self, loop=self._event_loop, **_LINE_LIMITS)
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
async def serve(host: str, port: int, path: str, knock: Knock) -> AsyncIterator[ServedReceiver]:
    """Listen while the block runs, with limits on connections, headers, bodies and idleness."""
    path = "/" + path.strip("/")
    prefix = path.rstrip("/") + "/"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return _response(405)
        tail = request.path.removeprefix(prefix) if request.path.startswith(prefix) else ""
        read = _reader(request, packing=request.headers.get("Content-Encoding", "").lower())
        return _response(*await _judge(knock, tail, request.headers, read))

    loop = asyncio.get_running_loop()
    door = _Door(handler)
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
