"""A callback that was answered with 200 is never lost, whatever its create came to and whatever comes next.

Everything is in virtual time on a model of the service; the journal is the real one, in a file.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import time_passes
from support.clock import Clock
from support.journals import as_left_by_a_crash, opened
from support.model_client import ModelClient, headers_of, tail_of
from support.model_service import ModelService, ServiceTask
from support.slow_journals import CommitGate, CommitWeather, SteadySqliteJournal
from support.tables import each

from kie_async import CreateOutcomeUnknown, KieError, ServerError, TaskHandle
from kie_async.engine.pending_creates import MAX_CLAIMS
from kie_async.journal.intents import ClaimSource, IntentState

FATES = {
    "creating": "created",
    "unknown": "lost",
    "refused": "500, created",
    "written off": "lost",
}
ENDS = ("close", "kill", "401 page", "slow recordInfo")


@attrs.define
class World:
    """The service, one journal, and one client process after the other."""

    path: Path
    is_signed: bool
    service: ModelService
    weather: CommitWeather
    client: ModelClient
    copies: int = 0

    @property
    def task(self) -> ServiceTask:
        (task,) = [task for task in self.service.tasks.values() if task.prompt == "a"]
        return task

    async def restart(self, *, is_kill: bool) -> None:
        """Begin another process with the journal that the last one left."""
        if is_kill:
            self.copies += 1
            self.path = as_left_by_a_crash(self.path, self.path.parent / f"copy{self.copies}")
            self.client.die()
        await self.client.kie.aclose()
        self.client = await open_client(self)

    async def row(self) -> Any:
        """Return the task's intent as the closed journal has it."""
        async with opened(self.path) as journal:
            return await journal.find_by_task(self.task.task_id)


async def open_client(world: World) -> ModelClient:
    gate = CommitGate(world.weather)
    journal = SteadySqliteJournal(world.path, gate)
    client = ModelClient(world.service, journal, gate, is_signed=world.is_signed)
    return await client.open()


@asynccontextmanager
async def opened_world(path: Path, *, is_signed: bool) -> AsyncIterator[World]:
    path.mkdir()  # noqa: ASYNC240
    service = ModelService(random.Random(0))
    service.is_bad, service.lasts_s = False, 0.0
    with time_passes():
        world = World(path / "run.db", is_signed, service, CommitWeather(random.Random(0)), None)  # type: ignore[arg-type]
        world.client = await open_client(world)
        try:
            yield world
        finally:
            await world.client.kie.aclose()


async def bring_to(world: World, state: str) -> asyncio.Task[Any]:
    """Let a create come as far as *state*; its task exists and has ended."""
    world.service.create_fates = [FATES[state]]
    if state == "creating":
        world.service.answer_gate = asyncio.Event()
    creating = asyncio.create_task(world.client.create("a", ref="a"))
    if state == "creating":
        await asyncio.sleep(1.0)
        return creating
    (error,) = await asyncio.gather(creating, return_exceptions=True)
    assert isinstance(error, ServerError if state == "refused" else CreateOutcomeUnknown), error
    if state == "written off":
        assert isinstance(error, CreateOutcomeUnknown)
        assert error.handle is not None
        error.handle.write_off()
        await asyncio.sleep(1.0)
    return creating


ROWS = list(product(FATES, ENDS))


@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "unsigned"])
async def test_what_was_answered_with_200_is_found_after_everything(
    is_signed: bool, clock: Clock, tmp_path: Path
) -> None:
    async def check(row: tuple[str, str]) -> None:
        state, end = row
        async with opened_world(tmp_path / f"{state} {end}", is_signed=is_signed) as world:
            creating = await bring_to(world, state)
            world.service.query_fates = {
                "401 page": ["401", "403 page"] * 10,
                "slow recordInfo": ["not yet"] * 9,
            }.get(end, ["broken"] * 50)
            verdict = await world.client.call_back(world.task)
            assert verdict.status == 200
            if end in {"close", "kill"}:
                await world.restart(is_kill=end == "kill")
                await asyncio.gather(creating, return_exceptions=True)
                world.service.query_fates.clear()
            elif world.service.answer_gate is not None:
                await asyncio.sleep(200.0)  # its answer never comes in time
                await asyncio.gather(creating, return_exceptions=True)
            await asyncio.sleep(1500.0)
            assert len(world.service.bodies) == 1
            assert (await world.client.call_back(world.task)).status in {200, 503}
            await world.client.kie.aclose()
            found = await world.row()
            assert found is not None
            ended = {"success": IntentState.SUCCEEDED, "fail": IntentState.FAILED}
            assert (found.intent_id, found.state) == (world.task.intent_id, ended[world.task.end])

    await each(ROWS, check)


