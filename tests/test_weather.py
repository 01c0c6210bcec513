"""Weather: what a session waits out, each said once for all tasks, and once more when it is over."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from conftest import NO_LIMITS, Events, OpenSession
from support.clock import Clock, eventually
from support.link import Link
from support.misbehaving import (
    Misbehaving,
    Peer,
    answer,
    black_hole,
    certified,
    html,
    nobody,
    refused,
    says,
)

from kie_async import (
    BatchStopped,
    CreateOutcomeUnknown,
    CreatesHalted,
    DownloadFailed,
    InvalidRequest,
    JobState,
    JournalFull,
    KieSession,
    Limits,
    Network,
    Outcome,
    PollSchedule,
    Rate,
    Sandbox,
    SessionMisuse,
    SqliteJournal,
    TaskNotNoted,
    TaskRecord,
    TaskRequest,
    TransportError,
    UploadRefused,
    Weather,
)
from kie_async.journal.base import Intent, IntentState
from kie_async.limits.circuit_breaker import HALT_S, UNKNOWN_IN_A_ROW
from kie_async.limits.long_wait import GAP_S, LONG_S, LongWait
from kie_async.sandbox import Fixed

MINUTE, HOUR = 60.0, 3600.0
CALM = PollSchedule.fixed(5.0)


def echo(number: int = 0) -> TaskRequest:
    return TaskRequest(model="sandbox/echo", input={"prompt": str(number)}, ref=f"r{number}")


def echoes(count: int) -> list[TaskRequest]:
    return [echo(number) for number in range(count)]


@pytest.fixture(autouse=True)
def log_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kie_async")


def lines(caplog: pytest.LogCaptureFixture, level: int, *words: str) -> list[str]:
    """Return what was said at a level with one of the words."""
    said = [record.getMessage() for record in caplog.records if record.levelno == level]
    return [line for line in said if any(word in line for word in words)]


def weather(events: Events) -> list[Weather]:
    return [event.weather for event in events if event.weather is not None]


async def read(batch: Any) -> list[Outcome]:
    return [outcome async for outcome in batch]


@pytest.fixture
async def link(sandbox: Sandbox) -> AsyncIterator[Link]:
    """Return a line to the sandbox that can be frozen and cut."""
    async with Link(sandbox.url) as link:
        yield link


# --- a service out of reach ----------------------------------------------------------------------------


async def end_all(kie: KieSession, creates: list[asyncio.Task[Any]]) -> None:
    await kie.aclose()
    ends = await asyncio.gather(*creates, return_exceptions=True)
    assert {type(end) for end in ends} == {SessionMisuse}


async def test_creates_that_reach_nobody_are_one_warning_and_one_more_each_minute(
    clock: Clock, open_session: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    with nobody() as port:
        url = f"http://127.0.0.1:{port}"
        kie = await open_session(base_url=url, create_timeout_s=None)
        creates = [asyncio.create_task(kie.create("sandbox/echo", {"prompt": "x"})) for _ in range(10)]
        await clock.advance(2.0)
        (first,) = lines(caplog, logging.WARNING, "")
        assert first.startswith(f"creates at {url} have failed since ")
        assert "3 in a row: cannot connect to 127.0.0.1" in first
        assert first.endswith("nothing was sent; they are tried again until it can be reached")
        await clock.advance(10 * MINUTE)
        assert 10 <= len(lines(caplog, logging.WARNING, "")) <= 11
        await end_all(kie, creates)


async def test_a_thousand_creates_that_wait_are_one_line(
    clock: Clock, open_session: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    with black_hole() as port:
        url, limits = f"http://127.0.0.1:{port}", Limits(create=NO_LIMITS.create)
        kie = await open_session(base_url=url, create_timeout_s=None, max_in_flight=1000, limits=limits)
        creates = [asyncio.create_task(kie.create("sandbox/echo", {"prompt": "x"})) for _ in range(1000)]
        await clock.advance(45.0)
        (said,) = lines(caplog, logging.WARNING, "")
        assert "no connection in time" in said
        assert len(lines(caplog, logging.INFO, "")) == 1  # that they wait for their turn
        await end_all(kie, creates)


async def test_when_it_is_over_one_line_says_so(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, link: Link, caplog: Any, events: Events
) -> None:
    kie = await open_session(base_url=link.url, poll=CALM, create_timeout_s=None, on_event=events)
    await link.cut()
    creates = [asyncio.create_task(kie.create(echo(number))) for number in range(20)]
    await clock.advance(45.0)
    await link.mend()
    await clock.advance(31.0)
    assert len({handle.task_id for handle in await asyncio.gather(*creates)}) == 20
    assert len(sandbox.tasks) == 20
    (over,) = lines(caplog, logging.INFO, "get through again")
    assert over.startswith(f"creates at {link.url} get through again, after ")
    begun, ended = weather(events)
    assert (begun.kind, begun.is_over) == ("unreachable", False)
    assert (ended.kind, ended.is_over) == ("unreachable", True)
    assert begun.since == ended.since
    assert begun.message in lines(caplog, logging.WARNING, "")


async def test_a_single_create_that_reaches_nobody_ends_and_says_that_nothing_was_sent(
    open_session: OpenSession,
) -> None:
    with nobody() as port:
        kie = await open_session(base_url=f"http://127.0.0.1:{port}", create_timeout_s=0.3)
        begun_at = time.monotonic()
        with pytest.raises(
            TransportError, match=r"nothing was sent: .*create_timeout_s is 0\.3.*cannot conn"
        ):
            await kie.create(echo())
        assert time.monotonic() - begun_at < 2.0
        assert kie.stats().in_flight == 0


async def test_a_single_create_ends_in_time_where_packets_are_dropped(open_session: OpenSession) -> None:
    with black_hole() as port:
        limits = Limits(create=NO_LIMITS.create, create_connections=1)
        kie = await open_session(base_url=f"http://127.0.0.1:{port}", create_timeout_s=0.3, limits=limits)
        begun_at = time.monotonic()
        creates = [kie.create("sandbox/echo", {"prompt": "x"}) for _ in range(20)]  # 19 wait for their turn
        ends = await asyncio.gather(*creates, return_exceptions=True)
        assert time.monotonic() - begun_at < 3.0
        assert all(isinstance(end, TransportError) and "nothing was sent" in str(end) for end in ends)


async def test_creates_that_wait_for_a_slot_end_with_those_that_have_one(open_session: OpenSession) -> None:
    with nobody() as port:
        kie = await open_session(base_url=f"http://127.0.0.1:{port}", create_timeout_s=0.3, max_in_flight=2)
        begun_at = time.monotonic()
        creates = [kie.create("sandbox/echo", {"prompt": "x"}) for _ in range(20)]
        ends = await asyncio.gather(*creates, return_exceptions=True)
        assert time.monotonic() - begun_at < 3.0
        assert all(isinstance(end, TransportError) for end in ends)


async def test_a_create_whose_service_is_only_busy_is_not_ended(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox
) -> None:
    kie = await open_session(poll=CALM, create_timeout_s=10.0)
    sandbox.faults.maintenance = True
    create = asyncio.create_task(kie.create(echo()))
    await clock.advance(100.0)
    assert not create.done()
    sandbox.faults.maintenance = False
    await clock.advance(60.0)
    assert (await create).task_id in sandbox.tasks


async def test_a_create_after_an_outage_is_not_ended_by_what_others_met(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, link: Link
) -> None:
    kie = await open_session(base_url=link.url, poll=CALM)
    await link.cut()
    create = asyncio.create_task(kie.create(echo()))
    await clock.advance(130.0)
    with pytest.raises(TransportError, match="for 120 s"):
        await create
    await clock.advance(HOUR)
    await link.mend()
    assert (await kie.create(echo())).task_id in sandbox.tasks


@pytest.mark.parametrize("bad", [0, -1, True, "120", float("nan")])
def test_a_wrong_create_timeout_is_named(bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="create_timeout_s"):
        KieSession("key", create_timeout_s=bad)


# --- a batch goes on -----------------------------------------------------------------------------------


async def test_a_batch_outlasts_an_hour_without_network(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, link: Link, caplog: Any, events: Events
) -> None:
    kie = await open_session(
        base_url=link.url,
        poll=PollSchedule.fixed(60.0),
        task_timeout_s=30 * MINUTE,
        max_in_flight=5,
        on_event=events,
    )
    reading = asyncio.create_task(read(kie.batch(echoes(8))))
    await eventually(lambda: len(sandbox.tasks) == 5)
    for task_id in list(sandbox.tasks)[:2]:
        sandbox.finish(task_id)  # two slots are free, and the next two creates are on their way
    await clock.advance(70.0)
    await eventually(lambda: len(sandbox.tasks) == 7)
    sandbox.finish(list(sandbox.tasks)[2])
    await link.cut()
    await clock.advance(HOUR)
    assert not reading.done()
    await link.mend()
    for _ in range(4):
        for task_id in list(sandbox.tasks):
            sandbox.finish(task_id)
        await clock.advance(65.0)
    outcomes = await reading
    assert sorted(outcome.index for outcome in outcomes) == list(range(8))
    assert all(outcome.ok for outcome in outcomes), outcomes
    assert len(sandbox.tasks) == 8
    assert len(lines(caplog, logging.WARNING, "polls of task")) == 1
    kinds = {(said.kind, said.is_over) for said in weather(events)}
    assert kinds == {("unanswered", False), ("unanswered", True)}


async def test_creates_of_a_batch_wait_for_the_network_however_long(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, link: Link, caplog: Any
) -> None:
    await link.cut()
    kie = await open_session(base_url=link.url, poll=CALM, task_timeout_s=MINUTE, create_timeout_s=10.0)
    reading = asyncio.create_task(read(kie.batch(echoes(2))))
    await clock.advance(HOUR)
    assert not reading.done()
    assert 59 <= len(lines(caplog, logging.WARNING, "creates at")) <= 61
    await link.mend()
    await clock.advance(31.0)
    assert len(sandbox.tasks) == 2
    for task_id in sandbox.tasks:
        sandbox.finish(task_id)
    await clock.advance(6.0)
    assert all(outcome.ok for outcome in await reading)
    assert len(lines(caplog, logging.INFO, "get through again")) == 1


async def test_a_batch_outlasts_maintenance_of_twenty_minutes(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, caplog: Any, events: Events
) -> None:
    kie = await open_session(
        poll=PollSchedule.fixed(30.0), task_timeout_s=15 * MINUTE, max_in_flight=2, on_event=events
    )
    reading = asyncio.create_task(read(kie.batch(echoes(4))))
    await eventually(lambda: len(sandbox.tasks) == 2)
    sandbox.finish(next(iter(sandbox.tasks)))
    await clock.advance(35.0)
    sandbox.faults.maintenance = True
    sandbox.finish(list(sandbox.tasks)[1])
    await clock.advance(20 * MINUTE)
    assert not reading.done()
    sandbox.faults.maintenance = False
    for _ in range(5):
        for task_id in list(sandbox.tasks):
            sandbox.finish(task_id)
        await clock.advance(35.0)
    outcomes = await reading
    assert all(outcome.ok for outcome in outcomes)
    assert len(sandbox.tasks) == len(outcomes) == 4
    assert lines(caplog, logging.WARNING, "polls of task")
    assert len([said for said in weather(events) if said.is_over and said.kind == "unanswered"]) == 1


async def test_creates_held_back_for_long_are_said(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, caplog: Any, events: Events
) -> None:
    sandbox.faults.maintenance = True
    kie = await open_session(poll=CALM, on_event=events)
    reading = asyncio.create_task(read(kie.batch(echoes(20))))
    await clock.advance(25.0)
    assert not lines(caplog, logging.WARNING, "")
    await clock.advance(40.0)
    (said,) = lines(caplog, logging.WARNING, "")
    assert "code 455" in said
    assert said.endswith("nothing was created; they are sent again after a pause")
    sandbox.faults.maintenance = False
    await clock.advance(60.0)
    assert len(sandbox.tasks) == 20
    assert [(w.kind, w.is_over) for w in weather(events)][-1] == ("held back", True)
    for task_id in sandbox.tasks:
        sandbox.finish(task_id)
    await clock.advance(6.0)
    assert len(await reading) == 20


async def test_a_frozen_service_costs_a_batch_no_more_than_what_was_on_the_wire(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, link: Link, caplog: Any, events: Events
) -> None:
    limits = Limits(create=NO_LIMITS.create, query=NO_LIMITS.query, create_connections=4)
    kie = await open_session(base_url=link.url, poll=CALM, limits=limits, on_event=events)
    link.freeze()
    reading = asyncio.create_task(read(kie.batch(echoes(30))))
    await clock.advance(10 * MINUTE)
    assert not reading.done()
    link.thaw()
    for _ in range(20):
        await clock.advance(15.0)
        for task_id in sandbox.tasks:
            sandbox.finish(task_id)
    outcomes = await reading
    unknown = [outcome for outcome in outcomes if isinstance(outcome.error, CreateOutcomeUnknown)]
    assert len(outcomes) == 30
    assert len(unknown) == 4  # no probe that may cost money is sent into silence
    assert sum(outcome.ok for outcome in outcomes) == 30 - len(unknown) == len(sandbox.tasks)
    (halted,) = lines(caplog, logging.WARNING, "creates in a row are perhaps paid")
    assert "so none is sent; trying again with one job at " in halted
    assert len(lines(caplog, logging.INFO, "creates are answered again and go on, after ")) == 1
    said = [w for w in weather(events) if w.kind == "halted"]
    assert said[0].until is not None
    assert [w.is_over for w in said].count(True) == said[-1].is_over == 1


async def test_creates_without_an_answer_are_said_before_their_time_is_over(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, caplog: Any, events: Events
) -> None:
    kie = await open_session(poll=CALM, on_event=events)
    sandbox.faults.create_answer_gate = asyncio.Event()
    creates = [asyncio.create_task(kie.create(echo(number))) for number in range(20)]
    await eventually(lambda: len(sandbox.tasks) == 20)
    await clock.advance(29.0)
    assert not lines(caplog, logging.WARNING, "")
    await clock.advance(20.0)
    (said,) = lines(caplog, logging.WARNING, "")
    assert "have no answer; what has left may be paid and is never sent again (20 waiting" in said
    sandbox.faults.create_answer_gate.set()
    await asyncio.gather(*creates)
    assert lines(caplog, logging.INFO, "creates are answered again")
    assert [(w.kind, w.is_over) for w in weather(events)] == [("no answer", False), ("no answer", True)]


async def test_a_batch_waits_for_a_certificate_that_fits_and_a_single_create_does_not(
    open_session: OpenSession, caplog: Any
) -> None:
    async with Misbehaving(says(b""), tls=certified("untrusted")) as portal:
        kie = await open_session(base_url=portal.url)
        with pytest.raises(TransportError, match="not sent"):
            await kie.create(echo())
        batch = kie.batch(echoes(3))
        reading = asyncio.create_task(read(batch))
        await eventually(lambda: lines(caplog, logging.WARNING, "creates at"))
        assert not reading.done()
        batch.stop()
        assert {type(outcome.error) for outcome in await reading} == {BatchStopped}
        assert not portal.bodies


async def test_a_batch_goes_on_when_the_probe_is_answered(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox
) -> None:
    limits = Limits(create=NO_LIMITS.create, query=NO_LIMITS.query, create_connections=1)
    kie = await open_session(poll=CALM, limits=limits)
    sandbox.faults.drop_before_create_next = UNKNOWN_IN_A_ROW
    reading = asyncio.create_task(read(kie.batch(echoes(10))))
    await eventually(lambda: kie.stats().unknown_creates == UNKNOWN_IN_A_ROW)
    await clock.advance(HALT_S - 1)
    assert sandbox.counts["create.bodies"] == UNKNOWN_IN_A_ROW
    with pytest.raises(CreatesHalted):  # whoever asks for a single one is told at once
        await kie.create(echo(99))
    await clock.advance(2.0)
    await eventually(lambda: len(sandbox.tasks) == 7)
    for task_id in sandbox.tasks:
        sandbox.finish(task_id)
    await clock.advance(6.0)
    outcomes = await reading
    assert sorted(outcome.ok for outcome in outcomes) == [False] * 3 + [True] * 7
    assert sandbox.counts["create.bodies"] == 10


async def test_stop_ends_a_batch_in_a_halt_at_once(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox
) -> None:
    kie = await open_session(poll=CALM)
    sandbox.faults.drop_before_create_next = 1000
    batch = kie.batch(echoes(200))
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: kie.stats().unknown_creates >= UNKNOWN_IN_A_ROW)
    batch.stop()
    outcomes = await reading
    assert BatchStopped in {type(outcome.error) for outcome in outcomes}


# --- a machine that slept ------------------------------------------------------------------------------


async def test_a_task_whose_deadline_passed_in_sleep_is_asked_for_before_it_is_given_up(
    clock: Clock, kie: KieSession, sandbox: Sandbox, caplog: Any
) -> None:
    handle = await kie.create(echo(), timeout_s=MINUTE)
    sandbox.finish(handle.task_id)
    clock.jump(8 * HOUR)
    await clock.advance(1.0)
    assert (await handle).urls
    (said,) = lines(caplog, logging.WARNING, "")
    assert said == "nothing ran here for 8.0 h: the machine slept, or its event loop was blocked"
    assert len(lines(caplog, logging.INFO, "awake again")) == 1


async def test_a_session_that_had_nothing_to_do_for_an_hour_did_not_sleep(
    clock: Clock, open_session: OpenSession, sandbox: Sandbox, events: Events
) -> None:
    kie = await open_session(poll=CALM, on_event=events)
    await clock.advance(HOUR)
    handle = await kie.create(echo())
    sandbox.finish(handle.task_id)
    await clock.advance(10.0)
    assert (await handle).urls
    assert weather(events) == []


async def test_a_task_that_runs_on_after_the_sleep_times_out_when_its_time_is_over(
    clock: Clock, open_session: OpenSession
) -> None:
    kie = await open_session(poll=PollSchedule.fixed(1.0))
    handle = await kie.create(echo(), timeout_s=MINUTE)
    await clock.advance(10.0)
    clock.jump(8 * HOUR)
    await clock.advance(49.0)
    assert not handle.is_done
    await clock.advance(2.0)
    assert handle.is_done


# --- waits for slots and turns -------------------------------------------------------------------------


async def test_a_long_wait_for_a_slot_is_one_line_for_all(
    clock: Clock, open_session: OpenSession, caplog: Any
) -> None:
    kie = await open_session(poll=CALM, max_in_flight=2)
    creates = [asyncio.create_task(kie.create(echo(number))) for number in range(100)]
    await clock.advance(LONG_S - 1)
    assert not lines(caplog, logging.INFO, "wait for a slot")
    await clock.advance(10 * MINUTE)
    (said,) = lines(caplog, logging.INFO, "wait for a slot")
    assert said == (
        "creates wait for a slot: 2 tasks are unsettled, as max_in_flight allows "
        "(98 waiting, the first for 10 s)"
    )
    for create in creates:
        create.cancel()
    await asyncio.gather(*creates, return_exceptions=True)


async def test_a_long_wait_for_a_turn_is_one_line_for_all(
    clock: Clock, open_session: OpenSession, caplog: Any
) -> None:
    limits = Limits(create=Rate(1, per_s=30.0))
    kie = await open_session(poll=CALM, limits=limits)
    creates = [asyncio.create_task(kie.create(echo(number))) for number in range(5)]
    await clock.advance(50.0)
    assert (
        len(lines(caplog, logging.INFO, "creates wait for their turn at the rate limit, or for a connection"))
        == 1
    )
    for create in creates:
        create.cancel()
    await asyncio.gather(*creates, return_exceptions=True)


async def test_short_waits_one_after_the_other_are_no_long_wait(clock: Clock, caplog: Any) -> None:
    queue = LongWait("they wait")

    async def wait(seconds: float) -> None:
        with queue.waiting():
            await asyncio.sleep(seconds)

    waits = []
    for _ in range(20):
        waits.append(asyncio.create_task(wait(8.0)))
        await clock.advance(4.0)
    await clock.advance(8.0)
    assert not lines(caplog, logging.INFO, "they wait")
    await asyncio.gather(*waits)


async def test_each_wait_is_said_but_not_more_than_one_a_minute(clock: Clock, caplog: Any) -> None:
    queue = LongWait("they wait")
    for _ in range(30):
        with queue.waiting():
            await clock.advance(12.0)
    assert 30 * 12 / GAP_S - 1 <= len(lines(caplog, logging.INFO, "they wait")) <= 30 * 12 / GAP_S + 1


# --- uploads -------------------------------------------------------------------------------------------


def voiced(number: int, folder: Path) -> TaskRequest:
    voice = folder / f"{number}.mp3"
    voice.write_bytes(b"ID3" + bytes(50 + number))
    return TaskRequest(model="sandbox/echo", input={"prompt": str(number), "voice": voice})


async def test_a_batch_waits_for_the_upload_host_and_says_so(
    open_session: OpenSession, sandbox: Sandbox, link: Link, tmp_path: Path, caplog: Any, clock: Clock
) -> None:
    kie = await open_session(upload_url=link.url, poll=CALM)
    await link.cut()
    reading = asyncio.create_task(read(kie.batch([voiced(number, tmp_path) for number in range(3)])))
    for _ in range(50):
        await clock.advance(1.0)
    assert not sandbox.tasks
    (said,) = lines(caplog, logging.WARNING, "")
    assert said.startswith(f"uploads to {link.url} have failed since")
    await link.mend()
    for _ in range(40):
        await clock.advance(1.0)
    await eventually(lambda: len(sandbox.tasks) == 3)
    for task_id in sandbox.tasks:
        sandbox.finish(task_id)
    await clock.advance(6.0)
    assert all(outcome.ok for outcome in await reading)
    assert len(lines(caplog, logging.INFO, "uploads to")) == 1


@pytest.mark.parametrize(
    ("answered", "goes_on"),
    [
        (answer(refused(455)), True),
        (answer(refused(429), 429), True),
        (html(502), True),
        (answer(refused(500)), False),
        (answer(refused(400)), False),
    ],
    ids=["455", "429", "502", "code 500", "code 400"],
)
async def test_a_batch_waits_for_an_upload_host_that_takes_nothing_for_now(
    open_session: OpenSession, clock: Clock, tmp_path: Path, caplog: Any, answered: bytes, goes_on: bool
) -> None:
    async with Misbehaving(says(answered)) as host:
        kie = await open_session(upload_url=host.url, poll=CALM)
        batch = kie.batch([voiced(0, tmp_path)])
        reading = asyncio.create_task(read(batch))
        await eventually(lambda: host.bodies)
        for _ in range(60):
            await clock.advance(1.0)
        assert reading.done() is not goes_on
        assert bool(lines(caplog, logging.WARNING, "uploads to")) is goes_on
        batch.stop()
        (outcome,) = await reading
        assert isinstance(outcome.error, BatchStopped if goes_on else UploadRefused)


async def test_a_file_that_alone_does_not_come_through_is_an_outcome(
    open_session: OpenSession, sandbox: Sandbox, clock: Clock, tmp_path: Path
) -> None:
    has_failed = asyncio.Event()

    async def refuse_the_first(peer: Peer) -> None:
        body = await peer.request()
        if b"ID3" + bytes(50) + b"\r\n" in body:  # of all others there is more
            has_failed.set()
            return
        await has_failed.wait()
        data = {"downloadUrl": "https://files.example.org/a.mp3", "fileName": "a.mp3", "fileSize": 1}
        await peer.send(answer({"success": True, "code": 200, "msg": "", "data": data}))

    async with Misbehaving(refuse_the_first) as host:
        kie = await open_session(upload_url=host.url, poll=CALM)
        reading = asyncio.create_task(read(kie.batch([voiced(number, tmp_path) for number in range(2)])))
        await eventually(lambda: len(sandbox.tasks) == 1)
        for _ in range(30):
            await clock.advance(1.0)
        sandbox.finish(next(iter(sandbox.tasks)))
        await clock.advance(6.0)
        by_index = {outcome.index: outcome for outcome in await reading}
        assert isinstance(by_index[0].error, TransportError)
        assert by_index[1].ok


# --- a full disk ---------------------------------------------------------------------------------------


class Disk:
    """A disk that can be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, _: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
