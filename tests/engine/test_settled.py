"""What a journal knows of tasks that ended, for whoever died before the answer was given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenSession
from support.journals import intent, opened, raw

from kie_async import (
    InvalidRequest,
    KieSession,
    ResultUnreadable,
    Sandbox,
    SessionMisuse,
    SettledTask,
    TaskFailed,
)
from kie_async.wire.records import decode_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


async def all_of(tasks: AsyncIterator[SettledTask]) -> list[SettledTask]:
    return [task async for task in tasks]


async def settle(path: Path, refs: list[str | None], *, first_ms: int = 1_000) -> None:
    """Note the ends of so many tasks, a second apart."""
    async with opened(path) as journal:
        for number, ref in enumerate(refs):
            await journal.mark_sending(intent(number, ref=ref))
            await journal.mark_created(f"i{number}", f"t{number}")
            record = {"taskId": f"t{number}", "state": "success", "resultUrls": ["https://e.org/a.mp4"]}
            await journal.mark_settled(f"i{number}", decode_record(record))
    with raw(path) as db:
        db.execute("UPDATE intent SET terminal_ms = ? + 1000 * (seq - 1)", (first_ms,))


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


async def test_a_bot_that_died_before_its_answer_finds_result_and_error_after_the_restart(
    path: Path, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=path)
    begun = datetime.now(UTC)
    good = await kie.create("sandbox/echo", {"prompt": "a"}, ref="message-1")
    bad = await kie.create("sandbox/echo", {"prompt": "b"}, ref="message-2")
    await kie.create("sandbox/echo", {"prompt": "c"}, ref="message-3")
    sandbox.finish(good.task_id)
    urls = (await good).urls
    sandbox.finish(bad.task_id, "fail")
    with pytest.raises(TaskFailed):
        await bad
    await kie.aclose()

    kie = await open_session(journal=path)
    queries, creates = sandbox.counts["query"], sandbox.counts["create"]
    first, second = await all_of(kie.settled(since=begun - timedelta(seconds=1)))
    assert (first.ref, first.task_id, first.model, first.ok) == (
        "message-1",
        good.task_id,
        "sandbox/echo",
        True,
    )
    assert first.unwrap().urls == urls
    assert (second.ref, second.task_id, second.ok, second.result) == ("message-2", bad.task_id, False, None)
    assert isinstance(second.error, TaskFailed)
    with pytest.raises(TaskFailed):
        second.unwrap()
    assert begun - timedelta(seconds=1) < first.ended_at <= second.ended_at <= datetime.now(UTC)
    assert first.ended_at.utcoffset() == timedelta(0)
    assert (sandbox.counts["query"], sandbox.counts["create"]) == (queries, creates)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"since": at(2)}, [1, 2, 3]),
        ({"since": at(2.0005)}, [2, 3]),
        ({"since": at(9)}, []),
        ({"since": at(2).astimezone()}, [1, 2, 3]),
        ({"since": datetime(1, 1, 1, tzinfo=UTC)}, [0, 1, 2, 3]),
        ({"ref_prefix": "order-"}, [0, 2]),
        ({"ref_prefix": "order-%"}, []),
        ({"ref_prefix": "order-", "since": at(2)}, [2]),
        ({"ref_prefix": "ж"}, [3]),
    ],
)
async def test_ends_are_given_in_their_order_from_then_on_and_by_their_refs(
    path: Path, open_session: OpenSession, options: dict[str, Any], numbers: list[int]
) -> None:
    await settle(path, ["order-1", None, "order-2", "жук"])
    kie = await open_session(journal=path)
    tasks = await all_of(kie.settled(**options))
    assert [task.task_id for task in tasks] == [f"t{number}" for number in numbers]
    assert [task.ended_at for task in tasks] == [at(1 + number) for number in numbers]


async def test_more_than_are_read_at_once_come_once_each(path: Path, open_session: OpenSession) -> None:
    await settle(path, [f"r{number}" for number in range(230)])
    with raw(path) as db:
        db.execute("UPDATE intent SET terminal_ms = 5000 - terminal_ms % 3")
    kie = await open_session(journal=path)
    tasks = await all_of(kie.settled())
    assert len({task.task_id for task in tasks}) == len(tasks) == 230
    assert [task.ended_at for task in tasks] == sorted(task.ended_at for task in tasks)


async def test_no_end_is_in_the_future_or_before_1970(path: Path, open_session: OpenSession) -> None:
    await settle(path, ["a"], first_ms=2**53)
    kie = await open_session(journal=path)
    (task,) = await all_of(kie.settled())
    assert task.ended_at <= datetime.now(UTC)


async def test_an_end_that_cannot_be_read_is_an_error_and_stays_in_its_place(
    path: Path, open_session: OpenSession
) -> None:
    await settle(path, ["a", "b"])
    with raw(path) as db:
        db.execute("UPDATE intent SET record = '{' WHERE ref = 'a'")
    kie = await open_session(journal=path)
    first, second = await all_of(kie.settled())
    assert isinstance(first.error, ResultUnreadable)
    assert first.error.task_id == "t0"
    assert second.ok


async def test_without_a_durable_journal_there_are_none(sandbox: Sandbox, kie: KieSession) -> None:
    handle = await kie.create("sandbox/echo", {"prompt": "a"}, ref="a")
    sandbox.finish(handle.task_id)
    await handle
    assert await all_of(kie.settled()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": 1_764_000_000.0}, "since must be an aware datetime"),
        ({"since": datetime(2026, 5, 4)}, "since has no time zone"),  # noqa: DTZ001  (that is the fault)
        ({"ref_prefix": None}, "ref_prefix must be how the refs begin"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_where_it_is_asked(
    kie: KieSession, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        kie.settled(**options)


async def test_a_closed_session_has_none(kie: KieSession) -> None:
    await kie.aclose()
    with pytest.raises(SessionMisuse):
        kie.settled()
