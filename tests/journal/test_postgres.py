"""The journal on PostgreSQL: several workers at once, what it refuses, and a server that comes and goes."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from support.journals import DONE, created, intent, states
from support.link import Link
from support.postgres import OwnPostgres
from support.stores import SHORT_LEASE_S

from kie_async import (
    Budget,
    BudgetExceeded,
    InvalidRequest,
    JournalAway,
    JournalError,
    JournalFull,
    Rate,
    TaskRecord,
    TaskState,
)
from kie_async.journal.intents import IntentState
from kie_async.journal.notes import MOST_SMALL_NOTES
from kie_async.journal.postgres import PostgresJournal

HOUR_S = 3600.0
SCHEMA = "kie_async_main"
BUDGET_LOCK = "SELECT pg_advisory_xact_lock(hashtext('kie_async budget'), hashtext(current_schema()))"


@asynccontextmanager
async def worker(dsn: str, **options: Any) -> AsyncIterator[PostgresJournal]:
    journal = PostgresJournal(dsn, **options)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.aclose()


@asynccontextmanager
async def database(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn, server_settings={"search_path": SCHEMA})
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def guest(db: Any, dsn: str) -> AsyncIterator[tuple[str, str]]:
    """Make a role that may log in, and give its name and its URL."""
    there = urlsplit(dsn)
    role = f"guest_{there.path[-16:]}"
    await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'sesame'")
    try:
        place = there.netloc.rpartition("@")[2]
        yield role, there._replace(netloc=f"{role}:sesame@{place}").geturl()
    finally:
        await db.execute(f"DROP OWNED BY {role}")
        await db.execute(f"DROP ROLE {role}")


# --- several workers -------------------------------------------------------------------------------


async def test_workers_have_it_open_at_once_and_know_whose_an_intent_is(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one, worker(postgres_dsn) as other:
        await created(one)
        seen = [await journal.find_by_ref("r1") for journal in (one, other)]
        assert [found and (found.task_id, found.is_of_another) for found in seen] == [
            ("t1", False),
            ("t1", True),
        ]
        await one.mark_settled("i1", DONE)
        for journal, is_of_another in ((one, False), (other, True)):
            read = [
                *[found async for found in journal.iterate_intents()],
                *[found async for found in journal.iterate_settled()],
            ]
            assert [found.is_of_another for found in read] == [is_of_another] * 2
        assert await other.take_over() == []


async def test_workers_that_begin_together_make_one_journal(postgres_dsn: str) -> None:
    journals = [PostgresJournal(postgres_dsn) for _ in range(6)]
    assert await asyncio.gather(*(journal.open() for journal in journals)) == [[]] * 6
    outcomes = await asyncio.gather(
        *(journal.mark_sending(intent(1, intent_id=f"i{number}")) for number, journal in enumerate(journals)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["RefTaken"] * 5
    assert len(await journals[0].list_intents()) == 1
    for journal in journals:
        await journal.aclose()


async def test_one_of_two_workers_sends_in_the_place_of_an_unknown_create(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one, worker(postgres_dsn) as other:
        await one.mark_sending(intent(1))
        await one.mark_ended("i1", IntentState.UNKNOWN)
        again = [
            journal.mark_sending(intent(number, ref="r1", replaces="i1"))
            for number, journal in ((2, one), (3, other))
        ]
        outcomes = await asyncio.gather(*again, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "RefTaken"]
        assert len(await one.list_intents()) == 2


async def test_the_same_end_of_two_workers_is_one_end(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one, worker(postgres_dsn) as other:
        await created(one)
        await asyncio.gather(one.mark_settled("i1", DONE), other.mark_settled("i1", DONE))
        await other.mark_settled("i1", TaskRecord(task_id="t1", state=TaskState.FAIL))
        assert await states(one) == {"i1": "SUCCEEDED"}


async def test_the_same_task_of_two_workers_is_one_task(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one, worker(postgres_dsn) as other:
        for number in range(10):
            await one.mark_sending(intent(number))
            await one.mark_ended(f"i{number}", IntentState.UNKNOWN)
            finding = [journal.mark_created(f"i{number}", f"t{number}") for journal in (one, other)]
            assert await asyncio.gather(*finding) == [None, None]
            found = await one.find_by_task(f"t{number}")
            assert found is not None
            assert found.intent_id == f"i{number}"


async def test_a_task_that_two_workers_find_for_two_creates_is_one_s(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one, worker(postgres_dsn) as other:
        for number in range(10):
            names = [f"a{number}", f"b{number}"]
            for name in names:
                await one.mark_sending(intent(name))
                await one.mark_ended(f"i{name}", IntentState.UNKNOWN)
            finding = [
                journal.mark_created(f"i{name}", f"t{number}")
                for journal, name in zip((one, other), names, strict=True)
            ]
            outcomes = await asyncio.gather(*finding, return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "TaskAlreadyBound"]


async def test_a_worker_is_notified_once_it_listens_and_not_through_a_pool(postgres_dsn: str) -> None:
    async with asyncpg.create_pool(postgres_dsn, min_size=1, max_size=5) as pool:
        direct, pooled = PostgresJournal(postgres_dsn), PostgresJournal(pool)
        for journal in (direct, pooled):
            await journal.open()
        async with asyncio.timeout(20):
            while not direct.is_notified:  # noqa: ASYNC110  (nobody is told)
                await asyncio.sleep(0.01)
        assert not pooled.is_notified
        for journal in (direct, pooled):
            await journal.aclose()
        assert not direct.is_notified


async def test_journals_of_two_names_know_nothing_of_each_other(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one, worker(postgres_dsn, name="other") as other:
        await created(one)
        assert await other.list_intents() == []
        await created(other)


async def test_a_worker_that_left_is_succeeded_at_once(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as one:
        await created(one, 1)
        await one.mark_sending(intent(2))
        await one.mark_sending(intent(3))
        await one.mark_unsent("i3")
    async with worker(postgres_dsn) as other:
        taken = await other.take_over()
        assert [(found.intent_id, found.state.value) for found in taken] == [
            ("i1", "CREATED"),
            ("i2", "UNKNOWN"),
            ("i3", "NOT_CREATED"),
        ]
        assert not any(found.is_of_another for found in taken)
        assert await other.take_over() == []


async def test_a_dead_worker_is_succeeded_by_one_only_and_not_before_its_lease(postgres_dsn: str) -> None:
    async with Link(postgres_dsn) as link, worker(link.database_url) as dead:
        await created(dead)
        await dead.mark_sending(intent(2))
        async with (
            worker(postgres_dsn, lease_s=SHORT_LEASE_S) as one,
            worker(postgres_dsn, lease_s=SHORT_LEASE_S) as other,
        ):
            await link.cut()
            begun = asyncio.get_running_loop().time()
            taken: list[str] = []
            while len(taken) < 2:
                for found in await asyncio.gather(one.take_over(), other.take_over()):
                    taken += [intent.intent_id for intent in found]
                await asyncio.sleep(0.05)
            assert asyncio.get_running_loop().time() > begun + SHORT_LEASE_S / 2
            assert sorted(taken) == ["i1", "i2"]
            assert await states(one) == {"i1": "CREATED", "i2": "UNKNOWN"}


async def test_a_worker_without_its_lease_sends_nothing_and_says_why(postgres_dsn: str) -> None:
    async with Link(postgres_dsn) as link:
        async with worker(link.database_url, lease_s=SHORT_LEASE_S) as journal:
            await journal.mark_sending(intent(1))
            link.freeze()
            await asyncio.sleep(SHORT_LEASE_S + 0.1)
            with pytest.raises(JournalError, match="was silent for longer than its lease of 1 s"):
                await journal.mark_sending(intent(2))
            await link.cut()
    async with worker(postgres_dsn) as other:
        assert set(await states(other)) == {"i1"}


# --- what it refuses -------------------------------------------------------------------------------


async def refusal(journal: PostgresJournal) -> str:
    with pytest.raises(JournalError) as caught:
        await journal.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_server_that_forgets_commits_is_refused(own_postgres: OwnPostgres) -> None:
    server = own_postgres(fsync="off")
    assert "fsync=off" in await refusal(PostgresJournal(server.dsn))


async def test_who_may_not_write_is_refused(postgres_dsn: str) -> None:
    async with worker(postgres_dsn):
        pass
    async with database(postgres_dsn) as db:
        async with guest(db, postgres_dsn) as (_, dsn):
            said = await refusal(PostgresJournal(dsn))
            assert "permission denied" in said
            assert "sesame" not in said
            assert "permission denied" in await refusal(PostgresJournal(dsn, name="new"))
        name = urlsplit(postgres_dsn).path[1:]
        await db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "read-only" in await refusal(PostgresJournal(postgres_dsn))


async def test_a_role_that_may_make_no_schema_uses_the_one_that_was_made_for_it(postgres_dsn: str) -> None:
    async with database(postgres_dsn) as db, guest(db, postgres_dsn) as (role, dsn):
        await db.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}")
        async with worker(dsn) as journal:
            await created(journal)


async def test_a_later_version_is_refused(postgres_dsn: str) -> None:
    async with worker(postgres_dsn):
        pass
    async with database(postgres_dsn) as db:
        await db.execute("UPDATE meta SET version = 99")
    assert "is of version 99" in await refusal(PostgresJournal(postgres_dsn))


@pytest.mark.parametrize("change", ["password", "database", "port"])
async def test_where_there_is_no_journal_to_be_had_no_password_is_told(
    postgres_dsn: str, change: str
) -> None:
    there = urlsplit(postgres_dsn)
    who, _, place = there.netloc.rpartition("@")
    dsn = {
        "password": there._replace(netloc=f"postgres:sesame@{place}"),
        "database": there._replace(path="/nowhere"),
        "port": there._replace(netloc=f"{who}@127.0.0.1:1"),
    }[change].geturl()
    said = await refusal(PostgresJournal(dsn))
    for secret in ("sesame", who.partition(":")[2]):
        assert secret not in said


@pytest.mark.parametrize("given", ["", "run.db", "mysql://a/b", 7, None])
def test_what_is_no_url_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="dsn_or_pool"):
        PostgresJournal(given)


def test_a_name_behind_the_url_is_refused_since_the_driver_would_leave_it_out() -> None:
    with pytest.raises(InvalidRequest, match="name=") as caught:
        PostgresJournal("postgresql://anna:sesame@host/database#orders")
    assert "sesame" not in str(caught.value)


async def test_a_port_that_cannot_be_is_refused(postgres_dsn: str) -> None:
    place = urlsplit(postgres_dsn)._replace(netloc="anna:sesame@127.0.0.1:99999")
    assert "a port up to 65535" in await refusal(PostgresJournal(place.geturl()))


async def test_half_a_character_is_refused_in_one_sentence_without_the_text(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as journal:
        with pytest.raises(JournalError, match=r"cannot hold this text$"):
            await journal.find_by_ref("sesame\ud800")


@pytest.mark.parametrize("text", ["a\0b", "\0"])
async def test_a_text_that_it_cannot_hold_is_refused_before_anything_is_noted(
    postgres_dsn: str, text: str
) -> None:
    async with worker(postgres_dsn) as journal:
        with pytest.raises(JournalError, match="cannot hold this text"):
            await journal.mark_sending(intent(ref=text))
        assert await journal.list_intents() == []


async def test_a_reason_with_a_zero_byte_is_kept_all_the_same(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as journal:
        await journal.mark_sending(intent())
        await journal.mark_ended("i1", IntentState.REJECTED, reason="no\0, half \ud83d", code=422)
        (found,) = await journal.list_intents()
        assert found.reason.startswith("no")


# --- what a server, or who runs it, cuts short -----------------------------------------------------

HOLD = f"BEGIN; LOCK TABLE {SCHEMA}.intent IN EXCLUSIVE MODE"
WAITING = """
SELECT pid FROM pg_locks WHERE NOT granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def wait_until_waiting(db: Any, count: int = 1) -> int:
    async with asyncio.timeout(10):
        while len(rows := await db.fetch(WAITING)) < count:  # noqa: ASYNC110  (the server tells nobody)
            await asyncio.sleep(0.01)
    return int(rows[0]["pid"])


