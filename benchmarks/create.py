"""Measures what a create costs beside aiohttp alone: without a journal on disk, and with the durable one.

All of them keep as many connections to one emulated service, ours under the rule of creates. Rates are
per CPU second of this process, the thread of the journal included; chunks alternate.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from kie_async import KieSession, PollSchedule, TaskHandle

from . import tls
from .emulator import AVATAR, AVATAR_INPUT, Emulator
from .floor import CREATES, Bare, at_most, free_session
from .measuring import OUR_CORE, Figure, alternating, parser, pin, ratios, report

CHUNK, ROUNDS = 200, 40
BARS = {"no journal": (0.8, 0.85), "durable journal": (0.6, 0.6)}
"""The bar of each, and its goal."""


async def measured(rounds: int, chunk: int) -> list[Figure]:
    """Return rates and their ratios to the rate of aiohttp alone."""
    walls: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
        async def run() -> float:
            wall, cpu = time.perf_counter(), time.process_time()
            await work()
            cpu = time.process_time() - cpu
            walls.setdefault(name, []).append(chunk / (time.perf_counter() - wall))
            return chunk / cpu

        return run

    async with AsyncExitStack() as opened:
        service = await opened.enter_async_context(Emulator(durations=("never",)))
        bare = await opened.enter_async_context(Bare(service.url))
        path = f"{opened.enter_context(tempfile.TemporaryDirectory())}/journal.db"
        asleep = PollSchedule.fixed(86_400)
        things = {
            "aiohttp alone": timed("aiohttp alone", lambda: at_most(CREATES, bare.create, range(chunk)))
        }
        for name, journal in (("no journal", None), ("durable journal", path)):
            kie = await opened.enter_async_context(free_session(service.url, journal=journal, poll=asleep))
            creates = Creates(kie, chunk)
            things[name] = _abandoning(creates, timed(name, creates.make))
        found = await alternating(things, rounds=rounds, beside=[service.pid])
    figures = [
        Figure(name=name, values=values, unit="creates a CPU second") for name, values in found.items()
    ]
    figures += [
        Figure(name=name, values=values[1:], unit="creates a second") for name, values in walls.items()
    ]
    alone = found["aiohttp alone"]
    return figures + [
        Figure(
            name=f"{name} / aiohttp alone",
            values=ratios(found[name], alone),
            unit="of its rate",
            at_least=bar,
            aims_at=goal,
            goal="P2",
        )
        for name, (bar, goal) in BARS.items()
    ]


class Creates:
    """Makes tasks, and abandons them: what is in flight must not grow from chunk to chunk."""

    def __init__(self, kie: KieSession, chunk: int) -> None:
        self._kie = kie
        self._chunk = chunk
        self._made: list[TaskHandle] = []

    async def make(self) -> None:
        self._made = await at_most(
            CREATES, lambda _: self._kie.create(AVATAR, AVATAR_INPUT), range(self._chunk)
        )

    def abandon(self) -> None:
        for handle in self._made:
            handle.abandon()


def _abandoning(creates: Creates, run: Callable[[], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        rate = await run()
        creates.abandon()
        await asyncio.sleep(0)
        return rate

    return work


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("create", __doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--chunk", type=int, default=CHUNK)
    tls.add_option(options)
    asked = options.parse_args(argv)
    tls.begin(plain=asked.plain)
    pin(OUR_CORE)
    return report(asyncio.run(measured(asked.rounds, asked.chunk)), check=asked.check, to=asked.json)