async def test_a_stranger_without_keys_cannot_take_the_place_of_the_genuine_claim(
    clock: Clock, tmp_path: Path
) -> None:
    """Side by side stand the claims of one create; those that name other tasks are disproven."""
    async with opened_world(tmp_path / "x", is_signed=False) as world:
        await bring_to(world, "unknown")
        foreign = world.service.make_foreign()
        world.service.query_fates = ["broken"] * 6

        async def claim(task_id: str) -> int:
            body = (
                b'{"code": 200, "msg": "", "data": {"taskId": "%s", "state": "success"}}' % task_id.encode()
            )
            verdict = await world.client.receiver.feed(
                tail_of(world.task.intent_id), headers_of(task_id), body
            )
            return verdict.status

        assert await claim("made-up") == 200
        assert await claim(world.task.task_id) == 200
        assert await claim(foreign.task_id) == 200
        await world.restart(is_kill=True)
        claims = await world.client.journal.list_claims()  # type: ignore[union-attr]
        assert {(c.task_id, c.source) for c in claims} == {
            ("made-up", ClaimSource.UNSIGNED),
            (world.task.task_id, ClaimSource.UNSIGNED),
            (foreign.task_id, ClaimSource.UNSIGNED),
        }
        (handle,) = await world.client.kie.resume()
        assert handle.candidate_task_id
        await asyncio.sleep(60.0)
        await asyncio.wait([asyncio.create_task(_end_of(handle))])
        assert handle.task_id == world.task.task_id
        assert not await world.client.journal.list_claims()  # type: ignore[union-attr]


async def claim_task(world: World, task_id: str) -> int:
    """Claim at the address of the create, as whoever knows it may do without keys."""
    body = b'{"code": 200, "msg": "", "data": {"taskId": "%s", "state": "success"}}' % task_id.encode()
    verdict = await world.client.receiver.feed(tail_of(world.task.intent_id), {}, body)
    return verdict.status


@pytest.mark.parametrize(
    ("others_first", "hidden_s"), [(True, 10.0), (False, 60.0)], ids=["made up, genuine", "genuine, made up"]
)
async def test_a_flood_of_claims_displaces_none_that_may_be_genuine(
    others_first: bool, hidden_s: float, clock: Clock, tmp_path: Path
) -> None:
    """What was answered with 200 stays while its record may not be visible yet, and the flood goes on."""
    async with opened_world(tmp_path / "x", is_signed=False) as world:
        await bring_to(world, "unknown")
        world.service.query_fates = ["not yet"] * 1000

        async def flood(seconds: float) -> None:
            for number in range(int(seconds * 10)):
                assert await claim_task(world, f"made-up-{int(clock.now)}-{number}") in {200, 503}
                await asyncio.sleep(0.1)

        if others_first:
            await flood(5.0)
        while await claim_task(world, world.task.task_id) == 503:  # noqa: ASYNC110  (as the service does)
            await asyncio.sleep(1.0)
        await flood(hidden_s)
        world.service.query_fates.clear()
        await asyncio.sleep(300.0)
        await world.client.kie.aclose()
        found = await world.row()
        assert found is not None
        assert found.intent_id == world.task.intent_id


async def test_a_signed_claim_finds_room_among_unsigned_ones_of_a_run_without_keys(
    clock: Clock, tmp_path: Path
) -> None:
    async with opened_world(tmp_path / "x", is_signed=False) as world:
        await bring_to(world, "unknown")
        world.service.query_fates = ["403 page"] * 1000
        made_up = [await claim_task(world, f"made-up-{number}") for number in range(MAX_CLAIMS + 1)]
        assert made_up == [200] * MAX_CLAIMS + [503]
        world.is_signed = True
        await world.restart(is_kill=True)
        assert (await world.client.call_back(world.task)).status == 200
        await world.restart(is_kill=True)
        world.service.query_fates.clear()
        await asyncio.sleep(120.0)
        await world.client.kie.aclose()
        assert await world.row() is not None


async def test_claims_that_come_at_once_are_no_more_than_those_one_by_one(
    clock: Clock, tmp_path: Path
) -> None:
    async with opened_world(tmp_path / "x", is_signed=False) as world:
        await bring_to(world, "unknown")
        statuses = await asyncio.gather(*(claim_task(world, f"made-up-{number}") for number in range(100)))
        assert sorted(statuses) == [200] * MAX_CLAIMS + [503] * (100 - MAX_CLAIMS)
        assert len(await world.client.journal.list_claims()) == MAX_CLAIMS  # type: ignore[union-attr]


async def test_a_claim_that_cannot_be_noted_is_answered_with_503_and_with_200_when_it_can(
    clock: Clock, tmp_path: Path
) -> None:
    async with opened_world(tmp_path / "x", is_signed=True) as world:
        await bring_to(world, "unknown")
        world.weather.failing = 1.0
        assert (await world.client.call_back(world.task)).status == 503
        world.weather.failing = 0.0
        assert (await world.client.call_back(world.task)).status == 200


async def test_an_id_that_could_not_be_noted_is_adopted_as_soon_as_the_disk_takes_it(
    clock: Clock, tmp_path: Path
) -> None:
    async with opened_world(tmp_path / "x", is_signed=True) as world:
        world.service.answer_gate = asyncio.Event()
        creating = asyncio.create_task(world.client.create("a", ref="a"))
        await asyncio.sleep(1.0)
        world.weather.failing = 1.0
        world.service.answer_gate.set()
        (error,) = await asyncio.gather(creating, return_exceptions=True)
        assert world.task.task_id in str(error)
        world.weather.failing = 0.0
        with pytest.raises(CreateOutcomeUnknown):
            await world.client.create("a", ref="a")
        await asyncio.sleep(100.0)
        assert (await world.client.create("a", ref="a")).task_id == world.task.task_id
        assert len(world.service.bodies) == 1


async def _end_of(handle: TaskHandle) -> object:
    try:
        return await handle
    except KieError as exc:
        return exc
