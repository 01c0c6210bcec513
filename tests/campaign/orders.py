"""Random orders of all that can happen to a few creates: nothing is paid twice, lost, or left waiting.

``python -m tests.campaign orders --seeds 20000`` runs sessions against a model of the service, in virtual
time, over journals whose commits take time, fail, and are cut off by crashes. Each seed is an order of its
own; one that fails prints the command that replays it. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from support.clock import SteeredLoop
from support.loops import as_asked
from support.model_client import ModelClient, headers_of, tail_of
from support.model_service import MODEL, ModelService, ServiceTask
from support.slow_journals import CommitGate, CommitWeather, Disk, ModelJournal, Row, SteadySqliteJournal

from kie_async import (
    Budget,
    CreateOutcomeUnknown,
    JournalError,
    KieError,
    SqliteJournal,
    TaskFailed,
    TaskHandle,
    TaskPhase,
    TaskRequest,
    TaskResult,
)
from kie_async.journal.base import Journal
from kie_async.journal.intents import IntentState
from kie_async.journal.memory import MemoryJournal

REFS = ("a", "b", None)
LOOPS_S = (0.0, 0.0, 0.0, 0.001, 0.02, 0.02, 0.1, 1.0, 1.0, 5.0, 30.0, 400.0)
"""How long to wait between two steps."""
TIMEOUTS_S = (0.5, 5.0, 60.0, 600.0)
SQLITE_EVERY, MEMORY_EVERY = 40, 10
"""One seed of so many has a journal of that kind."""
MAX_SECONDS = 60.0
"""Of real time for one seed: more means that it hangs."""
STEPS = {
    "create": 16,
    "submit": 8,
    "withdraw": 4,
    "callback": 14,
    "forged": 5,
    "attach": 6,
    "resume": 4,
    "resolve": 6,
    "write_off": 3,
    "resubmit": 7,
    "retry_failed": 8,
    "cancel": 5,
    "cancel_awaiter": 2,
    "abandon": 2,
    "foreign": 1,
    "close": 2,
    "crash": 3,
    "kill": 2,
}
_SURE_NO = {"422", "429", "500", "lost, not created"}
_STATES = {"success": IntentState.SUCCEEDED, "fail": IntentState.FAILED}


@attrs.define(eq=False)
class Watched:
    """A handle that somebody got, and what his awaiters got."""

    handle: TaskHandle
    outcomes: list[object] = attrs.field(factory=list)


class Life(ModelClient):
    """One process, and whoever uses it."""

    def __init__(self, order: Order, journal: Journal, gate: CommitGate) -> None:
        super().__init__(
            order.service,
            journal,
            gate,
            is_signed=order.is_signed,
            max_in_flight=order.max_in_flight,
            confirm_callbacks=order.confirms,
            budget=order.budget,
            rng=random.Random(order.rng.random()),
        )
        self.order = order
        self.gate = gate
        self.handles: list[Watched] = []
        self.users: list[asyncio.Task[None]] = []
        self.awaiters: list[asyncio.Task[None]] = []
        self.submitted: list[tuple[TaskHandle, str]] = []
        """With the prompts that tell their tasks."""

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        self.users.append(asyncio.create_task(self._reported(work)))

    async def _reported(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except KieError as exc:
            self.order.note(f"    {type(exc).__name__}: {exc}")
        except Exception as exc:
            if not self.is_dead:
                self.order.complain(f"a user got {exc!r}")

    def watch(self, handle: TaskHandle) -> None:
        """Wait for a handle, twice."""
        watched = next((w for w in self.handles if w.handle is handle), None)
        if watched is None:
            watched = Watched(handle)
            self.handles.append(watched)
        self.awaiters.append(asyncio.create_task(self._wait(watched)))

    async def _wait(self, watched: Watched) -> None:
        handle = watched.handle
        try:
            outcome: object = await handle
        except KieError as exc:
            outcome = exc
        watched.outcomes.append(outcome)
        if not self.is_dead and isinstance(outcome, TaskResult | TaskFailed):
            self.order.check_end_is_noted(handle, self)

    async def end(self) -> None:
        """Close in order; whoever waits must be told."""
        await self.kie.aclose()
        await asyncio.wait([asyncio.create_task(asyncio.sleep(0.01))])
        for work in self.users:
            if not work.done():
                self.order.complain(f"a user still waits after the close: {work}")
        for watched in self.handles:
            if not watched.handle.is_done:
                self.order.complain(f"{watched.handle} is not done after the close")
        for awaiter in self.awaiters:
            if not awaiter.done():
                self.order.complain(f"an awaiter still waits after the close: {awaiter}")

    async def kill(self) -> None:
        """End as by SIGKILL: nothing is sent or noted any more."""
        self.die()
        self.order.save_file()
        for work in (*self.users, *self.awaiters):
            work.cancel()
        await asyncio.gather(*self.users, *self.awaiters, return_exceptions=True)
        await self.kie.aclose()


class Order:
    """One seed: what is given, what happens, what must hold."""

    def __init__(self, seed: int, folder: Path, *, verbose: bool = False) -> None:
        self.seed = seed
        self._verbose = verbose
        rng = self.rng = random.Random(seed)
        self.complaints: list[str] = []
        self.withdrawn: set[str] = set()
        self.service = ModelService(random.Random(rng.random()))
        self.weather = CommitWeather(random.Random(rng.random()))
        self.weather.slow = rng.choice((0.0, 0.2, 0.5))
        self.weather.failing = rng.choice((0.0, 0.0, 0.03, 0.1))
        self.weather.doubtful = rng.choice((0.0, 0.2))
        self.kind = "model"
        if seed % SQLITE_EVERY == 7:
            self.kind = "sqlite"
        elif seed % MEMORY_EVERY == 3:
            self.kind = "memory"
        self.disk = Disk()
        self._folder = folder
        self._files = 0
        self.is_signed = rng.random() < 0.6
        self.confirms = rng.choice((None, None, None, True))
        self.budget = rng.choice((None, None, Budget(tasks=rng.randint(2, 6)), Budget(credits=20.0)))
        self.max_in_flight = rng.choice((1, 2, 50))
        self.life: Life | None = None
        self.consents = 0
        self.retries = 0
        self.refused_sends = 0
        self.together: dict[str, list[Watched]] = {}
        self.steps = Counter[str]()

    # --- words ---------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        if self._verbose:
            print(f"{asyncio.get_running_loop().time():10.3f} {what}", file=sys.stderr)

    def complain(self, what: str) -> None:
        self.note(f"WRONG: {what}")
        self.complaints.append(what)

    # --- the journal ---------------------------------------------------------------------------

    def _new_life(self) -> Life:
        gate = CommitGate(self.weather)
        return Life(self, self._new_journal(gate), gate)

    def _new_journal(self, gate: CommitGate) -> Journal:
        if self.kind == "memory":
            return MemoryJournal()
        if self.kind == "sqlite":
            return SteadySqliteJournal(self._path, gate)
        return ModelJournal(self.disk, gate)

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._files}" / "run.db"

    def save_file(self) -> None:
        """Go on with a copy of the file, as a crash at this moment would leave it."""
        if self.kind == "sqlite":
            before = self._path.parent
            self._files += 1
            shutil.copytree(before, self._path.parent, ignore=shutil.ignore_patterns("*lock*"))

    def row_of(self, task: ServiceTask) -> Row | None:
        return self.disk.rows.get(task.intent_id)

    # --- the course of one seed ----------------------------------------------------------------

    async def run(self) -> None:
        """Take random steps, then let everything come to its end, and judge."""
        self._path.parent.mkdir(parents=True)
        self.note(f"{self.kind} signed={self.is_signed} confirms={self.confirms} budget={self.budget}")
        await self._reopen()
        for _ in range(self.rng.randint(8, 30)):
            await self._step()
            await asyncio.sleep(self.rng.choice(LOOPS_S))
            self._check_together()
        self.service.is_bad = False
        self.weather.clear()
        self.note("-- fair weather")
        await self._come_to_the_end()
        await self._judge()

    async def _step(self) -> None:
        name = self.rng.choices(list(STEPS), weights=list(STEPS.values()))[0]
        if self.kind == "memory" and name in {"close", "crash", "kill"}:
            return
        life = self.life
        assert life is not None
        if life.gate.is_dead:
            name = "crash"
        self.note(name)
        self.steps[name] += 1
        await getattr(self, f"_{name}")(life)

    async def _reopen(self) -> None:
        while True:
            life = self._new_life()
            try:
                await life.open()
                break
            except JournalError as exc:  # whoever runs it tries again
                self.note(f"    not opened: {exc}")
        self.life = life
        self.together = {}
        if self.kind == "model":
            self._check_delivered(life)

    async def _come_to_the_end(self) -> None:
        life = self.life
        assert life is not None
        if life.gate.is_dead or self.disk.rescued:
            await self._crash(life)
        for number in range(12):
            await asyncio.sleep(120.0)
            if number % 4 == 0 and self.life is not None:
                self.life.begin(self._resumed(self.life))
            for task in self._own_tasks():
                if not task.was_delivered and self.service.state(task) == task.end:
                    await self._deliver(task)
            self._check_together()
        await asyncio.sleep(1000.0)

    async def _judge(self) -> None:
        life = self.life
        assert life is not None
        for work in (*life.users, *life.awaiters):
            if not work.done():
                self.complain(f"never ends: {work}")
        for watched in life.handles:
            if not watched.handle.is_done:
                self.complain(f"{watched.handle} is never done")
        for task in self._own_tasks():
            if task.prompt in self.withdrawn:
                self.complain(f"{task} was withdrawn before it left, said the answer")
            row = self.row_of(task)
            # Nobody needs it any more when a former process has noted the end.
            is_over = row is not None and row.intent.state in _STATES.values()
            if not task.was_delivered and not is_over and self.kind != "sqlite":
                self.complain(f"the callback of {task} was never answered with 200")
        if self.kind != "memory":
            await self._check_usage(life)
        await life.end()
        if self.kind == "sqlite":
            await self._read_file()
        if self.kind != "memory":
            self._check_rows()

    async def _read_file(self) -> None:
        journal = SqliteJournal(self._path)
        await journal.open()
        for intent in await journal.list_intents():
            self.disk.rows[intent.intent_id] = Row(intent)
        await journal.aclose()

    # --- steps ---------------------------------------------------------------------------------

    async def _create(self, life: Life) -> None:
        ref = self.rng.choice(REFS)
        prompt = ref or f"unnamed {self.rng.random()}"
        timeout_s = self.rng.choice(TIMEOUTS_S)
        life.begin(self._got(life, life.create(prompt, ref=ref, timeout_s=timeout_s)))

    async def _submit(self, life: Life) -> None:
        """Ask for a handle at once; without a ref, whose fingerprint would be made in a thread."""
        prompt = f"unnamed {self.rng.random()}"
        request = TaskRequest(model=MODEL, input={"prompt": prompt})
        lane, timeout_s = self.rng.choice((None, "a", 1)), self.rng.choice(TIMEOUTS_S)
        handle = life.kie.submit(request, lane=lane, timeout_s=timeout_s)
        life.submitted.append((handle, prompt))
        life.watch(handle)
        life.begin(self._got(life, handle.created()))

    async def _withdraw(self, life: Life) -> None:
        if life.submitted:
            handle, prompt = self.rng.choice(life.submitted)
            self.note(f"    {handle} {handle.phase}")
            if handle.withdraw():
                self.withdrawn.add(prompt)

    async def _retry_failed(self, life: Life) -> None:
        """Ask for a ref as a batch does that tries failed ones again; sometimes twice at once."""
        ref = self.rng.choice([ref for ref in REFS if ref])
        attempted = set[str]()
        for _ in range(self.rng.choice((1, 1, 2))):
            self.retries += 1
            timeout_s = self.rng.choice(TIMEOUTS_S)
            work = life.create(ref, ref=ref, timeout_s=timeout_s, attempted=attempted)
            life.begin(self._got(life, work))

    async def _got(self, life: Life, work: Coroutine[Any, Any, TaskHandle]) -> None:
        try:
            handle = await work
        except CreateOutcomeUnknown as exc:
            self.note(f"    unknown: {exc}")
            if exc.handle is not None and not life.is_dead:
                life.watch(exc.handle)
            return
        if life.is_dead:
            return
        self.note(f"    got {handle}")
        row = self.disk.rows.get(handle.intent_id)
        if self.kind == "model" and (row is None or row.intent.task_id != handle.task_id):
            self.complain(f"{handle} was given out before its id was noted")
        life.watch(handle)
        life.watch(handle)

    async def _resubmit(self, life: Life) -> None:
        if (handle := self._unknown(life)) is not None:
            self.consents += 1
            life.begin(self._got(life, handle.resubmit(accept_double_charge=True)))

    async def _write_off(self, life: Life) -> None:
        if (handle := self._unknown(life)) is not None:
            try:
                handle.write_off()
            except KieError as exc:
                self.note(f"    {exc}")

    async def _resolve(self, life: Life) -> None:
        handle = self._unknown(life)
        if handle is None:
            return
        right = [task.task_id for task in self._own_tasks() if task.intent_id == handle.intent_id]
        others = [task.task_id for task in self._own_tasks()]
        chosen = self.rng.choice((right, right, others, [""]))
        if chosen:
            life.begin(self._resolved(handle, self.rng.choice(chosen)))

    async def _resolved(self, handle: TaskHandle, task_id: str) -> None:
        candidate = self.service.tasks.get(handle.candidate_task_id)
        if task_id or (candidate is not None and candidate.prompt != "foreign"):
            await handle.resolve(task_id or None)

    async def _attach(self, life: Life) -> None:
        if tasks := self._own_tasks():
            handle = life.kie.attach(self.rng.choice(tasks).task_id, timeout_s=self.rng.choice(TIMEOUTS_S))
            self.note(f"    {handle}")
            life.watch(handle)

    async def _resume(self, life: Life) -> None:
        life.begin(self._resumed(life))

    async def _resumed(self, life: Life) -> None:
        for handle in await life.kie.resume():
            if not life.is_dead:
                self.note(f"    resumed {handle}")
                life.watch(handle)

    async def _cancel(self, life: Life) -> None:
        if running := [work for work in life.users if not work.done()]:
            self.rng.choice(running).cancel()

    async def _cancel_awaiter(self, life: Life) -> None:
        if running := [work for work in life.awaiters if not work.done()]:
            self.rng.choice(running).cancel()

    async def _abandon(self, life: Life) -> None:
        if life.handles:
            self.rng.choice(life.handles).handle.abandon()

    async def _foreign(self, _: Life) -> None:
        self.service.make_foreign()

    async def _callback(self, _: Life) -> None:
        ended = [task for task in self._own_tasks() if self.service.state(task) == task.end]
        if ended:
            asyncio.create_task(self._deliver(self.rng.choice(ended)))  # noqa: RUF006

    async def _forged(self, life: Life) -> None:
        """Say at a right address that it became some other task, or one that does not exist."""
        if not self.service.tasks:
            return
        at = self.rng.choice(list(self.service.tasks.values()))
        said = self.rng.choice([*self.service.tasks.values(), None])
        if said is at or at.prompt == "foreign":
            return
        if said is None:
            record = {"taskId": f"none{self.rng.randint(1, 99)}", "state": "success"}
            body, task_id = json.dumps({"code": 200, "msg": "", "data": record}).encode(), record["taskId"]
        else:
            body, task_id = self.service.callback(said.task_id), said.task_id
        headers = headers_of(task_id) if said is not None else {}  # who has no key replays a signed one
        verdict = await life.receiver.feed(tail_of(at.intent_id), headers, body)
        self.note(f"    forged {task_id} at the address of {at.task_id}: {verdict.status} {verdict.reason}")

    async def _close(self, life: Life) -> None:
        self.life = None
        if not life.gate.failed:
            await self._quiet(life)
        await life.end()
        await self._reopen()

    async def _quiet(self, life: Life) -> None:
        """Now and then, wait for all creates before the close, and count what they cost."""
        if self.rng.random() < 0.5:
            return
        for _ in range(10_000):
            if all(work.done() for work in life.users) and not len(life.engine.creator.runner):
                break
            await asyncio.sleep(1.0)
        await self._check_usage(life, is_last=False)

    async def _crash(self, life: Life) -> None:
        self.life = None
        await life.kill()
        await self._reopen()

    async def _kill(self, life: Life) -> None:
        """Crash in the moment in which deliveries were answered."""
        for task in self._own_tasks():
            if self.rng.random() < 0.5 and self.service.state(task) == task.end:
                await self._deliver(task)
        await self._crash(life)

    # --- deliveries ----------------------------------------------------------------------------

    async def _deliver(self, task: ServiceTask) -> None:
        life = self.life
        if life is None:
            return
        verdict = await life.call_back(task)
        self.note(f"    callback of {task.task_id}: {verdict.status} {verdict.reason}")
        if life.is_dead:
            return
        if verdict.status not in {200, 503}:
            self.complain(f"the genuine callback of {task} was answered {verdict.status} {verdict.reason}")
        if verdict.status == 200:
            task.was_delivered = True

    # --- what must hold ------------------------------------------------------------------------

    def _own_tasks(self) -> list[ServiceTask]:
        return [task for task in self.service.tasks.values() if task.prompt != "foreign"]

    def _unknown(self, life: Life) -> TaskHandle | None:
        found = [w.handle for w in life.handles if w.handle.phase is TaskPhase.UNKNOWN]
        return self.rng.choice(found) if found else None

    def check_end_is_noted(self, handle: TaskHandle, life: Life) -> None:
        """An end is committed before anybody sees it."""
        task = self.service.tasks[handle.task_id]
        row = self.row_of(task)
        if self.kind != "model" or life.gate.is_dead or row is None or not handle.intent_id:
            return
        is_excused = {f"settled {task.intent_id}", "find_by_task"} & set(life.gate.failed)
        if row.intent.state not in _STATES.values() and not is_excused:
            self.complain(f"the end of {task} was seen and not noted: {row.intent}")

    def _check_delivered(self, life: Life) -> None:
        """Whatever was answered with 200 is in the journal, and every task can still be found."""
        claims = set(self.disk.claims)
        for task in self._own_tasks():
            row = self.row_of(task)
            is_bound = row is not None and row.intent.task_id == task.task_id
            is_claimed = (task.intent_id, task.task_id) in claims
            if row is not None and row.intent.task_id not in {"", task.task_id}:
                self.complain(f"{row} is bound to a task that is not its own, and not to {task}")
                continue
            if task.was_delivered and not is_bound and not is_claimed:
                self.complain(f"{task} was answered with 200, and its id stands nowhere: {row}")
            if not is_bound and not is_claimed and life.engine.inbox.owner_of(task.intent_id) is None:
                self.complain(f"{task} is not known after a restart: {row}")

    def _check_together(self) -> None:
        """Handles of one task that wait at the same time end at the same time, and alike."""
        for watched in self.together.values():
            done = [w.handle.is_done for w in watched]
            if any(done) and not all(done):
                self.complain(f"of one task, some handles ended: {[w.handle for w in watched]}")
            kinds = {type(w.handle._outcome) for w in watched if w.handle.is_done}
            if len(kinds) > 1:
                self.complain(f"handles of {watched[0].handle.task_id} ended differently: {kinds}")
        self.together = {}
        if self.life is not None:
            for watched_one in self.life.handles:
                handle = watched_one.handle
                if handle.task_id and not handle.is_done:
                    self.together.setdefault(handle.task_id, []).append(watched_one)

    async def _check_usage(self, life: Life, *, is_last: bool = True) -> None:
        """What the session counts for a budget is what the journal holds."""
        if life.gate.failed or life.gate.is_dead:
            return
        assert life.journal is not None
        ledger = life.engine.ledger
        if ledger is None:
            return
        try:
            totals = await life.journal.load_totals()
        except JournalError:
            return
        if ledger.tasks != totals.tasks:
            self.complain(f"{ledger.tasks} tasks are counted, the journal has {totals.tasks}")
        # An end that is just being noted counts in the session first.
        is_more = not is_last and ledger.spent >= totals.credits
        if ledger.spent != totals.credits and not is_more:
            self.complain(f"the session counts {ledger.spent} credits, the journal {totals}")

    def _check_rows(self) -> None:
        """In the end everything is bound, noted, and was sent as often as somebody accepted."""
        rows = self.disk.rows
        for task in self._own_tasks():
            row = self.row_of(task)
            if row is None or row.intent.task_id != task.task_id:
                self.complain(f"{task} is lost: {row}")
            elif row.intent.state is not _STATES[task.end]:
                self.complain(f"the end of {task} is not noted: {row}")
        if claims := [key for key in self.disk.claims if rows[key[0]].intent.task_id]:
            self.complain(f"claims of creates that have their task: {claims}")
        bodies = [body for body in self.service.bodies if body[2] != "429"]
        for intent_id, count in Counter(intent for intent, _, _ in bodies).items():
            if count > 1:
                self.complain(f"{count} bodies of intent {intent_id}")
        for ref in filter(None, REFS):
            self._check_bodies(ref)

    def _check_bodies(self, ref: str) -> None:
        """The second body of a ref is one that somebody accepted, or follows a sure no."""
        rows = self.disk.rows
        sent = [(intent, fate) for intent, prompt, fate in self.service.bodies if prompt == ref]
        paid = [intent for intent, fate in sent if fate not in _SURE_NO]
        unasked = [intent for intent in paid if not rows[intent].intent.replaces]
        if len(unasked) > 1 or len(paid) > 1 + self.consents + self.retries:
            self.complain(f"ref {ref} was paid {len(paid)} times, {len(unasked)} without consent: {sent}")
        perhaps = [intent for intent, fate in sent if fate not in {"422", "429"}]
        unasked = [intent for intent in perhaps if not rows[intent].intent.replaces]
        if len(unasked) > 1:
            self.complain(f"ref {ref} was sent again after an unclear answer: {sent}")
        if self.kind == "model":
            self._check_formers([rows[intent] for intent in dict.fromkeys(intent for intent, _ in sent)])

    def _check_formers(self, rows: Sequence[Row]) -> None:
        """Only what had failed or was refused is tried anew; the rest somebody accepted."""
        accepted = [row for row in rows if row.former_state in {IntentState.UNKNOWN, IntentState.WRITTEN_OFF}]
        if len(accepted) > self.consents:
            self.complain(f"perhaps paid, and sent again without consent: {accepted}")
        for row in rows:
            ends = [task.end for task in self._own_tasks() if task.intent_id == row.intent.replaces]
            if row.former_state is IntentState.FAILED and ends != ["fail"]:
                self.complain(f"{row} was sent in the place of what did not fail: {ends}")
            if row.former_state in {IntentState.CREATED, IntentState.SUCCEEDED, IntentState.SENDING}:
                self.complain(f"{row} was sent in the place of what may run, or is done")
            if row.intent.replaces and self.disk.rows[row.intent.replaces].intent.ref and row.intent.ref:
                self.complain(f"{row} and the one it replaces both have a ref")


@attrs.define
class Report:
    """What the campaign found."""

    seeds: int = 0
    steps: Counter[str] = attrs.field(factory=Counter)
    fates: Counter[str] = attrs.field(factory=Counter)
    complaints: dict[int, list[str]] = attrs.field(factory=dict)
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        self.seeds += other.seeds
        self.steps += other.steps
        self.fates += other.fates
        self.complaints |= other.complaints

    def __str__(self) -> str:
        wrong = [
            f"WRONG: {what}\n  replay: python -m tests.campaign orders --seed {seed}"
            for seed, found in sorted(self.complaints.items())[:20]
            for what in found[:3]
        ]
        return "\n".join(
            (
                f"orders   {self.seeds}  ({self.seconds:.0f} s)",
                "steps    " + ", ".join(f"{name} {count}" for name, count in self.steps.most_common()),
                "creates  " + ", ".join(f"{name} {count}" for name, count in self.fates.most_common()),
                *wrong,
                f"{len(self.complaints)} orders FAILED" if self.complaints else "all is well",
            )
        )


def run_seed(seed: int, *, verbose: bool = False) -> Report:
    """Run one order on a loop of its own."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        order = Order(seed, Path(folder), verbose=verbose)
        with asyncio.Runner(loop_factory=as_asked(SteeredLoop)) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, SteeredLoop)
            loop.advancing += 1
            loop.patience_s = 0.0
            loop.set_exception_handler(lambda _, context: order.complain(f"the loop says: {context}"))
            try:
                runner.run(order.run())
            except Exception as exc:
                logging.getLogger("campaign").exception("seed %d", seed)
                order.complain(f"the order broke off: {exc!r}")
    found = {seed: order.complaints} if order.complaints else {}
    return Report(1, order.steps, Counter(fate for _, _, fate in order.service.bodies), found)