async def quick(leaks: None) -> AsyncIterator[Sandbox]:
    """Return a sandbox whose tasks end soon."""
    async with Sandbox(durations=Fixed(0.01), create_limit=None, query_limit=None) as sandbox:
        yield sandbox


async def test_a_full_disk_is_waited_for_while_what_is_paid_goes_on(
    open_session: OpenSession, quick: Sandbox, disk: Disk, tmp_path: Path, caplog: Any, events: Events
) -> None:
    kie = await open_session(base_url=quick.url, max_in_flight=3, on_event=events)
    batch = kie.batch(echoes(12), download_to=tmp_path / "out")
    first = await anext(batch)
    disk.is_full = True
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: lines(caplog, logging.WARNING, "cannot write to"))
    created = 0
    while created < len(quick.tasks):  # what was past the question for room goes on
        created = len(quick.tasks)
        await asyncio.sleep(0.3)
    assert created < 12
    assert kie.stats().in_flight == 0
    assert not reading.done()
    disk.is_full = False
    outcomes = [first, *await reading]
    assert all(outcome.ok and outcome.files for outcome in outcomes)
    assert len(outcomes) == len(quick.tasks) == 12
    (said,) = lines(caplog, logging.WARNING, "")
    assert "No space left on device; nothing more is created, what is paid goes on; make room before" in said
    assert len(lines(caplog, logging.INFO, "can be written again, after ")) == 1
    assert [(w.kind, w.is_over) for w in weather(events)] == [("disk", False), ("disk", True)]


