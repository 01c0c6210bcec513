"""Files go up once per version, checked before a byte leaves, and the key goes to the upload host only."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import re
import time
import tracemalloc
import wave
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.raw_server import NoWait, RawServer, envelope, http, silence

from kie_async import (
    AnswerUnreadable,
    AuthenticationError,
    InvalidRequest,
    JournalError,
    KlingAvatar,
    SessionMisuse,
    TaskRequest,
    TransportError,
    UploadedFile,
    UploadRefused,
)
from kie_async._secrets import Secret
from kie_async.files.upload_client import UPLOAD_FOLDER, UploadClient
from kie_async.files.upload_store import ForwardClock, MemoryUploadStore, StoredUpload, UploadStore
from kie_async.files.uploads import Uploads
from kie_async.inputs.fingerprint import fingerprint
from kie_async.sandbox import Sandbox

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
UPLOADED = envelope(downloadUrl="https://files.example/face.png", fileName="face.png", fileSize=108.0)


def make(
    url: str,
    *,
    key: str = "sandbox-key",
    store: UploadStore | None = None,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> Uploads:
    return Uploads(UploadClient(url, Secret(key), rng=NoWait(), **options), store=store, clock=clock)


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
    with (tmp_path / "large.png").open("wb") as large:
        large.write(PNG)
        large.truncate(10 * 1024**2 + 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in {
        "none.png": "cannot read '.*none.png': No such file",
        "empty.png": "empty.png' is empty",
        "text.png": "text.png' is neither JPEG",
        "large.png": "has 10485761 bytes",
        "pipe": "pipe' is not a file",
        "loop": "cannot read '.*loop': Too many levels",
        ".": "is not a file",
        "a\0b": "cannot read .*null",
        "x" * 5000: "cannot read '[^']{200}': File name too long",
    }.items():
        with pytest.raises(InvalidRequest, match=words):
            await uploads.upload(tmp_path / name)
    with pytest.raises(InvalidRequest, match="the upload is empty"):
        await uploads.upload(b"")
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
        path.write_bytes(PNG + path.name.encode())
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


async def test_a_file_of_the_same_content_is_not_sent_again(
    sandbox: Sandbox, uploads: Uploads, face: Path, tmp_path: Path
) -> None:
    first = await uploads.upload(face)
    changed(face, "touched")
    (tmp_path / "copy.png").write_bytes(PNG)
    request = request_of(image_url=PNG, image_urls=[io.BytesIO(PNG), bytearray(PNG), tmp_path / "copy.png"])
    filled = await uploads.replace_media(request)
    assert (await uploads.upload(face)).url == first.url
    assert filled.input == {"image_url": first.url, "image_urls": [first.url] * 3}
    assert sandbox.counts["upload"] == 1


@pytest.mark.parametrize("change", ["longer", "replaced", "rewritten"])
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
        (upload,) = uploads._shared.values()
        await asyncio.wait([upload])
        del only, upload
        await uploads.aclose()
        del uploads
    gc.collect()
    await asyncio.sleep(0)
    assert not caplog.records


# --- for how long ---------------------------------------------------------------------------------


class Clocks:
    """A clock of the machine and one of the loop, which may stand still or be set apart."""

    def __init__(self) -> None:
        self.wall_s = 1_764_000_000.0
        self.loop_s = 50.0

    def make(self) -> ForwardClock:
        return ForwardClock(lambda: self.loop_s, lambda: self.wall_s)


HOUR = 3600.0
KEPT: list[tuple[str, dict[str, Any], float, float, int]] = [
    ("a while later", {}, 21 * HOUR, 21 * HOUR, 1),
    ("too near the end", {}, 23 * HOUR, 23 * HOUR, 2),
    ("a day later", {}, 25 * HOUR, 25 * HOUR, 2),
    ("the machine slept", {}, 25 * HOUR, 60.0, 2),
    ("the clock was set back", {}, -90 * HOUR, 25 * HOUR, 2),
    ("set back, and soon", {}, -90 * HOUR, 60.0, 1),
    ("it said an hour", {"expiresAt": 1}, 0.5 * HOUR, 0.5 * HOUR, 1),
    ("it said an hour, and that is over", {"expiresAt": 1}, 2 * HOUR, 2 * HOUR, 2),
    ("it said three days", {"expiresAt": 72}, 60 * HOUR, 60 * HOUR, 1),
    ("it said three days long ago", {"expiresAt": 72}, 73 * HOUR, 73 * HOUR, 2),
    ("its clock is not ours", {"uploadedAt": 400, "expiresAt": 401}, 0.5 * HOUR, 0.5 * HOUR, 1),
    ("its clock is not ours, and it is over", {"uploadedAt": 400, "expiresAt": 401}, 2 * HOUR, 2 * HOUR, 2),
    ("what it says is no time", {"expiresAt": None}, 21 * HOUR, 21 * HOUR, 1),
]


@pytest.mark.parametrize(("name", "said", "wall_s", "loop_s", "sent"), KEPT, ids=[row[0] for row in KEPT])
async def test_an_upload_is_used_again_while_the_service_has_it(
    name: str, said: dict[str, Any], wall_s: float, loop_s: float, sent: int, face: Path
) -> None:
    clocks = Clocks()
    now = datetime.fromtimestamp(clocks.wall_s, UTC)
    times = {
        field: "soon" if hours is None else (now + timedelta(hours=hours)).isoformat()
        for field, hours in said.items()
    }
    async with RawServer(envelope(downloadUrl="https://files.example/face.png", **times)) as server:
        uploads = make(server.url, clock=clocks.make().now)
        await uploads.upload(face)
        clocks.wall_s += wall_s
        clocks.loop_s += loop_s
        await uploads.upload(face)
        await uploads.aclose()
    assert len(server.asked) == sent


async def test_what_a_wrong_clock_stored_in_the_future_is_not_used() -> None:
    stored = StoredUpload.of(UploadedFile(url="https://files.example/face.png"), 2_000_000_000.0)
    assert stored.is_usable(2_000_000_001.0)
    assert not stored.is_usable(1_764_000_000.0)


async def test_uploads_are_remembered_by_what_is_given_so_the_next_session_finds_them(
    sandbox: Sandbox, face: Path
) -> None:
    store = MemoryUploadStore()
    for _ in range(2):
        uploads = make(sandbox.upload_url, store=store)
        await uploads.upload(face)
        await uploads.aclose()
    assert sandbox.counts["upload"] == 1
    assert len(store) == 1


async def test_a_store_that_fails_costs_an_upload_and_no_task(
    sandbox: Sandbox, face: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryUploadStore):
        async def find_upload(self, key: bytes) -> StoredUpload | None:
            raise JournalError("the disk is gone")

        async def save_upload(self, key: bytes, upload: StoredUpload) -> None:
            raise JournalError("the disk is gone")

    uploads = make(sandbox.upload_url, store=Broken())
    assert (await uploads.upload(face)).url
    await uploads.aclose()
    assert sum("the disk is gone" in text for text in caplog.messages) == 2


async def test_a_store_in_memory_is_bounded_and_forgets_the_oldest() -> None:
    store = MemoryUploadStore(3)
    file = StoredUpload.of(UploadedFile(url="https://files.example/face.png"), 0.0)
    for key in (b"a", b"b", b"c", b"a", b"d"):
        await store.save_upload(key, file)
    assert len(store) == 3
    assert [await store.find_upload(key) is not None for key in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]


# --- media of any kind ----------------------------------------------------------------------------


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def track(handler: bytes) -> bytes:
    return box(b"trak", box(b"tkhd", bytes(84)), box(b"mdia", box(b"hdlr", bytes(8), handler, bytes(12))))


def mp4(brand: bytes, *handlers: bytes, is_moov_last: bool = False) -> bytes:
    moov = box(b"moov", box(b"mvhd", bytes(100)), *map(track, handlers)) if handlers else b""
    parts = [box(b"mdat", bytes(500)), moov] if is_moov_last else [moov, box(b"mdat", bytes(500))]
    return box(b"ftyp", brand, bytes(4), brand) + b"".join(parts)


def webm(*codecs: bytes) -> bytes:
    entries = b"".join(b"\xae\x8a\x86" + bytes([0x80 + len(codec)]) + codec for codec in codecs)
    return b"\x1aE\xdf\xa3\x84webm" + bytes(40) + b"\x16\x54\xae\x6b\x90" + entries


BRANDS = (b"mp42", b"isom", b"3gp4", b"dash")
SOUND, FILM = (b"soun",), (b"vide", b"soun")
VOICES = [
    *((f"{brand.decode()} with sound", mp4(brand, *SOUND), "v.mp4") for brand in (b"mp42", b"isom", b"3gp4")),
    *(
        (f"{brand.decode()} without moov", mp4(brand), "v.m4a")
        for brand in (b"mp42", b"isom", b"3gp4", b"dash")
    ),
    ("moov behind the sound", mp4(b"isom", *SOUND, is_moov_last=True), "v"),
    ("no tracks and no name", mp4(b"iso5"), "v"),
    ("m4a", mp4(b"M4A "), "v.m4a"),
    ("RF64", b"RF64\xff\xff\xff\xffWAVEds64" + bytes(64), "v.wav"),
]


@pytest.mark.parametrize(("name", "content", "file"), VOICES, ids=[row[0] for row in VOICES])
@pytest.mark.parametrize("form", ["path", "bytes", "stream"])
async def test_a_voice_of_a_phone_or_a_browser_is_a_voice(
    sandbox: Sandbox, uploads: Uploads, tmp_path: Path, name: str, content: bytes, file: str, form: str
) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    given = {"path": path, "bytes": content, "stream": io.BytesIO(content)}[form]
    request = KlingAvatar(image_url="https://files.example/f.png", audio_url=given).as_request()
    url = (await uploads.replace_media(request)).input["audio_url"]
    assert url.endswith((".m4a", ".wav"))
    assert stored(sandbox, url).mime in {"audio/mp4", "audio/wav"}
    assert stored(sandbox, url).content == content


@pytest.mark.parametrize("form", ["path", "bytes"])
@pytest.mark.parametrize("is_moov_last", [False, True])
async def test_a_film_is_no_voice(
    sandbox: Sandbox, uploads: Uploads, tmp_path: Path, form: str, is_moov_last: bool
) -> None:
    film = mp4(b"isom", *FILM, is_moov_last=is_moov_last)
    (tmp_path / "voice.m4a").write_bytes(film)
    given = tmp_path / "voice.m4a" if form == "path" else film
    with pytest.raises(InvalidRequest, match=r"^audio_url: "):
        await uploads.replace_media(request_of(audio_url=given))
    with pytest.raises(InvalidRequest, match=r"^video_url: .* is audio/mp4, not video"):
        await uploads.replace_media(request_of(video_url=mp4(b"isom", *SOUND)))
    assert sandbox.counts["upload"] == 0


HEIC = b"\0\0\0\x18ftypheic" + bytes(64)
FLAC = b"fLaC" + bytes(64)
ANY_FILES: list[tuple[str, bytes, str, str]] = [
    ("video_url", mp4(b"isom", *FILM), "a.bin", ".mp4"),
    ("video_url", mp4(b"qt  ", *FILM), "a.mov", ".mov"),
    ("video_urls", webm(b"V_VP9", b"A_OPUS"), "a", ".webm"),
    ("audio_url", webm(b"A_OPUS"), "a.webm", ".webm"),
    ("audio_url", FLAC, "a.flac", ".flac"),
    ("image_url", HEIC, "a.heic", ".heic"),
    ("image_input", b"BM" + bytes(64), "a.bmp", ".bmp"),
    ("subtitle", b"1\n00:00:01,000 --> 00:00:02,000\nhi\n", "a.srt", ".srt"),
    ("mesh", b"glTF\2\0\0\0" + bytes(40), "a.GLB", ".glb"),
    ("image_url", bytes(range(1, 80)), "raw.cr3", ".cr3"),
    ("anything", bytes(range(1, 80)), "a.not an ending", ".bin"),
    ("anything", bytes(range(1, 80)), "noname", ".bin"),
]


@pytest.mark.parametrize(("field", "content", "file", "ending"), ANY_FILES)
async def test_a_file_of_any_kind_goes_up_where_the_field_is_not_known_to_us(
    sandbox: Sandbox, uploads: Uploads, tmp_path: Path, field: str, content: bytes, file: str, ending: str
) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    url = (await uploads.replace_media(request_of(**{field: path}))).input[field]
    assert Path(url).suffix == ending
    assert stored(sandbox, url).content == content
    if field != "anything":
        assert Path((await uploads.upload(path)).url).suffix == ending


@pytest.mark.parametrize("field", ["image_url", "audio_url"])
@pytest.mark.parametrize(
    "content", [HEIC, b"fLaC" + bytes(64), webm(b"A_OPUS"), mp4(b"isom", *FILM), bytes(64)]
)
async def test_nothing_else_goes_up_for_an_avatar(
    sandbox: Sandbox, uploads: Uploads, field: str, content: bytes
) -> None:
    given: dict[str, Any] = {
        "image_url": "https://e.org/f.png",
        "audio_url": "https://e.org/v.mp3",
        field: content,
    }
    with pytest.raises(InvalidRequest, match=rf"^{field}: the upload is neither JPEG"):
        await uploads.replace_media(KlingAvatar(**given).as_request())
    assert sandbox.counts["upload"] == 0


class Unseekable(io.RawIOBase):
    """A pipe, or the body of an answer."""

    def __init__(self, content: bytes) -> None:
        self._left = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._left.read(min(7, len(buffer)))
        buffer[: len(block)] = block
        return len(block)


class OnlyRead:
    """A stream of somebody's own."""

    def __init__(self, content: bytes) -> None:
        self._left = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._left.read(size)


