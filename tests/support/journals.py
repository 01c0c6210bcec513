"""Opens journals in a few words, and reads their files as anybody could."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from kie_async import SqliteJournal, TaskRecord, TaskState
from kie_async.journal.intents import Intent

DONE = TaskRecord(
    task_id="t1", state=TaskState.SUCCESS, credits=1.0, raw={"taskId": "t1", "state": "success"}
)


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(path, **options)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.aclose()


def intent(number: int | str = 1, **fields: Any) -> Intent:
    return Intent(
        **({"intent_id": f"i{number}", "model": "m", "ref": f"r{number}", "fingerprint": b"f"} | fields)
    )


async def created(journal: SqliteJournal, number: int | str = 1) -> None:
    """Take an intent all the way to its task."""
    await journal.mark_sending(intent(number))
    await journal.mark_created(f"i{number}", f"t{number}")


async def states(journal: SqliteJournal) -> dict[str, str]:
    return {intent.intent_id: intent.state.value for intent in await journal.list_intents()}


def as_left_by_a_crash(path: Path, to: Path) -> Path:
    """Return a copy of the journal, as a SIGKILL at this moment would leave it."""
    to.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copyfile(path.parent / name, to / name)
    return to / path.name


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file of a closed journal as anybody could."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        yield db
    finally:
        db.close()
