"""The table of creates that have no task id: on their way, of unknown outcome, refused, or written off."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum

import attrs

from ..callbacks.base import Delivery
from ..errors import CreateOutcomeUnknown
from ..handle import TaskHandle
from ..journal.intents import ClaimSource, Intent
from .registry import REMEMBERED

MAX_CLAIMS = 8
"""Of one create. Whoever knows its address may make some up, and must not fill the memory with them."""


_GIVES_WAY_S = 15.0
"""So long the service must know no such task: a record is seldom visible as late as that."""


class Phase(Enum):
    """How far a create has come without a task id."""

    CREATING = "creating"
    UNKNOWN = "unknown"
    REJECTED = "refused"
    WRITTEN_OFF = "written off"


@attrs.define(eq=False)
class PendingClaim:
    """That a create became a certain task, as somebody says: neither proven nor disproven."""

    task_id: str
    source: ClaimSource
    delivery: Delivery | None = None
    """What a callback said with it; None for one that was read from the journal."""
    is_noted: bool = False
    """Whether a restart would know it."""
    is_pursued: bool = False
    unseen_since: float = math.inf
    """The instant since when the service shows no task that fits, though it answers."""

    @property
    def is_strong(self) -> bool:
        """Tell whether no stranger can have made it up."""
        return self.source is not ClaimSource.UNSIGNED


@attrs.define(eq=False)
class PendingCreate:
    """A create without a task id."""

    intent: Intent
    handle: TaskHandle
    phase: Phase = Phase.CREATING
    claims: dict[str, PendingClaim] = attrs.field(factory=dict)
    """By task id, side by side: a stranger's must not take the place of the genuine one."""
    next_check_at: float = -math.inf
    """Not before then is another claim checked."""
    checking: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """The turn of the claims to be checked: one at a time."""
    noting: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """The turn of the claims to be noted: else many at once would find the last place free."""
    turn: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """Of those who decide what became of it: one at a time."""
    is_awaited: bool = True
    """False for one read from a journal that nobody has asked for yet."""
    error: CreateOutcomeUnknown | None = None
    former: PendingCreate | None = None
    """The one in whose place it is sent."""
    is_replaced: bool = False
    """Another is sent in its place, and has its ref."""

    def copy_error(self) -> CreateOutcomeUnknown | None:
        """Return the error for one who asks; an error raised by many would grow by the traceback of each."""
        if self.error is None:
            return None
        given = self.error
        named = given.candidate_task_id or self._named_by_answer
        if named in given.reason:
            named = given.candidate_task_id
        error = CreateOutcomeUnknown(given.intent_id, given.reason, given.since, given.ref, named)
        error.handle = self.handle
        return error

    @property
    def _named_by_answer(self) -> str:
        """Return the task that the answer to the create named, which the error of a former run does not."""
        named = (claim.task_id for claim in self.claims.values() if claim.source is ClaimSource.ANSWER)
        return next(named, "")

    @property
    def is_taken(self) -> bool:
        """Tell whether somebody is just deciding what became of it."""
        return self.turn.locked()

    def find_claim(self, task_id: str) -> PendingClaim | None:
        """Return what is claimed of a task."""
        return self.claims.get(task_id)

    def has_room_for(self, task_id: str) -> bool:
        """Tell whether a claim of this task can be kept without another one giving way."""
        return task_id in self.claims or len(self.claims) < MAX_CLAIMS

    def find_weakest(self, now: float, *, for_signed: bool) -> PendingClaim | None:
        """Return what may give way to another claim: nobody signed it, and the service knows no such task.

        To a signed one any may that nobody signed.
        """
        weak = [claim for claim in self.claims.values() if not claim.is_strong]
        # Only the latest: whoever makes them up displaces his own, and none that was there before.
        gives_way = weak and (for_signed or now - weak[-1].unseen_since >= _GIVES_WAY_S)
        return weak[-1] if gives_way else None

    def add_claim(self, task_id: str, source: ClaimSource, delivery: Delivery | None = None) -> PendingClaim:
        """Keep a claim; what is said again is said more strongly, or with newer news."""
        claim = self.claims.setdefault(task_id, PendingClaim(task_id, source))
        claim.source = claim.source if claim.is_strong else source
        claim.delivery = delivery or claim.delivery
        return claim

    def drop_claim(self, task_id: str) -> None:
        """Forget a claim that was disproven."""
        self.claims.pop(task_id, None)

    @property
    def candidate_task_id(self) -> str:
        """Return the task it may have become: of the claims the first that no stranger can have made up."""
        ranked = sorted(self.claims.values(), key=lambda claim: not claim.is_strong)
        return ranked[0].task_id if ranked else ""


class PendingCreates:
    """Who has no task id yet. A plain table: it settles no handle and notes nothing."""

    def __init__(self) -> None:
        self._by_intent: dict[str, PendingCreate] = {}
        self._given_up: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, pending: PendingCreate) -> bool:
        return self._by_intent.get(pending.intent.intent_id) is pending

    def __iter__(self) -> Iterator[PendingCreate]:
        return iter(list(self._by_intent.values()))

    def get(self, intent_id: str) -> PendingCreate | None:
        """Return the pending create of an intent."""
        return self._by_intent.get(intent_id)

    def add(self, pending: PendingCreate) -> None:
        """Take in a create; from now on its callbacks are known."""
        self._by_intent[pending.intent.intent_id] = pending
        if pending.phase in {Phase.REJECTED, Phase.WRITTEN_OFF}:
            self._remember(pending)

    def remove(self, pending: PendingCreate) -> None:
        """Take out a create that became a task, or of which nothing was sent."""
        self._by_intent.pop(pending.intent.intent_id, None)
        self._given_up.pop(pending.intent.intent_id, None)

    def give_up(self, pending: PendingCreate, phase: Phase) -> None:
        """Note that it was refused or written off; a callback may still prove that it became a task."""
        pending.phase = phase
        self._remember(pending)

    def _remember(self, pending: PendingCreate) -> None:
        self._given_up[pending.intent.intent_id] = None
        if len(self._given_up) > REMEMBERED:
            self._by_intent.pop(self._given_up.popitem(last=False)[0], None)

    def count(self, phase: Phase) -> int:
        """Return how many have come so far."""
        return sum(pending.phase is phase for pending in self._by_intent.values())

    @property
    def unknown_handles(self) -> list[TaskHandle]:
        """Return the handles of unknown creates that somebody may be waiting for."""
        unknown = [p for p in self._by_intent.values() if p.phase is Phase.UNKNOWN and p.is_awaited]
        return [pending.handle for pending in unknown if not pending.handle.is_done]
