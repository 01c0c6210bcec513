"""Kills and freezes the workers of one shared journal, and its database: nothing paid twice, nothing lost.

``python -m tests.campaign cluster --restarts 200`` runs three workers on one PostgreSQL and one account of
the sandbox. First all are asked for the same refs in one instant. Then each is killed again and again, at
random and at every named point, or frozen for longer than its lease; the database is killed and started
again; callbacks come to any worker, and some to none. In the end the service's own list decides: each task
has its ref, each ref one task, and every worker says the same of it. The exit status is 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import attrs
from aiohttp import web
from support.loops import ASKED_FOR, add_option, run_on
from support.ports import free_port
from support.postgres import PostgresServer, temporary_server

from kie_async.callbacks.address import callback_mac
from kie_async.sandbox import Sandbox, Uniform
from kie_async.sandbox.bodies import signature_headers

from ._cluster_worker import POINTS, SECRET
from ._kill_worker import HMAC_KEY
from .kill import ROOT, WIRE_POINTS, Proxy, _with_tests

WORKERS = 3
ALL_POINTS = (*POINTS, *WIRE_POINTS)
LEASE_S = 2.0
CREATES, CREATES_PER_S = 200, 5.0
"""The limit of the account: as much at once as a few seconds' deaths may take away, and soon used up."""
_RARE = ("ended", "adopted", "claim", "taken over", "event.unknown", "event.adopted", "event.taken over")
_SETTLED = {"SUCCEEDED": "success", "FAILED": "fail"}
_PATIENCE_S = 6.0
_END_PATIENCE_S = 180.0
_MOST_OPEN = 150
"""Refs that may be asked for and not at their end."""
_LOST_ON_THE_WAY = 0.05
"""The share of callbacks that the address in front of the workers loses."""
_A_SERVER_RESTART = 12
"""So many deaths of workers lie between two of the database."""
_FAULTS = {"lose_answer": 0.08, "drop_callbacks": 0.2, "duplicate_callbacks": 1, "early_callback": 0.1}


@attrs.define
class Report:
    """What the campaign counted and what it found wrong."""

    restarts: int = 0
    deaths: Counter[str] = attrs.field(factory=Counter)
    freezes: Counter[str] = attrs.field(factory=Counter)
    counts: dict[str, Any] = attrs.field(factory=dict)
    wrong: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    @property
    def points(self) -> list[str]:
        """The named points at which a worker died or froze."""
        return [point for point in ALL_POINTS if self.deaths[point] or self.freezes[point]]

    def __str__(self) -> str:
        lines = [
            f"restarts of workers           {self.restarts}  ({self.seconds:.0f} s)",
            f"killed at random              {self.deaths['at random']}",
            f"killed at a named point       {sum(self.deaths[point] for point in ALL_POINTS)}",
            f"frozen beyond the lease       {sum(self.freezes.values())}",
            *(
                f"  {point:<28}{self.deaths[point]:>3} killed {self.freezes[point]:>3} frozen"
                for point in self.points
            ),
            f"point not reached, killed     {self.deaths['not reached']}",
            *(f"{name:<30}{count}" for name, count in self.counts.items()),
            *(f"WRONG: {what}" for what in self.wrong),
            "FAILED" if self.wrong else "all is well",
        ]
        return "\n".join(lines)


@attrs.frozen
class Plan:
    """What is to become of a worker in one life."""

    point: str = ""
    """Empty for any moment."""
    nth: int = 1
    freezes: bool = False
    is_killed_frozen: bool = False

    @property
    def is_at_open(self) -> bool:
        return self.point.startswith("open")

    @property
    def number(self) -> int:
        return signal.SIGSTOP if self.freezes else signal.SIGKILL


