"""Compares the gain of learning over real sockets with the simulated one: 300 avatar tasks, 20 times as fast.

The sandbox runs the tasks, the real client polls them, once learning and once at a fixed interval. The
gain is how many polls the fixed interval took for as short a wait; the simulation is asked for the same.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import attrs

from kie_async import KieSession, Limits, PollSchedule, Rate, Sandbox, SessionEvent, TaskRequest
from kie_async.sandbox import durations as sandboxed

from .makespan import makespan as campaign
from .measuring import Figure, parser, report
from .simulated import CREATES, SLOTS, Found, Lognormal, run

FACTOR, TASKS, ROUNDS, SEEDS = 20.0, 300, 3, 16
MEDIAN_S, SIGMA = 120.0 / FACTOR, 0.42
WAIT_S = 5.0 / FACTOR
WITHIN = 0.15
FASTER = Rate(CREATES.count, per_s=CREATES.per_s / FACTOR)
LEARNING = attrs.evolve(campaign.scaled(FACTOR), wait_s=WAIT_S)
FIXED = PollSchedule.fixed(2 * WAIT_S)


async def for_real(schedule: PollSchedule, *, tasks: int, seed: int) -> Found:
    """Run the tasks in the sandbox and poll them over sockets."""
    waits_s, ran_s = [], []

    def note(event: SessionEvent) -> None:
        if event.kind == "settled" and event.record is not None and event.record.completed_at is not None:
            waits_s.append(time.time() - event.record.completed_at.timestamp())
            ran_s.append(event.record.duration_s or 0.0)

    took_s = sandboxed.Lognormal(MEDIAN_S, SIGMA)
    limits = Limits(create=FASTER, query=Rate(1000, per_s=0.1))
    requests = (TaskRequest(model="sandbox/echo", input={"prompt": str(number)}) for number in range(tasks))
    began = time.monotonic()
    async with (
        Sandbox(durations=took_s, create_limit=None, query_limit=None, seed=seed) as sandbox,
        KieSession(
            "sandbox-key",
            base_url=sandbox.url,
            max_in_flight=SLOTS,
            limits=limits,
            poll=schedule,
            on_event=note,
            rng=random.Random(seed),
        ) as kie,
    ):
        async for outcome in kie.batch(requests):
            outcome.unwrap()
        polls = kie.stats().queries / tasks
    return Found(polls, statistics.mean(waits_s), statistics.mean(ran_s), time.monotonic() - began)


def gain(learning: Found, fixed: Found) -> float:
    """Return how many times the polls the fixed interval took, brought to the same wait."""
    at_that_wait = 0.5 + (fixed.polls - 0.5) * fixed.wait_s / learning.wait_s
    return at_that_wait / learning.polls


def promised(tasks: int) -> float:
    """Return the gain in the simulation."""
    kind = Lognormal(MEDIAN_S, SIGMA)
    with ProcessPoolExecutor() as pool:
        asked = [
            [
                pool.submit(run, schedule, kind, tasks=tasks, seed=seed, creates=FASTER)
                for seed in range(SEEDS)
            ]
            for schedule in (LEARNING, FIXED)
        ]
        pairs = zip(*asked, strict=True)
        return statistics.mean(gain(learning.result(), fixed.result()) for learning, fixed in pairs)


async def measured(tasks: int, rounds: int) -> list[Figure]:
    """Run it in both ways, and in the simulation."""
    ways = {"learning": LEARNING, "fixed": FIXED}
    runs = [for_real(way, tasks=tasks, seed=number) for way in ways.values() for number in range(rounds)]
    ended = await asyncio.gather(*runs)  # side by side: they hardly do anything but wait
    found = {name: ended[place * rounds : (place + 1) * rounds] for place, name in enumerate(ways)}
    gains = [gain(*pair) for pair in zip(found["learning"], found["fixed"], strict=True)]
    promise = promised(tasks)
    figures = []
    for name, some in found.items():
        figures.append(Figure(name=f"{name}: polls", values=[one.polls for one in some], unit="a task"))
        waits_ms = [one.wait_s * 1000 for one in some]
        figures.append(Figure(name=f"{name}: mean wait", values=waits_ms, unit="ms"))
    return [
        *figures,
        Figure(name="gain over sockets", values=gains, unit="x"),
        Figure(name="gain in the simulation", values=[promise], unit="x"),
        Figure(
            name="the one beside the other",
            values=[one / promise for one in gains],
            unit="x",
            at_least=1 - WITHIN,
            at_most=1 + WITHIN,
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("gain", __doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    asked = options.parse_args(argv)
    return report(asyncio.run(measured(asked.tasks, asked.rounds)), check=asked.check, to=asked.json)