def spent(content: bytes) -> io.BytesIO:
    """Return a stream as it stands after it was written."""
    stream = io.BytesIO()
    stream.write(content)
    return stream


FORMS: list[tuple[str, Callable[[Path, bytes], Any]]] = [
    ("path", lambda path, _: path),
    ("bytes", lambda _, content: content),
    ("bytearray", lambda _, content: bytearray(content)),
    ("memoryview", lambda _, content: memoryview(content)),
    ("file", lambda path, _: path.open("rb")),
    ("raw file", lambda path, _: path.open("rb", buffering=0)),
    ("BytesIO", lambda _, content: io.BytesIO(content)),
    ("BytesIO at its end", lambda _, content: spent(content)),
    ("pipe", lambda _, content: io.BufferedReader(Unseekable(content))),
    ("raw pipe", lambda _, content: Unseekable(content)),
    ("read() alone", lambda _, content: OnlyRead(content)),
]


@pytest.fixture
def large_face(face: Path) -> Path:
    face.write_bytes(PNG + os.urandom(600_000))
    return face


@pytest.mark.parametrize(("name", "form"), FORMS, ids=[row[0] for row in FORMS])
async def test_media_as_people_and_programs_have_them(
    sandbox: Sandbox, uploads: Uploads, large_face: Path, name: str, form: Callable[[Path, bytes], Any]
) -> None:
    face, content = large_face, large_face.read_bytes()  # noqa: ASYNC240
    for given in (form(face, content), form(face, content)):
        request = request_of(deep=[{"frames": ({"image": given},)}], prompt="hi")
        digest = await asyncio.to_thread(fingerprint, request)
        assert digest == await asyncio.to_thread(fingerprint, request)
        filled = await uploads.replace_media(request)
        (url,) = (frame["image"] for frame in filled.input["deep"][0]["frames"])
        assert stored(sandbox, url).content == content
        assert filled.input["prompt"] == "hi"
        if hasattr(given, "close"):
            given.close()
    assert sandbox.counts["upload"] == 1
    given = form(face, content)
    assert stored(sandbox, (await uploads.upload(given)).url).content == content
    if hasattr(given, "close"):
        given.close()


