"""Estimates from finished and running tasks how likely a task of one model ends at each age. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import attrs
import cattrs

from .recent_ends import RecentEnds

BIN_WIDTH = 0.08
"""Each bin of ages ends 8 % later than the one before: its width in the logarithm of the age."""

FIRST_BIN_S = 0.5
"""Where the first bin ends; the last one ends after six hours."""

BINS = 136

EDGES_S = (0.0, *(FIRST_BIN_S * math.exp(BIN_WIDTH * number) for number in range(BINS)))

MEMORY = 100
"""How many finished tasks are remembered; older ones fade."""

_NEIGHBOUR_DOUBT = 0.2
"""How much of what only the neighbouring bins know is doubted."""

_SMOOTHING_BINS = (1, 2, 4)

_MAX_HAZARD = 5.0

_MAX_COUNT = 1e9

_MOST_FORMER = 64
"""So many ends stand for a journal that did not keep the last ones."""


def place(age_s: float) -> float:
    """Return where an age lies, in bins."""
    if age_s <= FIRST_BIN_S:
        return max(age_s, 0.0) / FIRST_BIN_S
    return min(1 + math.log(age_s / FIRST_BIN_S) / BIN_WIDTH, BINS - 0.001)


def _check_counts(dump: DurationDump, attribute: attrs.Attribute[Any], counts: Sequence[float]) -> None:
    wanted = BINS + (attribute.name == "entries")
    if len(counts) != wanted or not all(abs(count) < _MAX_COUNT for count in counts):
        raise ValueError(f"{attribute.name} must hold {wanted} finite numbers")


def _check_seen(_: object, __: attrs.Attribute[Any], seen: float) -> None:
    if not 0 <= seen < _MAX_COUNT:
        raise ValueError("seen must be a finite number, 0 or more")


def _check_recent(_: object, __: attrs.Attribute[Any], recent: Sequence[float]) -> None:
    if not all(0 <= took_s < _MAX_COUNT for took_s in recent):
        raise ValueError("recent must hold finite numbers, 0 or more")


@attrs.frozen(kw_only=True)
class DurationDump:
    """What a journal keeps of a model's durations. Journals of every age have these keys: none is renamed."""

    bins: tuple[float, float, int] = attrs.field(
        default=(BIN_WIDTH, FIRST_BIN_S, BINS),
        validator=attrs.validators.in_([(BIN_WIDTH, FIRST_BIN_S, BINS)]),
    )
    seen: float = attrs.field(validator=_check_seen)
    ends: list[float] = attrs.field(validator=_check_counts)
    """Completions in each bin."""
    entries: list[float] = attrs.field(validator=_check_counts)
    """How many tasks came under observation in each bin, less those that went out of it."""
    recent: list[float] = attrs.field(factory=list, validator=_check_recent)
    """How long the last ones took that ended; journals did not always keep it."""


