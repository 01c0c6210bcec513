"""Measures what a session itself costs: everything but aiohttp and the network, in CPU time of a process.

The real engine runs on a stub in the place of aiohttp's client session: bodies are encoded, the gate
is passed, answers are read, judged and decoded, the poller ticks, handles settle. The bare calls of the
stub are subtracted. A minimal prototype that checks nothing runs beside it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Self
from unittest.mock import patch

import aiohttp
import attrs
from yarl import URL

from kie_async import KieSession, Limits, PollSchedule, Rate
from kie_async.creating.send_gate import OneShotBody

from .decode import BODIES, TASK, plain, readers
from .measuring import Figure, alternating, cpu_s, parser, report

TASKS, PENDING, ROUNDS = 500, 10, 12
CONNECTIONS, POLL_S = 64, 0.1
MANY = Rate(1_000_000, per_s=0.001)
BARS_US, GOALS_US = (95.0, 16.0), (45.0, 12.0)
"""Of a task, and of a further poll."""
_ids = itertools.count()


@attrs.define
class Answer:
    """What aiohttp would have received."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = attrs.Factory(dict)

    @property
    def content(self) -> Self:
        return self

    def at_eof(self) -> bool:
        return not self.body

    async def readany(self) -> bytes:
        body, self.body = self.body, b""
        return body


@attrs.define
class Exchange:
    """One request on its way: a turn of the loop, the sealed body that aiohttp would write, an answer."""

    body: bytes
    sealed: Any = None

    async def __aenter__(self) -> Answer:
        await asyncio.sleep(0)
        if self.sealed is not None and self.sealed.size:  # asked for, as a request has to
            await self.sealed.write(self)
        return Answer(self.body)

    async def __aexit__(self, *_: object) -> None:
        pass

    async def write(self, _: bytes) -> None:
        """Be the socket."""


class Http:
    """Stands where aiohttp's client session stands; each task ends after so many pending answers."""

    closed = False

    def __init__(self, pending: int) -> None:
        self._pending = pending
        self._asked: dict[str, int] = {}

    def post(self, url: object, *, data: Any = None, **_: object) -> Exchange:
        name = f"{next(_ids):032x}"
        sealed = data if isinstance(data, OneShotBody) else None
        return Exchange(b'{"code":200,"msg":"success","data":{"taskId":"%s"}}' % name.encode(), sealed)

    def request(self, method: str, url: object, **_: object) -> Exchange:
        name = url.raw_query_string[7:] if isinstance(url, URL) else str(url)[-32:]
        asked = self._asked[name] = self._asked.get(name, 0) + 1
        body = BODIES["pending record" if asked <= self._pending else "success record"]
        return Exchange(body.replace(TASK.encode(), name.encode()))

    async def close(self) -> None:
        pass


async def _read(exchange: Exchange) -> bytes:
    async with exchange as answer:
        return await answer.content.readany()


# --- three ways to run so many tasks --------------------------------------------------------------


async def bare(http: Http) -> None:
    """Make the calls that tasks need, and nothing else."""

    async def one() -> None:
        created = await _read(http.post(""))
        name = created[-35:-3].decode()
        while b'"success","resultJson"' not in await _read(http.request("GET", name)):
            pass

    await asyncio.gather(*[one() for _ in range(TASKS)])


class Prototype:
    """The least that gives a handle per task and polls with one heap."""

    def __init__(self, http: Http, loads: Callable[[Any], Any]) -> None:
        self._http = http
        self._loads = loads
        self._heap: list[tuple[float, str]] = []
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._room = asyncio.Semaphore(CONNECTIONS)

    async def run(self, prompt: str) -> Any:
        body = json.dumps({"model": "sandbox/echo", "input": {"prompt": prompt}}).encode()
        async with self._room:
            answer = self._loads(
                await _read(self._http.post("https://api.example.org/createTask", data=body))
            )
        name = answer["data"]["taskId"]
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (time.monotonic() + POLL_S, name))
        return await future

    async def poll(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            now, due = time.monotonic(), []
            while self._heap and self._heap[0][0] <= now:
                due.append(heapq.heappop(self._heap)[1])
            names = iter(due)
            await asyncio.gather(*[self._poll_each(names) for _ in range(min(CONNECTIONS, len(due)))])

    async def _poll_each(self, names: Any) -> None:
        for name in names:
            record = plain(self._loads, await _read(self._http.request("GET", f"recordInfo?taskId={name}")))
            if record.state in ("success", "fail"):
                self._waiting.pop(name).set_result(record)
            else:
                heapq.heappush(self._heap, (time.monotonic() + POLL_S, name))


async def prototype(http: Http) -> None:
    """Run the tasks with the prototype."""
    made = Prototype(http, list(readers().values())[-1])
    polling = asyncio.create_task(made.poll())
    await asyncio.gather(*[made.run("hi") for _ in range(TASKS)])
    polling.cancel()


async def library(http: Http) -> None:
    """Run the tasks with a session whose HTTP sessions are stubs."""
    session = KieSession(
        "a-key",
        base_url="https://api.example.org",
        max_in_flight=TASKS + 1,
        limits=Limits(create=MANY, query=MANY, create_connections=CONNECTIONS, query_connections=CONNECTIONS),
        poll=PollSchedule.fixed(POLL_S),
    )
    with patch.object(aiohttp, "ClientSession", lambda **_: http):
        await session.open()
    async with aclosing(session) as kie:
        results = await asyncio.gather(*[kie.run("sandbox/echo", {"prompt": "hi"}) for _ in range(TASKS)])
        assert all(result.urls for result in results)


# --- figures ---------------------------------------------------------------------------------------


async def measured(rounds: int) -> list[Figure]:
    """Return the cost of a task and of each further pending poll, the stub's own calls taken off."""
    ways = {"bare": bare, "prototype": prototype, "library": library}

    def costs(way: Callable[[Http], Awaitable[None]], pending: int) -> Callable[[], Awaitable[float]]:
        async def work() -> float:
            return await cpu_s(lambda: way(Http(pending))) / TASKS * 1e6

        return work

    found = await alternating(
        {f"{name} {pending}": costs(way, pending) for name, way in ways.items() for pending in (0, PENDING)},
        rounds=rounds,
    )

    def over_bare(name: str) -> tuple[list[float], list[float]]:
        first, more = (
            [ours - theirs for ours, theirs in zip(found[f"{name} {n}"], found[f"bare {n}"], strict=True)]
            for n in (0, PENDING)
        )
        return first, [(last - start) / PENDING for start, last in zip(first, more, strict=True)]

    figures = [Figure(name="the stub alone", values=found["bare 0"], unit="us a task")]
    medians = {}
    for name in ("prototype", "library"):
        task, poll = over_bare(name)
        whole = f"{name}: create, one poll, await"
        figures.append(Figure(name=whole, values=task, unit="us a task"))
        figures.append(Figure(name=f"{name}: a further pending poll", values=poll, unit="us"))
        medians[name] = figures[-2].median, figures[-1].median
    return [*figures[:-2], *map(_judged, figures[-2:], BARS_US, GOALS_US, medians["prototype"])]


def _judged(figure: Figure, bar_us: float, goal_us: float, least_us: float) -> Figure:
    """Return a figure with its bar and its goal: so many microseconds, or 1.3 times the prototype's."""
    goal_us = max(goal_us, 1.3 * least_us)
    return attrs.evolve(figure, at_most=max(bar_us, goal_us), aims_at=goal_us, goal="P3")


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("overhead", __doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    asked = options.parse_args(argv)
    return report(asyncio.run(measured(asked.rounds)), check=asked.check, to=asked.json)
