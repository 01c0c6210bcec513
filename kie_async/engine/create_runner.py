"""Runs creates that outlive their cancelled callers: a cancel stops only what has not left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from ..creating.create_call import CreateCall
from ..errors import SESSION_CLOSED, KieError, SessionMisuse
from ..handle import TaskHandle

SHUTDOWN_GRACE_S = 10.0

Work = Coroutine[Any, Any, TaskHandle | KieError]
"""A whole create. It returns its error: there may be nobody left to raise it to."""
_Running = asyncio.Task[TaskHandle | KieError]


class CreateRunner:
    """The creates on their way, each in an asyncio task of its own."""

    def __init__(self) -> None:
        self._running: dict[_Running, CreateCall] = {}
        self._orphans: dict[str, tuple[_Running, CreateCall]] = {}
        self._orphaned: set[CreateCall] = set()

    def __len__(self) -> int:
        return len(self._running)

    def is_orphan(self, call: CreateCall) -> bool:
        """Tell whether the caller was cancelled after the body had left."""
        return call in self._orphaned

    async def run(
        self,
        work: Work,
        call: CreateCall,
        *,
        ref: str | None,
        wait_if_sent: bool,
        on_cancelled: Callable[[], None],
    ) -> TaskHandle:
        """Run *work*, which runs *call*, and return its handle or raise its error.

        A cancelled caller stops what has not left. What has left goes on without him; with *wait_if_sent*
        the first cancel waits for it. *on_cancelled* is called if the work was cancelled, begun or not.
        """
        loop = asyncio.get_running_loop()
        running = loop.create_task(work, name="kie_async create")
        self._running[running] = call
        waiter: asyncio.Future[TaskHandle] = loop.create_future()
        running.add_done_callback(partial(self._note_done, waiter, on_cancelled))
        while True:
            try:
                return await waiter
            except asyncio.CancelledError:
                caller = asyncio.current_task()
                if running.cancelled() and not (caller and caller.cancelling()):  # by the close, unbegun
                    raise SessionMisuse(SESSION_CLOSED) from None
                is_kept_back = call.stop()
                if is_kept_back:
                    running.cancel()
                elif wait_if_sent:
                    wait_if_sent = False
                    waiter = loop.create_future()
                    running.add_done_callback(partial(_resolve_waiter, waiter))
                    continue
                self._leave(running, call, ref, is_orphan=not is_kept_back)
                raise

    def _note_done(
        self, waiter: asyncio.Future[TaskHandle], on_cancelled: Callable[[], None], running: _Running
    ) -> None:
        self._orphaned.discard(self._running.pop(running))
        if running.cancelled():
            on_cancelled()
        _resolve_waiter(waiter, running)

    def _leave(self, running: _Running, call: CreateCall, ref: str | None, *, is_orphan: bool) -> None:
        """Let a create whose caller is gone come to its end; its ref finds it."""
        if running.done():
            return
        if is_orphan:
            self._orphaned.add(call)
        if ref is not None:
            self._orphans[ref] = running, call
            running.add_done_callback(lambda _: self._orphans.pop(ref, None))

    async def end_of_orphan(self, ref: str) -> tuple[TaskHandle, bytes] | None:
        """Wait for a create of this ref whose caller was cancelled; return its handle and fingerprint."""
        if (orphan := self._orphans.get(ref)) is None:
            return None
        running, call = orphan
        await asyncio.wait({running})
        outcome = None if running.cancelled() else running.result()
        return (outcome, call.intent.fingerprint) if isinstance(outcome, TaskHandle) else None

    async def drain(self) -> None:
        """Keep back what has not left, and give what has left some time to learn its id."""
        for running, call in list(self._running.items()):
            if call.stop():
                running.cancel()
        try:
            if self._running:
                await asyncio.wait(self._running, timeout=SHUTDOWN_GRACE_S)
        finally:
            for running in list(self._running):
                running.cancel()
            if self._running:
                await asyncio.wait(self._running)


def _resolve_waiter(waiter: asyncio.Future[TaskHandle], running: _Running) -> None:
    """End a caller's wait as the create ended: a shield, with fewer turns of the loop."""
    if waiter.done():
        return
    if running.cancelled():
        waiter.cancel()
        return
    outcome = running.exception() or running.result()
    if isinstance(outcome, TaskHandle):
        waiter.set_result(outcome)
    else:
        waiter.set_exception(outcome)
        waiter.exception()  # a caller cancelled in this very turn is no cause to complain
