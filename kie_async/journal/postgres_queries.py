"""What is asked of a journal on PostgreSQL and changed in it: its SQL, each with what it takes and gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import JournalError
from .account import AccountNote
from .base import RefTaken, TaskAlreadyBound
from .intents import Intent, IntentState
from .postgres_connections import Connection
from .postgres_schema import NOW_MS

if TYPE_CHECKING:
    import asyncpg

OPEN_STATES = "('PLANNED', 'SENDING', 'CREATED', 'UNKNOWN')"

_FIELDS = (
    *("intent_id", "model", "ref", "fingerprint", "body", "state", "task_id", "reason", "code", "credits"),
    *("record", "expects_callback", "planned_ms", "replaces", "terminal_ms", "former_ref"),
    *("audio_s", "expected_credits", "held_credits"),
)

# Whoever was noted as dead has no row; one that is only late may yet come back.
_IS_OF_ANOTHER = (
    "(i.worker <> current_setting('kie_async.worker', true)"
    " AND EXISTS (SELECT 1 FROM worker w WHERE w.id = i.worker)) AS is_of_another"
)

COLUMNS = ", ".join([*(f"i.{field}" for field in _FIELDS), _IS_OF_ANOTHER])

# Both may be large, and whoever reads every intent needs neither.
_SMALL = COLUMNS.replace("i.body", "NULL::text AS body").replace("i.record", "'' AS record")

SELECT_CHUNK = f"SELECT i.seq, {_SMALL} FROM intent i WHERE i.seq > $1 ORDER BY i.seq LIMIT $2"  # noqa: S608

SELECT_SETTLED = f"""
SELECT i.seq, {COLUMNS} FROM intent i
WHERE i.terminal_ms IS NOT NULL AND (i.terminal_ms, i.seq) > ($1, $2) AND i.state IN ('SUCCEEDED', 'FAILED')
  AND ($3 = '' OR starts_with(i.ref, $3))
ORDER BY i.terminal_ms, i.seq LIMIT $4
"""  # noqa: S608  (made of constants)


# Whoever gave up a transaction that is committed all the same sees it once he has the lock of its intent.
_LOCK = "pg_advisory_xact_lock(hashtextextended({}, 0))"


def _fence(worker: str, lease_s: str, intent: str) -> str:
    """Return what tells whether a worker may send.

    Its row is locked, so that nobody takes it for dead before the commit; it may go on saying that it lives.
    """
    return f"""
SELECT {_LOCK.format(intent)}, (SELECT distrust FROM meta) AS distrust,
       coalesce((SELECT max(seq) FROM intent), 0) AS highest,
       (SELECT true FROM worker WHERE id = {worker}
        AND seen_at > clock_timestamp() - make_interval(secs => {lease_s}) FOR KEY SHARE) AS is_alive
"""  # noqa: S608  (made of constants)


FENCE = _fence("$1", "$2", "$3")

_SENDING = (
    "INSERT INTO intent AS i("
    "intent_id, worker, ref, model, fingerprint, body, expects_callback, replaces, audio_s, "
    "expected_credits, planned_ms, sending_ms, state, sends)"
)

_AGAIN = """
ON CONFLICT (intent_id) DO UPDATE
SET state = 'SENDING', sends = i.sends + 1, sending_ms = excluded.sending_ms, ref = excluded.ref
WHERE i.state = 'PLANNED'
RETURNING seq
"""

INSERT_SENDING = f"""
{_SENDING} VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, {NOW_MS}, {NOW_MS}, 'SENDING', 1) {_AGAIN}
"""

# As FENCE and INSERT_SENDING, one after the other, where nothing stands against it: each question takes time.
SEND_IF_FREE = f"""
WITH fence AS MATERIALIZED ({_fence("$2", "$11", "$1")})
{_SENDING} SELECT $1, $2, $3::text, $4, $5::bytea, $6, $7::boolean, $8, $9::float8, $10::float8,
  {NOW_MS}, {NOW_MS}, 'SENDING', 1
