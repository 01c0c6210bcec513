"""Recognizes media files by their first bytes, never by name, and checks what may be uploaded."""

from __future__ import annotations

from typing import Literal

import attrs

from ..errors import InvalidRequest

HEAD_BYTES = 16

_MIB = 1024 * 1024


@attrs.frozen
class MediaKind:
    """A kind of file the service takes or gives."""

    ending: str
    mime_type: str
    family: Literal["image", "audio", "video"]


MP4 = MediaKind(".mp4", "video/mp4", "video")

WEBM = MediaKind(".webm", "video/webm", "video")

MP3 = MediaKind(".mp3", "audio/mpeg", "audio")

WAV = MediaKind(".wav", "audio/wav", "audio")

AAC = MediaKind(".aac", "audio/aac", "audio")

M4A = MediaKind(".m4a", "audio/mp4", "audio")

OGG = MediaKind(".ogg", "audio/ogg", "audio")

PNG = MediaKind(".png", "image/png", "image")

JPEG = MediaKind(".jpg", "image/jpeg", "image")

WEBP = MediaKind(".webp", "image/webp", "image")

GIF = MediaKind(".gif", "image/gif", "image")

UNKNOWN_ENDING = ".bin"

ENDINGS = (
    *(kind.ending for kind in (MP4, WEBM, MP3, WAV, AAC, M4A, OGG, PNG, JPEG, WEBP, GIF)),
    UNKNOWN_ENDING,
)
"""Every ending a result can get here."""

MAX_UPLOAD_BYTES = {
    **dict.fromkeys((JPEG, PNG, WEBP), 10 * _MIB),
    **dict.fromkeys((MP3, WAV, AAC, M4A, OGG), 100 * _MIB),
}
"""What may be uploaded, and how large. Source: https://docs.kie.ai/market/kling/ai-avatar-standard

The pages do not say which megabyte they mean, and the v1 avatar models take 10 MB of audio where the
newer ones say 100: the larger figure stands here, and the service has the last word.
"""

_PREFIXES = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF8", GIF),
    (b"ID3", MP3),
    (b"OggS", OGG),
    (b"\x1aE\xdf\xa3", WEBM),
)

_AUDIO_BRANDS = frozenset({b"M4A ", b"M4B "})

_IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"})


def sniff(head: bytes) -> MediaKind | None:
    """Return the kind of a file from its first `HEAD_BYTES` bytes; None if it is none of ours."""
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _sniff_brand(head[8:12])
    return _sniff_frame(head)


def _sniff_brand(brand: bytes) -> MediaKind | None:
    if brand in _AUDIO_BRANDS:
        return M4A
    return None if brand in _IMAGE_BRANDS else MP4


def _sniff_frame(head: bytes) -> MediaKind | None:
    """Return the kind of a bare audio frame; a byte order mark, FF FE, begins like one."""
    if len(head) < 3 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0:  # ADTS: twelve bits of sync, layer 0
        return AAC if (head[2] >> 2) & 0x0F < 13 else None
    is_layer_3 = head[1] & 0xE6 == 0xE2 and head[1] & 0x18 != 0x08
    return MP3 if is_layer_3 and head[2] >> 4 != 0x0F and head[2] & 0x0C != 0x0C else None


def check_media(name: str, head: bytes, size: int) -> MediaKind:
    """Return the kind of a file that may be uploaded; *name* is for the message.

    Raises:
        InvalidRequest: It is empty, too large or of another kind.
    """
    if not size:
        raise InvalidRequest(f"{name} is empty")
    kind = sniff(head)
    if kind is None or kind not in MAX_UPLOAD_BYTES:
        raise InvalidRequest(f"{name} is neither JPEG, PNG, WebP nor MP3, WAV, AAC, M4A, OGG by its content")
    if size > (limit := MAX_UPLOAD_BYTES[kind]):
        raise InvalidRequest(f"{name} has {size} bytes; a file of this kind may have {limit}")
    return kind
