"""Files through a session: a portrait and a voice go up, a film comes down."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kie_async import (
    DownloadFailed,
    InvalidRequest,
    KieSession,
    KlingAvatar,
    Limits,
    PollSchedule,
    Rate,
    ResultExpired,
    SessionMisuse,
    TaskRequest,
)
from kie_async.sandbox import Fixed, Sandbox

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
MP3 = b"ID3\x04" + bytes(100)
FAST: dict[str, Any] = {
    "limits": Limits(create=Rate(1000, per_s=1.0), query=Rate(1000, per_s=1.0)),
    "poll": PollSchedule(first_s=0.02),
}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(durations=Fixed(0.01), create_limit=None, query_limit=None) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox: Sandbox) -> AsyncIterator[KieSession]:
    async with KieSession("sandbox-key", base_url=sandbox.url, **FAST) as session:
        yield session


@pytest.fixture
def face(tmp_path: Path) -> Path:
    return written(tmp_path / "face.png", PNG)


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    return written(tmp_path / "voice.mp3", MP3)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def inputs(sandbox: Sandbox) -> list[dict[str, Any]]:
    return [task.input for task in sandbox.tasks.values()]


async def test_a_portrait_and_a_voice_become_a_film_on_the_disk(
    session: KieSession, sandbox: Sandbox, face: Path, voice: Path, tmp_path: Path
) -> None:
    result = await session.run(KlingAvatar(image_url=face, audio_url=str(voice)))
    (film,) = await session.download(result, tmp_path / "out")
    assert film == tmp_path / "out" / f"{result.task_id}-1.mp4"
    assert await session.download(result.record, str(tmp_path / "out")) == [film]
    assert names_in(tmp_path / "out") == {film.name}
    (sent,) = inputs(sandbox)
    assert {Path(sent["image_url"]).suffix, Path(sent["audio_url"]).suffix} == {".png", ".mp3"}
    assert sent["prompt"] == ""
    assert sandbox.counts["upload"] == 2
    assert sandbox.counts["file"] == 1
    assert sandbox.counts["file.with_key"] == sandbox.counts["file.403"] == 0


async def test_a_hundred_creates_with_one_portrait_send_it_once(
    session: KieSession, sandbox: Sandbox, face: Path
) -> None:
    handles = await asyncio.gather(
        *(session.create("sandbox/echo", {"image_url": face, "seed": seed}) for seed in range(100))
    )
    assert len({handle.task_id for handle in handles}) == 100
    assert sandbox.counts["upload"] == 1
    (url,) = {sent["image_url"] for sent in inputs(sandbox)}
    assert url.startswith(sandbox.url)
    assert sorted(sent["seed"] for sent in inputs(sandbox)) == list(range(100))


async def test_a_bad_file_creates_nothing(
    session: KieSession, sandbox: Sandbox, face: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=r"^audio_url: cannot read"):
        await session.create(KlingAvatar(image_url=face, audio_url=tmp_path / "none.mp3"))
    assert not sandbox.tasks
    assert sandbox.counts["upload"] == 0
    await asyncio.gather(*(session.run("sandbox/echo", {}) for _ in range(3)))  # no slot was lost


async def test_media_at_any_depth_go_up(
    session: KieSession, sandbox: Sandbox, face: Path, voice: Path
) -> None:
    elements = [{"image": face, "sounds": (voice, voice)}, {"image": PNG}]
    await session.run("sandbox/echo", {"elements": elements}, ref="once")
    (sent,) = inputs(sandbox)
    first, second = sent["elements"]
    assert first["image"] == second["image"]
    assert first["sounds"][0] == first["sounds"][1]
    assert sandbox.counts["upload"] == 2


async def test_bytes_come_out_as_they_went_in(session: KieSession, sandbox: Sandbox) -> None:
    result = await session.run(KlingAvatar(image_url=PNG, audio_url=io.BytesIO(MP3)))
    content = await session.read(result)
    assert content == await session.read(result.record) == await session.read(result.url)
    assert b"".join([block async for block in session.stream(result.url)]) == content
    with pytest.raises(DownloadFailed, match="more than 5 bytes"):
        await session.read(result, max_bytes=5)
    assert sandbox.counts["file.with_key"] == 0


async def test_a_result_of_several_files_is_read_by_its_urls(session: KieSession, sandbox: Sandbox) -> None:
    result = await session.run("sandbox/echo", {"result_urls": [sandbox.url + "/a", sandbox.url + "/b"]})
    for read in (session.read, lambda result: anext(session.stream(result))):
        with pytest.raises(InvalidRequest, match="the result is 2 files: take one of its urls"):
            await read(result)
        with pytest.raises(InvalidRequest, match="result must be a TaskResult or a URL, got int"):
            await read(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="max_bytes must be a whole number"):
        await session.read(result.urls[0], max_bytes=0)


async def test_a_presigned_url_is_warned_of_in_a_session(
    session: KieSession, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await session.run("sandbox/echo", {"audio_url": "https://b.example/v.mp3?X-Amz-Signature=canary"})
    (text,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert text.startswith("audio_url is a URL with a query")


async def test_upload_takes_a_file_its_bytes_or_a_url(session: KieSession, face: Path) -> None:
    first = await session.upload(face)
    assert first.url != (await session.upload(PNG)).url
    assert (await session.upload(first.url)).size == len(PNG)


async def test_results_elsewhere_are_fetched_over_https_from_public_hosts_only(
    session: KieSession, tmp_path: Path
) -> None:
    for url in ("http://files.example/film.mp4", "https://10.0.0.1/film.mp4?token=canary"):
        result = await session.run(TaskRequest(model="sandbox/echo", input={"result_urls": [url]}))
        with pytest.raises(DownloadFailed, match=r"not https|not a public address") as caught:
            await session.download(result, tmp_path / "out")
        assert "canary" not in str(caught.value)
        assert result.task_id in str(caught.value)
    assert names_in(tmp_path / "out") == set()


async def test_a_result_that_is_gone_is_expired(
    session: KieSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    urls = [f"{sandbox.url}/files/results/none.mp4"]
    result = await session.run("sandbox/echo", {"result_urls": urls})
    with pytest.raises(ResultExpired):
        await session.download(result, tmp_path / "out")


async def test_closing_the_session_ends_what_is_under_way(sandbox: Sandbox, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with KieSession("k", base_url=sandbox.url, upload_url=host, **FAST) as session:
        result = await result_at(sandbox, f"{host}/film.mp4")
        fetching = asyncio.create_task(session.download(result, tmp_path / "out"))
        sending = asyncio.create_task(session.upload(PNG))
        await asyncio.sleep(0.05)
    with pytest.raises(DownloadFailed, match="session closed"):
        await fetching
    with pytest.raises(SessionMisuse, match="session closed"):
        await sending
    assert names_in(tmp_path / "out") == set()
    gate.set()
    server.close()
    await server.wait_closed()


async def result_at(sandbox: Sandbox, url: str) -> Any:
    async with KieSession("sandbox-key", base_url=sandbox.url, **FAST) as session:
        return await session.run("sandbox/echo", {"result_urls": [url]})
