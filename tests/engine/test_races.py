"""Whatever comes first: every order of what can happen to a task settles its handle once, with the truth.

Each step of an order is forced and over before the next begins: answers wait at gates, the task's end
and its callback come when told to, the loop's clock stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import permutations
from typing import Any

import attrs
import pytest
from conftest import HMAC_KEY, NO_LIMITS, Events, time_passes
from support.clock import Clock, eventually, settle
from support.tables import each

from kie_async import (
    CallbackReceiver,
    CreateOutcomeUnknown,
    KieSession,
    PollSchedule,
    Sandbox,
    TaskAbandoned,
    TaskDetached,
    TaskFailed,
    TaskHandle,
    TaskResult,
    TaskTimedOut,
)
from kie_async.sandbox import Never

POLL_S, TIMEOUT_S = 0.2, 1.0  # no other timeout is as short
SCHEDULE = PollSchedule.fixed(POLL_S, jitter=0.0)


@attrs.frozen
class Kind:
    """A way the service may call back, and how the task ended."""

    name: str
    keys: tuple[str, ...]
    truth: str

    @property
    def is_signed(self) -> bool:
        return bool(self.keys)

    @property
    def outcome(self) -> type:
        return TaskResult if self.truth == "success" else TaskFailed


SIGNED = Kind("signed", (HMAC_KEY,), "success")
DOORBELL = Kind("doorbell", (), "fail")


Order = tuple[str, ...]


def orders(*steps: str, after: dict[str, tuple[str, ...]]) -> list[Any]:
    """Return each order of *steps* in which a key of *after* precedes its values, for each kind.

    Those that begin alike share a test.
    """
    chosen = [
        order
        for order in permutations(steps)
        if all(order.index(first) < order.index(late) for first in after for late in after[first])
    ]
    return [
        pytest.param([order for order in chosen if order[0] == first], kind, id=f"{kind.name}: {first} first")
        for first in dict.fromkeys(order[0] for order in chosen)
        for kind in (SIGNED, DOORBELL)
    ]


class Race:
    """One task on its way, and each thing that can happen to it."""

    def __init__(self, kind: Kind, clock: Clock, sandbox: Sandbox) -> None:
        self.kind, self.clock, self.sandbox = kind, clock, sandbox
        self.events = Events()
        self.handle: TaskHandle | None = None
        self.awaiters: list[asyncio.Task[TaskResult]] = []
        self.closing: asyncio.Task[None] | None = None
        self.is_written_off = False
        self.create_gate = sandbox.faults.create_answer_gate = asyncio.Event()
        self.query_gate = sandbox.faults.query_answer_gate = asyncio.Event()

    async def send(self) -> None:
        """Let a create leave; the task it made ends before its answer comes."""
        self.creating = asyncio.create_task(self.kie.create("sandbox/echo", {}, timeout_s=TIMEOUT_S))
        await eventually(lambda: self.sandbox.tasks)
        (self.task_id,) = self.sandbox.tasks
        self.sandbox.finish(self.task_id, self.kind.truth)

    async def lose_answer(self) -> None:
        """Let the connection drop instead of the create's answer."""
        self.sandbox.faults.lose_answers_next = 1
        self.creating = asyncio.create_task(self.kie.create("sandbox/echo", {}, timeout_s=TIMEOUT_S))
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await self.creating
        (self.task_id,) = self.sandbox.tasks
        self.sandbox.finish(self.task_id, self.kind.truth)
        self.watch(caught.value.handle)

    async def take(self, *order: str) -> None:
        for step in order:
            await getattr(self, step)()
            await settle()

    # -- the steps --------------------------------------------------------------------------------

    async def answer(self) -> None:
        """Let the create's answer come; if somebody waits for the task then, a poll leaves."""
        self.create_gate.set()
        await asyncio.wait({self.creating})
        await eventually(lambda: "created" in self.events.kinds())
        if not self.creating.cancelled():
            self.watch(self.creating.result())
        if self.closing is not None:
            await self.closing
        elif not self.settled:
            await self.clock.advance(POLL_S + 0.06)
            await eventually(lambda: self.sandbox.counts["query"])

    async def callback(self) -> None:
        is_deaf = self.closing is not None and self.closing.done()
        assert await self.sandbox.send_callback(self.task_id) == (503 if is_deaf else 200)

    async def poll(self) -> None:
        """Let the answer come of a poll that left long ago."""
        self.query_gate.set()
        await self.clock.advance(0.06)

    async def timeout(self) -> None:
        await self.clock.advance(TIMEOUT_S + 0.1)

    async def abandon(self) -> None:
        self.handle.abandon()

    async def write_off(self) -> None:
        self.handle.write_off()
        self.is_written_off = True

    async def cancel_awaiter(self) -> None:
        self.awaiters[-1].cancel()

    async def cancel_caller(self) -> None:
        self.creating.cancel()

    async def close(self) -> None:
        """Close the session; while the create's answer is out this takes its time."""
        self.closing = asyncio.create_task(self.kie.aclose())
        if self.events:
            with time_passes():
                await self.closing

    # -- what became of it ------------------------------------------------------------------------

    def watch(self, handle: TaskHandle) -> None:
        self.handle = handle
        self.awaiters = [asyncio.create_task(handle.result()) for _ in range(2)]

    @property
    def settled(self) -> list[tuple[str, str]]:
        """Return task id and source of every settling told to the hook."""
        return [(event.task_id, event.source) for event in self.events if event.kind == "settled"]

    async def outcomes(self) -> list[type]:
        """Return the types of what the awaiters got."""
        return [type(got) for got in await asyncio.gather(*self.awaiters, return_exceptions=True)]


