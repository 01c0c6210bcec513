"""Sends one file to the upload host, the only host besides the API that gets the key."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from .._json import write_json
from .._secrets import Secret
from ..config import Network
from ..errors import ApiError, AuthenticationError, RateLimited, ServerError, TransportError, UploadRefused
from ..http.backoff import retry
from ..http.transport import Transport
from ..models import UploadedFile
from ..wire.redaction import Redactor
from ..wire.requests import WireRequest
from ..wire.responses import decode_upload
from .local_media import MediaSource
from .upload_body import UploadBody

UPLOAD_FOLDER = "kie_async"


UPLOAD_TIMEOUT_S = 300.0


# A large file gets more time, at the speed of a slow line.
_SLOWEST_BYTES_PER_S = 100_000


# A file has minutes, which a proxy that answers nothing must not take. Who has a slot has a connection.
_CONNECT_TIMEOUT_S = 30.0

_MAX_AT_ONCE = 4


class UploadClient:
    """Sends a few files at once, each again if that may help."""

    def __init__(
        self,
        upload_url: str,
        key: Secret,
        *,
        rng: random.Random,
        timeout_s: float = UPLOAD_TIMEOUT_S,
        network: Network = Network(),  # noqa: B008  (frozen)
        redactor: Redactor | None = None,
    ) -> None:
        self._transport = Transport(
            upload_url,
            key,
            connections=_MAX_AT_ONCE,
            timeout_s=timeout_s,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            network=network,
            redactor=redactor,
        )
        self._timeout_s = timeout_s
        self._rng = rng
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self.sent_count = 0
        """How many uploads came through."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    def close_nowait(self) -> None:
        """Close without an event loop."""
        self._transport.close_nowait()

    async def send_source(self, source: MediaSource) -> UploadedFile:
        """Upload a local medium.

        Raises:
            UploadRefused: The service said no.
            AuthenticationError: The key is not good.
            TransportError: The service could not be reached.
        """
        return await self._send(lambda: self._post_source(source))

    async def send_url(self, url: str) -> UploadedFile:
        """Let the service fetch a URL; raises what `send_source` does."""
        return await self._send(lambda: self._post_url(url))

    async def _send(self, post: Callable[[], Awaitable[UploadedFile]]) -> UploadedFile:
        """Upload, again if that may help: it costs nothing, and every attempt has a name of its own."""
        try:
            # A body of up to 100 MB is not sent again sooner than our own delay, whatever the host allows.
            file = await retry(lambda: self._post_in_slot(post), rng=self._rng, keeps_backoff=True)
        except AuthenticationError:
            raise
        except ApiError as exc:
            raise UploadRefused(str(exc), _may_pass(exc)) from None
        self.sent_count += 1
        return file

    async def _post_in_slot(self, post: Callable[[], Awaitable[UploadedFile]]) -> UploadedFile:
        # Not the connector's own limit: the timeout would run while an upload waits for its turn.
        async with self._slots:
            return await post()

    async def _post_source(self, source: MediaSource) -> UploadedFile:
        """Send a medium block by block: however large, it is never whole in memory."""
        name = _new_name(source.ending)
        opened = await asyncio.to_thread(source.open)
        try:
            body = UploadBody(source, opened)
            form = aiohttp.FormData()
            form.add_field("file", body, filename=name, content_type=source.mime_type)
            form.add_field("uploadPath", UPLOAD_FOLDER)
            form.add_field("fileName", name)
            request = WireRequest(method="POST", path="/api/file-stream-upload")
            timeout_s = self._timeout_s + source.size / _SLOWEST_BYTES_PER_S
            try:
                return decode_upload(await self._transport.send(request, form=form, timeout_s=timeout_s))
            except TransportError:
                if body.failure is None:
                    raise
            raise body.failure
        finally:
            opened.close()

    async def _post_url(self, url: str) -> UploadedFile:
        ending = Path(urlsplit(url).path).suffix[:8]
        name = _new_name(ending if ending.isascii() and ending[1:].isalnum() else "")
        fields = {"fileUrl": url, "uploadPath": UPLOAD_FOLDER, "fileName": name}
        request = WireRequest(method="POST", path="/api/file-url-upload", body=write_json(fields))
        return decode_upload(await self._transport.send(request))


def _may_pass(error: ApiError) -> bool:
    """Tell whether a refusal says nothing about the file, as code 500 may."""
    is_gateway = isinstance(error, ServerError) and error.http_status in {502, 503, 504}
    return is_gateway or isinstance(error, RateLimited)


def _new_name(ending: str) -> str:
    """Return a name that was never used: the service caches by name and mixes up equal ones."""
    return secrets.token_hex(16) + ending
