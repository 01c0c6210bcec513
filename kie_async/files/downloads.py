"""Downloads result files: from public hosts only, without the API key, each whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import random
import socket
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from .._background import BackgroundTasks
from .._validation import check_task_id, is_ip_address, is_loopback
from ..config import Network
from ..errors import DownloadFailed, ResultExpired, TransportError
from ..http.backoff import retry
from ..http.transport import (
    CONNECT_TIMEOUT_S,
    EXCHANGE_FAILURES,
    close_http_session,
    close_http_session_nowait,
    describe_failure,
    make_connector,
    open_http_session,
)
from .media_types import UNKNOWN_ENDING, sniff
from .part_file import PartFile, find_complete

MAX_DOWNLOAD_BYTES = 4 * 1024**3

STALL_TIMEOUT_S = 60.0

FETCH_TIMEOUT_S = 3600.0

_MAX_AT_ONCE = 8

_MAX_REDIRECTS = 3

_BLOCK_BYTES = 262_144

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_GONE_STATUSES = frozenset({403, 404, 410})

_RETRY_STATUSES = frozenset({408, 425, 429})

_UNICAST = ipaddress.ip_network("2000::/3")

_INTERNAL_NETWORKS = (
    ipaddress.ip_network("2002::/16"),  # 6to4, which may wrap any IPv4 address
    ipaddress.ip_network("192.0.0.0/24"),  # Oracle's metadata service lies here
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's
)

# No API key here: result files lie on hosts that have no business with it.
_REQUEST_HEADERS = {"Accept-Encoding": "identity"}

# Refused: media gain nothing by compression, a zip bomb gains much, and a cut stream would go unnoticed.
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})

_T = TypeVar("_T")


_is_named_host: ContextVar[bool] = ContextVar("_is_named_host", default=False)
"""Whether the connection that the running task asks for leads to a host named in `Network.allow_http_to`."""


class _NotPublicError(OSError):
    """The address is not public, so no connection is opened to it."""


class Downloads:
    """Downloads result files into folders; their names are made here, never by the server."""

    def __init__(
        self,
        *,
        allow_loopback: bool,
        rng: random.Random,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
        max_bytes: int = MAX_DOWNLOAD_BYTES,
        network: Network = Network(),  # noqa: B008  (frozen)
    ) -> None:
        self._network = network
        self._allow_loopback = allow_loopback
        self._rng = rng
        self._max_bytes = max_bytes
        # Not the connector's own limit: aiohttp's timeouts would run while a download waits for its turn.
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._running = BackgroundTasks("kie_async download")
        self._http = open_http_session(
            make_connector(network, limit=_MAX_AT_ONCE, socket_factory=self._open_socket),
            timeout=aiohttp.ClientTimeout(
                total=fetch_timeout_s, sock_connect=connect_timeout_s, sock_read=stall_timeout_s
            ),
        )

    async def aclose(self) -> None:
        """Close all connections; downloads under way fail."""
        # Closing the connections alone would leave downloads waiting for their bodies.
        await self._running.aclose()
        await close_http_session(self._http)

    def close_nowait(self) -> None:
        """Close without an event loop."""
        close_http_session_nowait(self._http)

    async def download(self, urls: Sequence[str], folder: str | Path, *, task_id: str) -> list[Path]:
        """Download all *urls* into *folder*; see `KieSession.download`.

        A file that fails does not keep the others from being saved; then its error is raised.

        Raises:
            InvalidRequest: The task id is not one of the service's.
            ResultExpired: The service no longer has a file.
            DownloadFailed: A file could not be fetched or written.
        """
        check_task_id(task_id)
        folder = Path(folder)
        await _on_disk(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
        fetches = [
            self._running.spawn(self._fetch_unless_there(url, folder, f"{task_id}-{at}"))
            for at, url in enumerate(urls, start=1)
        ]
        paths: list[Path] = []
        for outcome in await asyncio.gather(*fetches, return_exceptions=True):
            if isinstance(outcome, asyncio.CancelledError):
                raise DownloadFailed("the session closed before the file was complete")
            if isinstance(outcome, BaseException):
                raise outcome
            paths.append(outcome)
        return paths

    async def _fetch_unless_there(self, url: str, folder: Path, name: str) -> Path:
        # A file has its name only once it is complete, so one that lies there need not be fetched again.
        there = await _on_disk(folder, find_complete, folder, name, url)
        if there is not None:
            return there
        try:
            return await retry(lambda: self._fetch(url, folder, name), rng=self._rng)
        except TransportError as exc:
            failure = str(exc)
        raise DownloadFailed(failure)

    async def _fetch(self, url: str, folder: Path, name: str) -> Path:
        async with self._slots:
            return await self._fetch_once(url, folder, name)

    async def _fetch_once(self, url: str, folder: Path, name: str) -> Path:
        """Send one request and save its body.

        Raises:
            TransportError: The next time it may work.
            DownloadFailed: It will not.
        """
        try:
            return await self._follow(_read_url(url), folder, name)
        except (TransportError, DownloadFailed) as exc:
            raise type(exc)(f"{name}: {exc}") from None
        except EXCHANGE_FAILURES as exc:
            kind = DownloadFailed if self._http.closed or _is_hopeless(exc) else TransportError
            failure = kind(f"{name}: {describe_failure(exc)}")
        # Raised outside the except block: aiohttp's error would carry the URL along in its context.
        raise failure

    async def _follow(self, url: URL, folder: Path, name: str) -> Path:
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_url(url)
            _is_named_host.set(self._network.allows_http(url.host or ""))
            proxy = self._network.http_proxy_for(str(url))
            async with self._http.get(
                url, allow_redirects=False, headers=_REQUEST_HEADERS, proxy=proxy
            ) as answer:
                target = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or not target:
                    _check_status(answer.status)
                    return await self._save(answer, folder, name)
                url = url.join(_read_url(target))
        raise DownloadFailed(f"redirected more than {_MAX_REDIRECTS} times")

    def _check_url(self, url: URL) -> None:
        host = url.host or ""
        is_named = self._network.allows_http(host)
        is_ours = url.scheme == "http" and (is_named or (self._allow_loopback and is_loopback(str(url))))
        if url.scheme != "https" and not is_ours:
            raise DownloadFailed("the address is not https")
        if url.user is not None or url.password is not None:
            raise DownloadFailed("the address carries a user name or password")
        # A proxy connects for us: of where it leads to only this is known here.
        if self._network.proxy and not is_named and is_ip_address(host) and not self._may_connect(host):
            raise DownloadFailed(f"{host} is not a public address")

    def _may_connect(self, address: str) -> bool:
        return may_connect(address, allow_loopback=self._allow_loopback) or self._network.allows_address(
            address
        )

    def _open_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Open a socket to a public address only. Every connection passes here, after names are resolved."""
        # Not checked by the URL: a name may resolve to another address right after the check.
        family, kind, protocol, _, where = address
        if not _is_named_host.get() and not self._may_connect(str(where[0])):
            raise _NotPublicError(errno.EACCES, "not a public address")
        return socket.socket(family=family, type=kind, proto=protocol)

    async def _save(self, answer: aiohttp.ClientResponse, folder: Path, name: str) -> Path:
        """Write a body to disk and return where."""
        if answer.headers.get("Content-Encoding", "").strip().lower() in _COMPRESSED:
            raise DownloadFailed("the file came packed, which was not asked for")
        part = PartFile(folder, name)
        try:
            await _on_disk(folder, part.open)
            self._check_size(answer.content_length or 0)
            while block := await _read_block(answer.content):
                self._check_size(part.size + len(block))
                await _on_disk(folder, part.write, block)
            kind = sniff(part.head)
            if not part.size:
                raise TransportError("the file is empty")
            if kind is None and answer.content_type == "text/html":
                raise TransportError("a web page came in place of the file")
            return await _on_disk(folder, part.seal, name + (kind.ending if kind else UNKNOWN_ENDING))
        finally:
            part.discard()

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise DownloadFailed(f"the file has more than {self._max_bytes} bytes")


