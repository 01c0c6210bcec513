"""Workers of one journal on PostgreSQL: one ref is one task, who waits is told, the dead are replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from conftest import HMAC_KEY, NO_LIMITS, Events, OpenSession
from support.clock import eventually
from support.postgres import OwnPostgres

from kie_async import (
    ApiError,
    Budget,
    BudgetExceeded,
    CallbackReceiver,
    CreateOutcomeUnknown,
    InvalidRequest,
    JournalAway,
    JournalError,
    JournalLocked,
    KieSession,
    Limits,
    PollSchedule,
    PostgresJournal,
    Rate,
    RefConflict,
    Sandbox,
    ServedReceiver,
    TaskFailed,
    TaskHandle,
    TaskRequest,
    TaskResult,
    TransportError,
)
from kie_async.journal.shared import StoredDelivery

LEASE_S = 0.6
"""Of a worker that is frozen; for the others a busy machine may take longer than that for a heartbeat."""

Worker = Callable[..., Awaitable[KieSession]]


def request(ref: str | None, prompt: str = "hello") -> TaskRequest:
    given = {
        "image_url": "https://media.example/face.png",
        "audio_url": "https://media.example/voice.mp3",
        "prompt": prompt,
    }
    return TaskRequest(model="kling/v1-avatar-standard", input=given, ref=ref)


@pytest.fixture
def worker(postgres_dsn: str, open_session: OpenSession) -> Worker:
    """Return a function that opens one more session on the journal of this test."""

    async def worker(*, lease_s: float = 10.0, **options: Any) -> KieSession:
        return await open_session(journal=PostgresJournal(postgres_dsn, lease_s=lease_s), **options)

    return worker


async def in_database(dsn: str, statement: str, *values: object) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET search_path = kie_async_main")
        return await connection.fetch(statement, *values)
    finally:
        await connection.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what it waits for tells nobody)
        await asyncio.sleep(0.02)


async def until_noted(dsn: str, state: str) -> None:
    """Wait until the one create of a journal has come so far."""
    for _ in range(200):
        (row,) = await in_database(dsn, "SELECT state FROM intent")
        if row["state"] == state:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"it is {row['state']}")


async def first_taken_over(*workers: KieSession) -> TaskHandle:
    """Return what the fastest of them takes over."""
    waiting = [asyncio.ensure_future(anext(kie.taken_over())) for kie in workers]
    (taken, *_), others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    return taken.result()


def freeze() -> None:
    """Let this process, and with it all its workers, be silent for longer than a lease."""
    time.sleep(LEASE_S + 0.1)


# --- one ref, one task -----------------------------------------------------------------------------


async def test_a_url_makes_a_shared_journal(postgres_dsn: str, open_session: OpenSession) -> None:
    first, second = [await open_session(journal=postgres_dsn) for _ in range(2)]
    handles = [await kie.create(request("a")) for kie in (first, second)]
    assert handles[0].task_id == handles[1].task_id


async def test_one_ref_asked_of_all_workers_at_once_is_one_task(sandbox: Sandbox, worker: Worker) -> None:
    workers = [await worker() for _ in range(3)]
    handles = await asyncio.gather(*(kie.create(request("a")) for kie in workers))
    (task_id,) = sandbox.tasks
    assert {handle.task_id for handle in handles} == {task_id}
    sandbox.finish(task_id)
    results = await asyncio.gather(*handles)
    assert {result.task_id for result in results} == {task_id}


async def test_who_waits_for_the_task_of_another_polls_nothing(sandbox: Sandbox, worker: Worker) -> None:
    owner, follower = await worker(), await worker()
    await owner.create(request("a"))
    handle = await follower.create(request("a"))
    sandbox.finish(handle.task_id)
    assert isinstance(await handle, TaskResult)
    assert follower.stats().queries == 0


async def test_who_asks_while_another_sends_waits_for_the_answer(sandbox: Sandbox, worker: Worker) -> None:
    owner, follower = await worker(), await worker()
    sandbox.faults.create_answer_gate = gate = asyncio.Event()
    sent = asyncio.ensure_future(owner.create(request("a")))
    await eventually(lambda: bool(sandbox.tasks))
    asked = asyncio.ensure_future(follower.create(request("a")))
    await asyncio.sleep(0.05)
    assert not asked.done()
    gate.set()
    assert (await asked).task_id == (await sent).task_id
    assert len(sandbox.tasks) == 1


async def test_a_ref_of_another_worker_with_another_request_is_a_conflict(worker: Worker) -> None:
    owner, other = await worker(), await worker()
    await owner.create(request("a"))
    with pytest.raises(RefConflict):
        await other.create(request("a", "something else"))


async def test_the_failure_of_another_workers_task_is_told(sandbox: Sandbox, worker: Worker) -> None:
    owner, follower = await worker(), await worker()
    await owner.create(request("a"))
    handle = await follower.create(request("a"))
    sandbox.finish(handle.task_id, "fail")
    with pytest.raises(TaskFailed) as told:
        await handle
    assert told.value.ref == "a"


async def test_a_refusal_frees_the_ref_for_the_worker_that_waited(sandbox: Sandbox, worker: Worker) -> None:
    owner, other = await worker(), await worker()
    sandbox.faults.create_answers_next = [(200, b'{"code":422,"msg":"no such model"}')]
    with pytest.raises(ApiError):
        await owner.create(request("a"))
    handle = await other.create(request("a"))
    assert list(sandbox.tasks) == [handle.task_id]


async def test_an_unknown_create_of_another_worker_is_not_sent_again(
    sandbox: Sandbox, worker: Worker
) -> None:
    owner, other = await worker(), await worker()
    sandbox.faults.lose_answers_next = 1
    with pytest.raises(CreateOutcomeUnknown):
        await owner.create(request("a"))
    with pytest.raises(CreateOutcomeUnknown) as unknown:
        await other.create(request("a"))
    (task_id,) = sandbox.tasks
    assert unknown.value.handle is not None
    (first,) = owner.unknown_creates()
    await unknown.value.handle.resolve(task_id)
    sandbox.finish(task_id)
    assert (await first).task_id == (await unknown.value.handle).task_id == task_id


async def test_what_has_ended_is_told_to_every_worker(sandbox: Sandbox, worker: Worker) -> None:
    owner = await worker()
    handle = await owner.create(request("a"))
    sandbox.finish(handle.task_id)
    await handle
    assert (await (await worker()).run(request("a"))).task_id == handle.task_id


async def test_news_that_was_told_while_nobody_listened_is_read(
    sandbox: Sandbox, worker: Worker, postgres_dsn: str
) -> None:
    owner, follower = await worker(), await worker()
    await owner.create(request("a"))
    handle = await follower.create(request("a"))
    await in_database(
        postgres_dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        " AND query LIKE '%seen_at = clock_timestamp()%'",
    )
    sandbox.finish(handle.task_id)
    await handle


# --- callbacks -------------------------------------------------------------------------------------


async def test_a_callback_that_comes_to_another_worker_settles_the_task(
    sandbox: Sandbox, worker: Worker, served: ServedReceiver, receiver: CallbackReceiver
) -> None:
    # Its own receiver is never called: the address is that of the other worker.
    elsewhere = {"receiver": CallbackReceiver([HMAC_KEY]), "callback_url": served.url}
    slow = {"poll": _never_polls()}
    owner = await worker(**elsewhere, **slow)
    other = await worker(receiver=receiver, callback_url=served.url, **slow)
    handle = await owner.create(request("a"))
    sandbox.finish(handle.task_id)
    await handle
    assert owner.stats().settled_by_callback == 1
    assert other.stats().callbacks_accepted == 1
    assert sandbox.deliveries[-1].status == 200


async def test_a_callback_of_an_unknown_create_is_adopted_by_whoever_gets_it(
    sandbox: Sandbox, worker: Worker, served: ServedReceiver, receiver: CallbackReceiver
) -> None:
    owner = await worker(receiver=CallbackReceiver([HMAC_KEY]), callback_url=served.url)
    await worker(receiver=receiver, callback_url=served.url)
    sandbox.faults.lose_answers_next = 1
    with pytest.raises(CreateOutcomeUnknown) as unknown:
        await owner.create(request("a"))
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    assert unknown.value.handle is not None
    assert (await unknown.value.handle).task_id == task_id


async def test_a_callback_that_comes_before_the_answer_to_another_worker_is_kept(
    sandbox: Sandbox, worker: Worker, served: ServedReceiver, receiver: CallbackReceiver
) -> None:
    slow = {"poll": _never_polls()}
    owner = await worker(receiver=CallbackReceiver([HMAC_KEY]), callback_url=served.url, **slow)
    await worker(receiver=receiver, callback_url=served.url, **slow)
    sandbox.faults.early_callback = 1.0
    handle = await owner.create(request("a"))
    assert (await handle).task_id == handle.task_id


class SlowlyListed(PostgresJournal):
    """A journal whose lists of deliveries are old before they are handed out, until *gate* is open."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.has_listed, self.gate = asyncio.Event(), asyncio.Event()

    async def list_deliveries(self) -> list[StoredDelivery]:
        listed = await super().list_deliveries()
        if listed:
            self.has_listed.set()
            await self.gate.wait()
        return listed


