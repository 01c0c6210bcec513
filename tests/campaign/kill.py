"""Kills a batch again and again, runs it again with the same journal: nothing is paid twice, nothing lost.

``python -m tests.campaign kill --restarts 200`` runs a worker against the sandbox in another process,
through a proxy that can kill on the wire, SIGKILLs it at random and at every named point of the create
path, lets it come to its end, and compares journal and sandbox. The exit status is 1 if they disagree.
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
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import attrs
from support.loops import ASKED_FOR, add_option, run_on
from support.ports import free_port

from kie_async.sandbox.bodies import signature_headers

from ._kill_worker import CONNECTIONS, HMAC_KEY, POINTS

ROOT = Path(__file__).parent.parent.parent
WIRE_POINTS = ("wire.first byte", "wire.body arrived", "wire.answer on its way", "wire.half the answer")
ALL_POINTS = (*POINTS, *WIRE_POINTS)
_RARE = ("ended", "adopted", "claim", "event.unknown", "event.adopted")
"""Points that only a lost answer leads to."""
_PATIENCE_S = 2.0
_FAULTS = {"lose_answer": 0.04, "drop_callbacks": 0.25, "duplicate_callbacks": 1, "early_callback": 0.1}
_NO_FAULTS = {"lose_answer": 0.0, "drop_callbacks": 0.0, "duplicate_callbacks": 0, "early_callback": 0.0}
_STATES = {"success": "SUCCEEDED", "fail": "FAILED"}
_ENDED = tuple(_STATES.values())
_AT_ONCE = 60
"""Refs that a run is asked for and that were not begun before."""


@attrs.define
class Row:
    """What the journal says of one intent."""

    ref: str
    state: str
    task_id: str
    adopted_by: str
    sends: int


class Proxy:
    """Stands between worker and sandbox, and kills the worker at a point of the wire."""

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.removeprefix("http://").partition(":")
        self._port = int(port)
        self.point, self.nth = "", 0
        self.kill: Any = None
        self._serving: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def _strikes(self, point: str) -> bool:
        if point != self.point:
            return False
        self.nth -= 1
        if self.nth:
            return False
        self.kill(point)
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving
        self._serving.add(serving)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.read(65536)
            if b"/createTask " in first[:60]:
                await self._create(first, reader, writer)
            elif first:
                server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
                server_writer.write(first)
                await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))
        writer.close()
        self._serving.discard(serving)

    async def _create(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._strikes("wire.first byte"):
            return
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        server_writer.write(request + await reader.readexactly(length - len(body)))
        self._strikes("wire.body arrived")
        answer = await server_reader.read(1)  # it never closes before it has judged the body
        while answer and not _is_complete(answer) and (more := await server_reader.read(65536)):
            answer += more
        server_writer.close()
        if answer and not self._strikes("wire.answer on its way"):
            writer.write(answer[: len(answer) // 2])
            await writer.drain()
            if not self._strikes("wire.half the answer"):
                writer.write(answer[len(answer) // 2 :])
                await writer.drain()


def _is_complete(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    return bool(end) and len(body) >= int(length or 0)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@attrs.define
class Report:
    """What the campaign counted and what it found wrong."""

    restarts: int = 0
    kills: Counter[str] = attrs.field(factory=Counter)
    counts: dict[str, int] = attrs.field(factory=dict)
    wrong: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        at_random = self.kills["at random"]
        named = {point: self.kills[point] for point in ALL_POINTS if self.kills[point]}
        lines = [
            f"restarts                      {self.restarts}  ({self.seconds:.0f} s)",
            f"killed at random              {at_random}",
            f"killed at a named point       {sum(named.values())}  ({len(named)} points)",
            *(f"  {point:<28}{count}" for point, count in named.items()),
            f"point not reached, killed     {self.kills['not reached']}",
            f"came to its end               {self.kills['ended']}",
            *(f"{name:<30}{count}" for name, count in self.counts.items()),
            *(f"WRONG: {what}" for what in self.wrong),
            "FAILED" if self.wrong else "all is well",
        ]
        return "\n".join(lines)


class Campaign:
    """One journal, one sandbox, one worker that is killed so many times."""

    def __init__(self, folder: Path, *, restarts: int, seed: int, loop: str) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._restarts = restarts
        self._loop = loop
        self._journal = folder / "run.db"
        self._next_ref = 0
        self._asked: set[str] = set()
        self._begun: set[str] = set()
        self._delivered: set[str] = set()
        """Tasks whose callback was answered with 200 while the journal did not know their id."""
        self._report = Report(restarts=restarts)
        self._http: aiohttp.ClientSession
        self._sandbox_url = ""
        self._proxy: Proxy
        self._worker: asyncio.subprocess.Process
        self._port = free_port()

    async def run(self) -> Report:
        """Return what happened."""
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            self._sandbox_url = await stack.enter_async_context(_sandbox(self._folder))
            self._http = await stack.enter_async_context(aiohttp.ClientSession())
            self._proxy = await stack.enter_async_context(Proxy(self._sandbox_url))
            self._worker = await stack.enter_async_context(
                _process(
                    "-m", "tests.campaign._kill_worker", stdin=asyncio.subprocess.PIPE, env=_with_tests()
                )
            )
            for number in range(self._restarts):
                await self._restart(self._plan(number))
            await self._come_to_the_end()
            await self._verify()
        self._report.seconds = time.monotonic() - began
        return self._report

    def _plan(self, number: int) -> str:
        """Return where to die: all points in turn, and every third time anywhere."""
        if number % 3 == 2:
            return ""
        turn = number - number // 3
        if turn % len(ALL_POINTS) == 0:
            self._points = self._rng.sample(ALL_POINTS, len(ALL_POINTS))
        return self._points[turn % len(ALL_POINTS)]

    # --- one run -------------------------------------------------------------------------------

    async def _restart(self, point: str) -> None:
        is_rare = point.startswith(_RARE)
        await self._set_faults({**_FAULTS, "lose_answer": 0.25} if is_rare or not point else _FAULTS)
        nth = 1 if is_rare or point.startswith("open") else self._rng.randint(1, 12)
        killed = ""

        def kill(where: str) -> None:
            nonlocal killed
            killed = killed or where
            os.kill(pid, signal.SIGKILL)

        self._proxy.point, self._proxy.nth, self._proxy.kill = point, nth, kill
        pid = await self._start(self._refs(), point, nth)
        wait_s = _PATIENCE_S if point else self._rng.uniform(0.0, 0.5)
        reading = asyncio.create_task(self._news_until("over"))
        calling = asyncio.create_task(self._call_back_until(reading))
        done, _ = await asyncio.wait({reading}, timeout=wait_s)
        if not done:
            await self._call_back_unbound()  # in the very moment before
            kill("not reached" if point else "at random")
        news = await reading
        await calling
        await self._reap(killed or news.get("died", ""), news)

    async def _start(self, refs: list[str], point: str = "", nth: int = 0) -> int:
        job = {
            "url": self._proxy.url,
            "port": self._port,
            "journal": str(self._journal),
            "seen": str(self._folder / "seen.jsonl"),
            "log": str(self._folder / "worker.log"),
            "refs": refs,
            "point": point,
            "nth": nth,
            "loop": self._loop,
        }
        self._write(json.dumps(job))
        self._asked.update(refs)
        return int((await self._news_until("pid"))["pid"])

    async def _reap(self, killed: str, news: dict[str, Any]) -> None:
        """Let the dead go, and check what they left."""
        self._proxy.point = ""
        self._write("")
        status = (await self._news_until("exit"))["exit"]
        if status == 0:
            killed = ""  # it was faster
        self._report.kills[killed or "ended"] += 1
        if status != (-signal.SIGKILL if killed else 0):
            self._wrong(f"the worker ended with {status}, see {self._folder / 'worker.log'}")
        rows = self._rows()
        on_the_wire = sum(row.state == "SENDING" for row in rows)
        if on_the_wire > CONNECTIONS:
            self._wrong(f"{on_the_wire} creates were on the wire at once")
        self._begun.update(row.ref for row in rows)
        bound = {row.task_id for row in rows}
        claimed = {task_id for (task_id,) in self._select("SELECT task_id FROM claim")}
        if lost := self._delivered - bound - claimed:
            self._wrong(f"answered with 200, and nowhere in the journal after a kill: {sorted(lost)}")
        counts = self._report.counts
        counts["only claimed after a kill"] = counts.get("only claimed after a kill", 0) + len(claimed)
        self._report.counts["unknown left by a kill"] = (
            self._report.counts.get("unknown left by a kill", 0) + on_the_wire
        )

    def _refs(self) -> list[str]:
        """Return what the next run is asked for: what is not at its end, some that is, and new ones."""
        rows = [row for row in self._rows() if row.ref]
        ended = [row.ref for row in rows if row.state in _ENDED]
        waiting = [row.ref for row in rows if row.state not in (*_ENDED, "UNKNOWN")]
        unknown = [row.ref for row in rows if row.state == "UNKNOWN"]
        untouched = sorted(self._asked - self._begun)
        while len(untouched) < _AT_ONCE:
            untouched.append(f"ref-{self._next_ref}")
            self._next_ref += 1
        refs = {*self._some(ended, 20), *waiting, *self._some(unknown, 10), *untouched}
        return self._rng.sample(sorted(refs), len(refs))

    def _some(self, refs: list[str], count: int) -> list[str]:
        return self._rng.sample(refs, min(count, len(refs)))

    # --- the end -------------------------------------------------------------------------------

    async def _come_to_the_end(self) -> None:
        """Let the batch of all refs run to its end, while the callbacks flow that never arrived."""
        await self._set_faults(_NO_FAULTS)
        await self._start(sorted(self._asked))
        over = asyncio.create_task(self._news_until("over"))
        missing = await self._unbound()
        while not over.done():
            for task in list(missing):
                if await self._call_back(task) == 200:
                    missing.remove(task)
            await asyncio.wait({over}, timeout=0.1)
        news = await over
        self._write("")
        if (status := (await self._news_until("exit"))["exit"]) or "stopped" in news:
            self._wrong(f"the last run ended with {status}: {news.get('stopped', '')}")
        self._report.counts["ghosts"] = news.get("ghosts", -1)

    async def _call_back_until(self, over: asyncio.Future[Any]) -> None:
        """Deliver callbacks of intents without an id now and then, so that each death meets some."""
        while not over.done():
            await self._call_back_unbound()
            await asyncio.wait({over}, timeout=0.1)

    async def _call_back_unbound(self) -> None:
        """Deliver the callbacks of ended tasks whose id the journal does not have."""
        for task in await self._unbound():
            if task["state"] in _STATES and await self._call_back(task) == 200:
                self._delivered.add(task["task_id"])

    async def _unbound(self) -> list[dict[str, Any]]:
        bound = {row.task_id for row in self._rows()}
        return [task for task in (await self._state())["tasks"] if task["task_id"] not in bound]

    async def _call_back(self, task: dict[str, Any]) -> int | None:
        """Send a callback once more, as the service does minutes after a receiver was down."""
        url = f"{self._sandbox_url}/api/v1/jobs/recordInfo?taskId={task['task_id']}"
        async with self._http.get(url, headers={"Authorization": "Bearer sandbox-key"}) as answer:
            record = (await answer.json())["data"]
        code = 200 if record["state"] == "success" else 501
        headers = signature_headers(task["task_id"], int(time.time()), hmac_key=HMAC_KEY)
        body = {"code": code, "msg": "", "data": record}
        with contextlib.suppress(aiohttp.ClientError):
            async with self._http.post(task["callback_url"], json=body, headers=headers) as answer:
                return answer.status
        return None

    async def _verify(self) -> None:
        """Compare what the journal says with what the sandbox did."""
        state = await self._state()
        rows = self._rows()
        truth = {task["task_id"]: task for task in state["tasks"]}
        paid = Counter(task["input"]["prompt"] for task in truth.values())
        bound = {row.task_id: row for row in rows if row.task_id}
        unknown = [row for row in rows if row.state == "UNKNOWN"]
        double = [ref for ref, count in paid.items() if count > 1]
        lost = [task_id for task_id in truth if task_id not in bound]
        for name, refs in (("double", double), ("lost", lost)):
            if refs:
                self._wrong(f"{name}: {refs}")
        for task_id, row in bound.items():
            if task_id not in truth or truth[task_id]["input"]["prompt"] != row.ref:
                self._wrong(f"{row} is bound to a task that is not its own")
            elif row.state != _STATES.get(truth[task_id]["state"]):
                self._wrong(f"{row} is not what became of {truth[task_id]}")
        for row in rows:
            if row.state not in (*_ENDED, "UNKNOWN", "NOT_CREATED") or (row.sends > 1):
                self._wrong(f"{row} is not at its end")
        if refs := self._asked - {row.ref for row in rows}:
            self._wrong(f"never begun: {sorted(refs)}")
        if state["counts"].get("create.bodies", 0) != len(truth):
            self._wrong(f"{state['counts']['create.bodies']} bodies made {len(truth)} tasks")
        self._verify_seen({row.ref: row for row in rows if row.ref})
        self._report.counts |= {
            "refs": len(self._asked),
            "server tasks": len(truth),
            "bound to their one ref": sum(
                bound[t].ref == task["input"]["prompt"] for t, task in truth.items() if t in bound
            ),
            "answers lost by the server": state["counts"].get("create.lost", 0),
            "adopted by a callback": sum(row.adopted_by == "callback" for row in rows),
            "unknown, not created": len(unknown),
            "double": len(double),
            "lost": len(lost),
        }

    def _verify_seen(self, rows: dict[str, Row]) -> None:
        """Whatever user code has seen stands in the journal."""
        for line in (self._folder / "seen.jsonl").read_text().splitlines():
            fact = json.loads(line)
            row = rows.get(fact["ref"])
            is_known = row is not None and row.task_id == fact["task_id"]
            has_ended = "state" not in fact or row is None or row.state == _STATES[fact["state"]]
            if not is_known or not has_ended:
                self._wrong(f"user code saw {fact}, the journal says {row}")

    def _wrong(self, what: str) -> None:
        self._report.wrong.append(what)

    # --- the other processes -------------------------------------------------------------------

    def _write(self, line: str) -> None:
        assert self._worker.stdin is not None
        self._worker.stdin.write(line.encode() + b"\n")

    async def _news_until(self, key: str) -> dict[str, Any]:
        """Return all the worker says up to a key."""
        assert self._worker.stdout is not None
        news: dict[str, Any] = {}
        while key not in news:
            line = await self._worker.stdout.readline()
            news |= json.loads(line or '{"over": 1, "exit": -1, "pid": 0}')
        return news

    async def _state(self) -> dict[str, Any]:
        async with self._http.get(f"{self._sandbox_url}/sandbox/state") as answer:
            state: dict[str, Any] = await answer.json()
            return state

    async def _set_faults(self, faults: dict[str, float]) -> None:
        async with self._http.post(f"{self._sandbox_url}/sandbox/faults", json=faults) as answer:
            assert answer.status == 200, await answer.text()

    def _rows(self) -> list[Row]:
        """Return what the journal says of each intent."""
        query = "SELECT coalesce(ref, ''), state, coalesce(task_id, ''), adopted_by, sends FROM intent"
        return [Row(*row) for row in self._select(query)]

    def _select(self, query: str) -> list[Any]:
        """Read from a copy of the journal: reading the file itself would change it."""
        if not self._journal.exists():
            return []
        copy = self._folder / "copy.db"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
            if Path(f"{self._journal}{suffix}").exists():
                shutil.copyfile(f"{self._journal}{suffix}", f"{copy}{suffix}")
        db = sqlite3.connect(copy)
        try:
            return db.execute(query).fetchall()
        except sqlite3.OperationalError:  # killed before it was made, or copied in the middle of a write
            return []
        finally:
            db.close()


@contextlib.asynccontextmanager
async def _process(*arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, limit=2**26, **options
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        else:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def _sandbox(folder: Path) -> AsyncIterator[str]:
    arguments = ["--port", "0", "--no-limits", "--durations", "uniform:0.02:0.2", "--hmac-key", HMAC_KEY]
    arguments += ["--fail-rate", "0.1", "--credits", "10000000"]
    async with _process("-m", "kie_async.sandbox", *arguments) as process:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()


def _with_tests() -> dict[str, str]:
    """Return the environment of a process that imports what tests stand on."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


async def run(restarts: int, *, seed: int = 1, loop: str = ASKED_FOR) -> Report:
    """Run the campaign in a folder that is kept if something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="kie-kill-"))
    report = await Campaign(folder, restarts=restarts, seed=seed, loop=loop).run()
    if not report.wrong:
        shutil.rmtree(folder)
    return report


def main(argv: list[str]) -> int:
    """Run the campaign, print what it counted, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign kill", description=__doc__)
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    add_option(parser)
    options = parser.parse_args(argv)
    report = run_on(options.loop, run(options.restarts, seed=options.seed, loop=options.loop))
    print(report)
    return 1 if report.wrong else 0
