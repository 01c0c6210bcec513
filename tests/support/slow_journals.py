"""Journals whose commits take (virtual) time, fail, or are cut off by a crash, and that can be opened again.

`ModelJournal` keeps everything in a dict that outlives it; `SteadySqliteJournal` is the real one, for whose
thread the clock of a steered loop stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from kie_async import JournalError, SqliteJournal, TaskRecord, TaskState
from kie_async.journal.base import Journal, TaskAlreadyBound
from kie_async.journal.intents import Claim, ClaimSource, Intent, IntentState, Totals
from kie_async.journal.notes import encode_note
from kie_async.limits.prices import TakenPrices

from .clock import SteeredLoop

_T = TypeVar("_T")
_GIVEN_UP = {IntentState.REJECTED, IntentState.WRITTEN_OFF}
_ENDED = {IntentState.SUCCEEDED, IntentState.FAILED}
_REPLACEABLE = {IntentState.UNKNOWN, IntentState.FAILED, *_GIVEN_UP}


@attrs.define
class CommitWeather:
    """How long commits take and how often they fail."""

    rng: random.Random
    slow: float = 0.0
    """The share of commits that take long."""
    failing: float = 0.0
    doubtful: float = 0.0
    """The share of those that fail after they were done; the journal is of no use from then on."""

    def clear(self) -> None:
        self.slow = self.failing = self.doubtful = 0.0

    def delay_s(self) -> float:
        if self.rng.random() < self.slow:
            return self.rng.choice((0.01, 0.3, 2.0, 20.0, 70.0))
        return self.rng.choice((0.0, 0.001))


class SlowCommits(CommitWeather):
    """Commits that take a while: what is cancelled may be cancelled in the middle of one."""

    def delay_s(self) -> float:
        return 0.05


class CommitGate:
    """What every commit passes, in the order they came: it delays, fails, or ends them all by a crash."""

    def __init__(self, weather: CommitWeather) -> None:
        self._weather = weather
        self._turn = asyncio.Lock()
        self._jobs: set[asyncio.Task[Any]] = set()
        self.is_dead = False
        self.failed: list[str] = []
        """What was asked for and not noted."""

    async def run(self, what: str, job: Callable[[], Any], rescue: Callable[[], None] | None = None) -> Any:
        """Run a job; it goes on although its caller is cancelled, as in a thread."""
        task = asyncio.get_running_loop().create_task(self._run(what, job, rescue))
        self._jobs.add(task)
        task.add_done_callback(self._note_done)
        return await asyncio.shield(task)

    def _note_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def _run(self, what: str, job: Callable[[], Any], rescue: Callable[[], None] | None) -> Any:
        async with self._turn:
            await self._pass_time()
            weather = self._weather
            if weather.rng.random() < weather.failing:
                if weather.rng.random() < weather.doubtful:
                    with contextlib.suppress(JournalError):
                        await _result(job())
                    self.is_dead = True
                elif rescue is not None:
                    rescue()
                self.failed.append(what)
                raise JournalError(f"{what}: the disk is full")
            outcome = await _result(job())
            if self.is_dead:
                raise JournalError("the process is gone")
            return outcome

    async def _pass_time(self) -> None:
        if (delay_s := self._weather.delay_s()) and not self.is_dead:
            await asyncio.sleep(delay_s)
        else:
            await asyncio.sleep(0)
        if self.is_dead:
            raise JournalError("the process is gone")

    async def drain(self) -> None:
        while self._jobs:
            await asyncio.wait(set(self._jobs))


async def _result(found: Any) -> Any:
    return await found if asyncio.iscoroutine(found) else found


@attrs.define
class Row:
    """One intent as the disk has it."""

    intent: Intent
    sends: int = 1
    former_ref: str | None = None
    former_state: IntentState | None = None
    """Of the intent that this one was sent in the place of, when it was."""


@attrs.define
class Disk:
    """What survives a crash."""

    rows: dict[str, Row] = attrs.field(factory=dict)
    claims: dict[tuple[str, str], ClaimSource] = attrs.field(factory=dict)
    rescued: list[tuple[str, str]] = attrs.field(factory=list)

    def intents(self) -> list[Intent]:
        return [row.intent for row in self.rows.values()]

    def list_claims(self) -> list[Claim]:
        found = self.claims.items()
        return [Claim(intent_id=intent, task_id=task, source=source) for (intent, task), source in found]


class ModelJournal(Journal):
    """The contract of a durable journal, once more, in a dict."""

    is_durable = True

    def __init__(self, disk: Disk, gate: CommitGate) -> None:
        self._disk = disk
        self._gate = gate

    async def _do(self, what: str, job: Callable[[], Any], rescue: Callable[[], None] | None = None) -> Any:
        return await self._gate.run(what, job, rescue)

    # --- open and close ------------------------------------------------------------------------

    async def open(self) -> list[Intent]:
        disk = self._disk
        for intent_id, task_id in disk.rescued:
            with contextlib.suppress(JournalError):
                self._bind(intent_id, task_id)
        disk.rescued.clear()
        for row in disk.rows.values():
            if row.intent.state is IntentState.SENDING:
                self._set(row, state=IntentState.UNKNOWN, reason="crash")
            elif row.intent.state is IntentState.PLANNED:
                self._set(row, state=IntentState.NOT_CREATED, reason="never sent")
        return [row.intent for row in disk.rows.values() if _may_be_task(row)]

    async def aclose(self) -> None:
        await self._gate.drain()
        self._gate.is_dead = True

    # --- reading -------------------------------------------------------------------------------

    async def find_by_ref(self, ref: str) -> Intent | None:
        def job() -> Intent | None:
            found = [i for i in self._disk.intents() if i.ref == ref]
            return found[0] if found and not found[0].frees_its_ref else None

        return await self._do("find_by_ref", job)  # type: ignore[no-any-return]

    async def list_unsettled(self) -> list[Intent]:
        return await self._do(  # type: ignore[no-any-return]
            "list_unsettled", lambda: [i for i in self._disk.intents() if i.state is IntentState.CREATED]
        )

    async def find_by_task(self, task_id: str) -> Intent | None:
        return await self._do("find_by_task", lambda: self._holder(task_id))  # type: ignore[no-any-return]

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        row = await self._do("find_by_intent", lambda: self._disk.rows.get(intent_id))
        return None if row is None else row.intent  # type: ignore[no-any-return]

    async def list_claims(self) -> list[Claim]:
        return self._disk.list_claims()

    async def load_totals(self) -> Totals:
        sent = [
            row.intent
            for row in self._disk.rows.values()
            if row.sends and row.intent.state is not IntentState.REJECTED
        ]
        settled = [intent for intent in sent if intent.state in _ENDED]
        return Totals(len(sent), len(settled), sum(intent.credits or 0.0 for intent in sent))

    async def load_prices(self) -> Mapping[str, TakenPrices]:
        return {}

    async def load_durations(self) -> Mapping[str, object]:
        return {}

    # --- writing -------------------------------------------------------------------------------

    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Keep nothing: it is of no concern here."""

    async def count_occurrence(self, key: bytes) -> int:
        return 1

    async def mark_sending(self, intent: Intent) -> None:
        def job() -> None:
            rows = self._disk.rows
            former = rows.get(intent.replaces)
            row = rows.get(intent.intent_id)
            if intent.replaces and (former is None or former.intent.state not in _REPLACEABLE):
                raise JournalError("the replaced intent is neither unknown, nor refused, nor failed")
            if row is not None and (row.intent.state is not IntentState.PLANNED or row.sends):
                raise JournalError("sent before")
            for holder in rows.values():
                is_other = holder.intent.intent_id not in {intent.intent_id, intent.replaces}
                if intent.ref is not None and holder.intent.ref == intent.ref and is_other:
                    if not holder.intent.frees_its_ref:
                        raise JournalError("the ref is another's")
                    self._free_ref(holder)
            if former is not None:
                before = former.intent.state
                if before is IntentState.UNKNOWN:
                    self._set(former, state=IntentState.WRITTEN_OFF)
                self._free_ref(former)
            sent = attrs.evolve(intent, state=IntentState.SENDING, body=None)
            rows[intent.intent_id] = Row(sent, former_state=None if former is None else before)

        await self._do(f"sending {intent.intent_id}", job)

    async def mark_unsent(self, intent_id: str) -> None:
        def job() -> None:
            row = self._row(intent_id)
            if row.intent.state not in {IntentState.PLANNED, IntentState.SENDING}:
                raise JournalError("not on its way")
            self._set(row, state=IntentState.PLANNED)
            row.sends = 0
            self._take_back(row)

        await self._do(f"unsent {intent_id}", job)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        def job() -> None:
            self._bind(intent_id, task_id)

        await self._do(f"created {intent_id}", job, lambda: self._disk.rescued.append((intent_id, task_id)))

    async def save_claim(self, claim: Claim) -> None:
        def job() -> None:
            key = claim.intent_id, claim.task_id
            if (row := self._disk.rows.get(claim.intent_id)) is not None and row.intent.task_id:
                return
            if self._disk.claims.get(key, ClaimSource.UNSIGNED) is ClaimSource.UNSIGNED:
                self._disk.claims[key] = claim.source

        await self._do(f"claim {claim.intent_id}", job)

    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        await self._do(
            f"no claim {intent_id}", lambda: self._disk.claims.pop((intent_id, task_id), None) and None
        )

    async def mark_ended(
        self, intent_id: str, state: IntentState, *, reason: str = "", code: int | None = None
    ) -> None:
        def job() -> None:
            if state is IntentState.NOT_CREATED and intent_id not in self._disk.rows:
                return
            row = self._row(intent_id)
            if row.intent.task_id:
                raise JournalError("it has a task")
            self._set(row, state=state, reason=reason, code=code)
            if state is IntentState.NOT_CREATED:
                row.sends = 0
            if row.intent.frees_its_ref:
                self._take_back(row)

        await self._do(f"{state} {intent_id}", job)

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        state = IntentState.SUCCEEDED if record.state is TaskState.SUCCESS else IntentState.FAILED

        def job() -> None:
            row = self._row(intent_id)
            if row.intent.state is not IntentState.CREATED:
                raise JournalError("it is not in flight")
            self._set(row, state=state, record=encode_note(dict(record.raw)), credits=record.credits)

        await self._do(f"settled {intent_id}", job)

    # --- rows ----------------------------------------------------------------------------------

    def _row(self, intent_id: str) -> Row:
        if (row := self._disk.rows.get(intent_id)) is None:
            raise JournalError(f"no intent {intent_id}")
        return row

    def _set(self, row: Row, **change: Any) -> None:
        row.intent = attrs.evolve(row.intent, **change)

    def _free_ref(self, row: Row) -> None:
        row.former_ref = row.intent.ref or row.former_ref
        self._set(row, ref=None)

    def _take_back(self, row: Row) -> None:
        former = self._disk.rows.get(row.intent.replaces)
        if former is None:
            return
        self._free_ref(row)
        if former.intent.ref is None:
            state = former.intent.state
            state = IntentState.UNKNOWN if state is IntentState.WRITTEN_OFF else state
            self._set(former, state=state, ref=former.former_ref)
            former.former_ref = None

    def _holder(self, task_id: str) -> Intent | None:
        found = [i for i in self._disk.intents() if i.task_id == task_id]
        return found[0] if found else None

    def _bind(self, intent_id: str, task_id: str) -> None:
        row, holder = self._disk.rows.get(intent_id), self._holder(task_id)
        if holder is not None and holder.intent_id != intent_id:
            raise TaskAlreadyBound(f"task {task_id} is another's")
        if row is None or row.intent.task_id not in {"", task_id}:
            raise JournalError("it has another task, or is gone")
        if not row.intent.task_id:
            self._set(row, state=IntentState.CREATED, task_id=task_id)
            row.sends = 1
        for key in [key for key in self._disk.claims if key[0] == intent_id]:
            del self._disk.claims[key]


