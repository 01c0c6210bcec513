"""TODO"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import CallbackRejected
from .base import Handler, Headers, Read

BODY_TIMEOUT_S = 10.0

_log = logging.getLogger("kie_async")


async def respond(knock: Handler, tail: str, headers: Headers, read: Read) -> tuple[int, bytes]:
    """Return status and body of the answer to a knock: the service tries again after a mistake of ours."""
    try:
        answer = await knock(tail, headers, read)
    except Exception:
        _log.exception("a callback was answered with 500")
        return 500, b""
    return answer.status, answer.body


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
