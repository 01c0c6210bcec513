"""A budget holds: whatever tasks cost, and whenever they say so, it is overrun by one surprise at most."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.clock import Clock
from support.spending import World, objection, spend
from support.tables import together

from kie_async import Budget, BudgetExceeded
from kie_async.limits.budget import BudgetLedger
from kie_async.limits.prices import Charge, TakenPrices

X = Charge("m/x")


@pytest.mark.parametrize("part", range(4))
async def test_it_is_overrun_by_one_surprise_at_most_and_used(part: int, clock: Clock) -> None:
    for seed in range(part, 200, 4):
        world = World.of(seed)
        assert not (wrong := objection(world, await spend(world, clock))), f"{world}: {wrong}"


async def test_of_a_model_without_a_price_creates_go_one_at_a_time(clock: Clock) -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    await ledger.wait_for_turn(X)
    second = asyncio.create_task(ledger.wait_for_turn(X))
    await clock.advance(1.0)
    assert not second.done()

    ledger.reserve("a", X)
    ledger.leave(X)
    await clock.advance(1.0)
    assert not second.done()

    ledger.note_hold("a", 40.0)
    await clock.advance(0.1)
    assert second.done()


async def test_another_model_need_not_wait(clock: Clock) -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    await ledger.wait_for_turn(X)
    await asyncio.wait_for(ledger.wait_for_turn(Charge("m/y")), 1.0)


async def test_tasks_of_a_former_session_show_a_price_before_anything_is_created(clock: Clock) -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    ledger.restore(tasks=2, spent=0.0, prices={}, unsettled=[("a", X, None), ("b", X, None)])
    for intent_id in ("a", "b"):
        ledger.note_tracked(intent_id)
    other = asyncio.create_task(ledger.wait_for_turn(Charge("m/y", listed=1.0)))
    await clock.advance(1.0)
    assert not other.done()

    ledger.note_hold("a", 10.0)
    await clock.advance(0.1)
    assert other.done()


async def test_what_a_former_session_had_under_way_counts_by_the_table() -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    ledger.restore(tasks=1, spent=0.0, prices={}, unsettled=[("a", Charge("m/x", listed=60.0), None)])
    with pytest.raises(BudgetExceeded):
        ledger.reserve("b", Charge("m/x", listed=60.0))


@together(
    ("charge", "hold", "held"),
    [
        (Charge("m/x", audio_s=5.0), None, 10.0),
        (Charge("m/x", audio_s=5.0, reserved=12.0), None, 12.0),
        (Charge("m/x", reserved=45.0), None, 45.0),
        (Charge("m/x", reserved=12.0), None, 40.0),
        (Charge("m/x", reserved=12.0), 7.0, 7.0),
        (Charge("m/y", reserved=12.0), None, 12.0),
        (Charge("m/y"), None, 0.0),
    ],
)
def test_what_a_former_session_had_under_way_counts_as_it_did_then(
    charge: Charge, hold: float | None, held: float
) -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    prices = {"m/x": TakenPrices(40.0, per_s=2.0, longest_s=20.0)}
    ledger.restore(tasks=1, spent=0.0, prices=prices, unsettled=[("a", charge, hold)])
    assert ledger.held == held


def test_a_hold_of_a_former_session_is_a_price_of_its_model() -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    ledger.restore(tasks=2, spent=0.0, prices={}, unsettled=[("a", X, 30.0), ("b", X, None)])
    assert ledger.held == 60.0


@pytest.mark.parametrize(
    ("end", "is_free"),
    [
        (lambda ledger: ledger.release("a"), True),
        (lambda ledger: ledger.settle("a", 0.0), True),
        (lambda ledger: ledger.settle("a", 60.0), False),
        (lambda ledger: ledger.settle("a", None), False),
        (lambda ledger: ledger.note_left("a"), False),
    ],
)
async def test_what_becomes_of_a_reservation(end: object, is_free: bool) -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    ledger.restore(tasks=0, spent=0.0, prices={"m/x": TakenPrices(60.0, unmeasured=60.0)}, unsettled=[])
    ledger.reserve("a", X)
    end(ledger)  # type: ignore[operator]
    with contextlib.nullcontext() if is_free else pytest.raises(BudgetExceeded):
        ledger.reserve("b", X)


def test_the_error_has_the_numbers() -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    taken = TakenPrices(30.0, unmeasured=30.0)
    ledger.restore(tasks=3, spent=60.0, prices={"m/x": taken}, unsettled=[("a", X, None)])
    with pytest.raises(BudgetExceeded) as caught:
        ledger.reserve("b", X)
    assert (caught.value.budget, caught.value.spent, caught.value.held) == (100.0, 60.0, 30.0)


def test_a_zero_while_it_runs_is_no_price() -> None:
    ledger = BudgetLedger(Budget(credits=100.0))
    ledger.reserve("a", Charge("m/tokens"))
    assert not ledger.note_hold("a", 0.0)
    assert ledger.wants_price("a")
