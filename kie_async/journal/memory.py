"""The journal of a session without a file: kept in memory, lost with the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import attrs

from ..limits.prices import TakenPrices
from ..models import TaskRecord
from .account import Account, AccountNote, notes_to_add
from .base import Journal
from .intents import Claim, Intent, IntentState, Totals
from .notes import MOST_SMALL_NOTES, SmallNote, log_lost_note, wall_ms


class MemoryJournal(Journal):
    """Knows which ref is which task until that has settled; forgets the rest, so that it stays small."""

    def __init__(self) -> None:
        self._by_ref: dict[str, Intent] = {}
        self._refs: dict[str, str] = {}
        self._replaced: dict[str, Intent] = {}
        """By the intent that was sent in its place: who gets the ref back if that one created nothing."""
        self._notes: OrderedDict[str, SmallNote] = OrderedDict()
        self._account: list[AccountNote] = []

    async def open(self) -> list[Intent]:
        """Return nothing: no process was before this one."""
        return []

    async def check_account(self, account: Account) -> None:
        """Refuse every account but the one whose tasks it remembers; see `Journal.check_account`."""
        noted = self._account if self._by_ref else []
        self._account = [*noted, *notes_to_add(noted, account, journal="this journal")]

    async def aclose(self) -> None:
        """Do nothing: there is nothing to let go of."""

    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""
        intent = self._by_ref.get(ref)
        return None if intent is None or intent.frees_its_ref else intent

    async def list_unsettled(self) -> list[Intent]:
        """Return the intents with a ref whose task was not seen to end."""
        return [intent for intent in self._by_ref.values() if intent.state is IntentState.CREATED]

    async def find_by_task(self, task_id: str) -> Intent | None:
        """Return nothing: the session itself knows every task that this journal does."""
        return None

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        """Return an intent with a ref until its task has ended."""
        return self._held_by(intent_id)

    async def list_claims(self) -> list[Claim]:
        """Return nothing: no process was before this one."""
        return []

    async def load_totals(self) -> Totals:
        """Return zeros: what this process spends is counted by its session."""
        return Totals()

    async def load_prices(self) -> Mapping[str, TakenPrices]:
        """Return nothing: no process was before this one."""
        return {}

    async def load_durations(self) -> Mapping[str, object]:
        """Return nothing: no process was before this one."""
        return {}

    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Do nothing: nobody could read it again."""

    async def count_occurrence(self, key: bytes) -> int:
        """Return 1: a batch in memory may be endless, and counting its requests would be as well."""
        return 1

    async def mark_sending(self, intent: Intent) -> None:
        """Remember the intent if it has a ref."""
        # Without a ref nobody could ask for it again, and a long batch would fill the memory.
        if intent.ref is not None:
            former = self._by_ref.get(intent.ref)
            if intent.replaces and former is not None and former.intent_id == intent.replaces:
                self._replaced[intent.intent_id] = former
            self._by_ref[intent.ref] = attrs.evolve(intent, body=None, state=IntentState.SENDING)
            self._refs[intent.intent_id] = intent.ref

    async def mark_unsent(self, intent_id: str) -> None:
        """Take SENDING back: it is proven that no task was created."""
        self._change(intent_id, state=IntentState.PLANNED)
        self._give_ref_back(intent_id)

    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Remember the id of the task an intent became."""
        self._replaced.pop(intent_id, None)
        self._change(intent_id, state=IntentState.CREATED, task_id=task_id)

    async def save_claim(self, claim: Claim) -> None:
        """Do nothing: the session has it in memory as well."""

    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        """Do nothing: the session has it in memory as well."""

    async def mark_held(self, intent_id: str, credits: float) -> None:
        """Remember what the service holds for the task of an intent."""
        self._change(intent_id, held_credits=credits)

    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
    ) -> None:
        """Remember how an intent ended without a task; forget it if its ref may be used again."""
        self._change(intent_id, state=state, reason=reason, code=code)
        held = self._held_by(intent_id)
        if held is not None and held.frees_its_ref:
            self.discard(intent_id)
            self._give_ref_back(intent_id)
        else:
            self._replaced.pop(intent_id, None)  # from now on nothing proves that it created nothing

    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Forget the intent: its handle has the record."""
        self.discard(intent_id)

    def discard(self, intent_id: str) -> None:
        """Forget an intent whose task has ended."""
        held = self._held_by(intent_id)
        self._refs.pop(intent_id, None)
        if held is not None and held.ref is not None:
            del self._by_ref[held.ref]
        for successor in [s for s, former in self._replaced.items() if former.intent_id == intent_id]:
            del self._replaced[successor]

    async def recall(self, key: str) -> object | None:
        """Return what this process remembered under *key*; see `Journal.recall`."""
        note = self._notes.get(key)
        return None if note is None else note.read(wall_ms())

    async def remember(self, key: str, note: object, *, for_s: float) -> None:
        """Keep a small note until the process ends; see `Journal.remember`."""
        with log_lost_note(key):
            kept = SmallNote.of(note, for_s=for_s, now_ms=wall_ms())
            self._notes.pop(key, None)
            self._notes[key] = kept
            if len(self._notes) > MOST_SMALL_NOTES:
                self._notes.popitem(last=False)

    def _held_by(self, intent_id: str) -> Intent | None:
        """Return what is known of an intent, as long as it has its ref."""
        ref = self._refs.get(intent_id)
        held = None if ref is None else self._by_ref.get(ref)
        return held if held is not None and held.intent_id == intent_id else None

    def _give_ref_back(self, intent_id: str) -> None:
        """Let the intent have its ref again that this one was to be sent in the place of."""
        former = self._replaced.pop(intent_id, None)
        if former is not None and former.ref is not None:
            self._refs.pop(intent_id, None)
            self._by_ref[former.ref] = former
            self._refs[former.intent_id] = former.ref

    def _change(self, intent_id: str, **changes: Any) -> None:
        held = self._held_by(intent_id)
        if held is not None and held.ref is not None:  # else another took the ref over
            self._by_ref[held.ref] = attrs.evolve(held, **changes)
        for successor, former in self._replaced.items():
            if former.intent_id == intent_id:  # the ref may come back to it
                self._replaced[successor] = attrs.evolve(former, **changes)
