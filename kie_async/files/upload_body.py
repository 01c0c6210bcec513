"""The file in the body of an upload: read and sent block by block, its length known beforehand."""

from __future__ import annotations

import asyncio
from typing import BinaryIO

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from ..errors import InvalidRequest
from ..inputs.media import BLOCK_BYTES
from .local_media import MediaSource


class UploadBody(Payload):
    """Sends what was checked, or breaks off; *failure* then says why."""

    def __init__(self, source: MediaSource, opened: BinaryIO) -> None:
        super().__init__(opened, content_type=source.mime_type)
        self._source = source
        self._opened = opened
        self._size = source.size
        self.failure: InvalidRequest | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Refuse: aiohttp would want all of it as text."""
        raise TypeError("an upload is not read at once")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the file. It is read in a thread, and the next block only when the last one is on its way."""
        left = self._source.size
        while left:
            block = await asyncio.to_thread(self._read, min(left, BLOCK_BYTES), left)
            left -= len(block)
            await writer.write(block)

    def _read(self, size: int, left: int) -> bytes:
        """Return the next block; before the last one leaves, nothing may have changed."""
        try:
            block = self._opened.read(size)
            is_good = bool(block) and (len(block) < left or self._source.is_unchanged(self._opened))
        except (OSError, ValueError):
            is_good = False
        if not is_good:
            self.failure = self._source.changed()
            raise self.failure
        return block
