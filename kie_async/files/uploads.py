"""Uploads local files, each version of a file once, and puts the URLs in place of paths in a request."""

from __future__ import annotations

import asyncio
import io
import os
import random
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import attrs

from .._background import BackgroundTasks
from .._json import write_json
from .._secrets import Secret
from .._validation import check_url
from ..config import Network
from ..errors import (
    ApiError,
    AuthenticationError,
    InvalidRequest,
    SessionMisuse,
    UploadRefused,
)
from ..http.backoff import retry
from ..http.transport import Transport
from ..inputs.request import TaskRequest
from ..models import UploadedFile
from ..wire.requests import WireRequest
from ..wire.responses import decode_upload
from .media_types import HEAD_BYTES, MAX_UPLOAD_BYTES, MediaKind, check_media

UPLOAD_FOLDER = "kie_async"

UPLOAD_TIMEOUT_S = 300.0

# The service keeps an upload for 72 hours; a task that waits long in its queue must still find the file.
REUSE_UPLOAD_S = 48 * 3600.0

_MAX_AT_ONCE = 4

_MAX_SHOWN_PATH = 200

_CLOSED_MESSAGE = "the session closed before the file was uploaded"

_T = TypeVar("_T")

_Version = tuple[int, int, int, int, int]
"""Device, inode, size, time of modification and of change: no two contents of a file share them."""


@attrs.frozen
class _Source:
    """A checked local file."""

    path: Path
    kind: MediaKind
    version: _Version

    @classmethod
    def check(cls, path: Path) -> _Source:
        """Return the file at *path* as it is now.

        Raises:
            InvalidRequest: It is missing, empty, too large or of another kind.
        """
        name = _shown(path)
        try:
            status = path.stat()
            # Before it is opened: opening a pipe would wait for its writer.
            if not stat.S_ISREG(status.st_mode):
                raise InvalidRequest(f"{name} is not a file")
            with path.open("rb") as opened:
                head = opened.read(HEAD_BYTES)
        except InvalidRequest:
            raise
        except (OSError, ValueError) as exc:
            raise InvalidRequest(f"cannot read {name}: {getattr(exc, 'strerror', None) or exc}") from None
        return cls(path, check_media(name, head, status.st_size), _version_of(status))

    def read(self) -> bytes:
        """Return the content that was checked.

        Raises:
            InvalidRequest: The file has changed since.
        """
        try:
            with self.path.open("rb") as opened:
                content = opened.read(MAX_UPLOAD_BYTES[self.kind] + 1)
                is_same = _version_of(os.fstat(opened.fileno())) == self.version
        except OSError:
            is_same = False
        if not is_same:
            raise InvalidRequest(f"{_shown(self.path)} changed before it was uploaded; ask again")
        return content


def _shown(path: Path) -> str:
    return repr(str(path)[:_MAX_SHOWN_PATH])


