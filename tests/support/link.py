"""A line to a server that can be frozen or cut, for tests of what a session does meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Link:
    """Passes connections on to *url*, until it is told not to."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._is_thawed = asyncio.Event()
        self._is_thawed.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def database_url(self) -> str:
        """Return the URL it was given, of a database, with this end of the line in the place of its host."""
        who = self._to.netloc.rpartition("@")[0]
        return self._to._replace(netloc=f"{who}@127.0.0.1:{self._port}").geturl()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()
        for serving in list(self._serving):
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def cut(self) -> None:
        """Break every connection and refuse every further one."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def mend(self) -> None:
        """Listen, again on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, backlog=512)
        self._port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """Accept everything, pass nothing on and answer nothing."""
        self._is_thawed.clear()

    def thaw(self) -> None:
        """Answer again those who come from now on."""
        for writer in list(self._writers):
            writer.transport.abort()
        self._is_thawed.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError):
                there = await asyncio.open_connection(self._to.hostname, self._to.port)
                self._writers.add(there[1])
                try:
                    await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))
                finally:
                    self._writers.discard(there[1])
                    there[1].close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(65_536):
            if not self._is_thawed.is_set():
                await asyncio.Event().wait()  # it got lost; the connection is cut in the end
            writer.write(block)
            await writer.drain()
        writer.close()
