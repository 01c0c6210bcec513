"""How long audio lasts is read from its headers; what they do not say is unknown, and never an error."""

from __future__ import annotations

import array
import io
import math
import wave
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kie_async.files.audio_length import measure_length
from kie_async.inputs.media import MediaStream

SECONDS = 3.7
PADDING_S = 0.4
"""Encoders fill up their first and last frame."""


def wav(seconds: float = SECONDS, per_s: int = 8000) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as voice:
        voice.setparams((1, 2, per_s, 0, "NONE", ""))
        voice.writeframes(bytes(2 * round(seconds * per_s)))
    return made.getvalue()


def encoded(box: str, codec: str, per_s: int) -> bytes:
    av = pytest.importorskip("av")
    made = io.BytesIO()
    with av.open(made, "w", format=box) as out:
        stream = out.add_stream(codec, rate=per_s, layout="mono")
        wanted = round(SECONDS * per_s)
        for begin in range(0, wanted, 1024):
            count = min(1024, wanted - begin)
            tone = array.array("h", (int(9000 * math.sin((begin + at) / 20)) for at in range(count)))
            frame = av.AudioFrame(format="s16", layout="mono", samples=count)
            frame.planes[0].update(tone.tobytes().ljust(frame.planes[0].buffer_size, b"\0"))
            frame.sample_rate, frame.pts, frame.time_base = per_s, begin, Fraction(1, per_s)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return made.getvalue()


@pytest.mark.parametrize(
    ("box", "codec", "per_s"),
    [
        ("wav", "pcm_s16le", 8000),
        ("mp3", "libmp3lame", 44_100),
        ("mp3", "libmp3lame", 22_050),
        ("mp3", "libmp3lame", 11_025),
        ("adts", "aac", 44_100),
        ("ipod", "aac", 44_100),
        ("mp4", "aac", 48_000),
        ("ogg", "libopus", 48_000),
        ("flac", "flac", 44_100),
    ],
)
def test_audio_of_every_kind_has_its_length(box: str, codec: str, per_s: int) -> None:
    assert measure_length(encoded(box, codec, per_s)) == pytest.approx(SECONDS, abs=PADDING_S)


def test_the_length_of_vorbis_is_the_position_of_its_last_page() -> None:
    head = b"\x01vorbis" + bytes(4) + b"\x01" + (44_100).to_bytes(4, "little") + bytes(14)

    def page(position: int, content: bytes) -> bytes:
        fields = b"OggS\0\0" + position.to_bytes(8, "little") + bytes(12)
        return fields + b"\x01" + bytes([len(content)]) + content

    assert measure_length(page(0, head) + page(88_200, bytes(200))) == 2.0


@pytest.mark.parametrize("tags", [b"ID3\4\0\0\0\0\1\0" + bytes(128), b"ID3\4\0\x10\0\0\0\0" + bytes(10)])
def test_tags_around_mp3_are_no_sound(tags: bytes) -> None:
    plain = encoded("mp3", "libmp3lame", 44_100)
    assert measure_length(tags + plain + b"TAG" + bytes(125)) == measure_length(plain)


def test_a_wav_written_to_a_pipe_is_as_long_as_it_is() -> None:
    whole = wav()
    at = whole.index(b"data") + 4
    for unknown in (bytes(4), b"\xff" * 4):
        assert measure_length(whole[:at] + unknown + whole[at + 4 :]) == pytest.approx(SECONDS)


def test_paths_bytes_and_streams_are_measured_alike(tmp_path: Path) -> None:
    (tmp_path / "voice.wav").write_bytes(wav())
    media = tmp_path / "voice.wav", wav(), MediaStream(io.BytesIO(wav()))
    assert [measure_length(medium) for medium in media] == [pytest.approx(SECONDS)] * 3


def test_a_file_that_was_replaced_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(wav(1.0))
    assert measure_length(path) == 1.0
    path.write_bytes(wav(2.0))
    assert measure_length(path) == 2.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        wav()[:30],
        wav(0.0),
        b"ID3",
        b"ID3\4\0\0\0\0\0\0" + bytes(4000),
        b"\xff\xfb\x90\x00" + bytes(4000),
        b"OggS",
        b"fLaC" + bytes(60),
        b"\0\0\0\x0cftypM4A \0\0\0\x10moov\0\0\0\x08mvhd",
        b"\x1aE\xdf\xa3" + bytes(100),
    ],
)
def test_what_headers_do_not_say_is_unknown(content: bytes) -> None:
    assert measure_length(content) is None


def test_a_file_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    assert measure_length(tmp_path / "voice.wav") is None


HEADS = [
    *(
        b"RIFF\0\0\0\0WAVE",
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0",
        b"ID3",
        b"\xff\xfb\x90\x64",
        b"\xff\xf1\x50\x80",
    ),
    *(b"OggS", b"fLaC\0\0\0\x22", b"\0\0\0\x0cftypM4A \0\0\0\x40moov\0\0\0\x20mvhd"),
]


@settings(max_examples=300)
@given(st.sampled_from(HEADS), st.binary(max_size=400))
def test_no_file_breaks_it(head: bytes, rest: bytes) -> None:
    length = measure_length(head + rest)
    assert length is None or 0 < length < math.inf