async def test_fields_whose_paths_read_alike_are_not_mixed_up(sandbox: Sandbox, uploads: Uploads) -> None:
    other = PNG + b"other"
    filled = await uploads.replace_media(
        request_of(**{"a.b": PNG, "a": {"b": other}, "c[0]": PNG, "c": [other]})
    )
    one, two = filled.input["a.b"], filled.input["a"]["b"]
    assert (stored(sandbox, one).content, stored(sandbox, two).content) == (PNG, other)
    assert filled.input == {"a.b": one, "a": {"b": two}, "c[0]": one, "c": [two]}


async def test_what_was_uploaded_stands_for_its_url(sandbox: Sandbox, uploads: Uploads) -> None:
    file = await uploads.upload(PNG)
    request = request_of(image_url=file, deep={"a": [file]})
    assert request.input == {"image_url": file.url, "deep": {"a": [file.url]}}
    assert await uploads.replace_media(request) is request
    assert await uploads.upload(file) is file
    assert KlingAvatar(image_url=file, audio_url="https://e.org/v.mp3").image_url == file.url


async def test_many_requests_may_share_a_stream(sandbox: Sandbox, uploads: Uploads) -> None:
    content = PNG + os.urandom(900_000)
    with io.BytesIO(content) as stream:
        filling = [uploads.replace_media(request_of(image_url=stream, seed=seed)) for seed in range(20)]
        (url,) = {filled.input["image_url"] for filled in await asyncio.gather(*filling)}
    assert stored(sandbox, url).content == content
    assert sandbox.counts["upload"] == 1


