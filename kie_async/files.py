"""Media in and out: local files to the service, results to disk before they expire."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import aiohttp
import attrs

from . import jsontext, wire
from .checks import check_url
from .errors import (
    ApiError,
    AuthenticationError,
    DownloadFailed,
    InvalidRequest,
    ResultExpired,
    ServerError,
    TransportError,
    UploadRefused,
)
from .inputs import TaskRequest
from .media import HEAD_BYTES, MAX_BYTES, MediaKind, sniff
from .models import UploadedFile
from .transport import CONNECT_TIMEOUT_S, FAILURES, Secret, Transport, client_session, delays, describe

UPLOAD_FOLDER = "kie_async"
UPLOAD_TIMEOUT_S = 300.0
MAX_DOWNLOAD_BYTES = 4 * 1024**3
_REUSE_UPLOAD_S = 48 * 3600.0  # the service keeps an upload for 72 hours
_ATTEMPTS = 4
_GONE = frozenset({403, 404, 410})
_TRANSLATED = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "2002::/16"))
_T = TypeVar("_T")


@attrs.frozen
class _Source:
    """A checked local file, or bytes."""

    open: Callable[[], BinaryIO | bytes]
    kind: MediaKind
    key: tuple[str, int, int] | None
    """What tells this version of the file from every other; None for bytes."""


class Files:
    """Uploads each version of a file once and downloads results; the key goes to the upload host only."""

    def __init__(self, upload_url: str, key: Secret, *, allow_private: bool, rng: random.Random) -> None:
        self._transport = Transport(upload_url, key, connections=4, timeout_s=UPLOAD_TIMEOUT_S)
        self._allow_private = allow_private
        self._rng = rng
        self._uploads: dict[tuple[str, int, int], tuple[float, asyncio.Task[UploadedFile]]] = {}
        self._http = client_session(
            aiohttp.TCPConnector(limit=8, socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=60.0),
        )

    async def aclose(self) -> None:
        """Close all connections; uploads under way are given up."""
        running = [upload for _, upload in self._uploads.values()]
        for upload in running:
            upload.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._transport.aclose()
        await self._http.close()

    # --- in ------------------------------------------------------------------------------------

    async def with_uploads(self, wish: TaskRequest) -> TaskRequest:
        """Return *wish* with the URL of an upload in place of every `Path` in its input.

        Raises:
            InvalidRequest: A file is missing, too large or of another kind; the message names the field.
        """
        if not any(isinstance(value, Path | list | tuple) for value in wish.input.values()):
            return wish
        fields = {name: await self._uploaded(name, value) for name, value in wish.input.items()}
        return attrs.evolve(wish, input=fields)

    async def _uploaded(self, name: str, value: Any) -> Any:
        if isinstance(value, Path):
            try:
                return (await self.upload(value)).url
            except InvalidRequest as exc:
                reason = str(exc)
            raise InvalidRequest(f"{name}: {reason}")
        if isinstance(value, list | tuple) and any(isinstance(item, Path) for item in value):
            return [await self._uploaded(f"{name}[{index}]", item) for index, item in enumerate(value)]
        return value

    async def upload(self, file: str | Path | bytes) -> UploadedFile:
        """Upload a file, bytes, or let the service fetch a URL; see `KieSession.upload`."""
        if isinstance(file, str) and "://" in file:
            check_url("file", file)
            return await self._trying(lambda: self._send_url(file))
        source = await asyncio.to_thread(_check_source, file if isinstance(file, bytes) else Path(file))
        if source.key is None:
            return await self._trying(lambda: self._send(source))
        now = asyncio.get_running_loop().time()
        begun, upload = self._uploads.get(source.key, (0.0, None))
        if upload is None or now - begun > _REUSE_UPLOAD_S or _has_failed(upload):
            upload = asyncio.create_task(self._trying(lambda: self._send(source)), name="kie_async upload")
            self._uploads[source.key] = (now, upload)
        return await asyncio.shield(upload)

    async def _send(self, source: _Source) -> UploadedFile:
        """Upload once. The name is new each time: the service caches by name and mixes up equal ones."""
        content = await asyncio.to_thread(source.open)
        try:
            name = secrets.token_hex(16) + source.kind.ending
            form = aiohttp.FormData()
            form.add_field("file", content, filename=name, content_type=source.kind.mime_type)
            form.add_field("uploadPath", UPLOAD_FOLDER)
            form.add_field("fileName", name)
            request = wire.WireRequest(method="POST", path="/api/file-stream-upload")
            return _decode_upload(await self._transport.send(request, form=form))
        finally:
            if not isinstance(content, bytes):
                await asyncio.to_thread(content.close)

    async def _send_url(self, url: str) -> UploadedFile:
        ending = Path(urlsplit(url).path).suffix[:8]
        name = secrets.token_hex(16) + (ending if ending[1:].isalnum() else "")
        fields = {"fileUrl": url, "uploadPath": UPLOAD_FOLDER, "fileName": name}
        request = wire.WireRequest(method="POST", path="/api/file-url-upload", body=jsontext.write(fields))
        return _decode_upload(await self._transport.send(request))

    async def _trying(self, move: Callable[[], Awaitable[_T]]) -> _T:
        """Move a file, again if that may help: uploads and downloads cost nothing."""
        waits = delays(self._rng)
        for _ in range(_ATTEMPTS - 1):
            try:
                return await move()
            except (TransportError, ServerError):
                await asyncio.sleep(next(waits))
        return await move()

    # --- out -----------------------------------------------------------------------------------

    async def download(self, urls: Sequence[str], folder: str | Path, *, task_id: str) -> list[Path]:
        """Fetch all *urls* into *folder*; see `KieSession.download`."""
        folder = Path(folder)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        names = [f"{task_id}-{number}" for number in range(1, len(urls) + 1)]
        fetches = [self._fetch_once(url, folder, name) for url, name in zip(urls, names, strict=True)]
        return list(await asyncio.gather(*fetches))

    async def _fetch_once(self, url: str, folder: Path, name: str) -> Path:
        """Return the file, fetched unless it lies there already: it has its name only when complete."""
        there = await asyncio.to_thread(lambda: sorted(folder.glob(name + ".*")))
        if there:
            return there[0]
        failure = ""
        try:
            return await self._trying(lambda: self._fetch(url, folder, name))
        except TransportError as exc:
            failure = str(exc)
        raise DownloadFailed(failure)

    async def _fetch(self, url: str, folder: Path, name: str) -> Path:
        self._check_download_url(url)
        part = folder / f".{name}.{secrets.token_hex(4)}.part"
        failure = ""
        try:
            async with self._http.get(url, max_redirects=3) as answer:
                _check_status(answer.status)
                kind = await _stream_to(part, answer.content)
            final = folder / (name + (kind.ending if kind else ".bin"))
            await asyncio.to_thread(part.rename, final)
        except FAILURES as exc:
            failure = describe(exc)
        else:
            return final
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        raise TransportError(f"download of {name}: {failure}")

    def _check_download_url(self, url: str) -> None:
        if not self._allow_private and not url.startswith("https://"):
            raise DownloadFailed("a result URL is not https; see the record's urls")

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Open a socket to the public internet only: a forged URL must not reach the inside of a network."""
        family, kind, protocol, _, where = address
        host = ipaddress.ip_address(str(where[0]).partition("%")[0])
        if not self._allow_private and not _is_public(host):
            raise OSError(f"refused to connect to the private address {host}")
        return socket.socket(family=family, type=kind, proto=protocol)


