"""Receives callbacks in an aiohttp application: its routes, and how a body is read and an answer built."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from multidict import CIMultiDict

from .address import path_parts
from .base import METHOD_NOT_ALLOWED, BodyReader, CallbackVerdict, Handler
from .body import bounded, read_body

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_RESPONSE_HEADERS = CIMultiDict({"Server": "", "Content-Type": "application/json"})


def aiohttp_routes(path: str, handler: Handler) -> list[web.RouteDef]:
    """Return the routes at and below *path* for an aiohttp application; other methods get a 405."""
    parts = path_parts(path)

    async def on_post(request: web.Request) -> web.Response:
        path_tail = f"{request.match_info['intent']}/{request.match_info['mac']}"
        # No content encoding: the application has decompressed the body already.
        return response_for(await handler(path_tail, request.headers, body_reader(request)))

    async def on_get(_: web.Request) -> web.Response:
        return response_for(METHOD_NOT_ALLOWED)

    async def on_expect(_: web.Request) -> None:
        """Say "100 Continue" not here but when the body is wanted."""

    below = _pattern_of([*parts, "{intent}", "{mac}"])
    routes = [web.post(below, on_post, expect_handler=on_expect)]
    return [*routes, web.get(_pattern_of(parts), on_get)] if parts else routes


def _pattern_of(parts: Sequence[str]) -> str:
    """Return a pattern of aiohttp for a path in which slashes may be doubled, or stand at the end too."""
    return "".join(f"/{{slashes{at}:/*}}{part}" for at, part in enumerate(parts)) + "{end:/*}"


def body_reader(request: web.BaseRequest, *, content_encoding: str = "") -> BodyReader:
    """Return what reads the body of a request once its address is known to be right."""

    async def read(limit: int) -> bytes:
        content = request.content
        # Most callbacks come in one packet with their headers: no timer is needed for what is here.
        if content.is_eof() and not content_encoding and content.exception() is None:
            return bounded(content.read_nowait(), limit)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(_CONTINUE)
            # aiohttp takes bytes written for a begun answer, after which an error could only break off.
            request.writer.output_size = 0
        return await read_body(content.readany, limit, content_encoding=content_encoding)

    return read


def response_for(verdict: CallbackVerdict) -> web.Response:
    """Return the answer of aiohttp to a verdict."""
    response = web.Response(status=verdict.status, body=verdict.body, headers=_RESPONSE_HEADERS)
    if verdict.status == 405:
        response.headers["Allow"] = "POST"
    return response
