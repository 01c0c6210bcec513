"""Finds out which task a create of unknown outcome became, and binds it; or writes it off.

What a delivery claims counts only after recordInfo, read with the API key, shows our own callback URL in
the task's parameters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .._background import BackgroundTasks
from ..errors import ApiError, InvalidRequest, JournalError, RateLimited, ServerError, TransportError
from ..events import Counters
from ..handle import TaskHandle
from ..http.query_client import QueryClient
from ..journal.base import IntentState, Journal, log_failed_note
from ..models import TaskRecord
from ..wire.codes import is_invisible
from .pending_creates import PendingCreate, Phase
from .settings import CallbackPolicy
from .tracker import TaskTracker

_GAP_S = 1.0
_CONFIRM_DELAYS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_log = logging.getLogger("kie_async")


class Reconciler:
    """Compares what deliveries and people claim with the service's own record, one create at a time."""

    def __init__(
        self,
        tracker: TaskTracker,
        queries: QueryClient,
        journal: Journal,
        counters: Counters,
        callbacks: CallbackPolicy,
        background: BackgroundTasks,
    ) -> None:
        self._tracker = tracker
        self._queries = queries
        self._journal = journal
        self._counters = counters
        self._callbacks = callbacks
        self._background = background

    def consider(self, pending: PendingCreate) -> None:
        """Look into a delivery, unless the create answer may still come or that is under way."""
        is_waiting = pending.phase is not Phase.CREATING and pending.delivery is not None
        if is_waiting and not pending.is_reconciling:
            pending.is_reconciling = True
            self._background.spawn(self._reconcile(pending))

    def _is_open(self, pending: PendingCreate) -> bool:
        return pending in self._tracker.pending and not pending.is_taken

    async def _reconcile(self, pending: PendingCreate) -> None:
        try:
            while pending.delivery is not None and self._is_open(pending):
                record, pending.delivery = pending.delivery.record, None
                await self._try(pending, record.task_id)
                if self._is_open(pending):
                    await asyncio.sleep(_GAP_S)  # a flood of deliveries must not become one of queries
        finally:
            pending.is_reconciling = False

    async def _try(self, pending: PendingCreate, task_id: str) -> None:
        """Bind a create to the task a delivery named, if the service's own record proves it."""
        found = await self._confirm(task_id)
        if found is None or not self._is_open(pending):
            return
        record, url = found
        # Fail closed: without our own address in the service's record the task is left alone, and the
        # create stays unknown. A wrong binding would hide a paid task and settle it with a stranger's
        # result.
        is_ours = url is not None and self._callbacks.is_address_of(pending.intent.intent_id, url)
        if not is_ours or not _fits(pending.handle, record):
            self._counters.reject("adoption of another task")
            return
        try:
            await self.adopt(pending.handle, record, adopted_by="callback")
        except (InvalidRequest, JournalError) as exc:
            _log.error("task %s could not be adopted: %s", task_id, exc)

    async def _confirm(self, task_id: str) -> tuple[TaskRecord, str | None] | None:
        """Return the service's own record and the callback URL in it; None if it cannot be had."""
        for delay_s in _CONFIRM_DELAYS_S:
            await asyncio.sleep(delay_s)
            try:
                return await self._queries.confirm(task_id)
            except (TransportError, RateLimited, ServerError) as exc:
                _log.info("task %s could not be read for adoption yet: %s", task_id, exc)
            except ApiError as exc:
                # A callback may come before the record can be read.
                if not is_invisible(exc.code, exc.message):
                    _log.warning("task %s cannot be adopted: %s", task_id, exc)
                    return None
        return None

    async def adopt(self, handle: TaskHandle, record: TaskRecord, *, adopted_by: str) -> None:
        """Bind a create to a task whose record was read and fits; settle it if the task has ended.

        Raises:
            InvalidRequest: The task belongs to another handle.
            JournalError: The binding could not be noted.
        """
        if self._tracker.registry.by_task(record.task_id) is not None:
            raise InvalidRequest(f"task {record.task_id} belongs to another handle already")
        async with self._taken(handle) as pending:
            if pending is None:
                raise InvalidRequest("the outcome of this create is not unknown any more")
            await self._journal.mark_created(handle.intent_id, record.task_id, adopted_by=adopted_by)
            self._tracker.adopt(pending, record)

    async def resolve(self, handle: TaskHandle, task_id: str) -> None:
        """Bind an unknown create to a task; see `TaskHandle.resolve`."""
        record = await self._queries.query(task_id)
        if not _fits(handle, record):
            raise InvalidRequest(f"task {task_id} is of model {record.model}, not of {handle.model}")
        await self.adopt(handle, record, adopted_by="hand")

    async def write_off(self, handle: TaskHandle, *, frees_ref: bool = False) -> bool:
        """Give up an unknown create; tell whether it was not adopted meanwhile.

        Raises:
            JournalError: That could not be noted.
        """
        async with self._taken(handle) as pending:
            if pending is None:
                return False
            await self._journal.mark_ended(
                handle.intent_id, IntentState.WRITTEN_OFF, reason="written off", frees_ref=frees_ref
            )
            self._tracker.pending.remove(pending)
            self._tracker.expire_pending(pending)
        return True

    def write_off_soon(self, handle: TaskHandle) -> None:
        """Give up an unknown create without waiting; see `TaskHandle.write_off`."""
        self._background.spawn(self._write_off_logged(handle))

    async def _write_off_logged(self, handle: TaskHandle) -> None:
        with log_failed_note("that a create was written off"):
            await self.write_off(handle)

    @asynccontextmanager
    async def _taken(self, handle: TaskHandle) -> AsyncIterator[PendingCreate | None]:
        """Decide alone on a create while the block runs; None if it is decided, or somebody does just now."""
        pending = self._tracker.pending.get(handle.intent_id)
        if pending is None or pending.is_taken:
            yield None
            return
        pending.is_taken = True
        try:
            yield pending
        finally:
            pending.is_taken = False
            if pending in self._tracker.pending:  # nothing came of it
                self._tracker.expire_if_late(pending)


def _fits(handle: TaskHandle, record: TaskRecord) -> bool:
    """Tell whether a record can be of the task the handle asked for."""
    return not handle.model or not record.model or record.model == handle.model