def _is_public(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            return _is_public(host.ipv4_mapped)
        if any(host in net for net in _TRANSLATED):
            return False
    return host.is_global and not host.is_multicast


def _check_source(file: Path | bytes) -> _Source:
    """Check a file before anything is sent.

    Raises:
        InvalidRequest: It is missing, empty, too large or of another kind.
    """
    if isinstance(file, bytes):
        return _Source(lambda: file, _check_kind("bytes", file[:HEAD_BYTES], len(file)), None)
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
            status = os.fstat(opened.fileno())
    except OSError as exc:
        raise InvalidRequest(f"cannot read {file}: {exc.strerror}") from None
    kind = _check_kind(str(file), head, status.st_size)
    key = (str(file.resolve()), status.st_mtime_ns, status.st_size)
    return _Source(lambda: file.open("rb"), kind, key)


def _check_kind(name: str, head: bytes, size: int) -> MediaKind:
    kind = sniff(head)
    if kind is None or kind not in MAX_BYTES:
        raise InvalidRequest(f"{name} is neither JPEG, PNG, WebP nor MP3, WAV, AAC, M4A, OGG by its content")
    if size > MAX_BYTES[kind]:
        limit = MAX_BYTES[kind] // 1_000_000
        raise InvalidRequest(f"{name} has {size / 1e6:.1f} MB; a file of this kind may have {limit} MB")
    return kind


def _decode_upload(response: wire.WireResponse) -> UploadedFile:
    try:
        return wire.decode_upload(response)
    except (AuthenticationError, ServerError):
        raise
    except ApiError as exc:
        raise UploadRefused(str(exc)) from None


def _has_failed(upload: asyncio.Task[UploadedFile]) -> bool:
    return upload.done() and (upload.cancelled() or upload.exception() is not None)


def _check_status(status: int) -> None:
    if status in _GONE:
        raise ResultExpired(f"the service no longer has the file (HTTP {status})")
    if status != 200:
        raise ConnectionError(0, f"HTTP {status}")


async def _stream_to(part: Path, content: aiohttp.StreamReader) -> MediaKind | None:
    """Write a body to a new file and return its kind.

    Raises:
        DownloadFailed: It is empty or endless.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    out = await asyncio.to_thread(lambda: os.fdopen(os.open(part, flags, 0o600), "wb"))
    head, size = b"", 0
    try:
        async for chunk in content.iter_chunked(262_144):
            head = head or chunk[:HEAD_BYTES]
            size += len(chunk)
            if size > MAX_DOWNLOAD_BYTES:
                raise DownloadFailed(f"the file has more than {MAX_DOWNLOAD_BYTES} bytes")
            await asyncio.to_thread(out.write, chunk)
        await asyncio.to_thread(_seal, out)
    finally:
        await asyncio.to_thread(out.close)
    if not size:
        raise DownloadFailed("the file is empty")
    return sniff(head)


def _seal(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())
    os.fchmod(out.fileno(), 0o644)
