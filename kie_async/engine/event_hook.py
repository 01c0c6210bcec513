"""Calls the user's ``on_event`` hook, never in the middle of a change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..events import EventKind, SessionEvent, Source
from ..handle import TaskHandle

_log = logging.getLogger("kie_async")


class EventHook:
    """The hook of a session, which may have none."""

    def __init__(self, on_event: Callable[[SessionEvent], None] | None) -> None:
        self._on_event = on_event

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

    def _call_hook(self, hook: Callable[[SessionEvent], None], event: SessionEvent) -> None:
        try:
            hook(event)
        except Exception:
            _log.exception("the on_event hook raised; the session goes on")
