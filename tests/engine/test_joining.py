"""One task, one handle, one intent: whatever names a create's task first, all that wait for it end alike.

Each order of what can name a task is forced, in virtual time: with steps that are over before the next
begins, and with steps that begin while the commits of those before still run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from conftest import time_passes
from support.clock import Clock
from support.model_client import ModelClient
from support.model_service import PRICE, ModelService
from support.slow_journals import CommitGate, CommitWeather, Disk, ModelJournal, SteadySqliteJournal
from support.tables import each

from kie_async import Budget, CreateOutcomeUnknown, KieError, ServerError, TaskHandle, TaskResult
from kie_async.journal.base import Journal
from kie_async.journal.intents import IntentState

Order = tuple[str, ...]
GAP_S = 0.02
JOURNALS = ("none", "file", "slow")


class LateCommits(CommitWeather):
    """Each commit takes longer than the next step waits."""

    def delay_s(self) -> float:
        return 2.5 * GAP_S


class Joining:
    """One create, and each thing that can name its task."""

    def __init__(self, journal: str, path: Path, fate: str, *, is_signed: bool) -> None:
        self.service = ModelService(random.Random(0))
        self.service.is_bad = False
        self.service.lasts_s = 10_000.0
        self.service.create_fates = [fate]
        self.service.answer_gate = asyncio.Event()
        self.disk = Disk()
        weather = (LateCommits if journal == "slow" else CommitWeather)(random.Random(0))
        gate = CommitGate(weather)
        self.journal: Journal | None = None
        if journal == "file":
            self.journal = SteadySqliteJournal(path, gate)
        elif journal == "slow":
            self.journal = ModelJournal(self.disk, gate)
        self.client = ModelClient(
            self.service, self.journal, gate, is_signed=is_signed, budget=Budget(credits=100.0)
        )
        self.awaiters: list[asyncio.Task[TaskResult]] = []
        self.users: list[asyncio.Task[None]] = []
        self.unknown: TaskHandle | None = None

    async def begin(self) -> None:
        await self.client.open()
        self.start(self.create())
        while not self.service.tasks:  # noqa: ASYNC110  (virtual time)
            await asyncio.sleep(GAP_S)
        (self.task,) = self.service.tasks.values()

    @property
    def kie(self) -> Any:
        return self.client.kie

    def start(self, work: Any) -> None:
        self.users.append(asyncio.create_task(work))

    def watch(self, handle: TaskHandle) -> None:
        self.awaiters.append(asyncio.create_task(handle.result()))

    async def take(self, order: Order) -> None:
        for step in order:
            await getattr(self, step)()
            await asyncio.sleep(GAP_S)

    # --- the steps -----------------------------------------------------------------------------

    async def create(self) -> None:
        try:
            self.watch(await self.client.create("a", ref="a"))
        except ServerError:  # refused, it says
            pass
        except CreateOutcomeUnknown as exc:
            if exc.handle is not None and not exc.handle.is_done:
                self.unknown = exc.handle
                self.watch(exc.handle)

    async def answer(self) -> None:
        """Let the create's answer come, or be lost."""
        assert self.service.answer_gate is not None
        self.service.answer_gate.set()
        await asyncio.sleep(GAP_S)

    async def again(self) -> None:
        is_over = self.task.ends_at <= asyncio.get_running_loop().time()
        if self.journal is not None or not is_over:  # a journal in memory forgets a ref that has settled
            self.start(self.create())

    async def attach(self) -> None:
        self.watch(self.kie.attach(self.task.task_id))

    async def notice(self) -> None:
        """Let a callback come before the end: it names the task and says no more."""
        self.start(self._call_back())

    async def callback(self) -> None:
        """Let the task end and say so."""
        self.service.finish(self.task)
        self.start(self._call_back())

    async def _call_back(self) -> None:
        verdict = await self.client.call_back(self.task)
        assert verdict.status == 200, verdict

    async def resolve(self) -> None:
        if self.unknown is not None:
            self.start(self._resolve(self.unknown))

    async def _resolve(self, handle: TaskHandle) -> None:
        try:
            await handle.resolve(self.task.task_id)
        except KieError:
            assert handle.task_id or handle.is_done, "refused although nothing was known"

    async def resume(self) -> None:
        self.start(self._resume())

    async def _resume(self) -> None:
        for handle in await self.kie.resume():
            self.watch(handle)

    # --- what became of it ---------------------------------------------------------------------

    async def check(self) -> None:
        """Let the task end if it has not, and compare what everybody got."""
        if self.task.ends_at > asyncio.get_running_loop().time():
            self.service.finish(self.task)
        await asyncio.sleep(300.0)
        await self._call_back()
        for user in self.users:
            user.result()
        outcomes = [await awaiter for awaiter in self.awaiters]
        assert {outcome.task_id for outcome in outcomes} == {self.task.task_id}
        assert len(self.service.bodies) == 1
        ledger, stats = self.client.engine.ledger, self.kie.stats()
        assert (ledger.tasks, ledger.spent, ledger.held) == (1, PRICE, 0.0)
        assert stats.settled_by_callback + stats.settled_by_poll == 1
        registry = self.client.engine.tracker.registry
        assert not registry.handles
        assert not list(self.client.engine.tracker.pending)
        if self.journal is not None:
            intent = await self.journal.find_by_task(self.task.task_id)
            assert intent is not None
            assert (intent.state, intent.intent_id) == (IntentState.SUCCEEDED, self.task.intent_id)
            assert not await self.journal.list_claims()


@asynccontextmanager
async def joining(
    journal: str, path: Path, fate: str = "created", *, is_signed: bool = True
) -> AsyncIterator[Joining]:
    with time_passes():
        found = Joining(journal, path, fate, is_signed=is_signed)
        await found.begin()
        try:
            yield found
        finally:
            await found.client.kie.aclose()


def orders(*steps: str, after_answer: tuple[str, ...] = ()) -> list[Any]:
    """Return every order of *steps*; those that begin alike share a test."""
    chosen = [
        order
        for order in permutations(steps)
        if all(order.index("answer") < order.index(late) for late in after_answer)
    ]
    return [
        pytest.param([order for order in chosen if order[0] == first], id=f"{first} first")
        for first in dict.fromkeys(order[0] for order in chosen)
    ]


@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("chosen", orders("answer", "attach", "again", "callback", "resume"))
async def test_an_answered_create_and_all_else_that_names_its_task_are_one(
    chosen: list[Order], journal: str, is_signed: bool, clock: Clock, ram: Path
) -> None:
    async def check(order: Order) -> None:
        path = ram / "-".join(order) / "run.db"
        path.parent.mkdir()
        async with joining(journal, path, is_signed=is_signed) as found:
            await found.take(order)
            await found.check()

    await each(chosen, check)


@pytest.mark.parametrize(
    ("fate", "journal"),
    [
        ("lost", "none"),
        ("lost", "slow"),
        ("garbled, with an id", "file"),
        ("500, created", "slow"),
    ],
)
@pytest.mark.parametrize(
    "chosen",
    orders("answer", "attach", "notice", "resolve", "resume", "callback", after_answer=("resolve", "resume")),
)
async def test_a_create_whose_answer_is_no_good_is_one_with_its_task_however_that_is_found(
    chosen: list[Order], journal: str, fate: str, clock: Clock, ram: Path
) -> None:
    async def check(order: Order) -> None:
        path = ram / "-".join(order) / "run.db"
        path.parent.mkdir()
        async with joining(journal, path, fate, is_signed=len(order[0]) % 2 == 0) as found:
            await found.take(order)
            await found.check()

    await each(chosen, check)
