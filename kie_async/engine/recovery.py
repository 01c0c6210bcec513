"""Reads what the journal left: replays it at open, and makes handles again for what it knows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

from ..errors import CreateOutcomeUnknown, InvalidRequest, KieError, TaskFailed
from ..handle import TaskHandle
from ..inputs.request import TaskRequest
from ..journal.account import Account
from ..journal.base import Journal
from ..journal.intents import Claim, Intent, IntentState
from ..journal.notes import decode_note
from ..journal.shared import SharedJournal
from ..limits.budget import BudgetLedger
from ..limits.prices import Charge
from ..models import SettledTask, TaskRecord, TaskResult, TaskState
from ..wire.codes import error_for
from .charges import charge_of_noted
from .pending_creates import PendingCreate, Phase
from .tracker import TaskTracker, outcome_of

_log = logging.getLogger("kie_async")

_MAX_NAMED = 10

_ADOPTABLE = {IntentState.UNKNOWN, IntentState.REJECTED, IntentState.WRITTEN_OFF}
"""A callback may still show that they became a task."""


class Recovery:
    """Turns noted intents into handles and into creates that can still be adopted."""

    def __init__(self, tracker: TaskTracker, journal: Journal, ledger: BudgetLedger | None) -> None:
        self._tracker = tracker
        self._journal = journal
        self._ledger = ledger
        self._answers: dict[str, list[asyncio.Future[None]]] = {}
        """Who waits, by intent, for another worker's create to be answered."""

    async def replay(self, account: Account) -> None:
        """Read the journal: unknown, refused and written-off creates can be adopted from now on.

        Raises:
            JournalError: It cannot be opened or trusted, or belongs to another account.
        """
        left = await self._journal.open()
        await self._journal.check_account(account)
        for intent in left:
            self._tracker.pending.add(self._pending_of(intent))
        self.take_claims(await self._journal.list_claims())
        unknown = [intent.intent_id for intent in left if intent.state is IntentState.UNKNOWN]
        if unknown:
            names = shorten_list(unknown, self._journal.path)
            decide = f"; {_decide_hint(self._journal.path)}" if self._journal.path is not None else ""
            _log.warning("%d creates in the journal are perhaps paid: %s%s", len(unknown), names, decide)
        if self._ledger is not None:
            await self._restore_account(self._ledger, left)

    async def _restore_account(self, ledger: BudgetLedger, left: list[Intent]) -> None:
        """Count what former sessions spent, and what their unsettled creates may cost."""
        if isinstance(self._journal, SharedJournal):  # which counts what all workers spend, at each create
            ledger.restore(tasks=0, spent=0.0, prices=await self._journal.load_prices(), unsettled=[])
            return
        totals = await self._journal.load_totals()
        may_cost = [intent for intent in left if intent.state is not IntentState.REJECTED]
        unsettled = [*await self._journal.list_unsettled(), *may_cost]
        ledger.restore(
            tasks=totals.tasks,
            spent=totals.credits,
            prices=await self._journal.load_prices(),
            unsettled=[(intent.intent_id, _charge_of(intent), intent.held_credits) for intent in unsettled],
        )

    def _pending_of(self, intent: Intent) -> PendingCreate:
        is_unknown = intent.state is IntentState.UNKNOWN
        handle = self._tracker.new_handle(intent, _request_of(intent) if is_unknown else None)
        if intent.state is IntentState.REJECTED:
            return PendingCreate(intent, handle, Phase.REJECTED, is_awaited=False)
        if intent.state is IntentState.WRITTEN_OFF:
            return PendingCreate(intent, handle, Phase.WRITTEN_OFF, is_awaited=False)
        handle.mark_unknown()
        return PendingCreate(intent, handle, Phase.UNKNOWN, is_awaited=False, error=_unknown_error(intent))

    async def resume(self, deadline: float) -> list[TaskHandle]:
        """Return handles for every unsettled task of the journal, and for creates of unknown outcome."""
        handles = [self.revive(intent, deadline) for intent in await self._journal.list_unsettled()]
        return [*handles, *self.list_unknown(deadline)]

    def list_unknown(self, deadline: float) -> list[TaskHandle]:
        """Return the handles of all creates of unknown outcome."""
        unknown = [p for p in self._tracker.pending if p.phase is Phase.UNKNOWN and not p.handle.is_done]
        for pending in unknown:
            self._await(pending, deadline)
        return [pending.handle for pending in unknown]

    async def find_unknown(self, name: str, deadline: float) -> TaskHandle | None:
        """Return the handle of the create of unknown outcome with this ref or intent id.

        Raises:
            JournalError: The journal cannot be read.
        """
        intent = await self._journal.find_by_ref(name) or await self._journal.find_by_intent(name)
        is_new = intent is not None and self._tracker.pending.get(intent.intent_id) is None
        if intent is not None and is_new and intent.state is IntentState.UNKNOWN and self.expect(intent):
            self.take_claims(await self._journal.list_claims())
        return next((h for h in self.list_unknown(deadline) if name in {h.ref, h.intent_id}), None)

    async def iterate_settled(self, since: datetime | None, ref_prefix: str) -> AsyncIterator[SettledTask]:
        """Yield what the journal knows of tasks that ended, the oldest end first.

        Raises:
            JournalError: It cannot be read.
        """
        since_ms = 0 if since is None else max(0, ceil(since.timestamp() * 1000))
        async for intent in self._journal.iterate_settled(since_ms=since_ms, ref_prefix=ref_prefix):
            yield _settled_task(intent)

    def revive(self, intent: Intent, deadline: float) -> TaskHandle:
        """Return the handle of an intent found in the journal.

        Raises:
            CreateOutcomeUnknown: Nobody knows what became of it; its handle is on the error.
            ApiError: The service refused it in words that leave doubt, so it is not sent again.
        """
        pending = self._tracker.pending.get(intent.intent_id)
        if pending is not None and (error := pending.copy_error()) is not None:
            self._await(pending, deadline)
            raise error
        if intent.state is IntentState.REJECTED:
            raise error_for(intent.code or 500, intent.reason)
        if not intent.task_id and self.expect(intent):
            return self.revive(intent, deadline)
        if not intent.task_id:
            raise _unknown_error(intent)
        if (known := self._tracker.registry.by_task(intent.task_id)) is not None:
            self._tracker.binder.join(known, intent)
            return known
        if (record := intent.read_end()) is not None:
            return self._settled_handle(intent, record)
        return self._bound_handle(intent, deadline)

    # --- of several workers --------------------------------------------------------------------

    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return what the journal knows of a ref, once another worker's create of it was answered.

        Raises:
            JournalError: It cannot be read.
        """
        while (intent := await self._journal.find_by_ref(ref)) is not None:
            if not (intent.is_of_another and intent.state is IntentState.SENDING):
                break
            await self._wait_for_answer(intent.intent_id)
        return intent

    async def _wait_for_answer(self, intent_id: str) -> None:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._answers.setdefault(intent_id, [])
        waiters.append(answered)
        try:
            await answered
        finally:
            waiters.remove(answered)
            if not waiters and self._answers.get(intent_id) is waiters:
                del self._answers[intent_id]

    def list_waited_for(self) -> list[str]:
        """Return the intents of which news would change something here."""
        open_creates = [
            pending.intent.intent_id for pending in self._tracker.pending if _is_undecided(pending)
        ]
        return [*self._tracker.binder.followed, *self._answers, *open_creates]

    def is_waited_for(self, intent_id: str) -> bool:
        """Tell whether news of an intent would change something here."""
        if intent_id in self._tracker.binder.followed or intent_id in self._answers:
            return True
        pending = self._tracker.pending.get(intent_id)
        return pending is not None and _is_undecided(pending)

    def take_news(self, intent: Intent) -> None:
        """Take in what another worker, or a person, noted of an intent."""
        if intent.state is not IntentState.SENDING:
            for answered in self._answers.get(intent.intent_id, ()):
                if not answered.done():
                    answered.set_result(None)
        if (pending := self._tracker.pending.get(intent.intent_id)) is not None and _is_undecided(pending):
            self._take_decision(pending, intent)
        if (handle := self._tracker.binder.followed.get(intent.intent_id)) is None or not intent.has_ended:
            return
        if (record := intent.read_end()) is None:
            self._tracker.binder.take_over(handle, intent)  # what cannot be read is asked for again
            return
        handle.observe(record)
        self._tracker.settle(handle, _outcome_of(intent, record))

    def _take_decision(self, pending: PendingCreate, intent: Intent) -> None:
        if pending.is_taken:
            return
        if intent.task_id:
            self._tracker.adopt_noted(pending, intent)
        elif intent.state is IntentState.WRITTEN_OFF and pending.phase is Phase.UNKNOWN:
            self._tracker.write_off(pending)
        elif intent.frees_its_ref and pending.phase is Phase.UNKNOWN:
            self._tracker.note_nothing_created(pending)
        if intent.has_ended:
            self.take_news(intent)

    def expect(self, intent: Intent) -> bool:
        """Take in a create without a task that was another worker's; tell whether it can be adopted here.

        Whose it was does not matter: whoever finds its task notes that once, and follows it.
        """
        if not isinstance(self._journal, SharedJournal) or intent.state not in _ADOPTABLE:
            return False
        self._tracker.pending.add(self._pending_of(intent))
        return True

    def take_over(self, intent: Intent, deadline: float) -> TaskHandle:
        """Return the handle of what is this worker's from now on, and was a dead one's."""
        if intent.task_id:
            followed = self._tracker.binder.followed.get(intent.intent_id)
            if followed is not None:
                self._tracker.binder.take_over(followed, intent)
                return followed
            known = self._tracker.registry.by_task(intent.task_id)
            handle = known or self._bound_handle(intent, deadline)
            handle.mark_retrieved()
            return handle
        pending = self._tracker.pending.get(intent.intent_id)
        if pending is None:
            pending = self._pending_of(intent)
            self._tracker.pending.add(pending)
        self.take_news(intent)
        return pending.handle

    def take_claims(self, claims: Iterable[Claim]) -> None:
        """Take in what is claimed of creates without a task."""
        for claim in claims:
            if (pending := self._tracker.pending.get(claim.intent_id)) is not None:
                pending.add_claim(claim.task_id, claim.source).is_noted = True

    # --- handles -------------------------------------------------------------------------------

    def _settled_handle(self, intent: Intent, record: TaskRecord) -> TaskHandle:
        handle = self._tracker.new_handle(intent)
        handle.bind(intent.task_id)
        handle.mark_retrieved()
        handle.observe(record)
        handle.settle(_outcome_of(intent, record))
        return handle

    def _bound_handle(self, intent: Intent, deadline: float) -> TaskHandle:
        handle = self._tracker.new_handle(intent)
        handle.move_deadline(deadline)
        if intent.is_of_another:
            return self._tracker.binder.follow(handle, intent)
        expects, fingerprint = intent.expects_callback, intent.fingerprint
        self._tracker.binder.bind(handle, intent.task_id, fingerprint, expects_callback=expects, at_once=True)
        self._tracker.binder.join(handle, intent)
        return handle

    def _await(self, pending: PendingCreate, deadline: float) -> None:
        if not pending.is_awaited:
            pending.is_awaited = True
            pending.handle.move_deadline(deadline)
            self._tracker.await_deadline(pending.handle)


def _is_undecided(pending: PendingCreate) -> bool:
    return pending.phase is not Phase.CREATING


def _outcome_of(intent: Intent, record: TaskRecord) -> TaskResult | KieError:
    if isinstance(outcome := outcome_of(record), TaskFailed):
        return TaskFailed(intent.task_id, record, intent.intent_id, intent.ref)
    return outcome


def _settled_task(intent: Intent) -> SettledTask:
    # An end that cannot be read any more is still an end: its record has no result to hand out.
    state = TaskState.SUCCESS if intent.state is IntentState.SUCCEEDED else TaskState.FAIL
    nothing = TaskRecord(task_id=intent.task_id, model=intent.model, state=state, credits=intent.credits)
    outcome = outcome_of(intent.read_end() or nothing)
    return SettledTask(
        ref=intent.ref,
        task_id=intent.task_id,
        model=intent.model,
        ended_at=datetime.fromtimestamp((intent.terminal_ms or 0) / 1000, tz=UTC),
        result=outcome if isinstance(outcome, TaskResult) else None,
        error=None if isinstance(outcome, TaskResult) else outcome,
    )


def shorten_list(names: Sequence[str], journal: Path | None) -> str:
    """Return the first of *names*, how many more there are, and the command that shows them all."""
    shown = ", ".join(names[:_MAX_NAMED])
    if len(names) <= _MAX_NAMED:
        return shown
    where = f"; kie-async journal show {journal}" if journal is not None else ""
    return f"{shown} ... and {len(names) - _MAX_NAMED} more{where}"


def _decide_hint(journal: Path) -> str:
    """Return the command that says what became of a create, for a message that names intents."""
    return f"decide one by: kie-async journal resolve {journal} INTENT TASK_ID (or write-off, or resubmit)"


def _request_of(intent: Intent) -> TaskRequest | None:
    """Return the request of an intent, from a journal that was asked to keep bodies."""
    body = decode_note(intent.body or "")
    if body is None or not isinstance(given := body.get("input"), dict):
        return None
    url = body.get("callBackUrl")
    # An address of ours is left out: the next create gets one of its own.
    is_own = isinstance(url, str) and intent.intent_id not in url
    try:
        return TaskRequest(
            model=intent.model, input=given, ref=intent.ref, callback_url=str(url) if is_own else None
        )
    except InvalidRequest:  # an older version took what this one refuses
        return None


def _charge_of(intent: Intent) -> Charge:
    request = _request_of(intent)
    return charge_of_noted(intent, {} if request is None else request.input)


def _unknown_error(intent: Intent) -> CreateOutcomeUnknown:
    # The clock may have been set back since: a create of a former run is never younger than this one.
    since = min(datetime.fromtimestamp(intent.planned_ms / 1000, tz=UTC), datetime.now(UTC))
    return CreateOutcomeUnknown(intent.intent_id, intent.reason, since, intent.ref)