async def test_a_disk_that_stays_full_ends_a_batch(
    open_session: OpenSession, quick: Sandbox, disk: Disk, tmp_path: Path
) -> None:
    kie = await open_session(base_url=quick.url, max_in_flight=2)
    batch = kie.batch(echoes(50), download_to=tmp_path, give_up_after_s=0.4)
    assert (await anext(batch)).files
    disk.is_full = True
    begun_at, outcomes = time.monotonic(), list[Outcome]()

    async def consume() -> None:
        async for outcome in batch:
            outcomes.append(outcome)

    with pytest.raises(BatchStopped) as caught:
        await consume()
    assert time.monotonic() - begun_at >= 0.4
    assert caught.value.reason == f"cannot write to {tmp_path} any more: No space left on device"
    kept = [outcome for outcome in outcomes if isinstance(outcome.error, DownloadFailed)]
    assert kept
    assert all(outcome.result for outcome in kept)


async def test_stop_does_not_wait_for_a_full_disk(
    open_session: OpenSession, quick: Sandbox, disk: Disk, tmp_path: Path, caplog: Any
) -> None:
    kie = await open_session(base_url=quick.url, max_in_flight=2)
    batch = kie.batch(echoes(20), download_to=tmp_path / "out")
    first = await anext(batch)
    disk.is_full = True
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: lines(caplog, logging.WARNING, "cannot write to"))
    batch.stop()
    outcomes = await asyncio.wait_for(reading, 2.0)
    kept = [outcome.error for outcome in outcomes if not outcome.ok]
    assert first.ok
    assert kept
    assert all(isinstance(error, DownloadFailed | BatchStopped) for error in kept)


