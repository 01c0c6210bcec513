"""Recognizes media files by their content, never by name, and checks what may be uploaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Literal

import attrs

from ..errors import InvalidRequest

HEAD_BYTES = 64

_MIB = 1024 * 1024

Family = Literal["image", "audio", "video"]


@attrs.frozen
class MediaKind:
    """A kind of file the service takes or gives."""

    ending: str
    mime_type: str
    family: Family


MP4 = MediaKind(".mp4", "video/mp4", "video")

MOV = MediaKind(".mov", "video/quicktime", "video")

WEBM = MediaKind(".webm", "video/webm", "video")

MKV = MediaKind(".mkv", "video/x-matroska", "video")

AVI = MediaKind(".avi", "video/x-msvideo", "video")

MP3 = MediaKind(".mp3", "audio/mpeg", "audio")

WAV = MediaKind(".wav", "audio/wav", "audio")

AAC = MediaKind(".aac", "audio/aac", "audio")

M4A = MediaKind(".m4a", "audio/mp4", "audio")

OGG = MediaKind(".ogg", "audio/ogg", "audio")

FLAC = MediaKind(".flac", "audio/flac", "audio")

AMR = MediaKind(".amr", "audio/amr", "audio")

PNG = MediaKind(".png", "image/png", "image")

JPEG = MediaKind(".jpg", "image/jpeg", "image")

WEBP = MediaKind(".webp", "image/webp", "image")

GIF = MediaKind(".gif", "image/gif", "image")

HEIC = MediaKind(".heic", "image/heic", "image")

AVIF = MediaKind(".avif", "image/avif", "image")

BMP = MediaKind(".bmp", "image/bmp", "image")

TIFF = MediaKind(".tiff", "image/tiff", "image")

SVG = MediaKind(".svg", "image/svg+xml", "image")

WEBM_AUDIO = MediaKind(".webm", "audio/webm", "audio")
"""What browsers record a voice as."""

KINDS = (
    *(MP4, MOV, WEBM, MKV, AVI),
    *(MP3, WAV, AAC, M4A, OGG, FLAC, AMR),
    *(PNG, JPEG, WEBP, GIF, HEIC, AVIF, BMP, TIFF, SVG),
)

AUDIO_TWINS = {MP4: M4A, WEBM: WEBM_AUDIO}
"""What a file is that begins like the one and whose tracks are all sound."""

UNKNOWN_ENDING = ".bin"

# A table of our own and not the system's, which differs from machine to machine and has endings that run.
_ENDING_OF_TYPE = {kind.mime_type: kind.ending for kind in KINDS} | {
    **dict.fromkeys(("audio/mp3", "audio/x-mp3"), ".mp3"),
    **dict.fromkeys(("audio/x-wav", "audio/wave", "audio/vnd.wave"), ".wav"),
    **dict.fromkeys(("audio/x-m4a", "audio/m4a"), ".m4a"),
    **dict.fromkeys(("audio/opus", "application/ogg"), ".ogg"),
    **dict.fromkeys(("text/srt", "application/x-subrip"), ".srt"),
    **dict.fromkeys(("text/xml", "application/xml"), ".xml"),
    **dict.fromkeys(("application/zip", "application/x-zip-compressed"), ".zip"),
    "audio/aacp": ".aac",
    "audio/x-flac": ".flac",
    "audio/webm": ".webm",
    "audio/midi": ".mid",
    "image/jpg": ".jpg",
    "image/heif": ".heic",
    "text/plain": ".txt",
    "text/vtt": ".vtt",
    "text/csv": ".csv",
    "text/markdown": ".md",
    "application/json": ".json",
    "application/pdf": ".pdf",
    "model/gltf-binary": ".glb",
    "model/gltf+json": ".gltf",
    "model/obj": ".obj",
    "model/stl": ".stl",
}

ENDINGS = tuple(dict.fromkeys((*(kind.ending for kind in KINDS), *_ENDING_OF_TYPE.values(), UNKNOWN_ENDING)))
"""Every ending a result can get here."""

ENDINGS_BY_TYPE = frozenset(ENDINGS) - {kind.ending for kind in KINDS} - {UNKNOWN_ENDING}
"""Those that only the type can say."""

MEDIA_ENDINGS = tuple({kind.ending for kind in KINDS} | {".jpeg", ".tif", ".oga", ".opus", ".weba", ".m4v"})
"""What the names of media end with."""

MAX_UPLOAD_BYTES = {
    **dict.fromkeys((JPEG, PNG, WEBP), 10 * _MIB),
    **dict.fromkeys((MP3, WAV, AAC, M4A, OGG), 100 * _MIB),
}
"""What the avatar models take, and how large it may be for any model.

Source: https://docs.kie.ai/market/kling/ai-avatar-standard

