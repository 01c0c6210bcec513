"""Renders an MP4 from a portrait and a voice: the face brightens and leans in with the voice.

Needs the ``sandbox`` extra (PyAV). Everything here blocks; ``films`` runs it in a thread.
"""

from __future__ import annotations

import io
import math
import threading
from array import array
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise

import attrs
import av
from av.filter import Graph

_FPS = 15
_RATE = 44_100
"""Samples per second of the sound track."""
_TALLEST = 480
_WIDEST = 854
_NEUTRAL_SIZE = (270, 480)
_NEUTRAL_TONE_S = 2.0
_LONGEST_S = 300.0
_LEVELS = 8
"""Poses between silence and the loudest moment."""


@attrs.frozen
class Voice:
    """Mono 16-bit sound at ``_RATE``."""

    samples: array[int]

    @property
    def length_s(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / _RATE

    def levels(self, count: int) -> list[int]:
        """Return *count* loudnesses, evenly spaced in time, from 0 (silence) to the loudest, 7."""
        edges = [round(len(self.samples) * part / count) for part in range(count + 1)]
        # Every eighth sample is plenty to judge loudness by.
        loud = [_rms(self.samples[start:end:8]) for start, end in pairwise(edges)]
        loudest = max(loud) or 1.0
        return [min(_LEVELS - 1, int(_LEVELS * value / loudest)) for value in loud]


def _rms(samples: array[int]) -> float:
    return math.sqrt(sum(sample * sample for sample in samples) / len(samples)) if samples else 0.0


class RenderStopped(Exception):
    """Nobody wants the film any more."""


def render(portrait: bytes | None, voice: bytes | None, stop: threading.Event | None = None) -> bytes:
    """Return an MP4 (H.264 and AAC) as long as the voice, at most 480 pixels high and 300 s long.

    What is missing or cannot be decoded is replaced: a plain portrait, two seconds of a soft tone.

    Raises:
        RenderStopped: *stop* was set.
    """
    stop = stop or threading.Event()
    sound = _decode_voice(voice, stop) or _neutral_voice()
    face = _decode_portrait(portrait) or _neutral_portrait()
    count = max(1, round(sound.length_s * _FPS))
    poses = [_pose(face, level) for level in range(_LEVELS)]
    return _encode([poses[level] for level in sound.levels(count)], sound, stop)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise RenderStopped


def _decode_voice(content: bytes | None, stop: threading.Event) -> Voice | None:
    if not content:
        return None
    samples = array("h")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_RATE)
    try:
        with av.open(io.BytesIO(content), "r") as source:
            for frame in source.decode(audio=0):
                _check(stop)
                _extend(samples, resampler.resample(frame))
                if len(samples) >= _LONGEST_S * _RATE:
                    break
        _extend(samples, resampler.resample(None))
    except (av.FFmpegError, IndexError, ValueError):
        return None  # not sound; the caller has a stand-in
    return Voice(samples) if samples else None


def _extend(samples: array[int], frames: Iterable[av.AudioFrame]) -> None:
    for frame in frames:
        samples.frombytes(bytes(frame.planes[0])[: frame.samples * 2])


def _neutral_voice() -> Voice:
    count = int(_NEUTRAL_TONE_S * _RATE)
    swell = (math.sin(math.pi * 4 * at / count) ** 2 for at in range(count))
    tone = (math.sin(2 * math.pi * 220 * at / _RATE) for at in range(count))
    return Voice(array("h", (int(3000 * a * b) for a, b in zip(swell, tone, strict=True))))


def _decode_portrait(content: bytes | None) -> av.VideoFrame | None:
    if not content:
        return None
    try:
        with av.open(io.BytesIO(content), "r") as source:
            frame = next(source.decode(video=0))
    except (av.FFmpegError, IndexError, ValueError, StopIteration):
        return None  # not a picture; the caller has a stand-in
    scale = min(1.0, _TALLEST / frame.height, _WIDEST / frame.width)
    return frame.reformat(
        width=_even(frame.width * scale), height=_even(frame.height * scale), format="yuv420p"
    )


def _even(length: float) -> int:
    return max(16, int(length) // 2 * 2)


def _neutral_portrait() -> av.VideoFrame:
    frame = av.VideoFrame(*_NEUTRAL_SIZE, "yuv420p")
    for plane, value in zip(frame.planes, (112, 120, 138), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


def _pose(face: av.VideoFrame, level: int) -> av.VideoFrame:
    """Return *face* a little brighter and a little closer, by *level*."""
    graph = Graph()
    zoom, gain = 1 + 0.006 * level, 1 + 0.02 * level
    wide, tall = _even(face.width * zoom), _even(face.height * zoom)
    source = graph.add_buffer(
        width=face.width, height=face.height, format=face.format, time_base=Fraction(1, _FPS)
    )
    graph.link_nodes(
        source,
        graph.add("scale", f"{wide}:{tall}"),
        graph.add("crop", f"{face.width}:{face.height}"),
        graph.add("lutyuv", f"y='clip(val*{gain},16,235)'"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    graph.push(face)
    posed = graph.pull()
    assert isinstance(posed, av.VideoFrame)  # noqa: S101  a video graph yields video
    return posed


def _encode(frames: list[av.VideoFrame], sound: Voice, stop: threading.Event) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as film:
        picture = film.add_stream("h264", rate=_FPS)
        picture.width, picture.height = frames[0].width, frames[0].height
        picture.pix_fmt = "yuv420p"
        picture.options = {"preset": "ultrafast", "crf": "28"}
        track = film.add_stream("aac", rate=_RATE, layout="mono")
        for number, frame in enumerate(frames):
            _check(stop)
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            film.mux(picture.encode(frame))
        film.mux(picture.encode(None))
        for piece in _pieces(sound):
            film.mux(track.encode(piece))
        film.mux(track.encode(None))
    return target.getvalue()


def _pieces(sound: Voice) -> Iterator[av.AudioFrame]:
    for start in range(0, len(sound.samples), 1024):
        part = sound.samples[start : start + 1024]
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(part), align=1)
        frame.planes[0].update(part.tobytes())
        frame.sample_rate, frame.pts, frame.time_base = _RATE, start, Fraction(1, _RATE)
        yield frame