def _version_of(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Uploads:
    """Sends files to the upload host, the only host besides the API that gets the key."""

    def __init__(
        self,
        upload_url: str,
        key: Secret,
        *,
        rng: random.Random,
        timeout_s: float = UPLOAD_TIMEOUT_S,
        network: Network = Network(),  # noqa: B008  (frozen)
    ) -> None:
        self._transport = Transport(
            upload_url, key, connections=_MAX_AT_ONCE, timeout_s=timeout_s, network=network
        )
        self._rng = rng
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._is_closed = False
        self._running = BackgroundTasks("kie_async upload")
        self._shared: dict[_Version, tuple[float, asyncio.Task[UploadedFile]]] = {}
        """Uploads under way and done by what they upload, with their begin; oldest first."""

    async def aclose(self) -> None:
        """Close all connections; uploads under way are given up."""
        self._is_closed = True
        await self._running.aclose()
        await self._transport.aclose()

    def close_nowait(self) -> None:
        """Close without an event loop."""
        self._transport.close_nowait()

    async def replace_paths(self, request: TaskRequest) -> TaskRequest:
        """Return *request* with the URL of an upload in place of each `Path` in its input or in a list there.

        All files are checked before the first one is sent.

        Raises:
            InvalidRequest: A file is missing, too large or of another kind; the message names the field.
            UploadRefused: The upload service said no; the message names the field.
            AuthenticationError: The key is not good.
            TransportError: The upload service could not be reached.
        """
        fields = dict(_paths_in(request))
        if not fields:
            return request
        sources = {field: await _naming_field(field, _check(path)) for field, path in fields.items()}
        for field, source in sources.items():
            _check_family(field, source)
        uploads = {field: self._share(source) for field, source in sources.items()}
        urls: dict[Path, str] = {}
        for field, upload in uploads.items():
            urls[fields[field]] = (await _naming_field(field, _join(upload))).url
        filled = {name: _replaced(value, urls) for name, value in request.input.items()}
        return attrs.evolve(request, input=filled)

    async def upload(self, file: str | Path | bytes) -> UploadedFile:
        """Upload a file, bytes, or let the service fetch a URL; see `KieSession.upload`."""
        if isinstance(file, bytes):
            kind = check_media("the upload", file[:HEAD_BYTES], len(file))
            return await self._upload_alone(lambda: self._send_bytes(file, kind))
        if isinstance(file, str) and "://" in file:
            check_url("file", file)
            return await self._upload_alone(lambda: self._send_url(file))
        return await _join(self._share(await _check(Path(file))))

    # --- one upload, shared by all its callers ---------------------------------------------------

    def _share(self, source: _Source) -> asyncio.Task[UploadedFile]:
        """Return the upload of this version of a file, begun now unless there is one."""
        now = asyncio.get_running_loop().time()
        self._forget_before(now - REUSE_UPLOAD_S)
        _, upload = self._shared.get(source.version, (now, None))
        if upload is None or _has_failed(upload):
            upload = self._begin(lambda: self._send_file(source))
            self._shared.pop(source.version, None)  # the new one goes to the end: oldest first
            self._shared[source.version] = now, upload
        return upload

    def _forget_before(self, begun: float) -> None:
        old = [version for version, (at, _) in self._shared.items() if at < begun]
        for version in old:
            del self._shared[version]

    # --- one upload, begun and sent --------------------------------------------------------------

    async def _upload_alone(self, send: Callable[[], Awaitable[UploadedFile]]) -> UploadedFile:
        """Upload for one caller; a cancel ends the upload too."""
        upload = self._begin(send)
        try:
            return await _join(upload)
        finally:
            upload.cancel()

    def _begin(self, send: Callable[[], Awaitable[UploadedFile]]) -> asyncio.Task[UploadedFile]:
        if self._is_closed:
            raise SessionMisuse(_CLOSED_MESSAGE)
        upload = self._running.spawn(self._upload_with_retries(send))
        # Retrieves the error, should no caller be waiting any more: asyncio would log it as never retrieved.
        upload.add_done_callback(_has_failed)
        return upload

    async def _upload_with_retries(self, send: Callable[[], Awaitable[UploadedFile]]) -> UploadedFile:
        """Upload, again if that may help: it costs nothing, and every attempt has a name of its own."""
        try:
            # A body of up to 100 MB is not sent again sooner than our own delay, whatever the host allows.
            return await retry(lambda: self._send_in_slot(send), rng=self._rng, keeps_backoff=True)
        except AuthenticationError:
            raise
        except ApiError as exc:
            raise UploadRefused(str(exc)) from None

    async def _send_in_slot(self, send: Callable[[], Awaitable[UploadedFile]]) -> UploadedFile:
        # Not the connector's own limit: the timeout would run while an upload waits for its turn.
        async with self._slots:
            return await send()

    async def _send_file(self, source: _Source) -> UploadedFile:
        return await self._send_bytes(await asyncio.to_thread(source.read), source.kind)

    async def _send_bytes(self, content: bytes, kind: MediaKind) -> UploadedFile:
        name = _new_name(kind.ending)
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(content), filename=name, content_type=kind.mime_type)
        form.add_field("uploadPath", UPLOAD_FOLDER)
        form.add_field("fileName", name)
        request = WireRequest(method="POST", path="/api/file-stream-upload")
        return decode_upload(await self._transport.send(request, form=form))

    async def _send_url(self, url: str) -> UploadedFile:
        ending = Path(urlsplit(url).path).suffix[:8]
        name = _new_name(ending if ending.isascii() and ending[1:].isalnum() else "")
        fields = {"fileUrl": url, "uploadPath": UPLOAD_FOLDER, "fileName": name}
        request = WireRequest(method="POST", path="/api/file-url-upload", body=write_json(fields))
        return decode_upload(await self._transport.send(request))


def _new_name(ending: str) -> str:
    """Return a name that was never used: the service caches by name and mixes up equal ones."""
    return secrets.token_hex(16) + ending


def _has_failed(upload: asyncio.Task[UploadedFile]) -> bool:
    return upload.done() and (upload.cancelled() or upload.exception() is not None)


async def _join(upload: asyncio.Task[UploadedFile]) -> UploadedFile:
    """Wait for an upload that others may wait for too: a cancel ends the wait, not the upload."""
    await asyncio.wait([upload])
    if upload.cancelled():
        raise SessionMisuse(_CLOSED_MESSAGE)
    return upload.result()


async def _check(path: Path) -> _Source:
    return await asyncio.to_thread(_Source.check, path)


async def _naming_field(field: str, work: Awaitable[_T]) -> _T:
    """Do *work*, and name *field* in the error if there is one."""
    try:
        return await work
    except (InvalidRequest, UploadRefused) as exc:
        raise type(exc)(f"{field}: {exc}") from None


def _paths_in(request: TaskRequest) -> Iterator[tuple[str, Path]]:
    for name, value in request.input.items():
        if isinstance(value, Path):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{at}]", item) for at, item in enumerate(value) if isinstance(item, Path))


def _check_family(field: str, source: _Source) -> None:
    """Refuse audio in a field for images, and the reverse: the task would fail and may be paid for.

    Raises:
        InvalidRequest: The message names *field*.
    """
    for family in ("image", "audio"):
        if field.startswith(family) and source.kind.family != family:
            kind = source.kind.mime_type
            raise InvalidRequest(f"{field}: {_shown(source.path)} is {kind}, not {family}")


def _replaced(value: Any, urls: Mapping[Path, str]) -> Any:
    if isinstance(value, Path):
        return urls[value]
    if isinstance(value, list | tuple):
        return [urls[item] if isinstance(item, Path) else item for item in value]
    return value
