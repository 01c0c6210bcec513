"""Keeps the connections of creates, and tells which may carry a further one: one that has been silent since.

A server may end a kept connection at any time, and a body that crosses its end is a create of unknown
outcome. So a connection is kept for a second only, and what shows at its socket counts against it.
"""

from __future__ import annotations

import asyncio
import select
import time

from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler

from .._json import MAX_JSON_BYTES

KEEP_S = 1.0
"""How long after a complete answer a connection may carry a further create."""

CAN_PEEK = hasattr(select, "poll")
"""Whether a socket can be asked what shows at it. On Windows its data may be with the loop already."""

_ENDING_BYTES = 64


class KeptConnection(ResponseHandler):
    """aiohttp's side of a connection, which also notes whatever comes after the last answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._now = loop.time
        self.is_used = False
        """Whether a body was handed to it before."""
        self._silent_since: tuple[float, float] | None = None
        self._has_ended = False
        self._last_bytes = b""
        self.raw_answer = bytearray()
        """What came since a body was handed to it: an id may stand in what the parser refuses."""
        self._poll: select.poll | None = None

    def data_received(self, data: bytes) -> None:
        """Note that it is not silent, then parse."""
        self._silent_since = None
        self._last_bytes = (self._last_bytes + data[-_ENDING_BYTES:])[-_ENDING_BYTES:]
        if self.is_used and len(self.raw_answer) < MAX_JSON_BYTES:
            self.raw_answer += data
        super().data_received(data)

    def eof_received(self) -> None:
        """Note that it never will be silent again, then close."""
        self._silent_since, self._has_ended = None, True
        super().eof_received()

    def begin(self) -> None:
        """Note that a body is about to be handed to it."""
        self.is_used = True
        self._silent_since = None
        self._last_bytes = b""
        self.raw_answer.clear()

    def keep(self, body: bytes, *, is_chunked: bool) -> None:
        """Note that the last answer is complete, with this *body*, and may be the last thing that came."""
        # The parser goes on with what comes behind an answer in the same packet and does not tell of it.
        ending = b"\r\n\r\n" if is_chunked or not body else body[-_ENDING_BYTES:]
        if not self._has_ended and self._last_bytes.endswith(ending):
            self._silent_since = self._now(), time.time()

    def is_connected(self) -> bool:
        """Tell whether it may be taken from the pool; who may not be is closed."""
        return (not self.is_used or self._is_silent()) and super().is_connected()

    def may_carry(self) -> bool:
        """Tell whether a body may be handed to it now: it is new, or silent since an answer a moment ago."""
        return not self.is_used or (self._is_silent() and self._shows_nothing())

    def _is_silent(self) -> bool:
        """Tell whether nothing came since its last answer, a moment ago, as far as the loop has read."""
        if self._silent_since is None or self.should_close:
            return False
        # Both clocks: the loop's stands still while the machine sleeps, and a server's does not.
        ages = self._now() - self._silent_since[0], time.time() - self._silent_since[1]
        return max(map(abs, ages)) <= KEEP_S

    def _shows_nothing(self) -> bool:
        """Ask the socket itself: what lies there the loop may not have read yet."""
        transport = self.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        # Over TLS its end is an alert, which is data here. An end without one, or a reset, shows as well.
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLPRI)
        return not self._poll.poll(0)


def connection_of(writer: AbstractStreamWriter) -> KeptConnection | None:
    """Return the connection that a body is about to be written to.

    One that does not note what comes is closed after its answer.
    """
    connection = getattr(writer, "protocol", None)
    if isinstance(connection, KeptConnection):
        return connection
    if isinstance(connection, ResponseHandler):
        connection.force_close()
    return None
