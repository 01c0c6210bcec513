"""A world that spends a budget: tasks of random prices, told early, late or never, and many who create."""

from __future__ import annotations

import asyncio
import math
import random

import attrs

from kie_async import Budget, BudgetExceeded
from kie_async.limits.budget import BudgetLedger
from kie_async.limits.prices import Charge, PriceBook, TakenPrices

from .clock import Clock

CREDITS = 500.0


LONGEST_S = 15.0


@attrs.frozen
class Model:
    """What the tasks of a model cost, and what is known of that before they are sent."""

    least: float
    most: float
    """Credits for a task, or for ten seconds of its audio."""
    is_per_s: bool = False
    table: float | None = None
    """What the price table says of a task, or of ten seconds; it need not be right."""
    measured: float = 0.0
    """The share of its tasks whose audio is a local file."""

    def charge(self, name: str, audio_s: float, *, is_measured: bool) -> Charge:
        """Return what is known of the price of a task."""
        known_s = audio_s if is_measured else None
        if self.table is None:
            return Charge(name, known_s)
        if not self.is_per_s:
            return Charge(name, known_s, self.table, self.table)
        listed = None if known_s is None else self.table / 10 * math.ceil(known_s)
        return Charge(name, known_s, listed, self.table / 10 * LONGEST_S, is_per_s=True)

    def price(self, rng: random.Random, audio_s: float) -> float:
        """Return what a task costs."""
        return rng.uniform(self.least, self.most) * (math.ceil(audio_s) / 10 if self.is_per_s else 1.0)


@attrs.frozen
class World:
    """What tasks cost, and how the service tells it."""

    seed: int
    models: dict[str, Model]
    says_hold_s: float
    """So long after the create a record says the hold; infinite if only the end does."""
    failing: float
    unknown: float
    refused: float
    workers: int
    restarts_s: float
    """A crash and a new session after so long, and a second time; infinite for never."""
    keeps_ends: bool
    """Whether a new session knows what the last tasks took one by one; the journal notes it now and then."""

    @classmethod
    def of(cls, seed: int) -> World:
        rng = random.Random(seed)
        models = {}
        for number in range(rng.choice([1, 1, 2, 3])):
            least = rng.uniform(1.0, 25.0)
            models[f"m/{number}"] = Model(
                least,
                least * rng.choice([1.0, 1.0, 1.5, 3.0]),
                is_per_s=rng.random() < 0.5,
                table=rng.choice([None, least, least, least * 0.6, least * 1.5]),
                measured=rng.choice([0.0, 0.5, 1.0, 1.0]),
            )
        return cls(
            seed=seed,
            models=models,
            says_hold_s=rng.choice([0.0, 0.0, 5.0, float("inf")]),
            failing=rng.choice([0.0, 0.0, 0.1, 0.5]),
            unknown=rng.choice([0.0, 0.0, 0.05]),
            refused=rng.choice([0.0, 0.05]),
            workers=rng.choice([1, 4, 20, 100]),
            restarts_s=rng.choice([math.inf, math.inf, rng.uniform(5.0, 150.0)]),
            keeps_ends=rng.random() < 0.5,
        )

    @property
    def dearest(self) -> float:
        """The most that one task can cost."""
        longest = math.ceil(LONGEST_S) / 10
        return max(model.most * (longest if model.is_per_s else 1.0) for model in self.models.values())


