"""A create is written off in the step in which its successor leaves, or not at all; and it stays adoptable.

Whatever keeps the second body back, the first create is as unknown as before; whatever happens after, its
callback is welcome. Everything is in virtual time on a model of the service.
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
from support.journals import opened
from support.model_client import ModelClient
from support.model_service import ModelService, ServiceTask
from support.slow_journals import CommitGate, SlowCommits, SteadySqliteJournal
from support.tables import each

from kie_async import Budget, CreateOutcomeUnknown, InvalidRequest, KieError, TaskHandle
from kie_async.journal.intents import Intent, IntentState
from kie_async.limits.circuit_breaker import UNKNOWN_IN_A_ROW


@attrs.define
class Case:
    """An unknown create, of which a task exists, and its session."""

    path: Path
    service: ModelService
    client: ModelClient
    handle: TaskHandle
    first: ServiceTask

    async def resubmit(self) -> Any:
        """Return the handle of the second create, or what it ended in."""
        return (await asyncio.gather(self.start(), return_exceptions=True))[0]

    def start(self) -> asyncio.Task[TaskHandle]:
        return asyncio.create_task(self.handle.resubmit(accept_double_charge=True))

    async def find(self, intent_id: str) -> Intent:
        async with opened(self.path) as journal:
            (found,) = [i for i in await journal.list_intents() if i.intent_id == intent_id]
            return found

    async def check_first_is_adopted(self) -> None:
        """Let the callback of the first create come; its end is noted, and nothing more is sent."""
        sent = len(self.service.bodies)
        assert (await self.client.call_back(self.first)).status == 200
        await asyncio.sleep(120.0)
        await asyncio.gather(self.client.create("a", ref="a"), return_exceptions=True)
        await self.client.kie.aclose()
        found = await self.find(self.first.intent_id)
        assert (found.state, found.task_id) == (IntentState.SUCCEEDED, self.first.task_id)
        assert len(self.service.bodies) == sent


@asynccontextmanager
async def unknown(path: Path, **options: Any) -> AsyncIterator[Case]:
    path.mkdir()  # noqa: ASYNC240
    service = ModelService(random.Random(0))
    service.is_bad, service.lasts_s = False, 1.0
    gate = CommitGate(SlowCommits(random.Random(0)))
    with time_passes():
        client = ModelClient(service, SteadySqliteJournal(path / "run.db", gate), gate, **options)
        await client.open()
        try:
            service.create_fates = ["lost"]
            with pytest.raises(CreateOutcomeUnknown) as caught:
                await client.create("a", ref="a")
            (first,) = service.tasks.values()
            service.finish(first)
            assert caught.value.handle is not None
            yield Case(path / "run.db", service, client, caught.value.handle, first)
        finally:
            await client.kie.aclose()


async def test_what_keeps_the_second_body_back_leaves_the_first_create_unknown(
    clock: Clock, tmp_path: Path
) -> None:
    async def halted(case: Case) -> None:
        case.service.create_fates = ["lost, not created"] * UNKNOWN_IN_A_ROW
        for number in range(UNKNOWN_IN_A_ROW):
            await asyncio.gather(case.client.create(f"x{number}"), return_exceptions=True)

    async def over_budget(case: Case) -> None:
        """Nothing is left: the budget is of one task."""

    async def closing(case: Case) -> None:
        asyncio.create_task(case.client.kie.aclose())  # noqa: RUF006
        await asyncio.sleep(0)

    async def refused(case: Case) -> None:
        case.service.create_fates = ["422"]

    async def never_connected(case: Case) -> None:
        case.service.connect_fates = ["no connection"] * 50

    async def failing_disk(case: Case) -> None:
        async def fail(*_: Any, **__: Any) -> None:
            raise KieError("the disk is full")

        case.client.engine.calls.journal.mark_sending = fail

    async def check(keep_back: Any) -> None:
        budget = Budget(tasks=1) if keep_back is over_budget else None
        async with unknown(tmp_path / keep_back.__name__, budget=budget) as case:
            await keep_back(case)
            bodies = len(case.service.bodies)
            outcome = await case.resubmit()
            assert isinstance(outcome, KieError), outcome
            assert not isinstance(outcome, CreateOutcomeUnknown)
            assert len(case.service.bodies) == bodies + (keep_back is refused)
            if keep_back is closing:
                await asyncio.sleep(20.0)
                assert (await case.find(case.first.intent_id)).state is IntentState.UNKNOWN
                return
            assert not case.handle.is_done
            noted = await case.client.engine.journal.find_by_ref("a")
            assert (noted.intent_id, noted.state) == (case.first.intent_id, IntentState.UNKNOWN)
            await case.check_first_is_adopted()

    await each([halted, over_budget, closing, refused, never_connected, failing_disk], check)


@pytest.mark.parametrize("fate", ["created", "429", "500", "500, created", "lost", "garbled, with an id"])
async def test_what_has_left_writes_the_first_create_off_and_its_callback_is_welcome(
    fate: str, clock: Clock, tmp_path: Path
) -> None:
    async with unknown(tmp_path / "x") as case:
        case.service.create_fates = [fate]
        await case.resubmit()
        assert case.handle.is_done
        found = {i.intent_id: i for i in await case.client.engine.journal.list_intents()}
        assert found[case.first.intent_id].state is IntentState.WRITTEN_OFF
        assert len(case.service.bodies) == (3 if fate == "429" else 2)
        for task in case.service.tasks.values():
            case.service.finish(task)
        await case.check_first_is_adopted()


async def test_a_resubmit_cancelled_at_any_turn_sends_one_body_or_changes_nothing(
    clock: Clock, tmp_path: Path
) -> None:
    """The cancel comes at each step of some milliseconds, commits included."""

    async def check(number: int) -> None:
        async with unknown(tmp_path / f"{number}") as case:
            resubmitting = case.start()
            await asyncio.sleep(number * 0.01)
            resubmitting.cancel()
            await asyncio.gather(resubmitting, return_exceptions=True)
            await asyncio.sleep(5.0)
            sent = len(case.service.bodies)
            state = (await case.client.engine.journal.list_intents())[0].state
            assert state is (IntentState.UNKNOWN if sent == 1 else IntentState.WRITTEN_OFF)
            again = await asyncio.gather(case.client.create("a", ref="a"), return_exceptions=True)
            assert len(case.service.bodies) == sent, again
            for task in case.service.tasks.values():
                case.service.finish(task)
            await case.check_first_is_adopted()

    await each(range(24), check)


async def test_a_create_that_is_adopted_while_its_successor_waits_is_not_sent_again_or_both_are_kept(
    clock: Clock, tmp_path: Path
) -> None:
    async def check(number: int) -> None:
        async with unknown(tmp_path / f"{number}") as case:
            resubmitting = case.start()
            await asyncio.sleep(number * 0.01)
            assert (await case.client.call_back(case.first)).status == 200
            await asyncio.gather(resubmitting, return_exceptions=True)
            await asyncio.sleep(30.0)
            for task in case.service.tasks.values():
                case.service.finish(task)
            await asyncio.sleep(120.0)
            again = await asyncio.gather(case.client.create("a", ref="a"), return_exceptions=True)
            assert len(case.service.bodies) <= 2, again
            await case.client.kie.aclose()
            for task in case.service.tasks.values():
                assert (await case.find(task.intent_id)).state is IntentState.SUCCEEDED

    await each(range(24), check)


async def test_a_successor_refused_after_the_first_was_adopted_gives_the_ref_back(
    clock: Clock, tmp_path: Path
) -> None:
    async with unknown(tmp_path / "x") as case:
        case.service.create_fates = ["422"]
        case.service.answer_gate = asyncio.Event()
        resubmitting = case.start()
        await asyncio.sleep(1.0)
        assert (await case.client.call_back(case.first)).status == 200
        await asyncio.sleep(10.0)
        case.service.answer_gate.set()
        await asyncio.gather(resubmitting, return_exceptions=True)
        assert (await case.client.create("a", ref="a")).task_id == case.first.task_id
        assert len(case.service.bodies) == 2


@pytest.mark.parametrize("ref", ["a", None])
async def test_two_resubmits_of_one_create_send_one_body(
    ref: str | None, clock: Clock, tmp_path: Path
) -> None:
    async with unknown(tmp_path / "x") as case:
        handle = case.handle
        if ref is None:
            case.service.create_fates = ["lost"]
            with pytest.raises(CreateOutcomeUnknown) as caught:
                await case.client.create("b")
            assert caught.value.handle is not None
            handle = caught.value.handle
        sent = len(case.service.bodies)
        both = [handle.resubmit(accept_double_charge=True) for _ in range(2)]
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvalidRequest", "TaskHandle"]
        assert any(isinstance(outcome, InvalidRequest) for outcome in outcomes)
        assert len(case.service.bodies) == sent + 1