The pages do not say which megabyte they mean, and the v1 avatar models take 10 MB of audio where the
newer ones say 100: the larger figure stands here, and the service has the last word.
"""

_PREFIXES = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF8", GIF),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"ID3", MP3),
    (b"OggS", OGG),
    (b"fLaC", FLAC),
    (b"#!AMR", AMR),
)

_RIFF = {b"WEBP": WEBP, b"WAVE": WAV, b"AVI ": AVI}

_BRANDS = {
    **dict.fromkeys((b"M4A ", b"M4B "), M4A),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    b"qt  ": MOV,
}

_SVG = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg|<svg)", re.DOTALL)

_NOT_IN_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")

_HANDLERS: dict[bytes, Family] = {b"vide": "video", b"soun": "audio"}

_MAX_BOXES = 10_000

_TRACKS_OF_WEBM = b"\x16\x54\xae\x6b"

_CODEC_OF_WEBM = re.compile(rb"\x86[\x81-\xff]([VA])_[A-Z]")


def sniff(head: bytes) -> MediaKind | None:
    """Return the kind of a file from its first `HEAD_BYTES` bytes; None if it is none of ours.

    Of a box of MP4 or WebM that may hold both, the answer is the film; `kind_by_tracks` knows better.
    """
    head = head[:HEAD_BYTES]
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] in {b"RIFF", b"RF64"}:
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], MP4)
    if head[:4] == b"\x1aE\xdf\xa3":
        return MKV if b"matroska" in head else WEBM
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return BMP
    return SVG if _SVG.match(head) else _sniff_frame(head)


def _sniff_frame(head: bytes) -> MediaKind | None:
    """Return the kind of a bare audio frame; a byte order mark, FF FE, begins like one."""
    if len(head) < 3 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0:  # ADTS: twelve bits of sync, layer 0
        return AAC if (head[2] >> 2) & 0x0F < 13 else None
    is_layer_3 = head[1] & 0xE6 == 0xE2 and head[1] & 0x18 != 0x08
    return MP3 if is_layer_3 and head[2] >> 4 != 0x0F and head[2] & 0x0C != 0x0C else None


def is_text(head: bytes) -> bool:
    """Tell whether a file begins like text in UTF-8: no medium but SVG does."""
    return bool(head) and not _NOT_IN_TEXT.search(head) and "\ufffd" not in head[:-3].decode(errors="replace")


def ending_for_type(content_type: str) -> str:
    """Return the ending for a type that a server names."""
    return _ENDING_OF_TYPE.get(content_type.lower(), UNKNOWN_ENDING)


# --- sound or film ---------------------------------------------------------------------------------


def families_of_tracks(kind: MediaKind, file: BinaryIO, size: int) -> frozenset[Family]:
    """Return what the tracks of an MP4 or a WebM hold; nothing where none was found."""
    file.seek(0)
    if kind is WEBM:
        _, _, tracks = file.read(_MIB).partition(_TRACKS_OF_WEBM)
        return frozenset("video" if found == b"V" else "audio" for found in _CODEC_OF_WEBM.findall(tracks))
    return frozenset(_HANDLERS[handler] for handler in _handlers(file, size) if handler in _HANDLERS)


def _handlers(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the kind of each track of an MP4: it stands at moov/trak/mdia/hdlr."""
    for begin, end in find_boxes(file, b"moov", 0, size):
        for track in find_boxes(file, b"trak", begin, end):
            for media in find_boxes(file, b"mdia", *track):
                for handler, _ in find_boxes(file, b"hdlr", *media):
                    file.seek(handler + 8)
                    yield file.read(4)


def find_boxes(file: BinaryIO, name: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the bodies of the boxes of a name begin and end, between two positions."""
    for _ in range(_MAX_BOXES):
        file.seek(begin)
        head = file.read(16)
        length, header = int.from_bytes(head[:4]), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16]), 16
        elif length == 0:  # up to the end
            length = end - begin
        if len(head) < 8 or length < header or begin + length > end:
            return
        if head[4:8] == name:
            yield begin + header, begin + length
        begin += length


# --- what may go up --------------------------------------------------------------------------------


def check_media(name: str, head: bytes, size: int, kind: MediaKind | None = None) -> MediaKind:
    """Return the kind of a file that the avatar models take; *name* is for the message.

    Raises:
        InvalidRequest: It is empty, too large or of another kind.
    """
    check_size(name, kind := kind or sniff(head), size)
    if kind is None or kind not in MAX_UPLOAD_BYTES:
        raise InvalidRequest(f"{name} is neither JPEG, PNG, WebP nor MP3, WAV, AAC, M4A, OGG by its content")
    return kind


def check_size(name: str, kind: MediaKind | None, size: int) -> None:
    """Refuse what is empty, or larger than the service takes of a kind.

    Raises:
        InvalidRequest: The message begins with *name*.
    """
    if not size:
        raise InvalidRequest(f"{name} is empty")
    limit = MAX_UPLOAD_BYTES.get(kind) if kind else None
    if limit is not None and size > limit:
        raise InvalidRequest(f"{name} has {size} bytes; a file of this kind may have {limit}")
