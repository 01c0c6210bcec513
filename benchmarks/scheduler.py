"""Measures the CPU of polling many tasks every few seconds: our one scheduler, and a sleeping task for each.

No request is sent: a poll is answered at once, so that only the waiting and the waking is paid for.
Measured is the CPU of this process for one poll; and how often the loop is woken, which must not grow
with the number of tasks. uvloop's figures come from a fresh process.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from kie_async import KieError, Limits, PollSchedule, TaskRecord, TaskState
from kie_async.events import Source
from kie_async.limits.query_speed import QueryPace, QuerySpeed
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.planning.planner import PollPlanner
from kie_async.polling.poller import Poller

from .floor import MANY
from .measuring import Figure, alternating, parser, ratios, report

FEW, MANY_HANDLES = 10_000, 100_000
PERIOD_S = 3.0
OF_TASKS = 0.42
"""What is held, on the way to:"""
OF_TASKS_FEW, OF_TASKS_MANY, WAKES_PER_S, IDLE_MS = 0.25, 0.3, 25, 2
ROUNDS = 3
ROOT = Path(__file__).parent.parent


class CountingLoop:
    """The running loop, counting how often its timers woke the one who set them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.wakes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        def woken() -> None:
            self.wakes += 1
            callback(*args)

        return self._loop.call_at(when, woken)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self.call_at(self._loop.time() + delay, callback, *args)


class Polls:
    """Answers every poll at once, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._record = TaskRecord(task_id="task", state=TaskState.GENERATING)

    async def read_record(self, task_id: str, *, unless: object = None) -> TaskRecord:
        self.count += 1
        return self._record


class Nobody:
    """Is told news that changes nothing."""

    def deliver(self, record: TaskRecord, source: Source) -> None:
        """Change nothing."""

    def give_up(self, key: str, error: KieError) -> None:
        """Change nothing."""

    def expire(self, key: str) -> None:
        """Change nothing."""


@asynccontextmanager
async def scheduler(count: int, polls: Polls, loop: Any, period_s: float) -> AsyncIterator[None]:
    """Let the session's scheduler poll so many handles."""
    poller = Poller(
        polls,  # type: ignore[arg-type]  (of a query client it reads records only)
        QueryPace(RateLimiter(MANY, now=loop.time), QuerySpeed(MANY, None)),
        PollPlanner(PollSchedule.fixed(period_s)),
        connections=Limits().query_connections,
        rng=random.Random(0),
        loop=loop,
    )
    poller.start(Nobody())
    deadline = loop.time() + 10**6
    for number in range(count):  # spread over a period
        poller.track(f"{number:032x}", model="", deadline=deadline, expects_callback=False, at_once=True)
    try:
        yield
    finally:
        await poller.aclose()


@asynccontextmanager
async def sleepers(count: int, polls: Polls, _: Any, period_s: float) -> AsyncIterator[None]:
    """Let a task per handle sleep and poll, jittered like ours."""
    rng = random.Random(0)

    async def sleep_and_poll(task_id: str) -> None:
        await asyncio.sleep(period_s * rng.random())
        while True:
            await polls.read_record(task_id)
            await asyncio.sleep(period_s * rng.uniform(0.9, 1.1))

    tasks = [asyncio.create_task(sleep_and_poll(f"{number:032x}")) for number in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def cost_us(running: Callable[..., Any], count: int, *, period_s: float = PERIOD_S) -> float:
    """Return the CPU microseconds a poll takes, over one period in which each task is polled once."""
    polls = Polls()
    async with running(count, polls, asyncio.get_running_loop(), period_s):
        await asyncio.sleep(period_s / 10)
        before, began = polls.count, time.process_time()
        await asyncio.sleep(period_s)
        return (time.process_time() - began) * 1e6 / (polls.count - before)


async def wakes_per_s(count: int, *, period_s: float = PERIOD_S) -> float:
    """Return how often a second the scheduler of so many handles is woken: by its timer, or from sleep."""
    loop = CountingLoop()
    async with scheduler(count, Polls(), loop, period_s):
        await asyncio.sleep(period_s / 10)
        timers, switches, began = loop.wakes, _switches(), time.perf_counter()
        await asyncio.sleep(period_s)
        seconds = time.perf_counter() - began
        return max(loop.wakes - timers, _switches() - switches) / seconds


def _switches() -> int:
    """Return how often this process went to sleep so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


async def idle_ms(count: int, *, seconds: int) -> list[float]:
    """Return the CPU milliseconds of each second in which so many handles wait and none is due."""
    found = []
    async with scheduler(count, Polls(), asyncio.get_running_loop(), 10**6):
        await asyncio.sleep(0.2)
        for _ in range(seconds):
            began = time.process_time()
            await asyncio.sleep(1)
            found.append((time.process_time() - began) * 1000)
    return found


async def compared(count: int, rounds: int, *, aims_at: float) -> list[Figure]:
    """Return what a poll costs us, what it costs a sleeping task, and the ratio."""
    found = await alternating(
        {
            "scheduler": lambda: cost_us(scheduler, count),
            "task each": lambda: cost_us(sleepers, count),
        },
        rounds=rounds,
    )
    return [
        *[
            Figure(name=f"{name}, {count:,} handles", values=values, unit="CPU us a poll")
            for name, values in found.items()
        ],
        Figure(
            name=f"scheduler / task each, {count:,}",
            values=ratios(*found.values()),
            unit="of it",
            at_most=OF_TASKS,
            aims_at=aims_at,
            goal="P7",
        ),
    ]


async def woken(loop_name: str, counts: Sequence[int]) -> list[Figure]:
    """Return the wake-ups for each number of handles."""
    return [
        Figure(
            name=f"wake-ups, {count:,} handles, {loop_name}",
            values=[await wakes_per_s(count)],
            unit="a second",
            at_most=WAKES_PER_S,
            goal="P7",
        )
        for count in counts
    ]


def woken_on_uvloop(counts: Sequence[int]) -> list[Figure]:
    """Return the same from a process that runs on uvloop."""
    command = [sys.executable, "-m", "benchmarks.scheduler", *map(str, counts)]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    return [Figure(**found) for found in json.loads(printed)]


async def measure(few: int, many: int, rounds: int) -> list[Figure]:
    """Return all figures but those of uvloop."""
    return [
        *await compared(few, rounds, aims_at=OF_TASKS_FEW),
        *await compared(many, max(1, rounds - 1), aims_at=OF_TASKS_MANY),
        *await woken("asyncio", (few // 100, few, many)),
        Figure(
            name=f"idle second, {many:,} handles",
            values=await idle_ms(many, seconds=2 * rounds + 1),
            unit="CPU ms",
            at_most=IDLE_MS,
            goal="P7",
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the goals were met."""
    options = parser("scheduler", __doc__)
    options.add_argument("--handles", type=int, nargs=2, default=(FEW, MANY_HANDLES), metavar=("FEW", "MANY"))
    options.add_argument("--rounds", type=int, default=ROUNDS)
    asked = options.parse_args(argv)
    few, many = asked.handles
    figures = asyncio.run(measure(few, many, asked.rounds))
    if find_spec("uvloop"):
        figures += woken_on_uvloop((few // 100, few, many))
    else:
        print("uvloop is not installed (pip install 'kie_async[speed]'): its wake-ups are not measured")
    return report(figures, check=asked.check, to=asked.json)


def _on_uvloop(counts: Sequence[int]) -> list[Figure]:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(woken("uvloop", counts))


if __name__ == "__main__":
    print(json.dumps([attrs.asdict(figure) for figure in _on_uvloop([int(count) for count in sys.argv[1:]])]))
