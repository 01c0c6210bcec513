"""Runs many handles on one session, over sockets: none is lost, and nothing is left of them afterwards.

``python -m tests.campaign crowd`` lets 20,000 tasks run at once, three times on the same session, and
loses a tenth of the callbacks; ``--polling`` has none at all. Counted are objects of ours that are left, the
loop's tasks, and memory: what the last crowd leaves must not add to what the one before it left. Before
each count the service closes the connections it keeps for callbacks, so that any still there is a leak.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
from support.loops import add_option, run_on

sys.path.append(str(Path(__file__).parent.parent.parent))  # the emulator is a benchmark's

from benchmarks.clients import HMAC_KEY
from benchmarks.emulator import AVATAR, AVATAR_INPUT, Emulator
from benchmarks.floor import CREATES, MANY, QUERIES, at_most, free_session
from benchmarks.measuring import OUR_CORE, pin, quantile, resident
from kie_async import CallbackReceiver, KieError, KieSession, Limits, Rate, SessionEvent, TaskHandle
from kie_async.polling.entry import PollEntry

LOST_CALLBACKS = 0.1
QUERIES_PER_S = 1500
DURATIONS = ("uniform", 60.0, 80.0)
TIMEOUT_S = 300.0
MAX_GROWTH = 1.05
WARM_UP, CLOSING_S = 500, 1.0
LEARNED = {"PollCurve"}
"""One for a model, not for a task."""


@attrs.frozen(kw_only=True)
class Traces:
    """What a crowd could leave behind in a process."""

    objects: Counter[str]
    """Of our types, but for closed entries that still stand in the wheel; and the loop's tasks."""
    resident_mib: float
    traced_mib: float

    @classmethod
    def now(cls) -> Traces:
        gc.collect()
        objects = Counter(
            type(found).__qualname__
            for found in gc.get_objects()
            if str(type(found).__module__).startswith("kie_async")
            and not (type(found) is PollEntry and found.is_closed)
        )
        objects["task of the loop"] = len(asyncio.all_tasks())
        traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
        return cls(objects=objects, resident_mib=resident() / 2**20, traced_mib=traced / 2**20)


@attrs.define
class Found:
    """What came of the crowds."""

    handles: int
    at_once: list[int] = attrs.field(factory=list)
    lost: list[str] = attrs.field(factory=list)
    lags_s: Sequence[float] = ()
    """Of the last crowd."""
    traces: list[Traces] = attrs.field(factory=list)
    by_callback: int = 0
    by_poll: int = 0
    queries: int = 0
    took_s: float = 0.0
    peak_mib: float = 0.0

    @property
    def left(self) -> Counter[str]:
        """Return what the last crowd left that was not there before the first."""
        left = self.traces[-1].objects - self.traces[0].objects
        return Counter({name: count for name, count in left.items() if name not in LEARNED})

    @property
    def growth(self) -> float:
        """Return by which factor the last crowd made memory grow."""
        return self.traces[-1].resident_mib / self.traces[-2].resident_mib

    @property
    def is_good(self) -> bool:
        is_whole = not self.lost and min(self.at_once) >= 0.95 * self.handles
        return is_whole and not self.left and self.growth <= MAX_GROWTH

    def __str__(self) -> str:
        resident = ", ".join(f"{traces.resident_mib:.1f}" for traces in self.traces)
        traced = ", ".join(f"{traces.traced_mib:.2f}" for traces in self.traces)
        return "\n".join(
            [
                f"{self.handles:,} handles, {len(self.at_once)} times; in flight at once: {self.at_once}",
                f"lost {len(self.lost)} {self.lost[:3]}; settled by callback {self.by_callback:,}, "
                f"by poll {self.by_poll:,}; {self.queries:,} queries; {self.took_s:.0f} s",
                f"known after the end: mean {sum(self.lags_s) / max(1, len(self.lags_s)):.3f} s, "
                f"p50 {quantile(self.lags_s, 0.5):.3f}, p99 {quantile(self.lags_s, 0.99):.3f}",
                f"objects left: {dict(self.left) or 'none'}",
                f"resident MiB before and after each: {resident}; peak {self.peak_mib:.1f}; "
                f"growth {self.growth:.3f}, allowed {MAX_GROWTH}",
                *([f"traced MiB before and after each: {traced}"] if self.traces[0].traced_mib else []),
            ]
        )


