"""The tables of the durable journal: made whole, brought up to date, and fit for an old SQLite."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sqlite3
from pathlib import Path

from .exclusive_rename import rename_exclusively
from .intents import IntentState

APPLICATION_ID = 0x6B696541

VERSION = 3

OLDEST_SQLITE, FIRST_WITH_STRICT = (3, 26), (3, 37)

_STATES = ", ".join(f"'{state}'" for state in IntentState)

_CLAIM_TABLE = """
CREATE TABLE claim(
  intent_id TEXT NOT NULL,
  task_id TEXT NOT NULL,
  source TEXT NOT NULL CHECK(source IN ('signed', 'unsigned', 'answer')),
  noted_ms INTEGER NOT NULL,
  PRIMARY KEY(intent_id, task_id)
) STRICT, WITHOUT ROWID;
"""

SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE intent(
  seq INTEGER PRIMARY KEY,
  intent_id TEXT UNIQUE NOT NULL,
  ref TEXT UNIQUE,
  former_ref TEXT,
  model TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  body TEXT,
  state TEXT NOT NULL CHECK(state IN ({_STATES})),
  task_id TEXT UNIQUE,
  sends INTEGER NOT NULL DEFAULT 0 CHECK(sends <= 1),
  expects_callback INTEGER NOT NULL DEFAULT 0,
  replaces TEXT NOT NULL DEFAULT '',
  planned_ms INTEGER NOT NULL,
  sending_ms INTEGER,
  created_ms INTEGER,
  terminal_ms INTEGER,
  code INTEGER,
  reason TEXT NOT NULL DEFAULT '',
  adopted_by TEXT NOT NULL DEFAULT '',
  record TEXT NOT NULL DEFAULT '',
  credits REAL,
  audio_s REAL,
  expected_credits REAL,
  held_credits REAL
) STRICT;
CREATE INDEX intent_by_state ON intent(state);
CREATE TABLE run(is_open INTEGER NOT NULL) STRICT;
INSERT INTO run VALUES (0);
{_CLAIM_TABLE}
"""  # noqa: S608  (made of constants)

_ADDED_AFTER = {
    1: ("ALTER TABLE intent ADD COLUMN replaces TEXT NOT NULL DEFAULT ''", _CLAIM_TABLE),
    2: (
        "ALTER TABLE intent ADD COLUMN audio_s REAL",
        "ALTER TABLE intent ADD COLUMN expected_credits REAL",
        "ALTER TABLE intent ADD COLUMN held_credits REAL",
    ),
}
"""By version: what the next one has more."""

_LEARNED_TABLE = """
CREATE TABLE IF NOT EXISTS learned(
  model TEXT PRIMARY KEY,
  durations TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""
"""Made at open: it is no part of the promise, and journals without it are as good."""

_NOTE_TABLE = """
CREATE TABLE IF NOT EXISTS note(
  key TEXT PRIMARY KEY,
  note TEXT NOT NULL,
  noted_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL
) STRICT
"""
"""Made at open, as `_LEARNED_TABLE` is, with an index for each way in which a note goes."""

_NOTE_INDEXES = (
    "CREATE INDEX IF NOT EXISTS note_by_time ON note(noted_ms)",
    "CREATE INDEX IF NOT EXISTS note_by_end ON note(expires_ms)",
)

_SETTLED_INDEX = (
    "CREATE INDEX IF NOT EXISTS intent_by_end ON intent(terminal_ms) WHERE terminal_ms IS NOT NULL"
)
"""Made at open too: what ended is read in the order of its ends."""

# Made by the first session: until then the journal belongs to nobody.
ACCOUNT_TABLE = """
CREATE TABLE IF NOT EXISTS account(
  url TEXT NOT NULL,
  kind TEXT NOT NULL CHECK(kind IN ('key', 'name')),
  salt BLOB NOT NULL,
  digest BLOB NOT NULL
) STRICT
"""

_COLUMN = re.compile(r"^  (\w+) (TEXT|INTEGER|REAL|BLOB)\b(.*?)(,?)$", re.MULTILINE)

_STORED_AS = {
    "TEXT": "'text', 'null'",
    "INTEGER": "'integer', 'null'",
    "REAL": "'real', 'integer', 'null'",
    "BLOB": "'blob', 'null'",
}
"""What a column of a STRICT table takes; of NULL its NOT NULL decides."""

OCCURRENCE_TABLE = "CREATE TEMP TABLE occurrence(key BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID"
"""Temporary: a batch that runs again counts again."""


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Give a journal what this version has more than the one that wrote it.

    To be called in one transaction: it is brought up to date or as it was.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    added = [statement for former in range(version, VERSION) for statement in _ADDED_AFTER[former]]
    made_at_open = (_LEARNED_TABLE, _NOTE_TABLE, *_NOTE_INDEXES, _SETTLED_INDEX)
    for statement in (*added, f"PRAGMA user_version = {VERSION}", *made_at_open):
        db.execute(schema_text(statement))


def has_strict_tables() -> bool:
    """Tell whether this SQLite knows STRICT tables."""
    return sqlite3.sqlite_version_info >= FIRST_WITH_STRICT


def schema_text(tables: str, *, is_strict: bool | None = None) -> str:
    """Return the text that makes *tables* here: where SQLite knows no STRICT, a CHECK of each column instead.

    A file made in either way is good for both; only a STRICT one cannot be read by an SQLite without.
    """
    if has_strict_tables() if is_strict is None else is_strict:
        return tables
    checked = _COLUMN.sub(
        lambda column: (
            f"  {column[1]} {column[2]}{column[3]}"
            f" CHECK(typeof({column[1]}) IN ({_STORED_AS[column[2]]})){column[4]}"
        ),
        tables,
    )
    return checked.replace(") STRICT, ", ") ").replace(") STRICT", ")")


def make_journal(path: Path) -> None:
    """Make an empty journal, whole or not at all: a crash must not leave a file that looks cut off.

    Raises:
        OSError: It cannot be written there.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        db = sqlite3.connect(draft, isolation_level=None)
        try:
            db.executescript(f"BEGIN; {schema_text(SCHEMA)} COMMIT")
        finally:
            db.close()
        with contextlib.suppress(FileExistsError):  # another process was faster; its journal is as good
            rename_exclusively(draft, path)
    finally:
        draft.unlink(missing_ok=True)