async def test_limits_that_are_met_and_what_is_sent_again_stand_in_the_log(
    quick: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kie_async")
    kie = await open_session(base_url=quick.url, limits=Limits(create=Rate(1, per_s=1.5)))
    quick.faults.create_429_next = 1
    first, _ = await asyncio.gather(kie.run(echo(0)), kie.run(echo(1)))
    quick.faults.query_500_next = 1
    await kie.query(first.task_id)

    said = "\n".join(lines(caplog, logging.DEBUG, ""))
    assert re.search(r"a create was not taken: code 429: .*; trying again in \d", said)
    assert re.search(r"a create waited \d\.\d s for the limit", said)
    assert re.search(r"code 500: .*; trying again in \d", said)
    assert f"task {first.task_id} was created" in said
    assert f"task {first.task_id} is done, told by poll" in said


class FullJournal(SqliteJournal):
    """A journal whose disk can be full."""

    is_full = False
    loses_ids = 0

    def _check(self) -> None:
        if self.is_full:
            raise JournalFull("journal run.db: database or disk is full")

    async def mark_sending(self, intent: Intent) -> None:
        self._check()
        await super().mark_sending(intent)

    async def mark_ended(self, intent_id: str, state: IntentState, **why: Any) -> None:
        self._check()
        await super().mark_ended(intent_id, state, **why)

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        self._check()
        await super().mark_settled(intent_id, record)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        if self.loses_ids:
            self.loses_ids -= 1
            raise JournalFull("journal run.db: database or disk is full")
        await super().mark_created(intent_id, task_id, adopted_by=adopted_by)


async def test_a_full_disk_under_the_journal_is_waited_for_and_said_once(
    open_session: OpenSession, quick: Sandbox, tmp_path: Path, caplog: Any, events: Events
) -> None:
    journal = FullJournal(tmp_path / "run.db")
    kie = await open_session(base_url=quick.url, max_in_flight=3, journal=journal, on_event=events)
    batch = kie.batch(echoes(12))
    first = await anext(batch)
    journal.is_full = True
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: kie.stats().in_flight == 0)
    await asyncio.sleep(0.3)
    assert len(quick.tasks) < 12
    assert not reading.done()
    journal.is_full = False
    outcomes = [first, *await reading]
    assert all(outcome.ok for outcome in outcomes)
    assert len(outcomes) == len(quick.tasks) == quick.counts["create.bodies"] == 12
    (said,) = lines(caplog, logging.WARNING, "")
    assert said.endswith("disk is full; nothing more is created, what is paid goes on; make room")
    assert not [record for record in caplog.records if record.exc_info]
    assert lines(caplog, logging.INFO, "can be written again") == ["the journal can be written again"]
    assert [(w.kind, w.is_over) for w in weather(events)] == [("disk", False), ("disk", True)]


