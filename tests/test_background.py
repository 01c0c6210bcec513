"""Background tasks are held while they run, and end with their owner."""

from __future__ import annotations

import asyncio
import gc

import pytest

from kie_async._background import BackgroundTasks


async def test_a_task_runs_to_its_end_and_is_then_forgotten() -> None:
    tasks = BackgroundTasks("kie_async test")
    running = tasks.spawn(asyncio.sleep(0, "done"))
    assert running.get_name() == "kie_async test"
    assert (len(tasks), list(tasks)) == (1, [running])
    assert await running == "done"
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_a_task_that_nobody_else_holds_is_not_collected() -> None:
    tasks, ended = BackgroundTasks("kie_async test"), list[str]()

    async def work() -> None:
        await asyncio.sleep(0.01)
        ended.append("done")

    tasks.spawn(work())
    await asyncio.sleep(0)
    gc.collect()
    await tasks.drain()
    assert ended == ["done"]


async def test_draining_waits_for_those_begun_meanwhile_and_for_failures() -> None:
    tasks, ended = BackgroundTasks("kie_async test"), list[str]()

    async def first() -> None:
        await asyncio.sleep(0.001)
        tasks.spawn(second())
        raise ValueError

    async def second() -> None:
        await asyncio.sleep(0.001)
        ended.append("second")

    failing = tasks.spawn(first())
    await tasks.drain()
    assert ended == ["second"]
    with pytest.raises(ValueError):
        failing.result()


async def test_closing_cancels_and_waits_until_each_has_cleaned_up() -> None:
    tasks, cleaned = BackgroundTasks("kie_async test"), list[int]()

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.001)
            cleaned.append(number)

    running = [tasks.spawn(work(number)) for number in range(3)]
    await asyncio.sleep(0)
    await tasks.aclose()
    assert sorted(cleaned) == [0, 1, 2]
    assert all(task.cancelled() for task in running)
    assert len(tasks) == 0
    await tasks.aclose()