def may_connect(address: str, *, allow_loopback: bool) -> bool:
    """Return whether an IP address lies on the public internet, or on this machine if that is allowed.

    Of IPv6 only global unicast is public: mapped, translated and tunnelled IPv4 could lead anywhere.
    """
    try:
        host = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if host.is_loopback:
        return allow_loopback
    if host.version == 6 and host not in _UNICAST:
        return False
    return host.is_global and not host.is_multicast and not any(host in net for net in _INTERNAL_NETWORKS)


def _is_hopeless(exc: Exception) -> bool:
    """Return whether trying again is useless: a bad URL, a bad certificate or a private address."""
    return isinstance(exc, ValueError) or isinstance(getattr(exc, "os_error", None), _NotPublicError)


def _read_url(text: str) -> URL:
    """Return a URL as it was written, where that can be sent: a signature may cover every letter."""
    try:
        return URL(text, encoded=text.isascii() and " " not in text)
    except ValueError:
        raise DownloadFailed("the address is not a URL") from None


def _check_status(status: int) -> None:
    if status in _GONE_STATUSES:
        raise ResultExpired(f"the service no longer has the file (HTTP {status})")
    if status >= 500 or status in _RETRY_STATUSES:
        raise TransportError(f"HTTP {status}")
    if status != 200:
        raise DownloadFailed(f"HTTP {status}")


async def _read_block(content: aiohttp.StreamReader) -> bytes:
    """Return the next part of a body, large enough to be worth a trip to the disk; b"" at the end."""
    block = bytearray()
    while len(block) < _BLOCK_BYTES and (chunk := await content.readany()):
        block += chunk
    return bytes(block)


async def _on_disk(folder: Path, work: Callable[..., _T], *args: object) -> _T:
    """Do *work* in a thread. A cancel is raised after it is done, so no two threads ever touch one file.

    Raises:
        DownloadFailed: The disk is full, or the folder is not ours to write.
    """
    job = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        await asyncio.wait([job])
    except asyncio.CancelledError:
        await asyncio.wait([job])
        job.exception()  # retrieved, so that asyncio does not log it as never retrieved
        raise
    try:
        return job.result()
    except OSError as exc:
        raise DownloadFailed(f"cannot write to {folder}: {exc.strerror}") from None
