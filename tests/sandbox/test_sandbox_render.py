"""Rendered results are real films: one picture track, one sound track, as long as the voice."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import math
import threading
import wave
from array import array
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Any

import aiohttp
import pytest

from kie_async.sandbox import Fixed, Sandbox

av = pytest.importorskip("av")

from kie_async.sandbox.render import render  # noqa: E402  (needs PyAV)

CREATE, QUERY = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"


def voice(seconds: float, rate: int = 16_000) -> bytes:
    """A tone that is loud in its second half only."""
    count = int(seconds * rate)
    gain = [300 if at < count / 2 else 12_000 for at in range(count)]
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(array("h", (int(gain[at] * math.sin(at / 9)) for at in range(count))).tobytes())
    return target.getvalue()


def portrait(width: int, height: int, codec: str = "png") -> bytes:
    frame = av.VideoFrame(width, height, "rgb24")
    plane = frame.planes[0]
    plane.update(bytes(90 + (at // plane.line_size) % 60 for at in range(plane.buffer_size)))
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
    encoder.time_base = Fraction(1, 1)
    packets = encoder.encode(frame.reformat(format=encoder.pix_fmt)) + encoder.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def mp3(seconds: float) -> bytes:
    target = io.BytesIO()
    with av.open(io.BytesIO(voice(seconds))) as source, av.open(target, "w", format="mp3") as film:
        track = film.add_stream("mp3", rate=16_000, layout="mono")
        for frame in source.decode(audio=0):
            film.mux(track.encode(frame))
        film.mux(track.encode(None))
    return target.getvalue()


def probe(film: bytes) -> tuple[Any, list[float]]:
    """Return the opened container's facts and the brightness of every frame."""
    with av.open(io.BytesIO(film)) as source:
        (picture,), (sound,) = source.streams.video, source.streams.audio
        facts = {
            "codecs": (picture.codec_context.name, sound.codec_context.name),
            "size": (picture.width, picture.height),
            "lengths_s": [float(stream.duration * stream.time_base) for stream in (picture, sound)],
        }
        bright = []
        for frame in source.decode(video=0):
            luma = bytes(frame.planes[0])
            bright.append(sum(luma) / len(luma))
    with av.open(io.BytesIO(film)) as source:
        facts["samples"] = sum(frame.samples for frame in source.decode(audio=0))
    return facts, bright


@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.33])
def test_a_film_is_as_long_as_its_voice(seconds: float) -> None:
    facts, bright = probe(render(portrait(320, 240), voice(seconds)))
    assert facts["codecs"] == ("h264", "aac")
    assert facts["lengths_s"] == pytest.approx([seconds, seconds], abs=0.1)
    assert facts["samples"] / 44_100 == pytest.approx(seconds, abs=0.1)
    assert len(bright) == max(1, round(seconds * 15))


def test_the_picture_brightens_with_the_voice() -> None:
    _, bright = probe(render(portrait(320, 240), voice(2.0)))
    quiet, loud = bright[2:12], bright[18:28]
    assert sum(loud) / len(loud) > sum(quiet) / len(quiet) + 5


@pytest.mark.parametrize(
    ("given", "size"), [((641, 901), (340, 480)), ((321, 241), (320, 240)), ((2000, 100), (854, 42))]
)
def test_the_picture_keeps_its_shape_in_even_and_bounded_dimensions(
    given: tuple[int, int], size: tuple[int, int]
) -> None:
    assert probe(render(portrait(*given), None))[0]["size"] == size


def test_jpeg_and_mp3_are_read_too() -> None:
    facts, _ = probe(render(portrait(320, 240, "mjpeg"), mp3(1.5)))
    assert facts["size"] == (320, 240)
    assert facts["lengths_s"] == pytest.approx([1.5, 1.5], abs=0.1)


@pytest.mark.parametrize("junk", [None, b"", b"neither picture nor sound"])
def test_what_cannot_be_read_is_replaced_by_a_plain_face_and_two_seconds(junk: bytes | None) -> None:
    facts, _ = probe(render(junk, junk))
    assert facts["size"] == (270, 480)
    assert facts["lengths_s"] == pytest.approx([2.0, 2.0], abs=0.1)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer sandbox-key"}) as http:
        yield http


async def upload(http: aiohttp.ClientSession, kie: Sandbox, content: bytes, name: str) -> str:
    form = aiohttp.FormData({"uploadPath": "tests"})
    form.add_field("file", content, filename=name)
    async with http.post(kie.url + "/api/file-stream-upload", data=form) as answer:
        return str((await answer.json())["data"]["downloadUrl"])


async def film_url(http: aiohttp.ClientSession, kie: Sandbox, image_url: str, audio_url: str) -> str:
    body = {
        "model": "kling/ai-avatar-standard",
        "input": {"image_url": image_url, "audio_url": audio_url, "prompt": ""},
    }
    async with http.post(kie.url + CREATE, json=body) as answer:
        task_id = (await answer.json())["data"]["taskId"]
    while kie.tasks[task_id].state != "success":  # noqa: ASYNC110  the end happens in a server
        await asyncio.sleep(0.005)
    async with http.get(kie.url + QUERY, params={"taskId": task_id}) as answer:
        return str(json.loads((await answer.json())["data"]["resultJson"])["resultUrls"][0])


async def download(url: str) -> bytes:
    async with aiohttp.ClientSession() as stranger, stranger.get(url) as answer:
        assert answer.status == 200
        assert answer.content_type == "video/mp4"
        return await answer.read()


async def test_uploads_come_back_as_a_film_rendered_once_per_pair(http: aiohttp.ClientSession) -> None:
    async with Sandbox(render=True, durations=Fixed(0.01)) as kie:
        face = await upload(http, kie, portrait(320, 240), "face.png")
        sound = await upload(http, kie, voice(1.2), "voice.wav")
        urls = [await film_url(http, kie, face, sound) for _ in range(3)]
        films = await asyncio.gather(*map(download, urls))
        assert films[0] == films[1] == films[2]
        assert kie.films_rendered == 1
        assert kie.balance == 100_000 - 3 * 16
    facts, _ = probe(films[0])
    assert facts["lengths_s"] == pytest.approx([1.2, 1.2], abs=0.1)


async def test_addresses_elsewhere_still_end_in_a_playable_file(http: aiohttp.ClientSession) -> None:
    async with Sandbox(render=True, durations=Fixed(0.01)) as kie:
        url = await film_url(http, kie, "https://files.example/a.png", "https://files.example/b.mp3")
        facts, _ = probe(await download(url))
        assert facts["lengths_s"] == pytest.approx([2.0, 2.0], abs=0.1)


async def test_a_closing_sandbox_ends_the_render_under_way(http: aiohttp.ClientSession) -> None:
    async with Sandbox(render=True, durations=Fixed(0.01)) as kie:
        sound = await upload(http, kie, voice(60.0, rate=8000), "long.wav")
        url = await film_url(http, kie, "https://files.example/a.png", sound)
        asking = asyncio.create_task(download(url))
        while not kie.films_rendered:  # noqa: ASYNC110  the request arrives in a server
            await asyncio.sleep(0.001)
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert not any(thread.name.startswith("kie-sandbox-render") for thread in threading.enumerate())


async def test_rendering_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"kie_async\[sandbox\]"):
        await Sandbox(render=True).start()
