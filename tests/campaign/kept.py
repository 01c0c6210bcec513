"""Creates on kept connections against a server that closes idle ones at random: none is sent twice.

The server runs in a thread of its own and closes a connection 0 to 1.5 s after its last answer, by the book,
without the alert of TLS, or with a reset. Every create that the gate let through is held against the moment
its connection was closed: none may have passed after it. What crosses on the way stays unknown, and is rare.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import select
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import aiohttp
import attrs
from support.create_faults import Notes, creating, creation, word_for
from support.loops import add_option, run_on
from support.misbehaving import answer, certified, created, html, refused

from kie_async.creating.kept_connection import KeptConnection

IDLE_S = 1.5
PAUSE_S = 1.2
"""The longest wait between two creates of one connection: longer than one is kept."""
AIM_S = (-0.005, 0.001)
"""How near the end of a connection an aimed create comes: a busy machine lets it come later."""
UNKNOWN_AT_MOST = 0.001
_ENDS = ("by the book", "without a word", "reset")


@attrs.define
class Line:
    """One connection, seen from the server."""

    port: int
    opened_at: float
    closed_at: float = float("inf")


class IdleCloser:
    """Answers creates and closes what is idle, in a thread of its own."""

    def __init__(self, *, over_tls: bool, seed: int) -> None:
        self.bodies: Counter[bytes] = Counter()
        self.lines: defaultdict[int, list[Line]] = defaultdict(list)
        self.closes_at: dict[int, float] = {}
        """When, by the port of the client, the connection will be closed."""
        self._over_tls = over_tls
        self._rng = random.Random(seed)
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def __aenter__(self) -> Self:
        self._thread.start()
        await asyncio.to_thread(self._is_up.wait)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        await asyncio.to_thread(self._thread.join)

    async def _serve(self) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda *_: None)  # connections that break off are the point
        tls = certified() if self._over_tls else None
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls, backlog=512)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._over_tls else ''}://127.0.0.1:{port}"
        self._is_up.set()
        await self._is_over.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(writer.get_extra_info("peername")[1], time.monotonic())
        self.lines[line.port].append(line)
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            idle_s = 10.0
            while True:
                head = await _head_within(idle_s, reader, writer)
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.bodies[body] += 1
                idle_s = self._rng.uniform(0, IDLE_S)
                self.closes_at[line.port] = time.monotonic() + idle_s
                writer.write(self._answer())
        await self._close(writer, line)

    def _answer(self) -> bytes:
        """Mostly a task; what else comes whole keeps its connection too."""
        draw = self._rng.random()
        if draw < 0.9:
            return answer(created(f"task_{sum(self.bodies.values())}"))
        if draw < 0.95:
            return answer(refused(422))
        raw = b'{"code":200,"data":{"taskId":"in_chunks"}}'
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        return chunked % (len(raw), raw) if draw < 0.98 else html(404)

    async def _close(self, writer: asyncio.StreamWriter, line: Line) -> None:
        """End a connection, then note when its end was out."""
        end = self._rng.choice(_ENDS)
        with suppress(OSError):
            sock = writer.get_extra_info("socket")
            if end == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif end == "by the book" and self._over_tls:
                writer.close()  # the alert goes out at once
            else:
                sock.shutdown(socket.SHUT_WR)
            if end != "reset":
                line.closed_at = time.monotonic()
        writer.transport.abort()
        await asyncio.sleep(0.0)  # aborted in the next turn of the loop
        await asyncio.sleep(0.0)
        line.closed_at = min(line.closed_at, time.monotonic())


async def _head_within(seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return the head of a request that is here in time, read or not: who is slow to read closes no sooner.

    Raises:
        TimeoutError: None has come.
    """
    try:
        async with asyncio.timeout(seconds):
            return await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        poll = select.poll()
        poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        if not poll.poll(0) and not reader._buffer:  # type: ignore[attr-defined]
            raise
    return await reader.readuntil(b"\r\n\r\n")


@attrs.define(kw_only=True)
class Found:
    """What a run led to."""

    words: Counter[str]
    twice: int
    seen_too_late: int
    """Creates let through although their connection had been closed before the gate asked."""
    connections: int
    kept: int
    """Creates that went over a connection that had carried another."""
    lost: int
    """Creates called not sent, or that took no answer, whose body was read."""
    creates: int

    @property
    def objections(self) -> list[str]:
        """Return what is wrong."""
        unknown = self.words["unknown"] / self.creates
        found = {
            "bodies were read twice": self.twice,
            "passed a gate that could have seen the end": self.seen_too_late,
            "called not sent, and read": self.lost,
        }
        return [f"{count} {what}" for what, count in found.items() if count] + (
            [f"{unknown:.2%} unknown"] if unknown > UNKNOWN_AT_MOST else []
        )


