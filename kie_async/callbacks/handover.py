"""Runs a coroutine on the event loop of another thread and waits for what it returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import CallbackRejected
from .refusals import NO_SESSION

HANDOVER_TIMEOUT_S = 10.0
"""The service waits 15 s for an answer."""

_T = TypeVar("_T")

_running: set[asyncio.Task[None]] = set()
"""An event loop holds its tasks only weakly."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def run_on(loop: asyncio.AbstractEventLoop, begin: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Return what the coroutine of *begin* returns on *loop*, which runs in another thread.

    What has begun there is not stopped when this is cancelled, or has waited too long.

    Raises:
        CallbackRejected: 503: the other loop is closed, or does not answer in time.
    """
    outcome: Future[_T] = Future()
    try:
        loop.call_soon_threadsafe(_start, loop, begin, outcome)
    except RuntimeError:
        raise CallbackRejected(NO_SESSION, 503) from None
    try:
        async with asyncio.timeout(HANDOVER_TIMEOUT_S):
            return await asyncio.wrap_future(outcome)
    except TimeoutError:
        raise CallbackRejected("the event loop of the session is blocked", 503) from None


def call_on(loop: asyncio.AbstractEventLoop | None, function: Callable[[], None]) -> None:
    """Call a function on *loop*: now if it runs here, else soon; never on one that is closed."""
    if loop is None or loop is running_loop():
        function()
    else:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(function)


def _start(
    loop: asyncio.AbstractEventLoop, begin: Callable[[], Coroutine[Any, Any, _T]], outcome: Future[_T]
) -> None:
    # False when nobody waits any more: the service was answered 503 and delivers again.
    if outcome.set_running_or_notify_cancel():
        task = loop.create_task(_finish(begin, outcome), name="kie_async callback")
        _running.add(task)
        task.add_done_callback(_running.discard)


async def _finish(begin: Callable[[], Coroutine[Any, Any, _T]], outcome: Future[_T]) -> None:
    try:
        result = await begin()
    except asyncio.CancelledError:  # this loop ends; the thread that waits is not cancelled by that
        outcome.set_exception(CallbackRejected(NO_SESSION, 503))
        raise
    except Exception as exc:
        outcome.set_exception(exc)
    else:
        outcome.set_result(result)
