"""Keeps the account of one of several workers; what all of them spend together, the journal bounds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .._background import BackgroundTasks
from ..config import Budget
from ..errors import JournalError
from ..journal.shared import SharedJournal
from ..limits.budget import BudgetLedger
from ..limits.prices import Charge, PriceBook

_ASK_AGAIN_S = 1.0

_FOR_S = 3600.0
"""So long a worker has the turn at most; if it dies, others have it as soon as that is known."""

_log = logging.getLogger("kie_async")


class SharedLedger(BudgetLedger):
    """Lets one worker at a time show the first price of a model of which nothing is known."""

    def __init__(
        self, budget: Budget, prices: PriceBook, journal: SharedJournal, background: BackgroundTasks
    ) -> None:
        super().__init__(budget, prices)
        journal.bound_spending(budget)
        self._is_of_credits = budget.credits is not None
        self._journal = journal
        self._background = background
        self._showing: set[str] = set()

    async def wait_for_turn(
        self,
        charge: Charge,
        *,
        waits_for_refunds: bool = False,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Wait while another create, of whatever worker, must show its price first; see `BudgetLedger`."""
        await super().wait_for_turn(charge, waits_for_refunds=waits_for_refunds, on_wait=on_wait)
        try:
            await self._wait_for_workers(charge, on_wait)
        except BaseException:
            self.leave(charge)
            raise

    async def _wait_for_workers(self, charge: Charge, on_wait: Callable[[], None] | None) -> None:
        key = f"price:{charge.model}"
        while self._is_of_credits and not self._prices.is_known(charge) and charge.model not in self._showing:
            if await self._journal.take_turn(key, _FOR_S):
                self._showing.add(charge.model)
                self._background.spawn(self._end_turn(key, charge))
                return
            if on_wait is not None:
                on_wait()
            await asyncio.sleep(_ASK_AGAIN_S)
            self._prices.restore(await self._journal.load_prices())

    async def _end_turn(self, key: str, charge: Charge) -> None:
        """Let others go ahead once the price has shown, or nothing is left that could show it."""
        while not self._prices.is_known(charge) and self._may_show(charge):  # noqa: ASYNC110  (seldom)
            await asyncio.sleep(_ASK_AGAIN_S / 4)
        self._showing.discard(charge.model)
        try:
            await self._journal.end_turn(key)
        except JournalError as exc:
            _log.info("others wait for the price of %s for longer: %s", charge.model, exc)

    def _may_show(self, charge: Charge) -> bool:
        is_running = any(commitment.charge.model == charge.model for commitment in self._open.values())
        return charge in self._leaving or is_running
