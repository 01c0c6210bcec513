"""How long a batch takes at the documented limits, against the least that these limits allow.

``python -m tests.campaign makespan`` runs 5,000 jobs in virtual time: the loop's clock jumps to the next
timer, all requests go over real sockets to a service on the same loop, whose limits are exact sliding
windows over arrivals. ``--scaled 10`` runs them in real time instead, all times divided by ten, against
the sandbox and with a journal on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

import aiohttp
import attrs
from aiohttp import web
from support.clock import SteeredLoop

from kie_async import CallbackReceiver, KieSession, Limits, PollSchedule, Rate, Sandbox, TaskRequest
from kie_async.sandbox.bodies import encode_envelope, signature_headers
from kie_async.sandbox.window import Window

MAX_RATIO = 1.02
ONE_REFUSED_IN = 500
"""Queries find their own speed: so rarely may they be refused on the way."""
CREATES, CREATES_PER_S = 20, 10.0
QUERIES, QUERIES_PER_S = 10, 1.0
MANY = 100_000
MEDIAN_S, SIGMA = 120.0, 0.42
HMAC_KEY = "hmac-key-of-the-campaign"


@attrs.frozen(kw_only=True)
class Found:
    """What came of a run; times as the service would see them."""

    jobs: int
    optimum_s: float
    makespan_s: float
    refusals: int
    """Creates that were refused: none should be."""
    queries: int
    refused_queries: int
    took_s: float
    """Of real time."""

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.optimum_s

    @property
    def is_good(self) -> bool:
        is_rare = self.refused_queries * ONE_REFUSED_IN <= max(self.queries, ONE_REFUSED_IN)
        return self.ratio <= MAX_RATIO and not self.refusals and is_rare

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs in {self.makespan_s:.1f} s, optimum {self.optimum_s:.1f} s, "
            f"ratio {self.ratio:.4f} (allowed {MAX_RATIO}); {self.refusals} creates refused, "
            f"{self.queries} queries, {self.refused_queries} refused; measured in {self.took_s:.0f} s"
        )


def optimum(durations: Sequence[float], *, slots: int = MANY) -> float:
    """Return when the last job ends if each create arrives the moment window and slots let it in."""
    at = 0.0
    arrivals: deque[float] = deque(maxlen=CREATES)
    running: list[float] = []
    for duration in durations:
        if len(arrivals) == CREATES:
            at = max(at, arrivals[0] + CREATES_PER_S)
        if len(running) == slots:
            at = max(at, heapq.heappop(running))
        arrivals.append(at)
        heapq.heappush(running, at + duration)
    return max(running)


def requests(count: int) -> Iterator[TaskRequest]:
    return (TaskRequest(model="sandbox/echo", input={"prompt": str(number)}) for number in range(count))


# --- virtual time ----------------------------------------------------------------------------------


class Service:
    """The three things a batch needs of the service, on the loop's clock."""

    def __init__(self, durations: Sequence[float], *, rtt_s: float, queries: int) -> None:
        self.counts: Counter[str] = Counter()
        self._durations = iter(durations)
        self._rtt_s = rtt_s
        self._loop = asyncio.get_running_loop()
        self._windows = {
            "create": Window(CREATES, CREATES_PER_S),
            "query": Window(queries, QUERIES_PER_S),
        }
        self._ids = itertools.count(1)
        self._ends_at: dict[str, float] = {}
        self._posts: set[asyncio.Task[None]] = set()

    async def open(self, opened: AsyncExitStack) -> str:
        """Listen until *opened* closes; return the URL."""
        self._http = await opened.enter_async_context(aiohttp.ClientSession())
        app = web.Application()
        app.router.add_post("/api/v1/jobs/createTask", self._create)
        app.router.add_get("/api/v1/jobs/recordInfo", self._query)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        opened.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _judged(self, endpoint: str) -> bool:
        """Let half of the round trip pass, then ask the window."""
        await asyncio.sleep(self._rtt_s / 2)
        self.counts[endpoint] += 1
        is_admitted = self._windows[endpoint].admit(self._loop.time())
        self.counts[f"{endpoint}.429"] += not is_admitted
        return is_admitted

    async def _answer(self, data: object, code: int = 200) -> web.Response:
        await asyncio.sleep(self._rtt_s / 2)
        return web.Response(body=encode_envelope(code, "", data), content_type="application/json")

    async def _create(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        if not await self._judged("create"):
            return await self._answer(None, 429)
        task_id = f"task{next(self._ids):06d}"
        duration = next(self._durations)
        self._ends_at[task_id] = self._loop.time() + duration
        if (url := asked.get("callBackUrl")) is not None:
            self._loop.call_later(duration, self._call_back, url, task_id)
        return await self._answer({"taskId": task_id})

    async def _query(self, request: web.Request) -> web.Response:
        if not await self._judged("query"):
            return await self._answer(None, 429)
        return await self._answer(self._record(request.query["taskId"]))

    def _record(self, task_id: str) -> dict[str, object]:
        is_over = self._loop.time() >= self._ends_at[task_id]
        urls = json.dumps({"resultUrls": ["http://127.0.0.1/a.mp4"]})
        end: dict[str, object] = (
            {"state": "success", "resultJson": urls} if is_over else {"state": "generating"}
        )
        return {"taskId": task_id, "model": "sandbox/echo", "creditsConsumed": 1, **end}

    def _call_back(self, url: str, task_id: str) -> None:
        post = self._loop.create_task(self._post(url, task_id))
        self._posts.add(post)
        post.add_done_callback(self._posts.discard)

    async def _post(self, url: str, task_id: str) -> None:
        await asyncio.sleep(self._rtt_s / 2)
        headers = signature_headers(task_id, int(time.time()), hmac_key=HMAC_KEY)
        async with self._http.post(
            url, data=encode_envelope(200, "", self._record(task_id)), headers=headers
        ):
            pass


async def run_virtual(
    count: int,
    *,
    rtt_s: float,
    with_callbacks: bool,
    slots: int = 2000,
    queries: int = QUERIES,
    seed: int = 0,
) -> Found:
    """Run a batch on a loop whose clock jumps, so many jobs in flight, so many queries a second."""
    began = time.perf_counter()
    rng = random.Random(seed)
    durations = [rng.lognormvariate(math.log(MEDIAN_S), SIGMA) for _ in range(count)]
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    loop.advancing += 1
    async with AsyncExitStack() as opened:
        service = Service(durations, rtt_s=rtt_s, queries=queries)
        url = await service.open(opened)
        options: dict[str, object] = {}
        if with_callbacks:
            receiver = CallbackReceiver([HMAC_KEY])
            served = await opened.enter_async_context(receiver.serve("127.0.0.1", 0))
            options = {"receiver": receiver, "callback_url": served.url}
        session = KieSession(
            "key",
            base_url=url,
            max_in_flight=slots,
            limits=Limits(query=Rate(queries, per_s=QUERIES_PER_S)),
            rng=random.Random(seed),
            **options,  # type: ignore[arg-type]
        )
        kie = await opened.enter_async_context(session)
        start = loop.time()
        done = [outcome.ok async for outcome in kie.batch(requests(count))]
        makespan = loop.time() - start
    assert all(done)
    assert len(done) == count <= service.counts["create"]
    return Found(
        jobs=count,
        optimum_s=optimum(durations, slots=slots),
        makespan_s=makespan,
        refusals=service.counts["create.429"],
        queries=service.counts["query"],
        refused_queries=service.counts["query.429"],
        took_s=time.perf_counter() - began,
    )


# --- scaled time -----------------------------------------------------------------------------------


class Drawn:
    """Durations for the sandbox that were drawn before."""

    def __init__(self, durations: Sequence[float]) -> None:
        self._durations = iter(durations)

    def draw(self, rng: random.Random) -> float:
        return next(self._durations)


def scaled(factor: float) -> PollSchedule:
    """Return the default schedule with every time of it divided by *factor*."""
    plain = PollSchedule()
    tiers = tuple((end_s / factor, interval_s / factor) for end_s, interval_s in plain.tiers)
    return PollSchedule(
        wait_s=plain.wait_s / factor,
        first_s=plain.first_s / factor,
        tiers=tiers,
        longest_gap_s=plain.longest_gap_s / factor,
        safety_net_s=plain.safety_net_s / factor,
    )


async def run_scaled(count: int, factor: float, *, seed: int = 0) -> Found:
    """Run a batch in real time, every time of it divided by *factor*; callbacks come in."""
    began = time.perf_counter()
    rng = random.Random(seed)
    durations = [rng.lognormvariate(math.log(MEDIAN_S), SIGMA) for _ in range(count)]
    creates, queries = (CREATES, CREATES_PER_S / factor), (QUERIES, QUERIES_PER_S / factor)
    receiver = CallbackReceiver([HMAC_KEY])
    async with AsyncExitStack() as opened:
        sandbox = Sandbox(
            durations=Drawn([duration / factor for duration in durations]),
            create_limit=creates,
            query_limit=queries,
            hmac_key=HMAC_KEY,
        )
        await opened.enter_async_context(sandbox)
        served = await opened.enter_async_context(receiver.serve("127.0.0.1", 0))
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        kie = await opened.enter_async_context(
            KieSession(
                "sandbox-key",
                base_url=sandbox.url,
                callback_url=served.url,
                receiver=receiver,
                journal=f"{folder}/run.db",
                max_in_flight=2000,
                limits=Limits(create=Rate(CREATES, per_s=creates[1]), query=Rate(QUERIES, per_s=queries[1])),
                poll=scaled(factor),
            )
        )
        start = time.perf_counter()
        done = [outcome.ok async for outcome in kie.batch(requests(count))]
        makespan = time.perf_counter() - start
    assert all(done)
    assert len(done) == count == sandbox.counts["create.created"]
    return Found(
        jobs=count,
        optimum_s=optimum(durations),
        makespan_s=makespan * factor,
        refusals=sandbox.counts["create.429"],
        queries=sandbox.counts["query"],
        refused_queries=sandbox.counts["query.429"],
        took_s=time.perf_counter() - began,
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign makespan", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--rtt", type=float, default=0.1, help="seconds of a round trip (virtual time)")
    parser.add_argument("--polling", action="store_true", help="no callbacks (virtual time)")
    parser.add_argument("--scaled", type=float, metavar="FACTOR", help="real time, divided by this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.scaled:
        found = asyncio.run(run_scaled(options.jobs, options.scaled, seed=options.seed))
    else:
        work = run_virtual(
            options.jobs, rtt_s=options.rtt, with_callbacks=not options.polling, seed=options.seed
        )
        with asyncio.Runner(loop_factory=SteeredLoop) as runner:
            found = runner.run(work)
    print(found)
    return 0 if found.is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
