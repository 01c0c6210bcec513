"""Calls the user's ``on_event`` hook, a function or a coroutine function, never in the middle of a change."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from .._background import BackgroundTasks
from ..errors import InvalidRequest
from ..events import EventKind, SessionEvent, Source, Weather
from ..handle import TaskHandle

Hook = Callable[[SessionEvent], object]

HOOK_DRAIN_S = 5.0

_log = logging.getLogger("kie_async")


def check_hook(hook: object) -> None:
    """Refuse a hook that cannot be called with one event.

    Raises:
        InvalidRequest: With what is wrong with it.
    """
    if hook is None:
        return
    if not callable(hook):
        raise InvalidRequest(f"on_event must be a function of one event, got {type(hook).__name__}")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # written in C, without one
        return
    try:
        signature.bind(object())
    except TypeError as exc:
        raise InvalidRequest(f"on_event must be a function of one event: {exc}") from None


class EventHook:
    """The hook of a session, which may have none."""

    def __init__(self, on_event: Hook | None) -> None:
        self._on_event = on_event
        self._running = BackgroundTasks("kie_async on_event")

    def emit(self, kind: EventKind, handle: TaskHandle, source: Source | None = None) -> None:
        """Call the hook at the loop's next turn: callbacks are answered before code of the user's runs."""
        if self._on_event is None:
            return
        event = SessionEvent(
            kind=kind,
            task_id=handle.task_id,
            ref=handle.ref,
            source=source.value if source else "",
            record=handle.record,
        )
        asyncio.get_running_loop().call_soon(self._call_hook, self._on_event, event)

    def emit_weather(self, weather: Weather) -> None:
        """Call the hook with what keeps the session from getting on; it is the `WeatherSink` of the parts."""
        if self._on_event is not None:
            event = SessionEvent(kind="weather", task_id="", weather=weather)
            asyncio.get_running_loop().call_soon(self._call_hook, self._on_event, event)

    async def drain(self, caller: asyncio.Task[Any] | None) -> None:
        """Give coroutines of the hook some seconds to end; *caller* may be one of them and is left alone."""
        await asyncio.sleep(0)  # the calls that are due now
        running = [task for task in self._running if task is not caller]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=HOOK_DRAIN_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _call_hook(self, hook: Hook, event: SessionEvent) -> None:
        try:
            called = hook(event)
        except Exception:
            _log.exception("the on_event hook raised; the session goes on")
            return
        if inspect.isawaitable(called):
            self._running.spawn(_await_hook(called))


async def _await_hook(called: Awaitable[object]) -> None:
    try:
        await called
    except Exception:
        _log.exception("the on_event hook raised; the session goes on")
