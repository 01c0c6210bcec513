"""Reads how long audio lasts from the headers of its file: WAV, MP3, AAC, M4A, OGG and FLAC.

Other kinds tinytag reads, where it is installed; of these it would also take what is damaged for whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ..inputs.media import LocalMedia, open_media
from .media_types import AAC, FLAC, HEAD_BYTES, M4A, MOV, MP3, MP4, OGG, WAV, MediaKind, find_boxes, sniff

_MAX_TAGS = 16

_MAX_CHUNKS = 1000

_LARGEST_OGG_PAGE = 65_307

_MP3_RATES = (44_100, 48_000, 32_000)

_MPEG_1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)

_MPEG_2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)

_MP3_VERSIONS = {3: (1152, 0, _MPEG_1_KBITS), 2: (576, 1, _MPEG_2_KBITS), 0: (576, 2, _MPEG_2_KBITS)}
"""MPEG 1, 2 and 2.5: samples of a frame, how often the rate is halved, kbit/s by number."""

_AAC_RATES = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8000,
    7350,
)

_Frame = tuple[int, float]
"""Of a frame: its bytes, its seconds."""


def measure_length(media: LocalMedia) -> float | None:
    """Return the seconds of a local medium, None if its headers do not say; to be called in a thread."""
    try:
        if not isinstance(media, Path):
            return _length_of(open_media(media))
        status = media.stat()
        return _length_of_file(media, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError):  # whoever uploads it says what is wrong
        return None


@lru_cache(maxsize=256)
def _length_of_file(path: Path, version: tuple[int, ...]) -> float | None:
    """Return the seconds of a file; thousands of requests may share one, which is read once per version."""
    return _length_of(path.open("rb"))


def _length_of(opened: BinaryIO) -> float | None:
    with opened as file:
        kind = sniff(file.read(HEAD_BYTES))
        size = file.seek(0, os.SEEK_END)
        read = _READERS.get(kind) if kind else None
        try:
            seconds = read(file, size) if read else _read_by_tinytag(file)
        except (IndexError, ZeroDivisionError):  # damaged or cut off
            return None
        return seconds if seconds and seconds > 0 else None


def _read_by_tinytag(file: BinaryIO) -> float | None:
    try:
        import tinytag  # an extra, needed for few files
    except ImportError:
        return None
    file.seek(0)
    try:
        return tinytag.TinyTag.get(file_obj=file, tags=False).duration
    except tinytag.TinyTagException:  # of a kind that it does not know either, or damaged
        return None


def _read_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


# --- a length that stands in a header --------------------------------------------------------------


def _wav(file: BinaryIO, size: int) -> float | None:
    position, bytes_per_s = 12, 0
    for _ in range(_MAX_CHUNKS):
        head = _read_at(file, position, 20)
        length, rest = int.from_bytes(head[4:8], "little"), size - position - 8
        if head[:4] == b"data":
            # Whoever writes to a pipe does not know the length yet, and says 0 or the most there can be.
            return min(length or rest, rest) / bytes_per_s
        if head[:4] == b"fmt ":
            bytes_per_s = int.from_bytes(head[16:20], "little")
        position += 8 + length + length % 2
        if position >= size:
            break
    return None


def _flac(file: BinaryIO, size: int) -> float | None:
    fields = int.from_bytes(_read_at(file, 18, 8))
    return (fields & (1 << 36) - 1) / (fields >> 44)


def _mp4(file: BinaryIO, size: int) -> float | None:
    for begin, end in find_boxes(file, b"moov", 0, size):
        for header, _ in find_boxes(file, b"mvhd", begin, end):
            fields = _read_at(file, header, 32)
            at, width = (20, 8) if fields[0] == 1 else (12, 4)
            duration = int.from_bytes(fields[at + 4 : at + 4 + width])
            is_known = duration < (1 << 8 * width) - 1
            return duration / int.from_bytes(fields[at : at + 4]) if is_known else None
    return None


def _ogg(file: BinaryIO, size: int) -> float | None:
    head = _read_at(file, 0, HEAD_BYTES)
    stream = head[27 + head[26] :]
    skipped = 0
    if stream.startswith(b"\x01vorbis"):
        rate = int.from_bytes(stream[12:16], "little")
    elif stream.startswith(b"OpusHead"):
        rate, skipped = 48_000, int.from_bytes(stream[10:12], "little")
    else:
        return None
    begin = max(0, size - 2 * _LARGEST_OGG_PAGE)
    tail = _read_at(file, begin, size - begin)
    last = tail.rfind(b"OggS")
    samples = int.from_bytes(tail[last + 6 : last + 14], "little", signed=True)
    return (samples - skipped) / rate if last >= 0 else None


# --- the sum of its frames -------------------------------------------------------------------------


def _mp3(file: BinaryIO, size: int) -> float | None:
    return _sum_frames(file, size, _after_tags(file), 4, _mp3_frame)


def _aac(file: BinaryIO, size: int) -> float | None:
    return _sum_frames(file, size, 0, 7, _aac_frame)


def _after_tags(file: BinaryIO) -> int:
    position = 0
    for _ in range(_MAX_TAGS):
        tag = _read_at(file, position, 10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            break
        length = sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
        position += 10 + length + (10 if tag[5] & 0x10 else 0)
    return position


def _sum_frames(
    file: BinaryIO, size: int, position: int, header: int, read_frame: Callable[[bytes], _Frame | None]
) -> float | None:
    """Return the seconds of all frames; None if they do not make up the file, tags at its end aside."""
    begin, seconds = position, 0.0
    while (frame := read_frame(_read_at(file, position, header))) is not None:
        position += frame[0]
        seconds += frame[1]
    is_whole = position - begin > 0.9 * (size - begin)
    return seconds if is_whole else None


def _mp3_frame(head: bytes) -> _Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, kbits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version not in _MP3_VERSIONS or kbits in {0, 15} or rate == 3:
        return None
    samples, halvings, kbits_by_number = _MP3_VERSIONS[version]
    per_s = _MP3_RATES[rate] >> halvings
    length = samples // 8 * kbits_by_number[kbits] * 1000 // per_s + (head[2] >> 1 & 1)
    return length, samples / per_s


def _aac_frame(head: bytes) -> _Frame | None:
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (length, 1024 * (1 + (head[6] & 3)) / _AAC_RATES[head[2] >> 2 & 15]) if length > 7 else None


_READERS: Mapping[MediaKind, Callable[[BinaryIO, int], float | None]] = {
    **dict.fromkeys((MP4, MOV, M4A), _mp4),
    WAV: _wav,
    FLAC: _flac,
    OGG: _ogg,
    MP3: _mp3,
    AAC: _aac,
}
