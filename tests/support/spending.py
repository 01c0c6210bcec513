"""A world that spends a budget: tasks of random prices, told early, late or never, and many who create."""

from __future__ import annotations

import asyncio
import random

import attrs

from kie_async import Budget, BudgetExceeded
from kie_async.limits.budget import BudgetLedger

from .clock import Clock

CREDITS = 500.0


@attrs.frozen
class World:
    """What tasks cost, and how the service tells it."""

    seed: int
    prices: dict[str, tuple[float, float]]
    """By model: the least and the most a task costs."""
    says_hold_s: float
    """So long after the create a record says the hold; infinite if only the end does."""
    failing: float
    unknown: float
    refused: float
    workers: int

    @classmethod
    def of(cls, seed: int) -> World:
        rng = random.Random(seed)
        prices = {}
        for number in range(rng.choice([1, 1, 2, 3])):
            least = rng.uniform(1.0, 25.0)
            prices[f"m/{number}"] = (least, least * rng.choice([1.0, 1.0, 1.5, 3.0]))
        return cls(
            seed=seed,
            prices=prices,
            says_hold_s=rng.choice([0.0, 0.0, 5.0, float("inf")]),
            failing=rng.choice([0.0, 0.0, 0.1, 0.5]),
            unknown=rng.choice([0.0, 0.0, 0.05]),
            refused=rng.choice([0.0, 0.05]),
            workers=rng.choice([1, 4, 20, 100]),
        )


class Account:
    """What the service takes, and the ledger beside it."""

    def __init__(self, world: World, ledger: BudgetLedger) -> None:
        self.world = world
        self.ledger = ledger
        self.rng = random.Random(world.seed)
        self.taken: dict[str, float] = {}
        """What is held or was spent, by intent."""
        self.most = 0.0
        self.count = 0

    async def work(self) -> None:
        """Create and wait, until the budget says no."""
        while True:
            self.count += 1
            intent, model = f"i{self.count}", self.rng.choice(list(self.world.prices))
            await self.ledger.wait_for_turn(model, waits_for_refunds=True)
            try:
                try:
                    self.ledger.reserve(intent, model)
                except BudgetExceeded:
                    return
                is_task = await self.create(intent, model)
            finally:
                self.ledger.leave(model)
            if is_task:
                await self.run(intent, model)

    async def create(self, intent: str, model: str) -> bool:
        await asyncio.sleep(self.rng.uniform(0.05, 0.5))
        luck = self.rng.random()
        if luck < self.world.refused:
            self.ledger.release(intent)
            return False
        least, most = self.world.prices[model]
        self.taken[intent] = self.rng.uniform(least, most)
        self.most = max(self.most, sum(self.taken.values()))
        if luck > 1 - self.world.unknown:
            self.ledger.note_left(intent)
            return False
        return True

    async def run(self, intent: str, model: str) -> None:
        runs_s, price = self.rng.uniform(20.0, 60.0), self.taken[intent]
        if self.world.says_hold_s < runs_s:
            await asyncio.sleep(self.world.says_hold_s)
            self.ledger.note_hold(intent, price)
            runs_s -= self.world.says_hold_s
        await asyncio.sleep(runs_s)
        if self.rng.random() < self.world.failing:
            self.taken[intent] = price = 0.0
        self.ledger.settle(intent, price)


async def spend(world: World, clock: Clock) -> Account:
    account = Account(world, BudgetLedger(Budget(credits=CREDITS)))
    workers = [asyncio.create_task(account.work()) for _ in range(world.workers)]
    try:
        while not all(worker.done() for worker in workers):
            await clock.advance(5.0)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return account


def objection(world: World, account: Account) -> str:
    """Return what is wrong, or nothing."""
    surprise = max(most for _, most in world.prices.values())  # at first nothing is expected
    if account.most > CREDITS + surprise + 1e-6:
        return f"{account.most:.1f} credits were held or spent, one task costs {surprise:.1f}"
    used = sum(account.taken.values())
    if used < 0.9 * CREDITS and used < CREDITS - 2 * surprise:
        return f"only {used:.1f} credits were used"
    return ""
