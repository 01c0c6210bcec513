"""The durable journal: one SQLite file that knows every intent and what became of it.

The rules it keeps: a body leaves only after SENDING is committed; an id is committed before user code
sees it, an end before a handle settles; an intent is sent at most once, says the schema; a commit that
failed sends nothing, and an id that could not be committed goes to a file beside the journal.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .._validation import check_count, check_kind
from ..errors import JournalError
from ..models import TaskRecord, TaskState
from ..wire.redaction import without_mac
from .account import Account, AccountNote, notes_to_add
from .base import (
    MOST_SMALL_NOTES,
    Claim,
    ClaimSource,
    Intent,
    IntentState,
    Journal,
    SmallNote,
    TaskAlreadyBound,
    Totals,
    decode_note,
    encode_note,
    log_lost_note,
)
from .rescue_file import RescueFile, decode_line, split_lines
from .sqlite_file import JournalFile, schema_text
from .sqlite_snapshot import JournalSnapshot
from .sqlite_thread import SqliteThread

_INTENT_FIELDS = (
    *("intent_id", "model", "ref", "fingerprint", "body", "state", "task_id", "reason", "code", "credits"),
    *("record", "expects_callback", "planned_ms", "replaces", "terminal_ms"),
)

# As bytes, a record that is damaged is one that cannot be read, and not an error of the whole query.
_INTENT_COLUMNS = ", ".join(_INTENT_FIELDS).replace("record", "CAST(record AS BLOB)")

# Both may be large, and whoever reads every intent needs neither.
_SMALL_COLUMNS = ", ".join({"body": "NULL", "record": "x''"}.get(field, field) for field in _INTENT_FIELDS)

_SELECT_CHUNK = f"SELECT seq, {_SMALL_COLUMNS} FROM intent WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608

# The plus keeps SQLite from going by the state and sorting all ends for each chunk.
_SELECT_SETTLED = f"""
SELECT seq, terminal_ms, {_INTENT_COLUMNS} FROM intent
WHERE terminal_ms IS NOT NULL AND (terminal_ms, seq) > (?, ?) AND +state IN ('SUCCEEDED', 'FAILED')
  AND (? = '' OR instr(ref, ?) = 1)
