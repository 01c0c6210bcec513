"""Holds a budget against what was spent, what is on its way, and what an unknown create may cost."""

from __future__ import annotations

import attrs

from ..config import Budget
from ..errors import BudgetExceeded


@attrs.frozen(kw_only=True)
class Usage:
    """What a session and its journal have spent, and what may be spent already."""

    tasks: int
    """Created, perhaps created, and on their way."""
    settled: int
    spent: float
    """Credits of the settled tasks."""
    held: float
    """Credits that records of unsettled tasks tell."""
    untold: int
    """Tasks whose price nobody knows yet."""


class BudgetGuard:
    """Refuses the create that would go beyond a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def check(self, usage: Usage) -> None:
        """Let the create that asks be sent.

        Raises:
            BudgetExceeded: The budget is spent.
        """
        budget = self._budget
        if budget.tasks is not None and usage.tasks >= budget.tasks:
            raise BudgetExceeded(f"the budget of {budget.tasks} tasks is spent; nothing was sent")
        # A price nobody knows yet is taken for the mean of the known ones. Before the first end there is
        # none, so the first creates of all pass any budget of credits; a budget of tasks holds at once.
        mean = usage.spent / usage.settled if usage.settled else 0.0
        spent = usage.spent + usage.held + mean * usage.untold
        if budget.credits is not None and spent >= budget.credits:
            raise BudgetExceeded(f"the budget of {budget.credits:g} credits is spent; nothing was sent")