async def test_a_delivery_that_comes_while_others_are_read_is_read_next(
    sandbox: Sandbox,
    worker: Worker,
    open_session: OpenSession,
    served: ServedReceiver,
    receiver: CallbackReceiver,
    postgres_dsn: str,
) -> None:
    slow = {"poll": _never_polls()}
    journal = SlowlyListed(postgres_dsn)
    elsewhere = {"receiver": CallbackReceiver([HMAC_KEY]), "callback_url": served.url}
    owner = await open_session(journal=journal, **elsewhere, **slow)
    other = await worker(receiver=receiver, callback_url=served.url, **slow)
    first, second = [await owner.create(request(ref)) for ref in ("a", "b")]
    sandbox.finish(first.task_id)
    await journal.has_listed.wait()
    sandbox.finish(second.task_id)
    await eventually(lambda: other.stats().callbacks_accepted == 2)
    await asyncio.sleep(0.2)  # the notification comes
    began = time.monotonic()
    journal.gate.set()
    await first
    await second
    assert time.monotonic() - began < 1.5  # it does not wait for the read that comes anyway


async def test_a_callback_of_nobody_is_refused(
    sandbox: Sandbox, worker: Worker, served: ServedReceiver, receiver: CallbackReceiver, postgres_dsn: str
) -> None:
    owner = await worker(receiver=CallbackReceiver([HMAC_KEY]), callback_url=served.url)
    other = await worker(receiver=receiver, callback_url=served.url)
    handle = await owner.create(request("a"))
    await in_database(postgres_dsn, "DELETE FROM intent")
    sandbox.finish(handle.task_id)
    await eventually(lambda: bool(sandbox.deliveries))
    await handle
    assert sandbox.deliveries[0].status == 503
    assert other.stats().callbacks_rejected


