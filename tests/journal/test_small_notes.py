"""Small notes of a journal: kept for a while, good only while they can be true, never an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.journals import created, opened, raw, states

from kie_async import JournalError
from kie_async.journal.base import Journal
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.notes import MOST_SMALL_NOTES, SmallNote

HOUR_S = 3600.0
YEAR_MS = 365 * 86_400_000


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


async def test_a_note_that_is_no_utf8_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.remember("a", {}, for_s=HOUR_S)
    with raw(path) as db:
        db.execute("UPDATE note SET note = CAST(X'7BFF7D' AS TEXT)")
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
