"""Keeps uploaded files in memory, and makes the placeholders that stand for results."""

from __future__ import annotations

import io
import mimetypes
import time
import uuid
import wave
import zlib
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs

_LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})  # noqa: S104  compared, not bound


@attrs.frozen(kw_only=True)
class StoredFile:
    """One uploaded file."""

    name: str
    path: str
    """``kieai/<account>/<uploadPath>/<fileName>``."""
    content: bytes = attrs.field(repr=False)
    mime: str
    length_s: float | None
    """Seconds of sound, None unless it is a WAV file."""


@attrs.define
class FileStore:
    """Uploads by path; a second upload under the same name replaces the first, as in the service."""

    origin: str = ""
    """The sandbox's own base URL, known once it listens."""
    _files: dict[str, StoredFile] = attrs.field(factory=dict)

    def keep(self, content: bytes, *, folder: str, name: str | None, mime: str | None) -> StoredFile:
        """Store *content* and return what was stored; without a name a random one is made."""
        guessed = mime or mimetypes.guess_type(name or "")[0] or "application/octet-stream"
        name = name or _random_name(guessed)
        path = f"kieai/sandbox/{folder.strip('/')}/{name}"
        file = StoredFile(name=name, path=path, content=content, mime=guessed, length_s=wav_length_s(content))
        self._files[path] = file
        return file

    def at(self, path: str) -> StoredFile | None:
        """Return the file stored under *path*."""
        return self._files.get(path)

    def is_ours(self, url: str) -> bool:
        """Return whether *url* points at a file this sandbox serves."""
        try:
            asked, own = urlsplit(url), urlsplit(self.origin)
            is_same_host = asked.hostname == own.hostname or asked.hostname in _LOCAL_HOSTS
            return is_same_host and asked.port == own.port and asked.path.startswith("/files/")
        except ValueError:
            return False

    def find(self, url: str) -> StoredFile | None:
        """Return the upload *url* points at, None if it is unknown or not ours."""
        if not self.is_ours(url):
            return None
        return self.at(unquote(urlsplit(url).path).removeprefix("/files/"))

    def describe(self, file: StoredFile) -> dict[str, Any]:
        """Return the ``data`` of an upload answer. https://docs.kie.ai/file-upload-api/quickstart"""
        return {
            "success": True,
            "fileName": file.name,
            "filePath": file.path,
            "downloadUrl": f"{self.origin}/files/{file.path}",
            "fileSize": len(file.content),
            "mimeType": file.mime,
            "uploadedAt": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
        }


def _random_name(mime: str) -> str:
    return f"{time.time_ns() // 1_000_000}-{uuid.uuid4().hex[:11]}{mimetypes.guess_extension(mime) or ''}"


def wav_length_s(content: bytes) -> float | None:
    """Return seconds of sound in a WAV file, None for anything else."""
    if content[:4] != b"RIFF":
        return None
    try:
        with wave.open(io.BytesIO(content)) as voice:
            frame_size = voice.getnchannels() * voice.getsampwidth()
            # Streamed files declare a huge length; no file holds more sound than bytes.
            length_s: float = min(voice.getnframes(), len(content) // frame_size) / voice.getframerate()
            return length_s
    except (wave.Error, EOFError, ZeroDivisionError):
        return None


def placeholder(suffix: str, label: str) -> tuple[bytes, str]:
    """Return a small file that looks like a result, and its media type. It is not meant to play."""
    if suffix == "png":
        return _one_pixel_png(), "image/png"
    if suffix == "mp3":
        return b"ID3\x04\x00\x00\x00\x00\x00\x00" + label.encode(), "audio/mpeg"
    return _box(b"ftyp", b"isom\x00\x00\x02\x00isommp42") + _box(b"mdat", label.encode()), "video/mp4"


def _box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def _one_pixel_png() -> bytes:
    header = b"\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00"
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\x00\x80")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )
