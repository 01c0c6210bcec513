"""What a session may still spend: counted before each create, what is not settled yet included."""

from __future__ import annotations

from ..config import Budget
from ..engine.pending_creates import Intents
from ..engine.tracker import InFlight
from ..errors import BudgetExceeded
from ..events import Counters


class BudgetGuard:
    """Holds a budget against what was spent, what is on its way, and what an unknown create may cost."""

    def __init__(self, budget: Budget, *, table: InFlight, intents: Intents, counters: Counters) -> None:
        self._budget = budget
        self._table = table
        self._intents = intents
        self._counters = counters

    def check(self) -> None:
        """Let the create that asks be sent; it is counted as on its way already.

        Raises:
            BudgetExceeded: The budget is spent.
        """
        budget, before, counters = self._budget, self._intents.prior_totals, self._counters
        on_the_way = self._intents.creating_count - 1  # without the one that asks
        tasks = before.tasks + counters.creates + counters.unknown_creates + on_the_way
        if budget.tasks is not None and tasks >= budget.tasks:
            raise BudgetExceeded(f"the budget of {budget.tasks} tasks is spent; nothing was sent")
        spent = before.credits + counters.credits_consumed
        settled = before.settled + counters.settled_by_callback + counters.settled_by_poll
        mean = spent / settled if settled else 0.0
        spent += self._table.held_credits(mean) + mean * (on_the_way + self._intents.unknown_count)
        if budget.credits is not None and spent >= budget.credits:
            raise BudgetExceeded(f"the budget of {budget.credits:g} credits is spent; nothing was sent")
