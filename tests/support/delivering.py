"""Every way to mount a receiver, each behind a real socket, and a client that sends raw requests to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any

import attrs
import uvicorn
from aiohttp import web
from conftest import time_passes

from kie_async import CallbackReceiver
from support.clock import eventually

PATH = "/kie"
Pairs = Iterable[tuple[str, str]]


# --- the client ----------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """An answer."""

    status: int
    head: str
    body: bytes

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None


def request(path: str, headers: Pairs = (), body: bytes = b"", *, method: str = "POST") -> bytes:
    """Return the bytes of a request; headers stand in it as they are given."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    if "host" not in names:
        given.insert(0, ("Host", "bot.example.org"))
    if not names & {"content-length", "transfer-encoding"}:
        given.append(("Content-Length", str(len(body))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


class Connection:
    """A connection to a receiver."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def read_head(self) -> Answer:
        """Return the next answer up to its body; IncompleteReadError when there is none."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n")
        return Answer(int(head.split(" ", 2)[1]), head, b"")

    async def read_answer(self) -> Answer:
        """Return the next answer."""
        answer = await self.read_head()
        return attrs.evolve(
            answer, body=await self._reader.readexactly(int(answer.header("Content-Length") or 0))
        )

    def write(self, data: bytes) -> None:
        """Send without waiting for the other side to take it."""
        self._writer.write(data)

    @property
    def is_at_end(self) -> bool:
        return self._reader.at_eof()

    async def is_closed(self) -> bool:
        """Wait until the other side closes; what it still sends is dropped."""
        try:
            while await self._reader.read(65_536):
                pass
        except ConnectionError:
            pass
        return True

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connect_to(port: int, host: str = "127.0.0.1") -> AsyncIterator[Connection]:
    """Return a connection that is closed at the end of the block."""
    connection = Connection(*await asyncio.open_connection(host, port))
    try:
        yield connection
    finally:
        await connection.close()


async def post(port: int, path: str, headers: Pairs = (), body: bytes = b"", **more: Any) -> Answer:
    """Send one request over a connection of its own and return the answer."""
    async with connect_to(port) as connection:
        await connection.send(request(path, headers, body, **more))
        return await connection.read_answer()


# --- the mounts ----------------------------------------------------------------------------------


@attrs.frozen
class Mounted:
    """Where a receiver listens."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"


@asynccontextmanager
async def aiohttp_on(app: web.Application, listening: socket.socket | None = None) -> AsyncIterator[int]:
    """Serve an aiohttp application; return its port."""
    listening = listening or socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield port
    finally:
        with time_passes():
            await runner.cleanup()


class _Uvicorn(uvicorn.Server):
    """Leaves the signals of the test process alone, and leaves at once where uvicorn checks every 0.1 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.leaving.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def uvicorn_on(app: Any, listening: socket.socket | None = None, **config: Any) -> AsyncIterator[int]:
    """Serve an ASGI application under uvicorn; return its port."""
    listening = listening or socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    given = {"log_config": None, "access_log": False, "ws": "none", "lifespan": "on"} | config
    server = _Uvicorn(uvicorn.Config(app, **given))
    serving = asyncio.get_running_loop().create_task(server.serve([listening]))
    try:
        await eventually(lambda: server.started or serving.done())
        yield port
    finally:
        server.leaving.set()
        with time_passes():
            await serving


@asynccontextmanager
async def mounted_as_routes(receiver: CallbackReceiver) -> AsyncIterator[Mounted]:
    app = web.Application()
    app.router.add_routes(receiver.routes(PATH))
    async with aiohttp_on(app) as port:
        yield Mounted(port)


@asynccontextmanager
async def mounted_as_asgi(receiver: CallbackReceiver) -> AsyncIterator[Mounted]:
    async with uvicorn_on(receiver.asgi) as port:
        yield Mounted(port)


@asynccontextmanager
async def served_alone(receiver: CallbackReceiver) -> AsyncIterator[Mounted]:
    async with receiver.serve("127.0.0.1", 0, PATH) as served:
        yield Mounted(served.port)


@asynccontextmanager
async def fed(receiver: CallbackReceiver) -> AsyncIterator[Mounted]:
    """Feed a receiver from the smallest server there is."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
        first, *rest = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in rest)]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        body = await reader.readexactly(length)
        verdict = await receiver.feed(first.split(" ")[1].removeprefix(PATH + "/"), headers, body)
        answer = f"HTTP/1.1 {verdict.status} X\r\nContent-Length: {len(verdict.body)}\r\n\r\n"
        writer.write(answer.encode() + verdict.body)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Mounted(server.sockets[0].getsockname()[1])


MOUNTS: dict[str, Callable[[CallbackReceiver], AbstractAsyncContextManager[Mounted]]] = {
    "routes": mounted_as_routes,
    "asgi": mounted_as_asgi,
    "serve": served_alone,
    "feed": fed,
}
