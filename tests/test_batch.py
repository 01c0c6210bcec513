"""Batches: many in, outcomes out as they finish, in bounded memory; nothing paid twice, nothing lost."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from campaign import makespan, memory
from conftest import NO_LIMITS, Events, OpenSession
from support.clock import SteeredLoop, eventually

from kie_async import (
    AuthenticationError,
    Batch,
    BatchStopped,
    Budget,
    BudgetExceeded,
    CallbackReceiver,
    CreateOutcomeUnknown,
    DownloadFailed,
    InsufficientCredits,
    InvalidRequest,
    JournalError,
    KieError,
    KieSession,
    KlingAvatar,
    Limits,
    Outcome,
    QuotaExceeded,
    Rate,
    RefConflict,
    RequestRejected,
    Sandbox,
    ServedReceiver,
    SessionMisuse,
    TaskFailed,
    TaskRequest,
)
from kie_async.batch import ADOPTION_GRACE_S


def echo(number: int = 0, *, ref: str | None = None) -> TaskRequest:
    return TaskRequest(model="sandbox/echo", input={"prompt": str(number)}, ref=ref)


class Jobs:
    """A generator of requests that knows how many were pulled."""

    def __init__(self, count: int, *, with_refs: bool = False) -> None:
        self.pulled = 0
        self._count = count
        self._with_refs = with_refs

    def __iter__(self) -> Iterator[TaskRequest]:
        for number in range(self._count):
            self.pulled += 1
            yield echo(number, ref=f"r{number}" if self._with_refs else None)


class Endless(asyncio.Queue[TaskRequest]):
    """A source that waits for more for ever."""

    async def __aiter__(self) -> AsyncIterator[TaskRequest]:
        while True:
            yield await self.get()


def jobs(count: int, **options: bool) -> Iterator[TaskRequest]:
    return iter(Jobs(count, **options))


def numbers_at(sandbox: Sandbox) -> list[int]:
    """Return the numbers of the requests that became tasks, in their order."""
    return [int(task.input["prompt"]) for task in sandbox.tasks.values()]


async def finish(sandbox: Sandbox, number: int, state: Any = "success") -> None:
    """End the task of a request, once there is one."""
    await eventually(lambda: number in numbers_at(sandbox))
    task_id = next(key for key, task in sandbox.tasks.items() if task.input["prompt"] == str(number))
    sandbox.finish(task_id, state)


async def finish_all(sandbox: Sandbox) -> None:
    """End every task there is and will be; cancel it when done."""
    while True:
        for task_id in list(sandbox.tasks):
            sandbox.finish(task_id)
        await asyncio.sleep(0.005)


async def read(batch: Batch) -> tuple[list[Outcome], BaseException | None]:
    """Return all outcomes of a batch, and what its iteration ended with."""
    outcomes: list[Outcome] = []
    try:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401  (kept when the iteration raises)
    except Exception as exc:
        return outcomes, exc
    return outcomes, None


async def read_all(sandbox: Sandbox, batch: Batch) -> list[Outcome]:
    """Return all outcomes of a batch, in the order of their requests; every task ends at once."""
    finishing = asyncio.create_task(finish_all(sandbox))
    try:
        outcomes, end = await read(batch)
    finally:
        finishing.cancel()
    assert end is None
    return sorted(outcomes, key=lambda outcome: outcome.index)


# --- what comes out ------------------------------------------------------------------------------------


async def test_outcomes_come_in_the_order_of_completion(kie: KieSession, sandbox: Sandbox) -> None:
    seen: list[int] = []

    async def collect() -> None:
        async for outcome in kie.batch(jobs(3)):
            seen.append(outcome.index)  # noqa: PERF401  (seen one by one)

    reading = asyncio.create_task(collect())
    for count, number in enumerate([2, 0, 1], 1):
        await finish(sandbox, number)
        await eventually(lambda count=count: len(seen) == count)
    await reading
    assert seen == [2, 0, 1]


async def test_an_outcome_says_what_was_asked_and_what_came(kie: KieSession, sandbox: Sandbox) -> None:
    (outcome,) = await read_all(sandbox, kie.batch([echo(7, ref="mine")]))
    assert (outcome.index, outcome.ref, outcome.request) == (0, "mine", echo(7, ref="mine"))
    assert outcome.ok
    assert outcome.error is None
    assert outcome.task_id in sandbox.tasks
    assert outcome.unwrap().task_id == outcome.task_id
    assert outcome.files == ()


async def test_all_kinds_of_requests_come_from_all_kinds_of_iterables(
    kie: KieSession, sandbox: Sandbox
) -> None:
    avatar = KlingAvatar(image_url="https://a.example/f.png", audio_url="https://a.example/v.mp3")

    async def later() -> AsyncIterator[TaskRequest | KlingAvatar]:
        yield echo(1)
        await asyncio.sleep(0)
        yield avatar

    for requests in ([echo(1), avatar], (r for r in (echo(1), avatar)), {"a": echo(1), "b": avatar}.values()):
        outcomes = await read_all(sandbox, kie.batch(requests))
        assert [outcome.request.model for outcome in outcomes] == ["sandbox/echo", avatar.model]
    outcomes = await read_all(sandbox, kie.batch(later()))
    assert [outcome.request.model for outcome in outcomes] == ["sandbox/echo", avatar.model]


async def test_an_empty_iterable_ends_at_once_and_again(kie: KieSession) -> None:
    batch = kie.batch([])
    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await anext(batch)


async def test_two_readers_share_the_outcomes(kie: KieSession, sandbox: Sandbox) -> None:
    batch = kie.batch(jobs(10))
    finishing = asyncio.create_task(finish_all(sandbox))
    (one, _), (other, _) = await asyncio.gather(read(batch), read(batch))
    finishing.cancel()
    assert sorted(outcome.index for outcome in one + other) == list(range(10))


async def test_a_reader_who_is_cancelled_loses_no_outcome(kie: KieSession, sandbox: Sandbox) -> None:
    batch = kie.batch(jobs(2))
    reading = asyncio.create_task(anext(batch))
    await finish(sandbox, 0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert len(await read_all(sandbox, batch)) == 2


async def test_one_failure_never_cancels_the_others(kie: KieSession, sandbox: Sandbox) -> None:
    requests = [echo(0), TaskRequest(model="no/such-model", input={}), echo(2), echo(3)]
    reading = asyncio.create_task(read(kie.batch(requests)))
    await finish(sandbox, 0, "fail")
    await finish(sandbox, 2)
    await finish(sandbox, 3)
    outcomes, end = await reading
    assert end is None
    by_index = {outcome.index: outcome for outcome in outcomes}
    assert isinstance(by_index[0].error, TaskFailed)
    assert by_index[0].task_id == by_index[0].error.task_id
    assert isinstance(by_index[1].error, RequestRejected)
    assert by_index[2].ok
    assert by_index[3].ok
    with pytest.raises(TaskFailed):
        by_index[0].unwrap()


async def test_an_unknown_create_is_an_outcome_at_once(
    open_session: OpenSession, sandbox: Sandbox, served: ServedReceiver, receiver: CallbackReceiver
) -> None:
    kie = await open_session(receiver=receiver, callback_url=served.url)
    sandbox.faults.lose_answers_next = 1
    async with kie.batch([echo(0)]) as batch:
        outcome = await asyncio.wait_for(anext(batch), ADOPTION_GRACE_S * 0.8)
    assert isinstance(outcome.error, CreateOutcomeUnknown)
    assert outcome.error.handle is not None
    assert not outcome.task_id
    assert not outcome.ok


# --- what goes in --------------------------------------------------------------------------------------


async def test_a_request_is_pulled_only_when_there_is_room(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    source = Jobs(100)
    batch = (await open_session(max_in_flight=3)).batch(iter(source))
    first = asyncio.create_task(anext(batch))
    await eventually(lambda: len(sandbox.tasks) == 3)
    await asyncio.sleep(0.05)
    assert source.pulled == 3  # all in flight

    await finish(sandbox, 0)
    await first
    await eventually(lambda: len(sandbox.tasks) == 4)
    assert source.pulled == 4  # one has settled

    finishing = asyncio.create_task(finish_all(sandbox))
    await asyncio.sleep(0.3)
    assert source.pulled <= 1 + 2 * 3  # three lie unread, and three settled behind them
    outcomes, _ = await read(batch)
    finishing.cancel()
    assert len(outcomes) == 99


async def test_downloads_hold_up_no_create(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kie = await open_session(max_in_flight=2)
    gate = asyncio.Event()

    async def wait(*_: object) -> list[Path]:
        await gate.wait()
        return []

    monkeypatch.setattr(kie, "download", wait)
    reading = asyncio.create_task(read(kie.batch(jobs(4), download_to=tmp_path)))
    for number in range(4):
        await finish(sandbox, number)
    gate.set()
    assert len((await reading)[0]) == 4


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_the_iterable_raises_comes_after_the_outcomes_of_what_was_begun(
    is_async: bool, kie: KieSession, sandbox: Sandbox
) -> None:
    def now() -> Iterator[TaskRequest]:
        yield from jobs(2)
        raise ValueError("broken source")

    async def later() -> AsyncIterator[TaskRequest]:
        for request in jobs(2):
            yield request
        raise ValueError("broken source")

    batch = kie.batch(later() if is_async else now())
    finishing = asyncio.create_task(finish_all(sandbox))
    outcomes, end = await read(batch)
    finishing.cancel()
    assert [outcome.ok for outcome in outcomes] == [True, True]
    assert isinstance(end, ValueError)
    with pytest.raises(StopAsyncIteration):  # told once
        await anext(batch)


async def test_what_is_no_request_ends_the_iteration_and_is_named(kie: KieSession, sandbox: Sandbox) -> None:
    finishing = asyncio.create_task(finish_all(sandbox))
    outcomes, end = await read(kie.batch([echo(0), {"model": "sandbox/echo"}, echo(2)]))  # type: ignore[list-item]
    finishing.cancel()
    assert [outcome.index for outcome in outcomes] == [0]
    assert isinstance(end, InvalidRequest)
    assert str(end).startswith("requests[1]: request must be a TaskRequest, a typed input or a model name")


@pytest.mark.parametrize("requests", [None, 7, echo()])
async def test_what_is_no_iterable_is_refused_at_once(requests: Any, kie: KieSession) -> None:
    with pytest.raises(InvalidRequest, match="requests must be an iterable"):
        kie.batch(requests)


async def test_what_was_given_is_not_closed(open_session: OpenSession, sandbox: Sandbox) -> None:
    kie = await open_session(max_in_flight=2)
    rest = jobs(100)
    async with kie.batch(rest) as batch:
        reading = asyncio.create_task(anext(batch))
        await finish(sandbox, 0)
        await reading
    assert next(rest).model == "sandbox/echo"


# --- refs ----------------------------------------------------------------------------------------------


async def test_run_again_and_only_what_was_never_sent_is_sent(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    first = await open_session(journal=tmp_path / "run.db")
    async with first.batch(jobs(6, with_refs=True)) as batch:
        reading = asyncio.create_task(anext(batch))
        await finish(sandbox, 2)
        await reading
        await eventually(lambda: len(sandbox.tasks) == 6)
    await first.aclose()

    again = await open_session(journal=tmp_path / "run.db")
    outcomes = await read_all(sandbox, again.batch(jobs(8, with_refs=True)))
    assert [outcome.ref for outcome in outcomes] == [f"r{number}" for number in range(8)]
    assert all(outcome.ok for outcome in outcomes)
    assert sorted(numbers_at(sandbox)) == list(range(8))  # each once
    assert again.stats().creates == 2


async def test_a_request_without_ref_is_known_by_its_content(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    voice = tmp_path / "voice.mp3"
    voice.write_bytes(b"ID3" + bytes(50))
    request = TaskRequest(model="sandbox/echo", input={"prompt": "0", "voice": voice})
    kie = await open_session(journal=tmp_path / "run.db")
    (first,) = await read_all(sandbox, kie.batch([request]))
    await kie.aclose()
    assert first.ref is not None
    assert first.ref.startswith("auto:")
    assert first.request.ref == first.ref

    kie = await open_session(journal=tmp_path / "run.db")
    (again,) = await read_all(sandbox, kie.batch([request]))
    assert (again.ref, again.task_id) == (first.ref, first.task_id)
    voice.write_bytes(b"ID3" + bytes(60))
    (other,) = await read_all(sandbox, kie.batch([request]))
    assert other.task_id != first.task_id
    assert len(sandbox.tasks) == 2


async def test_requests_that_are_alike_get_tasks_of_their_own(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db")
    outcomes = await read_all(sandbox, kie.batch([echo(), echo(1), echo(), echo()]))
    assert len({outcome.task_id for outcome in outcomes}) == 4
    assert len({outcome.ref for outcome in outcomes}) == 4

    longer = await read_all(sandbox, kie.batch([echo(), echo(), echo(1), echo(), echo()]))
    assert len({outcome.task_id for outcome in longer}) == 5
    assert {outcome.task_id for outcome in outcomes} < {outcome.task_id for outcome in longer}
    assert len(sandbox.tasks) == 5


async def test_without_a_journal_a_request_keeps_having_no_ref(kie: KieSession, sandbox: Sandbox) -> None:
    outcomes = await read_all(sandbox, kie.batch([echo(), echo()]))
    assert [outcome.ref for outcome in outcomes] == [None, None]
    assert len(sandbox.tasks) == 2


async def test_a_ref_used_for_two_requests_is_an_outcome(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db", limits=Limits(create_connections=1))
    outcomes = await read_all(sandbox, kie.batch([echo(0, ref="a"), echo(1, ref="a"), echo(0, ref="a")]))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), RefConflict, type(None)]
    assert outcomes[0].task_id == outcomes[2].task_id
    assert len(sandbox.tasks) == 1


# --- a former run's unknown creates --------------------------------------------------------------------


async def test_an_unknown_create_of_a_former_run_is_adopted_within_the_grace(
    open_session: OpenSession,
    sandbox: Sandbox,
    tmp_path: Path,
    served: ServedReceiver,
    receiver: CallbackReceiver,
    events: Events,
) -> None:
    options = {"journal": tmp_path / "run.db", "receiver": receiver, "callback_url": served.url}
    sandbox.faults.lose_answers_next = 1
    former = await open_session(**options)
    (unknown,), _ = await read(former.batch([echo(0, ref="a")]))
    assert isinstance(unknown.error, CreateOutcomeUnknown)
    await former.aclose()

    kie = await open_session(**options, on_event=events)
    reading = asyncio.create_task(read(kie.batch([echo(0, ref="a"), echo(1, ref="b")])))
    await finish(sandbox, 1)
    await finish(sandbox, 0)  # its callback names the task
    outcomes, end = await reading
    assert end is None
    assert all(outcome.ok for outcome in outcomes)
    assert {outcome.task_id for outcome in outcomes} == set(sandbox.tasks)
    assert "adopted" in events.kinds()
    assert len(sandbox.tasks) == 2


async def after_a_lost_answer(open_session: OpenSession, sandbox: Sandbox, journal: Path) -> KieSession:
    """Return a session on the journal of a run whose create of the ref "a" was not answered."""
    sandbox.faults.lose_answers_next = 1
    former = await open_session(journal=journal)
    await read(former.batch([echo(0, ref="a")]))
    await former.aclose()
    return await open_session(journal=journal)


async def test_an_unknown_create_that_nothing_adopts_is_an_outcome_and_never_sent_again(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await after_a_lost_answer(open_session, sandbox, tmp_path / "run.db")
    for _ in range(2):
        (outcome,), end = await read(kie.batch([echo(0, ref="a")]))
        assert end is None
        assert isinstance(outcome.error, CreateOutcomeUnknown)
    assert sandbox.counts["create.bodies"] == 1


async def test_an_unknown_create_told_by_hand_is_waited_for_beyond_the_grace(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await after_a_lost_answer(open_session, sandbox, tmp_path / "run.db")
    (unknown,) = await kie.resume()
    (task_id,) = sandbox.tasks
    await unknown.resolve(task_id)
    reading = asyncio.create_task(read(kie.batch([echo(0, ref="a")])))
    await asyncio.sleep(0.1)
    assert not reading.done()
    await finish(sandbox, 0, "fail")
    ((outcome,), _) = await reading
    assert isinstance(outcome.error, TaskFailed)
    assert outcome.task_id == task_id
    assert sandbox.counts["create"] == 1


async def test_an_unknown_create_written_off_in_the_grace_stays_unknown(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.faults.lose_answers_next = 1
    receiver = CallbackReceiver()
    options = {"journal": tmp_path / "run.db", "receiver": receiver, "callback_url": "http://127.0.0.1:9/k"}
    former = await open_session(**options)
    await read(former.batch([echo(0, ref="a")]))
    await former.aclose()
    kie = await open_session(**options)
    (unknown,) = await kie.resume()
    reading = asyncio.create_task(read(kie.batch([echo(0, ref="a")])))
    await asyncio.sleep(0.1)
    assert not reading.done()
    unknown.write_off()
    ((outcome,), _) = await asyncio.wait_for(reading, ADOPTION_GRACE_S * 0.8)
    assert isinstance(outcome.error, CreateOutcomeUnknown)
    assert sandbox.counts["create"] == 1


# --- stopping ------------------------------------------------------------------------------------------


def refused(code: int) -> Callable[[Sandbox], None]:
    body = json.dumps({"code": code, "msg": "no", "data": None})

    def refuse(sandbox: Sandbox) -> None:
        sandbox.faults.create_answers_next = [(200, body.encode())]

    return refuse


STOPS: list[Any] = [
    pytest.param(refused(401), {}, AuthenticationError, 1, id="401"),
    pytest.param(refused(402), {}, InsufficientCredits, 1, id="402"),
    pytest.param(refused(433), {}, QuotaExceeded, 1, id="433"),
    pytest.param(lambda _: None, {"budget": Budget(tasks=2)}, BudgetExceeded, 2, id="budget"),
]


@pytest.mark.parametrize(("prepare", "options", "cause", "sent"), STOPS)
async def test_what_every_request_would_meet_stops_the_batch(
    prepare: Callable[[Sandbox], None],
    options: dict[str, Any],
    cause: type[KieError],
    sent: int,
    open_session: OpenSession,
    sandbox: Sandbox,
) -> None:
    prepare(sandbox)
    source = Jobs(1000)
    limits = Limits(create=Rate(10**6, per_s=0.001), create_connections=1)
    kie = await open_session(limits=limits, max_in_flight=10, **options)
    finishing = asyncio.create_task(finish_all(sandbox))
    outcomes, end = await read(kie.batch(iter(source)))
    finishing.cancel()
    assert isinstance(end, BatchStopped)
    assert isinstance(end.__cause__, cause)
    assert str(end.__cause__) in str(end)
    assert sandbox.counts["create.bodies"] == sent
    assert len(outcomes) == source.pulled < 30  # each that was pulled is told of
    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds.count(cause) == 1
    assert BatchStopped in kinds


async def test_what_runs_when_the_batch_stops_is_waited_for(kie: KieSession, sandbox: Sandbox) -> None:
    reading = asyncio.create_task(read(kie.batch(more := Endless())))
    more.put_nowait(echo(0))
    await eventually(lambda: sandbox.tasks)
    refused(402)(sandbox)
    more.put_nowait(echo(1))  # and the source never ends by itself
    await eventually(lambda: sandbox.counts["create"] == 2)
    await finish(sandbox, 0)
    outcomes, end = await reading
    assert isinstance(end, BatchStopped)
    assert [outcome.ok for outcome in sorted(outcomes, key=lambda outcome: outcome.index)] == [True, False]


async def test_a_journal_that_fails_stops_the_batch(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db", max_in_flight=2)
    batch = kie.batch(jobs(100, with_refs=True))
    reading = asyncio.create_task(anext(batch))
    await finish(sandbox, 0)
    assert (await reading).ok
    (tmp_path / "run.db").rename(tmp_path / "away.db")
    created = len(sandbox.tasks)
    finishing = asyncio.create_task(finish_all(sandbox))
    _, end = await read(batch)
    finishing.cancel()
    assert isinstance(end, BatchStopped)
    assert isinstance(end.__cause__, JournalError)
    assert len(sandbox.tasks) <= created + 1


async def test_stop_keeps_back_what_has_not_left_and_waits_for_the_rest(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    kie = await open_session(
        max_in_flight=20, limits=Limits(create=Rate(3, per_s=3600), query=NO_LIMITS.query)
    )
    source = Jobs(1000)
    batch = kie.batch(iter(source))
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: len(sandbox.tasks) == 3)  # the others wait for the limit
    await asyncio.sleep(0.05)
    batch.stop()
    batch.stop()
    await asyncio.sleep(0.05)
    assert not reading.done()
    for number in range(3):
        await finish(sandbox, number)
    outcomes, end = await reading
    assert end is None
    assert len(outcomes) == source.pulled == 20
    assert [outcome.ok for outcome in outcomes].count(True) == 3
    kept_back = [outcome.error for outcome in outcomes if not outcome.ok]
    assert {type(error) for error in kept_back} == {BatchStopped}
    assert "stop() was called" in str(kept_back[0])
    assert sandbox.counts["create.bodies"] == 3
    assert kie.stats().in_flight == 0


async def test_stop_waits_for_a_create_whose_body_has_left(kie: KieSession, sandbox: Sandbox) -> None:
    gate = sandbox.faults.create_answer_gate = asyncio.Event()
    batch = kie.batch([echo(0)])
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: sandbox.tasks)
    batch.stop()
    await asyncio.sleep(0.02)
    gate.set()
    await finish(sandbox, 0)
    ((outcome,), _) = await reading
    assert outcome.ok
    assert outcome.task_id in sandbox.tasks


@pytest.mark.parametrize("has_journal", [False, True])
async def test_stopped_at_any_moment_every_task_is_told_of(
    has_journal: bool, open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db" if has_journal else None, max_in_flight=8)
    for turn in range(25):
        before = set(sandbox.tasks)
        batch = kie.batch(jobs(100))
        reading = asyncio.create_task(read_all(sandbox, batch))
        await asyncio.sleep(0.0015 * turn)
        batch.stop()
        outcomes = await reading
        assert {o.task_id for o in outcomes if o.ok} >= set(sandbox.tasks) - before
        assert all(o.ok or type(o.error) is BatchStopped for o in outcomes)


async def test_a_batch_stopped_before_it_began_sends_nothing(kie: KieSession, sandbox: Sandbox) -> None:
    source = Jobs(5)
    batch = kie.batch(iter(source))
    batch.stop()
    assert await read(batch) == ([], None)
    assert source.pulled == 0


async def test_stop_interrupts_a_source_that_waits(kie: KieSession) -> None:
    batch = kie.batch(Endless())
    reading = asyncio.create_task(read(batch))
    await asyncio.sleep(0.02)
    batch.stop()
    assert await reading == ([], None)


async def test_the_source_itself_may_stop_its_batch(kie: KieSession, sandbox: Sandbox) -> None:
    def requests() -> Iterator[TaskRequest]:
        yield echo(0)
        batch.stop()
        yield echo(1)
        yield echo(2)

    batch = kie.batch(requests())
    finishing = asyncio.create_task(finish_all(sandbox))
    outcomes, end = await read(batch)
    finishing.cancel()
    assert end is None
    assert sorted(outcome.index for outcome in outcomes) == [0, 1]
    assert len(sandbox.tasks) <= 1


# --- leaving early -------------------------------------------------------------------------------------


async def test_leaving_early_stops_creating_and_keeps_what_is_paid_in_the_journal(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db", max_in_flight=5)
    async with kie.batch(jobs(100, with_refs=True)) as batch:
        reading = asyncio.create_task(anext(batch))
        await finish(sandbox, 0)
        await reading
    paid = len(sandbox.tasks)
    await asyncio.sleep(0.1)
    assert len(sandbox.tasks) == paid <= 6
    await kie.aclose()

    again = await open_session(journal=tmp_path / "run.db")
    handles = await again.resume()
    assert {handle.task_id for handle in handles} == {
        key for key, task in sandbox.tasks.items() if task.end_state is None
    }


async def test_leaving_names_the_tasks_that_go_on(
    open_session: OpenSession, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    kie = await open_session()
    async with kie.batch(jobs(3, with_refs=True)) as batch:
        reading = asyncio.create_task(anext(batch))
        await finish(sandbox, 0)
        await reading
        await eventually(lambda: len(sandbox.tasks) == 3)
    left = [record.getMessage() for record in caplog.records if "a batch was left" in record.getMessage()]
    running = [task.task_id for task in sandbox.tasks.values() if task.end_state is None]
    assert len(left) == 1
    assert "with 2 tasks in flight" in left[0]
    assert all(task_id in left[0] for task_id in running)
    assert "(ref '" in left[0]
    assert "kie.attach(id)" in left[0]


async def test_leaving_waits_for_the_ids_of_creates_on_the_wire(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    kie = await open_session(max_in_flight=2)
    gate = sandbox.faults.create_answer_gate = asyncio.Event()
    batch = kie.batch(jobs(5))
    reading = asyncio.create_task(read(batch))
    await eventually(lambda: len(sandbox.tasks) == 2)
    leaving = asyncio.create_task(batch.aclose())
    await asyncio.sleep(0.02)
    assert not leaving.done()
    gate.set()
    await leaving
    assert kie.stats().creates == 2 == kie.stats().in_flight
    assert await reading == ([], None)


async def test_a_loop_that_is_broken_out_of_stops_creating(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    limits = Limits(create=Rate(3, per_s=0.2), query=NO_LIMITS.query)
    kie = await open_session(max_in_flight=50, limits=limits)
    ending = asyncio.create_task(finish(sandbox, 0))
    async for _ in kie.batch(jobs(10_000)):
        break
    await ending
    await asyncio.sleep(0.05)
    created = len(sandbox.tasks)
    await asyncio.sleep(0.5)
    assert len(sandbox.tasks) == created < 30


async def test_a_batch_nobody_reads_creates_nothing(kie: KieSession, sandbox: Sandbox) -> None:
    async with kie.batch(jobs(5)):
        await asyncio.sleep(0.05)
    kie.batch(jobs(5))
    gc.collect()
    await asyncio.sleep(0.05)
    assert not sandbox.tasks


async def test_the_outcomes_that_were_there_can_be_read_after_leaving(
    kie: KieSession, sandbox: Sandbox
) -> None:
    batch = kie.batch(jobs(3))
    reading = asyncio.create_task(anext(batch))
    for number in range(3):
        await finish(sandbox, number)
    await reading
    await eventually(lambda: kie.stats().in_flight == 0)
    await asyncio.sleep(0.02)
    await batch.aclose()
    await batch.aclose()
    outcomes, end = await read(batch)
    assert (len(outcomes), end) == (2, None)


async def test_a_session_that_closes_ends_the_iteration_with_a_reason(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    kie = await open_session(max_in_flight=3)
    reading = asyncio.create_task(read(kie.batch(jobs(100))))
    await eventually(lambda: len(sandbox.tasks) == 3)
    await kie.aclose()  # and the fixture looks for leaks
    outcomes, end = await asyncio.wait_for(reading, 10)
    assert isinstance(end, BatchStopped)
    assert isinstance(end.__cause__, SessionMisuse)
    assert not [outcome for outcome in outcomes if outcome.ok]
    with pytest.raises(SessionMisuse):
        kie.batch([])


async def test_an_iteration_that_is_abandoned_leaks_nothing(
    open_session: OpenSession, sandbox: Sandbox
) -> None:
    kie = await open_session(max_in_flight=3)
    batch = kie.batch(jobs(100))
    reading = asyncio.create_task(anext(batch))
    await eventually(lambda: len(sandbox.tasks) == 3)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await kie.aclose()
    assert len(asyncio.all_tasks()) == 1  # this one


# --- downloads -----------------------------------------------------------------------------------------


async def test_results_are_downloaded_as_they_finish(
    kie: KieSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    outcomes = await read_all(sandbox, kie.batch(jobs(3), download_to=tmp_path / "out"))
    assert sorted((tmp_path / "out").iterdir()) == sorted(file for o in outcomes for file in o.files)
    assert all(outcome.files[0].stat().st_size for outcome in outcomes)


async def test_a_download_that_fails_is_an_outcome_with_result_and_error(
    kie: KieSession, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> list[Path]:
        raise DownloadFailed("the file came packed, which was not asked for")

    monkeypatch.setattr(kie._engine.downloads, "download", fail)
    (outcome,) = await read_all(sandbox, kie.batch([echo(0)], download_to=tmp_path / "out"))
    assert isinstance(outcome.error, DownloadFailed)
    assert outcome.result is not None
    assert outcome.task_id == outcome.result.task_id
    assert not outcome.ok
    with pytest.raises(DownloadFailed):
        outcome.unwrap()


async def test_an_error_nobody_foresaw_stops_the_batch_and_is_raised(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> list[Path]:
        raise RuntimeError("a bug")

    kie = await open_session(max_in_flight=2)
    monkeypatch.setattr(kie._engine.downloads, "download", fail)
    finishing = asyncio.create_task(finish_all(sandbox))
    _, end = await read(kie.batch(jobs(1000), download_to=tmp_path))
    finishing.cancel()
    assert isinstance(end, RuntimeError)
    assert len(sandbox.tasks) < 20


# --- what is tried before money is spent, and what stops it when it goes for nothing --------------------


def take_the_place(tmp_path: Path) -> Path:
    (tmp_path / "out").write_text("a file")
    return tmp_path / "out"


def below_a_file(tmp_path: Path) -> Path:
    return take_the_place(tmp_path) / "deep"


def not_ours(_: Path) -> Path:
    return Path("/proc/videos")


def too_long(tmp_path: Path) -> Path:
    return tmp_path / ("x" * 300)


@pytest.mark.parametrize("make", [take_the_place, below_a_file, not_ours, too_long])
async def test_a_folder_that_cannot_be_written_ends_a_batch_before_anything_is_pulled(
    kie: KieSession, sandbox: Sandbox, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder, requests = make(tmp_path), Jobs(30)
    outcomes, end = await read(kie.batch(requests, download_to=folder))
    assert isinstance(end, InvalidRequest)
    assert str(end).startswith(f"download_to: cannot write to {folder}: ")
    assert (outcomes, requests.pulled, sum(sandbox.counts.values())) == ([], 0, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
async def test_a_disk_that_is_full_ends_a_batch_before_anything_is_sent(
    kie: KieSession, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    _, end = await read(kie.batch(jobs(30), download_to=tmp_path / "out"))
    assert isinstance(end, InvalidRequest)
    assert os.strerror(code) in str(end)
    assert not sandbox.counts
    assert not list((tmp_path / "out").iterdir())


async def test_the_folder_is_made_and_nothing_is_left_in_it(kie: KieSession, tmp_path: Path) -> None:
    outcomes, end = await read(kie.batch([], download_to=str(tmp_path / "deep" / "out")))
    assert (outcomes, end) == ([], None)
    assert not list((tmp_path / "deep" / "out").iterdir())


async def test_a_disk_that_fills_up_later_stops_creating_at_once_where_nobody_waits_for_it(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kie, requests = await open_session(max_in_flight=2), Jobs(100)
    finishing = asyncio.create_task(finish_all(sandbox))
    batch = kie.batch(requests, download_to=tmp_path, give_up_after_s=0)
    assert (await anext(batch)).files
    monkeypatch.setattr(os, "fsync", fsync)
    outcomes, end = await read(batch)
    finishing.cancel()
    assert isinstance(end, BatchStopped)
    assert end.reason == f"cannot write to {tmp_path} any more: No space left on device"
    assert any(isinstance(outcome.error, DownloadFailed) and outcome.result for outcome in outcomes)
    assert requests.pulled < 20


@pytest.mark.parametrize("bad", [0, -1, True, 2.5, "20"])
async def test_a_wrong_streak_is_named(kie: KieSession, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="max_failures_in_a_row"):
        kie.batch([], max_failures_in_a_row=bad)


@pytest.mark.parametrize("bad", [7, b"out", "", "a\0b", ["out"]])
async def test_a_wrong_folder_is_named(kie: KieSession, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="download_to must be a path"):
        kie.batch([], download_to=bad)


async def end_all(sandbox: Sandbox, end_of: Callable[[int], Any]) -> None:
    """End every task as its number says, in the order of their creation; cancel it when done."""
    while True:
        for number, task_id in zip(numbers_at(sandbox), list(sandbox.tasks), strict=False):
            state = end_of(number)
            words = {"fail_code": "501", "fail_msg": "out of memory"} if state == "fail" else {}
            sandbox.finish(task_id, state, **words)
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("end_of", "options", "ended", "warnings"),
    [
        (lambda _: "fail", {}, 20, 1),
        (lambda _: "fail", {"max_failures_in_a_row": 3}, 3, 0),
        (lambda _: "fail", {"max_failures_in_a_row": 1}, 1, 0),
        (lambda _: "fail", {"max_failures_in_a_row": None}, None, 1),
        (lambda number: "success" if number % 20 == 19 else "fail", {}, None, 1),
        (lambda number: "success" if number % 4 == 3 else "fail", {}, None, 0),
        (lambda number: "success" if number < 30 else "fail", {}, 50, 1),
        (lambda _: "success", {}, None, 0),
    ],
)
async def test_a_model_that_only_fails_stops_a_batch(
    open_session: OpenSession,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    end_of: Callable[[int], str],
    options: dict[str, Any],
    ended: int | None,
    warnings: int,
) -> None:
    kie = await open_session(max_in_flight=1)
    ending = asyncio.create_task(end_all(sandbox, end_of))
    outcomes, end = await read(kie.batch(jobs(60), **options))
    ending.cancel()
    said = [record.getMessage() for record in caplog.records if "in a row" in record.getMessage()]
    assert len(said) == warnings
    assert all(words.startswith("5 tasks of sandbox/echo failed") for words in said)
    if ended is None:
        assert (len(outcomes), end) == (60, None)
        return
    assert isinstance(end, BatchStopped)
    begun = [outcome for outcome in outcomes if outcome.task_id]
    assert len(begun) == len(sandbox.tasks) == ended
    most = options.get("max_failures_in_a_row", 20)
    assert end.reason.startswith(f"{most} tasks of sandbox/echo failed in a row without a success, the last:")
    assert "out of memory (501)" in str(end)


async def test_streaks_are_of_one_model(open_session: OpenSession, sandbox: Sandbox) -> None:
    """Another model's successes do not hide a broken one, nor do its failures add to it."""
    kie = await open_session(max_in_flight=1)
    models = ("sandbox/echo", "nano-banana-2")
    requests = [TaskRequest(model=models[n % 2], input={"prompt": str(n)}) for n in range(40)]
    ending = asyncio.create_task(end_all(sandbox, lambda n: "fail" if n % 2 == 0 else "success"))
    outcomes, end = await read(kie.batch(requests, max_failures_in_a_row=10))
    assert isinstance(end, BatchStopped)
    assert end.reason.startswith("10 tasks of sandbox/echo")
    assert len(sandbox.tasks) == 19
    both_fail = kie.batch(requests[:18], max_failures_in_a_row=10)
    ending.cancel()
    ending = asyncio.create_task(end_all(sandbox, lambda _: "fail"))
    outcomes, end = await read(both_fail)
    ending.cancel()
    assert (len(outcomes), end) == (18, None)


async def test_failures_of_former_runs_and_of_one_shared_task_are_counted_once(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    """A batch run again meets its old failures first; they must not keep it from going on."""
    ending = asyncio.create_task(end_all(sandbox, lambda n: "fail" if n < 10 else "success"))
    requests = [echo(n, ref=f"r{n}") for n in range(20)]
    for expected in (True, False):
        kie = await open_session(journal=tmp_path / "run.db", max_in_flight=1)
        _, end = await read(kie.batch(requests, max_failures_in_a_row=10))
        assert isinstance(end, BatchStopped) == expected
        await kie.aclose()
    ending.cancel()
    assert len(sandbox.tasks) == 20
    kie = await open_session(max_in_flight=30)
    ending = asyncio.create_task(end_all(sandbox, lambda _: "fail"))
    outcomes, end = await read(kie.batch([echo(99, ref="one")] * 25))
    ending.cancel()
    assert (len(outcomes), end) == (25, None)


# --- again --------------------------------------------------------------------------------------------


async def run_again(
    open_session: OpenSession,
    sandbox: Sandbox,
    tmp_path: Path,
    requests: Any,
    fails: Callable[[int], bool],
    **options: Any,
) -> list[Outcome]:
    """Read a batch of a new session on the same journal; *fails* says of a request's number how it ends."""
    kie = await open_session(journal=tmp_path / "run.db")
    ending = asyncio.create_task(end_all(sandbox, lambda n: "fail" if fails(n) else "success"))
    outcomes, end = await read(kie.batch(requests, **options))
    ending.cancel()
    await kie.aclose()
    assert end is None
    return sorted(outcomes, key=lambda outcome: outcome.index)


async def test_what_failed_is_tried_anew_only_when_asked_and_the_rest_never(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    first = await run_again(
        open_session, sandbox, tmp_path, list(jobs(4, with_refs=True)), lambda n: n in {1, 2}
    )
    assert [outcome.ok for outcome in first] == [True, False, False, True]
    requests = [echo(n, ref=f"r{n}") for n in range(4)]
    again = await run_again(open_session, sandbox, tmp_path, requests, lambda _: False)
    assert [outcome.task_id for outcome in again] == [outcome.task_id for outcome in first]
    assert str(again[1].error).endswith("kie.batch(..., retry_failed=True), makes it again")
    retried = await run_again(open_session, sandbox, tmp_path, requests, lambda _: False, retry_failed=True)
    assert all(outcome.ok for outcome in retried)
    assert [outcome.ref for outcome in retried] == ["r0", "r1", "r2", "r3"]
    assert sorted(numbers_at(sandbox)) == [0, 1, 1, 2, 2, 3]


async def test_content_may_change_when_what_failed_is_tried_anew(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    requests = [echo(1, ref="bad"), echo(2, ref="good")]
    await run_again(open_session, sandbox, tmp_path, requests, lambda n: n == 1)
    changed = [echo(7, ref="bad"), echo(8, ref="good")]
    bad, good = await run_again(open_session, sandbox, tmp_path, changed, lambda _: False, retry_failed=True)
    assert bad.ok
    assert isinstance(good.error, RefConflict)
    assert sorted(numbers_at(sandbox)) == [1, 2, 7]


@pytest.mark.parametrize("in_flight", [1, 10])
async def test_equal_refs_of_a_batch_that_fails_again_are_one_attempt(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path, in_flight: int
) -> None:
    await run_again(open_session, sandbox, tmp_path, [echo(1, ref="a")], lambda _: True)
    kie = await open_session(journal=tmp_path / "run.db", max_in_flight=in_flight)
    ending = asyncio.create_task(end_all(sandbox, lambda _: "fail"))
    outcomes, end = await read(kie.batch([echo(1, ref="a")] * 5, retry_failed=True))
    ending.cancel()
    assert end is None
    assert len(sandbox.tasks) == 2
    assert len({outcome.task_id for outcome in outcomes}) == 1


async def test_a_row_without_ref_that_failed_is_tried_anew_by_its_content(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    await run_again(open_session, sandbox, tmp_path, list(jobs(2)), lambda n: n == 0)
    again = await run_again(
        open_session, sandbox, tmp_path, list(jobs(2)), lambda _: False, retry_failed=True
    )
    assert all(outcome.ok for outcome in again)
    assert len(sandbox.tasks) == 3


@pytest.mark.parametrize("bad", [1, "yes", None])
async def test_a_wrong_retry_failed_is_named(kie: KieSession, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="retry_failed"):
        kie.batch([], retry_failed=bad)


# --- names of files -----------------------------------------------------------------------------------


async def test_files_are_named_as_asked_and_again_so_in_the_next_run(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    requests = [echo(n, ref=ref) for n, ref in enumerate(["anna", "Anna", "a/b", "a:b"])]
    options: dict[str, Any] = {"download_to": tmp_path / "out", "name": "{ref}"}
    first = await run_again(open_session, sandbox, tmp_path, requests, lambda _: False, **options)
    names = [outcome.files[0].stem for outcome in first]
    assert {name.casefold()[:4] for name in names} == {"anna", "a_b", "a_b-"}
    assert len({name.casefold() for name in names}) == 4
    assert sum(name in {"anna", "Anna"} for name in names) == 1  # on some file systems they are one
    assert sandbox.counts["file"] == 4
    again = await run_again(open_session, sandbox, tmp_path, requests[::-1], lambda _: False, **options)
    assert [outcome.files for outcome in again[::-1]] == [outcome.files for outcome in first]
    assert sandbox.counts["file"] == 4


async def test_a_file_of_a_former_run_under_its_old_name_is_not_fetched_again(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    requests, folder = [echo(0, ref="anna")], tmp_path / "out"
    (first,) = await run_again(open_session, sandbox, tmp_path, requests, lambda _: False, download_to=folder)
    assert first.files[0].name.startswith(f"{first.task_id}-1.")
    (again,) = await run_again(
        open_session, sandbox, tmp_path, requests, lambda _: False, download_to=folder, name="{ref}"
    )
    assert again.files == first.files
    assert [*folder.iterdir()] == [*first.files]


async def test_another_journal_in_the_same_folder_overwrites_nothing(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    requests, folder = [echo(0, ref="anna")], tmp_path / "out"
    options: dict[str, Any] = {"download_to": folder, "name": "{ref}"}
    (tmp_path / "other").mkdir()
    (first,) = await run_again(open_session, sandbox, tmp_path, requests, lambda _: False, **options)
    before = first.files[0].read_bytes()
    (other,) = await run_again(
        open_session, sandbox, tmp_path / "other", requests, lambda _: False, **options
    )
    assert other.files[0].stem == f"anna-{other.task_id[-8:].lstrip('-')}"
    assert first.files[0].read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "{order}", "download_to": "out"}, "names {order}; there is {ref}"),
        ({"name": 5, "download_to": "out"}, "name must be the name of a file"),
        ({"name": "{ref}"}, "name goes with download_to"),
    ],
)
async def test_a_wrong_name_is_refused_at_once(kie: KieSession, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        kie.batch([], **options)


# --- time and memory ----------------------------------------------------------------------------------


def test_the_limits_are_used_up_and_kept() -> None:
    with asyncio.Runner(loop_factory=SteeredLoop) as runner:
        found = runner.run(makespan.run_virtual(120, rtt_s=0.05, with_callbacks=True))
    assert found.refusals == found.refused_queries == 0
    assert found.ratio <= makespan.MAX_RATIO


@pytest.mark.timeout(120)
def test_memory_does_not_grow_with_the_length() -> None:
    few, many = memory.measure(100), memory.measure(1000)
    assert many["peak_mib"] <= few["peak_mib"] * memory.MAX_RATIO
