"""Measures how soon an awaiter goes on after a callback: at a steady rate, a whole crowd at once, and early.

The service notes when it writes a callback to a socket, the awaiter when it goes on; both read the one
monotonic clock of the machine. How long a crowd waits from the end of its tasks also holds how long the
service queues, which sends one callback at a time over each of its connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from kie_async import CallbackReceiver, KieSession, TaskHandle

from .emulator import AVATAR, AVATAR_INPUT, Emulator
from .floor import CREATES, at_most, free_session
from .load import paced
from .measuring import OUR_CORE, Figure, parser, pin, quantile, report

KEY = "a-key-from-the-settings"
STEADY, PER_S, WARM = 1000, 200.0, 200
CROWD, ROUNDS = 2000, 5
EARLY, ANSWER_S, ENDS_S = 200, 0.05, 0.001


@asynccontextmanager
async def called_back(service: Emulator) -> AsyncIterator[KieSession]:
    """Open a session that the service calls back."""
    receiver = CallbackReceiver([KEY])
    async with (
        receiver.serve("127.0.0.1", 0) as served,
        free_session(service.url, callback_url=served.url, receiver=receiver) as kie,
    ):
        yield kie
        assert not kie.stats().callbacks_rejected, kie.stats()


class Awaiters:
    """Those who wait for tasks, and when each went on."""

    def __init__(self) -> None:
        self._resumed: dict[str, float] = {}

    async def wait_for(self, handle: TaskHandle) -> None:
        """Await a handle and note the time."""
        await handle
        self._resumed[handle.task_id] = time.monotonic()

    async def delays_ms(self, service: Emulator, since: str) -> list[float]:
        """Return in turn how long each waited since its task ``ended`` or its callback was ``sent``."""
        instants = (await service.finished())[since]
        return [(at - instants[task_id]) * 1000 for task_id, at in self._resumed.items()]


async def steady(service: Emulator, tasks: int) -> list[Figure]:
    """Return delays at a steady rate; the first tasks warm up."""
    await service.set(durations=("lognormal", 6.0, 0.3), hmac_key=KEY)
    warming, awaiters = Awaiters(), Awaiters()
    async with called_back(service) as kie:

        async def one(turn: int) -> None:
            await (warming if turn < WARM else awaiters).wait_for(await kie.create(AVATAR, AVATAR_INPUT))

        await paced(WARM + tasks, PER_S, one)
    seconds, whole = [_by_second(await awaiters.delays_ms(service, since)) for since in ("sent", "ended")]
    middle, high = ([quantile(second, share) for second in seconds] for share in (0.5, 0.99))
    name = f"{PER_S:g} tasks a second"
    return [
        Figure(name=f"{name}, p50 of each second", values=middle, unit="ms", at_most=3, goal="P5"),
        Figure(name=f"{name}, p99 of each second", values=high, unit="ms", at_most=15, goal="P5"),
        Figure(
            name=f"{name}, since the end of the task, p99",
            values=[quantile(second, 0.99) for second in whole],
            unit="ms",
        ),
    ]


def _by_second(delays: list[float]) -> list[list[float]]:
    return [delays[at : at + int(PER_S)] for at in range(0, len(delays), int(PER_S))]


async def crowd(service: Emulator, tasks: int, rounds: int) -> list[Figure]:
    """Return delays when many tasks end in one instant."""
    middle, high, whole = [], [], []
    for _ in range(rounds):
        await service.set(durations=("never",), hmac_key=KEY)
        awaiters = Awaiters()
        async with called_back(service) as kie:
            handles = await at_most(CREATES, lambda _: kie.create(AVATAR, AVATAR_INPUT), range(tasks))
            waiting = [asyncio.create_task(awaiters.wait_for(handle)) for handle in handles]
            await asyncio.sleep(0.1)
            assert await service.end_all() == tasks
            await asyncio.gather(*waiting)
        delays = await awaiters.delays_ms(service, "sent")
        middle.append(quantile(delays, 0.5))
        high.append(quantile(delays, 0.99))
        whole.append(max(await awaiters.delays_ms(service, "ended")))
    name = f"{tasks:,} tasks in one instant"
    return [
        Figure(name=f"{name}, p50", values=middle, unit="ms"),
        Figure(name=f"{name}, p99", values=high, unit="ms", at_most=60, goal="P5"),
        Figure(name=f"{name}, until the last goes on", values=whole, unit="ms"),
    ]


async def early(service: Emulator, tasks: int) -> list[Figure]:
    """Return what becomes of tasks whose callback comes before the answer to their create."""
    await service.set(durations=("fixed", ENDS_S), delay_s=ANSWER_S, hmac_key=KEY)
    took: list[float] = []
    async with called_back(service) as kie:

        async def one(_: int) -> None:
            began = time.monotonic()
            await kie.run(AVATAR, AVATAR_INPUT)
            took.append((time.monotonic() - began) * 1000)

        await at_most(CREATES, one, range(tasks))
        stats = kie.stats()
    left = Figure(
        name="callbacks before the answer, left to a poll",
        values=[stats.settled_by_poll + stats.queries],
        unit=f"of {stats.settled_by_callback + stats.settled_by_poll}",
        at_most=0,
        goal="P5",
    )
    name = f"callbacks before the answer, which takes {ANSWER_S * 1000:g} ms, p99"
    return [left, Figure(name=name, values=[quantile(took, 0.99)], unit="ms")]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("latency", __doc__)
    options.add_argument("--steady", type=int, default=STEADY, help="tasks that come at a steady rate")
    options.add_argument("--crowd", type=int, default=CROWD, help="tasks that end in one instant")
    options.add_argument("--rounds", type=int, default=ROUNDS, help="of the crowd")
    asked = options.parse_args(argv)
    pin(OUR_CORE)

    async def run() -> list[Figure]:
        async with Emulator() as service:
            return [
                *await steady(service, asked.steady),
                *await crowd(service, asked.crowd, asked.rounds),
                *await early(service, EARLY),
            ]

    return report(asyncio.run(run()), check=asked.check, to=asked.json)