async def awaited(size: int = -1) -> bytes:
    return PNG


STRANGE: list[tuple[str, Callable[[], Any], str]] = [
    ("None", lambda: None, "file must be a path, a URL, bytes or a binary stream, got NoneType"),
    ("a list", lambda: [PNG], "got list"),
    ("a number", lambda: 7, "got int"),
    ("a class", lambda: io.BytesIO, "got (ABCMeta|type)"),
    ("text", lambda: io.StringIO("x"), "open in binary mode"),
    ("an awaitable read", lambda: type("Upload", (), {"read": staticmethod(awaited)})(), "must be awaited"),
    ("no bytes", lambda: type("Odd", (), {"read": lambda self, size=-1: "x"})(), "cannot read the stream"),
    ("closed", lambda: (stream := io.BytesIO(PNG), stream.close())[0], "cannot read the stream: .*closed"),
    ("empty", lambda: io.BytesIO(), "the stream is empty"),
]


@pytest.mark.parametrize(("name", "given", "words"), STRANGE, ids=[row[0] for row in STRANGE])
async def test_what_is_no_medium_is_refused_in_words(
    sandbox: Sandbox, uploads: Uploads, name: str, given: Callable[[], Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await uploads.upload(given())
    if "got" not in words:
        with pytest.raises(InvalidRequest, match=r"^frames\[1\]\.image: .*" + words):
            await uploads.replace_media(request_of(frames=[{}, {"image": given()}]))
    assert sandbox.counts["upload"] == 0


async def test_a_large_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    large, size = tmp_path / "large.mp4", 64 * 1024**2
    with large.open("wb") as file:
        file.write(mp4(b"isom"))
        file.truncate(size)
    received = 0

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        left = int(re.findall(r"Content-Length: (\d+)", head)[0])
        while left:
            block = await reader.read(min(left, 65_536))
            left -= len(block)
            received += len(block)
        writer.write(UPLOADED)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(sink, "127.0.0.1", 0)
    uploads = make(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    tracemalloc.start()
    await uploads.replace_media(request_of(video_url=large))
    with large.open("rb") as stream:
        await uploads.upload(stream)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await uploads.aclose()
    server.close()
    await server.wait_closed()
    assert received > 2 * size
    assert most < 8 * 1024**2


async def test_a_file_that_changes_while_it_is_sent_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(PNG + bytes(9_000_000))
    is_done = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        path.write_bytes(PNG + b"x" * 9_000_000)
        while await reader.read(1 << 20):
            pass
        writer.close()
        is_done.set()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    uploads = make(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(InvalidRequest, match="changed before it was uploaded"):
        await uploads.upload(path)
    await uploads.aclose()
    await is_done.wait()
    server.close()
    await server.wait_closed()


# --- presigned URLs -------------------------------------------------------------------------------

QUERIES = [
    ({"audio_url": "https://b.example/v.mp3?X-Amz-Signature=canary"}, "audio_url"),
    ({"image_urls": ["https://b.example/a.png", "https://b.example/b.png?sig=canary"]}, r"image_urls\[1\]"),
    ({"frames": [{"first_frame_url": "https://b.example/get?id=canary"}]}, r"frames\[0\]\.first_frame_url"),
    ({"input_urls": ("https://b.example/get?id=canary",)}, r"input_urls\[0\]"),
    ({"image": "https://b.example/a.png?X-Amz-Signature=canary"}, "image "),
    ({"parts": [{"url": "https://b.example/a.png?sig=canary"}]}, r"parts\[0\]\.url"),
    ({"audio_url": "https://b.example/v.mp3"}, ""),
    ({"audio_url": "https://b.example/get?file=v.mp3"}, ""),
    ({"prompt": "what is https://b.example/v.mp3?X=1"}, ""),
]


@pytest.mark.parametrize(("fields", "named"), QUERIES)
async def test_a_presigned_url_is_warned_of_once(
    uploads: Uploads, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], named: str
) -> None:
    for _ in range(3):
        await uploads.replace_media(request_of(**fields))
    assert len(caplog.records) == bool(named)
    for record in caplog.records:
        assert record.levelname == "WARNING"
        assert re.match(named, record.getMessage())
        assert "kie.upload(url)" in record.getMessage()
        assert "canary" not in record.getMessage()


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
        (envelope(403), AuthenticationError),
    ],
)
async def test_a_no_is_a_no(answer: bytes, error: type[Exception]) -> None:
    async with RawServer(answer) as server:
        uploads = make(server.url)
        with pytest.raises(error):
            await uploads.upload(PNG)
        await uploads.aclose()
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404, 407, 451])
async def test_a_page_says_nothing_of_key_or_file_and_the_file_is_sent_again(status: int) -> None:
    async with RawServer(http(b"<html>checking your browser</html>", status), UPLOADED) as server:
        uploads = make(server.url)
        await uploads.upload(PNG)
        await uploads.aclose()
    assert len(server.asked) == 2


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
        with pytest.raises(TransportError):
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
        assert "canary" not in repr(vars(uploads)) + repr(vars(uploads._client)) + repr(
            vars(uploads._client._transport)
        )
        await uploads.aclose()