class Account:
    """What the service takes, and the ledger beside it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.book = PriceBook()
        self.ledger = BudgetLedger(Budget(credits=CREDITS), self.book)
        self.rng = random.Random(world.seed)
        self.taken: dict[str, float] = {}
        """What is held or was spent, by intent."""
        self.running: dict[str, Charge] = {}
        """What a record can be read of; in a new session as the journal knows it."""
        self.charges: dict[str, Charge] = {}
        self.holds: dict[str, float] = {}
        """What the journal knows to be held."""
        self.lost: dict[str, Charge] = {}
        """What is perhaps paid."""
        self.most = 0.0
        self.count = 0
        self.surprise = 0.0
        """The most that a task cost above what was expected when its body left."""
        self.unseen = 0.0
        """What creates of unknown outcome cost above that: nobody will ever say it."""

    async def work(self) -> None:
        """Create and wait, until the budget says no."""
        while True:
            self.count += 1
            intent, name = f"i{self.count}", self.rng.choice(list(self.world.models))
            model, audio_s = self.world.models[name], self.rng.uniform(1.0, LONGEST_S)
            charge = model.charge(name, audio_s, is_measured=self.rng.random() < model.measured)
            await self.ledger.wait_for_turn(charge, waits_for_refunds=True)
            try:
                held = self.ledger.held
                try:
                    self.ledger.reserve(intent, charge)
                except BudgetExceeded:
                    return
                price = model.price(self.rng, audio_s)
                is_task = await self.create(intent, charge, price, self.ledger.held - held)
            finally:
                self.ledger.leave(charge)
            if is_task:
                await self.run(intent)

    async def create(self, intent: str, charge: Charge, price: float, expected: float) -> bool:
        await asyncio.sleep(self.rng.uniform(0.05, 0.5))
        luck = self.rng.random()
        if luck < self.world.refused:
            self.ledger.release(intent)
            return False
        self.taken[intent], self.charges[intent] = price, charge
        self.surprise = max(self.surprise, price - expected)
        self.most = max(self.most, sum(self.taken.values()))
        # Of the request the journal knows nothing but the seconds.
        is_measured = charge.audio_s is not None
        left = self.world.models[charge.model].charge(
            charge.model, charge.audio_s or 0.0, is_measured=is_measured
        )
        left = attrs.evolve(left, reserved=expected)
        if luck > 1 - self.world.unknown:
            self.unseen += max(0.0, price - expected)
            self.ledger.note_left(intent)
            self.lost[intent] = left
            return False
        self.running[intent] = left
        return True

    async def run(self, intent: str) -> None:
        runs_s, price = self.rng.uniform(20.0, 60.0), self.taken[intent]
        if self.world.says_hold_s < runs_s:
            await asyncio.sleep(self.world.says_hold_s)
            if self.ledger.note_hold(intent, price):
                self.holds[intent] = price
            runs_s -= self.world.says_hold_s
        await asyncio.sleep(runs_s)
        if self.rng.random() < self.world.failing:
            self.taken[intent] = price = 0.0
        del self.running[intent]
        self.ledger.settle(intent, price)

    def restart(self) -> None:
        """Go on in a new session, which knows what the journal has, and reads every task again."""
        unsettled = self.running | self.lost
        self.ledger, self.book = self.restored(unsettled)
        for intent in self.running:
            self.ledger.note_tracked(intent)
        above = {
            intent: self.taken[intent] - self.restored({intent: charge})[0].held
            for intent, charge in unsettled.items()
        }
        self.surprise = max(self.surprise, *above.values(), 0.0)
        self.unseen = sum(max(0.0, above[intent]) for intent in self.lost)

    def restored(self, unsettled: dict[str, Charge]) -> tuple[BudgetLedger, PriceBook]:
        settled = {i: took for i, took in self.taken.items() if i not in self.running and i not in self.lost}
        book = PriceBook()
        for name in self.world.models if self.world.keeps_ends else ():
            book.restore_ended(name, self.book.dump_ended(name))
        ledger = BudgetLedger(Budget(credits=CREDITS), book)
        ledger.restore(
            tasks=len(self.taken),
            spent=sum(settled.values()),
            prices={name: self.prices(name, settled) for name in self.world.models},
            unsettled=[(intent, charge, self.holds.get(intent)) for intent, charge in unsettled.items()],
        )
        return ledger, book

    def prices(self, name: str, settled: dict[str, float]) -> TakenPrices:
        """Return what the journal knows of the tasks of a model."""
        took = [(self.charges[i].audio_s, c) for i, c in settled.items() if self.charges[i].model == name]
        measured = [(s, price) for s, price in took if s is not None and price]
        return TakenPrices(
            credits=max((price for _, price in took), default=0.0),
            per_s=max((price / max(1.0, s) for s, price in measured), default=0.0),
            longest_s=max((s for s, _ in measured), default=0.0),
            unmeasured=max((price for s, price in took if s is None), default=0.0),
        )


async def spend(world: World, clock: Clock) -> Account:
    account = Account(world)
    tasks: list[asyncio.Task[None]] = []
    passed_s, restarts = 0.0, [world.restarts_s, 2 * world.restarts_s]
    try:
        tasks = [asyncio.create_task(account.work()) for _ in range(world.workers)]
        while not all(task.done() for task in tasks):
            await clock.advance(5.0)
            passed_s += 5.0
            if restarts and passed_s >= restarts[0]:
                del restarts[0]
                await _end(tasks)
                account.restart()
                tasks = [asyncio.create_task(account.run(intent)) for intent in list(account.running)]
                tasks += [asyncio.create_task(account.work()) for _ in range(world.workers)]
    finally:
        await _end(tasks)
    return account


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def objection(world: World, account: Account) -> str:
    """Return what is wrong, or nothing."""
    ledger, allowed = account.ledger, min(account.surprise + account.unseen, world.dearest)
    if account.most > CREDITS + allowed + 1e-6:
        return (
            f"{account.most:.1f} credits were held or spent, {allowed:.1f} more than the budget are allowed"
        )
    # What is perhaps paid counts as its expected price for good.
    used = max(sum(account.taken.values()), ledger.spent + ledger.held)
    if used < 0.9 * CREDITS and used < CREDITS - 2 * world.dearest:
        return f"only {used:.1f} credits were used, a task costs {world.dearest:.1f}"
    return ""
