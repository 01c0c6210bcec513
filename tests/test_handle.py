"""A handle is a claim on one task: awaited by many, at any time, and made again from its id."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import traceback
from pathlib import Path

import pytest
from conftest import Events, OpenSession
from support.clock import Clock, eventually, settle

from kie_async import (
    CreateOutcomeUnknown,
    InvalidRequest,
    KieSession,
    ResultUnreadable,
    Sandbox,
    SessionMisuse,
    TaskAbandoned,
    TaskFailed,
    TaskHandle,
    TaskRequest,
    TaskState,
    TaskTimedOut,
)

POLL_S = 0.1
"""Long enough for a poll to leave and its answer to come."""


@pytest.fixture
async def handle(clock: Clock, kie: KieSession) -> TaskHandle:
    """Return the handle of a task that ends when the test says so."""
    return await kie.create("sandbox/echo", {})


async def fail(handle: TaskHandle, sandbox: Sandbox, clock: Clock) -> None:
    sandbox.finish(handle.task_id, "fail", fail_code="422", fail_msg="face not found")
    await clock.advance(POLL_S)


async def succeed(handle: TaskHandle, sandbox: Sandbox, clock: Clock) -> None:
    sandbox.finish(handle.task_id)
    await clock.advance(POLL_S)


async def states_of(handle: TaskHandle) -> list[TaskState]:
    return [record.state async for record in handle.updates()]


class TestAwaiting:
    async def test_awaiting_yields_the_result_the_service_holds(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await succeed(handle, sandbox, clock)

        result = await handle

        assert result.task_id == handle.task_id
        assert list(result.urls) == sandbox.tasks[handle.task_id].result["resultUrls"]

    async def test_many_may_await_before_it_settles(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        awaiters = [asyncio.create_task(handle.result()) for _ in range(100)]
        await settle()

        await succeed(handle, sandbox, clock)

        assert {await awaiter for awaiter in awaiters} == {await handle}

    async def test_awaiting_after_it_settled_returns_at_once(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await succeed(handle, sandbox, clock)

        assert (await handle) is (await handle)

    async def test_it_can_be_gathered_with_others(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handles = [await kie.create("sandbox/echo", {}) for _ in range(3)]
        for handle in handles:
            sandbox.finish(handle.task_id)

        gathering = asyncio.gather(*handles)
        await clock.advance(POLL_S)

        assert [result.task_id for result in await gathering] == list(sandbox.tasks)

    async def test_a_cancelled_awaiter_takes_nothing_from_the_others(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        first, second, third = (asyncio.create_task(handle.result()) for _ in range(3))
        await settle()

        second.cancel()
        await succeed(handle, sandbox, clock)

        assert (await first) is (await third)
        with pytest.raises(asyncio.CancelledError):
            await second

    async def test_an_awaiter_cancelled_in_the_moment_it_settles_takes_nothing_either(
        self, handle: TaskHandle
    ) -> None:
        first, second = (asyncio.create_task(handle.result()) for _ in range(2))
        await settle()

        first.cancel()
        handle.abandon()

        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(TaskAbandoned):
            await second

    async def test_an_awaiter_cancelled_right_after_it_settled_takes_nothing_either(
        self, handle: TaskHandle
    ) -> None:
        first, second = (asyncio.create_task(handle.result()) for _ in range(2))
        await settle()

        handle.abandon()
        first.cancel()

        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(TaskAbandoned):
            await second

    async def test_cancelled_awaiters_do_not_pile_up(self, handle: TaskHandle) -> None:
        steady = asyncio.create_task(handle.result())
        for _ in range(100):
            awaiter = asyncio.create_task(handle.result())
            await asyncio.sleep(0)
            awaiter.cancel()
            await asyncio.sleep(0)

        assert len(handle._awaiters) < 4
        handle.abandon()
        with pytest.raises(TaskAbandoned):
            await steady

    async def test_an_error_is_each_awaiters_own(self, handle: TaskHandle) -> None:
        awaiters = [asyncio.create_task(handle.result()) for _ in range(2)]
        await asyncio.sleep(0)
        handle.abandon()

        first, second = await asyncio.gather(*awaiters, return_exceptions=True)

        assert first is not second
        assert isinstance(first, TaskAbandoned)
        assert isinstance(second, TaskAbandoned)
        assert first.args == second.args

    async def test_awaiting_in_another_event_loop_is_refused_in_words(
        self, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {})

        with pytest.raises(SessionMisuse, match="another event loop"):
            await asyncio.to_thread(asyncio.run, handle.result())

    async def test_a_settled_handle_answers_in_any_event_loop(
        self, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        result = await handle

        assert await asyncio.to_thread(asyncio.run, handle.result()) is result


class TestTimeouts:
    async def test_a_bounded_wait_ends_and_the_handle_lives_on(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        waiting = asyncio.create_task(handle.result(timeout_s=5.0))
        await clock.advance(5.1)

        with pytest.raises(TaskTimedOut) as caught:
            await waiting
        assert caught.value.task_id == handle.task_id
        assert not handle.is_done

        await succeed(handle, sandbox, clock)
        assert await handle

    async def test_a_bounded_wait_that_is_long_enough_yields_the_result(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        waiting = asyncio.create_task(handle.result(timeout_s=5.0))

        await succeed(handle, sandbox, clock)

        assert await waiting

    async def test_a_wait_that_times_out_in_the_moment_the_handle_settles_tells_how_it_settled(
        self, clock: Clock, handle: TaskHandle
    ) -> None:
        waiting = asyncio.create_task(handle.result(timeout_s=5.0))
        await settle()
        asyncio.get_running_loop().call_at(clock.now + 5.0, handle.abandon)

        await clock.advance(5.1)

        with pytest.raises(TaskAbandoned):
            await waiting

    async def test_a_wait_for_the_result_can_time_out_like_any_other(self, handle: TaskHandle) -> None:
        with pytest.raises(TimeoutError):
            await handle.result(timeout_s=0)

    async def test_at_its_deadline_a_handle_settles_with_the_id_and_the_last_record(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {}, timeout_s=10.0)
        sandbox.start_generating(handle.task_id)
        waiting = asyncio.create_task(handle.result())
        assert handle.deadline == clock.now + 10.0

        await clock.advance(10.1)

        with pytest.raises(TaskTimedOut) as caught:
            await waiting
        assert caught.value.task_id == handle.task_id
        assert caught.value.record.state is TaskState.GENERATING
        assert handle.is_done

    async def test_after_its_deadline_a_task_can_be_attached_again(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create("sandbox/echo", {}, timeout_s=1.0)
        await clock.advance(1.1)
        sandbox.finish(handle.task_id)

        again = kie.attach(handle.task_id)
        await clock.advance(POLL_S)

        assert again is not handle
        assert (await again).task_id == handle.task_id

    async def test_the_sessions_timeout_is_the_default(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(task_timeout_s=7.0)

        handle = await kie.create("sandbox/echo", {})

        assert handle.deadline == clock.now + 7.0

    async def test_a_timeout_may_be_endless(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(task_timeout_s=float("inf"))
        handle = await kie.create("sandbox/echo", {})
        await clock.advance(5.0)

        await succeed(handle, sandbox, clock)

        assert await handle


class TestFailures:
    async def test_a_failed_task_raises_with_its_record(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await fail(handle, sandbox, clock)

        with pytest.raises(TaskFailed, match=r"face not found \(422\)") as caught:
            await handle
        assert caught.value.task_id == handle.task_id
        assert caught.value.record.fail_code == "422"

    async def test_a_success_without_a_result_raises_with_its_record(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        sandbox.faults.empty_result_rate = 1.0
        await succeed(handle, sandbox, clock)

        with pytest.raises(ResultUnreadable) as caught:
            await handle
        assert caught.value.record.raw["taskId"] == handle.task_id

    async def test_each_awaiter_gets_a_clean_traceback(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await fail(handle, sandbox, clock)
        lengths = set()
        for _ in range(3):
            with pytest.raises(TaskFailed) as caught:
                await handle
            lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))

        assert len(lengths) == 1

    async def test_an_awaiter_is_spared_another_ones_troubles(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await fail(handle, sandbox, clock)
        try:
            raise LookupError("trouble of the first awaiter")
        except LookupError:
            with pytest.raises(TaskFailed):
                await handle

        with pytest.raises(TaskFailed) as caught:
            await handle
        assert caught.value.__context__ is None

    async def test_a_failure_nobody_awaited_is_logged_once_and_makes_no_noise(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        await fail(handle, sandbox, clock)
        del handle
        gc.collect()

        warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert "nobody awaited" in warnings[0]
        assert "face not found" in warnings[0]

    async def test_a_failure_that_was_awaited_is_not_logged(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        await fail(handle, sandbox, clock)
        with pytest.raises(TaskFailed):
            await handle
        del handle
        gc.collect()

        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    async def test_a_failure_that_was_read_from_its_updates_is_not_logged(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        await fail(handle, sandbox, clock)
        assert await states_of(handle) == [TaskState.FAIL]
        del handle
        gc.collect()

        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    async def test_an_abandoned_handle_is_not_complained_about(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        handle = await kie.create("sandbox/echo", {})
        handle.abandon()
        del handle
        gc.collect()

        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


class TestUpdates:
    async def test_they_show_each_change_and_end_with_the_result(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        reading = asyncio.create_task(states_of(handle))
        await clock.advance(POLL_S)
        sandbox.start_generating(handle.task_id)
        await clock.advance(POLL_S)
        await succeed(handle, sandbox, clock)

        assert await reading == [TaskState.WAITING, TaskState.GENERATING, TaskState.SUCCESS]

    async def test_polls_that_bring_no_change_show_nothing(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        updates = handle.updates()
        await clock.advance(POLL_S)
        assert await anext(updates)

        waiting = asyncio.ensure_future(anext(updates))
        await clock.advance(10 * POLL_S)

        assert sandbox.counts["query"] > 5
        assert not waiting.done()
        waiting.cancel()

    async def test_a_slow_reader_sees_the_newest_not_all(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await clock.advance(POLL_S)
        sandbox.start_generating(handle.task_id)
        await clock.advance(POLL_S)
        await succeed(handle, sandbox, clock)

        assert await states_of(handle) == [TaskState.SUCCESS]

    async def test_a_failure_ends_them_without_raising(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await fail(handle, sandbox, clock)

        assert await states_of(handle) == [TaskState.FAIL]

    async def test_a_wait_that_ends_without_an_end_of_the_task_raises(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        updates = handle.updates()
        await clock.advance(POLL_S)
        assert (await anext(updates)).state is TaskState.WAITING

        waiting = asyncio.ensure_future(anext(updates))
        await settle()
        handle.abandon()

        with pytest.raises(TaskAbandoned):
            await waiting

    async def test_a_reader_that_leaves_takes_nothing_from_others(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        readers = [asyncio.ensure_future(anext(handle.updates())) for _ in range(2)]
        await settle()

        readers[0].cancel()
        await clock.advance(POLL_S)

        assert (await readers[1]).state is TaskState.WAITING

    async def test_many_readers_may_leave_the_newest_first(self, handle: TaskHandle) -> None:
        readers = [asyncio.ensure_future(anext(handle.updates())) for _ in range(20_000)]
        await settle()
        begun_at = time.process_time()
        for reader in reversed(readers):
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert time.process_time() - begun_at < 2.0

    async def test_a_stale_answer_moves_nothing_back(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        waiting = b'{"code":200,"data":{"taskId":"%s","state":"waiting"}}' % handle.task_id.encode()
        sandbox.start_generating(handle.task_id)
        await clock.advance(POLL_S)

        sandbox.faults.query_answers_next = [(200, waiting)] * 3
        await clock.advance(POLL_S)

        assert handle.state is TaskState.GENERATING
        assert handle.record.state is TaskState.GENERATING
        assert [(await anext(handle.updates())).state] == [TaskState.GENERATING]


class TestAbandoning:
    async def test_awaiters_get_it(self, handle: TaskHandle) -> None:
        awaiter = asyncio.create_task(handle.result())
        await settle()

        handle.abandon()

        with pytest.raises(TaskAbandoned, match=handle.task_id):
            await awaiter

    async def test_it_frees_the_slot(self, clock: Clock, sandbox: Sandbox, open_session: OpenSession) -> None:
        kie = await open_session(max_in_flight=1)
        handle = await kie.create("sandbox/echo", {})
        waiting = asyncio.create_task(kie.create("sandbox/echo", {}))
        await settle()
        assert len(sandbox.tasks) == 1

        handle.abandon()
        await waiting

        assert len(sandbox.tasks) == 2

    async def test_the_task_is_not_polled_any_more_and_goes_on(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        handle.abandon()
        before = sandbox.counts["query"]

        await clock.advance(60.0)

        assert sandbox.counts["query"] == before
        assert sandbox.tasks[handle.task_id].end_state is None

    async def test_while_the_end_of_the_task_is_being_noted_it_settles_once(
        self, sandbox: Sandbox, open_session: OpenSession, events: Events, tmp_path: Path
    ) -> None:
        kie = await open_session(journal=tmp_path / "run.db", on_event=events)
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        await eventually(lambda: handle.is_settling)
        assert not handle.is_done

        handle.abandon()
        await asyncio.sleep(0.2)

        assert events.kinds().count("settled") == 1
        handle.mark_retrieved()

    async def test_of_two_ends_the_first_counts(self, handle: TaskHandle) -> None:
        handle.abandon()

        handle.settle(TaskTimedOut(handle.task_id))

        with pytest.raises(TaskAbandoned):
            await handle

    async def test_a_settled_handle_cannot_be_abandoned(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        await succeed(handle, sandbox, clock)

        handle.abandon()

        assert await handle


class TestWhatItShows:
    async def test_what_was_asked_for_and_the_callers_key(self, kie: KieSession) -> None:
        request = TaskRequest(model="sandbox/echo", input={"prompt": "hi"}, ref="row-7")

        handle = await kie.create(request)

        assert handle.request == request
        assert handle.ref == "row-7"

    async def test_an_attached_handle_holds_no_request(self, kie: KieSession) -> None:
        handle = kie.attach("task_1")

        assert handle.request is None
        assert handle.ref is None

    async def test_the_state_moves_on_with_the_records(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        seen = [handle.state]
        sandbox.start_generating(handle.task_id)
        await clock.advance(POLL_S)
        seen.append(handle.state)
        await succeed(handle, sandbox, clock)
        seen.append(handle.state)

        assert seen == [TaskState.WAITING, TaskState.GENERATING, TaskState.SUCCESS]
        assert handle.record.state is TaskState.SUCCESS

    async def test_a_task_of_which_nothing_was_observed_yet_is_waiting_and_a_lost_create_unknown(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        created, attached = await kie.create("sandbox/echo", {}), kie.attach("task_1")
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown) as lost:
            await kie.create("sandbox/echo", {})
        unknown = lost.value.handle
        assert unknown is not None

        assert [str(handle.state) for handle in (created, attached, unknown)] == [
            "waiting",
            "waiting",
            "unknown",
        ]
        await unknown.resolve(list(sandbox.tasks)[-1])
        assert unknown.state is TaskState.WAITING

    async def test_its_repr_names_task_and_state(
        self, clock: Clock, sandbox: Sandbox, handle: TaskHandle
    ) -> None:
        assert repr(handle) == f"<TaskHandle {handle.task_id} waiting>"

        await succeed(handle, sandbox, clock)

        assert repr(handle) == f"<TaskHandle {handle.task_id} success done>"

    @pytest.mark.parametrize("action", ["resolve", "write_off", "resubmit"])
    async def test_what_became_of_it_can_be_told_only_while_that_is_unknown(
        self, handle: TaskHandle, action: str
    ) -> None:
        async def act() -> None:
            if action == "resolve":
                await handle.resolve("task_1")
            elif action == "write_off":
                handle.write_off()
            else:
                await handle.resubmit(accept_double_charge=True)

        with pytest.raises(InvalidRequest, match="unknown"):
            await act()


async def test_a_thousand_handles_cost_no_task_and_no_timer_each(
    clock: Clock, sandbox: Sandbox, kie: KieSession
) -> None:
    loop = asyncio.get_running_loop()
    tasks, timers = len(asyncio.all_tasks()), len(loop._scheduled)

    handles = [kie.attach(f"task_{number}") for number in range(1000)]

    assert len(asyncio.all_tasks()) == tasks
    assert sum(not timer.cancelled() for timer in loop._scheduled) <= timers + 1
    assert len(handles) == 1000
