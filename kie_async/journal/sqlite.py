"""The durable journal: one SQLite file that knows every intent and what became of it.

The rules it keeps: a body leaves only after SENDING is committed; an id is committed before user code
sees it, an end before a handle settles; an intent is sent at most once, says the schema; a commit that
failed sends nothing, and an id that could not be committed goes to a file beside the journal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .._validation import check_count, check_kind
from ..errors import JournalError
from ..limits.prices import TakenPrices
from ..models import TaskRecord
from ..wire.redaction import without_mac
from .account import Account, notes_to_add
from .base import Journal
from .intents import Claim, ClaimSource, Intent, IntentState, Totals
from .notes import (
    MAX_REASON_CHARS,
    MOST_SMALL_NOTES,
    SmallNote,
    decode_note,
    encode_note,
    encode_record,
    log_lost_note,
    wall_ms,
)
from .rescue_file import RescueFile
from .sqlite_file import JournalFile
from .sqlite_queries import (
    COUNT_OCCURRENCE,
    DROP_OLDEST_NOTES,
    DROP_USELESS_NOTES,
    GIVE_UP_FORMER,
    HOLDS_TASKS,
    INSERT_SENDING,
    READ_NOTE,
    SAVE_CLAIM,
    SELECT_PRICES,
    SELECT_SETTLED,
    SET_SETTLED,
    account_notes,
    bind_task,
    decode_text,
    free_ref,
    intent_of,
    must_change,
    read_chunk,
    select_intents,
    take_back_former,
    update_where,
)
from .sqlite_replay import Rescued, end_what_was_on_its_way, put_away, use_rescued
from .sqlite_schema import ACCOUNT_TABLE, schema_text
from .sqlite_snapshot import JournalSnapshot
from .sqlite_thread import SqliteThread

_GHOST_HORIZON_MS = 14 * 86_400_000
"""How long a refused create may still turn out to be a task: the service keeps results no longer."""

_SETTLED_CHUNK = 100
"""How many are read at once; their records are whole."""

_YEAR_2100_MS = 4_102_444_800_000

_T = TypeVar("_T")


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
            return await self._select(may_be_tasks, wall_ms() - _GHOST_HORIZON_MS)
        except BaseException:
            await self.aclose()
            raise

    async def check_account(self, account: Account) -> None:
        """Refuse every account but the one it belongs to, and note that; see `Journal.check_account`."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(schema_text(ACCOUNT_TABLE))
            noted = account_notes(db) if db.execute(HOLDS_TASKS).fetchone()[0] else []
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
            await self._do(lambda _: put_away(rescued))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Finish what was begun and let go of the file."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await thread.aclose()

    def _replay(self, db: sqlite3.Connection) -> list[Rescued]:
        """Bring up to date what a former process left; return what the rescue files held.

        Rescued ids come first: an intent whose id is known is not unknown.
        """
        rescued = use_rescued(db, self._file.rescue_paths)
        latest = "SELECT coalesce(max(planned_ms), 0) FROM intent WHERE planned_ms < ?"
        self._latest_planned_ms = db.execute(latest, (_YEAR_2100_MS,)).fetchone()[0]
        end_what_was_on_its_way(db)
        return rescued

    def _finish_copy(self, db: sqlite3.Connection, is_over: bool) -> None:
        """Do to a copy what is done to the file at open, but for what is under way in another process."""
        use_rescued(db, self._file.rescue_paths)
        if is_over:
            end_what_was_on_its_way(db)

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
        while rows := await self._do(partial(read_chunk, after=last, count=chunk)):
            for row in rows:
                yield intent_of(row[1:])
            last = rows[-1][0]

    async def iterate_settled(self, *, since_ms: int = 0, ref_prefix: str = "") -> AsyncIterator[Intent]:
        """Yield the intents whose task ended since then, the oldest end first, in bounded memory.

        Raises:
            JournalError: It cannot be read any more.
        """
        last = (since_ms, 0)  # no seq is 0, so what ended in that millisecond comes too
        while rows := await self._select_settled(*last, ref_prefix, ref_prefix, _SETTLED_CHUNK):
            for row in rows:
                yield intent_of(row[2:])
            last = (rows[-1][1], rows[-1][0])

    async def _select_settled(self, *values: object) -> list[tuple[Any, ...]]:
        return await self._do(lambda db: db.execute(SELECT_SETTLED, values).fetchall())

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

    async def load_prices(self) -> Mapping[str, TakenPrices]:
        """Return what the tasks of each model took."""
        rows = await self._do(lambda db: db.execute(SELECT_PRICES).fetchall())
        return {model: TakenPrices(*(price or 0.0 for price in prices)) for model, *prices in rows}

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
            db.execute(COUNT_OCCURRENCE, (key,))
            read = "SELECT times FROM temp.occurrence WHERE key = ?"
            return int(db.execute(read, (key,)).fetchone()[0])

        return await self._do(job)

    async def _select(self, where: str, *values: object) -> list[Intent]:
        return await self._do(lambda db: select_intents(db, where, *values))

    # --- writing -------------------------------------------------------------------------------

    async def mark_sending(self, intent: Intent) -> None:
        """Note that the body is about to leave; see `Journal.mark_sending`."""
        # Times never go back, also when the clock is set back between two runs: whoever reads them
        # would take a create of the run between for an old one.
        now_ms = self._latest_planned_ms = max(wall_ms(), self._latest_planned_ms)
        body = without_mac(intent.body) if self._keep_bodies and intent.body else None
        values = (
            *(intent.intent_id, intent.ref, intent.model, intent.fingerprint, body),
            *(intent.expects_callback, intent.replaces, intent.audio_s, intent.expected_credits),
            *(now_ms, now_ms),
        )

        def job(db: sqlite3.Connection) -> None:
            if intent.replaces:
                must_change(db, GIVE_UP_FORMER, (intent.replaces,))
            if intent.ref is not None:
                free_ref(db, intent.ref, intent.intent_id)
            must_change(db, INSERT_SENDING, values)

        await self._do(job)

    async def mark_unsent(self, intent_id: str) -> None:
        """Take `sending` back: it is proven that no task was created."""
        change = "state = 'PLANNED', sends = 0, sending_ms = NULL"
        statement = update_where(change, "state IN ('PLANNED', 'SENDING')")

        def job(db: sqlite3.Connection) -> None:
            must_change(db, statement, (intent_id,))
            take_back_former(db, intent_id)

        await self._do(job)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became; if that fails, the id goes to `rescue_path`."""
        values = (task_id, wall_ms(), adopted_by, intent_id)

        def job(db: sqlite3.Connection) -> None:
            bind_task(db, *values)
            db.execute("DELETE FROM claim WHERE intent_id = ?", (intent_id,))

        await self._do(job, rescue=lambda: RescueFile(self.rescue_path).append(intent_id, task_id))

    async def mark_held(self, intent_id: str, credits: float) -> None:
        """Note what the service holds for the task of an intent."""
        statement = update_where("held_credits = ?", "state = 'CREATED'")
        await self._do(lambda db: db.execute(statement, (credits, intent_id)) and None)

    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
    ) -> None:
        """Note how an intent ended without a task; see `Journal.mark_ended`."""
        values = (state.value, reason[:MAX_REASON_CHARS], code, intent_id)
        change, may_be_new = "state = ?, reason = ?, code = ?", state is IntentState.NOT_CREATED
        if may_be_new:
            change = f"{change}, sends = 0"
        statement = update_where(change, "task_id IS NULL")

        def job(db: sqlite3.Connection) -> None:
            if may_be_new and not select_intents(db, "intent_id = ?", intent_id):
                return  # nothing of it was about to leave
            must_change(db, statement, values)
            if all(found.frees_its_ref for found in select_intents(db, "intent_id = ?", intent_id)):
                take_back_former(db, intent_id)

        await self._do(job)

    async def save_claim(self, claim: Claim) -> None:
        """Note what is claimed of an intent; a stronger source takes the place of a weaker one."""
        values = (claim.intent_id, claim.task_id, claim.source.value, wall_ms(), claim.intent_id)
        await self._do(lambda db: db.execute(SAVE_CLAIM, values) and None)

    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        """Forget a claim that was disproven."""
        statement = "DELETE FROM claim WHERE intent_id = ? AND task_id = ?"
        await self._do(lambda db: db.execute(statement, (intent_id, task_id)) and None)

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task; see `Journal.mark_settled`."""
        state = IntentState.of_end(record)
        noted_record = encode_record(record, keeps_request=self._keep_bodies)
        values = (state.value, noted_record, record.credits, wall_ms(), intent_id)

        def job(db: sqlite3.Connection) -> None:
            noted = select_intents(db, "intent_id = ?", intent_id)
            is_unreadable = any(found.state is state and found.read_end() is None for found in noted)
            must_change(db, SET_SETTLED, (*values, is_unreadable))

        await self._do(job)

    # --- small notes ---------------------------------------------------------------------------

    async def recall(self, key: str) -> object | None:
        """Return what was last remembered under *key*; see `Journal.recall`."""
        with log_lost_note(key):
            if row := await self._do(lambda db: db.execute(READ_NOTE, (key,)).fetchone()):
                text, noted_ms, expires_ms = row
                return SmallNote(decode_text(text), noted_ms, expires_ms).read(wall_ms())
        return None

    async def remember(self, key: str, note: object, *, for_s: float) -> None:
        """Keep a small note across restarts; see `Journal.remember`."""
        now_ms = wall_ms()

        def job(db: sqlite3.Connection) -> None:
            db.execute(DROP_USELESS_NOTES, (now_ms, now_ms))
            db.execute("INSERT OR REPLACE INTO note VALUES (?, ?, ?, ?)", (key, *attrs.astuple(kept)))
            db.execute(DROP_OLDEST_NOTES, (MOST_SMALL_NOTES,))

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
