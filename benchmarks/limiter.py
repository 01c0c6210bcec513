"""Sends a thousand creates under the documented limit, over a network whose delays vary, in virtual time.

Each way takes a lognormal time of 60 ms in the middle. The service refuses what is over the limit in any
window of its arrivals. Beside ours stands the rule that most clients use: so many sent in any window.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from kie_async import Limits, Rate
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.sandbox.window import Window

from .floor import at_most
from .makespan import Hurried
from .measuring import Figure, parser, report

CREATES, SEEDS, ONE_WAY_S = 1000, 5, 0.06
SPREADS = (0.2, 0.6, 1.0)
"""Sigma of the one-way time; with the last, one of a hundred takes ten times as long as usual."""
LINES = 64
"""Creates on their way at once: enough that only the limiter holds them back."""


class Rule(Protocol):
    """What a limiter is asked."""

    async def acquire(self) -> None:
        """Wait for a turn."""

    def release(self) -> None:
        """Give a turn back: the answer is here."""


class BySending:
    """So many sent in any window, whatever becomes of them on the way."""

    def __init__(self, rate: Rate, *, now: Callable[[], float]) -> None:
        self._rate = rate
        self._now = now
        self._sent: deque[float] = deque()

    async def acquire(self) -> None:
        while len(self._sent) == self._rate.count:
            if (wait_s := self._sent[0] + self._rate.per_s - self._now()) <= 0:
                self._sent.popleft()
            else:
                await asyncio.sleep(wait_s)
        self._sent.append(self._now())

    def release(self) -> None:
        pass


@attrs.frozen
class Found:
    """What came of all creates."""

    last_s: float
    refused: int


async def creates(make: Callable[..., Rule], rate: Rate, *, count: int, spread: float, seed: int) -> Found:
    """Send so many creates, each again until it is accepted."""
    loop, rng = asyncio.get_running_loop(), random.Random(seed)
    began, accepted, refused = loop.time(), 0.0, 0
    rule, window = make(rate, now=loop.time), Window(rate.count, rate.per_s)

    async def one(_: int) -> None:
        nonlocal accepted, refused
        is_in = False
        while not is_in:
            await rule.acquire()
            await asyncio.sleep(rng.lognormvariate(math.log(ONE_WAY_S), spread))
            is_in = window.admit(loop.time())
            accepted, refused = loop.time(), refused + (not is_in)
            await asyncio.sleep(rng.lognormvariate(math.log(ONE_WAY_S), spread))
            rule.release()

    await at_most(LINES, one, range(count))
    return Found(accepted - began, refused)


def measured(count: int, seeds: int) -> list[Figure]:
    """Return refusals, and when the last create was accepted beside the earliest that the limit allows."""
    rate = Limits().create
    ideal_s = (count - 1) // rate.count * rate.per_s
    figures = [Figure(name="ideal", values=[ideal_s], unit="s")]
    rules: dict[str, Callable[..., Rule]] = {"by sending": BySending, "ours": RateLimiter}
    for name, rule in rules.items():
        for spread in SPREADS:
            found = []
            for seed in range(seeds):
                with asyncio.Runner(loop_factory=Hurried) as runner:
                    found.append(runner.run(creates(rule, rate, count=count, spread=spread, seed=seed)))
            no_more, at_latest, goal = (0, 1.03, "P9") if rule is RateLimiter else (None, None, "")
            figures += [
                Figure(
                    name=f"{name}, spread {spread}: refused",
                    values=[sum(one.refused for one in found)],
                    unit=f"of {seeds * count:,} creates",
                    at_most=no_more,
                    goal=goal,
                ),
                Figure(
                    name=f"{name}, spread {spread}: last accepted",
                    values=[one.last_s / ideal_s for one in found],
                    unit="of the ideal",
                    at_most=at_latest,
                    goal=goal,
                ),
            ]
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("limiter", __doc__)
    options.add_argument("--creates", type=int, default=CREATES)
    options.add_argument("--seeds", type=int, default=SEEDS)
    asked = options.parse_args(argv)
    return report(measured(asked.creates, asked.seeds), check=asked.check, to=asked.json)