async def gather_crowd(
    kie: KieSession, found: Found, count: int, *, end: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Create so many, *end* them if they don't by themselves, and wait until all have ended."""
    handles: list[TaskHandle] = await at_most(
        CREATES, lambda _: kie.create(AVATAR, AVATAR_INPUT), range(count)
    )
    found.at_once.append(kie.stats().in_flight)
    if end is not None:
        await end()
    for handle in handles:
        try:
            assert handle.task_id in (await handle).urls[0]
        except KieError as exc:
            found.lost.append(f"{handle.task_id}: {exc}")


async def _traces_after(service: Emulator, closing_s: float) -> Traces:
    """Return what is left once the service has closed its connections and the loop has seen them go."""
    await service.hang_up()
    await asyncio.sleep(closing_s)
    return Traces.now()


async def run(
    count: int,
    *,
    rounds: int = 3,
    polling: bool = False,
    durations: tuple[str, float, float] = DURATIONS,
    lost_callbacks: float = LOST_CALLBACKS,
    closing_s: float = CLOSING_S,
) -> Found:
    """Let *rounds* crowds run, one after the other, on one session."""
    began, found = time.perf_counter(), Found(handles=count)
    known: dict[str, float] = {}

    def note(event: SessionEvent) -> None:
        if event.kind == "settled":
            known[event.task_id] = time.monotonic()

    receiver = CallbackReceiver([HMAC_KEY])
    limits = Limits(
        create=MANY,
        query=Rate(QUERIES_PER_S, per_s=1.0),
        create_connections=CREATES,
        query_connections=QUERIES,
    )
    settings = {"durations": durations, "hmac_key": HMAC_KEY, "callback_loss": lost_callbacks}
    async with Emulator(**settings) as service, receiver.serve("127.0.0.1", 0) as served:
        options = {} if polling else {"callback_url": served.url, "receiver": receiver}
        async with free_session(
            service.url, limits=limits, task_timeout_s=TIMEOUT_S, on_event=note, **options
        ) as kie:
            await service.set(**settings | {"durations": ("never",), "callback_loss": 0.0})
            few = min(count, WARM_UP)
            await gather_crowd(kie, Found(handles=few), few, end=service.end_all)  # opens what stays open
            found.traces.append(await _traces_after(service, closing_s))
            for _ in range(rounds):
                await service.set(**settings)
                known.clear()
                await gather_crowd(kie, found, count)
                ended = (await service.finished())["ended"]
                found.lags_s = array("d", [known[name] - at for name, at in ended.items() if name in known])
                known.clear()
                del ended
                found.traces.append(await _traces_after(service, closing_s))
            stats = kie.stats()
    found.by_callback, found.by_poll, found.queries = (
        stats.settled_by_callback,
        stats.settled_by_poll,
        stats.queries,
    )
    found.peak_mib, found.took_s = resident(at_its_peak=True) / 2**20, time.perf_counter() - began
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign crowd", description=__doc__)
    parser.add_argument("--handles", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--polling", action="store_true", help="no callbacks")
    parser.add_argument("--traced", action="store_true", help="count allocations too, which is slow")
    add_option(parser)
    options = parser.parse_args(argv)
    pin(OUR_CORE)
    if options.traced:
        tracemalloc.start()
    found = run_on(options.loop, run(options.handles, rounds=options.rounds, polling=options.polling))
    print(found)
    return 0 if found.is_good else 1
