"""Measures what polled tasks cost, a thousand at once and a hundred a second, beside the client that
everybody writes: it sleeps and asks in a coroutine per task, and keeps its connections.

At once, aiohttp alone stands beside them too: as many requests over as many connections, and nothing done
with the answers. Figures are CPU seconds of this process; the turns alternate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from kie_async import KieSession, PollSchedule

from . import tls
from .emulator import AVATAR, AVATAR_INPUT, Emulator
from .floor import CREATES, QUERIES, Bare, Everyday, at_most, free_session, task_id_of
from .load import paced
from .measuring import OUR_CORE, Figure, alternating, cpu_s, parser, pin, ratios, report

TASKS, ROUNDS = 1000, 10
PACED_ROUNDS, PER_S = 2, 100.0
EVERY_S = 3.0
"""Between two polls of a paced task; at those at once ten times as often."""
SHORTEST, LONGEST = 2 / 3, 8 / 3
"""What a task takes, in intervals between polls."""
BARS = {
    True: {"at once": (1.5, 1.25), "paced": (1.15, 1.0)},
    False: {"at once": (1.8, 1.5), "paced": (1.0, 1.0)},
}
"""Over TLS and plain: the bar, and the goal."""


class AtOnce:
    """A thousand tasks, all begun and awaited together."""

    def __init__(
        self, service: Emulator, kie: KieSession, everyday: Everyday, bare: Bare, tasks: int
    ) -> None:
        self._service = service
        self._kie = kie
        self._everyday = everyday
        self._bare = bare
        self._tasks = tasks
        self._queries = 0

    async def ours(self) -> float:
        """Return the CPU seconds of our session."""

        async def work() -> None:
            done = await asyncio.gather(
                *[self._kie.run(AVATAR, AVATAR_INPUT) for _ in range(self._tasks)], return_exceptions=True
            )
            assert not [failed for failed in done if isinstance(failed, BaseException)]

        before = self._kie.stats().queries
        spent = await cpu_s(work)
        self._queries = self._kie.stats().queries - before
        return spent

    async def alone(self) -> float:
        """Return the CPU seconds of aiohttp alone for as many requests as ours made last."""

        async def work() -> None:
            answers = await at_most(CREATES, self._bare.create, range(self._tasks))
            ids = [task_id_of(answer) for answer in answers]
            await at_most(QUERIES, self._bare.query, (ids[n % len(ids)] for n in range(self._queries)))

        return await cpu_s(work)

    async def written(self) -> float:
        """Return the CPU seconds of the everyday client."""
        return await cpu_s(lambda: asyncio.gather(*[self._everyday.run() for _ in range(self._tasks)]))


async def at_once(rounds: int, tasks: int, *, every_s: float = EVERY_S / 10) -> list[Figure]:
    """Return what a thousand tasks cost that begin together."""
    async with (
        Emulator(durations=("uniform", SHORTEST * every_s, LONGEST * every_s)) as service,
        free_session(service.url, poll=PollSchedule.fixed(every_s)) as kie,
        Everyday(service.url, every_s=every_s) as everyday,
        Bare(service.url) as bare,
    ):
        turn = AtOnce(service, kie, everyday, bare, tasks)
        found = await alternating(
            {"aiohttp alone": turn.alone, "the everyday client": turn.written, "ours": turn.ours},
            rounds=rounds,
            beside=[service.pid],
        )
        asked = kie.stats().queries / kie.stats().creates
    alone = found["aiohttp alone"]
    return [
        Figure(name="at once, polls a task", values=[asked], unit=""),
        *[Figure(name=f"at once, {name}", values=values, unit="CPU s") for name, values in found.items()],
        Figure(
            name="at once, the everyday client / aiohttp alone",
            values=ratios(found["the everyday client"], alone),
            unit="of its CPU time",
        ),
        Figure(
            name="at once, ours / aiohttp alone",
            values=ratios(found["ours"], alone),
            unit="of its CPU time",
        ),
        _judged("at once", found),
    ]


def _judged(kind: str, found: dict[str, list[float]]) -> Figure:
    bar, goal = BARS[tls.is_on()][kind]
    return Figure(
        name=f"{kind}, ours / the everyday client",
        values=ratios(found["ours"], found["the everyday client"]),
        unit="of its CPU time",
        at_most=bar,
        aims_at=goal,
        goal="P1",
    )


async def at_a_pace(rounds: int, tasks: int) -> list[Figure]:
    """Return what tasks cost that come a hundred a second."""
    async with (
        Emulator(durations=("uniform", SHORTEST * EVERY_S, LONGEST * EVERY_S)) as service,
        free_session(service.url, poll=PollSchedule.fixed(EVERY_S)) as kie,
        Everyday(service.url, every_s=EVERY_S) as everyday,
    ):

        def spent(run: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
            return lambda: cpu_s(lambda: paced(tasks, PER_S, lambda _: run()))

        found = await alternating(
            {
                "the everyday client": spent(everyday.run),
                "ours": spent(lambda: kie.run(AVATAR, AVATAR_INPUT)),
            },
            rounds=rounds,
            beside=[service.pid],
            warms_up=False,
        )
        assert kie.stats().settled_by_poll == kie.stats().creates
    return [
        *[Figure(name=f"paced, {name}", values=values, unit="CPU s") for name, values in found.items()],
        _judged("paced", found),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("poll", __doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--paced-rounds", type=int, default=PACED_ROUNDS)
    tls.add_option(options)
    asked = options.parse_args(argv)
    tls.begin(plain=asked.plain)
    pin(OUR_CORE)

    async def run() -> list[Figure]:
        return [
            *await at_once(asked.rounds, asked.tasks),
            *await at_a_pace(asked.paced_rounds, asked.tasks),
        ]

    return report(asyncio.run(run()), check=asked.check, to=asked.json)
