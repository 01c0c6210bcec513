"""Reads the body of a request, bounded in size and time, and decompresses it within the same bounds."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from aiohttp import web

from ..errors import CallbackRejected

BODY_TIMEOUT_S = 10.0

MAX_DROPPED_BODY = 8 * 1024 * 1024
"""A body that is too large to be read is received up to this size, and dropped: that it came is news too."""

_PIECE = 65_536

_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
"""Makes zlib find out from the header which of the two it is."""


async def read_body(
    next_chunk: Callable[[], Awaitable[bytes]], limit: int, *, content_encoding: str = ""
) -> bytes:
    """Return a body that came in time; of one larger than *limit* bytes, one byte more than those.

    *next_chunk* returns nothing at the end of the body. What cannot be decompressed is no bytes.

    Raises:
        CallbackRejected: It is larger than `MAX_DROPPED_BODY` too, compressed or decompressed; it is too
            slow, broke off, or its content encoding is not known here.
    """
    body = _BoundedBody(limit, content_encoding)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while chunk := await next_chunk():
                body.add(chunk)
    except TimeoutError:
        raise CallbackRejected("body too slow", 408) from None
    except (web.RequestPayloadError, ConnectionError):
        raise CallbackRejected("unreadable body", 400) from None
    return body.kept


def bounded(body: bytes, limit: int, *, content_encoding: str = "") -> bytes:
    """Return a body that came whole, as `read_body` does.

    Raises:
        CallbackRejected: It is larger than `MAX_DROPPED_BODY` too, or its content encoding is not known.
    """
    if not content_encoding and len(body) <= limit:
        return body
    collected = _BoundedBody(limit, content_encoding)
    collected.add(body)
    return collected.kept


class _Decompressor(Protocol):
    """What `zlib.decompressobj` returns, which has no public name."""

    @property
    def unconsumed_tail(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _BoundedBody:
    """Collects a body, and of a large one only the beginning."""

    def __init__(self, limit: int, content_encoding: str) -> None:
        self._kept = bytearray()
        self._keep = limit + 1
        self._most = max(limit, MAX_DROPPED_BODY)
        self._received = self._size = 0
        self._decompressor = _decompressor(content_encoding)
        self._is_broken = False

    @property
    def kept(self) -> bytes:
        return b"" if self._is_broken else bytes(self._kept)

    def add(self, chunk: bytes) -> None:
        self._received += len(chunk)
        try:
            for piece in self._decompressed(chunk):
                self._size += len(piece)
                if max(self._received, self._size) > self._most:
                    raise CallbackRejected("body too large", 413)
                self._kept += piece[: self._keep - len(self._kept)]
        except zlib.error:
            self._is_broken, self._decompressor = True, None

    def _decompressed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield a chunk in pieces: a bomb is never decompressed whole."""
        if self._decompressor is None:
            yield chunk
            return
        piece = self._decompressor.decompress(chunk, _PIECE)
        yield piece
        while len(piece) == _PIECE or (self._decompressor.unconsumed_tail and not self._decompressor.eof):
            piece = self._decompressor.decompress(self._decompressor.unconsumed_tail, _PIECE)
            yield piece


def _decompressor(content_encoding: str) -> _Decompressor | None:
    if content_encoding in ("", "identity"):
        return None
    if content_encoding not in ("gzip", "deflate"):
        raise CallbackRejected("unknown content encoding", 415)
    return zlib.decompressobj(_ZLIB_OR_GZIP)
