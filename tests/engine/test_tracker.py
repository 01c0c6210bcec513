"""The table of tasks in flight, and intents without a task: what they remember, who decides on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from conftest import OpenSession
from support.clock import eventually, settle

from kie_async import (
    CallbackReceiver,
    CreateOutcomeUnknown,
    InvalidRequest,
    JournalError,
    KieError,
    KieSession,
    PollSchedule,
    RequestRejected,
    Sandbox,
    ServedReceiver,
    TaskHandle,
    TaskRequest,
    TaskTimedOut,
)
from kie_async.engine.pending_creates import PendingCreate
from kie_async.engine.registry import REMEMBERED
from kie_async.journal.intents import Intent, IntentState
from kie_async.journal.memory import MemoryJournal

ECHO = ("sandbox/echo", {})


class GatedJournal(MemoryJournal):
    """Forgets, like the journal it is made of, but takes its time to note the id of a task."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_note = asyncio.Event(), asyncio.Event()

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        self.is_asked.set()
        await self.may_note.wait()
        await super().mark_created(intent_id, task_id, adopted_by=adopted_by)


class TestMemory:
    """What is left of tasks that have ended and of creates that were refused is bounded."""

    @pytest.fixture
    def begin(self, kie: KieSession) -> Callable[[str], PendingCreate]:
        """Return a function that begins a create; nothing is sent."""
        request = TaskRequest(model="sandbox/echo", input={})

        def begin(intent_id: str) -> PendingCreate:
            intent = Intent(intent_id=intent_id, model="sandbox/echo", expects_callback=True)
            pending = kie._engine.tracker.begin(intent, request)
            pending.handle.deadline += 60.0
            return pending

        return begin

    async def test_ten_thousand_settled_intents_are_remembered(
        self, kie: KieSession, begin: Callable[[str], PendingCreate]
    ) -> None:
        tracker, inbox = kie._engine.tracker, kie._engine.inbox
        for number in range(REMEMBERED + 1):
            pending = begin(f"intent-{number}")
            tracker.mark_created(pending, f"task_{number}")
            tracker.abandon(pending.handle)

        assert inbox.owner_of("intent-0") is None
        assert inbox.owner_of("intent-1") == "task_1"
        assert inbox.owner_of(f"intent-{REMEMBERED}") == f"task_{REMEMBERED}"

    async def test_ten_thousand_refused_creates_are_remembered(
        self, kie: KieSession, begin: Callable[[str], PendingCreate]
    ) -> None:
        tracker, inbox = kie._engine.tracker, kie._engine.inbox
        for number in range(REMEMBERED + 1):
            tracker.mark_rejected(begin(f"intent-{number}"))

        assert inbox.owner_of("intent-0") is None
        assert inbox.owner_of("intent-1") == ""


async def test_a_task_is_bound_to_one_handle(kie: KieSession) -> None:
    handle = await kie.create(*ECHO)
    other = kie.attach("task_1")

    with pytest.raises(InvalidRequest, match="belongs to another handle already"):
        kie._engine.tracker.binder.bind(other, handle.task_id, expects_callback=False)

    assert kie.attach(handle.task_id) is handle