@pytest.mark.parametrize("give_up_after_s", [0, 0.4])
async def test_a_disk_under_the_journal_that_stays_full_ends_a_batch(
    give_up_after_s: float, open_session: OpenSession, quick: Sandbox, tmp_path: Path
) -> None:
    journal = FullJournal(tmp_path / "run.db")
    kie = await open_session(base_url=quick.url, journal=journal)
    journal.is_full = True
    with pytest.raises(BatchStopped, match="disk is full"):
        await asyncio.wait_for(read(kie.batch(echoes(5), give_up_after_s=give_up_after_s)), 5.0)
    assert not quick.tasks


async def test_stop_does_not_wait_for_a_full_disk_under_the_journal(
    open_session: OpenSession, quick: Sandbox, tmp_path: Path, caplog: Any
) -> None:
    journal = FullJournal(tmp_path / "run.db")
    kie = await open_session(base_url=quick.url, journal=journal)
    journal.is_full = True
    batch = kie.batch(echoes(5))
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: lines(caplog, logging.WARNING, "disk is full"))
    batch.stop()
    outcomes = await asyncio.wait_for(reading, 2.0)
    assert {outcome.state for outcome in outcomes} == {JobState.NOT_SENT}


async def test_a_task_whose_id_found_no_room_is_perhaps_paid_and_the_others_go_on(
    open_session: OpenSession, quick: Sandbox, tmp_path: Path
) -> None:
    journal = FullJournal(tmp_path / "run.db")
    kie = await open_session(base_url=quick.url, journal=journal)
    journal.loses_ids = 1
    outcomes = await read(kie.batch(echoes(5)))
    (lost,) = [outcome for outcome in outcomes if not outcome.ok]
    assert lost.state is JobState.PERHAPS_PAID
    assert isinstance(lost.error, TaskNotNoted)
    assert lost.error.task_id in quick.tasks
    assert len(quick.tasks) == 5


