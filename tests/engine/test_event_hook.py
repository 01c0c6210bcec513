"""The user's hook: called with each event, awaited if it can be, and what it does wrong ends nothing."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from conftest import OpenSession, eventually
from support.tables import together

from kie_async import InvalidRequest, KieSession, Sandbox, SessionEvent
from kie_async.engine import event_hook


class Callable_:
    def __call__(self, event: SessionEvent) -> None: ...

    async def later(self, event: SessionEvent) -> None: ...


async def coroutine_function(event: SessionEvent) -> None: ...


@together(
    "hook",
    [None, print, [].append, Callable_(), Callable_().later, coroutine_function, functools.partial(print, 1)],
)
def test_what_takes_one_event_is_a_hook(hook: Any) -> None:
    KieSession("k", on_event=hook)


@together(
    "hook",
    [5, "print", [], object(), lambda: None, lambda a, b: None, functools.partial(Callable_().later, 1)],
)
def test_anything_else_is_refused_by_name(hook: Any) -> None:
    with pytest.raises(InvalidRequest, match="on_event must be a function of one event"):
        KieSession("k", on_event=hook)


async def test_a_coroutine_function_is_awaited_in_order_and_before_the_close_ends(
    sandbox: Sandbox, open_session: OpenSession
) -> None:
    begun, ended = [], []

    async def hook(event: SessionEvent) -> None:
        begun.append(event.kind)
        await asyncio.sleep(0.05)
        ended.append(event.kind)

    kie = await open_session(on_event=hook)
    handle = await kie.create("sandbox/echo", {})
    sandbox.finish(handle.task_id)
    await handle
    await kie.aclose()
    assert begun == ended
    assert (begun[0], begun[-1]) == ("created", "settled")


async def test_what_it_raises_is_logged(
    sandbox: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(event: SessionEvent) -> None:
        raise ValueError("of the hook")

    kie = await open_session(on_event=hook)
    handle = await kie.create("sandbox/echo", {})
    sandbox.finish(handle.task_id)
    await handle
    await eventually(lambda: "the on_event hook raised" in caplog.text)
    assert "of the hook" in caplog.text


async def test_one_that_closes_the_session_waits_for_no_one_but_itself(
    sandbox: Sandbox, open_session: OpenSession
) -> None:
    closed = asyncio.Event()

    async def hook(event: SessionEvent) -> None:
        if event.kind == "created":
            await kie.aclose()
            closed.set()

    kie = await open_session(on_event=hook)
    await kie.create("sandbox/echo", {})
    await asyncio.wait_for(closed.wait(), 2)


async def test_one_that_hangs_is_cancelled_when_its_time_is_over(
    sandbox: Sandbox, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hook, "HOOK_DRAIN_S", 0.05)
    cancelled = asyncio.Event()

    async def hook(event: SessionEvent) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    kie = await open_session(on_event=hook)
    await kie.create("sandbox/echo", {})
    await kie.aclose()
    assert cancelled.is_set()
