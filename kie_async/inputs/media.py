"""Finds local media at any depth of an input (paths, bytes, binary streams) and reads them for an upload."""

from __future__ import annotations

import hashlib
import inspect
import io
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

from ..errors import InvalidRequest
from ..models import UploadedFile

Media = str | Path | bytes | bytearray | BinaryIO | UploadedFile
"""A URL, or what is uploaded: a path, bytes, a binary stream; or what was uploaded."""

BLOCK_BYTES = 262_144
"""How much of a file is read at once."""

_HAS_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|(https?|ftp|file|data|blob|cid|about):", re.IGNORECASE)

_MEDIA_FIELDS = frozenset({"image_input", "input_urls"})

# One for all streams: two requests may share a stream, and a seek and the read after it must stay together.
_stream_lock = threading.Lock()


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int, /) -> object: ...


class MediaStream:
    """A binary stream of the user's, always read from its beginning, wherever it stands.

    One that cannot be rewound is copied to a temporary file when it is first read.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._is_rewindable: bool | None = None

    def open(self) -> BinaryIO:
        """Return a reader of its own. To be called in a thread: it may read all of the stream.

        Raises:
            OSError, ValueError: The stream cannot be read, or is closed.
        """
        with _stream_lock:
            if self._is_rewindable is None:
                self._is_rewindable = _can_rewind(self._stream)
                if not self._is_rewindable:
                    self._copy()
            size = self._stream.seek(0, io.SEEK_END)
        return io.BufferedReader(_StreamReader(self._stream, size), BLOCK_BYTES)

    def _copy(self) -> None:
        copied = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  closed when nobody can read it any more
        weakref.finalize(self, copied.close)
        while block := _read_bytes(self._stream, BLOCK_BYTES):
            copied.write(block)
        self._stream = copied


def _read_bytes(stream: BinaryIO, size: int) -> bytes:
    block: object = stream.read(size)
    if not isinstance(block, bytes):
        raise OSError(None, f"its read() returns {type(block).__name__}, not bytes")
    return block


def _can_rewind(stream: BinaryIO) -> bool:
    try:
        stream.seek(0)
    except (AttributeError, OSError):
        return False
    return True


class _StreamReader(io.RawIOBase):
    """Reads a shared stream from a position of its own."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        with _stream_lock:
            self._stream.seek(self._position)
            block = _read_bytes(self._stream, len(buffer))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)


LocalMedia = Path | bytes | MediaStream
"""What is uploaded, as a `TaskRequest` holds it."""

LOCAL_MEDIA = (Path, bytes, MediaStream)


def own_media(value: object, field: str) -> object:
    """Return a value of an input as a request keeps it, if it is a medium, else as it is.

    Raises:
        InvalidRequest: It is a stream of text, or one that must be awaited; the message names *field*.
    """
    if isinstance(value, UploadedFile):
        return value.url
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, _Readable) or isinstance(value, type):
        return value
    if isinstance(value, io.TextIOBase):
        raise InvalidRequest(f"{field}: a file must be open in binary mode, as by open(path, 'rb')")
    if inspect.iscoroutinefunction(value.read):
        kind = type(value).__name__
        raise InvalidRequest(f"{field}: read() of a {kind} must be awaited: pass what it returns")
    return MediaStream(cast(BinaryIO, value))


def leaves(value: object, path: str = "", name: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield every value of an input with its path, as ``frames[3].url``, and the name of its field."""
    if isinstance(value, (dict, Mapping)):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else str(key)
            if isinstance(inner, str):  # most are, and a generator for each would cost more than all else
                yield below, str(key), inner
            else:
                yield from leaves(inner, below, str(key))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{at}]", name)
    else:
        yield path, name, value


def with_urls(value: Any, urls: Iterator[str]) -> Any:
    """Return an input with the next URL in place of each local medium, in the order of `leaves`."""
    if isinstance(value, Mapping):
        return {key: with_urls(inner, urls) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_urls(inner, urls) for inner in value]
    return next(urls) if isinstance(value, LOCAL_MEDIA) else value


def is_media_field(name: str) -> bool:
    """Tell whether the fields of that name hold URLs of media in the models of the service."""
    return name.endswith(("_url", "_urls")) or name in _MEDIA_FIELDS


def has_scheme(text: str) -> bool:
    """Tell a URL from a path of any system: ``C:\\face.png`` and ``ada:1.png`` are paths."""
    return _HAS_SCHEME.match(text.lstrip()) is not None


def check_no_paths_as_text(input: Mapping[str, Any]) -> None:
    """Refuse a path where the service wants a URL: the task would fail, and may be paid for.

    Raises:
        InvalidRequest: The message names the field.
    """
    for path, name, value in leaves(input):
        if isinstance(value, str) and is_media_field(name) and value.strip() and not has_scheme(value):
            shown = value if len(value) <= 200 else value[:200] + "..."
            raise InvalidRequest(f"{path} is no URL: {shown!r}; pass Path({shown!r}) to upload it")


def open_media(media: LocalMedia) -> BinaryIO:
    """Return a reader of a medium; to be called in a thread.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    if isinstance(media, bytes):
        return io.BytesIO(media)
    return media.open("rb") if isinstance(media, Path) else media.open()


def digest_media(media: LocalMedia) -> str:
    """Return the SHA-256 of a medium, in hexadecimal; to be called in a thread.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    if not isinstance(media, Path):
        return _digest_of(open_media(media))
    status = media.stat()
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _digest_file(media, version)


@lru_cache(maxsize=256)
def _digest_file(path: Path, version: tuple[int, ...]) -> str:
    """Return the digest of a file; thousands of requests may share one, which is read once per version."""
    return _digest_of(path.open("rb"))


def _digest_of(opened: BinaryIO) -> str:
    digest = hashlib.sha256()
    with opened:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
