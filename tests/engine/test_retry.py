"""A ref whose task failed, or whose create was refused, gets a new attempt: the first keeps its record.

The ref passes on in the step in which the new body leaves, and comes back if that surely created nothing.
Everything is in virtual time on a model of the service.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import time_passes
from support.clock import Clock
from support.journals import as_left_by_a_crash, opened
from support.model_client import MOUNT, ModelClient, tail_of
from support.model_service import ModelService, ServiceTask
from support.slow_journals import CommitGate, SlowCommits, SteadySqliteJournal
from support.tables import each

from kie_async import (
    ApiError,
    Budget,
    CreateOutcomeUnknown,
    KieError,
    RefConflict,
    TaskFailed,
    TaskHandle,
    TaskResult,
)
from kie_async.journal.intents import Intent, IntentState
from kie_async.journal.memory import MemoryJournal
from kie_async.limits.circuit_breaker import UNKNOWN_IN_A_ROW

FAILED, REFUSED = "fail", "500"
"""What became of the first attempt."""


@attrs.define
class Case:
    """A ref whose first attempt came to nothing, and its session."""

    path: Path
    service: ModelService
    client: ModelClient
    first_id: str

    async def retry(self, prompt: str = "a", attempted: set[str] | None = None) -> Any:
        """Return the handle of the new attempt, or what it ended in."""
        return (await asyncio.gather(self.start(prompt, attempted), return_exceptions=True))[0]

    def start(self, prompt: str = "a", attempted: set[str] | None = None) -> asyncio.Task[TaskHandle]:
        work = self.client.create(prompt, ref="a", attempted=set() if attempted is None else attempted)
        return asyncio.create_task(work)

    @property
    def tasks(self) -> list[ServiceTask]:
        return list(self.service.tasks.values())

    def make_ghost(self) -> ServiceTask:
        """Let the refused first attempt be a task all the same, which its callback is yet to say."""
        task = self.service._make("a", self.first_id, f"{MOUNT}/{tail_of(self.first_id)}")
        self.service.finish(task)
        return task

    async def rows(self) -> dict[str, Intent]:
        journal = self.client.engine.journal
        return {intent.intent_id: intent for intent in await journal.list_intents()}

    async def holder(self) -> Intent:
        found = await self.client.engine.journal.find_by_ref("a")
        assert found is not None
        return found


@asynccontextmanager
async def tried(path: Path, how: str = FAILED, **options: Any) -> AsyncIterator[Case]:
    path.mkdir(exist_ok=True)  # noqa: ASYNC240
    service = ModelService(random.Random(0))
    service.is_bad, service.lasts_s = False, 1.0
    gate = CommitGate(SlowCommits(random.Random(0)))
    journal = options.pop("journal", None) or SteadySqliteJournal(path / "run.db", gate)
    with time_passes():
        client = ModelClient(service, journal, gate, **options)
        await client.open()
        try:
            if how is REFUSED:
                service.create_fates = ["500"]
                with pytest.raises(ApiError):
                    await client.create("a", ref="a")
            else:
                handle = await client.create("a", ref="a")
                service.tasks[handle.task_id].end = "fail"
                with pytest.raises(TaskFailed):
                    await handle
            yield Case(path / "run.db", service, client, service.bodies[0][0])
        finally:
            await client.kie.aclose()


STATES = {FAILED: IntentState.FAILED, REFUSED: IntentState.REJECTED}


@pytest.mark.parametrize("how", STATES)
async def test_the_new_attempt_has_the_ref_and_the_first_keeps_its_record(
    how: str, clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path, how) as case:
        before = (await case.rows())[case.first_id]
        second = await case.retry()
        case.service.finish(case.tasks[-1])
        assert isinstance(await second, TaskResult)
        after = await case.rows()
        first = after[case.first_id]
        assert first == attrs.evolve(before, ref=None, former_ref="a")
        assert (after[second.intent_id].ref, after[second.intent_id].replaces) == ("a", case.first_id)
        assert (await case.client.create("a", ref="a")).task_id == second.task_id
        assert len(case.service.bodies) == 2


async def test_credits_of_all_attempts_count(clock: Clock, tmp_path: Path) -> None:
    async with tried(tmp_path, budget=Budget(tasks=10)) as case:
        spent = [attrs.evolve((await case.rows())[case.first_id]).credits or 0.0]
        handle = await case.retry()
        case.service.finish(case.tasks[-1])
        spent.append((await handle).record.credits)
        totals = await case.client.engine.journal.load_totals()
        assert (totals.tasks, totals.settled, totals.credits) == (2, 2, sum(spent))
        ledger = case.client.engine.ledger
        assert (ledger.tasks, ledger.spent) == (2, sum(spent))


@pytest.mark.parametrize("how", STATES)
async def test_changed_content_is_a_new_attempt_and_without_retry_a_conflict(
    how: str, clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path, how) as case:
        with pytest.raises(RefConflict):
            await case.client.create("b", ref="a")
        handle = await case.retry("b")
        assert [prompt for _, prompt, _ in case.service.bodies] == ["a", "b"]
        assert (await case.client.create("b", ref="a")).task_id == handle.task_id


@pytest.mark.parametrize("how", STATES)
async def test_what_keeps_the_new_body_back_gives_the_ref_back(
    how: str, clock: Clock, tmp_path: Path
) -> None:
    async def halted(case: Case) -> None:
        case.service.create_fates = ["lost, not created"] * UNKNOWN_IN_A_ROW
        for number in range(UNKNOWN_IN_A_ROW):
            await asyncio.gather(case.client.create(f"x{number}"), return_exceptions=True)

    async def over_budget(case: Case) -> None:
        await asyncio.gather(*(case.client.create(f"x{n}") for n in range(2)), return_exceptions=True)

    async def refused(case: Case) -> None:
        case.service.create_fates = ["422"]

    async def limited(case: Case) -> None:
        case.service.create_fates = ["429"] * 10_000

    async def never_connected(case: Case) -> None:
        case.service.connect_fates = ["no connection"] * 50

    async def check(keep_back: Any) -> None:
        budget = Budget(tasks=2) if keep_back is over_budget else None
        async with tried(tmp_path / keep_back.__name__, how, budget=budget) as case:
            await keep_back(case)
            tasks = len(case.tasks)
            outcome = await case.retry()
            assert isinstance(outcome, KieError), outcome
            assert not isinstance(outcome, CreateOutcomeUnknown)
            assert len(case.tasks) == tasks
            holder = await case.holder()
            assert (holder.intent_id, holder.state) == (case.first_id, STATES[how])
            case.service.create_fates, case.service.connect_fates = [], []
            if keep_back not in {halted, over_budget}:
                assert isinstance(await case.retry(), TaskHandle)

    await each([halted, over_budget, refused, limited, never_connected], check)


@pytest.mark.parametrize("how", STATES)
async def test_a_retry_cancelled_at_any_turn_sends_one_body_or_changes_nothing(
    how: str, clock: Clock, tmp_path: Path
) -> None:
    async def check(number: int) -> None:
        async with tried(tmp_path / f"{number}", how) as case:
            retrying = case.start()
            await asyncio.sleep(number * 0.01)
            retrying.cancel()
            await asyncio.gather(retrying, return_exceptions=True)
            await asyncio.sleep(5.0)
            rows, sent = await case.rows(), len(case.service.bodies)
            assert rows[case.first_id].state is STATES[how]
            assert (rows[case.first_id].ref is None) == (sent == 2)
            await asyncio.gather(case.client.create("a", ref="a"), return_exceptions=True)
            assert len(case.service.bodies) == sent

    await each(range(24), check)


@pytest.mark.parametrize("state", ["running", "unknown", "written off", "done"])
async def test_what_may_be_paid_or_is_done_gets_no_second_attempt(
    state: str, clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path) as case:
        case.service.lasts_s = 1000.0 if state == "running" else 1.0
        case.service.create_fates = ["created" if state in {"running", "done"} else "lost"]
        made = await case.retry()
        if state == "done":
            case.service.finish(case.tasks[-1])
            await made
        if state == "written off":
            made.handle.write_off()
            await asyncio.sleep(1.0)
        again = await case.retry()
        assert len(case.service.bodies) == 2
        if state in {"running", "done"}:
            assert again.task_id == made.task_id
        else:
            assert isinstance(again, CreateOutcomeUnknown)


@pytest.mark.parametrize("how", STATES)
async def test_two_retries_of_one_ref_at_once_are_one_attempt(how: str, clock: Clock, tmp_path: Path) -> None:
    async with tried(tmp_path, how) as case:
        attempted = set[str]()
        both = await asyncio.gather(*(case.start(attempted=attempted) for _ in range(2)))
        assert both[0].task_id == both[1].task_id
        assert len(case.service.bodies) == 2


async def test_an_attempt_that_fails_again_is_not_tried_a_third_time_in_one_batch(
    clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path) as case:
        attempted = set[str]()
        second = await case.retry(attempted=attempted)
        case.tasks[-1].end = "fail"
        with pytest.raises(TaskFailed):
            await second
        again = await case.retry(attempted=attempted)
        assert again.task_id == second.task_id
        assert len(case.service.bodies) == 2
        assert (await case.retry()).task_id != second.task_id  # another batch
        rows = await case.rows()
        assert [row.ref or row.former_ref for row in rows.values()] == ["a"] * 3


@pytest.mark.parametrize("how", STATES)
async def test_a_crash_between_commit_and_send_leaves_the_ref_with_the_new_attempt(
    how: str, clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path, how) as case:
        before = (await case.rows())[case.first_id]
        case.service.answer_gate = asyncio.Event()
        retrying = case.start()
        await asyncio.sleep(1.0)
        left = as_left_by_a_crash(case.path, tmp_path / "crashed")
        case.service.answer_gate.set()
        await retrying
    async with opened(left) as journal:
        holder = await journal.find_by_ref("a")
        rows = {row.intent_id: row for row in await journal.list_intents()}
    assert holder is not None
    assert (holder.state, holder.replaces) == (IntentState.UNKNOWN, case.first_id)
    assert rows[case.first_id] == attrs.evolve(before, ref=None, former_ref="a")


async def test_late_callbacks_of_the_first_attempt_are_duplicates_as_before(
    clock: Clock, tmp_path: Path
) -> None:
    async def check(number: int) -> None:
        async with tried(tmp_path / f"{number}") as case:
            retrying = case.start()
            await asyncio.sleep(number * 0.02)
            assert (await case.client.call_back(case.tasks[0])).status == 200
            second = await retrying
            assert (await case.client.call_back(case.tasks[0])).status == 200
            case.service.finish(case.tasks[-1])
            assert (await second).task_id == second.task_id
            assert len(case.service.bodies) == 2

    await each(range(12), check)


@pytest.mark.parametrize("when", ["while the body is on the wire", "when the second has ended"])
async def test_a_refused_first_attempt_that_is_a_task_is_a_ghost_and_the_ref_stays(
    when: str, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with tried(tmp_path, REFUSED) as case:
        if when == "when the second has ended":
            second = await case.retry()
            case.service.finish(case.tasks[-1])
            await second
            ghost = case.make_ghost()
            assert (await case.client.call_back(ghost)).status == 200
        else:
            case.service.answer_gate = asyncio.Event()
            retrying = case.start()
            await asyncio.sleep(1.0)
            ghost = case.make_ghost()
            assert (await case.client.call_back(ghost)).status == 200
            await asyncio.sleep(10.0)
            case.service.answer_gate.set()
            second = await retrying
            assert (await case.client.create("a", ref="a")).task_id == second.task_id
        await asyncio.sleep(120.0)
        rows = await case.rows()
        assert (rows[ghost.intent_id].state, rows[ghost.intent_id].ref) == (IntentState.SUCCEEDED, None)
        assert (await case.holder()).intent_id == second.intent_id
        assert case.client.kie.stats().ghost_creates == 1
        assert f"task {ghost.task_id} exists although its create was refused" in caplog.text


async def test_the_ref_of_a_ghost_in_flight_is_that_of_the_second(clock: Clock, tmp_path: Path) -> None:
    async with tried(tmp_path, REFUSED) as case:
        second = await case.retry()
        case.service.finish(case.tasks[-1])
        await second
        ghost = case.make_ghost()
        ghost.ends_at += 1000.0
        await case.client.call_back(ghost)
        await asyncio.sleep(10.0)
        assert case.client.engine.tracker.registry.by_task(ghost.task_id) is not None
        assert (await case.client.create("a", ref="a")).task_id == second.task_id


async def test_a_ghost_that_shows_before_the_body_leaves_keeps_it_back_and_is_the_answer(
    clock: Clock, tmp_path: Path
) -> None:
    """The claim comes at each step of some milliseconds; what it is too late for is a ghost."""
    kept = []

    async def check(number: int) -> None:
        async with tried(tmp_path / f"{number}", REFUSED, max_in_flight=1) as case:
            other = await case.client.create("x")  # has the only slot
            ghost = case.make_ghost()
            retrying = case.start()
            calling = asyncio.create_task(case.client.call_back(ghost))
            await asyncio.sleep(number * 0.02)
            case.service.finish(case.service.tasks[other.task_id])
            outcome = (await asyncio.gather(retrying, return_exceptions=True))[0]
            assert (await calling).status == 200
            await asyncio.sleep(120.0)
            bodies = [prompt for _, prompt, _ in case.service.bodies].count("a")
            if bodies == 1:
                kept.append(number)
                again = await case.client.create("a", ref="a")
                assert again.task_id == ghost.task_id
                assert isinstance(outcome, KieError) or outcome.task_id == ghost.task_id
            else:
                assert (await case.holder()).intent_id == outcome.intent_id
            assert (await case.rows())[ghost.intent_id].task_id == ghost.task_id

    await each(range(12), check)
    assert kept


async def test_a_ghost_that_is_adopted_while_the_new_attempt_waits_for_a_slot_is_its_handle(
    clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path, REFUSED, max_in_flight=1) as case:
        case.service.lasts_s = 60.0
        await case.client.create("x")  # has the only slot
        retrying = case.start()
        await asyncio.sleep(1.0)
        ghost = case.make_ghost()
        assert (await case.client.call_back(ghost)).status == 200
        handle = await retrying
        assert handle.task_id == ghost.task_id
        assert isinstance(await handle, TaskResult)
        assert [prompt for _, prompt, _ in case.service.bodies] == ["a", "x"]


async def test_a_refusal_of_which_a_callback_names_a_task_is_not_tried_anew(
    clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path, REFUSED) as case:
        ghost = case.make_ghost()
        case.service.query_fates = ["500"] * 3
        assert (await case.client.call_back(ghost)).status == 200
        assert isinstance(await case.retry(), ApiError)
        assert len(case.service.bodies) == 1


@pytest.mark.parametrize("how", STATES)
async def test_in_memory_a_failed_ref_is_free_and_a_refused_one_is_passed_on(
    how: str, clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path, how, journal=MemoryJournal()) as case:
        case.service.create_fates = ["422"]
        assert isinstance(await case.retry(), ApiError)
        found = await case.client.engine.journal.find_by_ref("a")
        assert (found is None) == (how is FAILED)
        second = await case.retry()
        assert (await case.client.create("a", ref="a")).task_id == second.task_id
        assert len(case.service.bodies) == 3


async def test_a_failed_task_asked_for_by_its_ref_says_how_to_make_it_again(
    clock: Clock, tmp_path: Path
) -> None:
    async with tried(tmp_path) as case:
        handle = await case.client.create("a", ref="a")
        with pytest.raises(
            TaskFailed, match=r"; a new ref, or kie.batch\(..., retry_failed=True\), makes it"
        ):
            await handle
        second = await case.retry()
        case.tasks[-1].end = "fail"
        with pytest.raises(TaskFailed) as caught:
            await second
        assert "makes it again" not in str(caught.value)