Start = Callable[[Kind], AbstractAsyncContextManager[Race]]


@pytest.fixture
async def start(clock: Clock, leaks: None) -> Start:
    """Return what starts a race, and closes all it needed at its end."""

    @asynccontextmanager
    async def start(kind: Kind) -> AsyncIterator[Race]:
        sandbox = Sandbox(
            durations=Never(), create_limit=None, query_limit=None, hmac_key=HMAC_KEY, callbacks=False
        )
        receiver = CallbackReceiver(kind.keys)
        stack = AsyncExitStack()
        try:
            await stack.enter_async_context(sandbox)
            served = await stack.enter_async_context(receiver.serve("127.0.0.1", 0))
            race = Race(kind, clock, sandbox)
            race.kie = KieSession(
                "sandbox-key",
                base_url=sandbox.url,
                receiver=receiver,
                callback_url=served.url,
                poll=SCHEDULE,
                limits=NO_LIMITS,
                on_event=race.events,
            )
            await stack.enter_async_context(race.kie)
            yield race
        finally:
            with time_passes():
                await stack.aclose()

    return start


def truth_of(order: Order, kind: Kind) -> tuple[type, str]:
    """Return how a handle must end, and which side must have brought the news."""
    is_answered = is_held = is_closing = False
    for step in order:
        if step == "answer":
            is_answered = True
            if is_held and kind.is_signed:
                return kind.outcome, "callback"
            if is_closing:
                return TaskDetached, ""
        elif step == "callback" and not is_answered:
            is_held = True
        elif step == "callback" and kind.is_signed:
            return kind.outcome, "callback"
        elif step == "poll":
            return kind.outcome, "callback" if is_held else "poll"
        elif step == "timeout":
            return TaskTimedOut, ""
        elif step == "abandon":
            return TaskAbandoned, ""
        elif step == "close" and is_answered:
            return TaskDetached, ""
        elif step == "close":
            is_closing = True
    raise AssertionError("nothing ends this order")


@pytest.mark.parametrize(
    ("chosen", "kind"),
    orders(
        "answer",
        "callback",
        "poll",
        "close",
        "timeout",
        "abandon",
        after={"answer": ("poll", "timeout", "abandon")},
    ),
)
async def test_what_ends_a_wait_first_ends_it_once(chosen: list[Order], kind: Kind, start: Start) -> None:
    async def check(order: Order) -> None:
        async with start(kind) as race:
            await race.take("send", *order)
            outcome, source = truth_of(order, kind)
            assert await race.outcomes() == [outcome, outcome]
            assert race.settled == [(race.task_id, source)]

    await each(chosen, check)


@pytest.mark.parametrize(
    ("chosen", "kind"),
    orders(
        "answer", "cancel_awaiter", "callback", "poll", "close", after={"answer": ("poll", "cancel_awaiter")}
    ),
)
async def test_a_cancelled_awaiter_takes_nothing_from_another(
    chosen: list[Order], kind: Kind, start: Start
) -> None:
    async def check(order: Order) -> None:
        async with start(kind) as race:
            await race.take("send", *order)
            outcome, source = truth_of(order, kind)
            kept, cancelled = await race.outcomes()
            assert kept is outcome
            assert cancelled in (outcome, asyncio.CancelledError)
            assert race.settled == [(race.task_id, source)]

    await each(chosen, check)


@pytest.mark.parametrize(
    ("chosen", "kind"),
    orders(
        "cancel_caller",
        "answer",
        "callback",
        "poll",
        "timeout",
        "close",
        after={"cancel_caller": ("answer",), "answer": ("poll", "timeout")},
    ),
)
async def test_a_task_whose_caller_was_cancelled_is_watched_to_its_end(
    chosen: list[Order], kind: Kind, start: Start
) -> None:
    async def check(order: Order) -> None:
        async with start(kind) as race:
            await race.take("send", *order)
            _, source = truth_of(order, kind)
            assert race.settled == [(race.task_id, source)]
            assert race.sandbox.counts["create"] == 1

    await each(chosen, check)


AN_ENDED_WAIT = {
    "timeout": CreateOutcomeUnknown,
    "write_off": CreateOutcomeUnknown,
    "close": CreateOutcomeUnknown,
    "abandon": TaskAbandoned,
}


def truth_of_unknown(order: Order, kind: Kind) -> tuple[type, list[str]]:
    """Return how the handle of an unknown create must end, and the sources of all that settles.

    Here "poll" is the answer to the question that the callback raised. A wait that ended before it does
    not stop the adoption, and a write-off neither: what became of the money is worth knowing.
    """
    first = next(step for step in order if step in (*AN_ENDED_WAIT, "poll"))
    if first == "poll":
        return kind.outcome, ["callback"]
    is_adopted = order.index("poll") < order.index("close")
    return AN_ENDED_WAIT[first], ["", "callback"] if is_adopted else [""]


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        *orders("callback", "poll", "close", "timeout", "abandon", after={"callback": ("poll",)}),
        *orders(
            "callback",
            "poll",
            "close",
            "write_off",
            after={"callback": ("poll",), "write_off": ("poll", "close")},
        ),
    ],
)
async def test_a_create_of_unknown_outcome_ends_once_and_is_adopted_when_a_callback_names_its_task(
    chosen: list[Order], kind: Kind, start: Start
) -> None:
    async def check(order: Order) -> None:
        async with start(kind) as race:
            await race.take("lose_answer", *order)
            outcome, sources = truth_of_unknown(order, kind)
            assert await race.outcomes() == [outcome, outcome]
            assert [source for _, source in race.settled] == sources

    await each(chosen, check)
