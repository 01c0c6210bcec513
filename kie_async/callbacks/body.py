"""Reads the body of a request, bounded in size and time, and decompresses it within the same bound."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import CallbackRejected

BODY_TIMEOUT_S = 10.0

_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
"""Makes zlib find out from the header which of the two it is."""


async def read_body(
    next_chunk: Callable[[], Awaitable[bytes]], limit: int, *, content_encoding: str = ""
) -> bytes:
    """Return a body of at most *limit* bytes, compressed and decompressed, that came in time.

    *next_chunk* returns nothing at the end of the body.

    Raises:
        CallbackRejected: It is too large, too slow, broke off, or its content encoding is not known here.
    """
    decompress = _decompressor(content_encoding)
    received, body = 0, bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while chunk := await next_chunk():
                received += len(chunk)
                # One byte more than allowed is enough to refuse it: a bomb is never unpacked whole.
                body += decompress(chunk, limit + 1 - len(body))
                if max(received, len(body)) > limit:
                    raise body_too_large()
    except TimeoutError:
        raise CallbackRejected("body too slow", 408) from None
    except (web.RequestPayloadError, ConnectionError, zlib.error):
        raise CallbackRejected("unreadable body", 400) from None
    return bytes(body)


def body_too_large() -> CallbackRejected:
    """Return the refusal of a body above the limit."""
    return CallbackRejected("body too large", 413)


def _decompressor(content_encoding: str) -> Callable[[bytes, int], bytes]:
    """Return what turns a chunk into at most so many bytes."""
    if content_encoding in ("", "identity"):
        return lambda chunk, _: chunk
    if content_encoding not in ("gzip", "deflate"):
        raise CallbackRejected("unknown content encoding", 415)
    return zlib.decompressobj(_ZLIB_OR_GZIP).decompress
