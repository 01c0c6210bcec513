"""Runs a thousand tasks at once where the service counts queries by key, by task, both or not at all.

The poller of a session finds the speed by itself, from its first 10 queries a second, over a network whose
delays vary, in virtual time. How the service counts, it says by its refusals alone.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import attrs

from kie_async import Limits, PollSchedule, TaskRecord
from kie_async.errors import RateLimited
from kie_async.sandbox.window import Window

from .floor import MANY
from .makespan import Hurried
from .measuring import Figure, parser, report
from .simulated import Durations, Lognormal, Run

TASKS, SLOTS, SEEDS = 5000, 1000, 2
AVATAR = Lognormal(120, 0.42)
ONE_WAY_S, SPREAD = 0.05, 0.4
LIMIT = (10, 1.0)
ONE_REFUSED_IN, LONGEST_WAIT_S = 500, 3.6


@attrs.frozen
class Way:
    """How the service counts queries."""

    name: str
    by_key: bool
    by_task: bool


WAYS = (
    Way("limit per key", by_key=True, by_task=False),
    Way("limit per task", by_key=False, by_task=True),
    Way("both limits", by_key=True, by_task=True),
    Way("no limit", by_key=False, by_task=False),
)


@attrs.frozen
class Found:
    """What a run came to."""

    polls: int
    refused: int
    wait_s: float
    """From an end until it was known, on average."""
    took_s: float


class Limited(Run):
    """A run whose service refuses queries."""

    def __init__(self, *given: Any, way: Way, **options: Any) -> None:
        super().__init__(*given, **options)
        self.refused = 0
        self._by_key = Window(*LIMIT) if way.by_key else None
        self._by_task: dict[str, Window] | None = {} if way.by_task else None

    async def read_record(self, task_id: str, *, unless: object = None) -> TaskRecord:
        """Answer a poll after a while, or refuse it."""
        await self._travel()
        self.polls += 1
        if not self._admits(task_id):
            self.refused += 1
            await self._travel()
            raise RateLimited(429, "too often")
        record = self.record_of(task_id)
        await self._travel()
        return record

    def _admits(self, task_id: str) -> bool:
        now = self.loop.time()
        windows = [] if self._by_key is None else [self._by_key]
        if self._by_task is not None:
            windows.append(self._by_task.setdefault(task_id, Window(*LIMIT)))
        return all(window.admit(now) for window in windows)

    async def _travel(self) -> None:
        await asyncio.sleep(self.rng.lognormvariate(math.log(ONE_WAY_S), SPREAD))


def run(way: Way, tasks: int, slots: int, seed: int, *, adapts: bool = True) -> Found:
    """Run so many tasks, so many of them at a time, at a speed that finds itself or stays as it is."""
    durations: Durations = AVATAR
    limits = Limits()
    with asyncio.Runner(loop_factory=Hurried) as runner:
        one = Limited(
            runner.get_loop(),
            PollSchedule(),
            lambda rng, _: durations(rng),
            seed=seed,
            way=way,
            creates=MANY,
            queries=limits.query,
            ceiling=limits.query_ceiling if adapts else None,
            slots=slots,
        )
        found = runner.run(one.to_its_end(tasks))
        return Found(one.polls, one.refused, found.wait_s, found.took_s)


def measured(tasks: int, slots: int, seeds: int) -> list[Figure]:
    """Return refusals, waits and speeds of each way, and what a speed that stays as it is comes to."""
    with ProcessPoolExecutor(2) as pool:
        fixed = [pool.submit(run, WAYS[1], tasks, slots, seed, adapts=False) for seed in range(seeds)]
        asked = {way: [pool.submit(run, way, tasks, slots, seed) for seed in range(seeds)] for way in WAYS}
        found = {way: [one.result() for one in some] for way, some in asked.items()}
        waits_s = [one.result().wait_s for one in fixed]
    figures = [Figure(name="10 a second for all: mean wait", values=waits_s, unit="s")]
    for way, some in found.items():
        figures += [
            Figure(
                name=f"{way.name}: refused",
                values=[one.refused / one.polls * ONE_REFUSED_IN for one in some],
                unit=f"of {ONE_REFUSED_IN} polls",
                at_most=1,
                goal="P13",
            ),
            Figure(
                name=f"{way.name}: mean wait",
                values=[one.wait_s for one in some],
                unit="s",
                at_most=None if way.by_key else LONGEST_WAIT_S,
                goal="" if way.by_key else "P13",
            ),
            Figure(
                name=f"{way.name}: polls",
                values=[statistics.mean(one.polls / one.took_s for one in some)],
                unit="a second",
            ),
        ]
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("query_speed", __doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--slots", type=int, default=SLOTS)
    options.add_argument("--seeds", type=int, default=SEEDS)
    asked = options.parse_args(argv)
    return report(measured(asked.tasks, asked.slots, asked.seeds), check=asked.check, to=asked.json)
