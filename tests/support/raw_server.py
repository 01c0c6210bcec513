"""A server that sends exactly the bytes it is given, and a die that never waits."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import attrs

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


class NoWait(random.Random):
    """Jitter that draws every wait to nothing."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


def http(body: bytes = b"", status: int = 200, *headers: str, length: int | None = None) -> bytes:
    """Return an HTTP answer; *length* is what it claims to have."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


def envelope(code: int = 200, **data: Any) -> bytes:
    """Return an answer of the upload API."""
    return http(json.dumps({"success": code == 200, "code": code, "msg": "words", "data": data}).encode())


@attrs.frozen
class Asked:
    """One request that came."""

    head: str
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split(" ")[1]

    def header(self, name: str) -> str | None:
        found = re.search(rf"^{name}: ?(.*)\r$", self.head, re.MULTILINE | re.IGNORECASE)
        return found and found[1]


class RawServer:
    """Gives each connection the next answer, the last one for ever, and closes it."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.connections = 0
        self._tls = tls
        self._host = host
        self._serving: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http{'s' if self._tls else ''}://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        serving = asyncio.current_task()
        assert serving
        self._serving.add(serving)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            asked = Asked(head, b"")
            length = int(asked.header("Content-Length") or 0)
            self.asked.append(Asked(head, await reader.readexactly(length)))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away: often what a test is about
        finally:
            self._serving.discard(serving)
            writer.close()


async def silence(_: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.sleep(60)
