"""Spends budgets in thousands of random worlds, in virtual time: none is overrun by more than a surprise."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from support.clock import Clock, SteeredLoop
from support.loops import as_asked
from support.spending import World, objection, spend


async def _judge(seed: int) -> str:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    world = World.of(seed)
    wrong = objection(world, await spend(world, Clock(loop)))
    return f"{world}: {wrong}" if wrong else ""


def judge(seed: int) -> str:
    """Return what is wrong with one world, or nothing."""
    with asyncio.Runner(loop_factory=as_asked(SteeredLoop)) as runner:
        return runner.run(_judge(seed))


def main(argv: Sequence[str]) -> int:
    """Run so many seeds; a seed that fails prints the command that replays it."""
    options = argparse.ArgumentParser(prog="python -m tests.campaign budget", description=__doc__)
    options.add_argument("--seeds", type=int, default=5000)
    options.add_argument("--first", type=int, default=0, help="the first seed")
    asked = options.parse_args(argv)
    seeds = range(asked.first, asked.first + asked.seeds)
    failed = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for seed, wrong in zip(seeds, pool.map(judge, seeds, chunksize=50), strict=True):
            if wrong:
                failed += 1
                print(f"python -m tests.campaign budget --first {seed} --seeds 1: {wrong}")
    print(f"{len(seeds)} worlds, {failed} with a budget that did not hold")
    return 1 if failed else 0
