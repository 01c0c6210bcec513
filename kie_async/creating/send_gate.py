"""The gate a paid body passes once: before it the create is surely not sent, behind it money may be spent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp.abc import AbstractStreamWriter


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

    async def pass_through(self) -> None:
        """Note it, then open, for one body; a second one is refused."""
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
        except BaseException as exc:
            self.failure = exc
            raise
        self.sent = True  # no await since the check above

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise GateClosed


class GateClosed(Exception):
    """The attempt was given up before its first byte."""


class OneShotBody(aiohttp.Payload):
    """A body of any size that only its own `write` hands out, once, when the gate lets it.

    aiohttp is never given the bytes themselves: no retry, no redirect and no middleware of it can send
    them another way. https://docs.aiohttp.org/en/stable/client_reference.html
    """

    def __init__(self, body: bytes, gate: SendGate) -> None:
        super().__init__(None, content_type="application/json")
        self._size = len(body)
        self._sealed = body
        self._gate = gate

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it at once."""
        await self._gate.pass_through()
        await writer.write(self._sealed)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Show nothing to whoever would send it by himself."""
        raise GateClosed