FROM fence WHERE is_alive AND distrust = '' AND highest >= $12::bigint
  AND NOT EXISTS (SELECT 1 FROM intent WHERE ref = $3 AND intent_id <> $1)
{_AGAIN}
"""  # noqa: S608  (made of constants)

# Whoever finds the task of an unknown create follows it from then on.
_SET_CREATED = f"""
UPDATE intent SET state = 'CREATED', task_id = $1, sends = 1, created_ms = {NOW_MS}, adopted_by = $2,
  worker = $4
WHERE intent_id = $3 AND task_id IS NULL
"""  # noqa: S608  (made of constants)

# Nobody else, nobody to let know. Who begins to take part in this very moment reads it some seconds later.
_NOTIFY_OTHERS = """
CASE WHEN EXISTS (SELECT 1 FROM worker WHERE id <> $4) THEN pg_notify($5, 'intent ' || intent_id) END
"""

# What is noted most of the time, and told in the same breath: each question takes time.
BIND_AND_NOTIFY = f"""
WITH bound AS (
  {_SET_CREATED} AND NOT EXISTS (SELECT 1 FROM intent WHERE task_id = $1) RETURNING intent_id
),
gone AS (DELETE FROM claim WHERE intent_id = $3)
SELECT true, {_NOTIFY_OTHERS} FROM bound
"""  # noqa: S608  (made of constants)

_END = f"state = $1, record = $2, credits = coalesce($3, credits), terminal_ms = {NOW_MS}"

SETTLE_AND_NOTIFY = f"""
WITH settled AS (UPDATE intent SET {_END} WHERE intent_id = $6 AND state = 'CREATED' RETURNING intent_id),
  gone AS (DELETE FROM delivery WHERE intent_id = $6)
SELECT true, {_NOTIFY_OTHERS} FROM settled
"""  # noqa: S608  (made of constants)

# Whoever polled again because the end could not be read may note it again; the price is kept.
SET_SETTLED = f"UPDATE intent SET {_END} WHERE intent_id = $4 AND (state = 'CREATED' OR $5)"  # noqa: S608

_FREE_REF = "former_ref = coalesce(ref, former_ref), ref = NULL"

# One that failed or was refused stays what it is, only its ref passes on.
GIVE_UP_FORMER = f"""
UPDATE intent SET state = CASE state WHEN 'UNKNOWN' THEN 'WRITTEN_OFF' ELSE state END, {_FREE_REF}
WHERE intent_id = $1
  AND (state = 'FAILED' OR (task_id IS NULL AND state IN ('UNKNOWN', 'WRITTEN_OFF', 'REJECTED')))
"""  # noqa: S608  (made of constants)

# It may have become a task meanwhile: then too the ref is its own again, or the next create would pay again.
_TAKE_BACK = """
UPDATE intent SET state = CASE state WHEN 'WRITTEN_OFF' THEN 'UNKNOWN' ELSE state END,
  ref = former_ref, former_ref = NULL
WHERE intent_id = $1 AND ref IS NULL
"""

SAVE_CLAIM = """
INSERT INTO claim AS c(intent_id, task_id, source) SELECT $1, $2, $3
WHERE NOT EXISTS (SELECT 1 FROM intent WHERE intent_id = $1 AND task_id IS NOT NULL)
ON CONFLICT (intent_id, task_id) DO UPDATE SET source = excluded.source WHERE c.source = 'unsigned'
"""

# What was surely not created is of no account: a first run with a mistyped key must not keep the right one
# out.
# But who takes part beside others may have to do with what they are about to create.
IS_BOUND = """
SELECT EXISTS(
  SELECT 1 FROM intent WHERE sends = 1
  AND NOT (state = 'REJECTED' AND coalesce(code, 0) BETWEEN 400 AND 499 AND code <> 408)
) OR EXISTS(
  SELECT 1 FROM worker WHERE id <> $1 AND seen_at > clock_timestamp() - make_interval(secs => $2)
)
"""

TOTALS = """
SELECT count(*), count(*) FILTER (WHERE state IN ('SUCCEEDED', 'FAILED')), coalesce(sum(credits), 0)
FROM intent WHERE sends = 1 AND state <> 'REJECTED'
"""

# What may be spent: what tasks took, and of those that run the most that is known.
COMMITTED = """
SELECT count(*) AS tasks, coalesce(sum(credits), 0) AS spent,
       coalesce(sum(coalesce(held_credits, expected_credits, 0))
                FILTER (WHERE state NOT IN ('SUCCEEDED', 'FAILED')), 0) AS held,
       coalesce(sum(coalesce(held_credits, expected_credits, 0))
                FILTER (WHERE state IN ('SUCCEEDED', 'FAILED') AND credits IS NULL), 0) AS untold
