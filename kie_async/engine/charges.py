"""Says what tasks cost before they are created, and learns it from those that ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ..files.uploads import Uploads
from ..handle import TaskHandle
from ..inputs.prices import TABLE_DATE, USD_PER_CREDIT, list_price
from ..inputs.request import TaskRequest
from ..journal.intents import Intent
from ..limits.budget import BudgetLedger
from ..limits.prices import Charge, PriceBook, Quote
from ..models import Price
from ..planning.planner import Learned

_KEY = "prices"
"""Beside what is learned of durations, in the same note of the journal."""


def charge_of(model: str, input: Mapping[str, Any], audio_s: float | None = None) -> Charge:
    """Return what is known of the price of a create before it is sent."""
    listed = list_price(model, input, audio_s)
    return Charge(
        model, audio_s, listed.credits, listed.most, is_per_s=listed.is_per_s, variant=listed.variant
    )


def charge_of_noted(intent: Intent, input: Mapping[str, Any]) -> Charge:
    """Return what is known of the price of a former session's create, whose *input* may be lost."""
    charge = charge_of(intent.model, input, intent.audio_s)
    return attrs.evolve(charge, reserved=intent.expected_credits or 0.0)


class Charges:
    """The prices of a session's tasks, and the ledger of its budget, which goes by them."""

    def __init__(self, uploads: Uploads, prices: PriceBook, ledger: BudgetLedger | None) -> None:
        self._uploads = uploads
        self._book = prices
        self.ledger = ledger
        """None without a budget."""

    def price(self, request: TaskRequest) -> Price | None:
        """Return what a task is expected to cost; see `KieSession.price`."""
        audio_s = self._uploads.measure_audio_now(request.input)
        quote = self._book.quote(charge_of(request.model, request.input, audio_s))
        if quote is None:
            return None
        return Price(
            credits=quote.credits,
            low=quote.low,
            high=quote.high,
            usd=quote.credits * USD_PER_CREDIT,
            basis=_basis(quote, audio_s),
        )

    def learn_end(self, handle: TaskHandle, credits: float | None) -> None:
        """Take in what a task took, of a session without a ledger, which learns it by itself."""
        if self.ledger is None and credits and handle.model:
            given = {} if handle.request is None else handle.request.input
            audio_s = self._uploads.measure_audio_now(given)
            self._book.learn_end(charge_of(handle.model, given, audio_s), credits)

    def add_to(self, learned: Learned) -> Learned:
        """Return what is learned of each model with what its tasks took."""
        return {
            model: {**known, _KEY: self._book.dump_ended(model)} if isinstance(known, Mapping) else known
            for model, known in learned.items()
        }

    def restore(self, learned: Learned) -> None:
        """Begin with what another session had learned."""
        for model, known in learned.items():
            if isinstance(known, Mapping):
                self._book.restore_ended(model, known.get(_KEY))


def _basis(quote: Quote, audio_s: float | None) -> str:
    source = f"table of {TABLE_DATE}"
    if quote.tasks:
        source = "one task here" if quote.tasks == 1 else f"mean of {quote.tasks} tasks here"
    if quote.per_s is None or audio_s is None:
        return source
    return f"{audio_s:.1f} s of audio at {quote.per_s:.3g} credits/s, {source}"