@pytest.mark.parametrize("bad", ["6h", None, float("nan"), True])
async def test_a_wrong_patience_is_named(kie: KieSession, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="give_up_after_s"):
        kie.batch([], give_up_after_s=bad)


async def test_a_download_waits_for_the_network(
    open_session: OpenSession, quick: Sandbox, link: Link, tmp_path: Path, caplog: Any, events: Events
) -> None:
    async with Link(quick.url) as line:
        kie = await open_session(base_url=line.url, on_event=events)
        download, broken = kie._engine.downloads.download, True

        async def through_the_line(*given: Any, **named: Any) -> list[Path]:
            if broken:
                await line.cut()
                raise DownloadFailed("cannot connect")
            return await download(*given, **named)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kie._engine.downloads, "download", through_the_line)
            reading = asyncio.create_task(read(kie.batch(echoes(1), download_to=tmp_path)))
            for _ in range(80):
                await asyncio.sleep(0.1)
                if lines(caplog, logging.WARNING, "results cannot be downloaded"):
                    break
            broken = False
            await line.mend()
            (outcome,) = await asyncio.wait_for(reading, 5.0)
        assert outcome.files
        assert ("downloads", True) in [(w.kind, w.is_over) for w in weather(events)]


# --- where results come from ---------------------------------------------------------------------------


