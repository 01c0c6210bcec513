"""Learns what the tasks of each model cost, and says what to expect of the next one. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean

import attrs

_MEMORY = 32
"""Prices change: so many tasks of a kind are remembered one by one."""

_MIN_TASKS = 3
"""Once so many tasks of a kind ended, the price table says nothing more of it."""

_MOST_CREDITS = 1e9

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
    variant: str = ""
    """What in its input the price depends on, as far as the price table says so."""

    @property
    def charged_s(self) -> int:
        """Return the seconds of its audio that are charged: each that has begun; 0 if they are not known."""
        return math.ceil(self.audio_s or 0.0)


@attrs.frozen(kw_only=True)
class Quote:
    """What a task is expected to cost, and what that was reckoned from."""

    credits: float
    low: float
    high: float
    """What a budget reserves."""
    per_s: float | None = None
    """The price of a second, where seconds were reckoned with."""
    tasks: int = 0
    """How many ended tasks it is the mean of; 0 if the price table says it."""


@attrs.define
class _Ended:
    """What the last tasks of one kind took, and what those took for a second whose seconds are known."""

    credits: deque[float] = attrs.field(factory=lambda: deque(maxlen=_MEMORY))
    per_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=_MEMORY))

    def comparable(self, charge: Charge) -> tuple[Sequence[float], int | None]:
        """Return what like ones took: tasks, or seconds, of which the charge has so many."""
        # Where nobody says which of the two is charged, it is the one whose price varies less.
        counts_s = charge.is_per_s or _ratio(self.per_s) < _ratio(self.credits)
        if not charge.charged_s or not counts_s:
            return self.credits, None
        return self.per_s, charge.charged_s


def _ratio(values: Sequence[float]) -> float:
    return max(values) / min(values) if values else math.inf


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
        self._ended: dict[tuple[str, str], _Ended] = {}
        self.changes = 0
        """How often something was learned: what was reckoned from prices before is out of date."""

    def restore(self, taken: Mapping[str, TakenPrices]) -> None:
        """Begin with what former sessions have learned."""
        self._taken = {model: attrs.evolve(prices) for model, prices in taken.items()}
        self.changes += 1

    def learn(self, charge: Charge, credits: float) -> None:
        """Take in what a task took."""
        self.changes += 1
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
        took, seconds = self._ended_like(charge).comparable(charge)
        noted = max(took) * (seconds or 1) if len(took) >= _MIN_TASKS else charge.listed or 0.0
        return max(learned, noted, charge.reserved)

    def _ended_like(self, charge: Charge) -> _Ended:
        return self._ended.get((charge.model, charge.variant)) or _Ended()

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

    # --- tasks that ended ----------------------------------------------------------------------

    def learn_end(self, charge: Charge, credits: float) -> None:
        """Take in what a task took in the end; one that was given back teaches nothing."""
        if credits <= 0:
            return
        ended = self._ended.setdefault((charge.model, charge.variant), _Ended())
        ended.credits.append(credits)
        if charge.audio_s is not None:
            ended.per_s.append(credits / max(1, charge.charged_s))
        self.learn(charge, credits)

    def quote(self, charge: Charge) -> Quote | None:
        """Return what a task is expected to cost, None if nobody knows.

        What like ones took in the end wins over the price table.
        """
        took, seconds = self._ended_like(charge).comparable(charge)
        if took:
            each, factor = fmean(took), seconds or 1
            high = max(self.expect(charge), max(took) * factor)
            per_s = None if seconds is None else each
            low = min(took) * factor
            return Quote(credits=each * factor, low=low, high=high, per_s=per_s, tasks=len(took))
        if charge.listed is None:
            return None
        per_s = charge.listed / charge.charged_s if charge.is_per_s and charge.charged_s else None
        high = max(self.expect(charge), charge.listed)
        return Quote(credits=charge.listed, low=charge.listed, high=high, per_s=per_s)

    def dump_ended(self, model: str) -> dict[str, list[list[float]]]:
        """Return what the last tasks of a model took, fit for JSON."""
        return {
            variant: [list(ended.credits), list(ended.per_s)]
            for (name, variant), ended in self._ended.items()
            if name == model
        }

    def restore_ended(self, model: str, dumped: object) -> None:
        """Begin with what another session had seen; what cannot be read is left out."""
        for variant, lists in dumped.items() if isinstance(dumped, Mapping) else ():
            if isinstance(lists, list) and len(lists) == 2 and all(map(_are_prices, lists)):
                ended = self._ended[model, str(variant)] = _Ended()
                ended.credits.extend(lists[0])
                ended.per_s.extend(lists[1])
                self.changes += 1


def _are_prices(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and 0 < value < _MOST_CREDITS for value in values
    )
