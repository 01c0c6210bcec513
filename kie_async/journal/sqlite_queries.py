"""What is asked of the durable journal and changed in it: its SQL, each with what it takes and gives."""

from __future__ import annotations

import sqlite3
from typing import Any

from ..errors import JournalError
from .account import AccountNote
from .base import TaskAlreadyBound
from .intents import Intent, IntentState
from .notes import wall_ms

_INTENT_FIELDS = (
    *("intent_id", "model", "ref", "fingerprint", "body", "state", "task_id", "reason", "code", "credits"),
    *("record", "expects_callback", "planned_ms", "replaces", "terminal_ms", "former_ref"),
    *("audio_s", "expected_credits", "held_credits"),
)

# As bytes, a record that is damaged is one that cannot be read, and not an error of the whole query.
_INTENT_COLUMNS = ", ".join(_INTENT_FIELDS).replace("record", "CAST(record AS BLOB)")

# Both may be large, and whoever reads every intent needs neither.
_SMALL_COLUMNS = ", ".join({"body": "NULL", "record": "x''"}.get(field, field) for field in _INTENT_FIELDS)

_SELECT_CHUNK = f"SELECT seq, {_SMALL_COLUMNS} FROM intent WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608

# The plus keeps SQLite from going by the state and sorting all ends for each chunk.
SELECT_SETTLED = f"""
SELECT seq, terminal_ms, {_INTENT_COLUMNS} FROM intent
WHERE terminal_ms IS NOT NULL AND (terminal_ms, seq) > (?, ?) AND +state IN ('SUCCEEDED', 'FAILED')
  AND (? = '' OR instr(ref, ?) = 1)
ORDER BY terminal_ms, seq LIMIT ?
"""  # noqa: S608  (made of constants)

INSERT_SENDING = """
INSERT INTO intent(
  intent_id, ref, model, fingerprint, body, expects_callback, replaces, audio_s, expected_credits,
  planned_ms, sending_ms, state, sends
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'SENDING', 1)
ON CONFLICT(intent_id) DO UPDATE
SET state = 'SENDING', sends = sends + 1, sending_ms = excluded.sending_ms, ref = excluded.ref
WHERE state = 'PLANNED'
"""

_SET_CREATED = """
UPDATE intent SET state = 'CREATED', task_id = ?, sends = 1, created_ms = ?, adopted_by = ?
WHERE intent_id = ? AND task_id IS NULL
"""

# Whoever polled again because the end could not be read may note it again; the price is kept.
SET_SETTLED = """
UPDATE intent SET state = ?, record = ?, credits = coalesce(?, credits), terminal_ms = ?
WHERE intent_id = ? AND (state = 'CREATED' OR ?)
"""

# The next session expects of each model what this one would: of its seconds, where they were known.
SELECT_PRICES = """
SELECT model, max(credits), max(credits / max(1.0, audio_s)), max(audio_s),
  max(CASE WHEN audio_s IS NULL THEN credits END)
FROM intent WHERE credits > 0 GROUP BY model
"""

COUNT_OCCURRENCE = """
INSERT INTO temp.occurrence VALUES (?, 1) ON CONFLICT(key) DO UPDATE SET times = times + 1
"""

_FREE_REF = "former_ref = coalesce(ref, former_ref), ref = NULL"

# One that failed or was refused stays what it is, only its ref passes on.
GIVE_UP_FORMER = f"""
UPDATE intent SET state = CASE state WHEN 'UNKNOWN' THEN 'WRITTEN_OFF' ELSE state END, {_FREE_REF}
WHERE intent_id = ?
  AND (state = 'FAILED' OR (task_id IS NULL AND state IN ('UNKNOWN', 'WRITTEN_OFF', 'REJECTED')))
"""  # noqa: S608  (made of constants)

# It may have become a task meanwhile: then too the ref is its own again, or the next create would pay again.
_TAKE_BACK = """
UPDATE intent SET state = iif(state = 'WRITTEN_OFF', 'UNKNOWN', state), ref = former_ref, former_ref = NULL
WHERE intent_id = ? AND ref IS NULL
"""

SAVE_CLAIM = """
INSERT INTO claim SELECT ?, ?, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM intent WHERE intent_id = ? AND task_id IS NOT NULL)
ON CONFLICT(intent_id, task_id) DO UPDATE SET source = excluded.source WHERE source = 'unsigned'
"""

# What was surely not created is of no account: a first run with a mistyped key must not keep the right one
# out.
HOLDS_TASKS = """
SELECT EXISTS(
  SELECT 1 FROM intent WHERE sends = 1
  AND NOT (state = 'REJECTED' AND coalesce(code, 0) BETWEEN 400 AND 499 AND code != 408)
)
"""

