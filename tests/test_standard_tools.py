"""What asyncio's and Python's own tools do with a handle, a session and a batch."""

from __future__ import annotations

import asyncio
import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from support.tables import together

from kie_async import (
    CreateOutcomeUnknown,
    KieError,
    KieSession,
    Outcome,
    Sandbox,
    TaskFailed,
    TaskHandle,
    TaskRequest,
    TaskResult,
)


async def made(kie: KieSession, sandbox: Sandbox, count: int = 2, *, end: bool = True) -> list[TaskHandle]:
    """Create some tasks, and end them soon."""
    handles = [await kie.create("sandbox/echo", {"n": n}) for n in range(count)]
    if end:
        for handle in handles:
            asyncio.get_running_loop().call_later(0.02, sandbox.finish, handle.task_id)
    return handles


async def test_gather(kie: KieSession, sandbox: Sandbox) -> None:
    handles = await made(kie, sandbox)
    results = await asyncio.gather(*handles, handles[0])
    assert [result.task_id for result in results] == [h.task_id for h in (*handles, handles[0])]


async def test_gather_with_exceptions(kie: KieSession, sandbox: Sandbox) -> None:
    good, bad = await made(kie, sandbox, end=False)
    sandbox.finish(good.task_id)
    sandbox.finish(bad.task_id, "fail")
    results = await asyncio.gather(good, bad, return_exceptions=True)
    assert [type(result) for result in results] == [TaskResult, TaskFailed]


async def test_as_completed(kie: KieSession, sandbox: Sandbox) -> None:
    handles = await made(kie, sandbox)
    results = {(await done).task_id for done in asyncio.as_completed(handles)}
    assert results == {handle.task_id for handle in handles}


async def test_wait_for(kie: KieSession, sandbox: Sandbox) -> None:
    [handle] = await made(kie, sandbox, 1, end=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle, 0.02)
    sandbox.finish(handle.task_id)
    assert (await asyncio.wait_for(handle, 5)).task_id == handle.task_id


async def test_shield(kie: KieSession, sandbox: Sandbox) -> None:
    [handle] = await made(kie, sandbox, 1)
    assert (await asyncio.shield(handle)).task_id == handle.task_id


async def test_task_group(kie: KieSession, sandbox: Sandbox) -> None:
    handles = await made(kie, sandbox)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(handle.result()) for handle in handles]
    assert [task.result().task_id for task in tasks] == [handle.task_id for handle in handles]


async def test_wait_takes_tasks(kie: KieSession, sandbox: Sandbox) -> None:
    handles = await made(kie, sandbox)
    done, _ = await asyncio.wait([asyncio.ensure_future(handle) for handle in handles])
    assert len(done) == 2


async def test_wait_says_that_it_takes_no_handles(kie: KieSession, sandbox: Sandbox) -> None:
    handles: Any = await made(kie, sandbox)
    with pytest.raises(TypeError, match=r"asyncio\.wait takes tasks, not handles.*ensure_future"):
        await asyncio.wait(handles)
    await asyncio.gather(*handles)


@together("take", [copy.copy, copy.deepcopy, pickle.dumps, lambda thing: pickle.dumps([thing], protocol=2)])
@together("name", ["KieSession", "TaskHandle", "Batch"])
async def test_what_belongs_to_a_loop_is_neither_copied_nor_pickled(
    name: str, take: Any, kie: KieSession, sandbox: Sandbox
) -> None:
    things: dict[str, Any] = {"KieSession": kie, "TaskHandle": kie.attach("t"), "Batch": kie.batch([])}
    with pytest.raises(
        TypeError, match=f"a {name} belongs to one event loop and is neither copied nor pickled"
    ):
        take(things[name])
    things["TaskHandle"].abandon()


async def test_an_outcome_leaves_the_handle_of_its_error_behind(kie: KieSession) -> None:
    handle = kie.attach("t")
    error = CreateOutcomeUnknown("i", "no answer", datetime.now(UTC), None)
    error.handle = handle
    outcome = Outcome(index=0, ref=None, request=TaskRequest(model="a/b", input={}), error=error)
    again = pickle.loads(pickle.dumps(outcome))  # noqa: S301
    assert isinstance(again.error, KieError)
    assert again.error.handle is None
    handle.abandon()
