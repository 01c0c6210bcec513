"""Servers that misbehave: raw sockets, plain or TLS, one behaviour per fault of a create.

A server counts what money hangs on: the POST bodies it has read to their last byte. Nothing here knows
aiohttp, so no client is protected from a broken answer by a well-behaved framework.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from types import TracebackType
from typing import Self

import trustme

TASK_ID = "task_0123456789abcdef"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


# --- the server ----------------------------------------------------------------------------------


class Peer:
    """One connection, seen from the server."""

    def __init__(
        self, server: Misbehaving, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.server = server
        self.number = number
        """Counts connections, from 1."""
        self._reader = reader
        self._writer = writer
        self._length = 0

    async def head(self) -> str:
        """Read and note the request's head."""
        raw = await self._reader.readuntil(b"\r\n\r\n")
        self.server.heads.append(raw.decode())
        found = _LENGTH.search(raw)
        self._length = int(found[1]) if found else 0
        return raw.decode()

    async def body(self) -> bytes:
        """Read the body to its last byte; from here on a task may exist."""
        body = await self._reader.readexactly(self._length)
        self.server.bodies.append(body)
        self.server.read_at.append(asyncio.get_running_loop().time())
        return body

    async def request(self) -> bytes:
        """Read head and body."""
        await self.head()
        return await self.body()

    async def send(self, raw: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(raw)
        await self._writer.drain()

    def close(self) -> None:
        """End the connection, and read what still comes."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def hang(self) -> None:
        """Do nothing until the server closes."""
        await self.server.closing.wait()


Behaviour = Callable[[Peer], Awaitable[None]]


class Misbehaving:
    """A server on a port of its own that treats every connection with one behaviour."""

    def __init__(self, behave: Behaviour, *, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        """The bodies read to their last byte."""
        self.read_at: list[float] = []
        """When, on the loop's clock, each of `bodies` was read."""
        self.connections = 0
        self.closing = asyncio.Event()
        self.may_answer = asyncio.Event()
        """For behaviours that hold their answer back until a test says so."""
        self._behave = behave
        self._tls = tls
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self._tls, backlog=512, limit=2**20
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.close()
        for serving in list(self._serving):
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def stop_listening(self) -> None:
        """Refuse every further connection."""
        self._server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(self, reader, writer, self.connections)
        serving = asyncio.get_running_loop().create_task(self._serve(peer, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, peer: Peer, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):  # the client gave up first
                await self._behave(peer)
        finally:
            if not writer.transport.is_closing():
                writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await asyncio.wait_for(writer.wait_closed(), 0.5)


# --- answers -------------------------------------------------------------------------------------


def answer(
    body: bytes | dict[str, object] = b"", status: int = 200, headers: str = "", *, length: int | None = None
) -> bytes:
    """Return the raw bytes of an answer; *length* lies about that of its body."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    declared = len(raw) if length is None else length
    lines = f"Content-Type: application/json\r\nContent-Length: {declared}\r\n{headers}"
    return f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode() + raw


def created(task_id: object = TASK_ID) -> dict[str, object]:
    """Return the envelope of a create that worked."""
    return {"code": 200, "msg": "success", "data": {"taskId": task_id}}


def refused(code: int, message: str = "no") -> dict[str, object]:
    """Return the envelope of a create that the service refused."""
    return {"code": code, "msg": message, "data": None}


def html(status: int) -> bytes:
    """Return what a gateway in front of the service says."""
    return answer(b"<html><body><h1>Bad gateway</h1></body></html>", status)


def bomb(prefix: bytes = b"", size: int = 16 * 2**20) -> bytes:
    """Return a small answer that unpacks to *size* bytes."""
    packed = gzip.compress(prefix + b"0" * size, compresslevel=1)
    return answer(packed, headers="Content-Encoding: gzip\r\n")


# --- behaviours ----------------------------------------------------------------------------------


def says(*raw: bytes) -> Behaviour:
    """Read the request, answer, close; the n-th connection gets the n-th answer, or the last one."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw[min(peer.number, len(raw)) - 1])

    return behave


def breaks_off(raw: bytes, end: str) -> Behaviour:
    """Read the request, send *raw*, then ``close``, ``reset`` or ``hang``."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        if raw:
            await peer.send(raw)
        if end == "reset":
            await asyncio.sleep(0.02)  # let what was sent arrive: a reset overtakes it
            peer.reset()
        elif end == "hang":
            await peer.hang()

    return behave


def trickles(raw: bytes, pause_s: float) -> Behaviour:
    """Read the request and send *raw* a byte at a time."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        for byte in raw:
            await peer.send(bytes([byte]))
            await asyncio.sleep(pause_s)

    return behave


async def closes_on_accept(peer: Peer) -> None:
    """Close before anything is read."""


async def resets_on_accept(peer: Peer) -> None:
    """Reset before anything is read."""
    peer.reset()


async def resets_after_head(peer: Peer) -> None:
    """Reset once the head is read, the body unread."""
    await peer.head()
    peer.reset()


async def never_reads(peer: Peer) -> None:
    """Accept and leave everything lie."""
    await peer.hang()


def answers_early(raw: bytes) -> Behaviour:
    """Answer after the head, then read what still comes without caring for it."""

    async def behave(peer: Peer) -> None:
        await peer.head()
        await peer.send(raw)
        while await peer._reader.read(2**16):
            pass

    return behave


def answers_unasked(raw: bytes) -> Behaviour:
    """Answer before a single byte of the request has come, then read all the same."""

    async def behave(peer: Peer) -> None:
        await peer.send(raw)
        await peer.request()

    return behave


# --- certificates --------------------------------------------------------------------------------


@cache
def authority() -> trustme.CA:
    """Return the one authority that the tests' clients trust."""
    return trustme.CA()


@cache
def trusting() -> ssl.SSLContext:
    """Return what a client needs that trusts `authority` and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


@cache
def certified(kind: str = "good") -> ssl.SSLContext:
    """Return the TLS of a server: good, untrusted, expired, old, for another host, or asking for ours."""
    now = datetime.now(UTC)
    if kind == "untrusted":
        certificate = trustme.CA().issue_cert("127.0.0.1")
    elif kind == "other host":
        certificate = authority().issue_cert("otherhost.example")
    elif kind == "expired":
        past = now - timedelta(days=2), now - timedelta(days=1)
        certificate = authority().issue_cert("127.0.0.1", not_before=past[0], not_after=past[1])
    else:
        certificate = authority().issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if kind.startswith("asks"):
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    if kind == "asks 1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if kind == "old":
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


# --- places where nothing answers ----------------------------------------------------------------


@contextmanager
def nobody() -> Iterator[int]:
    """Yield a port that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """Yield a port whose queue is full, so that the kernel drops every further SYN."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for filler in fillers:
                filler.close()