ORDER BY terminal_ms, seq LIMIT ?
"""  # noqa: S608  (made of constants)

_INSERT_SENDING = """
INSERT INTO intent(
  intent_id, ref, model, fingerprint, body, expects_callback, replaces, planned_ms, sending_ms, state, sends
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'SENDING', 1)
ON CONFLICT(intent_id) DO UPDATE
SET state = 'SENDING', sends = sends + 1, sending_ms = excluded.sending_ms, ref = excluded.ref
WHERE state = 'PLANNED'
"""

_SET_CREATED = """
UPDATE intent SET state = 'CREATED', task_id = ?, sends = 1, created_ms = ?, adopted_by = ?
WHERE intent_id = ? AND task_id IS NULL
"""

# Whoever polled again because the end could not be read may note it again; the price is kept.
_SET_SETTLED = """
UPDATE intent SET state = ?, record = ?, credits = coalesce(?, credits), terminal_ms = ?
WHERE intent_id = ? AND (state = 'CREATED' OR ?)
"""

_COUNT_OCCURRENCE = """
INSERT INTO temp.occurrence VALUES (?, 1) ON CONFLICT(key) DO UPDATE SET times = times + 1
"""

_FREE_REF = "former_ref = ref, ref = NULL"

_WRITE_OFF_FORMER = f"""
UPDATE intent SET state = 'WRITTEN_OFF', {_FREE_REF}
WHERE intent_id = ? AND task_id IS NULL AND state IN ('UNKNOWN', 'WRITTEN_OFF')
"""  # noqa: S608  (made of constants)

# It may have become a task meanwhile: then too the ref is its own again, or the next create would pay again.
_TAKE_BACK = """
UPDATE intent SET state = iif(state = 'WRITTEN_OFF', 'UNKNOWN', state), ref = former_ref, former_ref = NULL
WHERE intent_id = ? AND ref IS NULL
"""

_SAVE_CLAIM = """
INSERT INTO claim SELECT ?, ?, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM intent WHERE intent_id = ? AND task_id IS NOT NULL)
ON CONFLICT(intent_id, task_id) DO UPDATE SET source = excluded.source WHERE source = 'unsigned'
"""

# Made by the first session: until then the journal belongs to nobody.
_ACCOUNT_TABLE = """
CREATE TABLE IF NOT EXISTS account(
  url TEXT NOT NULL,
  kind TEXT NOT NULL CHECK(kind IN ('key', 'name')),
  salt BLOB NOT NULL,
  digest BLOB NOT NULL
) STRICT
"""

# What was surely not created is of no account: a first run with a mistyped key must not keep the right one
# out.
_HOLDS_TASKS = """
SELECT EXISTS(
  SELECT 1 FROM intent WHERE sends = 1
  AND NOT (state = 'REJECTED' AND coalesce(code, 0) BETWEEN 400 AND 499 AND code != 408)
)
"""

_READ_NOTE = "SELECT CAST(note AS BLOB), noted_ms, expires_ms FROM note WHERE key = ?"

# A note from the future would be the last to make room, and be taken for a fresh one when its time comes.
_DROP_USELESS_NOTES = "DELETE FROM note WHERE expires_ms <= ? OR noted_ms > ?"

_DROP_OLDEST_NOTES = """
DELETE FROM note WHERE key IN (
  SELECT key FROM note ORDER BY noted_ms LIMIT max(0, (SELECT count(*) FROM note) - ?)
)
"""

_ECHOES_OF_THE_REQUEST = ("param", "paramJson")
"""Keys of a record under which the request comes back; they are kept only when bodies are."""

_MAX_REASON_CHARS = 500

_GHOST_HORIZON_MS = 14 * 86_400_000
"""How long a refused create may still turn out to be a task: the service keeps results no longer."""

_SETTLED_CHUNK = 100
"""How many are read at once; their records are whole."""

_YEAR_2100_MS = 4_102_444_800_000

_T = TypeVar("_T")


@attrs.frozen
class _Rescued:
    """What a rescue file held at open, and which lines of it could not be used."""

    file: RescueFile
    content: bytes
    unused: list[str]


class SqliteJournal(Journal):
    """A journal in one file: it survives crashes, and one process at a time has it.

    Of a request it keeps a digest; with *keep_bodies* also the request itself.

    Raises:
        InvalidRequest: An argument is wrong; the message names it.
    """

    is_durable = True

    def __init__(self, path: str | Path, *, keep_bodies: bool = False) -> None:
        check_kind("path", path, (str, Path), "the path of a file")
        check_kind("keep_bodies", keep_bodies, bool, "True or False")
        self._file = JournalFile(path)
        self._keep_bodies = keep_bodies
        self._thread: SqliteThread | None = None
        self._latest_planned_ms = 0

    def __repr__(self) -> str:
        return f"<SqliteJournal {self._file.path}>"

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._file.path

    @property
    def rescue_path(self) -> Path:
        """Return where ids go that could not be committed; read again at the next open."""
        return self._file.rescue_path

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> list[Intent]:
        """Open or make the file; return what a former process left unknown or may have created.

        Raises:
            JournalError: The file is no journal of this version, is damaged or cannot be written.
            JournalLocked: Another session or process has it open.
        """
        await self._open_file()
        try:
            is_recent = "(planned_ms <= 0 OR planned_ms > ?)"  # no real time: better expected for too long
            is_given_up = f"(state IN ('REJECTED', 'WRITTEN_OFF') AND sends = 1 AND {is_recent})"
            may_be_tasks = f"state = 'UNKNOWN' OR {is_given_up}"
            return await self._select(may_be_tasks, _now_ms() - _GHOST_HORIZON_MS)
        except BaseException:
            await self.aclose()
            raise

    async def check_account(self, account: Account) -> None:
        """Refuse every account but the one it belongs to, and note that; see `Journal.check_account`."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(schema_text(_ACCOUNT_TABLE))
            noted = _account_notes(db) if db.execute(_HOLDS_TASKS).fetchone()[0] else []
            added = notes_to_add(noted, account, journal=f"journal {self._file.path}")
            if not noted:
                db.execute("DELETE FROM account")
            db.executemany("INSERT INTO account VALUES (?, ?, ?, ?)", map(attrs.astuple, added))

        await self._do(job)

    async def open_to_read(self) -> None:
        """Read the file as it stands now, whoever has it open: without a lock, and without changing anything.

        What is noted later is not seen. A create that was on its way when its process ended is UNKNOWN, as
        for the next session. Needs the right to read file and folder, and room for a copy.

        Raises:
            JournalError: The file is not there, no journal of this version, or damaged.
        """
        await self._start(JournalSnapshot(self._file.path, self._finish_copy))

    async def _start(self, file: JournalFile) -> None:
        if self._thread is not None:
            raise JournalError(f"journal {self._file.path} is open already")
        self._thread = SqliteThread(file)
        try:
            await self._thread.start()
        except BaseException:
            await self.aclose()
            raise

    async def _open_file(self) -> None:
        """Open or make the file, and bring it up to date."""
        await self._start(self._file)
        try:
            rescued = await self._do(self._replay)
            # A job of its own: the file may go only after what was read from it is committed.
            await self._do(lambda _: _put_away(rescued))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Finish what was begun and let go of the file."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await thread.aclose()

    def _replay(self, db: sqlite3.Connection) -> list[_Rescued]:
        """Bring up to date what a former process left; return what the rescue files held.

        Rescued ids come first: an intent whose id is known is not unknown.
        """
        rescued = self._read_rescued(db)
        latest = "SELECT coalesce(max(planned_ms), 0) FROM intent WHERE planned_ms < ?"
        self._latest_planned_ms = db.execute(latest, (_YEAR_2100_MS,)).fetchone()[0]
        _end_what_was_on_its_way(db)
        return rescued

    def _read_rescued(self, db: sqlite3.Connection) -> list[_Rescued]:
        rescued = [_use_rescued(db, RescueFile(path)) for path in self._file.rescue_paths]
        return [found for found in rescued if found is not None]

    def _finish_copy(self, db: sqlite3.Connection, is_over: bool) -> None:
        """Do to a copy what is done to the file at open, but for what is under way in another process."""
        self._read_rescued(db)
        if is_over:
            _end_what_was_on_its_way(db)

    # --- reading -------------------------------------------------------------------------------

    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""
        found = await self._select("ref = ?", ref)
        return found[0] if found and not found[0].frees_its_ref else None

    async def list_unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end."""
        return await self._select("state = 'CREATED'")

    async def list_intents(self) -> list[Intent]:
        """Return all intents in the order they were planned."""
        return await self._select("true")

    async def iterate_intents(self, *, chunk: int = 500) -> AsyncIterator[Intent]:
        """Yield all intents in the order they were planned, in bounded memory: without body and record.

        *chunk* is how many are read at once. What is noted meanwhile comes too, if its turn is yet to come.

        Raises:
            JournalError: It cannot be read any more.
        """
        check_count("chunk", chunk)
        last = 0
        while rows := await self._do(partial(_read_chunk, after=last, count=chunk)):
            for row in rows:
                yield _intent(row[1:])
            last = rows[-1][0]

    async def iterate_settled(self, *, since_ms: int = 0, ref_prefix: str = "") -> AsyncIterator[Intent]:
        """Yield the intents whose task ended since then, the oldest end first, in bounded memory.

        Raises:
            JournalError: It cannot be read any more.
        """
        last = (since_ms, 0)  # no seq is 0, so what ended in that millisecond comes too
        while rows := await self._select_settled(*last, ref_prefix, ref_prefix, _SETTLED_CHUNK):
            for row in rows:
                yield _intent(row[2:])
            last = (rows[-1][1], rows[-1][0])

    async def _select_settled(self, *values: object) -> list[tuple[Any, ...]]:
        return await self._do(lambda db: db.execute(_SELECT_SETTLED, values).fetchall())

    async def find_by_task(self, task_id: str) -> Intent | None:
        """Return the intent that became a task."""
        found = await self._select("task_id = ?", task_id)
        return found[0] if found else None

    async def list_last_results(self, count: int) -> list[Intent]:
        """Return the last *count* intents whose task succeeded."""
        last = "SELECT seq FROM intent WHERE state = 'SUCCEEDED' ORDER BY seq DESC LIMIT ?"
        return await self._select(f"seq IN ({last})", count)

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        """Return an intent."""
        found = await self._select("intent_id = ?", intent_id)
        return found[0] if found else None

    async def list_claims(self) -> list[Claim]:
        """Return what is claimed of intents that have no task, in the order it was noted."""
        query = "SELECT intent_id, task_id, source FROM claim ORDER BY noted_ms, task_id"
        rows = await self._do(lambda db: db.execute(query).fetchall())
        return [
            Claim(intent_id=intent_id, task_id=task_id, source=ClaimSource(source))
            for intent_id, task_id, source in rows
        ]

    async def load_totals(self) -> Totals:
        """Return what was spent."""
        query = (
            "SELECT count(*), coalesce(sum(state IN ('SUCCEEDED', 'FAILED')), 0), total(credits) "
            "FROM intent WHERE sends = 1 AND state != 'REJECTED'"
        )
        return Totals(*await self._do(lambda db: db.execute(query).fetchone()))

    async def load_prices(self) -> Mapping[str, float]:
        """Return the most that one task of each model has cost, in credits."""
        query = "SELECT model, max(credits) FROM intent WHERE credits > 0 GROUP BY model"
        return dict(await self._do(lambda db: db.execute(query).fetchall()))

    async def load_durations(self) -> Mapping[str, object]:
        """Return what former processes learned of each model; what cannot be read is left out."""
        rows = await self._do(lambda db: db.execute("SELECT model, durations FROM learned").fetchall())
        learned = {model: decode_note(durations) for model, durations in rows}
        return {model: durations for model, durations in learned.items() if durations is not None}

    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Note what was learned of each model, in the place of what was noted before."""
        rows = [(model, encode_note(durations)) for model, durations in learned.items()]
        await self._do(lambda db: db.executemany("INSERT OR REPLACE INTO learned VALUES (?, ?)", rows))

    async def count_occurrence(self, key: bytes) -> int:
        """Count *key* and return how often it was counted since open."""

        def job(db: sqlite3.Connection) -> int:
            db.execute(_COUNT_OCCURRENCE, (key,))
            read = "SELECT times FROM temp.occurrence WHERE key = ?"
            return int(db.execute(read, (key,)).fetchone()[0])

        return await self._do(job)

    async def _select(self, where: str, *values: object) -> list[Intent]:
        return await self._do(lambda db: _intents(db, where, *values))

    # --- writing -------------------------------------------------------------------------------

    async def mark_sending(self, intent: Intent) -> None:
        """Note that the body is about to leave; see `Journal.mark_sending`."""
        # Times never go back, also when the clock is set back between two runs: whoever reads them
        # would take a create of the run between for an old one.
        now_ms = self._latest_planned_ms = max(_now_ms(), self._latest_planned_ms)
        body = without_mac(intent.body) if self._keep_bodies and intent.body else None
        values = (
            *(intent.intent_id, intent.ref, intent.model, intent.fingerprint, body),
            *(intent.expects_callback, intent.replaces, now_ms, now_ms),
        )

        def job(db: sqlite3.Connection) -> None:
            if intent.replaces:
                _must_change(db, _WRITE_OFF_FORMER, (intent.replaces,))
            if intent.ref is not None:
                _free_ref(db, intent.ref, intent.intent_id)
            _must_change(db, _INSERT_SENDING, values)

        await self._do(job)

    async def mark_unsent(self, intent_id: str) -> None:
        """Take `sending` back: it is proven that no task was created."""
        change = "state = 'PLANNED', sends = 0, sending_ms = NULL"
        statement = _update_where(change, "state IN ('PLANNED', 'SENDING')")

        def job(db: sqlite3.Connection) -> None:
            _must_change(db, statement, (intent_id,))
            _take_back_former(db, intent_id)

        await self._do(job)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became; if that fails, the id goes to `rescue_path`."""
        values = (task_id, _now_ms(), adopted_by, intent_id)

        def job(db: sqlite3.Connection) -> None:
            _bind_task(db, *values)
            db.execute("DELETE FROM claim WHERE intent_id = ?", (intent_id,))

        await self._do(job, rescue=lambda: RescueFile(self.rescue_path).append(intent_id, task_id))

    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
    ) -> None:
        """Note how an intent ended without a task; see `Journal.mark_ended`."""
        values = (state.value, reason[:_MAX_REASON_CHARS], code, intent_id)
        change, may_be_new = "state = ?, reason = ?, code = ?", state is IntentState.NOT_CREATED
        if may_be_new:
            change = f"{change}, sends = 0"
        statement = _update_where(change, "task_id IS NULL")

        def job(db: sqlite3.Connection) -> None:
            if may_be_new and not _intents(db, "intent_id = ?", intent_id):
                return  # nothing of it was about to leave
            _must_change(db, statement, values)
            if all(found.frees_its_ref for found in _intents(db, "intent_id = ?", intent_id)):
                _take_back_former(db, intent_id)

        await self._do(job)

    async def save_claim(self, claim: Claim) -> None:
        """Note what is claimed of an intent; a stronger source takes the place of a weaker one."""
        values = (claim.intent_id, claim.task_id, claim.source.value, _now_ms(), claim.intent_id)
        await self._do(lambda db: db.execute(_SAVE_CLAIM, values) and None)

    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        """Forget a claim that was disproven."""
        statement = "DELETE FROM claim WHERE intent_id = ? AND task_id = ?"
        await self._do(lambda db: db.execute(statement, (intent_id, task_id)) and None)

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task; see `Journal.mark_settled`."""
        state = IntentState.SUCCEEDED if record.state is TaskState.SUCCESS else IntentState.FAILED
        raw = dict(record.raw) or {"taskId": record.task_id, "state": record.state.value}
        if not self._keep_bodies:
            raw = {key: value for key, value in raw.items() if key not in _ECHOES_OF_THE_REQUEST}
        values = (state.value, encode_note(raw), record.credits, _now_ms(), intent_id)

        def job(db: sqlite3.Connection) -> None:
            noted = _intents(db, "intent_id = ?", intent_id)
            is_unreadable = any(found.state is state and found.read_end() is None for found in noted)
            _must_change(db, _SET_SETTLED, (*values, is_unreadable))

        await self._do(job)

    # --- small notes ---------------------------------------------------------------------------

    async def recall(self, key: str) -> object | None:
        """Return what was last remembered under *key*; see `Journal.recall`."""
        with log_lost_note(key):
            if row := await self._do(lambda db: db.execute(_READ_NOTE, (key,)).fetchone()):
                text, noted_ms, expires_ms = row
                return SmallNote(_decode_text(text), noted_ms, expires_ms).read(_now_ms())
        return None

    async def remember(self, key: str, note: object, *, for_s: float) -> None:
        """Keep a small note across restarts; see `Journal.remember`."""
        now_ms = _now_ms()

        def job(db: sqlite3.Connection) -> None:
            db.execute(_DROP_USELESS_NOTES, (now_ms, now_ms))
            db.execute("INSERT OR REPLACE INTO note VALUES (?, ?, ?, ?)", (key, *attrs.astuple(kept)))
            db.execute(_DROP_OLDEST_NOTES, (MOST_SMALL_NOTES,))

        with log_lost_note(key):
            kept = SmallNote.of(note, for_s=for_s, now_ms=now_ms)
            await self._do(job)

    async def _do(
        self, job: Callable[[sqlite3.Connection], _T], *, rescue: Callable[[], None] | None = None
    ) -> _T:
        """Run *job* in the journal's thread and return when its commit is durable."""
        if self._thread is None:
            raise JournalError(f"journal {self._file.path} is closed")
        return await self._thread.run(job, rescue=rescue)


