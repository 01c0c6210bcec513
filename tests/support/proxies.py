"""Proxies on ports of their own: CONNECT, in the clear and over TLS, and SOCKS5; each may have a fault."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from kie_async import Network
from support.misbehaving import certified, trusting

KINDS = ("http", "https", "socks5")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

Fault = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a proxy does instead of its work, once it has read what it was asked."""


class Proxy:
    """A proxy that keeps what it was asked for; it may hang up after *max_bytes* from the client."""

    def __init__(
        self,
        kind: str = "http",
        *,
        fault: Fault | None = None,
        login: str = "",
        max_bytes: int | None = None,
    ) -> None:
        self.kind = kind
        self.asked: list[str] = []
        """The hosts and ports it was asked to connect to."""
        self.heads: list[str] = []
        self.connections = 0
        self._fault = fault
        self._login = login
        self._max_bytes = max_bytes
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{self.kind}://{self._login and self._login + '@'}127.0.0.1:{self._port}"

    @property
    def network(self) -> Network:
        """Return the way through this proxy, for a client that trusts the tests' authority."""
        return Network(proxy=self.url, ssl=trusting())

    async def __aenter__(self) -> Self:
        tls = certified() if self.kind == "https" else None
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls, backlog=512)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for serving in list(self._serving):
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        serving = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broken = (OSError, asyncio.IncompleteReadError, ssl.SSLError)
        try:
            with suppress(*broken):
                read = self._read_socks if self.kind == "socks5" else self._read_connect
                host, port = await read(reader, writer)
                self.asked.append(f"{host}:{port}")
                if self._fault is not None:
                    return await self._fault(reader, writer)
                await self._tunnel((reader, writer), host, port)
        finally:
            writer.close()
            with suppress(*broken, asyncio.CancelledError):
                await asyncio.wait_for(writer.wait_closed(), 0.5)

    async def _read_connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        host, _, port = target.rpartition(":")
        assert method == "CONNECT", head
        return host.strip("[]"), int(port)

    async def _read_socks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int]:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        writer.write(b"\x05\x02" if 2 in methods else b"\x05\x00")
        if 2 in methods:  # a name and a password
            _, size = await reader.readexactly(2)
            name = await reader.readexactly(size)
            password = await reader.readexactly((await reader.readexactly(1))[0])
            self.heads.append(f"{name.decode()}:{password.decode()}")
            writer.write(b"\x01\x00")
        *_, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        return host, int.from_bytes(await reader.readexactly(2), "big")

    async def _tunnel(self, client: Streams, host: str, port: int) -> None:
        is_socks = self.kind == "socks5"
        try:
            server = await asyncio.open_connection(host, port)
        except OSError:
            client[1].write(b"\x05\x05\x00\x01" + bytes(6) if is_socks else status(502))
            return
        client[1].write(b"\x05\x00\x00\x01" + bytes(6) if is_socks else b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            pumps = [
                asyncio.ensure_future(_pump(client[0], server[1], self._max_bytes)),
                asyncio.ensure_future(_pump(server[0], client[1], None)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if not pumps[0].done():  # what is on its way to the client still arrives
                    await client[1].drain()
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            server[1].close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int | None) -> None:
    left = max_bytes
    while (left is None or left > 0) and (data := await reader.read(65536)):
        writer.write(data if left is None else data[:left])
        await writer.drain()
        left = None if left is None else left - len(data)


def status(code: int, headers: str = "") -> bytes:
    """Return a proxy's own answer."""
    return f"HTTP/1.1 {code} Of The Proxy\r\nContent-Length: 2\r\n{headers}\r\nno".encode()


def says(raw: bytes, *, hangs: bool = False) -> Fault:
    """Return a fault: say this, then hang up or do nothing more."""

    async def fault(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if hangs:
            await asyncio.sleep(30)

    return fault


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hang up with a reset."""
    writer.transport.abort()
