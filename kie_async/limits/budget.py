"""Keeps the account of a budget: what was spent, what is held, and what is reserved before a body leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import attrs

from ..config import Budget
from ..errors import BudgetExceeded

_SURPRISE = 4
"""A task may cost so many times what is expected before the budget is overrun by more than one of them."""


@attrs.define
class _Commitment:
    """What one create has cost, or may cost."""

    model: str
    hold: float | None = None
    """What the service holds for it; None until a record says so."""
    is_live: bool = True
    """Its record is still being read: a hold, or the end, is yet to be seen."""


class BudgetLedger:
    """Reserves money in the step that lets a body leave.

    Spent, held and reserved never exceed the budget by more than what one task costs above its expected
    price, which is the most that its model took so far. Of a model that never told a price creates go one at
    a time, and so do those that would use up the rest if they cost a few times more than expected.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spent = 0.0
        self._tasks = 0
        self._open: dict[str, _Commitment] = {}
        self._prices: dict[str, float] = {}
        self._leaving: dict[str, int] = {}
        """By model: creates that may go ahead and have not reserved yet."""
        self._news = asyncio.Event()

    # --- what is known -------------------------------------------------------------------------

    def restore(
        self, *, tasks: int, spent: float, prices: Mapping[str, float], unsettled: Iterable[tuple[str, str]]
    ) -> None:
        """Go on from what former sessions spent; *unsettled* are intents and models nobody polls yet."""
        self._tasks += tasks
        self._spent += spent
        self._prices.update(prices)
        for intent_id, model in unsettled:
            self._open.setdefault(intent_id, _Commitment(model, is_live=False))

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
        return sum(self._cost(commitment) for commitment in self._open.values())

    def _cost(self, commitment: _Commitment) -> float:
        return self._expected(commitment.model) if commitment.hold is None else commitment.hold

    def _expected(self, model: str) -> float:
        return self._prices.get(model, 0.0)

    # --- before a body leaves ------------------------------------------------------------------

    async def wait_for_turn(self, model: str, *, waits_for_refunds: bool = False) -> None:
        """Wait while another create must show its price first; `reserve` or `leave` ends the turn.

        With *waits_for_refunds* also while tasks that run may give back what is needed: failed ones do.
        """
        while self._must_wait(model) or (waits_for_refunds and self._may_be_refunded(model)):
            self._news.clear()
            await self._news.wait()
        self._leaving[model] = self._leaving.get(model, 0) + 1

    def leave(self, model: str) -> None:
        """End a turn."""
        self._leaving[model] -= 1
        self._news.set()

    def _must_wait(self, model: str) -> bool:
        if self._budget.credits is None:
            return False
        untold = [c for c in self._open.values() if c.is_live and c.hold is None]
        leaving = sum(self._leaving.values())
        if model not in self._prices:
            return bool(self._leaving.get(model)) or any(c.model == model for c in untold)
        if not untold and not leaving:
            return False
        rest = self._budget.credits - self._spent - sum(c.hold or 0.0 for c in self._open.values())
        surprising = sum(self._expected(c.model) for c in untold) + self._expected(model)
        surprising += sum(self._expected(name) * count for name, count in self._leaving.items())
        return surprising * _SURPRISE > rest

    def _may_be_refunded(self, model: str) -> bool:
        is_running = any(commitment.is_live for commitment in self._open.values())
        return is_running and self._excess(model) is not None and not self._is_spent(model)

    def _is_spent(self, model: str) -> bool:
        """Tell whether it would be too much even if all that runs came back."""
        fixed = sum(self._cost(c) for c in self._open.values() if not c.is_live)
        budget = self._budget
        if budget.tasks is not None and self._tasks >= budget.tasks:
            return True
        needed = self._spent + fixed + self._expected(model)
        return budget.credits is not None and self._is_over(needed, budget.credits)

    def reserve(self, intent_id: str, model: str) -> None:
        """Reserve what a create is expected to cost; its body leaves in the same step.

        Raises:
            BudgetExceeded: The budget does not allow it; nothing may be sent.
        """
        if intent_id in self._open:
            return
        if (error := self._excess(model)) is not None:
            raise error
        self._tasks += 1
        self._open[intent_id] = _Commitment(model)

    def _excess(self, model: str) -> BudgetExceeded | None:
        budget, held = self._budget, self.held
        if budget.tasks is not None and self._tasks >= budget.tasks:
            return BudgetExceeded(budget.tasks, self._tasks - len(self._open), len(self._open), "tasks")
        if budget.credits is None:
            return None
        needed = self._spent + held + self._expected(model)
        is_used_up = model not in self._prices and self._spent + held >= budget.credits
        if is_used_up or self._is_over(needed, budget.credits):
            return BudgetExceeded(budget.credits, self._spent, held, "credits")
        return None

    @staticmethod
    def _is_over(needed: float, credits: float) -> bool:
        return needed > credits * (1 + 1e-9)  # prices have decimals, and their sum is rounded

    # --- what becomes of it --------------------------------------------------------------------

    def release(self, intent_id: str) -> None:
        """Give back what was reserved: nothing was created."""
        if self._open.pop(intent_id, None) is not None:
            self._tasks -= 1
            self._news.set()

    def note_hold(self, intent_id: str, credits: float | None) -> None:
        """Take in what the service holds for a task. Models billed by the token say 0 until the end."""
        commitment = self._open.get(intent_id)
        if commitment is not None and credits:
            self._learn(commitment.model, credits)
            commitment.hold = credits
            self._news.set()

    def note_left(self, intent_id: str) -> None:
        """Take in that nobody reads the record any more: what it may cost stays reserved."""
        if (commitment := self._open.get(intent_id)) is not None:
            commitment.is_live = False
            self._news.set()

    def note_tracked(self, intent_id: str) -> None:
        """Take in that a task's record is read from now on, perhaps again."""
        if (commitment := self._open.get(intent_id)) is not None:  # else its end is counted already
            commitment.is_live = True

    def reopen(self, intent_id: str, model: str) -> None:
        """Count a create again that was refused and became a task all the same."""
        if intent_id not in self._open:
            self._tasks += 1
            self._open[intent_id] = _Commitment(model)

    def settle(self, intent_id: str, credits: float | None) -> None:
        """Take in what a task has cost at its end: 0 after a failure, None if the record does not say."""
        commitment = self._open.pop(intent_id, None)
        if commitment is None:
            return
        if credits:
            self._learn(commitment.model, credits)
        self._spent += self._cost(commitment) if credits is None else credits
        self._news.set()

    def wants_price(self, intent_id: str) -> bool:
        """Tell whether reading the hold of a task would let others go ahead."""
        commitment = self._open.get(intent_id)
        return self._budget.credits is not None and commitment is not None and commitment.hold is None

    def _learn(self, model: str, credits: float) -> None:
        self._prices[model] = max(self._prices.get(model, 0.0), credits)
