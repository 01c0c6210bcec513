"""Receives callbacks in any ASGI 3 application: FastAPI, Starlette, Litestar, Django."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import CallbackRejected
from .address import path_parts
from .base import METHOD_NOT_ALLOWED, CallbackVerdict, Handler
from .body import read_body

Scope = Mapping[str, Any]

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

Send = Callable[[Any], Awaitable[None]]


class AsgiMount:
    """An ASGI 3 application: mounted under any prefix, or the root itself."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan events are only acknowledged, websockets refused."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["method"] != "POST":
            await _send(send, METHOD_NOT_ALLOWED, (b"allow", b"POST"))
        else:
            await _send(send, await self._on_post(scope, receive))

    async def _on_post(self, scope: Scope, receive: Receive) -> CallbackVerdict:
        # Servers differ in whether the mount's own path is in here: the address is the last two parts.
        path_tail = "/".join(path_parts(str(scope["path"]))[-2:])
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        encodings = (value.lower() for name, value in headers if name.lower() == "content-encoding")
        content_encoding = next(encodings, "")

        async def read(limit: int) -> bytes:
            return await read_body(_chunks(receive), limit, content_encoding=content_encoding)

        return await self._handler(path_tail, headers, read)


async def _send(send: Send, verdict: CallbackVerdict, *more: tuple[bytes, bytes]) -> None:
    length = b"%d" % len(verdict.body)
    headers = [(b"content-type", b"application/json"), (b"content-length", length), *more]
    await send({"type": "http.response.start", "status": verdict.status, "headers": headers})
    await send({"type": "http.response.body", "body": verdict.body})


def _chunks(receive: Receive) -> Callable[[], Awaitable[bytes]]:
    """Return what returns the next chunk of a request's body, and nothing at its end."""
    is_complete = False

    async def next_chunk() -> bytes:
        nonlocal is_complete
        chunk = b""
        # A message may be empty and yet not the last, where nothing would be read as the end.
        while not chunk and not is_complete:
            message = await receive()
            if message["type"] != "http.request":
                raise CallbackRejected("unreadable body", 400)
            chunk, is_complete = message.get("body", b""), not message.get("more_body", False)
        return chunk

    return next_chunk


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": event + ".complete"})
        if event == "lifespan.shutdown":
            return
