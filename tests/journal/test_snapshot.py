"""A journal is read while others write to it: without a lock, without a trace, as it stood at one moment."""

# ruff: noqa: ASYNC220, ASYNC240  (files and processes are what this is about)

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.journals import DONE, SCHEMA_1, as_left_by_a_crash, created, intent, opened, raw, states

from kie_async import JournalError, JournalLocked, SqliteJournal
from kie_async.journal.intents import Intent
from kie_async.journal.owner import Owner, owner_path, read_owner, write_owner

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@contextlib.asynccontextmanager
async def read_only(path: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(path)
    await journal.open_to_read()
    try:
        yield journal
    finally:
        await journal.aclose()


WRITE_WITHOUT_END = """
    import asyncio, sys
    from kie_async import SqliteJournal
    from kie_async.journal.base import Intent

    async def main():
        journal = SqliteJournal(sys.argv[1])
        await journal.open()
        for n in range(1_000_000):
            await journal.mark_sending(Intent(intent_id=f"i{n}", model="m" * 3000, ref=f"r{n}"))
            await journal.mark_created(f"i{n}", f"t{n}")
            if n == 20:
                print("writing", flush=True)

    asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def writer(path: Path) -> AsyncIterator[int]:
    """Have another process write to the journal all the time; yield its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE_WITHOUT_END), path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            assert await asyncio.to_thread(process.stdout.readline) == b"writing\n"
            yield process.pid
    finally:
        process.kill()
        process.wait()


# --- reading -----------------------------------------------------------------------------------------


async def test_it_is_read_while_a_session_of_this_process_has_it(path: Path) -> None:
    async with opened(path) as journal:
        await created(journal)
        async with read_only(path) as reader:
            assert await states(reader) == {"i1": "CREATED"}
            await journal.mark_settled("i1", DONE)
            assert await states(reader) == {"i1": "CREATED"}  # as it stood
        async with read_only(path) as reader:
            assert await states(reader) == {"i1": "SUCCEEDED"}
        assert await states(journal) == {"i1": "SUCCEEDED"}


async def test_reading_costs_the_session_of_this_process_no_lock(path: Path) -> None:
    async with opened(path) as journal:
        await created(journal)
        async with read_only(path):
            pass
        # Not ours is taken: SQLite's own, which is lost when any descriptor of the file closes.
        foreign = [sys.executable, "-c", f"import sqlite3; sqlite3.connect({str(path)!r}).execute('VACUUM')"]
        run = await asyncio.to_thread(subprocess.run, foreign, capture_output=True, text=True, timeout=20)
        assert "locked" in run.stderr


async def test_every_copy_of_a_file_that_is_written_all_the_time_is_whole(path: Path) -> None:
    seen = 0
    async with writer(path):
        for _ in range(15):
            async with read_only(path) as reader:
                found = await states(reader)
            whole = [f"i{number}" for number in range(len(found))]
            assert list(found) == whole  # none is missing in between
            assert {found[name] for name in whole[:-1]} <= {"CREATED"}
            assert len(found) >= max(seen, 20)
            seen = len(found)


async def test_readers_keep_nobody_out(path: Path) -> None:
    async with opened(path) as journal:
        await created(journal)
    async with read_only(path), opened(path) as journal:
        assert await states(journal) == {"i1": "CREATED"}


async def test_reading_leaves_no_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = path.with_name("temporary")
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    async with opened(path) as journal:
        await created(journal)
    before = path.read_bytes()
    async with read_only(path) as reader:
        assert list(copies.iterdir())
        with pytest.raises(JournalError, match="was opened to be read only"):
            await reader.mark_sending(intent(2))
        with pytest.raises(JournalError, match="is open already"):
            await reader.open()
    assert path.read_bytes() == before
    assert not list(copies.iterdir())
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.db", "temporary"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="to root every folder is writable")
async def test_it_is_read_without_the_right_to_write(path: Path, tmp_path: Path) -> None:
    async with opened(path) as journal:
        await created(journal)
        left = as_left_by_a_crash(path, tmp_path / "left")
    left.parent.chmod(0o500)
    try:
        async with read_only(left) as reader:
            assert await states(reader) == {"i1": "CREATED"}
    finally:
        left.parent.chmod(0o700)


# --- what it says --------------------------------------------------------------------------------------


async def test_what_is_being_sent_is_sending_while_its_process_runs_and_unknown_after(
    path: Path, tmp_path: Path
) -> None:
    async with opened(path) as journal:
        await journal.mark_sending(intent())
        left = as_left_by_a_crash(path, tmp_path / "left")
        async with read_only(path) as reader:
            assert await states(reader) == {"i1": "SENDING"}
    async with read_only(left) as reader:
        assert await states(reader) == {"i1": "UNKNOWN"}


async def test_rescued_ids_are_read_and_stay(path: Path) -> None:
    async with opened(path) as journal:
        await journal.mark_sending(intent())
        journal.rescue_path.write_text('{"intent_id": "i1", "task_id": "t1"}\n')
        async with read_only(path) as reader:
            assert [found.task_id for found in await reader.list_intents()] == ["t1"]
        assert journal.rescue_path.exists()


async def test_a_file_of_an_older_version_is_read_and_stays_as_it_is(path: Path) -> None:
    with raw(path) as db:
        db.executescript(SCHEMA_1)
    before = path.read_bytes()
    async with read_only(path) as reader:
        assert await reader.list_intents() == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"ref,model\n" * 100, "no journal at all"),
        (b"", "not a journal"),
    ],
    ids=["none", "a text", "empty"],
)
async def test_what_is_no_journal_is_refused_and_stays_as_it_is(
    path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        await SqliteJournal(path).open_to_read()
    assert (path.read_bytes() if path.exists() else None) == content
    assert len(list(path.parent.iterdir())) == (content is not None)


# --- who has it open -------------------------------------------------------------------------------------


async def test_who_has_it_open_is_named(path: Path) -> None:
    async with writer(path) as pid:
        with pytest.raises(JournalLocked, match=rf"process: pid {pid} on \S+, if it still runs$"):
            await SqliteJournal(path).open()


async def test_nobody_is_named_after_a_close(path: Path) -> None:
    async with opened(path):
        assert read_owner(path) == Owner.of_this_process()
    assert not owner_path(path).exists()


async def test_a_name_that_cannot_be_written_costs_nothing_but_the_name(path: Path) -> None:
    owner_path(path).mkdir()
    async with opened(path) as journal:
        await created(journal)
        with pytest.raises(JournalLocked, match=r"in another session or process$"):
            await SqliteJournal(path).open()
    assert owner_path(path).is_dir()


@pytest.mark.parametrize(
    "text",
    ["", "12", "12 ada", "0 ada\n", "-1 ada\n", "12 a b\n", "12 \x1b[31m\n", "12 ada\n" * 20, "é ada\n"],
)
def test_a_name_that_is_not_ours_is_none(path: Path, text: str) -> None:
    owner_path(path).write_text(text)
    assert read_owner(path) is None


def test_a_link_in_the_place_of_the_name_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    owner_path(path).symlink_to(tmp_path / "precious")
    write_owner(path)
    assert (tmp_path / "precious").read_text() == "precious"


def test_whether_an_owner_runs_is_known_on_its_own_host() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = Owner.of_this_process()
    assert not here.is_gone
    assert Owner(ended.pid, here.host).is_gone
    assert not Owner(ended.pid, "elsewhere").is_gone
    assert not Owner(9_999_999_999, here.host).is_gone


def test_an_intent_that_runs_has_no_end() -> None:
    assert Intent(intent_id="i", model="m").terminal_ms is None
