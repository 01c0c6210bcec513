"""TODO"""

from __future__ import annotations

from aiohttp import web
from multidict import CIMultiDict

from ..errors import CallbackRejected
from .base import Handler, Read
from .body import read_bounded, respond

_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"

_HEADERS = CIMultiDict({"Server": "", "Content-Type": "application/json"})


def aiohttp_routes(path: str, knock: Handler) -> list[web.RouteDef]:
    """Return the routes at and below *path* for an aiohttp application; other methods get a 405."""
    path = path.strip("/")
    prefix = f"/{path}" if path else ""

    async def on_post(request: web.Request) -> web.Response:
        tail = f"{request.match_info['intent']}/{request.match_info['mac']}"
        read = _reader(request)  # the application unpacks what is packed
        return _response(*await respond(knock, tail, request.headers, read))

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
