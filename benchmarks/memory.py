"""Measures the memory of a pending handle beside that of a sleeping task, each kind in fresh processes.

Counted is all that one more handle leaves in the process, but for what stood before: its request and
the id of its task. Resident memory is judged; what tracemalloc finds in fewer handles stands beside it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kie_async import CallbackReceiver, KieSession, PollSchedule, TaskHandle, TaskRequest
from kie_async.creating.create_transport import Attempt, CreateTransport
from kie_async.creating.send_gate import SendGate
from kie_async.wire.codes import CreateVerdict
from kie_async.wire.create_answers import CreateAnswer
from kie_async.wire.requests import WireRequest

from .floor import free_session
from .measuring import Figure, parser, report, resident

HANDLES = 100_000
UNAWAITED_B, AWAITED_B, QUEUED_B, OF_A_TASK = 640, 1536, 2048, 0.45
TRACED_SHARE = 10
"""Tracing is slow: so many times fewer handles."""
FAR_S = 1e9
"""No poll is due while we count."""
ROOT = Path(__file__).parent.parent


class Stub:
    """Stands where creates leave for the wire: every one is created, under the ids given."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = iter(ids)

    async def post(
        self, request: WireRequest, gate: SendGate, *, connect_within_s: float = math.inf
    ) -> Attempt:
        await gate.pass_through()
        return Attempt(answer=CreateAnswer(verdict=CreateVerdict.CREATED, task_id=next(self._ids)))


def session(count: int, **options: Any) -> KieSession:
    """Return a session with room for so many."""
    return free_session(
        "http://127.0.0.1:9",
        max_in_flight=count + 1,
        poll=PollSchedule.fixed(FAR_S),
        task_timeout_s=FAR_S,
        **options,
    )


# --- the kinds -----------------------------------------------------------------------------------

Fill = Callable[[], Awaitable[object]]
Weigh = Callable[[Fill], Awaitable[None]]


async def attached(count: int, weigh: Weigh, *, is_awaited: bool = False) -> None:
    """Handles of tasks that were created elsewhere: only polled."""
    ids = _ids(count)
    async with session(count) as kie:

        async def fill() -> object:
            return await _with_waiters([kie.attach(name) for name in ids], is_awaited=is_awaited)

        await weigh(fill)
        await _end(kie, ids)


async def created(count: int, weigh: Weigh, *, is_awaited: bool = False) -> None:
    """Handles of tasks created here, each with a callback address of its own."""
    ids = _ids(count)
    requests = [TaskRequest(model="kling/ai-avatar-pro", input={"prompt": name}) for name in ids]
    async with session(count, callback_url="http://127.0.0.1:9/kie", receiver=CallbackReceiver()) as kie:

        async def fill() -> object:
            with patch.object(CreateTransport, "post", Stub(ids).post):
                made = [await kie.create(request) for request in requests]
            return await _with_waiters(made, is_awaited=is_awaited)

        await weigh(fill)
        await _end(kie, ids)


async def queued(count: int, weigh: Weigh) -> None:
    """Handles that were given out at once and wait for the one slot there is, in a hundred lanes."""
    requests = [TaskRequest(model="kling/ai-avatar-pro", input={"prompt": name}) for name in _ids(count)]
    async with free_session("http://127.0.0.1:9", max_in_flight=1, task_timeout_s=FAR_S) as kie:

        async def fill() -> object:
            with patch.object(CreateTransport, "post", Stub(_ids(1)).post):
                running = await kie.create(requests[0])
            return running, [kie.submit(request, lane=at % 100) for at, request in enumerate(requests)]

        await weigh(fill)


async def _with_waiters(handles: list[TaskHandle], *, is_awaited: bool) -> object:
    """Let a task wait for each handle, if wanted."""
    waiting = [asyncio.create_task(_result(handle)) for handle in handles] if is_awaited else []
    await asyncio.sleep(0)
    return handles, waiting


