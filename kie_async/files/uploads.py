"""Uploads local media, each content once a day, and puts their URLs in the place of media in a request."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .._background import BackgroundTasks
from .._validation import check_url
from ..errors import (
    InvalidRequest,
    KieError,
    SessionMisuse,
    UploadRefused,
)
from ..inputs.media import LOCAL_MEDIA, Media, has_scheme, is_media_field, leaves, own_media, with_urls
from ..inputs.prices import find_audio
from ..inputs.request import TaskRequest
from ..models import UploadedFile
from .audio_length import measure_length
from .local_media import MediaSource, examine
from .media_types import MEDIA_ENDINGS
from .upload_client import UploadClient
from .upload_store import ForwardClock, MemoryUploadStore, StoredUpload, UploadStore

_MAX_LENGTHS = 10_000

_WEB_ADDRESS = re.compile(r"https?://\S+", re.IGNORECASE)
"""Alone in a field it is hardly meant as text, whatever the field is called."""

_ASK_AGAIN_S = 0.5
"""So often it is asked whether another process has uploaded a file."""

_CLOSED_MESSAGE = "the session closed before the file was uploaded"

_T = TypeVar("_T")

# By a name of its own, which the command line lets through.
_log = logging.getLogger("kie_async.uploads")


class Uploads:
    """Uploads what is asked for, unless the service still has it, and knows how long audio is."""

    def __init__(
        self,
        client: UploadClient,
        *,
        store: UploadStore | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._store = MemoryUploadStore() if store is None else store
        self._clock = clock or ForwardClock(asyncio.get_running_loop().time).now
        self._is_closed = False
        self._has_warned = False
        self._running = BackgroundTasks("kie_async upload")
        self._shared: dict[bytes, asyncio.Task[UploadedFile]] = {}
        """Uploads under way, by what they upload."""
        self._lengths: OrderedDict[str, float | None] = OrderedDict()
        """The seconds of what `upload` gave the service, by URL."""

    @property
    def sent_count(self) -> int:
        """Return how many uploads came through."""
        return self._client.sent_count

    async def aclose(self) -> None:
        """Close all connections; uploads under way are given up."""
        self._is_closed = True
        await self._running.aclose()
        await self._client.aclose()

    def close_nowait(self) -> None:
        """Close without an event loop."""
        self._client.close_nowait()

    async def replace_media(self, request: TaskRequest) -> TaskRequest:
        """Return *request* with the URL of an upload in place of each local medium in its input.

        All media are checked before the first one is sent.

        Raises:
            InvalidRequest: A medium is missing, too large or of another kind; the message names the field.
            UploadRefused: The upload service said no; the message names the field.
            AuthenticationError: The key is not good.
            TransportError: The upload service could not be reached.
        """
        found = list(leaves(request.input))
        self._warn_of_queries(found)
        media = [(path, name, value) for path, name, value in found if isinstance(value, LOCAL_MEDIA)]
        if not media:
            return request
        # All are examined before the first one is sent.
        sources = [
            await _naming_field(path, asyncio.to_thread(examine, value, model=request.model, field=name))
            for path, name, value in media
        ]
        sharing = [
            _naming_field(path, self._share(source))
            for (path, _, _), source in zip(media, sources, strict=True)
        ]
        urls = [file.url for file in await _all_of(sharing)]
        for (_, name, value), url in zip(media, urls, strict=True):
            if "audio" in name:
                self._keep_length(url, await asyncio.to_thread(measure_length, value))
        return attrs.evolve(request, input=with_urls(request.input, iter(urls)))

    async def upload(self, file: Media) -> UploadedFile:
        """Upload a local medium, or let the service fetch a URL; see `KieSession.upload`."""
        if isinstance(file, UploadedFile):
            return file
        if isinstance(file, str) and has_scheme(file):
            check_url("file", file)
            return await self._upload_alone(partial(self._client.send_url, file))
        media = Path(file) if isinstance(file, str) else own_media(file, "file")
        if not isinstance(media, LOCAL_MEDIA):
            raise InvalidRequest(
                f"file must be a path, a URL, bytes or a binary stream, got {type(file).__name__}"
            )
        source = await asyncio.to_thread(examine, media)
        if isinstance(media, Path):
            uploaded = await self._share(source)
        else:
            uploaded = await self._upload_alone(partial(self._client.send_source, source))
        self._keep_length(uploaded.url, await asyncio.to_thread(measure_length, media))
        return uploaded

    def _keep_length(self, url: str, length_s: float | None) -> None:
        self._lengths[url] = length_s
        if len(self._lengths) > _MAX_LENGTHS:
            self._lengths.popitem(last=False)

    async def measure_audio(self, input: Mapping[str, Any]) -> float | None:
        """Return the seconds of the audio in an input: local media, and what `upload` gave the service.

        None if it holds none, or any whose length is not known here.
        """
        if all(isinstance(audio, str) for audio in find_audio(input)):
            return self.measure_audio_now(input)  # no file to read, and no thread to wait for
        return await asyncio.to_thread(self.measure_audio_now, input)

    def measure_audio_now(self, input: Mapping[str, Any]) -> float | None:
        """Return the same; it reads the headers of files, and so takes milliseconds."""
        lengths = [
            self._lengths.get(audio) if isinstance(audio, str) else measure_length(audio)
            for audio in find_audio(input)
        ]
        known = [length for length in lengths if length is not None]
        return sum(known) if known and len(known) == len(lengths) else None

    def _warn_of_queries(self, found: Iterable[tuple[str, str, object]]) -> None:
        """Say once that the service will not see what a presigned URL is; it tells the type from the end."""
        if self._has_warned:
            return
        for path, name, text in found:
            if not isinstance(text, str) or not (is_media_field(name) or _WEB_ADDRESS.fullmatch(text)):
                continue
            if "?" in text and not text.lower().endswith(MEDIA_ENDINGS):
                self._has_warned = True
                _log.warning(
                    "%s is a URL with a query, as presigned ones are; the service tells the type of a file "
                    "from the end of its URL and may refuse it; pass what `await kie.upload(url)` returns, "
                    "or a local file (said once for a session)",
                    path,
                )
                return

    # --- one upload, shared by all its callers ---------------------------------------------------

    async def _share(self, source: MediaSource) -> UploadedFile:
        """Return the upload of this content: one the service still has, one under way, or a new one.

        A cancel ends the wait of one caller, not the upload.
        """
        key = await asyncio.to_thread(source.key)
        if self._is_closed:
            raise SessionMisuse(_CLOSED_MESSAGE)
        if key not in self._shared and (stored := await self._find_usable(key)) is not None:
            return stored.file
        upload = self._shared.get(key)  # read only now: another caller may have begun it meanwhile
        if upload is None:
            upload = self._begin(partial(self._upload_in_turn, key, source))
            self._shared[key] = upload
            upload.add_done_callback(lambda _: self._shared.pop(key, None))
        return await _join(upload)

    async def _find_usable(self, key: bytes) -> StoredUpload | None:
        try:
            stored = await self._store.find_upload(key)
        except KieError as exc:
            _log.warning("uploads of former sessions cannot be read, so the file goes up again: %s", exc)
            return None
        return stored if stored is not None and stored.is_usable(self._clock()) else None

    async def _upload_in_turn(self, key: bytes, source: MediaSource) -> UploadedFile:
        """Upload a file unless another process does at this time, which is waited for."""
        if not self._store.is_shared:
            return await self._upload_and_save(key, source)
        while not await self._take_turn(key):
            await asyncio.sleep(_ASK_AGAIN_S)
            if (stored := await self._find_usable(key)) is not None:
                return stored.file
        try:
            # Whoever had the turn before may just have uploaded it.
            stored = await self._find_usable(key)
            return await self._upload_and_save(key, source) if stored is None else stored.file
        finally:
            with suppress(KieError):  # it ends by itself
                await self._store.end_turn(key)

    async def _take_turn(self, key: bytes) -> bool:
        try:
            return await self._store.take_turn(key)
        except KieError as exc:
            _log.warning("another process may upload the same file: %s", exc)
            return True

    async def _upload_and_save(self, key: bytes, source: MediaSource) -> UploadedFile:
        file = await self._client.send_source(source)
        try:
            await self._store.save_upload(key, StoredUpload.of(file, self._clock()))
        except KieError as exc:
            _log.warning("an upload cannot be kept for later sessions: %s", exc)
        return file

    # --- one upload, begun ----------------------------------------------------------------------

    async def _upload_alone(self, send: Callable[[], Coroutine[None, None, UploadedFile]]) -> UploadedFile:
        """Upload for one caller; a cancel ends the upload too."""
        upload = self._begin(send)
        try:
            return await _join(upload)
        finally:
            upload.cancel()

    def _begin(self, work: Callable[[], Coroutine[None, None, UploadedFile]]) -> asyncio.Task[UploadedFile]:
        if self._is_closed:
            raise SessionMisuse(_CLOSED_MESSAGE)
        upload = self._running.spawn(work())
        # Retrieves the error, should no caller be waiting any more: asyncio would log it as never retrieved.
        upload.add_done_callback(_has_failed)
        return upload


def _has_failed(upload: asyncio.Task[UploadedFile]) -> bool:
    return upload.done() and (upload.cancelled() or upload.exception() is not None)


async def _join(upload: asyncio.Task[UploadedFile]) -> UploadedFile:
    """Wait for an upload that others may wait for too: a cancel ends the wait, not the upload."""
    await asyncio.wait([upload])
    if upload.cancelled():
        raise SessionMisuse(_CLOSED_MESSAGE)
    return upload.result()


async def _naming_field(field: str, work: Awaitable[_T]) -> _T:
    """Do *work*, and name *field* in the error if there is one."""
    try:
        return await work
    except (InvalidRequest, UploadRefused) as exc:
        raise type(exc)(f"{field}: {exc}", *exc.args[1:]) from None


async def _all_of(work: Iterable[Coroutine[None, None, _T]]) -> list[_T]:
    """Do all of *work* side by side; wait for the ends of all before an error is raised."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
