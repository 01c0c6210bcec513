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

SCHEMA_1 = """
PRAGMA application_id = 1802069313;
PRAGMA user_version = 1;
CREATE TABLE intent(
  seq INTEGER PRIMARY KEY,
  intent_id TEXT UNIQUE NOT NULL,
  ref TEXT UNIQUE,
  former_ref TEXT,
  model TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  body TEXT,
  state TEXT NOT NULL CHECK(state IN ('PLANNED', 'SENDING', 'CREATED', 'REJECTED', 'NOT_CREATED', 'UNKNOWN', 'SUCCEEDED', 'FAILED', 'WRITTEN_OFF')),
  task_id TEXT UNIQUE,
  sends INTEGER NOT NULL DEFAULT 0 CHECK(sends <= 1),
  expects_callback INTEGER NOT NULL DEFAULT 0,
  planned_ms INTEGER NOT NULL,
  sending_ms INTEGER,
  created_ms INTEGER,
  terminal_ms INTEGER,
  code INTEGER,
  reason TEXT NOT NULL DEFAULT '',
  adopted_by TEXT NOT NULL DEFAULT '',
  record TEXT NOT NULL DEFAULT '',
  credits REAL
) STRICT;
CREATE INDEX intent_by_state ON intent(state);
CREATE TABLE run(is_open INTEGER NOT NULL) STRICT;
INSERT INTO run VALUES (0);
"""  # noqa: E501
"""What the first version of a journal was made of."""

SCHEMA_2 = (
    SCHEMA_1.replace("user_version = 1", "user_version = 2").replace(
        "  planned_ms", "  replaces TEXT NOT NULL DEFAULT '',\n  planned_ms"
    )
    + """
CREATE TABLE claim(
  intent_id TEXT NOT NULL,
  task_id TEXT NOT NULL,
  source TEXT NOT NULL CHECK(source IN ('signed', 'unsigned', 'answer')),
  noted_ms INTEGER NOT NULL,
  PRIMARY KEY(intent_id, task_id)
) STRICT, WITHOUT ROWID;
"""
)
"""And of the second."""


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
