"""One address for several workers, as a load balancer is: each request goes to the next of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

_HOST = "127.0.0.1"

_BLOCK_BYTES = 65_536


class Forwarder:
    """Sends requests on, in turn, and remembers which worker took each; one that is gone is passed over."""

    def __init__(self) -> None:
        self._ports: Sequence[int] = ()
        self._next = 0
        self.takers: dict[str, int] = {}
        """The worker that took the last request to a path, by its place among the ports."""

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """Listen while the block runs, and yield the URL."""
        server = await asyncio.start_server(self._serve, _HOST, 0)
        async with server:
            yield f"http://{_HOST}:{server.sockets[0].getsockname()[1]}"

    def lead_to(self, ports: Sequence[int]) -> None:
        """Send requests to these ports of this machine from now on."""
        self._ports = ports

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._forward(reader, writer)
        finally:
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, _, rest = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        opened = await self._connect(line.split()[1].decode())
        if opened is None:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        answers, onward = opened
        # One request for each connection: so the end of the answer is its end.
        onward.write(line + b"\r\nConnection: close\r\n" + rest)
        sending = asyncio.create_task(_pump(reader, onward))
        try:
            await _pump(answers, writer)
        finally:
            sending.cancel()
            onward.close()

    async def _connect(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return a connection to the next worker that takes it; None if none does."""
        for _ in self._ports:
            worker = self._next % len(self._ports)
            self._next += 1
            with suppress(OSError):
                opened = await asyncio.open_connection(_HOST, self._ports[worker])
                self.takers[path] = worker
                return opened
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(_BLOCK_BYTES):
            writer.write(block)
            await writer.drain()
