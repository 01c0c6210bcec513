"""Notes in table and journal what became of a create: a task, a refusal, nothing, or nobody knows."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import attrs

from ..errors import ApiError, CreateOutcomeUnknown, JournalError, KieError, RateLimited, TaskNotNoted
from ..journal.base import Journal, TaskAlreadyBound
from ..journal.intents import Claim, ClaimSource, IntentState
from ..journal.notes import log_failed_note
from .pending_creates import PendingCreate
from .reconciler import Reconciler
from .tracker import TaskTracker

_log = logging.getLogger("kie_async")


class CreateNotes:
    """What is noted of a create before anybody is told of it."""

    def __init__(self, tracker: TaskTracker, reconciler: Reconciler, journal: Journal) -> None:
        self._tracker = tracker
        self._reconciler = reconciler
        self._journal = journal

    async def note_created(self, pending: PendingCreate, task_id: str) -> None:
        """Make the id durable before user code sees it.

        Raises:
            CreateOutcomeUnknown: Another intent has this very task: one of the two is lost.
            JournalError: The id could not be committed; it is in the message and in the rescue file.
        """
        known = self._tracker.registry.by_task(task_id)
        is_free = known is None or known.intent_id in {"", pending.intent.intent_id}
        if is_free and await self._commit_id(pending, task_id):
            return
        reason = f"the answer names task {task_id}, which belongs to another create"
        intent = pending.intent
        error = CreateOutcomeUnknown(intent.intent_id, reason, datetime.now(UTC), intent.ref)
        await self.note_failure(pending, error)
        raise error

    async def _commit_id(self, pending: PendingCreate, task_id: str) -> bool:
        """Note the id in the journal; tell whether no other intent has it."""
        try:
            await self._journal.mark_created(pending.intent.intent_id, task_id)
        except TaskAlreadyBound:
            return False
        except JournalError as exc:
            self._tracker.write_off_former(pending)
            self._tracker.mark_unnoted(pending, task_id)
            self._reconciler.consider(pending)
            _log.critical("task %s was created and is paid, but could not be noted: %s", task_id, exc)
            raise TaskNotNoted(task_id, str(exc)) from exc
        return True

    async def note_failure(self, pending: PendingCreate, error: KieError, claimed: str = "") -> None:
        """Note in table and journal what a create ended with, if not with a task."""
        if isinstance(error, CreateOutcomeUnknown):
            state, code, reason = IntentState.UNKNOWN, None, error.reason
        # A limit proves that nothing was created, so its ref is free. Any other refusal keeps its ref: a
        # callback may still show that there is a task.
        elif isinstance(error, ApiError) and not isinstance(error, RateLimited):
            state, code, reason = IntentState.REJECTED, error.code, error.message
        else:
            await self.note_nothing_created(pending)
            return
        try:
            if claimed:
                await self._note_claim(pending, claimed)
            with log_failed_note(f"the end of a create ({state})"):
                await self._journal.mark_ended(pending.intent.intent_id, state, reason=reason, code=code)
        finally:  # also when this is cancelled: the slot must not stay behind
            if not attrs.evolve(pending.intent, state=state, code=code).frees_its_ref:
                self._tracker.write_off_former(pending)
            if isinstance(error, CreateOutcomeUnknown):
                self._tracker.mark_unknown(pending, error)
            else:
                self._tracker.mark_rejected(pending)
            self._reconciler.consider(pending)

    async def _note_claim(self, pending: PendingCreate, task_id: str) -> None:
        intent_id, source = pending.intent.intent_id, ClaimSource.ANSWER
        claim = pending.add_claim(task_id, source)
        with log_failed_note(f"that an answer named task {task_id}"):
            await self._journal.save_claim(Claim(intent_id=intent_id, task_id=task_id, source=source))
            claim.is_noted = True

    async def note_nothing_created(self, pending: PendingCreate) -> None:
        """Note that nothing was created, and forget the create."""
        try:
            with log_failed_note("that nothing was created"):
                await self._journal.mark_ended(pending.intent.intent_id, IntentState.NOT_CREATED)
        finally:
            self._tracker.cancel(pending)
