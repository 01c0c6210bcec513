"""Emulates the service for benchmarks, in a process and on a core of its own.

A parser by hand, since a web framework would be as slow as the clients. Besides the API it answers
``POST /__config`` (`Settings` as JSON; all tasks and counts are forgotten), ``GET /__stats``,
``GET /__finish`` (when each task ended and when its callback left), ``POST /__end`` (every task that
goes on ends now) and ``POST /__hang_up`` (connections kept for callbacks close). Instants are those of
CLOCK_MONOTONIC: `time.monotonic` of any process beside it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path
from typing import Any, Self

import attrs

from . import dialects as dialects  # its routes are answered too
from . import tls
from .deliveries import Poster
from .emulated import Request, Settings, World, dumps, handler_of, loads
from .measuring import THEIR_CORE, pin

AVATAR = "kling/ai-avatar-standard"
AVATAR_INPUT = {
    "image_url": "https://tempfile.redpandaai.co/kieai/183531/images/portrait-of-the-speaker-0001.png",
    "audio_url": "https://tempfile.redpandaai.co/kieai/183531/audio/what-the-speaker-says-0001.mp3",
    "prompt": "A calm presenter in a bright studio looks into the camera and speaks with small gestures.",
}
"""With it a record of success has 850 bytes."""

_ROOT = Path(__file__).parent.parent
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")


# --- the side that measures ----------------------------------------------------------------------


class Emulator:
    """Such a process, and the way to it."""

    url: str

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.emulator", str(THEIR_CORE)),
            cwd=_ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        port = int(await self._process.stdout.readline())
        self.url = f"{tls.scheme()}://127.0.0.1:{port}"
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.of_a_client())
        await self.set(**self._settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def set(self, **settings: Any) -> None:
        """Begin anew with other `Settings`."""
        await self._ask("POST", "/__config", dumps(attrs.asdict(Settings(**settings))))

    async def stats(self) -> dict[str, Any]:
        """Return counts since the settings, ``connections`` since the start, and ``cpu_s`` of its process."""
        return dict(await self._ask("GET", "/__stats"))

    async def finished(self) -> dict[str, dict[str, float]]:
        """Return instants by task id: ``ended`` of what is over, ``sent`` of callbacks."""
        return dict(await self._ask("GET", "/__finish"))

    async def end_all(self) -> int:
        """End all tasks in one instant; return how many."""
        return int(await self._ask("POST", "/__end"))

    async def hang_up(self) -> None:
        """Close the connections kept for callbacks; callbacks still waiting are forgotten."""
        await self._ask("POST", "/__hang_up")

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Any:
        head = f"{method} {path} HTTP/1.1\r\nHost: emulator\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(answer)
        assert found is not None
        return loads(await self._reader.readexactly(int(found[1])))


# --- the side that serves ------------------------------------------------------------------------


class Service:
    """What all connections share."""

    def __init__(self) -> None:
        self.connections = 0
        self._begin(Settings())

    def _begin(self, settings: Settings) -> None:
        self.world = World(settings)
        self._poster = Poster(self.world)
        self.world.call_back = self._poster.post

    def control(self, request: Request) -> object:
        """Answer what steers the service."""
        world = self.world
        if request.path == "/__config":
            world.clear()
            self._poster.close()
            given = loads(request.body)
            listed = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
            return self._begin(Settings(**given | listed))
        if request.path == "/__stats":
            return {**world.counts, "connections": self.connections, "cpu_s": time.process_time()}
        if request.path == "/__finish":
            tasks, now = world.tasks.values(), time.monotonic()
            return {
                "ended": {task.task_id: task.ends_at for task in tasks if task.ends_at <= now},
                "sent": {task.task_id: task.sent_at for task in tasks if task.sent_at is not None},
            }
        if request.path == "/__hang_up":
            return self._poster.close()
        return world.end_all()


class Connection(asyncio.Protocol):
    """Answers the requests that come over one connection."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._held = b""

    def connection_made(self, transport: Any) -> None:  # uvloop has classes of its own
        self._transport = transport
        self._service.connections += 1

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head, begin = data[:end], end + 4
            size = 0
            if head[:4] != b"GET " and (found := _LENGTH.search(head)) is not None:
                size = int(found[1])
            if len(data) < begin + size:
                break
            self._answer(head, data[begin : begin + size])
            data = data[begin + size :]
        self._held = data

    def _answer(self, head: bytes, body: bytes) -> None:
        method, target, _ = head.split(b" ", 2)
        path, _, query = target.decode().partition("?")
        request = Request(method.decode(), path, query, head, body)
        if path.startswith("/__"):
            self._write(200, dumps(self._service.control(request)), is_last=False)
            return
        world = self._service.world
        handler = handler_of(request.method, path)
        world.counts[handler.__name__] += 1
        status, answer = handler(world, request)
        is_last = _CLOSE.search(head) is not None
        if world.settings.delay_s:
            asyncio.get_running_loop().call_later(
                world.settings.delay_s, self._write, status, answer, is_last
            )
        else:
            self._write(status, answer, is_last)

    def _write(self, status: int, body: bytes, is_last: bool) -> None:
        head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json;charset=UTF-8\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(body)) + body)
        if is_last:
            self._transport.close()


async def _serve() -> None:
    pin(int(sys.argv[1]))
    service = Service()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(service), "127.0.0.1", 0, backlog=4096, ssl=tls.of_a_server()
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve())