# --- the dead --------------------------------------------------------------------------------------


async def test_the_task_of_a_worker_that_left_is_taken_over(
    sandbox: Sandbox, worker: Worker, events: Events
) -> None:
    owner, heir = await worker(), await worker(on_event=events)
    handle = await owner.create(request("a"))
    await owner.aclose()
    taken = await anext(heir.taken_over())
    assert (taken.ref, taken.task_id) == ("a", handle.task_id)
    sandbox.finish(taken.task_id)
    await taken
    assert events.kinds(taken.task_id)[0] == "taken over"


async def test_who_followed_the_task_of_a_worker_that_left_gets_its_result(
    sandbox: Sandbox, worker: Worker
) -> None:
    owner, heir = await worker(), await worker()
    await owner.create(request("a"))
    handle = await heir.create(request("a"))
    await owner.aclose()
    assert await anext(heir.taken_over()) is handle
    sandbox.finish(handle.task_id)
    assert isinstance(await handle, TaskResult)


async def test_the_end_of_a_task_that_was_taken_over_is_noted_though_nobody_waits(
    sandbox: Sandbox, worker: Worker, postgres_dsn: str
) -> None:
    owner = await worker()
    handle = await owner.create(request("a"))
    await owner.aclose()
    await worker()
    sandbox.finish(handle.task_id)

    await until_noted(postgres_dsn, "SUCCEEDED")


async def test_what_a_silent_worker_was_sending_becomes_unknown(
    sandbox: Sandbox, worker: Worker, postgres_dsn: str
) -> None:
    owner, heir = await worker(), await worker()
    await owner.create(request("a"))
    # As a SIGKILL between the commit and the answer leaves it: no such worker lives.
    await in_database(postgres_dsn, "UPDATE intent SET state = 'SENDING', task_id = NULL, worker = 'dead'")
    taken = await first_taken_over(owner, heir)
    assert (taken.ref, taken.task_id) == ("a", "")
    with pytest.raises(CreateOutcomeUnknown):
        await heir.create(request("a"))
    assert len(sandbox.tasks) == 1


