"""The gate a paid body passes once: before it the create is surely not sent, behind it money may be spent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from .kept_connection import KeptConnection, connection_of


class SendGate:
    """The line of one attempt between "surely not sent" and "may have been paid".

    It opens once, before the body is handed to the socket. Closing it first and asking `sent` after is
    safe against a body still on its way.
    """

    def __init__(self, before_first_byte: Callable[[], Awaitable[None]]) -> None:
        self.sent = False
        self.may_be_noted = False
        """Whether the note before the first byte was begun: a body came to the gate while it was open."""
        self.failure: BaseException | None = None
        self._is_closed = False
        self._is_used = False
        self._before_first_byte = before_first_byte

    def close(self) -> None:
        """Let nothing through that has not passed yet."""
        self._is_closed = True

    async def pass_through(self, connection: KeptConnection | None = None) -> None:
        """Note it, then open, for one body and its *connection*; a second body is refused."""
        if self._is_used:
            raise GateClosed
        # Before anything that may fail: after an error aiohttp could ask for the body once more.
        self._is_used = True
        try:
            self._refuse_if_closed()
            self.may_be_noted = True
            await self._before_first_byte()
            # Asked again: the note waited for a disk, and whoever sends may have given up meanwhile.
            self._refuse_if_closed()
            if connection is not None and not connection.may_carry():
                raise ConnectionEnded
        except BaseException as exc:
            self.failure = exc
            raise
        self.sent = True  # no await since the checks above

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise GateClosed


class GateClosed(Exception):
    """The attempt was given up before its first byte."""


class ConnectionEnded(Exception):
    """The kept connection shows its end, or data nobody asked for: another one must carry the body."""


class OneShotBody(aiohttp.Payload):
    """A body of any size that only its own `write` hands out, once, when the gate lets it.

    aiohttp is never given the bytes themselves: no retry, no redirect and no middleware of it can send
    them another way. https://docs.aiohttp.org/en/stable/client_reference.html
    """

    def __init__(self, body: bytes, gate: SendGate) -> None:
        super().__init__(None, content_type="application/json")
        self._sealed = body
        self._gate = gate
        self._connection: KeptConnection | None = None
        self.was_asked_for = False
        """Whether a request was made with it; a mocked aiohttp makes none."""
        self.is_on_kept_connection = False
        """Whether the connection it came to had carried another create before."""

    @property
    def size(self) -> int:
        """Return how long it is, which every request must know."""
        self.was_asked_for = True
        return len(self._sealed)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it at once."""
        connection = self._connection = connection_of(writer)
        self.is_on_kept_connection = connection is not None and connection.is_used
        await self._gate.pass_through(connection)
        if connection is not None:
            connection.begin()
        await writer.write(self._sealed)

    @property
    def raw_answer(self) -> bytes:
        """Return the bytes that its connection brought since it left, whatever became of them."""
        return b"" if self._connection is None else bytes(self._connection.raw_answer)

    def keep_connection(self, answer: bytes, *, is_chunked: bool) -> None:
        """Let its connection carry a further create: the whole *answer* has come."""
        if self._connection is not None:
            self._connection.keep(answer, is_chunked=is_chunked)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Show nothing to whoever would send it by himself."""
        raise GateClosed
