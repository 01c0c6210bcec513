"""A file is recognized by its first bytes, never by its name."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kie_async import InvalidRequest
from kie_async.files.media_types import (
    AAC,
    AMR,
    AVI,
    AVIF,
    BMP,
    ENDINGS,
    FLAC,
    GIF,
    HEAD_BYTES,
    HEIC,
    JPEG,
    KINDS,
    M4A,
    MAX_UPLOAD_BYTES,
    MKV,
    MOV,
    MP3,
    MP4,
    OGG,
    PNG,
    SVG,
    TIFF,
    UNKNOWN_ENDING,
    WAV,
    WEBM,
    WEBP,
    MediaKind,
    check_media,
    families_of_tracks,
    sniff,
)

KNOWN = [
    pytest.param(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", JPEG, id="jpeg"),
    pytest.param(b"\xff\xd8\xff\xe1\x1c\x45Exif\x00\x00", JPEG, id="jpeg of a camera"),
    pytest.param(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", PNG, id="png"),
    pytest.param(b"RIFF\x24\x00\x00\x00WEBPVP8 ", WEBP, id="webp"),
    pytest.param(b"GIF89a\x01\x00\x01\x00\x80\x00", GIF, id="gif"),
    pytest.param(b"ID3\x04\x00\x00\x00\x00\x00\x23TSSE", MP3, id="mp3 with tags"),
    pytest.param(b"\xff\xfb\x90\x64\x00\x00", MP3, id="mp3"),
    pytest.param(b"\xff\xfa\x90\x64\x00\x00", MP3, id="mp3 with checksums"),
    pytest.param(b"\xff\xf3\x48\xc4\x00\x00", MP3, id="mp3 of mpeg 2, as speech services send"),
    pytest.param(b"\xff\xe3\x48\xc4\x00\x00", MP3, id="mp3 of mpeg 2.5"),
    pytest.param(b"\xff\xf1\x50\x80\x02\x1f\xfc", AAC, id="aac"),
    pytest.param(b"\xff\xf9\x4c\x80\x02\x1f\xfc", AAC, id="aac of mpeg 2"),
    pytest.param(b"RIFF\x24\x08\x00\x00WAVEfmt ", WAV, id="wav"),
    pytest.param(b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00", M4A, id="m4a"),
    pytest.param(b"\x00\x00\x00\x1cftypM4B \x00\x00\x02\x00", M4A, id="audio book"),
    pytest.param(b"OggS\x00\x02\x00\x00\x00\x00", OGG, id="ogg"),
    pytest.param(b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", MP4, id="mp4"),
    pytest.param(b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00", MP4, id="mp4 version 2"),
    pytest.param(b"\x1aE\xdf\xa3\x01\x00\x00\x00", WEBM, id="webm"),
    pytest.param(b"\x1aE\xdf\xa3\xa3B\x86\x81\x01B\x82\x88matroska", MKV, id="mkv"),
    pytest.param(b"\x00\x00\x00\x14ftypqt  \x00\x00\x02\x00", MOV, id="mov"),
    pytest.param(b"RIFF\x24\x00\x00\x00AVI LIST", AVI, id="avi"),
    pytest.param(b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00", HEIC, id="heic"),
    pytest.param(b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", AVIF, id="avif"),
    pytest.param(b"fLaC\x00\x00\x00\x22", FLAC, id="flac"),
    pytest.param(b"#!AMR\n\x3c", AMR, id="amr"),
    pytest.param(b"BM\x36\x00\x0c\x00\x00\x00\x00\x00\x36", BMP, id="bmp"),
    pytest.param(b"II*\x00\x08\x00\x00\x00", TIFF, id="tiff"),
    pytest.param(b"RF64\xff\xff\xff\xffWAVEds64", WAV, id="wav of more than 4 GB"),
    pytest.param(b"<?xml version='1.0'?>\n<svg xmlns=''>", SVG, id="svg"),
]
STRANGE = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\xff", id="one byte"),
    pytest.param(b"\xff\xfb", id="two bytes of mp3"),
    pytest.param(b"%PDF-1.7\n", id="pdf"),
    pytest.param(b"<!DOCTYPE html><", id="html"),
    pytest.param(b"RIFF\x24\x00\x00\x00CDXALIST", id="another riff"),
    pytest.param(b"RIFF", id="riff, cut"),
    pytest.param(b"BM, said the text", id="text like a bmp"),
    pytest.param(b"<?xml version='1.0'?><note>", id="xml"),
    pytest.param("\ufeffa text of windows".encode("utf-16-le"), id="utf-16 text"),
    pytest.param(b"\xff\xff\xff\xff\xff\xff", id="erased flash"),
    pytest.param(b"\xff\xeb\x90\x64", id="mpeg of a reserved version"),
    pytest.param(b"\xff\xfb\xf0\x64", id="mp3 of a bad bitrate"),
    pytest.param(b"\xff\xfb\x9c\x64", id="mp3 of a reserved rate"),
    pytest.param(b"\xff\xfd\x90\x64", id="mpeg layer 2"),
    pytest.param(b"\xff\xf1\x3c\x80", id="aac of a reserved rate"),
    pytest.param(b"JFIF\xff\xd8\xff", id="jpeg, not at the start"),
]


@pytest.mark.parametrize(("head", "kind"), KNOWN)
def test_a_kind_is_recognized_by_the_first_bytes(head: bytes, kind: MediaKind) -> None:
    assert sniff(head) is kind
    assert sniff(head[:HEAD_BYTES]) is kind


@pytest.mark.parametrize("head", STRANGE)
def test_anything_else_is_no_kind_of_ours(head: bytes) -> None:
    assert sniff(head) is None


@given(st.binary(max_size=64))
def test_any_bytes_are_a_kind_or_none_and_the_rest_does_not_matter(content: bytes) -> None:
    kind = sniff(content)
    assert kind is None or kind.ending in ENDINGS
    assert sniff(content[:HEAD_BYTES]) is kind


def test_the_endings_are_all_different() -> None:
    assert len(set(ENDINGS)) == len(ENDINGS)
    assert {kind.ending for kind in KINDS} | {UNKNOWN_ENDING} <= set(ENDINGS)
    assert len({kind.ending for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(("head", "kind"), KNOWN)
def test_an_avatar_takes_a_few_images_and_audio_and_nothing_else(head: bytes, kind: MediaKind) -> None:
    if kind in MAX_UPLOAD_BYTES:
        assert check_media("face", head, len(head)) is kind
        assert kind.family in {"image", "audio"}
    else:
        assert kind.family == "video" or kind in {GIF, HEIC, AVIF, BMP, TIFF, SVG, FLAC, AMR}
        with pytest.raises(InvalidRequest, match="face is neither JPEG"):
            check_media("face", head, len(head))


@pytest.mark.parametrize(("kind", "most"), [(JPEG, 10 * 1024**2), (WAV, 100 * 1024**2)])
def test_a_file_may_have_just_so_many_bytes(kind: MediaKind, most: int) -> None:
    head = next(case.values[0] for case in KNOWN if case.values[1] is kind)
    assert isinstance(head, bytes)
    assert check_media("face", head, most) is kind
    with pytest.raises(InvalidRequest, match=rf"^face has {most + 1} bytes; .* may have {most}$"):
        check_media("face", head, most + 1)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(InvalidRequest, match=r"^face is empty$"):
        check_media("face", b"", 0)


def test_an_unknown_kind_is_refused_whatever_its_size() -> None:
    with pytest.raises(InvalidRequest, match="neither JPEG"):
        check_media("face", b"%PDF-1.7", 8)


@given(st.binary(max_size=400))
@example(b"\0\0\0\x08moov" * 10)
@example(b"\0\0\0\0moov\0\0\0\0trak\0\0\0\0mdia\0\0\0\0hdlr" + b"vide")
@example(b"\0\0\0\x01moov" + b"\xff" * 8)
def test_any_bytes_have_tracks_or_none(content: bytes) -> None:
    for kind in (MP4, WEBM):
        assert families_of_tracks(kind, io.BytesIO(content), len(content)) <= {"audio", "video"}


def test_a_box_of_a_million_boxes_is_not_read_to_its_end() -> None:
    content = b"\0\0\0\x08free" * 200_000
    assert not families_of_tracks(MP4, io.BytesIO(content), len(content))
