"""The benchmarks of many handles measure something: short forms of ``python -m benchmarks``."""

from __future__ import annotations

import asyncio

from benchmarks import memory, scheduler


def test_a_handle_weighs_something_and_less_than_one_that_is_awaited() -> None:
    created, awaited = (memory.weigh_here(kind, 200, is_traced=True) for kind in ("created", "awaited"))
    assert 100 < created < awaited


async def test_the_cost_of_a_look_is_that_of_one_period() -> None:
    ours, theirs = await asyncio.gather(
        *[
            scheduler.cost_us(running, 50, period_s=0.3)
            for running in (scheduler.scheduler, scheduler.sleepers)
        ]
    )
    assert ours > 0
    assert theirs > 0


async def test_wake_ups_are_counted() -> None:
    assert 0 < await scheduler.wakes_per_s(50, period_s=0.3) < 1000
