"""Takes a submitted create back at every turn of the loop and at random times: a yes is never a lie.

The server counts whole bodies and makes a task of each that it accepts. After a yes there must be no task,
then and later, no slot that is missing, and nothing in the journal that a restart would have to wonder about.
After a no the handle must go on as if nothing had been asked: its task is the server's one task.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
from support import inside
from support.create_faults import KEY, after_a_create, warm_up
from support.misbehaving import Misbehaving, certified, trusting

from kie_async import CreateOutcomeUnknown, KieError, KieSession, Network, TaskHandle, Withdrawn
from kie_async.journal.intents import IntentState
from kie_async.journal.sqlite import SqliteJournal

from . import cancel
from ._sweeping import run_sweep, sweep_points
from .cancel import LIMITS, Point, Seen, Tasks, check_journal, journal_of

HOWS = ("withdraw", "withdraw while created() is awaited", "withdraw and close")


def points(count: int, rng: random.Random) -> Iterator[Point]:
    """Yield the points of the cancel sweep, each with a way to withdraw."""
    for number, point in enumerate(cancel.points(count, rng)):
        how = HOWS[number // 80 % 2] if point.turns is not None else rng.choice(HOWS)
        yield attrs.evolve(point, how=how)


async def probe(point: Point, folder: Path) -> Seen:
    """Take one create back and see what became of everything."""
    tasks = Tasks(point)
    path = folder / f"{secrets.token_hex(8)}.db"
    behave = after_a_create(tasks.behave) if point.is_kept else tasks.behave
    async with Misbehaving(behave, tls=certified() if point.tls else None) as server:
        journal = journal_of(point, path)
        trust = Network(ssl=trusting())
        async with KieSession(
            KEY, base_url=server.url, limits=LIMITS, journal=journal, network=trust, max_in_flight=1
        ) as kie:
            if point.is_kept:
                await warm_up(inside.transport_of(kie), server)
            handle = kie.submit("test/echo", {"prompt": "a lighthouse"})
            is_taken_back, outcome = await _take_back(kie, handle, point)
            await inside.until_nothing_is_sent(kie)
            await asyncio.sleep(0.005)  # what is on its way arrives
            word, objection = judge(kie, handle, outcome, point, tasks, is_taken_back=is_taken_back)
        await asyncio.sleep(0.005)
        if is_taken_back and tasks.ids:
            objection = f"taken back, and there is {tasks.ids}"
        if isinstance(journal, SqliteJournal) and not objection:
            objection = await check_journal(path, tasks, server)
            if is_taken_back and not objection:
                objection = await _check_nothing_is_open(path)
    return Seen(word=word, objection=objection)


async def _take_back(
    kie: KieSession, handle: TaskHandle, point: Point
) -> tuple[bool, TaskHandle | BaseException]:
    """Withdraw at the moment of the point; return the answer, and what the wait for the task came to."""
    awaited = point.how != "withdraw"
    creating = asyncio.create_task(handle.created()) if awaited else None
    if point.turns is None:
        await asyncio.sleep(point.seconds)
    else:
        for _ in range(point.turns):
            await asyncio.sleep(0)
    is_taken_back = handle.withdraw()
    if point.how.endswith("close"):
        await inside.drain(kie)
    creating = creating or asyncio.create_task(handle.created())
    async with asyncio.timeout(10):
        return is_taken_back, (await asyncio.gather(creating, return_exceptions=True))[0]


def judge(
    kie: KieSession,
    handle: TaskHandle,
    outcome: TaskHandle | BaseException,
    point: Point,
    tasks: Tasks,
    *,
    is_taken_back: bool,
) -> tuple[str, str]:
    """Return a word for what became of a create, and what is wrong with it."""
    if len(tasks.ids) > 1:
        return "", f"{len(tasks.ids)} tasks were made of one create"
    if inside.creating_count(kie):
        return "", "the intent is still pending"
    if is_taken_back:
        if not isinstance(outcome, Withdrawn) or not handle.is_done:
            return "", f"taken back, and who waited got {outcome!r}"
        if not inside.has_free_slot(kie) or kie.stats().queued or kie.stats().in_flight:
            return "", "taken back, and a slot or a place is missing"
        return "taken back", ""
    if isinstance(outcome, TaskHandle):
        return ("goes on", "") if [handle.task_id] == tasks.ids else ("", f"{handle} for {tasks.ids}")
    if isinstance(outcome, CreateOutcomeUnknown):
        if point.server == "answers":
            return "", "unknown, although the answer came"
        return "unknown", "" if handle.phase == "unknown" else f"unknown, and the handle says {handle.phase}"
    if not isinstance(outcome, KieError) or isinstance(outcome, Withdrawn):
        return "", f"not taken back, and who waited got {outcome!r}"
    if tasks.ids:
        return "", f"lost {tasks.ids}; who waited got {outcome!r}"
    return "not sent again", ""


async def _check_nothing_is_open(path: Path) -> str:
    """What was taken back must leave nothing for the next process to decide."""
    journal = SqliteJournal(path)
    try:
        await journal.open()
        intents = await journal.list_intents()
    finally:
        await journal.aclose()
    wrong = [intent.state for intent in intents if intent.state is not IntentState.NOT_CREATED]
    return f"taken back, and the journal says {wrong}" if wrong else ""


async def sweep(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run so many points; return how they ended and what was wrong."""
    return await sweep_points(points(count, random.Random(seed)), probe)


def main(argv: list[str]) -> int:
    """Run the sweep; the exit status says whether a yes was a lie, or a no changed anything."""
    return run_sweep(argv, "withdraw", __doc__, sweep)
