"""Sends requests from a process of its own: commands come as JSON lines, each is answered with one line.

It keeps the cost of sending out of the process that is measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from . import tls
from .measuring import THEIR_CORE, pin

ROOT = Path(__file__).parent.parent


# --- the side that is measured -------------------------------------------------------------------


class Load:
    """Such a process, and the way to it."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.load"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=16 * 1024 * 1024,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    async def ask(self, what: str, **options: Any) -> Any:
        """Let it do something and return what it answers; bytes travel as base64."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **options}, default=_packed).encode() + b"\n")
        return json.loads(await self._process.stdout.readline())


def _packed(value: object) -> str:
    assert isinstance(value, bytes)
    return base64.b64encode(value).decode()


# --- the side that sends -------------------------------------------------------------------------


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    at = head.lower().find(b"content-length: ")
    if at >= 0:
        await reader.readexactly(int(head[at + 16 : head.index(b"\r", at)]))
    return int(head[9:12])


async def burst(
    *, port: int, requests: list[bytes], count: int, lines: int, over_tls: bool = False
) -> dict[str, Any]:
    """Send so many requests over so many kept connections, as fast as they are answered."""
    context = tls.of_a_client() if over_tls else None
    turns = iter(range(count))
    statuses: dict[int, int] = {}

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        for turn in turns:
            writer.write(requests[turn % len(requests)])
            status = await _answer(reader)
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*[send() for _ in range(lines)])
    return {"seconds": time.perf_counter() - began, "statuses": statuses}


async def genuine(*, port: int, requests: list[bytes], per_s: float) -> dict[str, Any]:
    """Send each request once over a connection of its own, so many a second; return the latencies."""
    found: list[float] = []
    statuses: dict[int, int] = {}

    async def send(request: bytes) -> None:
        began, status = time.perf_counter(), 0
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            status = await _answer(reader)
            writer.close()
        found.append(time.perf_counter() - began)
        statuses[status] = statuses.get(status, 0) + 1

    await paced(len(requests), per_s, lambda turn: send(requests[turn]))
    return {"seconds": found, "statuses": statuses}


async def abuse(
    *, port: int, slow: int, junk: list[bytes], broken: list[bytes], per_s: float, for_s: float
) -> dict[str, Any]:
    """Hold slow connections open and send junk: four of five over kept connections, one over a new one."""
    counts = {"junk": 0, "slow reopened": -slow, "slow open": 0}
    kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    few = asyncio.Semaphore(100)

    async def crawl(number: int) -> None:
        while True:
            counts["slow reopened"] += 1
            with suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                counts["slow open"] += 1
                try:
                    for byte in b"POST /kie/" + b"a" * 1000:
                        if reader.at_eof() or writer.is_closing():
                            break
                        writer.write(bytes([byte]))
                        await asyncio.sleep(1 + number % 7 / 10)
                finally:
                    counts["slow open"] -= 1
                    writer.close()

    async def send(turn: int) -> None:
        counts["junk"] += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            if turn % 5:
                async with few:
                    reader, writer = kept.pop() if kept else await asyncio.open_connection("127.0.0.1", port)
                    writer.write(junk[turn % len(junk)])
                    await _answer(reader)
                    kept.append((reader, writer))
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(broken[turn % len(broken)])
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await _answer(reader)
                writer.close()

    crawling = [asyncio.create_task(crawl(number)) for number in range(slow)]
    await asyncio.sleep(1)
    opened = counts["slow open"]
    began = time.perf_counter()
    await paced(int(per_s * for_s), per_s, send)
    seconds = time.perf_counter() - began
    for task in crawling:
        task.cancel()
    await asyncio.gather(*crawling, return_exceptions=True)
    return {"junk_per_s": counts["junk"] / seconds, "slow_open": opened, **counts}


async def paced(count: int, per_s: float, start: Callable[[int], Any]) -> None:
    """Start so many coroutines at a rate, and wait for them."""
    began, running = time.perf_counter(), set()
    for turn in range(count):
        await asyncio.sleep(max(0.0, began + turn / per_s - time.perf_counter()))
        task = asyncio.create_task(start(turn))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def _serve() -> None:
    commands = {"burst": burst, "genuine": genuine, "abuse": abuse}
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        for name in ("requests", "junk", "broken"):
            if name in asked:
                asked[name] = [base64.b64decode(text) for text in asked[name]]
        print(json.dumps(await commands[asked.pop("what")](**asked)), flush=True)


if __name__ == "__main__":
    pin(THEIR_CORE)
    asyncio.run(_serve())
