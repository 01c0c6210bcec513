"""Examines local media before anything is sent: kind, size, and whether their field takes them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

import attrs

from ..errors import InvalidRequest
from ..inputs.kling import AVATAR_MEDIA, AVATAR_MODELS
from ..inputs.media import LocalMedia, digest_media, open_media
from .media_types import (
    AUDIO_TWINS,
    GIF,
    HEAD_BYTES,
    MEDIA_ENDINGS,
    UNKNOWN_ENDING,
    MediaKind,
    check_media,
    check_size,
    families_of_tracks,
    is_text,
    sniff,
)

_MAX_SHOWN_PATH = 200

_MAX_ENDING = 8

_SOUND_ENDINGS = frozenset({".m4a", ".m4b", ".weba"})

_FILM_ENDINGS = frozenset({".mp4", ".m4v", ".mov"})

_UNKNOWN_TYPE = "application/octet-stream"

_Version = tuple[int, int, int, int, int]
"""Device, inode, size, time of modification and of change: no two contents of a file share them."""


@attrs.frozen
class MediaSource:
    """A checked local medium; its methods read and are called in threads."""

    name: str
    """For messages."""
    media: LocalMedia = attrs.field(repr=False)
    size: int
    kind: MediaKind | None
    version: _Version | None = None
    """Of a file, when it was checked."""

    @property
    def ending(self) -> str:
        """What its name at the service ends with; the service tells the type from that."""
        if self.kind is not None:
            return self.kind.ending
        ending = self.media.suffix.lower() if isinstance(self.media, Path) else ""
        is_plain = ending.isascii() and ending[1:].isalnum() and len(ending) <= _MAX_ENDING
        return ending if is_plain else UNKNOWN_ENDING

    @property
    def mime_type(self) -> str:
        """The type that goes with it."""
        return _UNKNOWN_TYPE if self.kind is None else self.kind.mime_type

    def key(self) -> bytes:
        """Return what two media share that are the same to the service: their content, and their ending.

        Raises:
            InvalidRequest: It cannot be read.
        """
        try:
            return hashlib.sha256(f"{digest_media(self.media)}{self.ending}".encode()).digest()
        except (OSError, ValueError) as exc:
            raise _unreadable(self.name, exc) from None

    def open(self) -> BinaryIO:
        """Return a reader of what was checked.

        Raises:
            InvalidRequest: It has changed since.
        """
        try:
            opened = open_media(self.media)
        except (OSError, ValueError):
            raise self.changed() from None
        if self.version is not None and _version_of(os.fstat(opened.fileno())) != self.version:
            opened.close()
            raise self.changed()
        return opened

    def is_unchanged(self, opened: BinaryIO) -> bool:
        """Tell whether what was read from *opened* is what was checked."""
        return self.version is None or _version_of(os.fstat(opened.fileno())) == self.version

    def changed(self) -> InvalidRequest:
        """Return the error of what is no longer what was checked."""
        return InvalidRequest(f"{self.name} changed before it was uploaded; ask again")


def examine(media: LocalMedia, *, model: str = "", field: str = "") -> MediaSource:
    """Return a medium, checked for the field of a model that it is for; to be called in a thread.

    What the avatar models take is known, so nothing else goes up for them. For other models a kind that is
    not known here goes up as it is.

    Raises:
        InvalidRequest: It cannot be read, is empty, too large, or nothing for that field.
    """
    name = _shown(media)
    try:
        size, version = _measure(name, media)
        with open_media(media) as opened:
            head = opened.read(HEAD_BYTES)
            if version is None:
                size = opened.seek(0, os.SEEK_END)
            kind = kind_of(opened, head, size, media, field)
    except InvalidRequest:
        raise
    except (OSError, ValueError) as exc:
        raise _unreadable(name, exc) from None
    check_size(name, kind, size)
    if model in AVATAR_MODELS and field in AVATAR_MEDIA:
        check_media(name, head, size, kind)
    _check_family(name, media, head, kind, field)
    return MediaSource(name, media, size, kind, version)


def _measure(name: str, media: LocalMedia) -> tuple[int, _Version | None]:
    if not isinstance(media, Path):
        return 0, None
    status = media.stat()
    # Before it is opened: opening a pipe would wait for its writer.
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{name} is not a file")
    return status.st_size, _version_of(status)


def kind_of(opened: BinaryIO, head: bytes, size: int, media: LocalMedia, field: str) -> MediaKind | None:
    """Return the kind by the content; where that may be sound or film, by tracks, then name, then field."""
    kind = sniff(head)
    twin = AUDIO_TWINS.get(kind) if kind else None
    if kind is None or twin is None:
        return kind
    if families := families_of_tracks(kind, opened, size):
        return kind if "video" in families else twin
    ending = media.suffix.lower() if isinstance(media, Path) else ""
    is_film = ending in _FILM_ENDINGS or not field.startswith("audio")
    return kind if is_film and ending not in _SOUND_ENDINGS else twin


def _check_family(name: str, media: LocalMedia, head: bytes, kind: MediaKind | None, field: str) -> None:
    """Refuse audio in a field for images, and the like: the task would fail and may be paid for.

    Raises:
        InvalidRequest: It is of another family, or text under the name of a medium.
    """
    wanted = next((family for family in ("image", "audio", "video") if field.startswith(family)), "")
    is_moving = kind is GIF and wanted == "video"
    if kind is not None and wanted and kind.family != wanted and not is_moving:
        raise InvalidRequest(f"{name} is {kind.mime_type}, not {wanted}")
    is_named_medium = isinstance(media, Path) and media.suffix.lower() in MEDIA_ENDINGS
    if kind is None and (wanted or is_named_medium) and is_text(head):
        check_media(name, head, len(head))


def _unreadable(name: str, exc: Exception) -> InvalidRequest:
    return InvalidRequest(f"cannot read {name}: {getattr(exc, 'strerror', None) or exc}")


def _shown(media: LocalMedia) -> str:
    if isinstance(media, Path):
        return repr(str(media)[:_MAX_SHOWN_PATH])
    return "the upload" if isinstance(media, bytes) else "the stream"


def _version_of(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
