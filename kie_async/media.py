"""What a file is, told by its first bytes and never by its name."""

from __future__ import annotations

from typing import Literal

import attrs

HEAD_BYTES = 16


@attrs.frozen
class MediaKind:
    """A kind of file the service takes or gives."""

    ending: str
    mime_type: str
    family: Literal["image", "audio", "video"]


JPEG = MediaKind(".jpg", "image/jpeg", "image")
PNG = MediaKind(".png", "image/png", "image")
WEBP = MediaKind(".webp", "image/webp", "image")
GIF = MediaKind(".gif", "image/gif", "image")
MP3 = MediaKind(".mp3", "audio/mpeg", "audio")
AAC = MediaKind(".aac", "audio/aac", "audio")
WAV = MediaKind(".wav", "audio/wav", "audio")
M4A = MediaKind(".m4a", "audio/mp4", "audio")
OGG = MediaKind(".ogg", "audio/ogg", "audio")
MP4 = MediaKind(".mp4", "video/mp4", "video")
WEBM = MediaKind(".webm", "video/webm", "video")

MAX_BYTES = {JPEG: 10_000_000, PNG: 10_000_000, WEBP: 10_000_000} | dict.fromkeys(
    (MP3, AAC, WAV, M4A, OGG), 100_000_000
)
"""What may be uploaded, and how large. Source: https://docs.kie.ai/market/kling/ai-avatar-standard

The v1 avatar models take 10 MB of audio; the newer pages say 100 MB, so the service has the last word.
"""

_PREFIXES = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF8", GIF),
    (b"ID3", MP3),
    (b"OggS", OGG),
    (b"\x1aE\xdf\xa3", WEBM),
)


def sniff(head: bytes) -> MediaKind | None:
    """Return the kind of a file from its first `HEAD_BYTES` bytes; None if it is none of ours."""
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return M4A if head[8:11] == b"M4A" else MP4
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return AAC if head[1] & 0x06 == 0 else MP3  # a bare MPEG frame; layer 00 is ADTS
    return None
