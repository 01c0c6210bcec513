"""The benchmarks of many handles measure something: short forms of ``python -m benchmarks``."""

from __future__ import annotations

import asyncio

from benchmarks import memory, peers, scheduler


def test_a_handle_weighs_something_and_less_than_one_that_is_awaited() -> None:
    created, awaited = (
        memory.weigh_here(kind, 200, is_traced=True) for kind in ("created", "created-awaited")
    )
    assert 100 < created < awaited


async def test_the_cost_of_a_poll_is_that_of_one_period() -> None:
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


async def test_our_rows_of_the_peers_need_no_sdk() -> None:
    ours = [entrant for entrant in peers.ENTRANTS if not entrant.package]
    load = peers.Workload(tasks=8, durations=("uniform", 0.1, 0.2), every_s=0.1)

    rows = await peers.measured(ours, [load], rounds=1, limit_s=30)

    assert [row.entrant.client for row in rows] == ["callbacks", "polling"]
    assert [row.runs[0].finished for row in rows] == [8, 8]
    assert rows[0].runs[0].requests == 1.0
    assert "| 8, all at once |" in "\n".join(peers.table(rows))


def test_twenty_thousand_queued_handles_take_two_kilobytes_each_at_most() -> None:
    assert 100 < memory.weigh_apart("queued", 20_000, is_traced=False) <= memory.QUEUED_B
