"""Whoever gives a create up, whenever: what has not left never leaves, what has left is not lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from campaign.cancel import Point, points, probe
from conftest import NO_LIMITS, eventually
from support.create_faults import KEY, Notes, creating, creation
from support.misbehaving import (
    TASK_ID,
    Behaviour,
    Misbehaving,
    Peer,
    answer,
    breaks_off,
    created,
    refused,
    says,
)

from kie_async import CreateOutcomeUnknown, KieSession, Limits, Rate, RateLimited, SessionMisuse
from kie_async.engine.pending_creates import Phase
from kie_async.journal.intents import IntentState
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.sqlite import SqliteJournal
from kie_async.limits.rate_limiter import RateLimiter

OK = answer(created())
ECHO = ("test/echo", {"prompt": "a lighthouse"})
pytestmark = pytest.mark.usefixtures("leaks")


def shared_out(all_points: Iterable[Point], groups: int) -> list[list[Point]]:
    given = list(all_points)
    return [given[number::groups] for number in range(groups)]


@pytest.mark.parametrize("group", shared_out(points(200, random.Random(1)), 10), ids=range(10))
async def test_no_id_is_lost_and_nothing_leaves_late_wherever_a_create_is_given_up(
    group: list[Point], tmp_path: Path
) -> None:
    for point in group:
        seen = await probe(point, tmp_path)
        assert not seen.objection, point


# --- before the first byte -----------------------------------------------------------------------


def makes_tasks() -> Behaviour:
    """Answer each create with an id of its own."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(created(f"task_{len(peer.server.bodies)}")))

    return behave


async def given_up(kie: KieSession, *, after_s: float = 0.03) -> BaseException:
    """Begin a create, give it up, return what its caller got."""
    creating = asyncio.create_task(kie.create(*ECHO))
    await asyncio.sleep(after_s)
    creating.cancel()
    [got] = await asyncio.gather(creating, return_exceptions=True)
    assert isinstance(got, BaseException)
    return got


async def test_giving_up_in_the_queue_for_a_slot_sends_nothing_and_takes_no_slot() -> None:
    async with Misbehaving(makes_tasks()) as server:
        async with KieSession(KEY, base_url=server.url, max_in_flight=1) as kie:
            first = await kie.create(*ECHO)
            assert isinstance(await given_up(kie), asyncio.CancelledError)
            assert len(server.bodies) == 1
            first.abandon()
            await asyncio.wait_for(kie.create(*ECHO), 5)
    assert len(server.bodies) == 2


async def test_giving_up_in_the_queue_of_the_limiter_sends_nothing_and_takes_no_permit() -> None:
    limits = Limits(create=Rate(1, per_s=0.3))
    async with Misbehaving(makes_tasks()) as server:
        async with KieSession(KEY, base_url=server.url, limits=limits) as kie:
            await kie.create(*ECHO)
            assert isinstance(await given_up(kie), asyncio.CancelledError)
            assert len(server.bodies) == 1
            await kie.create(*ECHO)
    first, second = server.read_at
    assert 0.3 <= second - first < 0.5


async def test_giving_up_while_a_thread_notes_sends_nothing_then_or_later(tmp_path: Path) -> None:
    point = Point(journal="thread", commit_s=0.06, seconds=0.03)
    seen = await probe(point, tmp_path)
    await asyncio.sleep(0.06)
    assert (seen.word, seen.objection) == ("not sent", "")


async def test_a_create_given_up_while_it_was_noted_is_not_unknown_after_a_restart(tmp_path: Path) -> None:
    point = Point(journal="file", commit_s=0.4, seconds=0.2)
    seen = await probe(point, tmp_path)
    assert (seen.word, seen.objection) == ("not sent", "")
    journal = SqliteJournal(only_file(tmp_path))
    assert await journal.open() == []
    [intent] = await journal.list_intents()
    assert intent.state is IntentState.NOT_CREATED
    await journal.aclose()


def only_file(folder: Path) -> Path:
    [path] = folder.glob("*.db")
    return path


# --- after it ------------------------------------------------------------------------------------