class Names(AbstractResolver):
    """A resolver with one answer for every name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        self.asked.append(host)
        if not self.address:
            raise OSError(None, "no such name")
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        return [
            {"hostname": host, "host": self.address, "port": port, "family": family, "proto": 0, "flags": 0}
        ]

    async def close(self) -> None:
        """Keep it: it is the test's."""


API = "https://api.kie.ai"
"""Nothing is sent there: the resolver says that it is here, where nobody listens."""


@pytest.mark.parametrize(
    ("address", "allow"),
    [("198.18.0.56", "198.18.0.0/15"), ("10.1.2.3", "10.1.2.3"), ("64:ff9b::a01:203", "64:ff9b::a01:203")],
)
async def test_a_host_of_results_that_would_be_refused_ends_a_batch_before_anything_is_sent(
    leaks: None, tmp_path: Path, address: str, allow: str
) -> None:
    pulled = []

    def requests() -> Any:
        pulled.append(1)
        yield echo()

    names = Names(address)
    async with KieSession("key", base_url=API, network=Network(resolver=names)) as kie:
        with pytest.raises(InvalidRequest) as caught:
            await read(kie.batch(requests(), download_to=tmp_path))
    assert str(caught.value) == (
        f"download_to: results come from tempfile.aiquickdraw.com, but {address} is not a public address; "
        f"if it is of your network: Network(allow=['{allow}']); nothing was sent"
    )
    assert not pulled
    assert names.asked == ["tempfile.aiquickdraw.com"]


