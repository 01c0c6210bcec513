"""Finds out which task a create of unknown outcome became, and binds it; or writes it off.

What is claimed of a create counts only after recordInfo, read with the API key, shows our own callback URL in
the task's parameters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from enum import Enum
from itertools import chain, repeat
from typing import Any, TypeVar

from .._background import BackgroundTasks
from ..errors import ApiError, InvalidRequest, JournalError, TransportError
from ..events import Counters
from ..handle import TaskHandle
from ..http.query_client import QueryClient
from ..journal.base import Journal
from ..journal.intents import ClaimSource, IntentState
from ..journal.notes import log_failed_note
from ..models import TaskRecord
from ..wire.codes import is_unknown_task
from .pending_creates import PendingClaim, PendingCreate, Phase
from .settings import CallbackPolicy
from .tracker import TaskTracker

_GAP_S = 1.0
"""A flood of deliveries must not become one of queries."""
_CHECK_DELAYS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_CHECK_EVERY_S = 60.0
_LAST_ANSWERS_S = 0.5
"""So long closing waits for answers that are on their way."""
_UNSEEN_S = 390.0
"""So long the service must answer and show no task that fits before a claim counts as disproven."""
_log = logging.getLogger("kie_async")
_T = TypeVar("_T")


class _Finding(Enum):
    PROVEN = "proven"
    DISPROVEN = "disproven"
    UNCLEAR = "unclear"


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
        self._decisions = BackgroundTasks("kie_async decision")
        self._asking: set[asyncio.Future[None]] = set()

    # --- claims --------------------------------------------------------------------------------

    def consider(self, pending: PendingCreate) -> None:
        """Check all claims of a create, unless its answer may still come."""
        if pending.phase is Phase.CREATING:
            return
        for claim in pending.claims.values():
            # Without an address of ours in the task nothing can prove it: then a person has to.
            is_provable = claim.source is not ClaimSource.ANSWER or pending.intent.expects_callback
            if is_provable and not claim.is_pursued:
                claim.is_pursued = True
                self._background.spawn(self._pursue(pending, claim))

    def consider_all(self) -> None:
        """Check what the journal holds of claims."""
        for pending in self._tracker.pending:
            self.consider(pending)

    async def _pursue(self, pending: PendingCreate, claim: PendingClaim) -> None:
        """Ask until a claim is proven or disproven, however long the weather lasts."""
        try:
            for delay_s in chain(_CHECK_DELAYS_S, repeat(_CHECK_EVERY_S)):
                await asyncio.sleep(delay_s)
                if await self._settle_claim(pending, claim):
                    return
        finally:
            claim.is_pursued = False

    def _is_open(self, pending: PendingCreate, claim: PendingClaim) -> bool:
        return pending in self._tracker.pending and pending.find_claim(claim.task_id) is claim

    async def _settle_claim(self, pending: PendingCreate, claim: PendingClaim) -> bool:
        """Ask once; tell whether nothing is left to be asked."""
        finding, record = await self._check_in_turn(pending, claim)
        if not self._is_open(pending, claim):
            return True
        if finding is _Finding.DISPROVEN:
            self._counters.reject("adoption of another task")
            await self._drop(pending, claim)
            return True
        if record is None:
            return False
        try:
            await self.adopt(pending.handle, record, adopted_by="callback")
        except (InvalidRequest, JournalError) as exc:
            _log.error("task %s could not be adopted: %s", claim.task_id, exc)
            return False
        return True

    async def _drop(self, pending: PendingCreate, claim: PendingClaim) -> None:
        pending.drop_claim(claim.task_id)
        with log_failed_note("that a claim was disproven"):
            await self._journal.drop_claim(pending.intent.intent_id, claim.task_id)

    async def _check_in_turn(
        self, pending: PendingCreate, claim: PendingClaim
    ) -> tuple[_Finding, TaskRecord | None]:
        """Check one claim of a create at a time, with a gap in between."""
        now = asyncio.get_running_loop().time
        async with pending.checking:
            await asyncio.sleep(pending.next_check_at - now())
            if pending.is_taken or not self._is_open(pending, claim):
                return _Finding.UNCLEAR, None
            asking = asyncio.get_running_loop().create_future()
            self._asking.add(asking)
            try:
                return await self._check(pending, claim)
            finally:  # from the answer on: what waited for the rate limit was sent later than asked for
                pending.next_check_at = now() + _GAP_S
                self._asking.discard(asking)
                asking.cancel()

    async def _check(self, pending: PendingCreate, claim: PendingClaim) -> tuple[_Finding, TaskRecord | None]:
        """Read the service's own record of the task that a claim names."""
        try:
            record, url = await self._queries.confirm(claim.task_id)
        except ApiError as exc:
            _log.info("task %s could not be read for adoption yet: %s", claim.task_id, exc)
            return self._count_unseen(claim, is_unseen=is_unknown_task(exc)), None
        except TransportError as exc:
            _log.info("task %s could not be read for adoption yet: %s", claim.task_id, exc)
            return _Finding.UNCLEAR, None
        if url is None:  # neither ours nor another's: the record may be a young one
            return self._count_unseen(claim, is_unseen=True), None
        # Fail closed: without our own address in the service's record the task is left alone. A wrong
        # binding would hide a paid task and settle the create with a stranger's result.
        is_ours = self._callbacks.is_address_of(pending.intent.intent_id, url)
        if not is_ours or not _fits(pending.handle, record):
            return _Finding.DISPROVEN, None
        return _Finding.PROVEN, record

    def _count_unseen(self, claim: PendingClaim, *, is_unseen: bool) -> _Finding:
        """Disprove a claim only when the service keeps answering that it knows no such task."""
        if not is_unseen:  # weather: a page about the key, a limit, an outage says nothing of the task
            return _Finding.UNCLEAR
        now = asyncio.get_running_loop().time()
        claim.unseen_since = min(claim.unseen_since, now)
        return _Finding.DISPROVEN if now - claim.unseen_since >= _UNSEEN_S else _Finding.UNCLEAR

    # --- decisions -----------------------------------------------------------------------------

    async def adopt(self, handle: TaskHandle, record: TaskRecord, *, adopted_by: str) -> None:
        """Bind a create to a task whose record was read and fits; settle it if the task has ended.

        Raises:
            InvalidRequest: The task belongs to another create.
            JournalError: The binding could not be noted.
        """
        await self._decide(self._adopt(handle, record, adopted_by))

    async def _adopt(self, handle: TaskHandle, record: TaskRecord, adopted_by: str) -> None:
        self._tracker.registry.check_free(record.task_id, handle.intent_id)
        async with self._taken(handle) as pending:
            if pending is None:
                if handle.task_id == record.task_id:  # somebody was faster, and found the same
                    return
                raise InvalidRequest("the outcome of this create is not unknown any more")
            await self._journal.mark_created(handle.intent_id, record.task_id, adopted_by=adopted_by)
            self._tracker.adopt(pending, record)

    async def resolve(self, handle: TaskHandle, task_id: str) -> None:
        """Bind an unknown create to a task; see `TaskHandle.resolve`."""
        record, url = await self._queries.query_confirmation(task_id)
        if url is not None and self._callbacks.is_address_of_another(handle.intent_id, url):
            raise InvalidRequest(f"task {task_id} came from another create: it shows that one's callback URL")
        if not _fits(handle, record):
            raise InvalidRequest(f"task {task_id} is of model {record.model}, not of {handle.model}")
        await self.adopt(handle, record, adopted_by="hand")

    async def write_off(self, handle: TaskHandle) -> bool:
        """Give up an unknown create; tell whether it was not adopted meanwhile.

        Its callback is still welcome: a task that is paid is worth having.

        Raises:
            JournalError: That could not be noted.
        """
        return await self._decide(self._write_off(handle))

    async def _write_off(self, handle: TaskHandle) -> bool:
        async with self._taken(handle) as pending:
            if pending is None:
                return False
            await self._journal.mark_ended(handle.intent_id, IntentState.WRITTEN_OFF, reason="written off")
            self._tracker.write_off(pending)
        return True

    def write_off_soon(self, handle: TaskHandle) -> None:
        """Give up an unknown create without waiting; see `TaskHandle.write_off`."""
        self._decisions.spawn(self._write_off_logged(handle))

    async def _write_off_logged(self, handle: TaskHandle) -> None:
        with log_failed_note("that a create was written off"):
            await self._write_off(handle)

    async def _decide(self, decision: Coroutine[Any, Any, _T]) -> _T:
        # Note and table change together: who is cancelled in between stops waiting, and not the decision,
        # since a commit that may have happened cannot be undone in memory.
        task = self._decisions.spawn(decision)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def finish_asking(self) -> None:
        """Wait a moment for answers about claims: what is proven now need not wait for the next session."""
        if self._asking:
            await asyncio.wait(set(self._asking), timeout=_LAST_ANSWERS_S)

    async def drain(self) -> None:
        """Wait until every decision that was begun is noted."""
        await self._decisions.drain()

    @asynccontextmanager
    async def _taken(self, handle: TaskHandle) -> AsyncIterator[PendingCreate | None]:
        """Decide alone on a create while the block runs; None if it is decided."""
        pending = self._tracker.pending.get(handle.intent_id)
        if pending is None:
            yield None
            return
        try:
            async with pending.turn:
                yield pending if pending in self._tracker.pending else None
        finally:
            if pending in self._tracker.pending:  # nothing came of it
                self._tracker.expire_if_late(pending)


def _log_failure(decision: asyncio.Task[Any]) -> None:
    """Say what a decision failed in whose asker is gone."""
    if not decision.cancelled() and (error := decision.exception()) is not None:
        _log.error("what became of a create could not be noted: %s", error)


def _fits(handle: TaskHandle, record: TaskRecord) -> bool:
    """Tell whether a record can be of the task the handle asked for."""
    return not handle.model or not record.model or record.model == handle.model
