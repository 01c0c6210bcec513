"""Runs a thousand tasks at once where the service counts queries by key, by task, both or not at all.

The poller of a session finds the speed by itself, from its first 10 queries a second, in virtual time. How
the service counts, it says by its refusals alone. They are counted over a network whose delays vary; waits
are judged where answers come at once, as in `schedule_sim`, from when the speed is found to the last create.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import attrs

from kie_async import Limits, PollSchedule, TaskRecord
from kie_async.errors import RateLimited
from kie_async.events import Source
from kie_async.sandbox.window import Window

from .floor import MANY
from .makespan import Hurried
from .measuring import Figure, parser, report
from .simulated import Lognormal, Run

TASKS, SLOTS, SEEDS = 5000, 1000, 2
AVATAR = Lognormal(120, 0.42)
ONE_WAY_S, SPREAD = 0.05, 0.4
FOUND_AFTER_S = 120.0
"""From 10 to 100 a second, by a quarter each 10 s, takes 103 s."""
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
    polls_per_s: float
    wait_s: float
    """From an end until it was known, on average, once the speed is found and while all slots are taken."""
    whole_wait_s: float
    """The same from the first task to the last."""


class Limited(Run):
    """A run whose service refuses queries."""

    def __init__(self, *given: Any, way: Way, one_way_s: float, tasks: int, **options: Any) -> None:
        super().__init__(*given, **options)
        self.refused = 0
        self.waits_s: list[float] = []
        self._one_way_s, self._tasks, self._ended = one_way_s, tasks, 0
        self._counts_from = self.loop.time() + FOUND_AFTER_S
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
        if self._one_way_s:
            await asyncio.sleep(self.rng.lognormvariate(math.log(self._one_way_s), SPREAD))

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Take in news, and note how late it is."""
        now = self.loop.time()
        if record.state.is_terminal:
            self._ended += 1
            if now >= self._counts_from and self._ended <= self._tasks - self.slots_count:
                self.waits_s.append(now - self.running[record.task_id].ends_at)
        super().deliver(record, source)


def run(way: Way, tasks: int, slots: int, seed: int, *, one_way_s: float, adapts: bool = True) -> Found:
    """Run so many tasks, so many of them at a time, at a speed that finds itself or stays as it is."""
    limits = Limits()
    with asyncio.Runner(loop_factory=Hurried) as runner:
        one = Limited(
            runner.get_loop(),
            PollSchedule(),
            lambda rng, _: AVATAR(rng),
            seed=seed,
            way=way,
            one_way_s=one_way_s,
            tasks=tasks,
            creates=MANY,
            queries=limits.query,
            ceiling=limits.query_ceiling if adapts else None,
            slots=slots,
        )
        found = runner.run(one.to_its_end(tasks))
    wait_s = statistics.mean(one.waits_s or [found.wait_s])
    return Found(one.polls, one.refused, one.polls / found.took_s, wait_s, found.wait_s)


def measured(tasks: int, slots: int, seeds: int) -> list[Figure]:
    """Return refusals, waits and speeds of each way, and what a speed that stays as it is comes to."""
    with ProcessPoolExecutor(2) as pool:

        def ask(way: Way, one_way_s: float, *, adapts: bool = True) -> list[Future[Found]]:
            return [
                pool.submit(run, way, tasks, slots, seed, one_way_s=one_way_s, adapts=adapts)
                for seed in range(seeds)
            ]

        fixed = ask(WAYS[1], 0.0, adapts=False)
        asked = {way: (ask(way, ONE_WAY_S), ask(way, 0.0)) for way in WAYS}
        figures = [Figure(name="10 a second for all: mean wait", values=_waits_s(fixed), unit="s")]
        for way, (over_network, at_once) in asked.items():
            figures += _figures(way, [one.result() for one in over_network], _waits_s(at_once))
    return figures


def _waits_s(runs: Sequence[Future[Found]]) -> list[float]:
    return [one.result().wait_s for one in runs]


def _figures(way: Way, found: Sequence[Found], waits_s: Sequence[float]) -> list[Figure]:
    refused = [one.refused / one.polls * ONE_REFUSED_IN for one in found]
    judged: dict[str, Any] = {} if way.by_key else {"at_most": LONGEST_WAIT_S, "goal": "P13"}
    return [
        Figure(
            name=f"{way.name}: refused",
            values=refused,
            unit=f"of {ONE_REFUSED_IN} polls",
            at_most=1,
            goal="P13",
        ),
        Figure(name="    polls", values=[one.polls_per_s for one in found], unit="a second"),
        Figure(name="    mean wait, answers at once", values=waits_s, unit="s", **judged),
        Figure(name="    mean wait, 0.1 s a round trip", values=[one.wait_s for one in found], unit="s"),
        Figure(
            name="    the same, from the first task",
            values=[one.whole_wait_s for one in found],
            unit="s",
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("query_speed", __doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--slots", type=int, default=SLOTS)
    options.add_argument("--seeds", type=int, default=SEEDS)
    asked = options.parse_args(argv)
    return report(measured(asked.tasks, asked.slots, asked.seeds), check=asked.check, to=asked.json)
