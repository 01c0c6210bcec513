"""Small notes of a journal: kept for a while, good only while they can be true, never an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.journals import created, opened, raw, states

from kie_async import JournalError
from kie_async.journal.base import Journal
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.notes import MOST_SMALL_NOTES, SmallNote

HOUR_S = 3600.0
YEAR_MS = 365 * 86_400_000


@contextlib.asynccontextmanager
async def journal_of(kind: str, folder: Path) -> AsyncIterator[Journal]:
    if kind == "memory":
        yield MemoryJournal()
    else:
        async with opened(folder / "run.db") as journal:
            yield journal


both_kinds = pytest.mark.parametrize("kind", ["memory", "sqlite"])


@both_kinds
@pytest.mark.parametrize("note", [{"url": "https://e.org/жук"}, [1, 2.5], "text", 7, True, "\ud83d"])
async def test_what_was_remembered_is_recalled(tmp_path: Path, kind: str, note: object) -> None:
    async with journal_of(kind, tmp_path) as journal:
        await journal.remember("a", "former", for_s=HOUR_S)
        await journal.remember("a", note, for_s=HOUR_S)
        assert await journal.recall("a") == note
        assert await journal.recall("b") is None


async def test_a_note_is_recalled_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "run.db") as journal:
        await journal.remember("a", {"n": 1}, for_s=HOUR_S)
    async with opened(tmp_path / "run.db") as journal:
        assert await journal.recall("a") == {"n": 1}


@both_kinds
async def test_a_note_is_forgotten_when_its_time_is_over(tmp_path: Path, kind: str) -> None:
    async with journal_of(kind, tmp_path) as journal:
        await journal.remember("a", 1, for_s=0.01)
        await journal.remember("b", 1, for_s=0)
        await journal.remember("c", 1, for_s=float("inf"))
        await asyncio.sleep(0.02)
        assert [await journal.recall(key) for key in "abc"] == [None, None, 1]


@pytest.mark.parametrize(
    ("now_ms", "counts"), [(999, False), (1000, True), (3999, True), (4000, False), (5000, False)]
)
def test_a_note_holds_from_when_it_was_noted_until_it_expires(now_ms: int, counts: bool) -> None:
    note = SmallNote.of("a", for_s=3, now_ms=1000)
    assert note.read(now_ms) == ("a" if counts else None)


async def test_a_note_from_the_future_is_of_no_use_and_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.remember("a", 1, for_s=HOUR_S)
    with raw(path) as db:
        db.execute("UPDATE note SET noted_ms = noted_ms + ?, expires_ms = expires_ms + ?", (YEAR_MS, YEAR_MS))
    async with opened(path) as journal:
        assert await journal.recall("a") is None
        await journal.remember("b", 1, for_s=HOUR_S)
    with raw(path) as db:
        assert db.execute("SELECT key FROM note").fetchall() == [("b",)]


@pytest.mark.parametrize("text", ["''", "'{'", "X'7BFF7D'"])
async def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.remember("a", {}, for_s=HOUR_S)
    with raw(path) as db:
        db.execute(f"UPDATE note SET note = CAST({text} AS TEXT)")  # noqa: S608
    async with opened(path) as journal:
        assert await journal.recall("a") is None


async def test_the_oldest_note_makes_room(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.remember("newest", 1, for_s=HOUR_S)
    with raw(path) as db:
        noted_ms, expires_ms = db.execute("SELECT noted_ms, expires_ms FROM note").fetchone()
        older = ((f"k{i}", "1", noted_ms - i, expires_ms) for i in range(1, MOST_SMALL_NOTES + 1))
        db.execute("BEGIN")
        db.executemany("INSERT INTO note VALUES (?, ?, ?, ?)", older)
        db.execute("COMMIT")
    async with opened(path) as journal:
        await journal.remember("k3", 2, for_s=HOUR_S)
        oldest, next_oldest = f"k{MOST_SMALL_NOTES}", f"k{MOST_SMALL_NOTES - 1}"
        found = [await journal.recall(key) for key in ("newest", "k3", "k1", oldest, next_oldest)]
        assert found == [1, 2, 1, None, 1]
    with raw(path) as db:
        assert db.execute("SELECT count(*) FROM note").fetchone() == (MOST_SMALL_NOTES,)


async def test_in_memory_too_the_oldest_makes_room() -> None:
    journal = MemoryJournal()
    for number in range(MOST_SMALL_NOTES):
        await journal.remember(str(number), number, for_s=HOUR_S)
    await journal.remember("0", "again", for_s=HOUR_S)
    await journal.remember("more", 1, for_s=HOUR_S)
    assert [await journal.recall(key) for key in ("0", "1", "2", "more")] == ["again", None, 2, 1]


@both_kinds
async def test_what_has_no_json_form_is_logged_and_not_kept(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with journal_of(kind, tmp_path) as journal:
        with caplog.at_level(logging.WARNING, "kie_async"):
            await journal.remember("a", {1, 2}, for_s=HOUR_S)
        assert await journal.recall("a") is None
    assert "the note 'a' could not be read or kept" in caplog.text


async def test_a_journal_that_cannot_be_used_remembers_nothing_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "run.db") as journal:
        await journal.remember("a", 1, for_s=HOUR_S)
    with caplog.at_level(logging.WARNING, "kie_async"):
        await journal.remember("a", 2, for_s=HOUR_S)
        assert await journal.recall("a") is None
    assert caplog.text.count("is closed") == 2


async def test_a_note_that_fails_takes_nothing_else_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "run.db") as journal:
        bad = journal.remember("half a pair \ud83d", 1, for_s=HOUR_S)
        await asyncio.gather(bad, created(journal))
        assert await states(journal) == {"i1": "CREATED"}


async def test_a_journal_from_before_there_were_notes_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await created(journal)
    with raw(path) as db:
        db.execute("DROP TABLE note")
    async with opened(path) as journal:
        await journal.remember("a", 1, for_s=HOUR_S)
        assert await journal.recall("a") == 1
        assert await states(journal) == {"i1": "CREATED"}


async def test_a_journal_of_a_user_that_knows_no_notes_remembers_nothing() -> None:
    class Plain(MemoryJournal):
        recall = Journal.recall
        remember = Journal.remember

    journal = Plain()
    await journal.remember("a", 1, for_s=HOUR_S)
    assert await journal.recall("a") is None
    with pytest.raises(JournalError):
        SmallNote.of({1}, for_s=1, now_ms=0)