async def test_a_worker_that_falls_silent_is_replaced_when_its_lease_ends(
    worker: Worker, postgres_dsn: str
) -> None:
    owner, heir = await worker(lease_s=1.5), await worker(lease_s=1.5)
    await owner.create(request("a"))
    await in_database(postgres_dsn, "INSERT INTO worker(id, host, pid) VALUES ('silent', '', 1)")
    began = time.monotonic()
    await in_database(postgres_dsn, "UPDATE intent SET worker = 'silent'")
    await first_taken_over(owner, heir)
    assert time.monotonic() - began < 4.0  # the sweep that comes anyway is later


async def test_an_unknown_create_that_was_taken_over_is_awaited_until_another_worker_finds_its_task(
    sandbox: Sandbox, worker: Worker, postgres_dsn: str
) -> None:
    owner, heir = await worker(), await worker()
    task_id = (await owner.create(request("a"))).task_id
    await in_database(postgres_dsn, "UPDATE intent SET state = 'SENDING', task_id = NULL, worker = 'dead'")
    taken = await first_taken_over(owner, heir)
    with pytest.raises(CreateOutcomeUnknown) as unknown:
        await (await worker()).create(request("a"))
    assert unknown.value.handle is not None
    await unknown.value.handle.resolve(task_id)
    await eventually(lambda: bool(taken.task_id))
    await asyncio.sleep(0.1)  # a wait that had ended when it began would show now
    sandbox.finish(task_id)
    assert (await taken).task_id == task_id


async def test_what_a_silent_worker_proves_unsent_ends_for_its_heir(
    sandbox: Sandbox, worker: Worker, postgres_dsn: str
) -> None:
    owner, heir = await worker(), await worker()
    await owner.create(request("a"))
    await in_database(postgres_dsn, "UPDATE intent SET state = 'SENDING', task_id = NULL, worker = 'dead'")
    taken = await first_taken_over(owner, heir)
    await in_database(postgres_dsn, "UPDATE intent SET state = 'NOT_CREATED', sends = 0")
    with pytest.raises(TransportError, match="nothing was sent"):
        await taken


async def test_a_worker_that_was_taken_for_dead_sends_nothing(
    sandbox: Sandbox, open_session: OpenSession, postgres_dsn: str
) -> None:
    silent = await open_session(journal=PostgresJournal(postgres_dsn))  # with seconds to its next heartbeat
    await in_database(postgres_dsn, "DELETE FROM worker")  # as one does that finds it silent
    with pytest.raises(JournalError, match="taken this one for dead; nothing was sent"):
        await silent.create(request("a"))
    assert not sandbox.tasks


async def test_a_frozen_worker_goes_on_once_it_is_known_again(sandbox: Sandbox, worker: Worker) -> None:
    frozen = await worker(lease_s=LEASE_S)
    await asyncio.sleep(0.3)
    freeze()
    async with asyncio.timeout(5):
        while True:
            try:
                handle = await frozen.create(request("a"))
            except JournalError:
                await asyncio.sleep(0.05)
                continue
            break
    assert list(sandbox.tasks) == [handle.task_id]


async def test_taken_over_needs_a_shared_journal(kie: KieSession) -> None:
    with pytest.raises(InvalidRequest, match="postgresql://"):
        kie.taken_over()


# --- limits and budgets ----------------------------------------------------------------------------


async def test_all_workers_together_keep_to_the_limit_of_creates(
    postgres_dsn: str, open_session: OpenSession
) -> None:
    async with Sandbox(create_limit=(5, 0.5), query_limit=None) as sandbox:
        limits = Limits(create=Rate(5, per_s=0.5), query=NO_LIMITS.query)
        workers = [
            await open_session(
                base_url=sandbox.url,
                upload_url=sandbox.upload_url,
                limits=limits,
                journal=PostgresJournal(postgres_dsn),
            )
            for _ in range(3)
        ]
        created = (kie.create(request(None, f"{n}")) for n in range(5) for kie in workers)
        await asyncio.gather(*created)
        assert len(sandbox.tasks) == 15
        assert sandbox.counts["create_429"] == 0, sandbox.counts
        for kie in workers:
            await kie.aclose()


async def test_a_budget_holds_for_all_workers_together(sandbox: Sandbox, worker: Worker) -> None:
    workers = [await worker(budget=Budget(tasks=4)) for _ in range(3)]
    outcomes = await asyncio.gather(
        *(kie.create(request(None, f"{n}")) for n in range(3) for kie in workers), return_exceptions=True
    )
    assert len(sandbox.tasks) == 4, outcomes
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == 5, outcomes


