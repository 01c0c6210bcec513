"""Judges the time that `handle.estimate` says is left, beside one who knows the distribution; no waiting.

A session knows 30 ends and goes on through a thousand tasks, in a hundred slots and within the create limit:
with queues of 0 to 500; while tasks come to take twice or half as long from the first to the last, each by
its number; and when they take three times as long or a third from one to the next: that is judged once 30 of
the new ones have ended. A cold start is judged from the tenth end to the thirtieth. In "30 ends and no more"
nothing else is learned, and in "600 at once" neither, and all are asked of when they have just come: there
one who knows all but the scale, and has those 30 ends, shows what can be reached.

*Covered* is the share of the tasks that run or wait which end within the interval of 80 %. The error is that
of the median, beside the oracle's, at the worst tenth of the way. Both come with their noise: one standard
error, by how much worlds differ. Worlds are added, eight at a time, until the noise of the error is below
0.01 and that of what is covered below 0.005, or what it is of is three times as far from its bar; 300 at
most, unless more are asked for. *All kinds* is the mean of their errors at the worst tenth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from operator import attrgetter
from statistics import fmean

import attrs

from .estimated import TASKS, TENTHS, Found, Run, Way
from .measuring import Figure, parser, report
from .schedule_sim import KINDS

KNOWN, COLD = 30, 10
LEAST, MOST, LEAST_COLD, MOST_ERROR = 0.75, 0.85, 0.7, 1.1
ROUND, WORLDS = 8, 300
FIRST_SEED = 1000
"""Of worlds that no constant of the estimate was chosen by."""
NOISE, NOISE_COVERED, CLEAR = 0.01, 0.005, 3
HALF = TASKS // 2
_TWO = "two kinds, 60 and 240 s"


WAYS = {
    way.name: way
    for way in (
        Way("no queue"),
        Way("queue of 20", queued=20),
        Way("queue of 100", queued=100),
        Way("queue of 500", queued=500),
        Way("twice as slow by and by", scale=lambda number: 2 ** (number / TASKS)),
        Way("twice as fast by and by", scale=lambda number: 2 ** (-number / TASKS)),
        Way("twice as slow, queue of 100", scale=lambda number: 2 ** (number / TASKS), queued=100),
        Way("three times as slow at once", scale=lambda number: 3.0 if number >= HALF else 1.0, first=HALF),
        Way("three times as fast at once", scale=lambda number: 1 / 3 if number >= HALF else 1.0, first=HALF),
        Way("cold start", known=0, since=COLD, until=KNOWN),
        Way("30 ends and no more", learns=False),
        Way("600 at once", queued=500, learns=False, at_once=True, until=KNOWN + 1),
    )
}

BARS = {
    # So many in a row wait for the mean, which few ends tell badly.
    "queue of 500": dict.fromkeys(KINDS, 1.2),
    # A trend is not carried on into the wait: where there is none, its noise would be worse.
    "twice as slow, queue of 100": dict.fromkeys(KINDS, 1.2) | {"log-normal 90 s, 0.15": 1.5},
    # The first thirty are all of the quick kind: how long the slow one takes now nobody has seen.
    "three times as slow at once": {_TWO: 1.4},
    "three times as fast at once": {_TWO: 1.4},
    "30 ends and no more": dict.fromkeys(KINDS, 1.5),
    "600 at once": dict.fromkeys(KINDS, 1.3),
}
"""Where the error is further from the oracle's than it shall be: what is held meanwhile."""

BARS_OF_ALL = {"twice as slow, queue of 100": 1.2, "30 ends and no more": 1.2, "600 at once": 1.2}