async def test_giving_up_after_the_body_left_leaves_the_task_to_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def dawdles(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(OK)

    async with Misbehaving(dawdles) as server:
        async with KieSession(KEY, base_url=server.url) as kie:
            assert isinstance(await given_up(kie), asyncio.CancelledError)
            assert kie.stats().in_flight == 0
            await eventually_s(lambda: kie.stats().in_flight == 1)
            assert kie.attach(TASK_ID).request is not None  # the handle that was being made
    assert f"task {TASK_ID} was created after its caller was cancelled" in caplog.text


async def eventually_s(holds: Any) -> None:
    """Wait, in real time, until *holds*."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_giving_up_between_two_attempts_stops_the_second() -> None:
    no = answer(refused(429), 429, "Retry-After: 0.2\r\n")
    async with Misbehaving(says(no, OK)) as server:
        async with KieSession(KEY, base_url=server.url, max_in_flight=1) as kie:
            assert isinstance(await given_up(kie, after_s=0.1), asyncio.CancelledError)
            await asyncio.sleep(0.3)
            assert len(server.bodies) == 1
            await asyncio.wait_for(kie.create(*ECHO), 5)  # the slot is free


async def test_a_no_to_a_create_given_up_meanwhile_is_not_followed_by_another_attempt() -> None:
    async def refuses_slowly(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(answer(refused(429), 429, "Retry-After: 0.01\r\n"))

    async with Misbehaving(refuses_slowly) as server:
        async with KieSession(KEY, base_url=server.url, max_in_flight=1) as kie:
            assert isinstance(await given_up(kie), asyncio.CancelledError)
            await asyncio.sleep(0.3)
            assert len(server.bodies) == 1
            assert kie._engine.tracker.pending.count(Phase.CREATING) == 0


CUT_OFF: list[tuple[str, Behaviour, object]] = [
    ("an id that came", breaks_off(answer(json.dumps(created()).encode(), length=999), "hang"), TASK_ID),
    (
        "a limit that came",
        breaks_off(answer(b"{", 429, "Retry-After: 0.01\r\n", length=999), "hang"),
        RateLimited,
    ),
    ("nothing that came", breaks_off(b"", "hang"), CreateOutcomeUnknown),
]


@pytest.mark.parametrize(("what", "behave", "ends"), CUT_OFF, ids=[row[0] for row in CUT_OFF])
async def test_what_had_come_counts_when_a_create_is_cut_off(
    what: str, behave: Behaviour, ends: object
) -> None:
    async with Misbehaving(behave) as server, creating(server.url) as transport:
        running = asyncio.create_task(creation(transport, patience_s=100).run())
        await eventually(lambda: server.bodies)
        await asyncio.sleep(0.05)
        running.cancel()
        [got] = await asyncio.gather(running, return_exceptions=True)
    assert got == ends or type(got) is ends
    assert len(server.bodies) == 1


async def test_cutting_off_twice_what_has_left_is_unknown_and_not_unsent() -> None:
    class Stubborn(Notes):
        async def mark_unsent(self, intent_id: str) -> None:
            raise AssertionError("the body had left")

    async with Misbehaving(breaks_off(b"", "hang")) as server, creating(server.url) as transport:
        running = asyncio.create_task(creation(transport, journal=Stubborn()).run())
        await eventually(lambda: server.bodies)
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(CreateOutcomeUnknown):
            await running


# --- the session closes --------------------------------------------------------------------------


async def test_closing_keeps_back_what_has_not_left() -> None:
    limits = Limits(create=Rate(1, per_s=60))
    async with Misbehaving(says(OK)) as server:
        async with KieSession(KEY, base_url=server.url, limits=limits) as kie:
            await kie.create(*ECHO)
            waiting = [asyncio.create_task(kie.create(*ECHO)) for _ in range(20)]
            await asyncio.sleep(0.03)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [SessionMisuse] * 20
    assert len(server.bodies) == 1


@pytest.mark.parametrize("number", range(12))
async def test_an_interrupt_leaves_a_journal_that_knows_every_task(number: int, tmp_path: Path) -> None:
    ids = iter(range(1000))

    async def behave(peer: Peer) -> None:
        await peer.request()
        made.append(f"task_{next(ids)}")
        await asyncio.sleep(0.003)
        if peer.number % 3:
            await peer.send(answer(created(made[-1])))

    async def program(url: str) -> None:
        async with KieSession(KEY, base_url=url, journal=tmp_path / "run.db", limits=NO_LIMITS) as kie:
            await asyncio.gather(*(kie.create(*ECHO) for _ in range(10)), return_exceptions=True)
            await asyncio.sleep(1)

    made: list[str] = []
    async with Misbehaving(behave) as server:
        running = asyncio.create_task(program(server.url))
        await asyncio.sleep(0.003 * number)
        running.cancel()  # as Ctrl-C does to the task `asyncio.run` runs
        await asyncio.gather(running, return_exceptions=True)
        bodies = len(server.bodies)
        await asyncio.sleep(0.02)
        assert len(server.bodies) == bodies == len(made)
    journal = SqliteJournal(tmp_path / "run.db")
    await journal.open()
    intents = await journal.list_intents()
    await journal.aclose()
    known = {intent.task_id for intent in intents} - {""}
    unknown = [intent for intent in intents if intent.state is IntentState.UNKNOWN]
    assert known <= set(made)
    assert len(set(made) - known) == len(unknown)


# --- what a cancel leaves behind -----------------------------------------------------------------


async def test_a_limiter_gets_back_the_permit_of_a_create_given_up() -> None:
    now = asyncio.get_running_loop().time
    limiter = RateLimiter(Rate(1, per_s=60), now=now)

    async def slow() -> None:
        await asyncio.sleep(1)

    async with Misbehaving(says(OK)) as server, creating(server.url) as transport:
        running = asyncio.create_task(creation(transport, journal=Notes(slow), limiter=limiter).run())
        await asyncio.sleep(0.03)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await asyncio.wait_for(creation(transport, limiter=limiter).run(), 1) == TASK_ID


async def test_giving_up_while_the_end_is_noted_leaves_no_slot_behind() -> None:
    class Slow(MemoryJournal):
        async def mark_ended(self, *_: object, **__: object) -> None:
            await asyncio.sleep(0.05)

    async with Misbehaving(breaks_off(b"", "close")) as server:
        async with KieSession(KEY, base_url=server.url, max_in_flight=1) as kie:
            for _ in range(3):  # then the breaker says no
                with pytest.raises(CreateOutcomeUnknown):
                    await kie.create(*ECHO)
            kie._engine.calls.journal = Slow()
            await given_up(kie, after_s=0.02)
            await asyncio.sleep(0.1)
            assert kie._engine.tracker.pending.count(Phase.CREATING) == 0
