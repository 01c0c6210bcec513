"""On every loop that the suite can run on, the check for leaks finds what is left, and nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from conftest import no_leaks

from kie_async import KieSession
from support.loops import run_on
from support.misbehaving import Misbehaving, answer, says


async def leave_a_task(stack: AsyncExitStack) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    stack.callback(task.cancel)


async def leave_a_file(stack: AsyncExitStack) -> None:
    stack.callback(os.close, os.dup(0))


async def leave_a_connection(stack: AsyncExitStack) -> None:
    server = await stack.enter_async_context(Misbehaving(says(answer())))
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)


async def leave_an_error(stack: AsyncExitStack) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": "nobody took it"})


@pytest.mark.parametrize("leave", [leave_a_task, leave_a_file, leave_a_connection, leave_an_error])
def test_what_is_left_is_found(
    loop_name: str, leave: Callable[[AsyncExitStack], Coroutine[Any, Any, None]]
) -> None:
    async def leak() -> None:
        async with AsyncExitStack() as stack:
            with pytest.raises(AssertionError):
                async with no_leaks():
                    await leave(stack)

    run_on(loop_name, leak())


def test_a_session_that_was_closed_leaves_nothing(loop_name: str) -> None:
    async def work() -> None:
        async with no_leaks(), Misbehaving(says(answer({"code": 200, "data": 5}))) as server:
            async with KieSession("key", base_url=server.url) as kie:
                assert await kie.credits() == 5

    run_on(loop_name, work())