@attrs.define
class Cell:
    """One way and one kind of tasks, and the worlds there were of it."""

    way: Way
    kind: str
    worlds: list[Found] = attrs.field(factory=list)

    @property
    def bar(self) -> float:
        """Return what is held of the error."""
        return BARS.get(self.way.name, {}).get(self.kind, MOST_ERROR)

    @property
    def is_cold(self) -> bool:
        """Tell whether the coverage alone is judged."""
        return self.way.known < self.way.since and not self.way.first

    def covered(self) -> tuple[float, float]:
        """Return what is covered, and its noise."""
        return _ratio([world.covered for world in self.worlds], [world.seen for world in self.worlds])

    def errors(
        self, of: Callable[[Found], list[float]] = attrgetter("errors_s")
    ) -> list[tuple[float, float]]:
        """Return the error beside the oracle's at each tenth of the way that is judged, and its noise."""
        return [
            _ratio([of(world)[tenth] for world in self.worlds], oracles_s)
            for tenth in range(TENTHS)
            if any(oracles_s := [world.oracles_s[tenth] for world in self.worlds])
        ]

    def error(self) -> tuple[float, float]:
        """Return the error at the worst tenth, and its noise."""
        return max(self.errors())

    def same_error(self) -> float:
        """Return the error of one who lacks the scale alone, beside the oracle's at the worst tenth."""
        return max(self.errors(attrgetter("same_s")))[0]

    def is_settled(self) -> bool:
        """Tell whether more worlds would say nothing else."""
        (covered, off), (error, noise) = self.covered(), self.error()
        low, high = (LEAST_COLD, 1.0) if self.is_cold else (LEAST, MOST)
        is_covered = off < NOISE_COVERED or min(abs(covered - low), abs(covered - high)) > CLEAR * off
        return is_covered and (self.is_cold or noise < NOISE or abs(error - self.bar) > CLEAR * noise)

    def figures(self) -> Iterator[Figure]:
        """Yield what was found."""
        (covered, off), (error, noise) = self.covered(), self.error()
        yield Figure(
            name=f"{self.way.name}: {self.kind}: covered (+-{off:.3f})",
            values=[covered],
            unit="of 0.8",
            at_least=LEAST_COLD if self.is_cold else LEAST,
            at_most=None if self.is_cold else MOST,
            goal="P11",
        )
        name = f"{self.way.name}: {self.kind}: error"
        yield _error(f"{name} (+-{noise:.3f})", error, None if self.is_cold else self.bar)
        if not self.way.learns:
            yield _error(f"{name} of one who lacks the scale", self.same_error(), None)


def _error(name: str, error: float, bar: float | None) -> Figure:
    aims_at = MOST_ERROR if bar is not None and bar > MOST_ERROR else None
    goal = "" if bar is None else "P11"
    return Figure(name=name, values=[error], unit="x oracle", at_most=bar, aims_at=aims_at, goal=goal)


def of_all_kinds(cells: Sequence[Cell]) -> Figure:
    """Return the error of all kinds of one way together."""
    way = cells[0].way.name
    noise = math.hypot(*(cell.error()[1] for cell in cells)) / len(cells)
    tenths = zip(*(cell.errors() for cell in cells), strict=True)
    error = max(fmean(error for error, _ in tenth) for tenth in tenths)
    bar = None if cells[0].is_cold else BARS_OF_ALL.get(way, MOST_ERROR)
    return _error(f"{way}: all kinds: error (+-{noise:.3f})", error, bar)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the ratio of two sums, and its standard error, by how much the summands differ."""
    whole = sum(theirs)
    ratio = sum(ours) / whole
    off = math.hypot(*(mine - ratio * other for mine, other in zip(ours, theirs, strict=True)))
    return ratio, off / whole


def worlds(way: str, kind: str, seeds: Sequence[int]) -> list[Found]:
    """Run some worlds."""
    return [Run(WAYS[way], KINDS[kind], seed).judged() for seed in seeds]


def measured(ways: Sequence[str], most: int = WORLDS) -> list[Figure]:
    """Run all of it."""
    cells = [Cell(WAYS[way], kind) for way in ways for kind in KINDS]
    with ProcessPoolExecutor() as pool:
        unsettled = cells
        for first in range(0, most, ROUND):
            seeds = range(FIRST_SEED + first, FIRST_SEED + min(first + ROUND, most))
            jobs = [pool.submit(worlds, cell.way.name, cell.kind, seeds) for cell in unsettled]
            for cell, job in zip(unsettled, jobs, strict=True):
                cell.worlds += job.result()
            unsettled = [cell for cell in unsettled if first == 0 or not cell.is_settled()]
    falls = sum(world.falls for cell in cells for world in cell.worlds)
    name = "progress that fell, or was full too soon"
    figures = []
    for way in ways:
        of_way = [cell for cell in cells if cell.way.name == way]
        figures += [figure for cell in of_way for figure in cell.figures()]
        figures.append(of_all_kinds(of_way))
    return [*figures, Figure(name=name, values=[falls], unit="", at_most=0, goal="P11")]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("estimate", __doc__)
    options.add_argument("--worlds", type=int, default=WORLDS, help="at most so many of each")
    options.add_argument("--way", choices=[*WAYS], action="append", help="only this way; may be repeated")
    asked = options.parse_args(argv)
    return report(measured(asked.way or [*WAYS], asked.worlds), check=asked.check, to=asked.json)