async def sleeping(count: int, weigh: Weigh) -> None:
    """A task per handle, as most clients have it: three coroutines deep it sleeps between its polls."""
    ids = _ids(count)

    async def fill() -> object:
        tasks = [asyncio.create_task(_wait_for(name)) for name in ids]
        await asyncio.sleep(0)
        return tasks

    await weigh(fill)


KINDS: dict[str, Callable[[int, Weigh], Awaitable[None]]] = {
    "attached": attached,
    "attached-awaited": partial(attached, is_awaited=True),
    "created": created,
    "created-awaited": partial(created, is_awaited=True),
    "queued": queued,
    "sleeping": sleeping,
}
NAMES = {
    "attached": "attached handle",
    "attached-awaited": "attached handle, a task awaits it",
    "created": "created handle, callbacks on",
    "created-awaited": "created handle, a task awaits it",
    "queued": "queued handle",
    "sleeping": "a task that sleeps and polls",
}
BARS = {
    "attached": UNAWAITED_B,
    "attached-awaited": AWAITED_B,
    "created": UNAWAITED_B,
    "created-awaited": AWAITED_B,
    "queued": QUEUED_B,
}


def _ids(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


async def _end(kie: KieSession, ids: Sequence[str]) -> None:
    """Leave nothing that the close would log one by one."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    for task_id in ids:
        kie.attach(task_id).abandon()


async def _result(handle: TaskHandle) -> object:
    return await handle


async def _wait_for(task_id: str) -> object:
    return await _poll_until_done(task_id)


async def _poll_until_done(task_id: str) -> object:
    while not await _polled(task_id):
        pass
    return None


async def _polled(task_id: str) -> bool:
    await asyncio.sleep(FAR_S)
    return False


# --- the scales ----------------------------------------------------------------------------------


def traced() -> int:
    return tracemalloc.get_traced_memory()[0]


def weigh_here(kind: str, count: int, *, is_traced: bool) -> float:
    """Return the bytes a handle of this kind takes in this process."""
    found = 0.0
    scale = traced if is_traced else resident

    async def weigh(fill: Fill) -> None:
        nonlocal found
        gc.collect()
        if is_traced:
            tracemalloc.start()
        before = scale()
        kept = await fill()
        gc.collect()
        found = (scale() - before) / count
        tracemalloc.stop()
        del kept

    asyncio.run(KINDS[kind](count, weigh))
    return found


def weigh_apart(kind: str, count: int, *, is_traced: bool) -> float:
    """Return what `weigh_here` returns in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", kind, str(count), *["traced"][:is_traced]]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    return float(json.loads(printed))


def weigh_all(count: int) -> list[Figure]:
    """Return what each kind takes, and how that compares."""
    found = {kind: weigh_apart(kind, count, is_traced=False) for kind in KINDS}
    figures = [
        Figure(
            name=f"{NAMES[kind]}, resident", values=[size], unit="bytes", at_most=BARS.get(kind), goal="P6"
        )
        for kind, size in found.items()
    ]
    for kind in KINDS:
        size = weigh_apart(kind, max(1, count // TRACED_SHARE), is_traced=True)
        figures.append(Figure(name=f"{NAMES[kind]}, traced", values=[size], unit="bytes"))
    for kind in ("attached", "created"):
        ratio = found[kind] / found["sleeping"]
        name = f"{NAMES[kind]} / {NAMES['sleeping']}"
        figures.append(Figure(name=name, values=[ratio], unit="of it", at_most=OF_A_TASK, goal="P6"))
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the goals were met."""
    options = parser("memory", __doc__)
    options.add_argument("--handles", type=int, default=HANDLES)
    asked = options.parse_args(argv)
    return report(weigh_all(asked.handles), check=asked.check, to=asked.json)


if __name__ == "__main__":
    print(json.dumps(weigh_here(sys.argv[1], int(sys.argv[2]), is_traced="traced" in sys.argv)))