class Post:
    """The place of one worker: the process that forks it, its port, and what it says."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, proxy: Proxy) -> None:
        self.number = number
        self.proxy = proxy
        self.port = free_port()
        self.is_up = False
        self.pid = 0
        self._process = process
        self._reported: dict[str, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            for key, value in json.loads(line).items():
                self.note(key, value)

    def note(self, key: str, value: Any) -> None:
        """Take in what the worker said, or the wire did."""
        reported = self._of(key)
        if not reported.done():
            reported.set_result(value)

    def _of(self, key: str) -> asyncio.Future[Any]:
        return self._reported.setdefault(key, asyncio.get_running_loop().create_future())

    async def start(self, job: dict[str, Any]) -> None:
        """Begin a life."""
        self._reported.clear()
        self._write(json.dumps(job))
        self.pid = await self._of("pid")

    async def first(self, *keys: str, within_s: float) -> str:
        """Return which of these is reported of first, or nothing if none is in time."""
        waiting = [self._of(key) for key in keys]
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        return next((key for key in keys if self._of(key).done()), "")

    def reported(self, key: str) -> Any:
        return self._of(key).result()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def reap(self) -> int:
        """Return how the life ended."""
        self.is_up = False
        self.proxy.point = ""
        await self._of("over")
        self._write("")
        return int(await self._of("exit"))

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def aclose(self) -> None:
        """End the process, and the worker with it."""
        if self.pid and "exit" not in self._reported:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
        self._process.kill()
        await self._process.wait()
        await self._reading


class Campaign:
    """One database, one sandbox, three workers that are killed and frozen."""

    def __init__(
        self, folder: Path, server: PostgresServer, *, restarts: int, together: int, seed: int, loop: str
    ) -> None:
        self._folder = folder
        self._server = server
        self._rng = random.Random(seed)
        self._restarts = restarts
        self._left = restarts
        self._together = together
        self._loop = loop
        self._posts: list[Post] = []
        self._points: list[str] = []
        self._asked: set[str] = set()
        self._ended: set[str] = set()
        self._answered: set[str] = set()
        """Tasks of which a callback was answered 200, and not yet looked up in the journal."""
        self._report = Report(restarts=restarts)
        self._counts: Counter[str] = Counter()
        self._db: asyncpg.Connection[asyncpg.Record] | None = None
        self._sandbox: Sandbox
        self._http: aiohttp.ClientSession
        self._address = ""

    async def run(self) -> Report:
        """Return what happened."""
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            self._sandbox = await stack.enter_async_context(
                Sandbox(
                    durations=Uniform(0.1, 1.5),
                    create_limit=(CREATES, CREATES_PER_S),
                    query_limit=None,
                    hmac_key=HMAC_KEY,
                    credits=10**7,
                )
            )
            self._http = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3.0))
            )
            self._address = await stack.enter_async_context(self._forwarding())
            for number in range(WORKERS):
                self._posts.append(await stack.enter_async_context(self._post(number)))
            stack.push_async_callback(self._disconnect)
            if self._together:
                await self._ask_together()
            if self._restarts:
                await self._strike_all()
                await self._come_to_the_end()
            await self._verify()
        self._report.seconds = time.monotonic() - began
        return self._report

    @contextlib.asynccontextmanager
    async def _post(self, number: int) -> AsyncIterator[Post]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.campaign._cluster_worker"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_with_tests(),
        )
        async with Proxy(self._sandbox.url) as proxy:
            post = Post(number, process, proxy)
            try:
                yield post
            finally:
                await post.aclose()

    # --- the same refs at once -----------------------------------------------------------------

    async def _ask_together(self) -> None:
        """Ask all workers for the same refs in one instant: each is one task, and all are told its end."""
        refs = [f"together-{number}" for number in range(self._together)]
        await asyncio.gather(*[self._start(post, Plan()) for post in self._posts])
        before, began = self._sandbox.counts["create.created"], time.monotonic()
        self._asked.update(refs)
        await asyncio.gather(*[self._ask(post, refs) for post in self._posts])
        shown = await self._until_told(refs)
        told = [ends.get(ref, {}) for ends in shown for ref in refs]
        self._report.counts |= {
            "refs asked of all at once": len(refs),
            "  tasks": self._sandbox.counts["create.created"] - before,
            "  callers told their result": f"{sum('task_id' in end for end in told)} of {len(told)}",
            "  seconds": round(time.monotonic() - began, 1),
        }
        for post in self._posts:
            await self._stop(post)
        self._verify_told(shown, refs)

    async def _until_told(self, refs: Sequence[str]) -> list[dict[str, Any]]:
        """Return what each worker's callers were told, once all were, or nothing more comes."""
        deadline = time.monotonic() + _END_PATIENCE_S
        while True:
            shown = [(await self._show(post))["ends"] for post in self._posts]
            waiting = {ref for ends in shown for ref in refs if "state" not in ends.get(ref, {})}
            unknown = {ref for ends in shown for ref in refs if ends.get(ref, {}).get("state") == "unknown"}
            if not waiting and not unknown & self._paid.keys():
                return shown
            if time.monotonic() > deadline:
                self._wrong(f"never told to their callers: {_some(waiting | unknown)}")
                return shown
            await self._call_back_unbound()
            await asyncio.sleep(0.3)

    def _verify_told(self, shown: Sequence[dict[str, Any]], refs: Sequence[str]) -> None:
        """All callers of a ref were told the same task."""
        for ref in refs:
            ends = {json.dumps(ends.get(ref), sort_keys=True) for ends in shown}
            if len(ends) > 1:
                self._wrong(f"{ref} is {' and '.join(sorted(ends))}, as different workers say")

    # --- deaths --------------------------------------------------------------------------------

    async def _strike_all(self) -> None:
        """Let every worker live and die until all deaths were died, while refs come in."""
        self._sandbox.faults.change(_FAULTS)
        feeding = [asyncio.create_task(work()) for work in (self._feed, self._inspect, self._deliver_again)]
        try:
            await asyncio.gather(*[self._live_on(post) for post in self._posts])
        finally:
            for task in feeding:
                task.cancel()
            await asyncio.wait(feeding)
        for task in feeding:
            if not task.cancelled():
                task.result()

    async def _live_on(self, post: Post) -> None:
        while self._left > 0:
            self._left -= 1
            restarts_server = self._left % _A_SERVER_RESTART == _A_SERVER_RESTART // 2
            if restarts_server:
                self._counts["restarts of the database"] += 1
            work = [self._live(post, self._plan(self._left))]
            if restarts_server:
                work.append(self._restart_server())
            await asyncio.gather(*work)

    async def _restart_server(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        await asyncio.to_thread(self._server.restart)

    def _plan(self, number: int) -> Plan:
        """Return all points in turn, and now and then any moment; every fourth time it freezes."""
        freezes, frozen = number % 4 == 3, self._rng.random() < 0.3
        if number % 4 == 1 or (freezes and number % 8 == 3):
            return Plan(freezes=freezes, is_killed_frozen=frozen)
        if not self._points:
            self._points = self._rng.sample(ALL_POINTS, len(ALL_POINTS))
        point = self._points.pop()
        is_rare = point.startswith((*_RARE, "open"))
        return Plan(point, 1 if is_rare else self._rng.randint(1, 5), freezes, frozen)

    async def _live(self, post: Post, plan: Plan) -> None:
        """Start a worker, let it come to where it dies or freezes, and reap it."""
        await self._start(post, plan)
        if not plan.is_at_open:
            await self._ask(post, self._again())
            await self._aim(post, plan)
        where = await self._strike(post, plan)
        if not plan.freezes or where == "not reached":
            self._report.deaths[where] += 1
        else:
            self._report.freezes[where] += 1
            await asyncio.sleep(LEASE_S * self._rng.uniform(1.2, 2.5))
            if plan.is_killed_frozen:
                self._report.deaths["frozen"] += 1
            else:
                self._report.deaths["after a freeze"] += 1
                post.signal(signal.SIGCONT)
                await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        with contextlib.suppress(ProcessLookupError):
            post.signal(signal.SIGKILL)
        if (status := await post.reap()) != -signal.SIGKILL:
            self._wrong(f"a worker ended with {status}, see {self._log(post)}")

    async def _start(self, post: Post, plan: Plan) -> None:
        await post.start(
            {
                "url": post.proxy.url,
                "dsn": self._server.dsn,
                "lease_s": LEASE_S,
                "creates": CREATES,
                "creates_per_s": CREATES_PER_S,
                "port": post.port,
                "callback_url": self._address,
                "seen": str(self._folder / "seen.jsonl"),
                "log": str(self._log(post)),
                "point": plan.point if plan.is_at_open else "",
                "nth": plan.nth,
                "number": plan.number,
                "loop": self._loop,
            }
        )
        if plan.is_at_open:
            return
        if await post.first("ready", "over", within_s=60.0) != "ready":
            self._wrong(f"a worker did not come up, see {self._log(post)}")
        post.is_up = True

    async def _aim(self, post: Post, plan: Plan) -> None:
        """Tell worker or wire where it ends."""

        def strike(where: str) -> None:
            post.signal(plan.number)
            post.note("died", where)

        if plan.point in WIRE_POINTS:
            post.proxy.kill, post.proxy.nth, post.proxy.point = strike, plan.nth, plan.point
        elif plan.point:
            await self._tell(post, "death", {"point": plan.point, "nth": plan.nth, "number": plan.number})

    async def _strike(self, post: Post, plan: Plan) -> str:
        """Wait for the point, or for any moment, and return where it was."""
        patience_s = _PATIENCE_S if plan.point else self._rng.uniform(0.2, 2.5)
        if await post.first("died", "over", within_s=patience_s) == "died":
            return str(post.reported("died"))
        with contextlib.suppress(ProcessLookupError):
            post.signal(plan.number)
        return "not reached" if plan.point else "at random"

    async def _stop(self, post: Post) -> None:
        """End a worker in order."""
        await self._tell(post, "over", None)
        if status := await post.reap():
            self._wrong(f"a worker that was closed ended with {status}, see {self._log(post)}")

    def _log(self, post: Post) -> Path:
        return self._folder / f"worker-{post.number}.log"

    # --- what they are asked for ---------------------------------------------------------------

    async def _feed(self) -> None:
        """Ask one, two or all workers for new refs at the same moment, again and again."""
        while True:
            up = [post for post in self._posts if post.is_up]
            if up and len(self._asked - self._ended) < _MOST_OPEN:
                refs = [f"ref-{len(self._asked) + number}" for number in range(self._rng.randint(1, 12))]
                self._asked.update(refs)
                chosen = self._rng.sample(up, self._rng.randint(1, len(up)))
                await asyncio.gather(*[self._ask(post, refs) for post in chosen])
            await asyncio.sleep(0.2)

    def _again(self) -> list[str]:
        """Return what a worker is asked for when it comes up: some that have ended, more that have not."""
        waiting, ended = sorted(self._asked - self._ended), sorted(self._ended)
        return [
            *self._rng.sample(waiting, min(60, len(waiting))),
            *self._rng.sample(ended, min(5, len(ended))),
        ]

    async def _ask(self, post: Post, refs: Sequence[str]) -> None:
        await self._tell(post, "create", refs)

    async def _tell(self, post: Post, what: str, body: Any) -> None:
        """Say something to a worker, which may die or be frozen while it hears it."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.post(f"http://127.0.0.1:{post.port}/{what}", json=body) as answer:
                await answer.read()

    async def _show(self, post: Post) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=60.0)
        async with self._http.get(f"http://127.0.0.1:{post.port}/ends", timeout=timeout) as answer:
            shown: dict[str, Any] = await answer.json()
            return shown

    # --- callbacks -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _forwarding(self) -> AsyncIterator[str]:
        """Listen where the service calls back, and pass each delivery to any worker."""
        app = web.Application()
        app.router.add_post("/kie/{intent}/{mac}", self._forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/kie"
        finally:
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self._left > 0 and self._rng.random() < _LOST_ON_THE_WAY:
            self._counts["callbacks lost on the way"] += 1
            return web.Response(status=502)
        post = self._rng.choice(self._posts)
        try:
            url = f"http://127.0.0.1:{post.port}{request.raw_path}"
            async with self._http.post(url, data=body, headers=_passed_on(request)) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status = 502
        self._counts[f"callbacks answered {status}"] += 1
        if status == 200 and not (task_id := json.loads(body)["data"]["taskId"]).startswith("made-up"):
            self._answered.add(task_id)
        return web.Response(status=status)

    async def _deliver_again(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self._call_back_unbound()

    async def _call_back_unbound(self) -> None:
        """Deliver the callbacks of tasks that the journal does not know, as the service does in time."""
        bound = {row["task_id"] for row in await self._select("SELECT task_id FROM intent")}
        late = [task for task in self._sandbox.tasks.values() if task.end_state and task.task_id not in bound]
        for task in late:
            with contextlib.suppress(ConnectionError):
                await self._sandbox.send_callback(task.task_id)

    # --- the journal ---------------------------------------------------------------------------

    async def _inspect(self) -> None:
        """Look again and again what the journal knows."""
        while True:
            await self._check_answered()
            ended = (
                "SELECT coalesce(ref, former_ref) AS ref FROM intent WHERE state IN ('SUCCEEDED', 'FAILED')"
            )
            self._ended = {row["ref"] for row in await self._select(ended)}
            await asyncio.sleep(0.5)

    async def _check_answered(self) -> None:
        """Whatever was answered 200 is in the journal from that moment on."""
        answered, self._answered = self._answered, set()
        known = await self._select(
            "SELECT task_id FROM intent UNION SELECT task_id FROM claim UNION SELECT task_id FROM delivery"
        )
        if missing := answered - {row["task_id"] for row in known}:
            self._wrong(f"answered 200, and nowhere in the journal: {_some(missing)}")

    async def _select(self, query: str) -> list[asyncpg.Record]:
        """Read from the database, as soon as it is there."""
        while True:
            try:
                if self._db is None or self._db.is_closed():
                    self._db = await asyncpg.connect(self._server.dsn, timeout=5.0)
                    await self._db.execute("SET search_path = kie_async_main")
                return await self._db.fetch(query, timeout=10.0)
            except asyncpg.UndefinedTableError:
                return []
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.1)

    async def _disconnect(self) -> None:
        if self._db is not None:
            self._db.terminate()

    # --- the end -------------------------------------------------------------------------------

    async def _come_to_the_end(self) -> None:
        """Ask every worker for every ref, in peace, while the callbacks flow that never arrived."""
        self._sandbox.faults.change(dict.fromkeys(_FAULTS, 0))
        await asyncio.gather(*[self._start(post, Plan()) for post in self._posts])
        refs = sorted(self._asked)
        await asyncio.gather(*[self._ask(post, refs) for post in self._posts])
        shown = await self._until_told(refs)
        self._verify_told(shown, refs)
        await self._check_answered()
        await self._verify_addresses()
        for post in self._posts:
            troubles = (await self._show(post))["troubles"]
            self._counts.update({f"last life, {name}": count for name, count in troubles.items()})
            await self._stop(post)

    async def _verify_addresses(self) -> None:
        """The address of each create that nothing is known of still takes what the service may say."""
        for row in await self._select("SELECT intent_id FROM intent WHERE state = 'UNKNOWN'"):
            intent_id, task_id = row["intent_id"], f"made-up-{row['intent_id'][:20]}"
            url = f"{self._address}/{intent_id}/{callback_mac(intent_id, secret=SECRET.encode())}"
            headers = signature_headers(task_id, int(time.time()), hmac_key=HMAC_KEY)
            body = {"code": 200, "msg": "", "data": {"taskId": task_id, "state": "success"}}
            async with self._http.post(url, json=body, headers=headers) as answer:
                if answer.status != 200:
                    self._wrong(f"the address of unknown intent {intent_id} answers {answer.status}")

    async def _verify(self) -> None:
        """Compare what the journal says with what the service did."""
        columns = (
            "coalesce(ref, former_ref) AS ref, state, coalesce(task_id, '') AS task_id, adopted_by, sends"
        )
        rows = await self._select(f"SELECT {columns} FROM intent")  # noqa: S608
        tasks, counts = self._sandbox.tasks, self._sandbox.counts
        bound = {row["task_id"]: row for row in rows if row["task_id"]}
        unknown = [row["ref"] for row in rows if row["state"] == "UNKNOWN"]
        found = {
            "double": [ref for ref, count in self._paid.items() if count > 1],
            "lost": [task_id for task_id in tasks if task_id not in bound],
            "refs with two tasks": [
                ref for ref, count in Counter(row["ref"] for row in bound.values()).items() if count > 1
            ],
            "created, and still unknown": [ref for ref in unknown if ref in self._paid],
            "never begun": sorted(self._asked - {row["ref"] for row in rows}),
        }
        for name, refs in found.items():
            if refs:
                self._wrong(f"{name}: {_some(refs)}")
        for row in rows:
            self._verify_row(row, row["task_id"] and tasks.get(row["task_id"]))
        for name in ("create.429", "create.bodies"):
            if counts[name] != {"create.429": 0, "create.bodies": len(tasks)}[name]:
                self._wrong(f"{name}: {counts[name]}")
        # Last those with a task: of one that surely was not created the ref has passed on.
        self._verify_seen({row["ref"]: row for row in sorted(rows, key=lambda row: bool(row["task_id"]))})
        self._verify_logs()
        self._report.counts |= {
            "refs": len(self._asked),
            "server tasks": len(tasks),
            "bound to their one ref": sum(
                bound[task_id]["ref"] == task.input["prompt"]
                for task_id, task in tasks.items()
                if task_id in bound
            ),
            "answers lost by the server": counts["create.lost"],
            "adopted by a callback": sum(row["adopted_by"] == "callback" for row in rows),
            "unknown, not created": len(unknown),
            "answers 429 to creates": counts["create.429"],
            **dict(sorted(self._counts.items())),
            **{name: len(refs) for name, refs in found.items()},
        }

    @property
    def _paid(self) -> Counter[str]:
        """How many tasks the service has of each ref."""
        return Counter(task.input["prompt"] for task in self._sandbox.tasks.values())

    def _verify_row(self, row: Any, task: Any) -> None:
        if row["task_id"] and (task is None or task.input["prompt"] != row["ref"]):
            self._wrong(f"{dict(row)} is bound to a task that is not its own")
        elif row["task_id"] and _SETTLED.get(row["state"]) != task.end_state:
            self._wrong(f"{dict(row)} is not what became of its task: {task.end_state}")
        elif row["state"] not in (*_SETTLED, "UNKNOWN", "NOT_CREATED"):
            self._wrong(f"{dict(row)} is not at its end")

    def _verify_seen(self, rows: dict[str, Any]) -> None:
        """Whatever user code has seen, in any life, stands in the journal."""
        for line in (self._folder / "seen.jsonl").read_text().splitlines():
            fact = json.loads(line)
            row = rows.get(fact["ref"])
            is_known = row is not None and row["task_id"] == fact["task_id"]
            if not is_known or fact.get("state", _SETTLED.get(row["state"])) != _SETTLED.get(row["state"]):
                self._wrong(f"user code saw {fact}, the journal says {row and dict(row)}")

    def _verify_logs(self) -> None:
        """No worker met an error that nobody expects."""
        for path in sorted(self._folder.glob("worker-*.log")):
            text = path.read_text()
            for word in ("Traceback", "never retrieved", "CRITICAL"):
                if word in text:
                    self._wrong(f"{word!r} in {path}")
            self._counts["frozen beyond the lease, noticed"] += text.count("longer than its lease of")

    def _wrong(self, what: str) -> None:
        self._report.wrong.append(what)


def _passed_on(request: web.Request) -> dict[str, str]:
    names = ("Content-Type", "X-Webhook-Timestamp", "X-Webhook-Signature")
    return {name: request.headers[name] for name in names if name in request.headers}


def _some(names: Any) -> str:
    """Return the first of many names."""
    names = sorted(names)
    return f"{len(names)}, such as {names[:5]}"


async def run(
    restarts: int,
    *,
    together: int,
    server: PostgresServer,
    seed: int = 1,
    loop: str = ASKED_FOR,
    say: Callable[[str], None] = print,
) -> Report:
    """Run the campaign in a folder that is kept if something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="kie-cluster-"))
    campaign = Campaign(folder, server, restarts=restarts, together=together, seed=seed, loop=loop)
    report = await campaign.run()
    if not report.wrong:
        shutil.rmtree(folder)
    else:
        (folder / "postgres.log").write_text(server.log)
        say(f"see {folder}")
    return report


def main(argv: list[str]) -> int:
    """Run the campaign, print what it counted, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign cluster", description=__doc__)
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--together", type=int, default=500, help="refs asked of all workers in one instant")
    parser.add_argument("--seed", type=int, default=1)
    add_option(parser)
    options = parser.parse_args(argv)
    with temporary_server() as server:
        report = run_on(
            options.loop,
            run(
                options.restarts,
                together=options.together,
                server=server,
                seed=options.seed,
                loop=options.loop,
            ),
        )
    print(report)
    return 1 if report.wrong else 0
