"""Times a thousand avatar jobs beside the least that slots and limits allow, in virtual time.

The real client talks over sockets to a service on its own loop, whose clock jumps to the next timer; the
campaign of the same name does that. Each way runs in a process of its own: only virtual time counts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs

from .measuring import Figure, parser, report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from campaign import makespan
from support.clock import SteeredLoop

JOBS, SLOTS, ROUND_TRIP_S = 1000, 100, 0.1


@attrs.frozen
class Way:
    """How news of tasks comes, and how much longer than ideal the whole may take."""

    name: str
    with_callbacks: bool
    queries: int
    at_most: float
    runs: int = 1


WAYS = (
    Way("with callbacks", True, makespan.QUERIES, 1.005),
    Way("polling freely", False, makespan.MANY, 1.015),
    Way("polling, 10 queries a second", False, makespan.QUERIES, 1.025, 9),  # seeds differ here alone
)


class Hurried(SteeredLoop):
    """A loop whose time always passes, and waits for no stranger: both ends of every socket are its own."""

    patience_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.advancing = 1


def run(way: Way, jobs: int, seed: int) -> makespan.Found:
    """Run all jobs in one way."""
    work = makespan.run_virtual(
        jobs,
        rtt_s=ROUND_TRIP_S,
        with_callbacks=way.with_callbacks,
        slots=SLOTS,
        queries=way.queries,
        seed=seed,
    )
    with asyncio.Runner(loop_factory=Hurried) as runner:
        return runner.run(work)


def measured(jobs: int) -> list[Figure]:
    """Return the ratios to the ideal, the refusals and what was asked."""
    with ProcessPoolExecutor(2) as pool:
        asked = {way: [pool.submit(run, way, jobs, seed) for seed in range(way.runs)] for way in WAYS}
        found = {way: [one.result() for one in some] for way, some in asked.items()}
    figures = [Figure(name="ideal", values=[one.optimum_s for one in found[WAYS[-1]]], unit="s")]
    for way, some in found.items():
        ratio = Figure(
            name=way.name,
            values=[one.ratio for one in some],
            unit="of the ideal",
            at_most=way.at_most,
            goal="P9",
        )
        figures += [
            ratio,
            Figure(name=f"{way.name}, queries", values=[one.queries / jobs for one in some], unit="a task"),
            Figure(
                name=f"{way.name}, refused",
                values=[sum(one.refusals for one in some)],
                unit="creates",
                at_most=0,
                goal="P9",
            ),
            Figure(
                name=f"{way.name}, queries refused",
                values=[one.refused_queries / one.queries * makespan.ONE_REFUSED_IN for one in some],
                unit=f"of {makespan.ONE_REFUSED_IN}",
                at_most=1,
                goal="P13",
            ),
        ]
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("makespan", __doc__)
    options.add_argument("--jobs", type=int, default=JOBS)
    asked = options.parse_args(argv)
    return report(measured(asked.jobs), check=asked.check, to=asked.json)
