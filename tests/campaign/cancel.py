"""Gives up a create at every turn of the loop and at random times: no id is lost, nothing leaves after.

The server counts whole bodies and makes a task of each. When all is quiet, each of its tasks must be in
somebody's hands: returned, in flight in the session, or reported as unknown. And a create of which the
session holds nothing must have sent nothing, then and later.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
from support import inside
from support.create_faults import KEY, after_a_create, warm_up
from support.misbehaving import Misbehaving, Peer, answer, certified, created, refused, trusting

from kie_async import CreateOutcomeUnknown, KieError, KieSession, Limits, Network, Rate, TaskHandle
from kie_async.journal.base import Journal
from kie_async.journal.intents import Intent, IntentState
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.sqlite import SqliteJournal

from ._sweeping import run_sweep, sweep_points

LIMITS = Limits(create=Rate(1000, per_s=0.01))
HOWS = ("cancel", "cancel twice", "close", "cancel and close", "tear down")
_JOURNALS = ("none", "slow", "thread", "file")
_SERVERS = ("answers", "loses the answer", "refuses first")


@attrs.frozen(kw_only=True)
class Point:
    """One way and one moment to give a create up."""

    how: str = "cancel"
    turns: int | None = None
    """So many turns of the loop after the call; None: after `seconds`."""
    seconds: float = 0.0
    journal: str = "none"
    commit_s: float = 0.0
    """How long the note before the first byte takes."""
    server: str = "answers"
    answer_s: float = 0.0
    tls: bool = False
    is_kept: bool = False
    """Whether its connection carried another create before."""

    @property
    def is_torn_down(self) -> bool:
        return self.how == "tear down"


@attrs.frozen(kw_only=True)
class Seen:
    """What a point led to."""

    word: str
    objection: str = ""


def points(count: int, rng: random.Random) -> Iterator[Point]:
    """Yield every turn of the loop first, then random moments."""
    for number in range(count):
        if number < count // 2:
            yield Point(
                turns=number % 80,
                how=HOWS[number // 80 % 2],
                tls=number // 80 % 2 == 1,
                journal=("none", "file")[number // 160 % 2],
                is_kept=rng.random() < 0.5,
            )
        else:
            yield Point(
                how=rng.choice(HOWS),
                seconds=rng.uniform(0, 0.012),
                journal=rng.choice(_JOURNALS),
                commit_s=rng.uniform(0, 0.004),
                server=rng.choice(_SERVERS),
                answer_s=rng.uniform(0, 0.004),
                tls=rng.random() < 0.3,
                is_kept=rng.random() < 0.5,
            )


class Tasks:
    """A server that makes a task of every body it accepts."""

    def __init__(self, point: Point) -> None:
        self.ids: list[str] = []
        self._point = point

    async def behave(self, peer: Peer) -> None:
        await peer.request()
        if self._point.server == "refuses first" and peer.number == 1:
            await peer.send(answer(refused(429), 429, "Retry-After: 0.003\r\n"))
            return
        self.ids.append(f"task_{len(self.ids)}")
        await asyncio.sleep(self._point.answer_s)
        if self._point.server != "loses the answer":
            await peer.send(answer(created(self.ids[-1])))


class _SlowJournal(MemoryJournal):
    def __init__(self, wait: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._wait = wait

    async def mark_sending(self, intent: Intent) -> None:
        await self._wait()


class _SlowFile(SqliteJournal):
    """The real one, a little later."""

    def __init__(self, path: Path, commit_s: float) -> None:
        super().__init__(path)
        self._commit_s = commit_s

    async def mark_sending(self, intent: Intent) -> None:
        await super().mark_sending(intent)
        await asyncio.sleep(self._commit_s)


async def probe(point: Point, folder: Path) -> Seen:
    """Give one create up and see what became of everything."""
    tasks = Tasks(point)
    path = folder / f"{secrets.token_hex(8)}.db"
    tls = certified() if point.tls else None
    behave = after_a_create(tasks.behave) if point.is_kept else tasks.behave
    async with Misbehaving(behave, tls=tls) as server:
        journal = journal_of(point, path)
        trust = Network(ssl=trusting())
        async with KieSession(KEY, base_url=server.url, limits=LIMITS, journal=journal, network=trust) as kie:
            if point.is_kept:
                await warm_up(inside.transport_of(kie), server)
            outcome = await _give_up(kie, point)
            word, objection = await judge(kie, point, outcome, server, tasks)
            if word.startswith("unknown") and point.server == "answers" and not point.is_torn_down:
                objection = "unknown, although the answer came"
        await asyncio.sleep(0.005)
        if word == "not sent" and server.bodies:
            objection = "a body was read after it was called not sent"
        if isinstance(journal, SqliteJournal) and not objection:
            objection = await check_journal(path, tasks, server)
    return Seen(word=word, objection=objection)


def journal_of(point: Point, path: Path) -> Journal | None:
    if point.journal == "slow":
        return _SlowJournal(lambda: asyncio.sleep(point.commit_s))
    if point.journal == "thread":
        return _SlowJournal(lambda: asyncio.to_thread(time.sleep, point.commit_s))
    return _SlowFile(path, point.commit_s) if point.journal == "file" else None


async def _give_up(kie: KieSession, point: Point) -> TaskHandle | BaseException:
    creating = asyncio.create_task(kie.create("test/echo", {"prompt": "a lighthouse"}))
    if point.turns is None:
        await asyncio.sleep(point.seconds)
    else:
        for _ in range(point.turns):
            await asyncio.sleep(0)
    if point.is_torn_down:  # as `asyncio.run` does at its end
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task() and "kie_async" in task.get_name() + repr(task.get_coro()):
                task.cancel()
    elif point.how != "close":
        creating.cancel()
    if point.how == "cancel twice":
        await asyncio.sleep(0)
        creating.cancel()
    if point.how.endswith("close"):
        await asyncio.gather(inside.drain(kie), creating, return_exceptions=True)
    return (await asyncio.gather(creating, return_exceptions=True))[0]


async def judge(
    kie: KieSession, point: Point, outcome: TaskHandle | BaseException, server: Misbehaving, tasks: Tasks
) -> tuple[str, str]:
    """Return a word for what became of a create, and what is wrong with it."""
    await inside.until_nothing_is_sent(kie)
    await asyncio.sleep(0.005)  # what is on its way arrives
    known = inside.task_ids(kie)
    unknown = len(inside.unknown_handles(kie))
    if isinstance(outcome, TaskHandle):
        known.add(outcome.task_id)
    lost = set(tasks.ids) - known
    if len(tasks.ids) > 1:
        return "", f"{len(tasks.ids)} tasks were made of one create"
    if lost and not unknown and not (point.is_torn_down and point.journal == "file"):
        return "", f"lost {lost}; the caller got {outcome!r}"
    if known - set(tasks.ids):
        return "", f"invented {known - set(tasks.ids)}"
    if not isinstance(outcome, TaskHandle | asyncio.CancelledError | KieError):
        return "", f"the caller got {outcome!r}"
    if isinstance(outcome, CreateOutcomeUnknown) != bool(unknown) and not isinstance(
        outcome, asyncio.CancelledError
    ):
        return "", f"{unknown} unknown, and the caller got {outcome!r}"
    if inside.creating_count(kie) and not point.is_torn_down:
        return "", "the intent is still pending"
    if isinstance(outcome, TaskHandle):
        return "returned", ""
    if known:
        return "in flight", ""
    if unknown:
        return ("unknown" if tasks.ids else "unknown, never arrived"), ""
    return ("refused" if server.bodies else "not sent"), ""


async def check_journal(path: Path, tasks: Tasks, server: Misbehaving) -> str:
    """The next process must read the same story from the file."""
    journal = SqliteJournal(path)
    try:
        await journal.open()
        intents = await journal.list_intents()
    finally:
        await journal.aclose()
    if len(intents) > 1:
        return f"{len(intents)} intents for one create"
    if not intents:
        return "the server made a task of no intent" if tasks.ids else ""
    [intent] = intents
    if tasks.ids and intent.task_id != tasks.ids[0] and intent.state is not IntentState.UNKNOWN:
        return f"the journal holds {intent.state} for {tasks.ids}"
    if not server.bodies and intent.state is IntentState.UNKNOWN:
        return "the journal calls unknown what never left"
    return ""


async def sweep(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run so many points; return how they ended and what was wrong."""
    return await sweep_points(points(count, random.Random(seed)), probe)


def main(argv: list[str]) -> int:
    """Run the sweep; the exit status says whether anything was lost."""
    return run_sweep(argv, "cancel", __doc__, sweep)