FROM intent WHERE sends = 1 AND state NOT IN ('REJECTED', 'NOT_CREATED')
"""

# What each model took, also of tasks that run: other workers wait for the first price of a model.
SELECT_PRICES = """
SELECT model, max(price), max(price / greatest(1.0, audio_s)), max(audio_s),
  max(CASE WHEN audio_s IS NULL THEN price END)
FROM (SELECT model, audio_s, coalesce(credits, held_credits) AS price FROM intent) AS taken
WHERE price > 0 GROUP BY model
"""

TAKE_OVER = f"""
UPDATE intent AS i SET worker = $1,
  state = CASE i.state WHEN 'SENDING' THEN 'UNKNOWN' WHEN 'PLANNED' THEN 'NOT_CREATED' ELSE i.state END,
  reason = CASE i.state WHEN 'SENDING' THEN 'its worker died' WHEN 'PLANNED' THEN 'never sent'
           ELSE i.reason END
WHERE i.seq IN (
  SELECT seq FROM intent o WHERE state IN {OPEN_STATES}
    AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = o.worker)
  ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING {COLUMNS}
"""  # noqa: S608  (made of constants)

DROP_GONE = """
DELETE FROM worker WHERE id IN (
  SELECT id FROM worker WHERE seen_at < clock_timestamp() - make_interval(secs => $1) FOR UPDATE SKIP LOCKED
) RETURNING id
"""

SAVE_DELIVERY = """
WITH saved AS (
  INSERT INTO delivery(intent_id, task_id, is_signed, record) VALUES ($1, $2, $3, $4)
  ON CONFLICT (intent_id, task_id, is_signed) DO UPDATE SET record = excluded.record, number = DEFAULT
)
SELECT pg_notify($5, 'delivery ' || worker) FROM intent WHERE intent_id = $1
"""

LIST_DELIVERIES = """
SELECT d.number, d.intent_id, d.task_id, d.is_signed, d.record
FROM delivery d JOIN intent i USING (intent_id) WHERE i.worker = $1 ORDER BY d.number
"""

READ_NOTE = "SELECT note FROM note WHERE key = $1 AND clock_timestamp() BETWEEN noted_at AND expires_at"

SAVE_NOTE = """
INSERT INTO note(key, note, expires_at) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (key) DO UPDATE
SET note = excluded.note, noted_at = excluded.noted_at, expires_at = excluded.expires_at
"""

DROP_USELESS_NOTES = "DELETE FROM note WHERE expires_at <= clock_timestamp()"

DROP_OLDEST_NOTES = """
DELETE FROM note WHERE key IN (
  SELECT key FROM note ORDER BY noted_at LIMIT greatest(0, (SELECT count(*) FROM note) - $1)
)
"""

DROP_LEFT_TURNS = "DELETE FROM turn t WHERE NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = t.worker)"

TAKE_TURN = """
INSERT INTO turn AS t(key, worker, until) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (key) DO UPDATE SET worker = excluded.worker, until = excluded.until
WHERE t.worker = excluded.worker OR t.until <= clock_timestamp()
   OR NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = t.worker)