def _may_be_task(row: Row) -> bool:
    return row.intent.state is IntentState.UNKNOWN or (row.intent.state in _GIVEN_UP and row.sends == 1)


class SteadySqliteJournal(SqliteJournal):
    """The real journal behind a `CommitGate`; time stands still while its thread works."""

    def __init__(self, path: Path, gate: CommitGate) -> None:
        super().__init__(path)
        self._commits = gate
        self._is_opening = True

    async def open(self) -> list[Intent]:
        try:
            with standing_still():
                return await super().open()
        finally:
            self._is_opening = False

    async def aclose(self) -> None:
        await self._commits.drain()
        self._commits.is_dead = True
        with standing_still():
            await super().aclose()

    async def _do(self, job: Callable[[Any], _T], *, rescue: Callable[[], None] | None = None) -> _T:
        if self._is_opening:
            return await super()._do(job, rescue=rescue)
        run = super()._do

        async def committed() -> _T:
            with standing_still():
                return await run(job, rescue=rescue)

        return await self._commits.run("a commit", committed, rescue)  # type: ignore[no-any-return]


@contextlib.contextmanager
def standing_still() -> Iterator[None]:
    """Let no virtual time pass: a thread is at work."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    loop.threads += 1
    try:
        yield
    finally:
        loop.threads -= 1