async def wait_until_created(journal: PostgresJournal) -> None:
    async with asyncio.timeout(10):
        while (await states(journal))["i1"] != "CREATED":  # noqa: ASYNC110  (nobody waits for it any more)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("limit", ["lock_timeout", "statement_timeout"])
async def test_an_id_is_noted_although_a_limit_of_the_role_cuts_its_note_short(
    postgres_dsn: str, limit: str
) -> None:
    async with database(postgres_dsn) as db:
        await db.execute(f"ALTER DATABASE {urlsplit(postgres_dsn).path[1:]} SET {limit} = '100ms'")
        async with worker(postgres_dsn) as journal:
            await journal.mark_sending(intent())
            await db.execute(HOLD)
            noting = asyncio.create_task(journal.mark_created("i1", "t1"))
            await wait_until_waiting(db)
            await asyncio.sleep(1.0)
            await db.execute("ROLLBACK")
            await noting
            assert (await states(journal))["i1"] == "CREATED"


async def test_an_id_is_noted_although_a_person_ends_its_statement(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as journal, database(postgres_dsn) as db:
        await journal.mark_sending(intent())
        await db.execute(HOLD)
        noting = asyncio.create_task(journal.mark_created("i1", "t1"))
        await db.execute("SELECT pg_cancel_backend($1)", await wait_until_waiting(db))
        await db.execute("ROLLBACK")
        await noting
        assert (await states(journal))["i1"] == "CREATED"


async def test_an_id_is_noted_when_the_role_is_let_in_again(postgres_dsn: str) -> None:
    throw_out = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1"
    async with database(postgres_dsn) as db, guest(db, postgres_dsn) as (role, dsn):
        await db.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}")
        async with worker(dsn) as journal:
            await journal.mark_sending(intent())
            await db.execute(f"ALTER ROLE {role} NOLOGIN")
            await db.execute(throw_out, role)
            noting = asyncio.create_task(journal.mark_created("i1", "t1"))
            await asyncio.sleep(0.3)
            await db.execute(f"ALTER ROLE {role} LOGIN")
            await noting
            assert (await states(journal))["i1"] == "CREATED"


