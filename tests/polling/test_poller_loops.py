"""On every loop, with tasks that begin at once or later, no more polls run than there are connections."""

from __future__ import annotations

import asyncio

import pytest
from campaign.stub import answer as record_of
from conftest import no_leaks
from support.loops import run_on
from support.misbehaving import Misbehaving, Peer, answer

from kie_async import KieSession, Limits, PollSchedule, Rate


def workers() -> int:
    return sum(task.get_name() == "kie_async poller" for task in asyncio.all_tasks())


@pytest.mark.parametrize("per_s", [100, 5000], ids=["limited", "unlimited"])
@pytest.mark.parametrize(("count", "connections"), [(10, 16), (40, 4), (150, 16)])
def test_every_task_is_polled_by_no_more_workers_than_connections(
    loop_name: str, count: int, connections: int, per_s: int
) -> None:
    seen: list[int] = []

    async def answers(peer: Peer) -> None:
        while True:
            target = (await peer.head()).split(" ")[1]
            seen.append(workers())
            await peer.send(answer(record_of(target)))

    async def work() -> None:
        limits = Limits(query=Rate(per_s, per_s=1.0), query_connections=connections)
        poll = PollSchedule.fixed(0.02)
        async with no_leaks(), Misbehaving(answers) as server:
            async with KieSession("key", base_url=server.url, limits=limits, poll=poll) as kie:
                handles = [kie.attach(f"task_{number}") for number in range(count)]
                results = await asyncio.wait_for(asyncio.gather(*handles), 20)
            assert [result.task_id for result in results] == [handle.task_id for handle in handles]
            assert 1 <= max(seen) <= connections
            assert server.connections <= connections

    run_on(loop_name, work())