READ_NOTE = "SELECT CAST(note AS BLOB), noted_ms, expires_ms FROM note WHERE key = ?"

# A note from the future would be the last to make room, and be taken for a fresh one when its time comes.
DROP_USELESS_NOTES = "DELETE FROM note WHERE expires_ms <= ? OR noted_ms > ?"

DROP_OLDEST_NOTES = """
DELETE FROM note WHERE key IN (
  SELECT key FROM note ORDER BY noted_ms LIMIT max(0, (SELECT count(*) FROM note) - ?)
)
"""


def select_intents(db: sqlite3.Connection, where: str, *values: object) -> list[Intent]:
    """Return the intents for which a condition holds, in the order they were planned."""
    query = f"SELECT {_INTENT_COLUMNS} FROM intent WHERE {where} ORDER BY seq"  # noqa: S608  (no value in it)
    return [intent_of(row) for row in db.execute(query, values).fetchall()]


def account_notes(db: sqlite3.Connection) -> list[AccountNote]:
    """Return which account the journal belongs to."""
    rows = db.execute("SELECT url, kind, salt, digest FROM account").fetchall()
    return [AccountNote(*row) for row in rows]


def read_chunk(db: sqlite3.Connection, *, after: int, count: int) -> list[tuple[Any, ...]]:
    """Return the next rows in the order they were planned, each with its number first."""
    return db.execute(_SELECT_CHUNK, (after, count)).fetchall()


def intent_of(row: tuple[Any, ...]) -> Intent:
    """Return the intent in a row of `select_intents`, or of a chunk without what goes before it."""
    found = dict(zip(_INTENT_FIELDS, row, strict=True))
    found["state"] = IntentState(found["state"])
    found["task_id"] = found["task_id"] or ""
    found["expects_callback"] = bool(found["expects_callback"])
    found["record"] = decode_text(found["record"])
    # No age may be negative or beyond all dates: the clock may have been another in the run that noted it.
    now_ms = wall_ms()
    for field in ("planned_ms", "terminal_ms"):
        if found[field] is not None:
            found[field] = min(max(found[field], 0), now_ms)
    return Intent(**found)


def decode_text(stored: bytes) -> str:
    """Return text that was stored as bytes, nothing if it is damaged."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return ""


def must_change(db: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    """Change one intent.

    Raises:
        JournalError: It is not there, or in another state.
    """
    if db.execute(statement, values).rowcount != 1:
        raise JournalError("the journal does not hold this intent in the state it must be in")


def update_where(change: str, where: str) -> str:
    """Return the statement that changes one intent, given last, if it is in the right state."""
    return f"UPDATE intent SET {change} WHERE {where} AND intent_id = ?"  # noqa: S608  (no value in it)


def take_back_former(db: sqlite3.Connection, intent_id: str) -> None:
    """Give the intent this one replaced its ref again, since this one created nothing."""
    for found in select_intents(db, "intent_id = ?", intent_id):
        if found.replaces:
            db.execute(f"UPDATE intent SET {_FREE_REF} WHERE intent_id = ?", (intent_id,))  # noqa: S608
            db.execute(_TAKE_BACK, (found.replaces,))


def free_ref(db: sqlite3.Connection, ref: str, intent_id: str) -> None:
    """Take a ref from an intent that never became a task; any other keeps it, and no second one gets in."""
    for holder in select_intents(db, "ref = ? AND intent_id != ?", ref, intent_id):
        if holder.frees_its_ref:
            db.execute(f"UPDATE intent SET {_FREE_REF} WHERE intent_id = ?", (holder.intent_id,))  # noqa: S608


def bind_task(db: sqlite3.Connection, task_id: str, now_ms: int, adopted_by: str, intent_id: str) -> None:
    """Bind an intent to its task, once.

    Raises:
        TaskAlreadyBound: The task has another intent.
        JournalError: The intent has another task.
    """
    try:
        taken = db.execute(_SET_CREATED, (task_id, now_ms, adopted_by, intent_id)).rowcount
    except sqlite3.IntegrityError:
        taken = 0
    if taken or select_intents(db, "intent_id = ? AND task_id = ?", intent_id, task_id):
        return
    if holders := select_intents(db, "task_id = ?", task_id):
        raise TaskAlreadyBound(f"task {task_id} belongs to another intent, {holders[0].intent_id}")
    raise JournalError(f"task {task_id} cannot be noted: its intent {intent_id} has another task or is gone")
