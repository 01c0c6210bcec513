"""Uploads stand in the journal: the next session uses them while the service has them, and no other's."""

# ruff: noqa: ASYNC240  (files are what this is about)

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenSession
from support.journals import opened, raw

from kie_async import Sandbox, UploadedFile
from kie_async._secrets import Secret
from kie_async.engine.kept_uploads import JournalUploadStore
from kie_async.files.upload_store import StoredUpload
from kie_async.journal.memory import MemoryJournal

DAY_S = 86_400.0
STORED = StoredUpload(
    file=UploadedFile(
        url="https://files.example/face.png",
        name="face.png",
        size=108,
        mime_type="image/png",
        uploaded_at=datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
    ),
    stored_at=1_000.5,
    expires_at=1_000.5 + DAY_S,
)


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "face.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


async def uploaded_url(open_session: OpenSession, file: Path, **options: Any) -> str:
    """Return the URL of a file's upload, by a session of its own."""
    kie = await open_session(**options)
    uploaded = await kie.upload(file)
    await kie.aclose()
    return uploaded.url


async def test_a_file_goes_up_once_for_all_sessions_of_a_journal(
    sandbox: Sandbox, open_session: OpenSession, face: Path, path: Path
) -> None:
    urls = {await uploaded_url(open_session, face, journal=path) for _ in range(3)}
    assert len(urls) == 1
    assert sandbox.counts["upload"] == 1
    face.write_bytes(face.read_bytes() + b"more")
    assert await uploaded_url(open_session, face, journal=path) not in urls


async def test_a_create_of_the_next_session_uses_the_upload_of_the_former(
    sandbox: Sandbox, open_session: OpenSession, face: Path, path: Path
) -> None:
    inputs = []
    for ref in ("order-1", "order-2"):
        kie = await open_session(journal=path)
        handle = await kie.create("sandbox/echo", {"image_url": face}, ref=ref)
        sandbox.finish(handle.task_id)
        record = (await handle).record
        assert record.param is not None
        inputs.append(record.param["input"])
        await kie.aclose()
    assert inputs[0] == inputs[1]
    assert sandbox.counts["upload"] == 1


async def test_a_session_without_a_journal_uploads_for_itself(
    sandbox: Sandbox, open_session: OpenSession, face: Path
) -> None:
    assert await uploaded_url(open_session, face) != await uploaded_url(open_session, face)
    assert sandbox.counts["upload"] == 2


def as_if_noted_ago(text: str, ago_s: float) -> str:
    note = json.loads(text)
    return json.dumps(note | {name: note[name] - ago_s for name in ("stored_at", "expires_at")})


SPOILED: Mapping[str, Callable[[str], str]] = {
    "the service deleted it": lambda text: as_if_noted_ago(text, DAY_S),
    "the service deletes it in an hour": lambda text: as_if_noted_ago(text, DAY_S - 3_600),
    "a wrong clock stored it in the future": lambda text: as_if_noted_ago(text, -DAY_S),
    "no JSON": lambda text: text[:20],
    "another shape": lambda _: '{"url": "https://files.example/face.png"}',
    "a list": lambda _: "[]",
    "no file": lambda text: json.dumps(json.loads(text) | {"file": None}),
    "a time that is none": lambda text: text.replace("1", "x"),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
async def test_an_upload_that_is_of_no_use_any_more_is_made_again(
    sandbox: Sandbox, open_session: OpenSession, face: Path, path: Path, change: Callable[[str], str]
) -> None:
    former = await uploaded_url(open_session, face, journal=path)
    with raw(path) as db:
        (text,) = db.execute("SELECT note FROM note").fetchone()
        db.execute("UPDATE note SET note = ?", (change(text),))
    assert await uploaded_url(open_session, face, journal=path) != former
    assert sandbox.counts["upload"] == 2


async def test_an_upload_is_made_again_when_its_note_has_expired(
    sandbox: Sandbox, open_session: OpenSession, face: Path, path: Path
) -> None:
    await uploaded_url(open_session, face, journal=path)
    with raw(path) as db:
        db.execute("UPDATE note SET expires_ms = noted_ms")
    await uploaded_url(open_session, face, journal=path)
    assert sandbox.counts["upload"] == 2


async def test_a_file_for_another_service_goes_up_again(
    sandbox: Sandbox, open_session: OpenSession, face: Path, path: Path
) -> None:
    async with Sandbox() as other:
        here = await uploaded_url(open_session, face, journal=path)
        there = await uploaded_url(open_session, face, journal=path, base_url=other.url)
        assert here.startswith(sandbox.url)
        assert there.startswith(other.url)
        assert await uploaded_url(open_session, face, journal=path) == here


async def test_a_file_for_another_upload_host_goes_up_again(
    sandbox: Sandbox, open_session: OpenSession, face: Path, path: Path
) -> None:
    async with Sandbox() as other:
        await uploaded_url(open_session, face, journal=path)
        there = await uploaded_url(open_session, face, journal=path, upload_url=other.url)
    assert there.startswith(other.url)


async def test_a_file_for_another_key_goes_up_again(
    open_session: OpenSession, face: Path, path: Path
) -> None:
    async with Sandbox(api_key=None) as lenient:
        for key in ("one-account", "another-account", "one-account"):
            await uploaded_url(open_session, face, journal=path, api_key=key, base_url=lenient.url)
        assert lenient.counts["upload"] == 2
    written = path.read_bytes()
    assert b"-account" not in written
    assert b"upload:" in written


def store_of(
    journal: MemoryJournal, account: str = "key", origin: str = "https://a.example"
) -> JournalUploadStore:
    return JournalUploadStore(journal, account=Secret(account), origins=(origin,))


async def test_an_upload_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    async with opened(tmp_path / "run.db") as journal:
        store = JournalUploadStore(journal, account=Secret("key"), origins=("https://a.example",))
        await store.save_upload(b"a", STORED)
        again = JournalUploadStore(journal, account=Secret("key"), origins=("https://a.example",))
        assert await again.find_upload(b"a") == STORED
        assert await again.find_upload(b"b") is None


@pytest.mark.parametrize(
    ("account", "origin"), [("other", "https://a.example"), ("key", "https://b.example"), ("key", "")]
)
async def test_stores_of_one_journal_share_only_what_is_of_one_account_and_service(
    account: str, origin: str
) -> None:
    journal = MemoryJournal()
    await store_of(journal).save_upload(b"a", STORED)
    assert await store_of(journal).find_upload(b"a") == STORED
    assert await store_of(journal, account, origin).find_upload(b"a") is None


async def test_a_journal_that_remembers_nothing_still_serves_one_session(
    sandbox: Sandbox, open_session: OpenSession, face: Path
) -> None:
    class Plain(MemoryJournal):
        is_durable = True

        async def recall(self, key: str) -> object | None:
            return None

    kie = await open_session(journal=Plain())
    assert await kie.upload(face) == await kie.upload(face)
    assert sandbox.counts["upload"] == 1
    await asyncio.gather(*(kie.upload(face) for _ in range(3)))
    assert sandbox.counts["upload"] == 1