async def test_a_budget_of_credits_holds_for_all_workers_together(sandbox: Sandbox, worker: Worker) -> None:
    # Nothing is known of its price, 70 credits: one worker shows it while the others wait.
    workers = [await worker(budget=Budget(credits=350)) for _ in range(3)]
    wanted = [TaskRequest(model="wan/2-6-text-to-video", input={"prompt": f"{n}"}) for n in range(9)]
    outcomes = await asyncio.gather(
        *(workers[n % 3].create(one) for n, one in enumerate(wanted)), return_exceptions=True
    )
    assert len(sandbox.tasks) == 5, outcomes
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == 4


# --- the database away -----------------------------------------------------------------------------


@pytest.fixture
async def away(own_postgres: OwnPostgres, open_session: OpenSession) -> tuple[Any, KieSession]:
    """Return a server to be stopped, and a session that has its journal there."""
    server = own_postgres()
    return server, await open_session(journal=PostgresJournal(server.dsn))


async def test_nothing_is_sent_while_the_database_is_away(
    sandbox: Sandbox, away: tuple[Any, KieSession]
) -> None:
    server, kie = away
    server.kill()
    with pytest.raises(JournalAway):
        await kie.create(request("a"))
    assert not sandbox.tasks
    server.start()
    await eventually_creates(kie, request("a"))
    assert len(sandbox.tasks) == 1


async def test_an_end_is_told_though_the_database_is_away_and_noted_when_it_is_back(
    sandbox: Sandbox, away: tuple[Any, KieSession], caplog: pytest.LogCaptureFixture
) -> None:
    server, kie = away
    handle = await kie.create(request("a"))
    server.kill()
    sandbox.finish(handle.task_id)
    with caplog.at_level(logging.WARNING, "kie_async"):
        assert isinstance(await handle, TaskResult)
    assert sum("cannot be reached" in message for message in caplog.messages) == 1
    server.start()
    await until_noted(server.dsn, "SUCCEEDED")


async def test_an_id_waits_for_a_database_that_restarts(
    sandbox: Sandbox, away: tuple[Any, KieSession]
) -> None:
    server, kie = away
    sandbox.faults.create_answer_gate = gate = asyncio.Event()
    created = asyncio.ensure_future(kie.create(request("a")))
    await eventually(lambda: bool(sandbox.tasks))
    server.kill()
    gate.set()
    await asyncio.sleep(0.2)
    server.start()
    handle = await created
    assert [handle.task_id] == list(sandbox.tasks)


async def test_a_database_that_lost_commits_is_not_trusted(
    sandbox: Sandbox, worker: Worker, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    kie = await worker()
    await kie.create(request("a"))
    await in_database(postgres_dsn, "DELETE FROM intent")  # as a replica that was behind
    with pytest.raises(JournalError, match="kie-async journal accept"):
        await kie.create(request("b"))
    assert len(sandbox.tasks) == 1
    async with asyncio.timeout(10):
        await until(lambda: "nothing is sent" in caplog.text)
    journal = PostgresJournal(postgres_dsn)
    await journal.open()
    assert await journal.accept_loss()
    await journal.aclose()
    await eventually_creates(kie, request("b"))


async def eventually_creates(kie: KieSession, wanted: TaskRequest) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await kie.create(wanted)
            except JournalError:
                await asyncio.sleep(0.1)
                continue
            return


def _never_polls() -> PollSchedule:
    return PollSchedule(learns=False, first_s=1000.0, tiers=((float("inf"), 1000.0),), safety_net_s=1000.0)


# --- who may take part -----------------------------------------------------------------------------


async def test_a_worker_with_another_key_is_refused_before_the_first_task(worker: Worker) -> None:
    await worker()
    with pytest.raises(JournalError, match="made with another key"):
        await worker(api_key="another-key")


async def test_a_key_that_was_mistyped_by_a_worker_that_left_keeps_nobody_out(worker: Worker) -> None:
    await (await worker(api_key="mistyped-key")).aclose()
    await (await worker()).create(request("a"))


async def test_two_sessions_do_not_share_a_journal_object_and_the_first_keeps_it(
    postgres_dsn: str, open_session: OpenSession
) -> None:
    journal = PostgresJournal(postgres_dsn)
    kie = await open_session(journal=journal)
    with pytest.raises(JournalLocked, match="another session"):
        await open_session(journal=journal, budget=Budget(tasks=1))
    assert (await kie.create(request("a"))).task_id
    await kie.aclose()
    kie = await open_session(journal=journal)
    assert (await kie.create(request("a"))).task_id