@contextmanager
def watched_gates() -> Iterator[list[tuple[int, float]]]:
    """Note port and time whenever a kept connection is about to be asked at the gate and is found silent."""
    passed: list[tuple[int, float]] = []
    ask, begin = KeptConnection._shows_nothing, KeptConnection.begin
    asked_at: dict[KeptConnection, float] = {}

    def shows_nothing(connection: KeptConnection) -> bool:
        asked_at[connection] = time.monotonic()
        return ask(connection)

    def begins(connection: KeptConnection) -> None:
        at = asked_at.pop(connection, None)
        if connection.is_used and at is not None and connection.transport is not None:
            passed.append((connection.transport.get_extra_info("sockname")[1], at))
        begin(connection)

    patched: Any = KeptConnection
    patched._shows_nothing, patched.begin = shows_nothing, begins
    try:
        yield passed
    finally:
        patched._shows_nothing, patched.begin = ask, begin


async def run(creates: int, *, over_tls: bool, aimed: bool = False, seed: int = 1, lines: int = 150) -> Found:
    """Send so many creates over so many connections, with pauses between them."""
    rng = random.Random(seed)
    words: Counter[str] = Counter()
    unsent: set[bytes] = set()
    numbers = iter(range(creates))

    async def nap() -> None:
        await asyncio.sleep(rng.uniform(0, 0.01))

    async def line(server: IdleCloser) -> None:
        async with creating(server.url, connections=1) as transport:
            await asyncio.sleep(rng.uniform(0, PAUSE_S))
            for number in numbers:
                body = b'{"model":"test/echo","input":{"number":%d}}' % number
                error: BaseException | None = None
                notes = Notes(nap if not aimed and rng.random() < 0.25 else None)
                try:
                    await creation(transport, body=body, journal=notes, patience_s=20).run()
                except Exception as exc:
                    error = exc
                word = word_for(error)
                words[word] += 1
                if word == "not sent":
                    unsent.add(body)
                await asyncio.sleep(_pause(server, transport, rng) if aimed else rng.uniform(0, PAUSE_S))

    async with IdleCloser(over_tls=over_tls, seed=seed) as server:
        with watched_gates() as passed:
            await asyncio.gather(*(line(server) for _ in range(min(lines, creates))))
    return Found(
        words=words,
        twice=sum(count > 1 for count in server.bodies.values()),
        seen_too_late=sum(_is_too_late(server, *at_gate) for at_gate in passed),
        connections=sum(map(len, server.lines.values())),
        kept=len(passed),
        lost=sum(server.bodies[body] for body in unsent),
        creates=creates,
    )


def _pause(server: IdleCloser, transport: Any, rng: random.Random) -> float:
    """Return how long to wait in order to come when the connection is being closed."""
    idle = [kept for queue in transport._http.connector._conns.values() for kept, _ in queue]
    ports = [kept.transport.get_extra_info("sockname")[1] for kept in idle if kept.transport]
    ends_at = server.closes_at.get(ports[0], 0.0) if ports else 0.0
    return max(0.0, ends_at - time.monotonic() + rng.uniform(*AIM_S))


def _is_too_late(server: IdleCloser, port: int, asked_at: float) -> bool:
    line = max(
        (line for line in server.lines[port] if line.opened_at <= asked_at), key=lambda line: line.opened_at
    )
    return line.closed_at < asked_at


def main(argv: list[str]) -> int:
    """Run it plain and over TLS; the exit status tells whether anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign kept", description=__doc__)
    parser.add_argument("--creates", type=int, default=2000)
    parser.add_argument("--over", choices=("plain", "TLS"), help="only this; else half of the creates each")
    parser.add_argument("--aimed", action="store_true", help="each comes just when its connection is closed")
    parser.add_argument("--seed", type=int, default=1)
    add_option(parser)
    asked = parser.parse_args(argv)
    print(f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, {asked.creates} creates")
    ways = [asked.over] if asked.over else ["plain", "TLS"]
    wrong = 0
    for over in ways:
        count = asked.creates // len(ways)
        found = run_on(asked.loop, run(count, over_tls=over == "TLS", aimed=asked.aimed, seed=asked.seed))
        ends = ", ".join(f"{count} {word}" for word, count in found.words.most_common())
        print(f"{over:5} {ends}; {found.kept} on a kept connection, {found.connections} connections")
        objections = [what for what in found.objections if not (asked.aimed and what.endswith("% unknown"))]
        print(f"      {'; '.join(objections) or 'nothing wrong'}")
        wrong += bool(objections)
    return 1 if wrong else 0