async def test_a_heartbeat_that_is_refused_is_not_tried_again_in_a_flood(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kie_async")
    async with worker(postgres_dsn, lease_s=1.0), database(postgres_dsn) as db:
        await db.execute("ALTER TABLE worker RENAME TO elsewhere")
        await asyncio.sleep(1.2)
        await db.execute("ALTER TABLE elsewhere RENAME TO worker")
    lost = [record for record in caplog.records if "connection that listens was lost" in record.message]
    assert 1 <= len(lost) <= 5


async def test_an_id_is_noted_when_the_disk_has_room_again(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kie_async.journal.postgres.ID_PATIENCE_S", 0.0)
    full = "BEGIN RAISE 'no space left on device' USING ERRCODE = '53100'; END"
    make = f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $${full}$$"
    async with worker(postgres_dsn) as journal, database(postgres_dsn) as db:
        await journal.mark_sending(intent())
        await db.execute(make)
        await db.execute("CREATE TRIGGER disk BEFORE UPDATE ON intent EXECUTE FUNCTION full_disk()")
        with pytest.raises(JournalFull):
            await journal.mark_created("i1", "t1")
        await db.execute("DROP TRIGGER disk ON intent")
        await wait_until_created(journal)


async def test_a_budget_holds_whatever_isolation_the_database_begins_with(postgres_dsn: str) -> None:
    async with database(postgres_dsn) as db:
        name = urlsplit(postgres_dsn).path[1:]
        await db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        async with worker(postgres_dsn) as one, worker(postgres_dsn) as other:
            one.bound_spending(Budget(tasks=1))
            other.bound_spending(Budget(tasks=1))
            await db.execute("BEGIN")
            await db.execute(BUDGET_LOCK)
            sending = [
                asyncio.create_task(one.mark_sending(intent(1))),
                asyncio.create_task(other.mark_sending(intent(2))),
            ]
            await wait_until_waiting(db, 2)
            await db.execute("ROLLBACK")
            outcomes = await asyncio.gather(*sending, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {type(None), BudgetExceeded}


# --- a server that comes and goes ------------------------------------------------------------------


async def test_a_killed_server_sends_nothing_and_forgets_nothing(own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    async with worker(server.dsn) as journal:
        await journal.mark_sending(intent(1))
        await asyncio.to_thread(server.kill)
        with pytest.raises(JournalAway):
            await journal.mark_sending(intent(2))
        noting = asyncio.create_task(journal.mark_created("i1", "t1"))
        await asyncio.sleep(0.1)
        assert not noting.done()
        await asyncio.to_thread(server.start)
        await noting
        await journal.mark_settled("i1", DONE)
        assert await states(journal) == {"i1": "SUCCEEDED"}
        await created(journal, 3)


async def test_an_id_is_noted_after_all_though_whoever_waited_for_that_is_gone(
    own_postgres: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kie_async.journal.postgres.ID_PATIENCE_S", 0.3)
    server = own_postgres()
    async with worker(server.dsn) as journal:
        await journal.mark_sending(intent())
        server.stop()
        noting = asyncio.create_task(journal.mark_created("i1", "t1"))
        await asyncio.sleep(0.1)
        noting.cancel()
        await asyncio.sleep(0.8)
        server.start()
        await wait_until_created(journal)


async def test_a_close_without_the_server_does_not_wait_and_names_the_task_that_is_not_noted(
    own_postgres: OwnPostgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kie_async.journal.postgres_late._LAST_S", 0.5)
    server = own_postgres()
    async with worker(server.dsn) as journal:
        permits = journal.share_creates(Rate(5, per_s=1.0))
        await permits.acquire()
        await journal.mark_sending(intent())
        server.stop()
        permits.release()
        noting = asyncio.create_task(journal.mark_created("i1", "t1"))
        await asyncio.sleep(0.1)
        noting.cancel()
        async with asyncio.timeout(15):
            await journal.aclose()
    assert "not noted in the journal on PostgreSQL (kie_async_main): task t1 of intent i1" in caplog.text


async def test_an_absence_is_said_once_and_so_is_its_end(
    own_postgres: OwnPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres()
    with caplog.at_level(logging.WARNING, "kie_async"):
        async with worker(server.dsn) as journal:
            await asyncio.to_thread(server.kill)
            for _ in range(3):
                with pytest.raises(JournalAway):
                    await journal.find_by_ref("r1")
            await asyncio.to_thread(server.start)
            await journal.find_by_ref("r1")
    said = [record.getMessage() for record in caplog.records]
    assert len([words for words in said if "cannot be reached" in words]) == 1
    assert len([words for words in said if "answers again" in words]) == 1


# --- permits ---------------------------------------------------------------------------------------


async def test_who_is_cancelled_while_waiting_takes_no_permit(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as journal:
        permits = journal.share_creates(Rate(1, per_s=0.01))
        for turn in range(20):
            asking = asyncio.create_task(permits.acquire())
            await asyncio.sleep(turn * 0.0005)
            asking.cancel()
            if not (await asyncio.wait([asking]))[0].pop().cancelled():
                permits.release_unused()
        async with asyncio.timeout(5):
            await permits.acquire()


# --- pools and notes -------------------------------------------------------------------------------


async def test_a_pool_that_was_given_stays_open(postgres_dsn: str) -> None:
    async with asyncpg.create_pool(postgres_dsn, min_size=1, max_size=3) as pool:
        journal = PostgresJournal(pool)
        await journal.open()
        await created(journal)
        await journal.aclose()
        assert await pool.fetchval(f"SELECT count(*) FROM {SCHEMA}.intent") == 1  # noqa: S608
        assert await pool.fetchval("SHOW search_path") == '"$user", public'
        assert pool.get_idle_size() == pool.get_size()


async def test_a_pool_of_one_connection_is_refused(postgres_dsn: str) -> None:
    async with asyncpg.create_pool(postgres_dsn, min_size=1, max_size=1) as pool:
        with pytest.raises(InvalidRequest, match="2 connections"):
            PostgresJournal(pool)


async def test_a_pool_that_was_given_warns_of_nothing(postgres_dsn: str) -> None:
    async with asyncpg.create_pool(postgres_dsn, min_size=1, max_size=3) as pool:
        journal = PostgresJournal(pool)
        await journal.open()
        await created(journal)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await journal.aclose()
        assert [str(warning.message) for warning in caught] == []


async def test_a_pool_that_is_closed_under_it_is_let_go(postgres_dsn: str) -> None:
    pool = await asyncpg.create_pool(postgres_dsn, min_size=1, max_size=3)
    journal = PostgresJournal(pool)
    await journal.open()
    pool.terminate()
    with pytest.raises(JournalAway, match="pool is closed"):
        await journal.mark_sending(intent())
    await journal.aclose()


def test_a_pool_of_another_event_loop_is_refused(postgres_server: str) -> None:
    async def make() -> Any:
        return await asyncpg.create_pool(postgres_server, min_size=1, max_size=2)

    with asyncio.Runner() as elsewhere:
        pool = elsewhere.run(make())
        with asyncio.Runner() as here:
            assert "another event loop" in here.run(refusal(PostgresJournal(pool)))
        pool.terminate()
        elsewhere.run(asyncio.sleep(0))


async def test_the_oldest_note_makes_room(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as journal:
        await journal.remember("newest", 1, for_s=HOUR_S)
        async with database(postgres_dsn) as db:
            await db.execute(
                "INSERT INTO note SELECT 'k' || n, '1', noted_at - make_interval(secs => n), expires_at"
                " FROM note, generate_series(1, $1::int) n",
                MOST_SMALL_NOTES,
            )
        await journal.remember("k3", 2, for_s=HOUR_S)
        oldest, next_oldest = f"k{MOST_SMALL_NOTES}", f"k{MOST_SMALL_NOTES - 1}"
        found = [await journal.recall(key) for key in ("newest", "k3", "k1", oldest, next_oldest)]
        assert found == [1, 2, 1, None, 1]


async def test_a_note_from_the_future_is_of_no_use(postgres_dsn: str) -> None:
    async with worker(postgres_dsn) as journal:
        await journal.remember("a", 1, for_s=HOUR_S)
        async with database(postgres_dsn) as db:
            await db.execute("UPDATE note SET noted_at = noted_at + interval '1 year'")
        assert await journal.recall("a") is None
