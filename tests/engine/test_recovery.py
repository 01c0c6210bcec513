"""Never paid twice and never lost: refs, restarts, unknown creates and their adoption, the breaker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import OpenSession
from support.clock import Clock, eventually

from kie_async import (
    ApiError,
    Budget,
    BudgetExceeded,
    CallbackReceiver,
    CreateOutcomeUnknown,
    CreatesHalted,
    InsufficientCredits,
    InvalidRequest,
    JournalError,
    KieSession,
    Outcome,
    RateLimited,
    RefConflict,
    RequestRejected,
    Sandbox,
    ServedReceiver,
    ServerError,
    SqliteJournal,
    TaskDetached,
    TaskFailed,
    TaskHandle,
    TaskRequest,
    TaskTimedOut,
)
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.journal.intents import Intent
from kie_async.limits.circuit_breaker import HALT_S, UNKNOWN_IN_A_ROW, CircuitBreaker

ECHO = TaskRequest(model="sandbox/echo", input={"prompt": "a smile"}, ref="a")
OTHER = attrs.evolve(ECHO, input={"prompt": "a frown"})
Restart = Callable[..., Awaitable[KieSession]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture(params=["file", "memory"])
def either(request: pytest.FixtureRequest, path: Path) -> Path | None:
    """Return where the journal is: in a file, then nowhere."""
    return path if request.param == "file" else None


@pytest.fixture
async def restart(
    path: Path, open_session: OpenSession, receiver: CallbackReceiver, served: ServedReceiver
) -> Restart:
    """Return a function that closes the last session and opens one with the same journal and receiver."""
    last: list[KieSession] = []

    async def restart(**options: Any) -> KieSession:
        if last:
            await last[-1].aclose()
        given = {"journal": path, "receiver": receiver, "callback_url": served.url} | options
        last.append(await open_session(**given))
        return last[-1]

    return restart


async def lose(
    kie: KieSession, sandbox: Sandbox, request: TaskRequest = ECHO, **options: Any
) -> CreateOutcomeUnknown:
    """Create a task whose answer is lost."""
    sandbox.faults.lose_answers_next = 1
    with pytest.raises(CreateOutcomeUnknown) as caught:
        await kie.create(request, **options)
    assert caught.value.handle is not None
    return caught.value


async def journalled(path: Path) -> list[Intent]:
    """Return what a closed journal holds."""
    journal = SqliteJournal(path)
    await journal.open()
    try:
        return await journal.list_intents()
    finally:
        await journal.aclose()


def envelope(code: int, message: str = "no") -> bytes:
    return json.dumps({"code": code, "msg": message, "data": None}).encode()


# --- refs --------------------------------------------------------------------------------------


async def test_a_ref_is_one_task_however_often_it_is_asked_for(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    handles = await asyncio.gather(*(kie.create(ECHO) for _ in range(10)))
    handles.append(await kie.create("sandbox/echo", {"prompt": "a smile"}, ref="a"))
    assert len(set(handles)) == len(sandbox.tasks) == 1
    assert len({await kie.create(attrs.evolve(ECHO, ref=ref)) for ref in "bcd"}) == 3


async def test_a_ref_of_another_body_is_a_conflict(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    gate = sandbox.faults.create_answer_gate = asyncio.Event()
    first, second = asyncio.create_task(kie.create(ECHO)), asyncio.create_task(kie.create(OTHER))
    await eventually(lambda: sandbox.tasks)
    gate.set()
    await first
    with pytest.raises(RefConflict):
        await second
    for other in (
        OTHER,
        attrs.evolve(ECHO, model="z-image"),
        attrs.evolve(ECHO, callback_url="https://x.example/"),
    ):
        with pytest.raises(RefConflict, match=r"ref 'a' was made before from other content \(its"):
            await kie.create(other)
    assert sandbox.counts["create"] == 1


@pytest.mark.parametrize("end", ["success", "fail"])
async def test_a_settled_ref_is_answered_from_the_journal(
    sandbox: Sandbox, restart: Restart, end: Any
) -> None:
    kie = await restart()
    handle = await kie.create(ECHO)
    sandbox.finish(handle.task_id, end)
    (outcome,) = await asyncio.gather(handle, return_exceptions=True)
    kie = await restart()
    before = dict(sandbox.counts)
    again = await kie.create(ECHO)
    assert again.is_done
    assert again.task_id == handle.task_id
    (same,) = await asyncio.gather(again, return_exceptions=True)
    assert type(same) is type(outcome)
    if end == "success":
        assert (same.urls, same.credits) == (outcome.urls, outcome.credits)
    else:
        assert isinstance(same, TaskFailed)
    with pytest.raises(RefConflict):
        await kie.create(OTHER)
    assert dict(sandbox.counts) == before
    assert not await kie.resume()


async def test_an_unsettled_ref_goes_on_after_a_restart(sandbox: Sandbox, restart: Restart) -> None:
    kie = await restart()
    first = await kie.create(ECHO)
    kie = await restart()
    with pytest.raises(TaskDetached):
        await first
    again = await kie.create(ECHO)
    assert again.task_id == first.task_id
    assert await kie.create(ECHO) is again
    with pytest.raises(RefConflict):
        await kie.create(OTHER)
    sandbox.finish(again.task_id)
    assert (await again).urls
    assert len(sandbox.tasks) == 1


async def test_a_ref_whose_wait_ended_is_not_paid_again(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    first = await kie.create(ECHO, timeout_s=0.01)
    with pytest.raises(TaskTimedOut):
        await first
    again = await kie.create(ECHO)
    again.abandon()
    again = await kie.create(ECHO)
    assert again.task_id == first.task_id
    sandbox.finish(again.task_id)
    await again
    assert len(sandbox.tasks) == 1


async def test_a_ref_of_an_unknown_create_is_not_sent_again(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    unknown = await lose(kie, sandbox)
    for _ in range(2):
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create(ECHO)
        assert caught.value.handle is unknown.handle
        assert caught.value.ref == "a"
    with pytest.raises(RefConflict):
        await kie.create(OTHER)
    assert sandbox.counts["create"] == 1


async def test_the_error_of_an_unknown_create_does_not_grow_however_often_it_is_asked_for(
    sandbox: Sandbox, kie: KieSession
) -> None:
    first = await lose(kie, sandbox)
    lengths = set()
    for _ in range(5):
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create(ECHO)
        assert caught.value.handle is first.handle
        lengths.add(len(caught.traceback))
    assert len(lengths) == 1


async def test_a_ref_of_an_unknown_create_of_a_former_run_is_not_sent_again(
    sandbox: Sandbox, restart: Restart
) -> None:
    unknown = await lose(await restart(), sandbox)
    kie = await restart()
    with pytest.raises(CreateOutcomeUnknown) as caught:
        await kie.create(ECHO)
    assert caught.value.handle is not None
    assert (caught.value.intent_id, caught.value.reason) == (unknown.intent_id, unknown.reason)
    assert caught.value.handle in await kie.resume()
    with pytest.raises(RefConflict):
        await kie.create(OTHER)
    assert sandbox.counts["create"] == 1


async def test_an_unknown_create_of_a_former_run_names_the_id_in_its_answer(
    sandbox: Sandbox, restart: Restart
) -> None:
    answer = {"code": 500, "msg": "busy", "data": {"taskId": "task_abc"}}
    sandbox.faults.create_answers_next = [(200, json.dumps(answer))]
    for _ in range(2):
        kie = await restart()
        with pytest.raises(CreateOutcomeUnknown, match="named task task_abc") as caught:
            await kie.create(ECHO)
        assert caught.value.candidate_task_id == "task_abc"


REFUSALS = [
    (400, RequestRejected), (401, ApiError), (402, InsufficientCredits), (404, ApiError),
    (422, RequestRejected), (433, ApiError),
]  # fmt: skip


@pytest.mark.parametrize(("code", "kind"), REFUSALS)
async def test_a_ref_that_was_clearly_refused_is_sent_again(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession, code: int, kind: type[ApiError]
) -> None:
    kie = await open_session(journal=either)
    sandbox.faults.create_answers_next = [(200, envelope(code))]
    with pytest.raises(kind):
        await kie.create(OTHER)
    if either is not None:  # also in the next run
        await kie.aclose()
        kie = await open_session(journal=either)
    handle = await kie.create(ECHO)
    assert set(sandbox.tasks) == {handle.task_id}
    assert await kie.create(ECHO) is handle


@pytest.mark.parametrize(("code", "kind"), [(500, ServerError), (501, ServerError), (505, RequestRejected)])
async def test_a_ref_that_was_refused_in_doubt_is_not_sent_again(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession, code: int, kind: type[ApiError]
) -> None:
    kie = await open_session(journal=either)
    sandbox.faults.create_answers_next = [(200, envelope(code, "words"))]
    for number in range(3):
        with pytest.raises(kind, match="words"):
            await kie.create(ECHO)
        if number == 1 and either is not None:
            await kie.aclose()
            kie = await open_session(journal=either)
    with pytest.raises(RefConflict):
        await kie.create(OTHER)
    assert sandbox.counts["create"] == 1


async def test_a_ref_that_was_never_created_is_sent_again(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    sandbox.faults.create_429_next = 1
    sandbox.faults.retry_after_s = 5.0
    with pytest.raises(RateLimited):
        await kie.create(ECHO, timeout_s=0.5)
    dead = await open_session(base_url="http://127.0.0.1:9", journal=either and either.with_name("other.db"))
    for _ in range(2):
        with pytest.raises(Exception, match="create was not sent"):
            await dead.create(ECHO, timeout_s=0.01)
    sandbox.faults.create_429_next = 0
    if either is not None:
        await kie.aclose()
        kie = await open_session(journal=either)
        assert (await kie.create(OTHER)).task_id in sandbox.tasks


async def test_a_caller_who_gave_up_finds_the_task_under_its_ref(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    gate = sandbox.faults.create_answer_gate = asyncio.Event()
    first = asyncio.create_task(kie.create(ECHO))
    await eventually(lambda: sandbox.tasks)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    again, other = asyncio.create_task(kie.create(ECHO)), asyncio.create_task(kie.create(OTHER))
    await asyncio.sleep(0.02)
    gate.set()
    assert (await again).task_id in sandbox.tasks
    with pytest.raises(RefConflict):
        await other
    assert sandbox.counts["create"] == 1


async def test_a_caller_who_gave_up_in_time_may_ask_again_at_once(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    for turns in range(12):
        creating = asyncio.create_task(kie.create(attrs.evolve(ECHO, ref=f"a{turns}")))
        for _ in range(turns * 2):
            await asyncio.sleep(0)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        await kie.create(attrs.evolve(ECHO, ref=f"a{turns}"))
    assert len(sandbox.tasks) == sandbox.counts["create.bodies"] == 12


# --- resume ------------------------------------------------------------------------------------


async def test_resume_returns_all_that_is_unsettled_and_sends_nothing(
    sandbox: Sandbox, restart: Restart
) -> None:
    kie = await restart()
    done, failed, running = [
        await kie.create(attrs.evolve(ECHO, ref=ref)) for ref in ("done", "failed", "on")
    ]
    sandbox.finish(done.task_id)
    sandbox.finish(failed.task_id, "fail")
    await asyncio.gather(done, failed, return_exceptions=True)
    unknown = await lose(kie, sandbox)
    sandbox.faults.create_answers_next = [(200, envelope(500)), (200, envelope(422))]
    for ref in ("in doubt", "refused"):
        with pytest.raises(ApiError):
            await kie.create(attrs.evolve(ECHO, ref=ref))
    kie = await restart()
    creates, queries = sandbox.counts["create"], sandbox.counts["query"]
    handles = await kie.resume()
    assert [(handle.ref, handle.task_id) for handle in handles] == [("on", running.task_id), ("a", "")]
    assert handles == await kie.resume()
    assert await kie.create(attrs.evolve(ECHO, ref="on")) is handles[0]
    await eventually(lambda: sandbox.counts["query"] > queries)
    assert handles[1].intent_id == unknown.intent_id
    assert sandbox.counts["create"] == creates


async def test_resume_of_a_session_without_a_path_knows_its_refs(sandbox: Sandbox, kie: KieSession) -> None:
    handle = await kie.create(ECHO)
    assert await kie.resume() == [handle]
    unknown = await lose(kie, sandbox, attrs.evolve(ECHO, ref=None))
    assert await kie.resume() == [handle, unknown.handle]


# --- adoption ----------------------------------------------------------------------------------


async def test_a_callback_adopts_an_unknown_create(sandbox: Sandbox, restart: Restart, path: Path) -> None:
    kie = await restart()
    handle = (await lose(kie, sandbox)).handle
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    assert (await handle).task_id == handle.task_id == task_id
    assert (kie.stats().unknown_creates, kie.stats().ghost_creates, kie.stats().credits_consumed) == (
        1,
        0,
        1.0,
    )
    await kie.aclose()
    assert [(i.state.value, i.task_id) for i in await journalled(path)] == [("SUCCEEDED", task_id)]


async def test_a_claim_that_is_being_proven_when_the_session_closes_is_adopted(
    sandbox: Sandbox, restart: Restart, path: Path
) -> None:
    kie = await restart()
    await lose(kie, sandbox)
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    await eventually(lambda: kie.stats().unknown_creates and sandbox.counts["query"])  # it is being asked for
    await kie.aclose()
    assert [(i.state.value, i.task_id) for i in await journalled(path)] == [("SUCCEEDED", task_id)]


@pytest.mark.parametrize("asked", ["before", "after", "never"])
@pytest.mark.parametrize("end", ["success", "fail"])
async def test_a_callback_adopts_an_unknown_create_of_a_former_run(
    sandbox: Sandbox, restart: Restart, path: Path, asked: str, end: Any
) -> None:
    await lose(await restart(), sandbox)
    kie = await restart()
    handles = await kie.resume() if asked == "before" else []
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id, end)
    await eventually(lambda: kie.stats().settled_by_callback)
    if asked == "after":
        handles = [await kie.create(ECHO)]
    for handle in handles:
        assert handle.task_id == task_id
        outcome = await asyncio.gather(handle, return_exceptions=True)
        assert isinstance(outcome[0], TaskFailed) == (end == "fail")
    await kie.aclose()
    (intent,) = await journalled(path)
    assert (intent.task_id, intent.state.value) == (task_id, "SUCCEEDED" if end == "success" else "FAILED")
    assert sandbox.counts["create"] == 1


async def test_an_adopted_task_that_still_runs_is_watched_on(
    sandbox: Sandbox, restart: Restart, receiver: CallbackReceiver
) -> None:
    await lose(await restart(), sandbox)
    kie = await restart()
    (handle,) = await kie.resume()
    (task,) = sandbox.tasks.values()
    early = json.dumps({"code": 200, "data": {"taskId": task.task_id, "state": "generating"}}).encode()
    tail = task.callback_url.split("/kie/")[1]
    verdict = await receiver.feed(tail, sandbox.callback_headers(task.task_id), early)
    assert verdict.status == 200
    await eventually(lambda: handle.task_id)
    assert not handle.is_done
    assert await kie.create(ECHO) is handle
    sandbox.finish(task.task_id)
    await handle


async def test_a_callback_that_names_another_task_adopts_nothing(
    sandbox: Sandbox, restart: Restart, receiver: CallbackReceiver
) -> None:
    kie = await restart()
    stranger = await kie.create(attrs.evolve(ECHO, ref="b"))
    unknown = await lose(kie, sandbox)
    (task_id,) = set(sandbox.tasks) - {stranger.task_id}
    tail = sandbox.tasks[task_id].callback_url.split("/kie/")[1]
    lie = json.dumps({"code": 200, "data": {"taskId": stranger.task_id, "state": "success"}}).encode()
    assert (await receiver.feed(tail, sandbox.callback_headers(stranger.task_id), lie)).status == 200
    await eventually(lambda: kie.stats().callbacks_rejected.get("adoption of another task"))
    assert not unknown.handle.task_id
    assert not stranger.is_done
    sandbox.finish(task_id)
    assert (await unknown.handle).task_id == task_id


async def test_a_callback_after_the_deadline_is_still_noted(
    sandbox: Sandbox, restart: Restart, path: Path
) -> None:
    kie = await restart()
    unknown = await lose(kie, sandbox, timeout_s=0.01)
    with pytest.raises(CreateOutcomeUnknown):
        await unknown.handle
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    await eventually(lambda: kie.stats().settled_by_callback)
    assert (kie.stats().credits_consumed, kie.stats().in_flight) == (1.0, 0)
    assert (await kie.create(ECHO)).task_id == task_id
    await kie.aclose()
    assert [intent.task_id for intent in await journalled(path)] == [task_id]


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_refused_create_that_exists_is_adopted_as_a_ghost(
    sandbox: Sandbox, restart: Restart, path: Path, restarts: bool
) -> None:
    kie = await restart()
    sandbox.faults.refuse_but_create_next = 1
    with pytest.raises(RequestRejected):
        await kie.create(ECHO)
    if restarts:
        kie = await restart()
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    await eventually(lambda: kie.stats().settled_by_callback)
    assert (kie.stats().ghost_creates, kie.stats().credits_consumed) == (1, 1.0)
    assert (await kie.create(ECHO)).task_id == task_id  # known now, so not sent again
    await kie.aclose()
    assert [intent.task_id for intent in await journalled(path)] == [task_id]


async def test_a_ghost_does_not_take_a_ref_that_was_sent_again(sandbox: Sandbox, restart: Restart) -> None:
    kie = await restart()
    sandbox.faults.refuse_but_create_next = 1
    with pytest.raises(RequestRejected):
        await kie.create(ECHO)
    (ghost,) = sandbox.tasks
    second = await kie.create(ECHO)
    sandbox.faults.query_answer_gate = asyncio.Event()
    sandbox.finish(ghost)
    sandbox.faults.query_answer_gate.set()
    await eventually(lambda: kie.stats().ghost_creates)
    assert await kie.create(ECHO) is second


async def test_an_adoption_that_cannot_be_noted_is_tried_again(
    sandbox: Sandbox, restart: Restart, path: Path
) -> None:
    class Failing(SqliteJournal):
        fails = 1

        async def mark_created(self, *args: Any, **options: Any) -> None:
            if self.fails:
                self.fails -= 1
                raise JournalError("made up")
            await super().mark_created(*args, **options)

    journal = Failing(path)
    kie = await restart(journal=journal)
    unknown = await lose(kie, sandbox)
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    await eventually(lambda: not journal.fails)
    await sandbox.send_callback(task_id)
    assert (await unknown.handle).task_id == task_id


# --- by hand -----------------------------------------------------------------------------------


async def test_resolve_binds_the_task_somebody_found(sandbox: Sandbox, restart: Restart, path: Path) -> None:
    kie = await restart(receiver=None, callback_url=None)
    stranger = await kie.create("nano-banana-2", {"prompt": "x"})
    other = await kie.create(attrs.evolve(ECHO, ref="b"))
    handle = (await lose(kie, sandbox)).handle
    (task_id,) = set(sandbox.tasks) - {stranger.task_id, other.task_id}
    for wrong, words in [
        (stranger.task_id, "is of model nano-banana-2, not of sandbox/echo"),
        (other.task_id, "belongs to another handle already"),
        ("../x", "task_id"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            await handle.resolve(wrong)
    with pytest.raises(ApiError):
        await handle.resolve("0" * 32)
    await handle.resolve(task_id)
    assert handle.task_id == task_id
    with pytest.raises(InvalidRequest, match="only a create whose outcome is unknown"):
        await handle.resolve(task_id)
    sandbox.finish(task_id)
    await handle
    await kie.aclose()
    assert [i.task_id for i in await journalled(path)] == [stranger.task_id, other.task_id, task_id]


async def test_resolve_of_a_former_run_finds_a_task_that_has_ended(
    sandbox: Sandbox, restart: Restart
) -> None:
    await lose(await restart(receiver=None, callback_url=None), sandbox)
    kie = await restart(receiver=None, callback_url=None)
    (handle,) = await kie.resume()
    (task_id,) = sandbox.tasks
    sandbox.finish(task_id)
    await handle.resolve(task_id)
    assert (await handle).urls
    assert (await kie.create(ECHO)).task_id == task_id


async def test_a_task_of_a_settled_intent_cannot_be_resolved_to_another(
    sandbox: Sandbox, restart: Restart
) -> None:
    kie = await restart(receiver=None, callback_url=None)
    settled = await kie.create(attrs.evolve(ECHO, ref="b"))
    sandbox.finish(settled.task_id)
    await settled
    handle = (await lose(kie, sandbox)).handle
    with pytest.raises(JournalError, match="belongs to another intent"):
        await handle.resolve(settled.task_id)
    assert not handle.task_id


async def test_write_off_ends_an_unknown_create_for_good(
    sandbox: Sandbox, restart: Restart, path: Path
) -> None:
    kie = await restart()
    handle = (await lose(kie, sandbox)).handle
    handle.write_off()
    with pytest.raises(CreateOutcomeUnknown):
        await handle
    with pytest.raises(InvalidRequest):
        handle.write_off()
    kie = await restart()
    assert not await kie.resume()
    with pytest.raises(CreateOutcomeUnknown):
        await kie.create(ECHO)
    assert sandbox.counts["create"] == 1
    await kie.aclose()
    assert [intent.state.value for intent in await journalled(path)] == ["WRITTEN_OFF"]


async def test_resubmit_pays_again_only_on_demand_and_keeps_the_ref(
    sandbox: Sandbox, restart: Restart
) -> None:
    kie = await restart()
    handle = (await lose(kie, sandbox)).handle
    for no in (False, 1, "yes"):
        with pytest.raises(InvalidRequest, match="accept_double_charge=True"):
            await handle.resubmit(accept_double_charge=no)
    assert sandbox.counts["create"] == 1
    second = await handle.resubmit(accept_double_charge=True)
    assert len(sandbox.tasks) == 2
    with pytest.raises(CreateOutcomeUnknown):
        await handle
    assert await kie.create(ECHO) is second
    kie = await restart()
    assert (await kie.create(ECHO)).task_id == second.task_id
    assert len(sandbox.tasks) == 2


@pytest.mark.parametrize("is_resubmit_first", [True, False])
async def test_a_resubmit_and_a_create_of_its_ref_at_once_are_one_more_task(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession, is_resubmit_first: bool
) -> None:
    kie = await open_session(journal=either)
    handle = (await lose(kie, sandbox)).handle

    async def create() -> TaskHandle:
        try:
            return await kie.create(ECHO)
        except CreateOutcomeUnknown as unknown:  # that came first, and found the old one
            return unknown.handle

    works = [handle.resubmit(accept_double_charge=True), create()]
    found = await asyncio.gather(*(works if is_resubmit_first else reversed(works)))

    assert len(sandbox.tasks) == 2
    assert len({task.task_id for task in found if task is not handle}) == 1


async def test_a_resubmit_that_sent_nothing_leaves_the_first_as_it_was(
    sandbox: Sandbox, restart: Restart
) -> None:
    kie = await restart()
    handle = (await lose(kie, sandbox)).handle
    sandbox.faults.create_429_next = 1
    sandbox.faults.retry_after_s = 30.0
    again = asyncio.create_task(handle.resubmit(accept_double_charge=True))
    await eventually(lambda: kie.stats().rate_limited)
    again.cancel()
    await asyncio.wait({again})
    sandbox.faults.retry_after_s = 0.0
    assert not handle.is_done
    kie = await restart()
    with pytest.raises(CreateOutcomeUnknown):
        await kie.create(ECHO)
    assert len(sandbox.tasks) == 1


async def test_resubmit_of_a_former_run_has_no_request_to_send(sandbox: Sandbox, restart: Restart) -> None:
    await lose(await restart(), sandbox)
    (handle,) = await (await restart()).resume()
    with pytest.raises(InvalidRequest, match="does not hold its request"):
        await handle.resubmit(accept_double_charge=True)
    assert sandbox.counts["create"] == 1


# --- batches -----------------------------------------------------------------------------------


async def run(kie: KieSession, requests: list[TaskRequest]) -> dict[str | None, Any]:
    return {outcome.ref: outcome async for outcome in kie.batch(requests)}


async def test_a_batch_run_again_pays_nothing_again(sandbox: Sandbox, restart: Restart) -> None:
    requests = [attrs.evolve(ECHO, ref=f"r{number}") for number in range(8)]
    kie = await restart(max_in_flight=3)

    async def finish_all() -> None:
        while True:
            for task in list(sandbox.tasks.values()):
                sandbox.finish(task.task_id)
            await asyncio.sleep(0.005)

    finishing = asyncio.create_task(finish_all())
    sandbox.faults.create_answers_next = [(200, envelope(500)), (200, envelope(422))]
    first = await run(kie, requests)
    assert sorted(type(outcome.error).__name__ for outcome in first.values() if not outcome.ok) == [
        "RequestRejected",
        "ServerError",
    ]
    kie = await restart(max_in_flight=3)
    before = sandbox.counts["create.bodies"]
    second = await run(kie, requests)
    finishing.cancel()
    assert sandbox.counts["create.bodies"] == before + 1  # the one that was clearly refused
    assert [o.ref for o in second.values() if not o.ok] == [
        o.ref for o in first.values() if isinstance(o.error, ServerError)
    ]
    assert len(sandbox.tasks) == len({outcome.task_id for outcome in second.values() if outcome.ok}) == 7


async def test_a_batch_run_again_waits_a_little_for_an_adoption(sandbox: Sandbox, restart: Restart) -> None:
    kie = await restart()
    sandbox.faults.lose_answers_next = 1
    (outcome,) = (await run(kie, [ECHO])).values()
    assert isinstance(outcome.error, CreateOutcomeUnknown)
    kie = await restart()
    (task_id,) = sandbox.tasks
    asyncio.get_running_loop().call_later(0.1, sandbox.finish, task_id)
    (outcome,) = (await run(kie, [ECHO])).values()
    assert outcome.unwrap().task_id == task_id
    assert sandbox.counts["create"] == 1


# --- the breaker -------------------------------------------------------------------------------


def test_the_breaker_opens_after_three_in_a_row_and_lets_one_try() -> None:
    now = 100.0
    breaker = CircuitBreaker(now=lambda: now)
    for _ in range(UNKNOWN_IN_A_ROW):
        breaker.check()
        breaker.record_unknown()
    for _ in range(3):
        with pytest.raises(CreatesHalted, match="nothing was sent"):
            breaker.check()
    now += HALT_S
    breaker.check()  # one may try
    with pytest.raises(CreatesHalted):
        breaker.check()
    now += HALT_S
    breaker.check()
    breaker.record_unknown()  # in vain
    with pytest.raises(CreatesHalted):
        breaker.check()
    now += HALT_S
    breaker.check()
    breaker.record_answer()
    for _ in range(10):
        breaker.check()


async def test_three_unknown_creates_halt_the_next(
    either: Path | None, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=either)
    for ref in "abc":
        await lose(kie, sandbox, attrs.evolve(ECHO, ref=ref))
    for ref in "dde":
        with pytest.raises(CreatesHalted):
            await kie.create(attrs.evolve(ECHO, ref=ref))
    assert sandbox.counts["create"] == 3
    assert kie.stats().unknown_creates == 3


@pytest.mark.parametrize("code", [200, 402, 422, 500])
async def test_any_answer_closes_the_breaker(sandbox: Sandbox, kie: KieSession, code: int) -> None:
    for _ in range(2):
        for _ in range(2):
            await lose(kie, sandbox, attrs.evolve(ECHO, ref=None))
        if code != 200:
            sandbox.faults.create_answers_next = [(200, envelope(code))]
            with pytest.raises(ApiError):
                await kie.create(attrs.evolve(ECHO, ref=None))
        else:
            await kie.create(attrs.evolve(ECHO, ref=None))


async def test_a_halt_ends_with_the_clock(clock: Clock, sandbox: Sandbox, kie: KieSession) -> None:
    for ref in "abc":
        await lose(kie, sandbox, attrs.evolve(ECHO, ref=ref))
    with pytest.raises(CreatesHalted):
        await kie.create(attrs.evolve(ECHO, ref="d"))
    await clock.advance(HALT_S - 1)
    with pytest.raises(CreatesHalted):
        await kie.create(attrs.evolve(ECHO, ref="d"))
    await clock.advance(2)
    await kie.create(attrs.evolve(ECHO, ref="d"))
    await kie.create(attrs.evolve(ECHO, ref="e"))
    for handle in await kie.resume():
        handle.abandon()


async def test_unknown_creates_of_a_former_run_do_not_halt_this_one(
    sandbox: Sandbox, restart: Restart
) -> None:
    for number in range(2):
        kie = await restart()
        for ref in "ab":
            await lose(kie, sandbox, attrs.evolve(ECHO, ref=f"{ref}{number}"))
    kie = await restart()
    for ref in ("a0", "b0", "a1", "b1"):
        with pytest.raises(CreateOutcomeUnknown):
            await kie.create(attrs.evolve(ECHO, ref=ref))
    await kie.create(attrs.evolve(ECHO, ref="c"))


async def test_a_batch_sends_nothing_while_creates_are_halted(sandbox: Sandbox, restart: Restart) -> None:
    kie = await restart()
    sandbox.faults.lose_answer = 1.0
    batch = kie.batch([attrs.evolve(ECHO, ref=str(number)) for number in range(500)])
    outcomes: list[Outcome] = []

    async def consume() -> None:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401  (it is stopped)

    reading = asyncio.create_task(consume())
    await eventually(lambda: kie.stats().unknown_creates >= UNKNOWN_IN_A_ROW)
    await asyncio.sleep(0.2)
    assert not reading.done()
    assert len(sandbox.tasks) <= UNKNOWN_IN_A_ROW + 64  # what was on the wire at once
    batch.stop()
    await reading
    unknown = {outcome.ref for outcome in outcomes if isinstance(outcome.error, CreateOutcomeUnknown)}
    assert len(unknown) == len(sandbox.tasks)


# --- the budget --------------------------------------------------------------------------------


async def test_a_budget_of_tasks_spans_restarts(sandbox: Sandbox, restart: Restart) -> None:
    kie = await restart(budget=Budget(tasks=3))
    await kie.create(attrs.evolve(ECHO, ref="a"))
    await lose(kie, sandbox, attrs.evolve(ECHO, ref="b"))
    sandbox.faults.create_answers_next = [(200, envelope(422))]
    with pytest.raises(RequestRejected):
        await kie.create(attrs.evolve(ECHO, ref="c"))
    kie = await restart(budget=Budget(tasks=3))
    await kie.create(attrs.evolve(ECHO, ref="a"))  # known: costs nothing
    await kie.create(attrs.evolve(ECHO, ref="c"))
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match="budget of 3 tasks"):
            await kie.create(attrs.evolve(ECHO, ref="d"))
        kie = await restart(budget=Budget(tasks=3))
    assert len(sandbox.tasks) == 3


async def test_a_budget_of_credits_spans_restarts(sandbox: Sandbox, restart: Restart) -> None:
    for ref in ("a", "b"):
        kie = await restart(budget=Budget(credits=2))
        handle = await kie.create(attrs.evolve(ECHO, ref=ref))
        sandbox.finish(handle.task_id)
        await handle
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match="budget of 2 credits"):
            await kie.create(attrs.evolve(ECHO, ref="c"))
        kie = await restart(budget=Budget(credits=2))
    assert len(sandbox.tasks) == 2


async def test_tasks_of_a_former_run_that_nobody_resumed_count_as_the_most_their_model_took(
    sandbox: Sandbox, restart: Restart
) -> None:
    kie = await restart()
    first = await kie.create(attrs.evolve(ECHO, ref="a"))
    sandbox.finish(first.task_id)
    await first
    for ref in ("b", "c"):
        await kie.create(attrs.evolve(ECHO, ref=ref))
    kie = await restart(budget=Budget(credits=3))
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match="budget of 3 credits"):
            await kie.create(attrs.evolve(ECHO, ref="d"))
        await kie.resume()  # they are held once, here or there
    assert len(sandbox.tasks) == 3


async def test_what_was_reserved_for_a_create_is_reserved_after_a_restart(
    sandbox: Sandbox, restart: Restart
) -> None:
    kie = await restart(budget=Budget(credits=100))
    for ref in ("a", "b"):
        await lose(kie, sandbox, spoken("kling/ai-avatar-standard", ref))
    kie = await restart(budget=Budget(credits=40))
    with pytest.raises(BudgetExceeded) as caught:
        await kie.create(spoken("kling/ai-avatar-standard", "c"))
    assert (caught.value.spent, caught.value.held) == (0.0, 32.0)


async def test_a_hold_that_a_record_told_is_known_after_a_restart(sandbox: Sandbox, restart: Restart) -> None:
    kie = await restart(budget=Budget(credits=20), callback_url=None, receiver=None)
    handle = await kie.create(spoken("infinitalk/from-audio", "a"))
    await eventually(lambda: handle.record is not None and handle.record.credits == 16.0)  # the table says 6
    kie = await restart(budget=Budget(credits=20))
    with pytest.raises(BudgetExceeded) as caught:
        await kie.create(spoken("infinitalk/from-audio", "b"))
    assert (caught.value.spent, caught.value.held) == (0.0, 16.0)


def spoken(model: str, ref: str) -> TaskRequest:
    """Return a request whose voice takes two seconds."""
    fields = {"image_url": read_portrait(), "audio_url": read_voice(), "prompt": ""}
    return TaskRequest(model=model, input=fields, ref=ref)
