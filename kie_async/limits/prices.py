"""Learns what the tasks of each model cost, and says what to expect of the next one. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

_SURPRISE = 4
"""A task may cost so many times what is expected before the budget is overrun by more than one of them."""


@attrs.frozen
class Charge:
    """What is known of the price of one create before it is sent."""

    model: str
    audio_s: float | None = None
    """The seconds of its audio, which many models charge; None if it has none or they are not known."""
    listed: float | None = None
    """What the price table says."""
    listed_most: float | None = None
    """What the price table says of the longest audio that the model takes."""
    is_per_s: bool = False
    """Whether the price table says that seconds are charged; else that is yet to be seen."""
    reserved: float = 0.0
    """What a former session reserved for it."""


@attrs.define
class TakenPrices:
    """The most that tasks of a model took, so far."""

    credits: float = 0.0
    per_s: float = 0.0
    """Of those whose seconds are known."""
    longest_s: float = 0.0
    unmeasured: float = 0.0
    """Of those whose seconds are not known."""


_NOTHING = TakenPrices()


class PriceBook:
    """What the tasks of each model took, beside what the price table says."""

    def __init__(self) -> None:
        self._taken: dict[str, TakenPrices] = {}

    def restore(self, taken: Mapping[str, TakenPrices]) -> None:
        """Begin with what former sessions have learned."""
        self._taken = {model: attrs.evolve(prices) for model, prices in taken.items()}

    def learn(self, charge: Charge, credits: float) -> None:
        """Take in what a task took."""
        taken = self._taken.setdefault(charge.model, TakenPrices())
        taken.credits = max(taken.credits, credits)
        if charge.audio_s is None:
            taken.unmeasured = max(taken.unmeasured, credits)
        else:
            taken.per_s = max(taken.per_s, credits / max(1.0, charge.audio_s))
            taken.longest_s = max(taken.longest_s, charge.audio_s)

    def expect(self, charge: Charge) -> float:
        """Return what a create is expected to cost; 0 if nothing at all is known.

        Where nobody says whether tasks or their seconds are charged, it is the less of the two: either is
        enough for audio that is no longer than what was seen, and `is_known` says no to the rest.
        """
        taken = self._taken.get(charge.model, _NOTHING)
        learned = taken.credits
        if charge.audio_s is not None and taken.per_s:
            by_length = taken.per_s * math.ceil(charge.audio_s)
            learned = by_length if charge.is_per_s else min(learned, by_length)
        return max(learned, charge.listed or 0.0, charge.reserved)

    def is_known(self, charge: Charge) -> bool:
        """Tell whether tasks of its kind showed what they cost, or the table says it.

        None of its kind are those of shorter audio: whether its length is charged is yet to be seen.
        """
        taken = self._taken.get(charge.model)
        if charge.listed is not None:
            return True
        if taken is None:
            return False
        if charge.audio_s is None or not taken.longest_s:
            return taken.unmeasured > 0
        return charge.audio_s <= taken.longest_s

    def expect_at_most(self, charge: Charge) -> float:
        """Return what a create may cost when it surprises."""
        taken = self._taken.get(charge.model, _NOTHING)
        by_length = taken.per_s * math.ceil(charge.audio_s or 0.0)
        longest = charge.listed_most if charge.audio_s is None else None
        return max(_SURPRISE * self.expect(charge), by_length, longest or 0.0)
