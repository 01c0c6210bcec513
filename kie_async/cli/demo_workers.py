"""``kie-async demo --workers``: several processes on one PostgreSQL journal, one killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import attrs
from rich import box
from rich.console import Console
from rich.table import Table

from ..sandbox import Sandbox
from .demo_forwarder import Forwarder
from .demo_postgres import open_postgres
from .demo_service import BALANCE, CALLBACK_DELAY_S, SANDBOX_KEY, TASK_DURATIONS
from .output import count_of, format_duration, print_err
from .runtime import DONE, FAILED, CannotRun

_PATIENCE_S = 120.0

_LEAVES_WITHIN_S = 20.0

_MOST_SHOWN = 40


@attrs.frozen(kw_only=True)
class WorkersOptions:
    """What the command line chooses."""

    workers: int
    jobs: int
    seed: int


@attrs.define(kw_only=True)
class _Order:
    """One job, which every worker asks for."""

    ref: str
    task_id: str = ""
    creator: int | None = None
    heir: int | None = None
    """Who took its task over."""
    source: str = ""
    """What brought its end."""
    known_to: set[int] = attrs.field(factory=set)
    """Who has its result."""
    error: str = ""


class _Worker:
    """One process."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.is_killed = False
        self._process = process

    def write(self, line: str) -> None:
        """Give it a line."""
        assert self._process.stdin is not None  # noqa: S101  (a pipe)
        self._process.stdin.write(f"{line}\n".encode())

    async def read(self) -> dict[str, Any] | None:
        """Return what it says next; None at its end."""
        assert self._process.stdout is not None  # noqa: S101  (a pipe)
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def kill(self) -> None:
        """End it on the spot, as a crash would."""
        self.is_killed = True
        self._process.kill()

    async def leave(self) -> None:
        """Let it close its session and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_LEAVES_WITHIN_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def run_workers_demo(options: WorkersOptions, console: Console) -> int:
    """Run the whole demo and return the exit status.

    Raises:
        CannotRun: There is no PostgreSQL server to be had.
    """
    show = _Show(options, console)
    async with AsyncExitStack() as opened:
        dsn = await opened.enter_async_context(open_postgres())
        console.print("journal    a PostgreSQL server of its own")
        hmac_key, forwarder = secrets.token_hex(16), Forwarder()
        sandbox = await opened.enter_async_context(
            Sandbox(
                api_key=SANDBOX_KEY,
                durations=TASK_DURATIONS,
                seed=options.seed,
                credits=BALANCE,
                hmac_key=hmac_key,
                callback_delay_s=CALLBACK_DELAY_S,
            )
        )
        address = await opened.enter_async_context(forwarder.listen())
        console.print(f"callbacks  {address}, which leads to the {options.workers} workers in turn")
        order: dict[str, Any] = {
            "dsn": dsn,
            "key": SANDBOX_KEY,
            "hmac_key": hmac_key,
            "base_url": sandbox.url,
        }
        order |= {"callback_url": address, "jobs": options.jobs}
        workers = [
            await opened.enter_async_context(_started(number, order, options.seed))
            for number in range(1, options.workers + 1)
        ]
        await show.follow(workers, forwarder)
        show.show_end(sandbox, forwarder)
    return show.status


@asynccontextmanager
async def _started(number: int, order: dict[str, Any], seed: int) -> AsyncIterator[_Worker]:
    """Start a worker, and end it with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kie_async.cli.demo_worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Each would say that the other one is gone.
        stderr=None if os.environ.get("KIE_DEMO_LOG") else asyncio.subprocess.DEVNULL,
    )
    worker = _Worker(number, process)
    try:
        # Not as arguments: everybody on this machine could read those.
        worker.write(json.dumps(order | {"seed": seed * 1000 + number}))
        yield worker
    finally:
        await worker.leave()


