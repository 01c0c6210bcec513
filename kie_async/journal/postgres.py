"""The shared journal: a PostgreSQL database that knows every intent of all workers of one account.

It keeps the rules of the journal in a file. Each intent is one worker's, which alone sends and follows it. A
worker that dies loses its intents to another: what was SENDING is unknown then, and is never sent again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs

from .._validation import check_above_zero, check_kind
from ..config import Budget, Rate
from ..errors import BudgetExceeded, InvalidRequest, JournalAway, JournalError
from ..limits.budget import is_over
from ..limits.rate_limiter import Permits, RateLimiter
from ..models import TaskRecord
from ..wire.redaction import without_mac
from . import postgres_queries as sql
from .account import Account, notes_to_add
from .intents import Claim, Intent, IntentState
from .notes import MAX_REASON_CHARS, MOST_SMALL_NOTES, SmallNote, encode_note, encode_record, log_lost_note
from .postgres_connections import Connection
from .postgres_database import UNFLUSHED, Job, PostgresDatabase, Single, fetching, import_asyncpg
from .postgres_late import LateNotes
from .postgres_limiter import MAX_PERMITS, SharedPermits
from .postgres_reader import PostgresReader
from .postgres_schema import check_name, check_readable, prepare
from .postgres_workers import Membership
from .shared import NewsSink, StoredDelivery

if TYPE_CHECKING:
    from .postgres_connections import Pool

ID_PATIENCE_S = 30.0
"""So long an id waits for a database that is away, before its create is told so: a restart takes seconds."""

END_PATIENCE_S = 5.0
"""So long an end does, before the handle is told."""

_TAKEN_AT_ONCE = 200

_LEAST_CONNECTIONS = 2
"""Of a pool that is given: the heartbeat keeps one."""

_BUDGET_LOCK = "SELECT pg_advisory_xact_lock(hashtext('kie_async budget'), hashtext(current_schema()))"


class PostgresJournal(PostgresReader):
    """A journal in a PostgreSQL database, which any number of workers on any number of hosts share.

    *dsn_or_pool* is ``postgresql://user@host/database`` or an `asyncpg.Pool` of yours. *name* is a journal of
    its own in that database. A worker that is silent for *lease_s* seconds loses its tasks to the others. Of
    a request it keeps a digest; with *keep_bodies* also the request itself. Needs the extra ``postgres``.

    Raises:
        InvalidRequest: An argument is wrong, or asyncpg is not installed; the message names it.
    """

    def __init__(
        self,
        dsn_or_pool: str | Pool,
        *,
        name: str = "main",
        lease_s: float = 10.0,
        keep_bodies: bool = False,
    ) -> None:
        import_asyncpg()
        if isinstance(dsn_or_pool, str):
            check_dsn(dsn_or_pool)
        elif not callable(getattr(dsn_or_pool, "acquire", None)):
            raise InvalidRequest("dsn_or_pool must be a postgresql:// URL or an asyncpg.Pool")
        elif dsn_or_pool.get_max_size() < _LEAST_CONNECTIONS:
            raise InvalidRequest("dsn_or_pool must allow 2 connections at least: one is kept to listen on")
        check_above_zero("lease_s", lease_s)
        check_kind("keep_bodies", keep_bodies, bool, "True or False")
        schema = check_name(name)
        super().__init__(PostgresDatabase(dsn_or_pool, schema))
        self._name = name
        self._channel = schema
        self._keep_bodies = keep_bodies
        self._late = LateNotes(self._db)
        self._members = Membership(self._db, lease_s, self._channel)
        self._permits: SharedPermits | None = None
        self._budget: Budget | None = None
        self._occurrences: Counter[bytes] = Counter()
        self._sends: dict[str, asyncio.Task[int]] = {}
        """By intent: the notes that a body is about to leave, while they are made."""

    def __repr__(self) -> str:
        return f"<PostgresJournal {self._name}>"

    @property
    def lease_s(self) -> float:
        """Return after how many seconds of silence a worker loses its tasks."""
        return self._members.lease_s

    @property
    def worker_id(self) -> str:
        """Return who this worker is among the others."""
        return self._members.worker_id

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> list[Intent]:
        """Connect, make the tables if they are not there, and take part as a new worker.

        Raises:
            JournalError: The database cannot be reached or would not keep the promise.
        """
        await self._db.open()
        try:
            await self._db.run(self._prepare)
            self._members.start()
        except BaseException:
            await self.aclose()
            raise
        return []

    async def _prepare(self, db: Connection) -> None:
        await prepare(db, self._db.schema, self._db.label)
        await self._members.register(db)

    async def open_to_read(self) -> None:
        """Read the journal without taking part.

        Raises:
            JournalError: It is not there.
        """
        await self._db.open()
        try:
            await self._db.run(lambda db: check_readable(db, self._db.schema, self._db.label))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Finish what was begun, leave the others, and disconnect."""
        if not self._db.is_open:
            return
        if self._permits is not None:
            await self._permits.aclose()
        await self._db.finish_jobs()  # while this worker takes part: they may be creates
        await self._late.aclose()
        await self._members.aclose()
        await self._db.aclose()

    async def check_account(self, account: Account) -> None:
        """Refuse every account but the one it belongs to, and note that; see `Journal.check_account`."""

        async def job(db: Connection) -> None:
            await db.execute("LOCK TABLE account IN EXCLUSIVE MODE")
            is_bound = await db.fetchval(sql.IS_BOUND, self.worker_id, self.lease_s)
            noted = await sql.account_notes(db) if is_bound else []
            added = notes_to_add(noted, account, journal=self._db.label)
            if not noted:
                await db.execute("DELETE FROM account")
            await db.executemany("INSERT INTO account VALUES ($1, $2, $3, $4)", map(attrs.astuple, added))

        await self._db.run(job)

    async def accept_loss(self) -> bool:
        """Trust the database again after it lost what was committed; tell whether it was distrusted."""
        change = "UPDATE meta SET distrust = '', accepted_at = clock_timestamp() WHERE distrust <> ''"
        return await self._db.run(lambda db: db.execute(change)) == "UPDATE 1"

    # --- writing -------------------------------------------------------------------------------

    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Note what was learned of each model, in the place of what was noted before."""
        rows = [(model, encode_note(durations)) for model, durations in learned.items()]
        save = "INSERT INTO learned VALUES ($1, $2) ON CONFLICT (model) DO UPDATE SET durations = $2"
        await self._db.run(lambda db: db.executemany(save, rows))

    async def count_occurrence(self, key: bytes) -> int:
        """Count *key* and return how often it was counted since open, in this process."""
        self._occurrences[key] += 1
        return self._occurrences[key]

    async def mark_sending(self, intent: Intent) -> None:
        """Note that the body is about to leave, unless another worker was faster; see `Journal.mark_sending`.

        Raises:
            RefTaken: The ref is another worker's by now.
            BudgetExceeded: All workers together would spend too much.
            JournalError: It could not be noted, or this worker may be taken for dead: do not send.
        """
        worker_id = self.worker_id
        self._members.check_alive(worker_id)
        sending = self._db.start(self._sending_of(intent, worker_id))
        self._sends[intent.intent_id] = sending
        sending.add_done_callback(partial(self._end_send, intent.intent_id))
        self._members.note_seq(await asyncio.shield(sending))
        # Asked again: this process may have been frozen since, and others have made it an unknown create.
        self._members.check_alive(worker_id)

    def _end_send(self, intent_id: str, sending: asyncio.Task[int]) -> None:
        self._sends.pop(intent_id, None)
        if not sending.cancelled():
            sending.exception()  # whoever asked may have been cancelled: then nobody else takes it

    def _sending_of(self, intent: Intent, worker_id: str) -> Job[int]:
        known = self._members.highest
        body = without_mac(intent.body) if self._keep_bodies and intent.body else None
        values = (
            *(intent.intent_id, worker_id, intent.ref, intent.model, intent.fingerprint, body),
            *(intent.expects_callback, intent.replaces, intent.audio_s, intent.expected_credits),
        )

        async def send_if_free(db: Connection) -> int | None:
            return await db.fetchval(sql.SEND_IF_FREE, *values, self.lease_s, known)  # type: ignore[no-any-return]

        async def send_after_all(db: Connection) -> int:
            return await self._send_after_all(db, intent, known, values)

        is_plain = self._budget is None and not intent.replaces
        return Single(send_if_free, send_after_all) if is_plain else send_after_all

    async def _send_after_all(
        self, db: Connection, intent: Intent, known: int, values: tuple[object, ...]
    ) -> int:
        """Insert what something stood against; say what that is if it does not give way."""
        fence = await db.fetchrow(sql.FENCE, values[1], self.lease_s, intent.intent_id)
        if fence is None or not fence["is_alive"]:
            raise JournalAway("another worker may have taken this one for dead; nothing was sent")
        self._members.check_trust(known, fence["highest"], fence["distrust"])
        await self._check_budget(db, intent)
        if intent.replaces:
            await sql.pass_ref_on(db, intent.replaces)
        if intent.ref is not None:
            await sql.free_ref(db, intent.ref, intent.intent_id)
        seq = await db.fetchval(sql.INSERT_SENDING, *values)
        if seq is None:
            raise JournalError("the journal does not hold this intent in the state it must be in")
        return int(seq)

    async def mark_unsent(self, intent_id: str) -> None:
        """Take SENDING back: it is proven that no task was created."""
        change = "state = 'PLANNED', sends = 0, sending_ms = NULL"
        statement = sql.update_where(change, "state IN ('PLANNED', 'SENDING', 'UNKNOWN')", 1)

        async def job(db: Connection) -> None:
            await self._wait_for_given_up(db, intent_id)
            if not await sql.select_intents(db, "i.intent_id = $1", intent_id):
                return  # it was not noted that it leaves
            await sql.must_change(db, statement, intent_id)
            await sql.take_back_former(db, intent_id)

        await self._note(f"that intent {intent_id} was not sent", intent_id, job)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became; if the database is away, as soon as it is back."""

        async def bind(db: Connection) -> bool | None:
            values = (task_id, adopted_by, intent_id, self.worker_id, self._channel)
            return await db.fetchval(sql.BIND_AND_NOTIFY, *values)  # type: ignore[no-any-return]

        async def job(db: Connection) -> None:
            await sql.bind_task(db, task_id, adopted_by, intent_id, self.worker_id)
            await db.execute("DELETE FROM claim WHERE intent_id = $1", intent_id)

        what = f"task {task_id} of intent {intent_id}"
        await self._note(what, intent_id, job, first=bind, patience_s=ID_PATIENCE_S)

    async def mark_held(self, intent_id: str, credits: float) -> None:
        """Note what the service holds for the task of an intent."""
        statement = sql.update_where("held_credits = $1", "state = 'CREATED'", 2)
        await self._db.run(lambda db: db.execute(statement, credits, intent_id))

    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
    ) -> None:
        """Note how an intent ended without a task; see `Journal.mark_ended`."""
        change, may_be_new = "state = $1, reason = $2, code = $3", state is IntentState.NOT_CREATED
        if may_be_new:
            change = f"{change}, sends = 0"
        statement = sql.update_where(change, "task_id IS NULL", 4)
        values = (state.value, _storable(reason)[:MAX_REASON_CHARS], code, intent_id)

        async def job(db: Connection) -> None:
            await self._wait_for_given_up(db, intent_id)
            if may_be_new and not await sql.select_intents(db, "i.intent_id = $1", intent_id):
                return  # nothing of it was about to leave
            await sql.must_change(db, statement, *values)
            if all(f.frees_its_ref for f in await sql.select_intents(db, "i.intent_id = $1", intent_id)):
                await sql.take_back_former(db, intent_id)

        await self._note(f"the end of intent {intent_id} ({state})", intent_id, job)

    async def save_claim(self, claim: Claim) -> None:
        """Note what is claimed of an intent; a stronger source takes the place of a weaker one."""
        values = (claim.intent_id, claim.task_id, claim.source.value)
        await self._db.run(lambda db: db.execute(sql.SAVE_CLAIM, *values))

    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        """Forget a claim that was disproven."""
        statement = "DELETE FROM claim WHERE intent_id = $1 AND task_id = $2"
        await self._db.run(lambda db: db.execute(statement, intent_id, task_id))

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task; if the database is away, as soon as it is back.

        The same end of two workers is one end.
        """
        state = IntentState.of_end(record)
        noted_record = encode_record(record, keeps_request=self._keep_bodies)
        end = (state.value, noted_record, record.credits)

        async def settle(db: Connection) -> bool | None:
            values = (*end, self.worker_id, self._channel, intent_id)
            return await db.fetchval(sql.SETTLE_AND_NOTIFY, *values)  # type: ignore[no-any-return]

        async def job(db: Connection) -> None:
            noted = await sql.lock_intent(db, intent_id)
            is_unreadable = any(found.state is state and found.read_end() is None for found in noted)
            if any(found.has_ended for found in noted) and not is_unreadable:
                return
            await sql.must_change(db, sql.SET_SETTLED, *end, intent_id, is_unreadable)
            await db.execute("DELETE FROM delivery WHERE intent_id = $1", intent_id)

        await self._note(f"the end of intent {intent_id}", intent_id, job, first=settle)

    async def _note(
        self,
        what: str,
        intent_id: str,
        job: Job[None],
        *,
        first: Job[bool | None] | None = None,
        patience_s: float = END_PATIENCE_S,
    ) -> None:
        """Note what is true, now or as soon as it can be, and let the other workers know.

        *first* is the one statement that does all that, if nothing stands against it.
        """
        # The jobs of a worker run side by side, and who was cancelled has left this one behind.
        if (sending := self._sends.get(intent_id)) is not None:
            await asyncio.wait({sending})

        async def job_and_news(db: Connection) -> bool:
            await job(db)
            await db.execute("SELECT pg_notify($1, $2)", self._channel, f"intent {intent_id}")
            return True

        noting = job_and_news if first is None else Single(first, job_and_news)
        await self._late.note(what, noting, patience_s=patience_s)

    async def _wait_for_given_up(self, db: Connection, intent_id: str) -> None:
        """Wait until the note of an intent that was given up, since nobody answered, is there or never is."""
        await self._db.end_given_up(db)
        await sql.lock_given_up(db, intent_id)

    # --- small notes ---------------------------------------------------------------------------

    async def recall(self, key: str) -> object | None:
        """Return what was last remembered under *key*; see `Journal.recall`."""
        with log_lost_note(key):
            if rows := await self._db.run(fetching(sql.READ_NOTE, key)):
                return SmallNote(rows[0]["note"], 0, 1).read(0)
        return None

    async def remember(self, key: str, note: object, *, for_s: float) -> None:
        """Keep a small note for all workers; see `Journal.remember`."""

        async def job(db: Connection) -> None:
            await db.execute(sql.DROP_USELESS_NOTES)
            await db.execute(sql.SAVE_NOTE, key, text, lasts_s)
            await db.execute(sql.DROP_OLDEST_NOTES, MOST_SMALL_NOTES)

        with log_lost_note(key):
            kept = SmallNote.of(note, for_s=for_s, now_ms=0)
            text, lasts_s = kept.text, kept.expires_ms / 1000
            await self._db.run(job)

    # --- of several workers --------------------------------------------------------------------

    def listen(self, sink: NewsSink) -> None:
        """Tell *sink* from now on what other workers note."""
        self._members.listen(sink)

    def share_creates(self, rate: Rate) -> Permits:
        """Return the permits of creates, which all workers share; a rate that is no limit is not shared."""
        if rate.count > MAX_PERMITS:
            return RateLimiter(rate, now=asyncio.get_running_loop().time)
        self._permits = SharedPermits(self._db, "create", rate)
        return self._permits

    @property
    def is_notified(self) -> bool:
        """Return whether notifications come; a pooler passes none on."""
        return self._members.is_listening and self._db.is_direct

    @property
    def alive_workers(self) -> int:
        """Return how many workers were alive at the last heartbeat, this one included."""
        return self._members.alive

    def bound_spending(self, budget: Budget) -> None:
        """Let no create be noted as SENDING from now on that would exceed a budget, over all workers."""
        self._budget = budget

    async def _check_budget(self, db: Connection, intent: Intent) -> None:
        budget = self._budget
        if budget is None:
            return
        await db.execute(_BUDGET_LOCK)
        committed = await db.fetchrow(sql.COMMITTED)
        if committed is None:
            return
        spent, held = committed["spent"] + committed["untold"], committed["held"]
        if budget.tasks is not None and committed["tasks"] >= budget.tasks:
            raise BudgetExceeded(budget.tasks, committed["tasks"], 0, "tasks")
        needed = spent + held + (intent.expected_credits or 0.0)
        if budget.credits is not None and is_over(needed, budget.credits):
            raise BudgetExceeded(budget.credits, spent, held, "credits")

    async def take_over(self) -> list[Intent]:
        """Make the open intents of workers that are gone this worker's, and return them.

        Nobody is taken for dead while this worker itself, or the server, was not there for a whole lease.
        """
        if not self._members.is_alive:
            return []
        return await self._db.run(self._take_over)

    async def _take_over(self, db: Connection) -> list[Intent]:
        if self._members.may_sweep and await self._members.is_server_steady(db):
            await db.execute(sql.DROP_GONE, self.lease_s)
            await db.execute(sql.DROP_LEFT_TURNS)
        rows = await db.fetch(sql.TAKE_OVER, self.worker_id, _TAKEN_AT_ONCE)
        taken = [sql.intent_of(row) for row in rows]
        for intent in taken:
            if intent.state is IntentState.NOT_CREATED:
                await sql.take_back_former(db, intent.intent_id)
            await db.execute("SELECT pg_notify($1, $2)", self._channel, f"intent {intent.intent_id}")
        return taken

    async def save_delivery(self, delivery: StoredDelivery) -> None:
        """Store a delivery for the worker whose task it is of, and let that know."""
        values = (delivery.intent_id, delivery.task_id, delivery.is_signed, delivery.record, self._channel)
        await self._db.run(fetching(sql.SAVE_DELIVERY, *values))

    async def list_deliveries(self) -> list[StoredDelivery]:
        """Return what was stored for this worker, in the order it came."""
        rows = await self._db.run(fetching(sql.LIST_DELIVERIES, self.worker_id))
        return [StoredDelivery(**row) for row in rows]

    async def drop_deliveries(self, numbers: Sequence[int]) -> None:
        """Forget deliveries that were taken in."""
        statement = f"DELETE FROM delivery WHERE number = ANY($1) RETURNING {UNFLUSHED}"  # noqa: S608
        await self._db.run(fetching(statement, list(numbers)))

    async def find_saver(self, task_id: str) -> str:
        """Return which host has saved the files of a task, and where; "" if none has."""
        rows = await self._fetch("SELECT saved_by FROM intent WHERE task_id = $1", task_id)
        return str(rows[0]["saved_by"]) if rows else ""

    async def mark_saved(self, task_id: str, by: str) -> None:
        """Note that *by*, a host and a folder, has the files of a task."""
        change = "UPDATE intent SET saved_by = $1 WHERE task_id = $2"
        await self._db.run(lambda db: db.execute(change, _storable(by), task_id))

    async def take_turn(self, key: str, for_s: float) -> bool:
        """Tell whether this worker may do what *key* stands for; nobody else may for *for_s* seconds."""
        return bool(await self._fetch(sql.TAKE_TURN, key, self.worker_id, for_s))

    async def end_turn(self, key: str) -> None:
        """Let others have the turn of *key*."""
        statement = "DELETE FROM turn WHERE key = $1 AND worker = $2"
        await self._db.run(lambda db: db.execute(statement, key, self.worker_id))


def check_dsn(dsn: str) -> None:
    """Refuse what is no URL of a PostgreSQL database; the message does not repeat it: it may hold a password.

    Raises:
        InvalidRequest: It is none.
    """
    if not is_dsn(dsn):
        raise InvalidRequest("dsn_or_pool must be a URL such as postgresql://user@host/database")
    if "#" in dsn:  # the driver would leave out what follows, and take another journal
        raise InvalidRequest(
            "dsn_or_pool must have no '#': write %23 in a password, and name a journal of its own by "
            "PostgresJournal(..., name=...), or #name of a-z, 0-9 and _ on the command line"
        )


def is_dsn(text: str) -> bool:
    """Tell whether a text names a PostgreSQL database."""
    return text.startswith(("postgresql://", "postgres://"))


def _storable(text: str) -> str:
    """Return text as PostgreSQL can hold it."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