def _intents(db: sqlite3.Connection, where: str, *values: object) -> list[Intent]:
    query = f"SELECT {_INTENT_COLUMNS} FROM intent WHERE {where} ORDER BY seq"  # noqa: S608  (no value in it)
    return [_intent(row) for row in db.execute(query, values).fetchall()]


def _account_notes(db: sqlite3.Connection) -> list[AccountNote]:
    rows = db.execute("SELECT url, kind, salt, digest FROM account").fetchall()
    return [AccountNote(*row) for row in rows]


def _read_chunk(db: sqlite3.Connection, *, after: int, count: int) -> list[tuple[Any, ...]]:
    return db.execute(_SELECT_CHUNK, (after, count)).fetchall()


def _intent(row: tuple[Any, ...]) -> Intent:
    found = dict(zip(_INTENT_FIELDS, row, strict=True))
    found["state"] = IntentState(found["state"])
    found["task_id"] = found["task_id"] or ""
    found["expects_callback"] = bool(found["expects_callback"])
    found["record"] = _decode_text(found["record"])
    # No age may be negative or beyond all dates: the clock may have been another in the run that noted it.
    now_ms = _now_ms()
    for field in ("planned_ms", "terminal_ms"):
        if found[field] is not None:
            found[field] = min(max(found[field], 0), now_ms)
    return Intent(**found)


