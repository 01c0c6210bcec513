"""Sends the callbacks of an emulated service, signed, over few connections that are kept open."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from .emulated import Task, World, callback_of

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_TRIES, _RETRY_S = 3, 1.0


class Poster:
    """Sends callbacks over few connections that are kept, each callback up to three times."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: deque[tuple[Task, int]] = deque()
        self._idle: list[Connection] = []
        self._opened = 0
        self._opening: set[asyncio.Task[None]] = set()

    def post(self, task: Task, tries: int = 0) -> None:
        """Send a callback as soon as a connection is free; all of one world go to one host."""
        self._waiting.append((task, tries))
        if self._idle:
            self._idle.pop().send_next()
        elif self._opened < self._world.settings.callback_connections:
            self._opened += 1
            opening = asyncio.get_running_loop().create_task(self._open(str(task.callback_url)))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    def close(self) -> None:
        """Send nothing more."""
        self._waiting.clear()
        for connection in list(self._idle):
            connection.close()

    def take_next(self, free: Connection) -> tuple[Task, int, bytes] | None:
        """Return what a free connection shall send now, if anything waits."""
        if not self._waiting:
            self._idle.append(free)
            return None
        task, tries = self._waiting.popleft()
        return task, tries + 1, self._request(task)

    def done(self, task: Task, status: int, tries: int) -> None:
        """Take the answer to a callback, 0 if there was none."""
        self._world.counts[f"callbacks {status}"] += 1
        if status != 200 and tries < _TRIES:
            asyncio.get_running_loop().call_later(_RETRY_S if status else 0, self.post, task, tries)

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self._opened -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    async def _open(self, url: str) -> None:
        where, loop = urlsplit(url), asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: Connection(self), where.hostname, where.port)
        except OSError:
            self._opened -= 1
            if self._waiting:
                task, tries = self._waiting.popleft()
                self.done(task, 0, tries + 1)

    def _request(self, task: Task) -> bytes:
        where, body = urlsplit(str(task.callback_url)), callback_of(self._world, task)
        head = (
            f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        if key := self._world.settings.hmac_key:
            stamp = str(int(time.time()))
            digest = hmac.digest(key.encode(), f"{task.task_id}.{stamp}".encode(), hashlib.sha256)
            signature = base64.b64encode(digest).decode()
            head += f"X-Webhook-Timestamp: {stamp}\r\nX-Webhook-Signature: {signature}\r\n"
        return f"{head}\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection to the one who is called back."""

    def __init__(self, poster: Poster) -> None:
        self._poster = poster
        self._held = b""
        self._sent: tuple[Task, int] | None = None

    def connection_made(self, transport: Any) -> None:  # uvloop has classes of its own
        self._transport = transport
        self.send_next()

    def send_next(self) -> None:
        """Send what waits, or wait."""
        if (turn := self._poster.take_next(self)) is not None:
            task, tries, request = turn
            self._sent = task, tries
            task.sent_at = time.monotonic()
            self._transport.write(request)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self._held[: end + 2])
        if len(self._held) < end + 4 + (int(found[1]) if found else 0):
            return
        status, self._held = int(self._held[9:12]), b""
        self._end(status)
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._poster.lost(self)
        self._end(0)

    def _end(self, status: int) -> None:
        if self._sent is not None:
            (task, tries), self._sent = self._sent, None
            self._poster.done(task, status, tries)
