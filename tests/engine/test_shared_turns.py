"""What one worker of a shared journal does the others do not do as well: uploads, fetching results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import OpenSession
from support.journals import DONE, intent
from support.postgres import OwnPostgres

from kie_async import PostgresJournal, Sandbox, UploadedFile
from kie_async._secrets import Secret
from kie_async.engine.kept_uploads import JournalUploadStore
from kie_async.engine.result_turns import ResultTurns, Saved
from kie_async.errors import DownloadFailed
from kie_async.files.local_media import examine
from kie_async.files.upload_store import StoredUpload
from kie_async.journal.account import Account

HERE, THERE = Path("/videos/here"), Path("/videos/there")


@pytest.fixture
async def mine(leaks: None, postgres_dsn: str) -> AsyncIterator[PostgresJournal]:
    """Return the journal as one worker has it, which knows the task ``t1``."""
    journal = PostgresJournal(postgres_dsn)
    await journal.open()
    await journal.mark_sending(intent(1))
    await journal.mark_created("i1", "t1")
    await journal.mark_settled("i1", DONE)
    yield journal
    await journal.aclose()


@pytest.fixture
async def theirs(mine: PostgresJournal, postgres_dsn: str) -> AsyncIterator[PostgresJournal]:
    """Return the same journal as another worker has it."""
    journal = PostgresJournal(postgres_dsn)
    await journal.open()
    yield journal
    await journal.aclose()


# --- uploads ---------------------------------------------------------------------------------------


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "face.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return path


@pytest.fixture
def their_uploads(theirs: PostgresJournal, sandbox: Sandbox) -> JournalUploadStore:
    """Return the uploads as the other worker knows them, of the same account."""
    account = Account(url=sandbox.url, key=Secret("sandbox-key"), name=None)
    return JournalUploadStore(theirs, account=account.secret, origins=(sandbox.url, sandbox.url))


async def test_an_upload_that_another_worker_has_begun_is_waited_for(
    their_uploads: JournalUploadStore,
    sandbox: Sandbox,
    open_session: OpenSession,
    face: Path,
    postgres_dsn: str,
) -> None:
    key = examine(face).key()
    assert await their_uploads.take_turn(key)
    kie = await open_session(journal=postgres_dsn)
    waiting = asyncio.create_task(kie.upload(face))
    await asyncio.sleep(0.2)
    assert not waiting.done()

    file = UploadedFile(url="https://files.example/face.png", name="face.png", size=108)
    await their_uploads.save_upload(key, StoredUpload.of(file, time.time()))
    await their_uploads.end_turn(key)

    assert (await waiting).url == file.url
    assert sandbox.counts["upload"] == 0


async def test_an_upload_that_another_worker_does_not_finish_is_done_here(
    their_uploads: JournalUploadStore,
    theirs: PostgresJournal,
    sandbox: Sandbox,
    open_session: OpenSession,
    face: Path,
    postgres_dsn: str,
) -> None:
    assert await their_uploads.take_turn(examine(face).key())
    kie = await open_session(journal=postgres_dsn)
    waiting = asyncio.create_task(kie.upload(face))
    await asyncio.sleep(0.2)
    await theirs.aclose()

    assert (await waiting).url.startswith(sandbox.url)
    assert sandbox.counts["upload"] == 1
    assert await their_uploads.find_upload(examine(face).key()) is None  # it has no journal any more


# --- results ---------------------------------------------------------------------------------------


class Fetching:
    """A fetch that ends when a test says so."""

    def __init__(self) -> None:
        self.count = 0
        self.begun = asyncio.Event()
        self.ends: asyncio.Future[tuple[Path, ...]] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> tuple[Path, ...]:
        self.count += 1
        self.begun.set()
        return await self.ends


FILES = (HERE / "anna.mp4",)


async def both(mine: PostgresJournal, theirs: PostgresJournal) -> tuple[Fetching, asyncio.Task[Saved]]:
    """Return a fetch that has begun here, with its end, while the other worker waits; and the other's."""
    first = Fetching()
    fetching = asyncio.create_task(ResultTurns(mine, HERE).fetch("t1", first))
    await first.begun.wait()
    fetching.add_done_callback(lambda task: task.cancelled() or task.exception())
    return first, fetching


async def test_a_result_is_fetched_by_one_worker_and_the_other_is_told_where_it_is(
    mine: PostgresJournal, theirs: PostgresJournal
) -> None:
    first, fetching = await both(mine, theirs)
    second = Fetching()
    waiting = asyncio.create_task(ResultTurns(theirs, THERE).fetch("t1", second))
    await asyncio.sleep(0.1)
    assert not waiting.done()

    first.ends.set_result(FILES)

    assert await fetching == Saved(FILES)
    saved = await waiting
    assert (saved.files, saved.by.endswith(f":{HERE}"), second.count) == ((), True, 0)


async def test_a_result_that_one_worker_could_not_fetch_is_fetched_by_the_other(
    mine: PostgresJournal, theirs: PostgresJournal
) -> None:
    first, fetching = await both(mine, theirs)
    second = Fetching()
    second.ends.set_result(FILES)
    waiting = asyncio.create_task(ResultTurns(theirs, THERE).fetch("t1", second))

    first.ends.set_exception(DownloadFailed("no network"))

    with pytest.raises(DownloadFailed):
        await fetching
    assert (await waiting, second.count) == (Saved(FILES), 1)


async def test_whoever_has_the_files_may_fetch_them_again(
    mine: PostgresJournal, theirs: PostgresJournal
) -> None:
    first, fetching = await both(mine, theirs)
    first.ends.set_result(FILES)
    await fetching
    for journal in (mine, theirs):  # another process of the same host, with the same folder
        again = Fetching()
        again.ends.set_result(FILES)
        assert await ResultTurns(journal, HERE).fetch("t1", again) == Saved(FILES)
        assert again.count == 1


async def test_while_the_database_is_away_results_are_fetched(own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    journal = PostgresJournal(server.dsn)
    await journal.open()
    await asyncio.to_thread(server.stop)
    fetch = Fetching()
    fetch.ends.set_result(FILES)
    assert await ResultTurns(journal, HERE).fetch("t1", fetch) == Saved(FILES)
    await journal.aclose()