def _decode_text(stored: bytes) -> str:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return ""


def _must_change(db: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    """Change one intent.

    Raises:
        JournalError: It is not there, or in another state.
    """
    if db.execute(statement, values).rowcount != 1:
        raise JournalError("the journal does not hold this intent in the state it must be in")


def _update_where(change: str, where: str) -> str:
    """Return the statement that changes one intent, given last, if it is in the right state."""
    return f"UPDATE intent SET {change} WHERE {where} AND intent_id = ?"  # noqa: S608  (no value in it)


def _take_back_former(db: sqlite3.Connection, intent_id: str) -> None:
    """Undo the write-off of the intent this one replaced, since this one created nothing."""
    for found in _intents(db, "intent_id = ?", intent_id):
        if found.replaces:
            db.execute(f"UPDATE intent SET {_FREE_REF} WHERE intent_id = ?", (intent_id,))  # noqa: S608
            db.execute(_TAKE_BACK, (found.replaces,))


def _free_ref(db: sqlite3.Connection, ref: str, intent_id: str) -> None:
    """Take a ref from an intent that never became a task; any other keeps it, and no second one gets in."""
    for holder in _intents(db, "ref = ? AND intent_id != ?", ref, intent_id):
        if holder.frees_its_ref:
            db.execute(f"UPDATE intent SET {_FREE_REF} WHERE intent_id = ?", (holder.intent_id,))  # noqa: S608


def _bind_task(db: sqlite3.Connection, task_id: str, now_ms: int, adopted_by: str, intent_id: str) -> None:
    """Bind an intent to its task, once.

    Raises:
        TaskAlreadyBound: The task has another intent.
        JournalError: The intent has another task.
    """
    try:
        taken = db.execute(_SET_CREATED, (task_id, now_ms, adopted_by, intent_id)).rowcount
    except sqlite3.IntegrityError:
        taken = 0
    if taken or _intents(db, "intent_id = ? AND task_id = ?", intent_id, task_id):
        return
    if holders := _intents(db, "task_id = ?", task_id):
        raise TaskAlreadyBound(f"task {task_id} belongs to another intent, {holders[0].intent_id}")
    raise JournalError(f"task {task_id} cannot be noted: its intent {intent_id} has another task or is gone")


def _end_what_was_on_its_way(db: sqlite3.Connection) -> None:
    db.execute("UPDATE intent SET state = 'UNKNOWN', reason = 'crash' WHERE state = 'SENDING'")
    db.execute("UPDATE intent SET state = 'NOT_CREATED', reason = 'never sent' WHERE state = 'PLANNED'")


def _use_rescued(db: sqlite3.Connection, file: RescueFile) -> _Rescued | None:
    """Bind what a rescue file names; return None if there is nothing to be read."""
    if (content := file.read()) is None:
        return None
    unused = [line for line in split_lines(content) if not _bind_rescued(db, line)]
    return _Rescued(file, content, unused)


def _bind_rescued(db: sqlite3.Connection, line: str) -> bool:
    """Bind the intent of a rescued line to its task; tell whether that was possible."""
    if (ids := decode_line(line)) is None:
        return False
    intent_id, task_id = ids
    try:
        _bind_task(db, task_id, _now_ms(), "rescue", intent_id)
    except (JournalError, UnicodeError):  # of another journal, or text that SQLite cannot hold
        return False
    return True


def _put_away(rescued: list[_Rescued]) -> None:
    for found in rescued:
        found.file.put_away(found.content, found.unused)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
