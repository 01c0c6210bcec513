"""Handles at once: what is queued, taken back, known by its ref, awaited by nobody; and how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

import pytest
from conftest import Events, OpenSession, eventually
from support import inside
from support.clock import Clock, settle
from support.create_faults import Notes

from kie_async import (
    ApiError,
    BudgetExceeded,
    CallbackReceiver,
    CreateOutcomeUnknown,
    InvalidRequest,
    KieSession,
    Limits,
    QueueFull,
    Rate,
    RefConflict,
    Sandbox,
    ServedReceiver,
    SessionMisuse,
    TaskAbandoned,
    TaskHandle,
    TaskPhase,
    TaskRequest,
    TaskTimedOut,
    Withdrawn,
)
from kie_async.config import Budget

pytestmark = pytest.mark.usefixtures("leaks")


def echo(number: int = 0, ref: str | None = None) -> TaskRequest:
    return TaskRequest(model="sandbox/echo", input={"n": number}, ref=ref)


def order_of(sandbox: Sandbox) -> list[object]:
    return [task.input["n"] for task in sandbox.tasks.values()]


async def free_one(kie: KieSession, handle: TaskHandle) -> None:
    """Give the slot of a running handle to the next."""
    handle.abandon()
    await settle()


@pytest.fixture
async def narrow(open_session: OpenSession) -> KieSession:
    """Return a session with room for a single task."""
    return await open_session(max_in_flight=1)


# --- at once --------------------------------------------------------------------------------------


async def test_a_handle_is_there_before_anything_was_awaited(kie: KieSession, sandbox: Sandbox) -> None:
    handle = kie.submit(echo())
    assert (handle.task_id, handle.phase, handle.queue_position) == ("", "queued", 0)
    assert await handle.created() is handle
    assert (handle.phase, handle.queue_position) == (TaskPhase.RUNNING, None)
    assert kie.attach(handle.task_id) is handle
    sandbox.finish(handle.task_id)
    assert (await handle).record.task_id == handle.task_id
    assert handle.phase is TaskPhase.DONE


async def test_it_takes_a_model_and_its_input_too(kie: KieSession) -> None:
    handle = await kie.submit("sandbox/echo", {"n": 1}, ref="a", timeout_s=60).created()
    assert (handle.model, handle.ref) == ("sandbox/echo", "a")


async def test_it_can_be_awaited_before_it_is_created(kie: KieSession, sandbox: Sandbox) -> None:
    handle = kie.submit(echo())
    waiting = asyncio.create_task(handle.result())
    await handle.created()
    sandbox.finish(handle.task_id)
    assert (await waiting).record.task_id == handle.task_id


async def test_its_time_begins_with_its_turn(clock: Clock, narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(1))
    second = narrow.submit(echo(2), timeout_s=1.0)
    await clock.advance(2.0)
    assert not second.is_done
    first.abandon()
    await eventually(lambda: second.task_id)
    assert second.deadline == pytest.approx(clock.now + 1.0, abs=0.1)


async def test_what_is_wrong_with_the_arguments_is_raised_at_once(kie: KieSession) -> None:
    with pytest.raises(InvalidRequest, match="model must look like"):
        kie.submit("no model", {})
    with pytest.raises(InvalidRequest, match="lane must be a text or a number"):
        kie.submit(echo(), lane=object())  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="timeout_s"):
        kie.submit(echo(), timeout_s=-1)
    assert kie.stats().queued == 0


async def test_a_closed_session_gives_out_none(kie: KieSession) -> None:
    await kie.aclose()
    with pytest.raises(SessionMisuse, match="closed"):
        kie.submit(echo())


async def test_a_handle_that_is_queued_says_so(narrow: KieSession) -> None:
    await narrow.create(echo(1))
    handle = narrow.submit(echo(2, ref="order-2"))
    assert repr(handle) == "<TaskHandle sandbox/echo ref 'order-2' queued>"
    with pytest.raises(TaskTimedOut, match="the task, if any, was not seen to end in time"):
        await handle.result(timeout_s=0)
    for decide in (handle.resolve("task"), handle.resubmit(accept_double_charge=True)):
        with pytest.raises(InvalidRequest, match="only a create whose outcome is unknown"):
            await decide
    with pytest.raises(InvalidRequest, match="only a create whose outcome is unknown"):
        handle.write_off()


# --- the queue ------------------------------------------------------------------------------------


async def test_places_are_counted_from_the_next(narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(0))
    handles = [narrow.submit(echo(n)) for n in (1, 2, 3)]
    assert [handle.queue_position for handle in handles] == [0, 1, 2]
    assert narrow.stats().queued == 3
    first.abandon()
    await eventually(lambda: handles[0].task_id)
    assert [handle.queue_position for handle in handles] == [None, 0, 1]


async def test_lanes_take_turns(narrow: KieSession, sandbox: Sandbox) -> None:
    running = await narrow.create(echo(0))
    many = [narrow.submit(echo(n), lane="many") for n in range(1, 40)]
    single, other = narrow.submit(echo(100), lane=7), narrow.submit(echo(200), lane=8)
    assert (single.queue_position, other.queue_position) == (1, 2)
    for _ in range(4):
        running.abandon()
        await eventually(lambda running=running: inside.creating_count(narrow) == 0 and running.is_done)
        running = await next_running(narrow)
    assert order_of(sandbox) == [0, 1, 100, 200, 2]
    assert many[2].queue_position == 0


async def next_running(kie: KieSession) -> TaskHandle:
    """Return the one task in flight, once there is one."""
    await eventually(lambda: inside.task_ids(kie))
    [task_id] = inside.task_ids(kie)
    return kie.attach(task_id)


async def test_without_lanes_submitted_and_created_go_in_the_order_they_came(
    narrow: KieSession, sandbox: Sandbox
) -> None:
    running = await narrow.create(echo(0))
    narrow.submit(echo(1))
    creating = asyncio.create_task(narrow.create(echo(2)))
    await settle()
    narrow.submit(echo(3))
    for _ in range(3):
        running.abandon()
        running = await next_running(narrow)
    assert order_of(sandbox) == [0, 1, 2, 3]
    await creating


async def test_a_batch_has_a_lane_of_its_own(narrow: KieSession, sandbox: Sandbox) -> None:
    running = await narrow.create(echo(0))

    async def read() -> None:
        async with narrow.batch(echo(n) for n in range(1, 20)) as batch:
            async for _ in batch:
                pass

    reading = asyncio.create_task(read())
    await eventually(lambda: narrow.stats().queued)
    single = narrow.submit(echo(100))
    running.abandon()
    for _ in range(2):
        running = await next_running(narrow)
        sandbox.finish(running.task_id)
        await eventually(lambda running=running: running.is_done)
    await eventually(lambda: len(sandbox.tasks) >= 3)
    assert order_of(sandbox)[:3] in ([0, 1, 100], [0, 100, 1])
    assert single.phase is not TaskPhase.QUEUED
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_no_more_wait_than_may(open_session: OpenSession) -> None:
    kie = await open_session(max_in_flight=1, max_queued=2)
    await kie.create(echo(0))
    queued = [kie.submit(echo(n)) for n in (1, 2)]
    with pytest.raises(QueueFull, match="2 creates wait already, as max_queued allows; nothing was sent"):
        kie.submit(echo(3))
    with pytest.raises(QueueFull):
        await kie.create(echo(3))
    assert queued[0].withdraw()
    assert kie.submit(echo(3)).queue_position == 1


async def test_a_create_that_is_cancelled_in_the_queue_gives_its_place_up(narrow: KieSession) -> None:
    await narrow.create(echo(0))
    creating = asyncio.create_task(narrow.create(echo(1)))
    await settle()
    handle = narrow.submit(echo(2))
    assert handle.queue_position == 1
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    assert handle.queue_position == 0


async def test_most_that_wait_have_no_asyncio_task(narrow: KieSession) -> None:
    await narrow.create(echo(0))
    before = len(asyncio.all_tasks())
    handles = [narrow.submit(echo(n)) for n in range(500)]
    await settle()
    assert len(asyncio.all_tasks()) - before <= 20
    assert [handle.queue_position for handle in handles] == list(range(500))


async def test_what_waits_is_made_ready_ahead(narrow: KieSession, sandbox: Sandbox, tmp_path: Path) -> None:
    voice = tmp_path / "voice.mp3"
    voice.write_bytes(b"ID3" + bytes(100))
    await narrow.create(echo(0))
    handle = narrow.submit("sandbox/echo", {"voice": voice})
    await eventually(lambda: sandbox.counts["upload"])
    assert handle.phase is TaskPhase.QUEUED


# --- updates --------------------------------------------------------------------------------------


async def test_updates_begin_with_the_queue(clock: Clock, narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(0))
    second, third = narrow.submit(echo(1)), narrow.submit(echo(2))
    seen: list[tuple[str, int | None, str]] = []

    async def follow() -> None:
        async for record in third.updates():
            seen.append(  # noqa: PERF401  (it is read while it grows)
                (third.phase.value, third.queue_position, record.state.value)
            )

    following = asyncio.create_task(follow())
    await settle()
    assert seen == [("queued", 1, "waiting")]
    first.abandon()
    await eventually(lambda: second.task_id)
    await clock.advance(1.0)
    assert seen[-1] == ("queued", 0, "waiting")
    second.abandon()
    await eventually(lambda: third.task_id)
    sandbox.finish(third.task_id)
    await clock.advance(2.0)
    await following
    phases = [phase for phase, _, _ in seen]
    assert phases[:2] == ["queued", "queued"]
    assert seen[-1] == ("done", None, "success")
    assert "sending" in phases


async def test_a_reader_is_not_woken_by_places_that_did_not_change(clock: Clock, narrow: KieSession) -> None:
    await narrow.create(echo(0))
    handle, last = narrow.submit(echo(1)), narrow.submit(echo(2))
    seen: list[int | None] = []

    async def follow() -> None:
        async for _ in handle.updates():
            seen.append(handle.queue_position)  # noqa: PERF401  (it is read while it grows)

    following = asyncio.create_task(follow())
    await settle()
    assert last.withdraw()
    await clock.advance(2.0)
    assert seen == [0]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


# --- taken back -----------------------------------------------------------------------------------


async def test_what_is_queued_is_taken_back(narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(0))
    handle, after = narrow.submit(echo(1)), narrow.submit(echo(2))
    waiting, creating = asyncio.create_task(handle.result()), asyncio.create_task(handle.created())
    await settle()
    assert handle.withdraw()
    assert handle.withdraw(), "it is still so when asked again"
    for wait in (waiting, creating):
        with pytest.raises(Withdrawn, match="was withdrawn before it left; nothing is paid"):
            await wait
    assert (handle.phase, after.queue_position) == (TaskPhase.DONE, 0)
    first.abandon()
    await after.created()
    assert order_of(sandbox) == [0, 2]


async def test_one_whose_turn_has_come_is_taken_back_before_it_leaves(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    noted = asyncio.Event()
    kie = await open_session(journal=Notes(noted.wait))
    handle = kie.submit(echo(1))
    await eventually(lambda: handle.phase is TaskPhase.SENDING)
    await settle()
    assert handle.withdraw()
    noted.set()
    await inside.until_nothing_is_sent(kie)
    assert order_of(sandbox) == []
    assert inside.creating_count(kie) == 0
    assert inside.has_free_slot(kie)


async def test_what_waits_for_the_rate_limit_is_queued_still(open_session: OpenSession) -> None:
    kie = await open_session(limits=Limits(create=Rate(1, per_s=60.0)))
    await kie.create(echo(0))
    handle = kie.submit(echo(1))
    await settle()
    assert (handle.phase, handle.queue_position) == (TaskPhase.QUEUED, 0)


async def test_what_has_left_is_not_taken_back_and_goes_on(kie: KieSession, sandbox: Sandbox) -> None:
    sandbox.faults.create_answer_gate = gate = asyncio.Event()
    handle = kie.submit(echo())
    await eventually(lambda: sandbox.tasks)
    assert handle.phase is TaskPhase.SENDING
    assert not handle.withdraw()
    gate.set()
    assert await handle.created() is handle
    assert not handle.withdraw()


async def test_a_slot_and_a_place_in_line_come_back(narrow: KieSession, sandbox: Sandbox) -> None:
    for number in range(20):
        handle = narrow.submit(echo(number))
        await settle(number)
        if not handle.withdraw():
            await handle.created()
            handle.abandon()
    await asyncio.wait_for(narrow.create(echo(100)), 5)
    assert order_of(sandbox)[-1] == 100


async def test_a_withdrawn_ref_is_free(narrow: KieSession) -> None:
    first = await narrow.create(echo(0))
    handle = narrow.submit(echo(1, ref="a"))
    await settle()
    assert handle.withdraw()
    again = narrow.submit(echo(2, ref="a"))
    assert again is not handle
    first.abandon()
    assert (await again.created()).ref == "a"


# --- refs -----------------------------------------------------------------------------------------


async def test_the_same_ref_gives_the_same_handle(narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(0))
    handle = narrow.submit(echo(1, ref="a"))
    assert narrow.submit(echo(1, ref="a")) is handle
    first.abandon()
    await handle.created()
    assert narrow.submit(echo(1, ref="a")) is handle
    assert await narrow.create(echo(1, ref="a")) is handle
    assert order_of(sandbox) == [0, 1]


async def test_a_ref_with_other_content_is_a_conflict(narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(1, ref="a"))
    conflict = narrow.submit(echo(2, ref="a"))
    with pytest.raises(RefConflict):
        await asyncio.wait_for(conflict.created(), 5)
    with pytest.raises(RefConflict):
        await conflict
    assert not first.is_done


async def test_two_contents_of_one_ref_that_are_both_queued_are_a_conflict_for_the_second(
    narrow: KieSession, sandbox: Sandbox
) -> None:
    first = await narrow.create(echo(0))
    handle, conflict = narrow.submit(echo(1, ref="a")), narrow.submit(echo(2, ref="a"))
    first.abandon()
    await handle.created()
    with pytest.raises(RefConflict):
        await asyncio.wait_for(conflict.created(), 5)
    assert order_of(sandbox) == [0, 1]


async def test_what_a_former_run_made_is_known_before_its_turn_has_come(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db")
    running = await kie.create(echo(1, ref="running"))
    ended = await kie.create(echo(2, ref="ended"))
    sandbox.finish(ended.task_id)
    await ended
    await kie.aclose()

    kie = await open_session(journal=tmp_path / "run.db", max_in_flight=1)
    await kie.create(echo(0))
    again, over = kie.submit(echo(1, ref="running")), kie.submit(echo(2, ref="ended"))
    assert (await asyncio.wait_for(over, 5)).record.task_id == ended.task_id
    await asyncio.wait_for(again.created(), 5)
    assert again.task_id == running.task_id
    sandbox.finish(running.task_id)
    assert (await asyncio.wait_for(again, 5)).record.task_id == running.task_id
    assert len(sandbox.tasks) == 3


async def test_a_handle_that_shares_a_task_follows_it(
    kie: KieSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    face = tmp_path / "face.png"
    face.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    request = TaskRequest(model="sandbox/echo", input={"image": face}, ref="a")
    first = await kie.create(request)
    twin = kie.submit(request)  # its files would have to be read to know that it is the same
    await twin.created()
    assert twin.task_id == first.task_id
    sandbox.finish(first.task_id)
    assert (await twin).urls == (await first).urls
    assert len(sandbox.tasks) == 1


# --- how it ends ----------------------------------------------------------------------------------


async def test_nobody_need_await_it(kie: KieSession, sandbox: Sandbox) -> None:
    kie.submit(echo(5))
    gc.collect()
    await eventually(lambda: kie.stats().in_flight == 1)
    assert order_of(sandbox) == [5]


async def test_a_failure_that_nobody_asked_for_is_logged_once(
    kie: KieSession, caplog: pytest.LogCaptureFixture
) -> None:
    kie.submit("sandbox/no-such-model", {})
    await eventually(lambda: not kie.stats().queued and not inside.creating_count(kie))
    await settle()
    await kie.aclose()
    gc.collect()
    said = [record for record in caplog.records if "nobody awaited" in record.message]
    assert len(said) == 1


async def test_a_failure_that_somebody_asked_for_is_not_logged(
    kie: KieSession, caplog: pytest.LogCaptureFixture
) -> None:
    handle = kie.submit("sandbox/no-such-model", {})
    with pytest.raises(ApiError):
        await handle.created()
    with pytest.raises(ApiError):
        await handle
    del handle
    await kie.aclose()
    gc.collect()
    assert "nobody awaited" not in caplog.text


async def test_a_budget_that_is_spent_ends_it(open_session: OpenSession, sandbox: Sandbox) -> None:
    kie = await open_session(budget=Budget(tasks=1))
    first, second = kie.submit(echo(1)), kie.submit(echo(2))
    await first.created()
    with pytest.raises(BudgetExceeded):
        await second.created()
    with pytest.raises(BudgetExceeded):
        await second
    assert len(sandbox.tasks) == 1


async def test_an_unknown_create_is_unknown_until_it_is_adopted(
    open_session: OpenSession, sandbox: Sandbox, receiver: CallbackReceiver, served: ServedReceiver
) -> None:
    kie = await open_session(receiver=receiver, callback_url=served.url)
    sandbox.faults.lose_answers_next = 1
    handle = kie.submit(echo())
    with pytest.raises(CreateOutcomeUnknown) as raised:
        await handle.created()
    assert raised.value.handle is handle
    assert handle.phase is TaskPhase.UNKNOWN
    with pytest.raises(CreateOutcomeUnknown):
        await handle.created()
    assert not handle.withdraw()
    [task_id] = sandbox.tasks
    sandbox.finish(task_id)
    assert (await asyncio.wait_for(handle, 5)).record.task_id == task_id


async def test_one_that_is_abandoned_in_the_queue_is_sent_all_the_same(
    narrow: KieSession, sandbox: Sandbox, events: Events
) -> None:
    first = await narrow.create(echo(0))
    handle = narrow.submit(echo(1))
    handle.abandon()
    with pytest.raises(TaskAbandoned):
        await handle
    first.abandon()
    await eventually(lambda: len(sandbox.tasks) == 2)
    await eventually(lambda: narrow.stats().in_flight == 1)
    running = await next_running(narrow)
    sandbox.finish(running.task_id)
    await eventually(lambda: narrow.stats().in_flight == 0)
    assert inside.has_free_slot(narrow)


async def test_the_close_sends_nothing_that_waits_and_says_so_once(
    open_session: OpenSession, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    kie = await open_session(max_in_flight=1)
    await kie.create(echo(0))
    handles = [kie.submit(echo(n), lane=n % 3) for n in range(1, 60)]
    fresh = kie.submit(echo(99))
    waiting = asyncio.create_task(handles[-1].created())
    await settle()
    last = kie.submit(echo(100))
    await kie.aclose()
    for handle in (*handles, fresh, last):
        with pytest.raises(SessionMisuse, match="the session is closed"):
            await handle
        assert (handle.phase, handle.queue_position) == (TaskPhase.DONE, None)
        assert not handle.withdraw()
    with pytest.raises(SessionMisuse):
        await waiting
    assert order_of(sandbox) == [0]
    del handles, fresh, last, handle
    gc.collect()
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in said if "queued" in line] == [
        "the session closed with 61 handles queued; nothing was sent for them"
    ]
    assert not [line for line in said if "nobody awaited" in line]


async def test_the_close_waits_for_what_has_left(open_session: OpenSession, sandbox: Sandbox) -> None:
    kie = await open_session()
    sandbox.faults.create_answer_gate = gate = asyncio.Event()
    handle = kie.submit(echo())
    await eventually(lambda: sandbox.tasks)
    closing = asyncio.create_task(kie.aclose())
    await settle()
    gate.set()
    await closing
    assert handle.task_id == next(iter(sandbox.tasks))


async def test_a_cancelled_wait_takes_nothing_back(narrow: KieSession, sandbox: Sandbox) -> None:
    first = await narrow.create(echo(0))
    handle = narrow.submit(echo(1))
    waiting = asyncio.create_task(handle.created())
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.abandon()
    await handle.created()
    assert order_of(sandbox) == [0, 1]


# --- fairness -------------------------------------------------------------------------------------
