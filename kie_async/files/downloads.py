"""Downloads result files: from public hosts only, without the API key, each whole or not at all."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import attrs
from yarl import URL

from .._background import BackgroundTasks
from .._validation import check_task_id, is_ip_address, is_loopback
from ..config import Network
from ..errors import (
    ApiError,
    AuthenticationError,
    DownloadFailed,
    RateLimited,
    ResultExpired,
    ServerError,
    TransportError,
)
from ..http.backoff import MAX_ATTEMPTS, delays
from ..http.transport import (
    CONNECT_TIMEOUT_S,
    EXCHANGE_FAILURES,
    Transport,
    close_http_session,
    close_http_session_nowait,
    describe_failure,
    make_connector,
    open_http_session,
    resolve,
)
from ..wire.requests import encode_fresh_link
from ..wire.responses import decode_fresh_link
from .addresses import NotPublicError, may_connect
from .media_types import ending_for_type, sniff
from .names import candidates
from .part_file import PartFile, find_complete
from .saved_files import SavedFiles
from .transfer import LinkRefused, Transfer

RESULT_HOST = "tempfile.aiquickdraw.com"
"""Where most results come from."""

MAX_DOWNLOAD_BYTES = 4 * 1024**3

STALL_TIMEOUT_S = 60.0

FETCH_TIMEOUT_S = 3600.0

_TIMEOUT = aiohttp.ClientTimeout(
    total=FETCH_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=STALL_TIMEOUT_S
)

_MAX_AT_ONCE = 8

_MAX_REDIRECTS = 3

_FOLDERS_KEPT = 16

_BLOCK_BYTES = 262_144

# A transfer that came on by so much has its attempts anew: a large file over a bad line needs many.
_PROGRESS_BYTES = 1024**2

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_ONE_FILE = "the file"

_T = TypeVar("_T")


_is_named_host: ContextVar[bool] = ContextVar("_is_named_host", default=False)
"""Whether the connection that the running task asks for leads to a host named in `Network.allow_http_to`."""


@attrs.frozen
class _Target:
    """Where one file of a task goes."""

    saved: SavedFiles
    folder: Path
    task_id: str
    at: int
    """Its number among the files of its task, from 1."""
    count: int
    name: str | None
    """What the caller would have it named; None for `plain_name`."""

    @property
    def plain_name(self) -> str:
        """Return the name that needs no list, without its ending."""
        return f"{self.task_id}-{self.at}"

    def find(self, url: str) -> Path | None:
        """Return the complete file, whichever name it got in a former run.

        Raises:
            OSError: The folder cannot be read.
        """
        if (found := self.saved.find(self.task_id, self.at)) is not None:
            return found
        plain = find_complete(self.folder, self.plain_name, url)
        return None if plain is None or self.saved.is_of_another(plain.name, self.task_id) else plain

    def claim(self, ending: str) -> str:
        """Return the name it gets.

        Raises:
            OSError: The folder cannot be written.
        """
        if self.name is None:
            return self.plain_name + ending
        names = candidates(self.name, self.task_id, self.at, self.count)
        return self.saved.claim((name + ending for name in names), self.task_id, self.at)


class CannotWrite(DownloadFailed):
    """A file could not be written: the disk is full, or the folder is not ours."""

    def __init__(self, message: str, why: str = "", number: int | None = None) -> None:
        super().__init__(message)
        self.args = (message, why, number)
        self.why = why
        self.number = number
        """The ``errno``."""

    def __str__(self) -> str:
        return str(self.args[0])


class Downloads:
    """Downloads result files into folders, under names made here and never by the server, or as bytes.

    *api* is asked once for a fresh link where a host has no file for the first one.
    """

    def __init__(
        self,
        *,
        allow_loopback: bool,
        rng: random.Random,
        timeout: aiohttp.ClientTimeout = _TIMEOUT,
        max_bytes: int = MAX_DOWNLOAD_BYTES,
        network: Network = Network(),  # noqa: B008  (frozen)
        api: Transport | None = None,
    ) -> None:
        self._network = network
        self._allow_loopback = allow_loopback
        self._rng = rng
        self._max_bytes = max_bytes
        self._saved: dict[str, SavedFiles] = {}
        self._api = api
        # Not the connector's own limit: aiohttp's timeouts would run while a download waits for its turn.
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._running = BackgroundTasks("kie_async download")
        self._http = open_http_session(
            make_connector(network, limit=_MAX_AT_ONCE, socket_factory=self._open_socket),
            timeout=timeout,
        )

    async def aclose(self) -> None:
        """Close all connections; downloads under way fail."""
        # Closing the connections alone would leave downloads waiting for their bodies.
        await self._running.aclose()
        await close_http_session(self._http)

    def close_nowait(self) -> None:
        """Close without an event loop."""
        close_http_session_nowait(self._http)

    async def download(
        self, urls: Sequence[str], folder: str | Path, *, task_id: str, name: str | None = None
    ) -> list[Path]:
        """Download all *urls* into *folder*; see `KieSession.download`.

        A file that fails does not keep the others from being saved; then its error is raised. Of a *name*,
        which is safe as it is, another task's file may be the owner: then it is not touched.

        Raises:
            InvalidRequest: The task id is not one of the service's.
            ResultExpired: The service no longer has a file.
            CannotWrite: A file could not be written.
            DownloadFailed: It could not be fetched.
        """
        check_task_id(task_id)
        folder = Path(folder)
        await _on_disk(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
        saved = self._saved_in(folder)
        targets = [_Target(saved, folder, task_id, at, len(urls), name) for at in range(1, len(urls) + 1)]
        work = zip(urls, targets, strict=True)
        return await self._until_closed([self._save_unless_there(url, target) for url, target in work])

    def _saved_in(self, folder: Path) -> SavedFiles:
        """Return what knows the files of a folder; of the last few folders it is kept."""
        key = os.path.abspath(folder)
        saved = self._saved.pop(key, None) or SavedFiles(folder)
        self._saved[key] = saved
        if len(self._saved) > _FOLDERS_KEPT:
            del self._saved[next(iter(self._saved))]
        return saved

    async def find_refusal(self, host: str) -> str:
        """Return why no file may be fetched from a host, and the way round it; "" if one may.

        A proxy finds the address by itself.

        Raises:
            OSError: It cannot be resolved.
        """
        if self._network.proxy is not None or self._network.allows_http(host):
            return ""
        addresses = [host] if is_ip_address(host) else await resolve(self._network, host)
        if not addresses or any(map(self._may_connect, addresses)):
            return ""
        return NotPublicError(addresses[0]).advice()

    async def read(self, url: str, *, max_bytes: int) -> bytes:
        """Return a file as bytes; see `KieSession.read`.

        Raises:
            ResultExpired: The service no longer has the file.
            DownloadFailed: It could not be fetched, or is too large.
        """
        (content,) = await self._until_closed([self._read(url, max_bytes)])
        return content

    async def stream(self, url: str) -> AsyncGenerator[bytes, None]:
        """Yield a file block by block; see `KieSession.stream`.

        Raises:
            ResultExpired: The service no longer has the file.
            DownloadFailed: It could not be fetched to its end.
        """
        given = 0
        async with aclosing(self._blocks(Transfer(url), _ONE_FILE, self._max_bytes)) as blocks:
            # Step by step in tasks of our own: closing a connection wakes nobody who waits for its bytes.
            while placed := (await self._until_closed([_next(blocks)]))[0]:
                offset, block = placed
                if offset != given:
                    raise DownloadFailed("the file broke off, and its host does not send the rest alone")
                given += len(block)
                yield block

    async def _until_closed(self, work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
        """Do all of *work* side by side, and then raise the first error; it ends when the session closes."""
        done: list[_T] = []
        running = [self._running.spawn(each) for each in work]
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(outcome, asyncio.CancelledError):
                raise DownloadFailed("the session closed before the file was complete")
            if isinstance(outcome, BaseException):
                raise outcome
            done.append(outcome)
        return done

    # --- where a file goes -----------------------------------------------------------------------

    async def _save_unless_there(self, url: str, target: _Target) -> Path:
        # A file has its name only once it is complete, so one that lies there need not be fetched again.
        return await _on_disk(target.folder, target.find, url) or await self._save(url, target)

    async def _save(self, url: str, target: _Target) -> Path:
        """Write a file to disk and return where."""
        folder, name = target.folder, target.plain_name
        transfer, part = Transfer(url), PartFile(folder, name)
        try:
            async with aclosing(self._blocks(transfer, name, self._max_bytes)) as blocks:
                async for offset, block in blocks:
                    if not offset:
                        await _on_disk(folder, part.begin)
                    await _on_disk(folder, part.write, block)
            kind = sniff(part.head)
            ending = kind.ending if kind else ending_for_type(transfer.content_type)
            return await _on_disk(folder, lambda: part.seal(target.claim(ending)))
        finally:
            part.discard()

    async def _read(self, url: str, max_bytes: int) -> bytes:
        content = bytearray()
        async with aclosing(self._blocks(Transfer(url), _ONE_FILE, max_bytes)) as blocks:
            async for offset, block in blocks:
                del content[offset:]
                content += block
        return bytes(content)

    # --- attempts --------------------------------------------------------------------------------

    async def _blocks(
        self, transfer: Transfer, name: str, max_bytes: int
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield a file, each block with its position; one at 0 after others begins the file anew.

        Raises:
            ResultExpired: The service no longer has the file.
            DownloadFailed: It could not be fetched, four times in a row without progress, or never can be.
        """
        failures, best, waits = 0, 0, delays(self._rng)
        while True:
            try:
                async with self._slots, aclosing(self._attempt(transfer, max_bytes)) as blocks:
                    async for placed in blocks:
                        yield placed
                return
            except (TransportError, DownloadFailed) as exc:
                failure: TransportError | DownloadFailed | None = exc
            except LinkRefused as exc:
                failure, refused = None, exc.status
            # Outside the except block: what is raised here must not carry the old error in its context.
            failure = failure or await self._renew(transfer, refused)
            if failure is None:
                continue
            if transfer.received - best >= _PROGRESS_BYTES:
                failures, best, waits = 0, transfer.received, delays(self._rng)
            failures += 1
            if isinstance(failure, DownloadFailed):
                raise type(failure)(f"{name}: {failure}")
            if failures == MAX_ATTEMPTS:
                raise DownloadFailed(f"{name}: {failure}")
            await asyncio.sleep(next(waits))

    async def _renew(self, transfer: Transfer, status: int) -> TransportError | ResultExpired | None:
        """Change how a file is asked for that its host refused; None if there is a way left, else why not."""
        if status == 403 and not transfer.is_as_from_page:
            transfer.is_as_from_page = True
            return None
        gone = f"the service no longer has the file (HTTP {status})"
        if self._api is None:
            return ResultExpired(gone)
        if transfer.is_fresh_link:
            return ResultExpired(f"{gone}, under a fresh link too")
        try:
            answer = await self._api.send(encode_fresh_link(transfer.url))
            transfer.url, transfer.is_fresh_link = decode_fresh_link(answer), True
        except TransportError as exc:
            return TransportError(f"HTTP {status}, and no fresh link came: {exc}")
        except ApiError as exc:
            if _may_pass(exc):
                return TransportError(f"HTTP {status}, and no fresh link came: code {exc.code}")
            return ResultExpired(f"{gone}; a fresh link was refused (code {exc.code})")
        return None

    async def _attempt(self, transfer: Transfer, max_bytes: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Send one request and yield its body.

        Raises:
            LinkRefused: The host has no file for this link, or not for us.
            TransportError: The next time it may work.
            DownloadFailed: It will not.
        """
        try:
            async with self._respond(transfer) as answer:
                transfer.accept(answer.status, answer.headers, answer.content_length)
                transfer.content_type = answer.content_type
                _check_size(transfer.total or 0, max_bytes)
                while block := await _read_block(answer.content):
                    _check_size(transfer.received + len(block), max_bytes)
                    if not transfer.received and answer.content_type == "text/html" and sniff(block) is None:
                        raise TransportError("a web page came in place of the file")
                    transfer.received += len(block)
                    yield transfer.received - len(block), block
                transfer.check_end()
            return
        except EXCHANGE_FAILURES as exc:
            kind = DownloadFailed if self._http.closed or _is_hopeless(exc) else TransportError
            failure = kind(_describe(exc))
        # Raised outside the except block: aiohttp's error would carry the URL along in its context.
        raise failure

    @asynccontextmanager
    async def _respond(self, transfer: Transfer) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for a file, or for the rest of it, where redirects lead to; every hop is checked."""
        url = _read_url(transfer.url)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_url(url)
            _is_named_host.set(self._network.allows_http(url.host or ""))
            proxy = self._network.http_proxy_for(str(url))
            async with self._http.get(
                url, allow_redirects=False, headers=transfer.headers(), proxy=proxy
            ) as answer:
                target = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or not target:
                    yield answer
                    return
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
            raise DownloadFailed(NotPublicError(host).advice())

    def _may_connect(self, address: str) -> bool:
        return may_connect(address, allow_loopback=self._allow_loopback, allow=self._network.allow)

    def _open_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Open a socket to a public address only. Every connection passes here, after names are resolved."""
        # Not checked by the URL: a name may resolve to another address right after the check.
        family, kind, protocol, _, where = address
        if not _is_named_host.get() and not self._may_connect(str(where[0])):
            raise NotPublicError(str(where[0]))
        return socket.socket(family=family, type=kind, proto=protocol)


async def _next(blocks: AsyncGenerator[_T, None]) -> _T | None:
    return await anext(blocks, None)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise DownloadFailed(f"the file has more than {most} bytes")


def _may_pass(error: ApiError) -> bool:
    """Return whether a refusal says nothing about the file: a busy service, or a page in front of it."""
    is_page = isinstance(error, AuthenticationError) and error.http_status == 403
    return is_page or isinstance(error, RateLimited | ServerError)


def _is_hopeless(exc: Exception) -> bool:
    """Return whether trying again is useless: a bad URL, a bad certificate or a private address."""
    return isinstance(exc, ValueError) or isinstance(getattr(exc, "os_error", None), NotPublicError)


def _describe(exc: Exception) -> str:
    if isinstance(exc, aiohttp.ClientConnectorError) and isinstance(exc.os_error, NotPublicError):
        return f"cannot connect to {exc.host}:{exc.port} ({exc.os_error.advice()})"
    return describe_failure(exc)


def _read_url(text: str) -> URL:
    """Return a URL as it was written, where that can be sent: a signature may cover every letter."""
    try:
        return URL(text, encoded=text.isascii() and " " not in text)
    except ValueError:
        raise DownloadFailed("the address is not a URL") from None


async def _read_block(content: aiohttp.StreamReader) -> bytes:
    """Return the next part of a body, large enough to be worth a trip to the disk; b"" at the end."""
    block = bytearray()
    try:
        while len(block) < _BLOCK_BYTES and (chunk := await content.readany()):
            block += chunk
    except EXCHANGE_FAILURES:
        if not block:  # else what has come is good, and the next read fails again
            raise
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
        why = exc.strerror or str(exc)
        raise CannotWrite(f"cannot write to {folder}: {why}", why, exc.errno) from None
