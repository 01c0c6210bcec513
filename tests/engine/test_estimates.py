"""A handle says how long it still takes: before and after something was learned, queued, running, done."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from conftest import OpenSession
from support.clock import Clock, settle

from kie_async import Estimate, InvalidRequest, KieSession, KlingAvatar, PollSchedule, Sandbox, TaskHandle

MODEL = "sandbox/echo"
URL = "https://example.org/a"


def estimate_of(handle: TaskHandle) -> Estimate:
    found = handle.estimate()
    assert found is not None
    return found


async def run_one(kie: KieSession, sandbox: Sandbox, clock: Clock, seconds: float) -> None:
    handle = await kie.create(MODEL, {})
    await clock.advance(seconds)
    sandbox.finish(handle.task_id)
    await clock.advance(1.0)
    await handle


@pytest.fixture
async def taught(sandbox: Sandbox, open_session: OpenSession, clock: Clock) -> KieSession:
    """Return a session with two slots that has seen five tasks of a minute."""
    kie = await open_session(poll=PollSchedule.fixed(0.5), max_in_flight=2)
    for seconds in (58.0, 59.0, 60.0, 61.0, 62.0):
        await run_one(kie, sandbox, clock, seconds)
    return kie


async def test_before_one_was_seen_the_table_says_it(kie: KieSession) -> None:
    found = estimate_of(await kie.create(KlingAvatar(image_url=URL, audio_url=URL, prompt="")))
    assert found.remaining_s == pytest.approx(300.0, rel=0.05)
    assert not found.is_learned
    assert found.low_s < found.remaining_s < found.high_s
    assert found.progress < 0.01


async def test_of_what_nobody_knows_there_is_none(kie: KieSession) -> None:
    assert (await kie.create(MODEL, {})).estimate() is None
    assert kie.attach("a" * 32).estimate() is None


async def test_what_was_seen_counts_more_than_the_table(taught: KieSession) -> None:
    handle = await taught.create(MODEL, {})
    found = estimate_of(handle)
    assert found.is_learned
    assert found.remaining_s == pytest.approx(61.0, abs=2.0)
    assert taught.expected_s(MODEL) == pytest.approx(61.0, abs=2.0)


async def test_it_goes_down_while_the_task_runs_and_progress_goes_up(
    taught: KieSession, clock: Clock
) -> None:
    handle, found = await taught.create(MODEL, {}), []
    for _ in range(6):
        found.append(estimate_of(handle))
        await clock.advance(10.0)
    remaining, progress = [each.remaining_s for each in found], [each.progress for each in found]
    assert remaining == sorted(remaining, reverse=True)
    assert progress == sorted(progress)
    assert progress[3] == pytest.approx(30.0 / 61.0, abs=0.05)


async def test_one_that_runs_on_is_never_over(taught: KieSession, clock: Clock) -> None:
    handle = await taught.create(MODEL, {})
    await clock.advance(500.0)
    found = estimate_of(handle)
    assert found.remaining_s > 0
    assert found.progress <= 0.99


async def test_one_that_is_over_has_none(taught: KieSession, sandbox: Sandbox, clock: Clock) -> None:
    handle = await taught.create(MODEL, {})
    sandbox.finish(handle.task_id)
    await clock.advance(1.0)
    await handle
    assert handle.estimate() is None


async def test_one_that_is_queued_waits_for_those_before_it(taught: KieSession, clock: Clock) -> None:
    handles = [taught.submit(MODEL, {"n": number}) for number in range(6)]
    await clock.advance(1.0)
    assert [handle.queue_position for handle in handles] == [None, None, 0, 1, 2, 3]

    waits = [estimate_of(handle).waiting_s for handle in handles]
    assert waits[:2] == [0.0, 0.0]
    assert waits[2] == pytest.approx(60.0, abs=8.0)
    assert waits[4] == pytest.approx(120.0, abs=12.0)
    assert waits == sorted(waits)
    last = estimate_of(handles[-1])
    assert last.remaining_s == pytest.approx(last.waiting_s + 61.0, abs=2.0)


async def test_progress_does_not_fall_when_the_turn_comes(
    taught: KieSession, sandbox: Sandbox, clock: Clock
) -> None:
    first, second, third = (taught.submit(MODEL, {"n": number}) for number in range(3))
    shown = [estimate_of(third).progress]
    await clock.advance(60.0)
    shown.append(estimate_of(third).progress)
    sandbox.finish(first.task_id)
    await clock.advance(2.0)
    assert third.task_id
    shown.append(estimate_of(third).progress)
    assert shown == sorted(shown)
    assert shown[-1] == pytest.approx(0.5, abs=0.1)
    assert second.task_id


async def test_what_was_learned_outlives_the_session(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    kie = await open_session(journal=tmp_path / "run.db", poll=PollSchedule(first_s=0.02))
    for _ in range(4):
        handle = await kie.create(MODEL, {})
        sandbox.finish(handle.task_id)
        await handle
    assert kie.expected_s(MODEL) is not None
    await kie.aclose()

    again = await open_session(journal=tmp_path / "run.db")
    assert estimate_of(await again.create(MODEL, {})).is_learned


async def test_nothing_is_kept_of_handles_that_are_gone(taught: KieSession) -> None:
    handle = await taught.create(MODEL, {})
    estimate_of(handle)
    handle.abandon()
    shown = taught._opened.estimates._shown  # type: ignore[union-attr]
    assert len(shown) == 1
    del handle
    await settle()
    gc.collect()
    assert len(shown) == 0


async def test_a_model_is_named_by_text(kie: KieSession) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        kie.expected_s(7)  # type: ignore[arg-type]
