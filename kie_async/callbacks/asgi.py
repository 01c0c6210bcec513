"""TODO"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import CallbackRejected
from .base import Handler
from .body import read_bounded, respond

Scope = MutableMapping[str, Any]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class AsgiMount:
    """An ASGI 3 application: mounted under any prefix, or the root itself."""

    def __init__(self, knock: Handler) -> None:
        self._on_request = knock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan events are nodded through, websockets refused."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
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

            await _send(send, *await respond(self._on_request, tail, headers, read))


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


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": event + ".complete"})
        if event == "lifespan.shutdown":
            return
