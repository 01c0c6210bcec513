"""Files go up once per version, checked before a byte leaves, and the key goes to the upload host only."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import re
import time
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.raw_server import NoWait, RawServer, envelope, http, silence

from kie_async import (
    AnswerUnreadable,
    AuthenticationError,
    InvalidRequest,
    SessionMisuse,
    TaskRequest,
    TransportError,
    UploadRefused,
)
from kie_async._secrets import Secret
from kie_async.files.uploads import UPLOAD_FOLDER, Uploads
from kie_async.sandbox import Sandbox

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
UPLOADED = envelope(downloadUrl="https://files.example/face.png", fileName="face.png", fileSize=108.0)


def make(url: str, *, key: str = "sandbox-key", **options: Any) -> Uploads:
    return Uploads(url, Secret(key), rng=NoWait(), **options)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def uploads(sandbox: Sandbox) -> AsyncIterator[Uploads]:
    uploads = make(sandbox.upload_url)
    yield uploads
    await uploads.aclose()


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "face.jpg"  # the name lies
    path.write_bytes(PNG)
    return path


def voice(seconds: int = 1) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000 * seconds))
    return content.getvalue()


def stored(sandbox: Sandbox, url: str) -> Any:
    return sandbox._world.files.find(url)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  what is waited for happens in a server
            await asyncio.sleep(0.001)


def request_of(**fields: Any) -> TaskRequest:
    return TaskRequest(model="any/model", input=fields)


# --- what arrives ---------------------------------------------------------------------------------


async def test_a_file_arrives_whole_under_a_name_of_its_own(
    sandbox: Sandbox, uploads: Uploads, face: Path
) -> None:
    uploaded = await uploads.upload(face)
    file = stored(sandbox, uploaded.url)
    assert file.content == PNG
    assert file.mime == uploaded.mime_type == "image/png"
    assert re.fullmatch(r"[0-9a-f]{32}\.png", uploaded.name)
    assert (uploaded.name, uploaded.size) == (file.name, len(PNG))
    assert file.path == f"kieai/sandbox/{UPLOAD_FOLDER}/{uploaded.name}"


async def test_a_path_as_text_and_bytes_go_up_too(sandbox: Sandbox, uploads: Uploads, face: Path) -> None:
    assert stored(sandbox, (await uploads.upload(str(face))).url).content == PNG
    sound = await uploads.upload(voice())
    assert stored(sandbox, sound.url).length_s == 1.0
    assert sound.name.endswith(".wav")


async def test_the_same_bytes_twice_get_two_names(uploads: Uploads) -> None:
    assert (await uploads.upload(PNG)).name != (await uploads.upload(PNG)).name


async def test_megabytes_go_up_without_a_warning(sandbox: Sandbox, uploads: Uploads, tmp_path: Path) -> None:
    large = b"\xff\xd8\xff" + os.urandom(5_000_000)
    (tmp_path / "large").write_bytes(large)
    for file in (large, tmp_path / "large"):
        assert stored(sandbox, (await uploads.upload(file)).url).content == large


async def test_the_service_fetches_a_url(sandbox: Sandbox, uploads: Uploads) -> None:
    first = await uploads.upload(PNG)
    second = await uploads.upload(first.url + "?token=1")
    assert stored(sandbox, second.url).content == PNG
    assert second.name.endswith(".png")
    assert second.name != first.name


@pytest.mark.parametrize(
    ("url", "ending"),
    [
        ("https://files.example/a/face.JPEG?x=.gif#.png", ".JPEG"),
        ("https://files.example/face", ""),
        ("https://files.example/face.", ""),
        ("https://files.example/face.ab%2F", ""),
        ("https://files.example/face.ébé", ""),
        ("https://files.example/face.averylongending", ".averylo"),
    ],
)
async def test_a_fetched_url_is_named_by_us(url: str, ending: str) -> None:
    async with RawServer(UPLOADED) as server:
        uploads = make(server.url)
        await uploads.upload(url)
        await uploads.aclose()
    (asked,) = server.asked
    assert asked.path == "/api/file-url-upload"
    fields = json.loads(asked.body)
    assert (fields.pop("fileUrl"), fields.pop("uploadPath")) == (url, UPLOAD_FOLDER)
    assert re.fullmatch(rf"[0-9a-f]{{32}}{re.escape(ending)}", fields.pop("fileName"))
    assert not fields


async def test_the_upload_host_gets_the_key_and_a_form(face: Path) -> None:
    async with RawServer(UPLOADED) as server:
        uploads = make(server.url, key="a-key")
        await uploads.upload(face)
        await uploads.aclose()
    (asked,) = server.asked
    assert asked.path == "/api/file-stream-upload"
    assert asked.header("Authorization") == "Bearer a-key"
    assert (asked.header("Content-Type") or "").startswith("multipart/form-data")
    assert PNG in asked.body
    assert b"face" not in asked.body  # a local name says nothing to others


async def test_both_documented_answers_are_read(face: Path) -> None:
    other = envelope(fileId="1", originalName="x.png", fileUrl="https://files.example/x.png", fileSize="108")
    async with RawServer(other, UPLOADED) as server:
        uploads = make(server.url)
        file = await uploads.upload(PNG)
        assert (file.url, file.name, file.size) == ("https://files.example/x.png", "", 108)
        assert (await uploads.upload(PNG)).url == "https://files.example/face.png"
        await uploads.aclose()


# --- checked before anything is sent --------------------------------------------------------------


async def test_a_file_is_refused_here_before_anything_is_sent(
    sandbox: Sandbox, uploads: Uploads, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("I am a picture")
    (tmp_path / "film.png").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(20))
    with (tmp_path / "large.png").open("wb") as large:
        large.write(PNG)
        large.truncate(10 * 1024**2 + 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in {
        "none.png": "cannot read '.*none.png': No such file",
        "empty.png": "empty.png' is empty",
        "text.png": "text.png' is neither JPEG",
        "film.png": "film.png' is neither JPEG",
        "large.png": "has 10485761 bytes",
        "pipe": "pipe' is not a file",
        "loop": "cannot read '.*loop': Too many levels",
        ".": "is not a file",
        "a\0b": "cannot read .*null",
        "x" * 5000: "cannot read '[^']{200}': File name too long",
    }.items():
        with pytest.raises(InvalidRequest, match=words):
            await uploads.upload(tmp_path / name)
    with pytest.raises(InvalidRequest, match="the upload is neither JPEG"):
        await uploads.upload(b"I am a picture")
    with pytest.raises(InvalidRequest, match="http"):
        await uploads.upload("ftp://files.example/face.png")
    with pytest.raises(InvalidRequest, match="user name"):
        await uploads.upload("https://me:secret@files.example/face.png")
    assert sandbox.counts["upload"] == 0


@pytest.mark.parametrize(("field", "content"), [("audio_url", PNG), ("image_url", voice())])
async def test_a_picture_for_a_voice_is_refused_before_anything_is_sent(
    sandbox: Sandbox, uploads: Uploads, tmp_path: Path, field: str, content: bytes
) -> None:
    path = tmp_path / "swapped"
    path.write_bytes(content)

    with pytest.raises(InvalidRequest, match=f"{field}: .*swapped' is .*, not {field[:5]}"):
        await uploads.replace_media(TaskRequest(model="sandbox/echo", input={field: path}))

    assert not sandbox.counts


async def test_a_file_behind_a_link_goes_up(uploads: Uploads, face: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(face)
    assert (await uploads.upload(tmp_path / "link")).name.endswith(".png")


async def test_a_file_that_changes_before_its_turn_is_not_sent(tmp_path: Path) -> None:
    first, late, gone = (tmp_path / name for name in ("first", "late", "gone"))
    for path in (first, late, gone):
        path.write_bytes(PNG)
    async with RawServer(silence) as server:
        uploads = make(server.url)
        fill = [asyncio.create_task(uploads.upload(PNG)) for _ in range(4)]  # all there is room for
        await eventually(lambda: len(server.asked) == 4)
        waiting = [asyncio.create_task(uploads.upload(path)) for path in (late, gone)]
        await eventually(lambda: len(uploads._shared) == 2)
        late.write_bytes(PNG + b"!")
        gone.unlink()
        for upload in fill:
            upload.cancel()
        for upload in waiting:
            with pytest.raises(InvalidRequest, match="changed before it was uploaded"):
                await upload
        await asyncio.gather(*fill, return_exceptions=True)
        assert len(server.asked) == 4
        await uploads.aclose()


# --- once for all who ask -------------------------------------------------------------------------


async def test_a_hundred_who_ask_at_once_share_one_upload(
    sandbox: Sandbox, uploads: Uploads, face: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(face)
    asking = [uploads.upload(face if number % 2 else tmp_path / "link") for number in range(50)]
    asking_too = [uploads.replace_media(request_of(image_url=face)) for _ in range(50)]
    files, requests = await asyncio.gather(asyncio.gather(*asking), asyncio.gather(*asking_too))
    assert len({file.url for file in files} | {filled.input["image_url"] for filled in requests}) == 1
    assert sandbox.counts["upload"] == 1
    assert (await uploads.upload(face)).url == files[0].url
    assert sandbox.counts["upload"] == 1


def changed(face: Path, change: str) -> bytes:
    """Change *face* in one respect only, and return what it holds now."""
    before = face.stat()
    if change == "longer":
        face.write_bytes(PNG + b"!")
        os.utime(face, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "touched":
        os.utime(face, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "rewritten":
        time.sleep(0.02)  # some kernels count time in steps of 4 ms
        face.write_bytes(PNG[:-1] + b"!")
        os.utime(face, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        other = face.with_name("other")
        other.write_bytes(PNG[:-1] + b"!")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(face)
    return face.read_bytes()


@pytest.mark.parametrize("change", ["longer", "touched", "replaced", "rewritten"])
async def test_a_changed_file_goes_up_again(
    sandbox: Sandbox, uploads: Uploads, face: Path, change: str
) -> None:
    first = await uploads.upload(face)
    content = changed(face, change)
    second = await uploads.upload(face)
    assert second.url != first.url
    assert stored(sandbox, second.url).content == content
    assert sandbox.counts["upload"] == 2


async def test_a_failed_upload_fails_for_all_and_is_then_tried_anew_once(
    sandbox: Sandbox, uploads: Uploads, face: Path
) -> None:
    sandbox.faults.revoke_key = True
    outcomes = await asyncio.gather(*(uploads.upload(face) for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {AuthenticationError}
    failed = sandbox.counts["upload"]  # more than one if somebody asked after the first had failed
    sandbox.faults.revoke_key = False
    urls = await asyncio.gather(*(uploads.upload(face) for _ in range(20)))
    assert len({file.url for file in urls}) == 1
    assert sandbox.counts["upload"] == failed + 1


async def test_a_cancelled_caller_cancels_the_upload_for_nobody_else(face: Path) -> None:
    gate = asyncio.Event()

    async def later(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(UPLOADED)

    async with RawServer(later) as server:
        uploads = make(server.url)
        first, second = (asyncio.create_task(uploads.upload(face)) for _ in range(2))
        await eventually(lambda: len(server.asked) == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert (await second).url == "https://files.example/face.png"
        await uploads.aclose()
    assert len(server.asked) == 1


async def test_an_upload_whose_callers_all_left_fails_in_silence(
    face: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    async def later(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(envelope(400))

    async with RawServer(later) as server:
        uploads = make(server.url)
        only = asyncio.create_task(uploads.upload(face))
        await eventually(lambda: len(server.asked) == 1)
        only.cancel()
        await asyncio.wait([only])
        gate.set()
        ((_, upload),) = uploads._shared.values()
        await asyncio.wait([upload])
        del only, upload
        await uploads.aclose()
        del uploads
    gc.collect()
    await asyncio.sleep(0)
    assert not caplog.records


async def test_an_upload_is_used_again_for_two_days_only(
    sandbox: Sandbox, uploads: Uploads, face: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(PNG + b"other")
    first = await uploads.upload(face)
    await uploads.upload(tmp_path / "other")
    for version, (begun, upload) in uploads._shared.items():
        uploads._shared[version] = begun - REUSE_UPLOAD_S, upload
    assert (await uploads.upload(face)).url != first.url
    assert sandbox.counts["upload"] == 3
    assert len(uploads._shared) == 1  # and forgotten, so that a bot of months does not grow


# --- in place of paths ----------------------------------------------------------------------------


async def test_paths_are_replaced_and_nothing_else_is_touched(
    sandbox: Sandbox, uploads: Uploads, face: Path, tmp_path: Path
) -> None:
    sound = tmp_path / "voice"
    sound.write_bytes(voice())
    asked = request_of(
        image_url=face,
        audio_url=sound,
        image_urls=[face, "https://files.example/x.png", face],
        input_urls=(sound, None),
        prompt="",
        path=str(face),
        flags=[1, False, None],
        pair=(1, 2),
        deep={"image": [1]},
        none=None,
    )
    filled = await uploads.replace_media(asked)
    image, audio = filled.input["image_url"], filled.input["audio_url"]
    assert stored(sandbox, image).content == PNG
    assert stored(sandbox, audio).content == sound.read_bytes()
    assert filled.input == {
        **asked.input,
        "image_url": image,
        "audio_url": audio,
        "image_urls": [image, "https://files.example/x.png", image],
        "input_urls": [audio, None],
        "pair": [1, 2],  # as JSON has it
    }
    assert list(filled.input) == list(asked.input)
    assert sandbox.counts["upload"] == 2
    assert asked.input["image_url"] is face


async def test_without_paths_the_request_stays_the_same(sandbox: Sandbox, uploads: Uploads) -> None:
    asked = request_of(image_urls=["https://files.example/x.png"], pair=(1, 2), prompt="")
    assert await uploads.replace_media(asked) is asked
    assert sandbox.counts["upload"] == 0


async def test_one_bad_file_keeps_the_good_ones_home_and_its_field_is_named(
    sandbox: Sandbox, uploads: Uploads, face: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=r"^audio_url: cannot read '.*none.wav'"):
        await uploads.replace_media(request_of(image_url=face, audio_url=tmp_path / "none.wav"))
    (tmp_path / "text").write_text("I am a picture")
    with pytest.raises(InvalidRequest, match=r"^image_urls\[1\]: '.*text' is neither"):
        await uploads.replace_media(request_of(image_url=face, image_urls=[face, tmp_path / "text"]))
    assert sandbox.counts["upload"] == 0


async def test_a_refused_upload_names_its_field(face: Path) -> None:
    async with RawServer(envelope(400)) as server:
        uploads = make(server.url)
        with pytest.raises(UploadRefused, match=r"^image_url: code 400: words$"):
            await uploads.replace_media(request_of(image_url=face))
        await uploads.aclose()


async def test_the_files_of_a_request_go_up_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(PNG + path.name.encode())
    gate = asyncio.Event()

    async def later(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(UPLOADED)

    async with RawServer(later) as server:
        uploads = make(server.url)
        filling = asyncio.create_task(uploads.replace_media(request_of(image_urls=paths)))
        await eventually(lambda: len(server.asked) == 3)
        gate.set()
        assert len((await filling).input["image_urls"]) == 3
        await uploads.aclose()


# --- when it goes wrong ---------------------------------------------------------------------------


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def stall(writer: asyncio.StreamWriter) -> None:
    writer.write(UPLOADED[:-20])
    await asyncio.sleep(60)


TRANSIENT = [
    pytest.param(cut, id="closed"),
    pytest.param(http(b"<html>bad gateway</html>", 502), id="html 502"),
    pytest.param(envelope(500), id="code 500"),
    pytest.param(envelope(429), id="code 429"),
    pytest.param(envelope(455), id="code 455"),
    pytest.param(http(b"slow down", 429, "Retry-After: 0.01"), id="http 429"),
    pytest.param(http(b"not json"), id="not json"),
    pytest.param(envelope(200), id="no url"),
    pytest.param(UPLOADED[:-20], id="cut answer"),
]


@pytest.mark.parametrize("answer", TRANSIENT)
@pytest.mark.parametrize("what", ["file", "bytes", "url"])
async def test_what_may_pass_is_tried_again_under_a_new_name(answer: Any, what: str, face: Path) -> None:
    file = {"file": face, "bytes": PNG, "url": "https://files.example/face.png"}[what]
    async with RawServer(answer, answer, UPLOADED) as server:
        uploads = make(server.url)
        assert (await uploads.upload(file)).url == "https://files.example/face.png"
        await uploads.aclose()
    assert len(server.asked) == 3
    names = {found for asked in server.asked for found in re.findall(rb"[0-9a-f]{32}\.png", asked.body)}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (cut, TransportError),
        (http(b"not json"), AnswerUnreadable),
        (envelope(200), AnswerUnreadable),
        (envelope(500), UploadRefused),
        (http(b"<html>", 502), UploadRefused),
        (envelope(429), UploadRefused),
    ],
)
async def test_it_gives_up_after_four_attempts(answer: Any, error: type[Exception]) -> None:
    async with RawServer(answer) as server:
        uploads = make(server.url)
        with pytest.raises(error) as caught:
            await uploads.upload(PNG)
        await uploads.aclose()
    assert type(caught.value) is error
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (envelope(400), UploadRefused),
        (envelope(402), UploadRefused),
        (envelope(404), UploadRefused),
        (http(b"<html>too large</html>", 413), UploadRefused),
        (envelope(401), AuthenticationError),
        (http(b"", 401), AuthenticationError),
        (http(b"", 403), AuthenticationError),
    ],
)
async def test_a_no_is_a_no(answer: bytes, error: type[Exception]) -> None:
    async with RawServer(answer) as server:
        uploads = make(server.url)
        with pytest.raises(error):
            await uploads.upload(PNG)
        await uploads.aclose()
    assert len(server.asked) == 1


async def test_the_wait_is_the_one_the_service_asks_for() -> None:
    async with RawServer(http(b"", 429, "Retry-After: 0.2"), UPLOADED) as server:
        uploads = make(server.url)
        begun = asyncio.get_running_loop().time()
        await uploads.upload(PNG)
        assert asyncio.get_running_loop().time() - begun >= 0.2
        await uploads.aclose()


async def test_a_silent_host_times_out() -> None:
    async with RawServer(silence) as server:
        uploads = make(server.url, timeout_s=0.05)
        with pytest.raises(TransportError, match="timed out"):
            await uploads.upload(PNG)
        await uploads.aclose()
    assert len(server.asked) == 4


async def test_time_in_the_queue_is_not_counted(tmp_path: Path) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.08)
        writer.write(UPLOADED)

    async with RawServer(slow) as server:
        uploads = make(server.url, timeout_s=0.3)
        await asyncio.gather(*(uploads.upload(PNG + bytes([number])) for number in range(20)))
        await uploads.aclose()
    assert len(server.asked) == 20


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    async with RawServer(UPLOADED) as other, RawServer(http(b"", 307, f"Location: {other.url}/")) as server:
        uploads = make(server.url)
        with pytest.raises(UploadRefused):
            await uploads.upload(PNG)
        await uploads.aclose()
    assert other.connections == 0


async def test_closing_ends_what_is_under_way_and_begins_nothing_new(face: Path) -> None:
    before = asyncio.all_tasks()
    async with RawServer(stall) as server:
        uploads = make(server.url)
        files: list[Any] = [face, face, PNG, "https://files.example/face.png"]
        waiting = [asyncio.create_task(uploads.upload(file)) for file in files]
        await eventually(lambda: len(server.asked) == 3)
        async with asyncio.timeout(2):
            await uploads.aclose()
            for caller in waiting:
                with pytest.raises(SessionMisuse, match="closed before"):
                    await caller
        for file in files:
            with pytest.raises(SessionMisuse, match="closed before"):
                await uploads.upload(file)
        await uploads.aclose()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("file", [PNG, "https://files.example/face.png"])
async def test_a_caller_alone_takes_the_upload_with_him(file: Any) -> None:
    async with RawServer(silence) as server:
        uploads = make(server.url)
        only = asyncio.create_task(uploads.upload(file))
        await eventually(lambda: len(server.asked) == 1)
        only.cancel()
        with pytest.raises(asyncio.CancelledError):
            await only
        await eventually(lambda: not uploads._running)
        await uploads.aclose()


async def test_no_error_shows_the_key() -> None:
    async with RawServer(envelope(401), cut) as server:
        uploads = make(server.url, key="canary-0815")
        for error in (AuthenticationError, TransportError):
            with pytest.raises(error) as caught:
                await uploads.upload(PNG)
            chain: BaseException | None = caught.value
            while chain is not None:
                assert "canary" not in repr(chain) + str(chain.args)
                chain = chain.__cause__ or chain.__context__
        assert "canary" not in repr(vars(uploads)) + repr(vars(uploads._transport))
        await uploads.aclose()