@pytest.mark.parametrize(("address", "allow"), [("198.18.0.56", ["198.18.0.0/15"]), ("8.8.8.8", [])])
async def test_a_host_that_may_be_connected_to_lets_a_batch_begin(
    leaks: None, tmp_path: Path, address: str, allow: list[str]
) -> None:
    network = Network(resolver=Names(address), allow=allow)
    async with KieSession("key", base_url=API, network=network) as kie:
        assert await read(kie.batch([], download_to=tmp_path)) == []


async def test_a_host_that_cannot_be_resolved_is_a_warning(leaks: None, tmp_path: Path, caplog: Any) -> None:
    async with KieSession("key", base_url=API, network=Network(resolver=Names(""))) as kie:
        assert await read(kie.batch([], download_to=tmp_path)) == []
    assert lines(caplog, logging.WARNING, "") == [
        "results come from tempfile.aiquickdraw.com, which cannot be resolved now (no such name); "
        "downloads will try again"
    ]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
async def test_behind_a_proxy_the_proxy_finds_the_host(leaks: None, tmp_path: Path, proxy: str) -> None:
    pytest.importorskip("aiohttp_socks")
    names = Names("10.0.0.1")
    given = {} if proxy.startswith("socks") else {"resolver": names}
    async with KieSession("key", base_url=API, network=Network(proxy=proxy, **given)) as kie:
        assert await read(kie.batch([], download_to=tmp_path)) == []
    assert not names.asked


async def test_the_host_of_the_last_results_in_the_journal_is_tried(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    former = await open_session(journal=tmp_path / "run.db")
    handle = await former.create(echo())
    body = f'{{"code":200,"data":{{"taskId":"{handle.task_id}","state":"success","resultJson":'
    body += '"{\\"resultUrls\\":[\\"https://files.example.org/a.mp4\\"]}"}}'
    sandbox.faults.query_answers_next = [(200, body.encode())]
    await handle
    await former.aclose()
    names = Names("198.18.0.7")
    kie = await open_session(journal=tmp_path / "run.db", network=Network(resolver=names))
    with pytest.raises(InvalidRequest, match=r"results come from files\.example\.org, but 198\.18\.0\.7"):
        await read(kie.batch(echoes(1), download_to=tmp_path / "out"))
    assert names.asked == ["files.example.org"]
