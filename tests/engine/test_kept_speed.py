"""Queries find the speed that the service takes, whatever it counts; what it refused is in the journal."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import OpenSession
from support.clock import Clock
from support.journals import raw

from kie_async import KieSession, Limits, PollSchedule, Rate, Sandbox, TaskHandle
from kie_async._secrets import Secret
from kie_async.engine.kept_speed import KeptQuerySpeed
from kie_async.journal.memory import MemoryJournal
from kie_async.sandbox import Never

HERE = "https://api.example"
SCALED = Limits(create=Rate(1000, per_s=0.01), query=Rate(2, per_s=0.03), query_ceiling=Rate(8, per_s=0.03))
"""Where a window is 33 times as short, so are the times of the speed."""
FIXED = attrs.evolve(SCALED, query_ceiling=None)
MANY = attrs.evolve(SCALED, query=Rate(1000, per_s=0.01), query_ceiling=None)
LIMIT = (2, 0.03)


def kept(journal: MemoryJournal, *, key: str = "key", origin: str = HERE, **limits: Any) -> KeptQuerySpeed:
    return KeptQuerySpeed(Limits(**limits), journal, account=Secret(key), origin=origin)


async def refused(journal: MemoryJournal, **options: Any) -> int:
    """Have a speed refused and noted; return what it was taken back to."""
    speed = kept(journal, **options)
    for second in range(60):
        speed.note_wait(9.0, float(second))
    speed.note_refused("t1", 59.0, 59.1)
    await speed.drain()
    return speed.count


async def test_what_was_refused_is_recalled_by_the_next_session_of_the_account() -> None:
    journal = MemoryJournal()
    held = await refused(journal)
    speed = kept(journal)
    await speed.recall(0.0)
    assert 10 < speed.count == held


@pytest.mark.parametrize("other", [{"key": "other"}, {"origin": "https://sandbox.example"}])
async def test_no_other_account_and_no_other_service_recalls_it(other: dict[str, str]) -> None:
    journal = MemoryJournal()
    await refused(journal)
    speed = kept(journal, **other)
    await speed.recall(0.0)
    assert speed.count == 10


async def test_what_turns_out_to_be_one_tasks_own_limit_is_recalled_no_more() -> None:
    journal = MemoryJournal()
    speed = kept(journal)
    speed.note_refused("t1", 0.0, 0.1)
    speed.note_refused("t1", 2.0, 2.1)
    await speed.drain()
    following = kept(journal)
    await following.recall(0.0)
    assert following.count == 10


async def test_a_session_notes_what_it_was_refused_and_shows_no_key(
    clock: Clock, sandbox: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    kie = await open_session(journal=path, limits=Limits())
    kie.attach("task_1").abandon()
    handle = kie.attach("task_2")
    sandbox.faults.query_429_next = 1
    await clock.advance(5.0)
    assert sandbox.counts["query.429"] == 1
    handle.abandon()
    await kie.aclose()
    with raw(path) as db:
        notes = [row for row in db.execute("SELECT * FROM note") if "query_speed" in str(row)]
    assert len(notes) == 1
    assert "a_second" in str(notes)
    assert "sandbox-key" not in json.dumps(notes, default=str)


@pytest.mark.parametrize(
    ("limits", "gets_faster"),
    [
        ({"query_limit": LIMIT}, False),
        ({"query_limit": None, "task_query_limit": LIMIT}, True),
        ({"query_limit": LIMIT, "task_query_limit": LIMIT}, False),
        ({"query_limit": None}, True),
    ],
    ids=["key", "task", "both", "none"],
)
async def test_it_finds_the_speed_of_every_service(limits: dict[str, Any], gets_faster: bool) -> None:
    async with (
        Sandbox(durations=Never(), create_limit=None, **limits) as sandbox,
        Sandbox(durations=Never(), create_limit=None, **limits) as other,
    ):
        asked, as_it_began = await asyncio.gather(polls(sandbox, SCALED), polls(other, FIXED))
        assert sandbox.counts["query.429"] <= (0 if gets_faster else 4)
    assert (asked > 1.2 * as_it_began) == gets_faster


async def test_a_task_that_somebody_else_asks_for_slows_no_other_down() -> None:
    limits: dict[str, Any] = {"create_limit": None, "query_limit": None, "task_query_limit": LIMIT}
    async with (
        Sandbox(durations=Never(), **limits) as sandbox,
        KieSession("sandbox-key", base_url=sandbox.url, limits=MANY) as somebody,
    ):
        asked, as_it_began = await asyncio.gather(
            polls(sandbox, SCALED, asked_by=somebody), polls(sandbox, FIXED)
        )
        assert sandbox.counts["query.429"] >= 10
    assert asked > 1.2 * as_it_began


async def polls(sandbox: Sandbox, limits: Limits, *, asked_by: KieSession | None = None) -> int:
    """Return how often so many tasks were polled, one of which somebody else asks for all the time."""
    poll = PollSchedule.fixed(0.1)
    async with KieSession("sandbox-key", base_url=sandbox.url, limits=limits, poll=poll) as kie:
        handles = [await kie.create("sandbox/echo", {}) for _ in range(100)]
        asking = [] if asked_by is None else [asyncio.create_task(ask_on(asked_by, handles[0].task_id))]
        before = kie.stats().queries
        await asyncio.sleep(1.2)
        asked = kie.stats().queries - before
        for waiting in (*handles, *asking):
            waiting.abandon() if isinstance(waiting, TaskHandle) else waiting.cancel()
        return asked


async def ask_on(kie: KieSession, task_id: str) -> None:
    while True:
        await asyncio.gather(*(kie.query(task_id) for _ in range(16)), return_exceptions=True)