def run_range(seeds: Sequence[int]) -> Report:
    """Run some orders, one after the other."""
    log = logging.getLogger("kie_async")
    before, report = log.level, Report()
    log.setLevel(logging.CRITICAL + 1)
    try:
        for seed in seeds:
            report.add(run_seed(seed))
    finally:
        gc.collect()  # handles that nobody awaited say so when they go
        log.setLevel(before)
    return report


def run(seeds: int, *, first: int = 0, processes: int = 1) -> Report:
    """Run so many orders, in so many processes."""
    began = time.perf_counter()
    report = Report()
    for part in _parts(range(first, first + seeds), processes):
        report.add(part)
    report.seconds = time.perf_counter() - began
    return report


def _parts(seeds: range, processes: int) -> Iterator[Report]:
    if processes == 1:
        yield run_range(seeds)
        return
    chunks = [seeds[at : at + 50] for at in range(0, len(seeds), 50)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(run_range, chunks)


def main(argv: Sequence[str]) -> int:
    """Run the campaign, print what it found, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign orders", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="replay this one, step by step")
    options = parser.parse_args(argv)
    if options.seed is not None:
        logging.basicConfig(level=logging.INFO)
        report = run_seed(options.seed, verbose=True)
    else:
        report = run(options.seeds, first=options.first, processes=options.processes)
    print(report)
    return 1 if report.complaints else 0