class TestAnIdThatTheServiceDoesNotKnow:
    """Of a session with a durable journal, and of one without."""

    SOON = attrs.evolve(PollSchedule.fixed(0.05), visibility_grace_s=0.2)

    async def test_it_is_said_after_the_grace_if_the_journal_does_not_know_it_either(
        self, open_session: OpenSession, tmp_path: Path
    ) -> None:
        kie = await open_session(journal=tmp_path / "run.db", poll=self.SOON)

        with pytest.raises(RequestRejected, match="the service knows no task task_1"):
            await kie.attach("task_1").result(timeout_s=5.0)

    async def test_a_task_of_the_journal_is_asked_for_again(
        self, open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        first = await open_session(journal=tmp_path / "run.db", poll=PollSchedule.fixed(60.0))
        task_id = (await first.create(*ECHO)).task_id
        await first.aclose()
        sandbox.faults.invisible_s = 60.0  # also when it has ended
        kie = await open_session(journal=tmp_path / "run.db", poll=self.SOON)

        with pytest.raises(TaskTimedOut):
            await kie.attach(task_id).result(timeout_s=1.0)

    async def test_without_a_journal_it_is_asked_for_again(self, open_session: OpenSession) -> None:
        kie = await open_session(poll=self.SOON)

        with pytest.raises(TaskTimedOut):
            await kie.attach("task_1").result(timeout_s=1.0)


class FullJournal(MemoryJournal):
    """Cannot note how a create ended."""

    async def mark_ended(
        self, intent_id: str, state: IntentState, *, reason: str = "", code: int | None = None
    ) -> None:
        raise JournalError("disk full")


@pytest.mark.parametrize(
    ("fault", "error"),
    [("lose_answers_next", CreateOutcomeUnknown), ("refuse_but_create_next", RequestRejected)],
)
async def test_an_end_that_cannot_be_noted_is_told_all_the_same_and_gives_the_slot_back(
    sandbox: Sandbox,
    open_session: OpenSession,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    error: type[KieError],
) -> None:
    kie = await open_session(journal=FullJournal(), max_in_flight=1)
    setattr(sandbox.faults, fault, 1)

    with pytest.raises(error):
        await kie.create(*ECHO)

    assert "could not be noted" in caplog.text
    assert await asyncio.wait_for(kie.create(*ECHO), 5.0)


class TestWhoDecides:
    """While one is deciding what became of a create, nobody else does."""

    @pytest.fixture
    def journal(self) -> GatedJournal:
        return GatedJournal()

    @pytest.fixture
    async def handle(
        self,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
        journal: GatedJournal,
    ) -> TaskHandle:
        """Return the handle of an unknown create whose adoption is just being noted."""
        kie = await open_session(receiver=receiver, callback_url=served.url, journal=journal)
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create(*ECHO)
        sandbox.finish(next(iter(sandbox.tasks)))
        await journal.is_asked.wait()
        return caught.value.handle

    async def test_who_names_its_task_meanwhile_waits_and_is_right(
        self, sandbox: Sandbox, handle: TaskHandle, journal: GatedJournal
    ) -> None:
        (task_id,) = sandbox.tasks
        queries = sandbox.counts["query"]
        resolving = asyncio.create_task(handle.resolve(task_id))
        await eventually(lambda: sandbox.counts["query"] > queries)
        await settle()
        assert not resolving.done()

        journal.may_note.set()
        await resolving
        assert (await handle).task_id == task_id

    async def test_it_is_not_sent_again(
        self, sandbox: Sandbox, handle: TaskHandle, journal: GatedJournal
    ) -> None:
        with pytest.raises(InvalidRequest, match="meanwhile"):
            await handle.resubmit(accept_double_charge=True)

        journal.may_note.set()
        assert await handle
        assert len(sandbox.tasks) == 1

    async def test_it_is_not_written_off(self, handle: TaskHandle, journal: GatedJournal) -> None:
        handle.write_off()
        await settle()

        journal.may_note.set()
        assert await handle


async def test_a_task_attached_while_its_create_is_being_noted_leaves_the_slot_free(
    sandbox: Sandbox, open_session: OpenSession
) -> None:
    journal = GatedJournal()
    kie = await open_session(journal=journal, max_in_flight=1)
    creating = asyncio.create_task(kie.create(*ECHO))
    await eventually(lambda: sandbox.tasks)
    (task_id,) = sandbox.tasks
    await journal.is_asked.wait()

    attached = kie.attach(task_id)
    journal.may_note.set()
    (outcome,) = await asyncio.gather(creating, return_exceptions=True)
    sandbox.finish(task_id)

    assert (await attached).task_id == task_id
    assert not isinstance(outcome, InvalidRequest)  # that would say: nothing was sent
    assert await asyncio.wait_for(kie.create(*ECHO), 5.0)


async def test_a_deadline_within_the_commit_of_an_adoption_names_the_task(
    sandbox: Sandbox, open_session: OpenSession
) -> None:
    journal = GatedJournal()
    kie = await open_session(journal=journal, task_timeout_s=0.2)
    sandbox.faults.lose_answers_next = 1
    with pytest.raises(CreateOutcomeUnknown) as unknown:
        await kie.create("sandbox/echo", {"prompt": "a"})
    handle, (task_id,) = unknown.value.handle, sandbox.tasks
    assert handle is not None
    resolving = asyncio.ensure_future(handle.resolve(task_id))
    await journal.is_asked.wait()
    await asyncio.sleep(0.3)
    assert not handle.is_done
    journal.may_note.set()
    await resolving
    with pytest.raises(TaskTimedOut) as late:
        await handle
    assert late.value.task_id == task_id