class DurationModel:
    """A life table that fades: of the tasks that reached an age, how many ended there.

    Tasks still running count as well, up to the age they were seen at: without them the quick ones,
    which end first, would speak for all. Its size does not depend on how much was seen.
    """

    def __init__(self) -> None:
        self.seen = 0.0
        """How many finished tasks it holds, the faded ones counted in part."""
        self.recent = RecentEnds()
        """The last of them one by one: for when to poll bins are enough, for the time left they are not."""
        self._completions = [0.0] * BINS
        self._entries = [0.0] * (BINS + 1)
        self._weight = 1.0  # of new evidence: growing it fades all that is older at the price of one product

    def note_running(self, from_s: float, to_s: float) -> None:
        """Take in that a task, known to run at the one age, still did at the other."""
        self._enter(place(from_s), self._weight)
        self._enter(place(to_s), -self._weight)

    def note_finished(self, duration_s: float, *, seen_s: float) -> None:
        """Take in a completion; that the task ran until the age *seen_s* was noted before."""
        self.note_running(min(seen_s, duration_s), duration_s)
        self._completions[int(place(duration_s))] += self._weight
        self.seen = self.seen * MEMORY / (MEMORY + 1) + 1
        self._weight *= 1 + 1 / MEMORY
        if self._weight > 1e100:
            self._set_counts(self._completions, self._entries, 1 / self._weight)

    def _enter(self, at: float, weight: float) -> None:
        number = int(at)
        late = at - number
        self._entries[number] += weight * (1 - late)
        self._entries[number + 1] += weight * late

    def hazards(self) -> list[float]:
        """Return the expected number of completions in each bin, of a task that runs through it.

        Counts are smoothed over the neighbours, as widely as predicts each completion best from all others.
        """
        completions = [count / self._weight for count in self._completions]
        at_risk, running = [], 0.0
        for entry in self._entries[:BINS]:
            running += entry / self._weight
            at_risk.append(max(running, 0.0))
        doubt = 1 / (1 + self.seen)
        fits = [_fit(completions, at_risk, kernel, doubt) for kernel in _KERNELS]
        return max(fits, key=lambda fit: fit[0])[1]

    def dump(self) -> dict[str, object]:
        """Return all of it, fit for JSON."""
        dump = DurationDump(
            seen=self.seen,
            ends=[count / self._weight for count in self._completions],
            entries=[count / self._weight for count in self._entries],
            recent=self.recent.dump(),
        )
        dumped: dict[str, object] = cattrs.unstructure(dump)
        return dumped

    @classmethod
    def load(cls, dumped: object) -> DurationModel | None:
        """Return what was dumped; None if it was not by this version, or is damaged."""
        try:
            dump = cattrs.structure(dumped, DurationDump)
        except (cattrs.BaseValidationError, TypeError, ValueError):
            return None
        loaded = cls()
        loaded.seen = dump.seen
        loaded._set_counts(dump.ends, dump.entries, 1.0)
        loaded.recent = RecentEnds.of_former(dump.recent or loaded._typical())
        return loaded

    def _typical(self) -> list[float]:
        """Return durations as likely as each other, by the bins; no more than were seen."""
        cumulative = [0.0, *accumulate(self.hazards())]
        count = min(int(self.seen), _MOST_FORMER)
        wanted = [-math.log1p(-(number + 0.5) / count) for number in range(count)]
        numbers = [min(bisect_left(cumulative, hazard), BINS) for hazard in wanted]
        return [EDGES_S[number] for number in numbers]

    def _set_counts(self, completions: Sequence[float], entries: Sequence[float], share: float) -> None:
        self._completions = [count * share for count in completions]
        self._entries = [count * share for count in entries]
        self._weight = 1.0


def _kernel(bandwidth: int) -> list[float]:
    reach = range(-3 * bandwidth, 3 * bandwidth + 1)
    weights = [math.exp(-0.5 * (step / bandwidth) ** 2) for step in reach]
    return [weight / sum(weights) for weight in weights]


_KERNELS = [_kernel(bandwidth) for bandwidth in _SMOOTHING_BINS]


def _smoothed(counts: Sequence[float], kernel: Sequence[float]) -> list[float]:
    reach = len(kernel) // 2
    padded = [0.0] * (BINS + 2 * reach)
    for number, count in enumerate(counts):
        if count:
            for step, weight in enumerate(kernel, number):
                padded[step] += count * weight
    return padded[reach : reach + BINS]


def _fit(
    completions: Sequence[float], at_risk: Sequence[float], kernel: Sequence[float], doubt: float
) -> tuple[float, list[float]]:
    """Return how well a smoothing predicts each completion from the others (log likelihood), and its hazards.

    Where little was seen, and where only younger tasks were, the assumption gains weight that a task of any
    age is likely to end before it is much older: a hazard of one over the age, weighing *doubt* tasks.
    """
    near_completions, near_risk, own = _smoothed(completions, kernel), _smoothed(at_risk, kernel), max(kernel)
    score, hazards = 0.0, []
    for completed, risk, near, exposure in zip(
        completions, at_risk, near_completions, near_risk, strict=True
    ):
        prior = doubt + _NEIGHBOUR_DOUBT * max(exposure - risk, 0.0)
        hazard = min((near + prior * BIN_WIDTH) / (exposure + prior), _MAX_HAZARD)
        hazards.append(hazard)
        if completed:
            others = max(near - own * min(completed, 1.0), 0.0) + prior * BIN_WIDTH
            score += completed * math.log(min(others / (exposure + prior), _MAX_HAZARD))
        score -= hazard * risk
    return score, hazards