RETURNING true
"""


def intent_of(row: asyncpg.Record) -> Intent:
    """Return what a row of `COLUMNS` says."""
    values = {field: row[field] for field in (*_FIELDS, "is_of_another")}
    values |= {"state": IntentState(row["state"]), "task_id": row["task_id"] or ""}
    return Intent(**values)


async def select_intents(db: Connection, where: str, *values: object) -> list[Intent]:
    """Return the intents that fit, in the order they were planned."""
    query = f"SELECT {COLUMNS} FROM intent i WHERE {where} ORDER BY i.seq"  # noqa: S608  (no value in it)
    return [intent_of(row) for row in await db.fetch(query, *values)]


async def lock_intent(db: Connection, intent_id: str) -> list[Intent]:
    """Return an intent as it stands once nobody else is changing it, and let nobody until the commit."""
    query = f"SELECT {COLUMNS} FROM intent i WHERE i.intent_id = $1 FOR UPDATE OF i"  # noqa: S608
    return [intent_of(row) for row in await db.fetch(query, intent_id)]


async def lock_given_up(db: Connection, intent_id: str) -> None:
    """Wait for the transaction, if one is under way, that notes an intent as SENDING."""
    await db.execute(f"SELECT {_LOCK.format('$1')}", intent_id)


async def must_change(db: Connection, statement: str, *values: object) -> None:
    """Change one intent.

    Raises:
        JournalError: It is not there, or in another state.
    """
    if await db.execute(statement, *values) != "UPDATE 1":
        raise JournalError("the journal does not hold this intent in the state it must be in")


def update_where(change: str, where: str, last: int) -> str:
    """Return the statement that changes one intent, given as value *last*, if it is in the right state."""
    return f"UPDATE intent SET {change} WHERE {where} AND intent_id = ${last}"  # noqa: S608


async def take_back_former(db: Connection, intent_id: str) -> None:
    """Give the intent this one replaced its ref again, since this one created nothing."""
    former = await db.fetchval("SELECT replaces FROM intent WHERE intent_id = $1", intent_id)
    if former:
        await db.execute(f"UPDATE intent SET {_FREE_REF} WHERE intent_id = $1", intent_id)  # noqa: S608
        await db.execute(_TAKE_BACK, former)


async def free_ref(db: Connection, ref: str, intent_id: str) -> None:
    """Take a ref from an intent that never became a task.

    Raises:
        RefTaken: It did, or may have.
    """
    for holder in await select_intents(db, "i.ref = $1 AND i.intent_id <> $2", ref, intent_id):
        if not holder.frees_its_ref:
            raise RefTaken(f"ref {ref!r} is the one of intent {holder.intent_id}; nothing was sent")
        freed = f"UPDATE intent SET {_FREE_REF} WHERE intent_id = $1 AND state = $2"  # noqa: S608
        await db.execute(freed, holder.intent_id, holder.state.value)


async def pass_ref_on(db: Connection, former: str) -> None:
    """Take the ref from the intent that another one is sent in the place of.

    Raises:
        RefTaken: It became a task meanwhile, or another worker was faster.
    """
    if await db.execute(GIVE_UP_FORMER, former) != "UPDATE 1":
        raise RefTaken(
            f"intent {former} became a task meanwhile, or another took its place; nothing was sent"
        )


async def bind_task(db: Connection, task_id: str, adopted_by: str, intent_id: str, worker_id: str) -> None:
    """Bind an intent to its task, once; it is this worker's from then on.

    Raises:
        TaskAlreadyBound: The task has another intent.
        JournalError: The intent has another task.
    """
    holders = await select_intents(db, "i.task_id = $1", task_id)
    values = (task_id, adopted_by, intent_id, worker_id)
    if not holders and await db.execute(_SET_CREATED, *values) == "UPDATE 1":
        return
    # Two workers at once: the UPDATE of the second waited for the first and found the task noted. Of two
    # intents the UNIQUE of the table lets one have it.
    holders = holders or await select_intents(db, "i.task_id = $1", task_id)
    if holders and holders[0].intent_id == intent_id:
        return
    if holders:
        raise TaskAlreadyBound(f"task {task_id} belongs to another intent, {holders[0].intent_id}")
    raise JournalError(f"task {task_id} cannot be noted: its intent {intent_id} has another task or is gone")


async def account_notes(db: Connection) -> list[AccountNote]:
    """Return what was noted of the account."""
    return [AccountNote(*row) for row in await db.fetch("SELECT url, kind, salt, digest FROM account")]
