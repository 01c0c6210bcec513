"""Keeps the account of a budget: what was spent, what is held, and what is reserved before a body leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from ..config import Budget
from ..errors import BudgetExceeded
from .prices import Charge, PriceBook, TakenPrices


@attrs.define
class _Commitment:
    """What one create has cost, or may cost."""

    charge: Charge
    hold: float | None = None
    """What the service holds for it; None until a record says so."""
    is_live: bool = True
    """Its record is still being read: a hold, or the end, is yet to be seen."""


@attrs.frozen
class _Sums:
    """What follows from all that is under way, until some of it changes."""

    held: float
    left: float
    """Of what is held, that of tasks whose records nobody reads."""
    unpriced: float
    """Of what is held, that of tasks whose price is yet to be seen."""
    charges: Sequence[Charge]
    """Of those, and of creates that may go ahead."""
    at_most: float
    """What these may cost when they surprise."""
    models: frozenset[str]
    strange: Sequence[Charge]
    """Those among them of which nothing is known beforehand."""
    prices: int
    """The changes of the prices that it was reckoned from."""


class BudgetLedger:
    """Reserves money in the step that lets a body leave.

    Spent, held and reserved never exceed the budget by more than what one task costs above its expected
    price: the most of what its model took so far, per second of audio where that is known, and what the price
    table says. Where nothing is known creates of a model go one at a time, and so do those that would use up
    the rest if they cost a few times more than expected.
    """

    def __init__(self, budget: Budget, prices: PriceBook | None = None) -> None:
        self._budget = budget
        self._spent = 0.0
        self._tasks = 0
        self._open: dict[str, _Commitment] = {}
        self._prices = PriceBook() if prices is None else prices
        self._leaving: list[Charge] = []
        """Of creates that may go ahead and whose outcome is not known yet."""
        self._sums: _Sums | None = None
        self._news = asyncio.Event()

    # --- what is known -------------------------------------------------------------------------

    def restore(
        self,
        *,
        tasks: int,
        spent: float,
        prices: Mapping[str, TakenPrices],
        unsettled: Iterable[tuple[str, Charge, float | None]],
    ) -> None:
        """Go on from what former sessions spent.

        *unsettled* are intents that nobody polls yet, each with what is held for it, as far as that is known.
        """
        self._tasks += tasks
        self._spent += spent
        self._prices.restore(prices)
        for intent_id, charge, hold in unsettled:
            self._open.setdefault(intent_id, _Commitment(charge, is_live=False))
            self.note_hold(intent_id, hold)
        self._sums = None

    @property
    def tasks(self) -> int:
        """Return how many tasks were created, may have been, or are reserved."""
        return self._tasks

    @property
    def spent(self) -> float:
        """Return the credits that settled tasks took."""
        return self._spent

    @property
    def held(self) -> float:
        """Return what unsettled creates cost, or are expected to."""
        return self._reckon().held

    def _reckon(self) -> _Sums:
        # Every create asks, and thousands may be under way: added up once for each change.
        if self._sums is None or self._sums.prices != self._prices.changes:
            self._sums = self._add_up()
        return self._sums

    def _add_up(self) -> _Sums:
        unpriced = [c for c in self._open.values() if c.is_live and c.hold is None]
        charges = [*(c.charge for c in unpriced), *self._leaving]
        return _Sums(
            held=sum(map(self._cost, self._open.values())),
            left=sum(self._cost(c) for c in self._open.values() if not c.is_live),
            unpriced=sum(map(self._cost, unpriced)),
            charges=charges,
            at_most=sum(map(self._prices.expect_at_most, charges)),
            models=frozenset(charge.model for charge in charges),
            strange=[charge for charge in charges if not self._prices.is_known(charge)],
            prices=self._prices.changes,
        )

    def _note_change(self) -> None:
        self._sums = None
        self._news.set()

    def _cost(self, commitment: _Commitment) -> float:
        return self._prices.expect(commitment.charge) if commitment.hold is None else commitment.hold

    # --- before a body leaves ------------------------------------------------------------------

    async def wait_for_turn(
        self,
        charge: Charge,
        *,
        waits_for_refunds: bool = False,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Wait while another create must show its price first; `reserve` or `leave` ends the turn.

        With *waits_for_refunds* also while tasks that run may give back what is needed: failed ones do.
        *on_wait* is called when it has to wait.
        """
        while self._must_wait(charge) or (waits_for_refunds and self._may_be_refunded(charge)):
            if on_wait is not None:
                on_wait()
            self._news.clear()
            await self._news.wait()
        self._leaving.append(charge)
        self._sums = None

    def leave(self, charge: Charge) -> None:
        """End a turn."""
        self._leaving.remove(charge)
        self._note_change()

    def _must_wait(self, charge: Charge) -> bool:
        if self._budget.credits is None:
            return False
        sums = self._reckon()
        if not sums.charges:
            return False
        # Each strange one may be a surprise: two, also of a former session, are one too many for any more.
        if len(sums.strange) > 1:
            return True
        if self._prices.is_known(charge):
            is_alike = any(strange.model == charge.model for strange in sums.strange)
        else:
            is_alike = charge.model in sums.models
        rest = self._budget.credits - self._spent - sums.held + sums.unpriced
        return is_alike or sums.at_most + self._prices.expect_at_most(charge) > rest

    def _may_be_refunded(self, charge: Charge) -> bool:
        is_running = any(commitment.is_live for commitment in self._open.values())
        return is_running and self._excess(charge) is not None and not self._is_spent(charge)

    def _is_spent(self, charge: Charge) -> bool:
        """Tell whether it would be too much even if all that runs came back."""
        budget = self._budget
        if budget.tasks is not None and self._tasks >= budget.tasks:
            return True
        needed = self._spent + self._reckon().left + self._prices.expect(charge)
        return budget.credits is not None and is_over(needed, budget.credits)

    def reserve(self, intent_id: str, charge: Charge) -> float:
        """Reserve what a create is expected to cost, and return that; its body leaves in the same step.

        Raises:
            BudgetExceeded: The budget does not allow it; nothing may be sent.
        """
        if intent_id not in self._open:
            if (error := self._excess(charge)) is not None:
                raise error
            self._tasks += 1
            self._open[intent_id] = _Commitment(charge)
            self._sums = None
        return self._cost(self._open[intent_id])

    def _excess(self, charge: Charge) -> BudgetExceeded | None:
        budget, held = self._budget, self.held
        if budget.tasks is not None and self._tasks >= budget.tasks:
            return BudgetExceeded(budget.tasks, self._tasks - len(self._open), len(self._open), "tasks")
        if budget.credits is None:
            return None
        needed = self._spent + held + self._prices.expect(charge)
        is_used_up = not self._prices.is_known(charge) and self._spent + held >= budget.credits
        if is_used_up or is_over(needed, budget.credits):
            return BudgetExceeded(budget.credits, self._spent, held, "credits")
        return None

    # --- what becomes of it --------------------------------------------------------------------

    def release(self, intent_id: str) -> None:
        """Give back what was reserved: nothing was created."""
        if self._open.pop(intent_id, None) is not None:
            self._tasks -= 1
            self._note_change()

    def note_hold(self, intent_id: str, credits: float | None) -> bool:
        """Take in what the service holds for a task; return whether that is news.

        Models billed by the token say 0 until the end.
        """
        commitment = self._open.get(intent_id)
        if commitment is None or not credits or credits == commitment.hold:
            return False
        self._prices.learn(commitment.charge, credits)
        commitment.hold = credits
        self._note_change()
        return True

    def note_left(self, intent_id: str) -> None:
        """Take in that nobody reads the record any more: what it may cost stays reserved."""
        if (commitment := self._open.get(intent_id)) is not None:
            commitment.is_live = False
            self._note_change()

    def note_tracked(self, intent_id: str) -> None:
        """Take in that a task's record is read from now on, perhaps again."""
        if (commitment := self._open.get(intent_id)) is not None:  # else its end is counted already
            commitment.is_live = True
            self._sums = None

    def reopen(self, intent_id: str, model: str) -> None:
        """Count a create again that was refused and became a task all the same."""
        if intent_id not in self._open:
            self._tasks += 1
            self._open[intent_id] = _Commitment(Charge(model))
            self._sums = None

    def settle(self, intent_id: str, credits: float | None) -> None:
        """Take in what a task has cost at its end: 0 after a failure, None if the record does not say."""
        commitment = self._open.pop(intent_id, None)
        if commitment is None:
            return
        if credits:
            self._prices.learn_end(commitment.charge, credits)
        self._spent += self._cost(commitment) if credits is None else credits
        self._note_change()

    def wants_price(self, intent_id: str) -> bool:
        """Tell whether reading the hold of a task would let others go ahead."""
        commitment = self._open.get(intent_id)
        return self._budget.credits is not None and commitment is not None and commitment.hold is None


def is_over(needed: float, credits: float) -> bool:
    """Tell whether it is more than there is."""
    return needed > credits * (1 + 1e-9)  # prices have decimals, and their sum is rounded
