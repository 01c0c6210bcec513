"""The benchmarks measure something and judge it right: short forms of ``python -m benchmarks``."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import (
    create,
    estimate,
    estimated,
    footprint,
    latency,
    limiter,
    makespan,
    poll,
    query_speed,
    simulated,
)
from benchmarks.emulator import Emulator
from benchmarks.floor import Bare, task_id_of
from benchmarks.measuring import Figure, alternating, report
from benchmarks.schedule_sim import KINDS
from kie_async import PollSchedule
from kie_async.planning.recent_ends import RecentEnds

KIND = "log-normal 120 s, 0.42"


def of_goal(figures: list[Figure], goal: str) -> list[Figure]:
    return [figure for figure in figures if figure.goal == goal]


async def test_creates_are_measured_beside_aiohttp_alone() -> None:
    figures = await create.measured(rounds=2, chunk=8)
    assert [0 < figure.median < 3 for figure in of_goal(figures, "P2")] == [True, True]


async def test_polled_tasks_are_measured_beside_aiohttp_alone() -> None:
    figures = await poll.at_once(rounds=1, tasks=8, every_s=0.06)
    assert all(figure.median > 0 for figure in figures)
    assert len(of_goal(figures, "P1")) == 1


async def test_an_early_callback_and_one_of_a_crowd_reach_their_awaiters() -> None:
    async with Emulator() as service:
        (left, _), (_, high, _) = await latency.early(service, 4), await latency.crowd(service, 8, 1)
    assert left.is_met
    assert 0 < high.median < 5000


async def test_the_emulator_refuses_what_is_over_its_limit_and_queues_what_is_over_its_room() -> None:
    settings = {"durations": ("fixed", 60), "create_limit": (2, 60), "max_concurrent": 1}
    async with Emulator(**settings) as service, Bare(service.url) as bare:
        answers = [await bare.create() for _ in range(3)]
        ids = [task_id_of(answer) for answer in answers[:2]]
        records = [json.loads(await bare.query(task_id))["data"] for task_id in ids]
        assert [json.loads(answer)["code"] for answer in answers] == [200, 200, 429]
        assert [record["state"] for record in records] == ["generating", "waiting"]
        assert await service.end_all() == 2
        assert json.loads(await bare.query(ids[1]))["data"]["state"] == "success"


def test_the_limiter_is_measured_beside_one_that_is_refused() -> None:
    found = {figure.name: figure for figure in limiter.measured(count=60, seeds=1)}
    assert found["by sending, spread 0.6: refused"].median > 0
    assert found["ours, spread 0.6: refused"].is_met


@pytest.mark.parametrize("way", makespan.WAYS, ids=lambda way: way.name)
def test_a_makespan_is_never_shorter_than_ideal(way: makespan.Way) -> None:
    found = makespan.run(way, 40, 0)
    assert 1 <= found.ratio < 1.5


@pytest.mark.parametrize("way", query_speed.WAYS, ids=lambda way: way.name)
def test_a_speed_of_queries_finds_itself(way: query_speed.Way) -> None:
    found = query_speed.run(way, 300, 300, 0, one_way_s=0.05)
    assert found.refused <= found.polls / query_speed.ONE_REFUSED_IN
    assert (found.whole_wait_s < 5) == (not way.by_key)


def test_a_simulated_end_waits_half_a_fixed_interval_or_for_its_callback() -> None:
    kind = simulated.Lognormal(60, 0.4)
    polled = simulated.run(PollSchedule.fixed(3), kind, tasks=200, seed=0)
    called_back = simulated.run(PollSchedule(), kind, tasks=200, seed=0, lost=0.0)
    assert 1.2 < polled.wait_s < 1.8
    assert 0.85 < polled.gain < 1.15
    assert called_back.wait_s < simulated.CALLBACK_S + 0.1
    assert called_back.polls < 1


def test_what_an_install_brings_is_counted() -> None:
    assert {"aiohttp", "attrs", "yarl"} <= footprint.with_all_below(["aiohttp>=3.14"])
    assert 50_000 < footprint.wheel_bytes() < 1_000_000


async def test_things_are_measured_in_turn_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    def thing(name: str) -> float:
        turns.append(name)
        return len(turns)

    async def one() -> float:
        return thing("one")

    async def other() -> float:
        return thing("other")

    found = await alternating({"one": one, "other": other}, rounds=1)
    assert turns[:4] == ["other", "one", "one", "other"]
    assert min(found["one"]) > 2


@pytest.mark.parametrize(("value", "status"), [(1.0, 0), (2.0, 1)])
def test_check_fails_when_a_bar_is_missed(value: float, status: int, tmp_path: Path) -> None:
    figures = [Figure(name="a ratio", values=[value], unit="of it", at_most=1.5, goal="P1")]
    assert report(figures, check=False, to=None) == 0
    assert report(figures, check=True, to=tmp_path / "figures.json") == status
    missed = command.judged({"poll": json.loads((tmp_path / "figures.json").read_text()), "broken": None})
    assert len(missed["P1"]) == status
    assert missed["broken"]
    lines = command.summary(missed).splitlines()
    assert ("MISSED" in lines[0]) == bool(status)
    assert lines[1].endswith("not measured")


@pytest.mark.parametrize("way", ["no queue", "queue of 100", "600 at once", "three times as slow at once"])
def test_what_is_left_is_judged_beside_an_oracle(way: str) -> None:
    cell = estimate.Cell(estimate.WAYS[way], KIND)
    cell.worlds += estimate.worlds(way, KIND, range(3))
    (covered, off), (error, noise) = cell.covered(), cell.error()
    assert 0.6 < covered < 0.95
    assert 0.8 < error < 2.0
    assert 0 < off < 0.2
    assert 0 < noise < 0.5
    assert sum(world.falls for world in cell.worlds) == 0


def test_one_who_knows_the_distribution_is_as_far_off_as_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecentEnds, "curve", lambda *_: estimated.known_curve(KINDS[KIND]))
    cell = estimate.Cell(estimate.WAYS["queue of 20"], KIND)
    cell.worlds += estimate.worlds("queue of 20", KIND, range(6))
    assert cell.covered()[0] == pytest.approx(0.8, abs=0.02)
    assert cell.error()[0] == pytest.approx(1.0, abs=0.02)


def test_worlds_are_added_until_it_is_plain_on_which_side_of_its_bar_it_is() -> None:
    def cell(*errors_s: float) -> estimate.Cell:
        tenths = [100.0] * estimated.TENTHS
        worlds = [
            estimated.Found(80.0 + 0.1 * (number % 2), 100, [error_s] * estimated.TENTHS, tenths)
            for number, error_s in enumerate(errors_s)
        ]
        return estimate.Cell(estimate.WAYS["no queue"], KIND, worlds)

    assert cell(100.0, 104.0).is_settled()
    assert not cell(100.0, 118.0).is_settled()
    assert cell(*[100.0, 118.0] * 100).is_settled()


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_one_who_lacks_the_scale_alone_learns_it(scale: float) -> None:
    kind, rng = KINDS[KIND], random.Random(2)
    took_s = [kind(rng) * scale for _ in range(400)]
    assert estimated.likely_scale(kind, took_s) == pytest.approx(scale, rel=0.06)