class _Show:
    """Takes in what the workers say, kills one, and prints who did what."""

    def __init__(self, options: WorkersOptions, console: Console) -> None:
        self._console = console
        self._orders = {
            f"order-{number}": _Order(ref=f"order-{number}") for number in range(1, options.jobs + 1)
        }
        self._count = options.workers
        self._began = asyncio.get_running_loop().time()
        self._killed: _Worker | None = None
        self._left_behind = 0
        self.status = FAILED

    async def follow(self, workers: Sequence[_Worker], forwarder: Forwarder) -> None:
        """Let the workers work until all that live have all results.

        Raises:
            CannotRun: They do not begin, or do not come to an end.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                ready = [await worker.read() for worker in workers]
                if None in ready:
                    raise CannotRun("a worker of the demo did not start")
                forwarder.lead_to([said["port"] for said in ready if said])
                self._began = asyncio.get_running_loop().time()
                for worker in workers:
                    worker.write("go")
                await asyncio.gather(*(self._listen(worker, workers) for worker in workers))
        except TimeoutError:
            raise CannotRun(f"the workers of the demo did not finish within {_PATIENCE_S:g} s") from None

    async def _listen(self, worker: _Worker, workers: Sequence[_Worker]) -> None:
        while (said := await worker.read()) is not None and said["event"] != "done":
            self._take(worker, said)
            if self._killed is None and self._is_half_created():
                self._kill_one(workers)
        if said is None and not worker.is_killed:
            print_err(f"worker {worker.number} ended by itself; KIE_DEMO_LOG=1 shows what it says")

    def _take(self, worker: _Worker, said: dict[str, Any]) -> None:
        order, event = self._orders[said["ref"]], said["event"]
        order.task_id = said.get("task_id") or order.task_id
        if event == "created":
            order.creator = worker.number
        elif event == "taken over":
            order.heir = worker.number
            if order.creator is None and self._killed is not None:  # its answer was lost
                order.creator = self._killed.number
        elif event == "settled":
            order.source = said["source"] or order.source
        elif event == "result":
            order.known_to.add(worker.number)
        elif event == "error":
            order.error = said["error"]
        if event in {"created", "taken over"}:
            self._say(f"worker {worker.number}  {event}  {order.ref}  {order.task_id or 'perhaps paid'}")

    # --- the middle ----------------------------------------------------------------------------

    def _is_half_created(self) -> bool:
        return 2 * sum(bool(order.creator) for order in self._orders.values()) >= len(self._orders)

    def _in_flight(self, worker: _Worker) -> int:
        orders = self._orders.values()
        return sum(order.creator == worker.number and not order.known_to for order in orders)

    def _kill_one(self, workers: Sequence[_Worker]) -> None:
        """Kill the worker that has the most to lose."""
        self._killed = max(workers, key=self._in_flight)
        self._left_behind = self._in_flight(self._killed)
        self._killed.kill()
        had = count_of(self._left_behind, "task")
        self._say(f"worker {self._killed.number}  KILLED with {had} that nobody else watches")

    # --- the end -------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        after_s = asyncio.get_running_loop().time() - self._began
        self._console.print(f"{after_s:6.2f} s  {line}", soft_wrap=True)
        self._console.file.flush()

    def show_end(self, sandbox: Sandbox, forwarder: Forwarder) -> None:
        """Print the table and the sums."""
        takers = self._takers(sandbox, forwarder)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("job", "task", "created by", "called back", "taken over by", "told by", "known to"):
            table.add_column(name, no_wrap=True)
        for order in self._orders.values():
            table.add_row(*self._cells(order, takers), style=None if order.known_to else "red")
        self._console.print(table)
        self._console.print(self._summary(sandbox, takers), soft_wrap=not self._console.is_terminal)

    def _takers(self, sandbox: Sandbox, forwarder: Forwarder) -> dict[str, int]:
        """Return by task which worker was called back."""
        paths = {urlsplit(delivery.url).path: delivery.task_id for delivery in sandbox.deliveries}
        return {paths[path]: worker + 1 for path, worker in forwarder.takers.items() if path in paths}

    def _cells(self, order: _Order, takers: dict[str, int]) -> tuple[str, ...]:
        known_to = ", ".join(str(number) for number in sorted(order.known_to))
        problem = order.error[:_MOST_SHOWN] if order.task_id else "nobody: perhaps paid"
        return (
            *(order.ref, order.task_id[:8], self._name(order.creator)),
            *(self._name(takers.get(order.task_id)), self._name(order.heir)),
            *(order.source, known_to or problem),
        )

    def _name(self, number: int | None) -> str:
        if number is None:
            return "-"
        is_killed = self._killed is not None and self._killed.number == number
        return f"worker {number}{' (killed)' if is_killed else ''}"

    def _summary(self, sandbox: Sandbox, takers: dict[str, int]) -> str:
        orders = list(self._orders.values())
        prompts = {task.input["prompt"] for task in sandbox.tasks.values()}
        twice = len(sandbox.tasks) - len(prompts)
        unknown = sum(not order.task_id for order in orders)
        lost = sum(not order.known_to for order in orders) - unknown
        elsewhere = sum(takers.get(order.task_id, order.creator) != order.creator for order in orders)
        self.status = FAILED if twice or lost else DONE
        killed = self._killed.number if self._killed else "none"
        took = format_duration(asyncio.get_running_loop().time() - self._began)
        return (
            f"{count_of(len(orders), 'job')}, each asked for by {self._count} workers: "
            f"{count_of(len(sandbox.tasks), 'task')} in {took}, {twice} paid twice, {lost} lost, "
            f"{unknown} perhaps paid{', as what is on the wire in a crash is' if unknown else ''}; "
            f"worker {killed} was killed with {count_of(self._left_behind, 'task')}, "
            f"{sum(order.heir is not None for order in orders)} taken over; "
            f"{count_of(elsewhere, 'callback')} came to another worker than the task's"
        )
