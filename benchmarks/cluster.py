"""Measures workers that share a journal on PostgreSQL: what it costs, and how soon they know and replace.

The database is a real one, started for this, with its files on the disk; the service is a sandbox or the
emulator. Creates run against a limit of 20 in two seconds, by 1, 2, 4 and 8 workers in turn; added times are
differences of medians, and of 99 of 100, between two sessions of one process that take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from kie_async import CallbackReceiver, KieSession, PostgresJournal, Sandbox, SqliteJournal
from kie_async.sandbox import Never

from .cluster_worker import Worker, session
from .emulator import AVATAR, AVATAR_INPUT, Emulator
from .latency import KEY, Awaiters
from .load import paced
from .measuring import Figure, parser, quantile, ratios, report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.postgres import PostgresServer, temporary_server

COUNTS = (1, 2, 4, 8)
LIMIT = (20, 2.0)
CREATES = 100
FREE = (50, 0.001)
"""A limit that holds nobody back, in as many rows as one that does."""
LEASE_S = 10.0
"""As it is if nobody says otherwise."""
IDLE, IDLE_S = 200, 12.0
READ_EVERY_S, SWEEP_EVERY_S = 10.0, 5.0
"""As a worker does to which news are notified."""

_numbers = itertools.count()


def fresh() -> str:
    """Return the name of a journal that nobody has used."""
    return f"bench_{next(_numbers)}"


# --- creates against the limit -------------------------------------------------------------------


async def creates_per_s(server: PostgresServer, workers: Sequence[Worker], *, is_shared: bool) -> float:
    """Return how many creates a second these workers reach together."""
    async with Sandbox(durations=Never(), create_limit=LIMIT, query_limit=None, credits=10**7) as sandbox:
        dsn, name = server.dsn if is_shared else None, fresh()
        await _all(workers, "open", url=sandbox.url, dsn=dsn, names=[name], limit=LIMIT)
        await _all(workers, "flood")
        while len(sandbox.tasks) < CREATES:  # noqa: ASYNC110  (the sandbox tells nobody)
            await asyncio.sleep(0.05)
        made = sorted(task.created_at for task in sandbox.tasks.values())[:CREATES]
        refused = sandbox.counts["create.429"]
        await _all(workers, "close")
    assert not refused, f"{refused} answers 429"
    # The first window's worth could leave at once: it tells how soon cold workers connect, and not the rate.
    return (CREATES - LIMIT[0]) / (made[-1] - made[LIMIT[0] - 1])


async def _all(workers: Sequence[Worker], what: str, **options: Any) -> list[Any]:
    return await asyncio.gather(*[worker.ask(what, **options) for worker in workers])


async def against_the_limit(server: PostgresServer, rounds: int) -> list[Figure]:
    """Return how much of one worker's creates more of them reach together."""
    found: dict[int, list[float]] = {count: [] for count in (0, *COUNTS)}
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(Worker()) for _ in range(COUNTS[-1])]
        for number in range(rounds):
            turns = list(found) if number % 2 else list(reversed(found))
            for count in turns:
                many = workers[: max(1, count)]
                found[count].append(await creates_per_s(server, many, is_shared=count > 0))
    best = LIMIT[0] / LIMIT[1]
    return [
        Figure(name="creates of one worker without a journal", values=found[0], unit=f"/s of {best:g}"),
        Figure(name="creates of one worker", values=found[1], unit=f"/s of {best:g}"),
        *(
            Figure(
                name=f"creates of {count} workers, of one's",
                values=ratios(found[count], found[1]),
                unit="x",
                at_least=0.97,
                goal="P12",
            )
            for count in COUNTS[1:]
        ),
        # Each measurement fails at the first.
        Figure(name="answers 429 to creates", values=[0.0], unit="", at_most=0, goal="P12"),
    ]


# --- what a create takes longer ------------------------------------------------------------------


@asynccontextmanager
async def opened(service: Emulator, journal: object, **options: Any) -> AsyncIterator[KieSession]:
    async with session(service.url, journal, FREE, **options) as kie:
        yield kie


async def timed_ms(work: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Return how long each of so many takes, one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        found.append((time.perf_counter() - began) * 1000)
    return found


def added(name: str, with_it: Sequence[Sequence[float]], without: Sequence[Sequence[float]]) -> list[Figure]:
    """Return what p50 and p99 of each round are more."""
    bars = {"a create": (5.0, 25.0), "a callback on another worker": (10.0, 50.0)}.get(name, (None, None))
    return [
        Figure(
            name=f"{name} takes longer by, p{share * 100:g}",
            values=[
                quantile(more, share) - quantile(less, share)
                for more, less in zip(with_it, without, strict=True)
            ],
            unit="ms",
            at_most=bar,
            goal="" if bar is None else "P12",
        )
        for share, bar in zip((0.5, 0.99), bars, strict=True)
    ]


async def added_to_a_create(server: PostgresServer, folder: Path, rounds: int, count: int) -> list[Figure]:
    """Return what a journal adds to the time of a create, the shared one and the file."""
    journals = {
        "none": None,
        "a create": PostgresJournal(server.dsn, name=fresh()),
        "a create with a file": SqliteJournal(folder / "journal.db"),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in journals}
    async with Emulator(durations=("never",)) as service, AsyncExitStack() as stack:
        sessions = {
            name: await stack.enter_async_context(opened(service, journal))
            for name, journal in journals.items()
        }
        for number in range(rounds + 1):
            for name, kie in sessions.items():
                took = await timed_ms(lambda kie=kie: kie.create(AVATAR, AVATAR_INPUT), count)  # type: ignore[misc]
                if number:  # the first warms up
                    times[name].append(took)
    plain = times.pop("none")
    figures = [Figure(name="a create without a journal, p50", values=_medians(plain), unit="ms")]
    return [*figures, *itertools.chain(*(added(name, took, plain) for name, took in times.items()))]


def _medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [quantile(took, 0.5) for took in rounds]


# --- callbacks -----------------------------------------------------------------------------------


@asynccontextmanager
async def two_workers(server: PostgresServer, name: str) -> AsyncIterator[tuple[Emulator, list[KieSession]]]:
    """Open two sessions of one journal; a third, elsewhere, is called back for the second."""
    async with Emulator(durations=("lognormal", 2.0, 0.3), hmac_key=KEY) as service, Worker() as other:
        elsewhere = await other.ask("serve", url=service.url, dsn=server.dsn, name=name, key=KEY)
        receiver = CallbackReceiver([KEY])
        async with receiver.serve("127.0.0.1", 0) as served, AsyncExitStack() as stack:
            addresses = ((receiver, served.url), (CallbackReceiver([KEY]), elsewhere))
            sessions = [
                await stack.enter_async_context(
                    opened(service, PostgresJournal(server.dsn, name=name), receiver=given, callback_url=url)
                )
                for given, url in addresses
            ]
            yield service, sessions
        await other.ask("close")


async def added_to_a_callback(server: PostgresServer, tasks: int, per_s: float) -> list[Figure]:
    """Return how much later an awaiter goes on whose callback came to another worker."""
    waits = [[Awaiters() for _ in range(5)] for _ in range(2)]
    async with two_workers(server, fresh()) as (service, sessions):

        async def one(turn: int) -> None:
            handle = await sessions[turn % 2].create(AVATAR, AVATAR_INPUT)
            await waits[turn % 2][turn * 5 // tasks].wait_for(handle)

        await paced(tasks, per_s, one)
        # The first ones warm up.
        here, there = [[await each.delays_ms(service, "sent") for each in rounds[1:]] for rounds in waits]
    figure = Figure(name="a callback to its awaiter, p50", values=_medians(here), unit="ms")
    return [figure, *added("a callback on another worker", there, here)]


# --- takeover ------------------------------------------------------------------------------------


async def takeover(server: PostgresServer, rounds: int, journals: int) -> list[Figure]:
    """Return how long after a SIGKILL each of many journals' tasks are another worker's."""
    took: list[list[float]] = []
    for _ in range(rounds):
        async with (
            Sandbox(durations=Never(), create_limit=None, query_limit=None) as sandbox,
            Worker() as victim,
            AsyncExitStack() as stack,
        ):
            names = [fresh() for _ in range(journals)]
            heirs = []
            for name in names:  # spread, so that they beat and sweep at different times
                await asyncio.sleep(LEASE_S / journals)
                journal = PostgresJournal(server.dsn, name=name, lease_s=LEASE_S)
                heirs.append(await stack.enter_async_context(session(sandbox.url, journal, FREE)))
            await victim.ask("open", url=sandbox.url, dsn=server.dsn, names=names, limit=FREE)
            await victim.ask("create")
            await asyncio.sleep(LEASE_S)
            victim.kill()
            killed_at = time.monotonic()

            async def wait(kie: KieSession, since: float) -> float:
                await anext(kie.taken_over())
                return time.monotonic() - since

            took.append(await asyncio.gather(*[wait(kie, killed_at) for kie in heirs]))
    together = list(itertools.chain(*took))
    return [
        Figure(name="takeover after SIGKILL, p50", values=_medians(took), unit="s"),
        Figure(
            name=f"takeover after SIGKILL, p99 of {len(together)}",
            values=[quantile(together, 0.99)],
            unit="s",
            at_most=1.3 * LEASE_S,
            goal="P12",
        ),
    ]


# --- what the server has to do -------------------------------------------------------------------


async def in_a_database(server: PostgresServer, query: str) -> Any:
    connection = await asyncpg.connect(server.dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


FLUSHED_S = 12.0
"""So long after its last transaction a connection that is idle has told its counts."""

COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


async def a_task_costs(server: PostgresServer, tasks: int) -> list[Figure]:
    """Return transactions and notifications of a task, of two workers that get each other's callbacks too."""
    heard: list[object] = []
    name = fresh()
    listener = await asyncpg.connect(server.dsn)
    await listener.add_listener(f"kie_async_{name}", lambda *told: heard.append(told[-1]))
    async with two_workers(server, name) as (_, sessions):

        async def one(turn: int) -> None:
            await (await sessions[turn % 2].create(AVATAR, AVATAR_INPUT, ref=f"{name} {turn}"))

        await asyncio.sleep(FLUSHED_S)
        idle = await commits_during(server, asyncio.sleep(0))
        busy = await commits_during(server, paced(tasks, 10.0, one))
    await listener.close()
    return [
        Figure(name="transactions a task", values=[(busy[0] - idle[0] / idle[1] * busy[1]) / tasks], unit=""),
        Figure(name="notifications a task", values=[len(heard) / tasks], unit=""),
    ]


async def commits_during(server: PostgresServer, work: Awaitable[object]) -> tuple[int, float]:
    """Return how many transactions the server counts while work is awaited, and in how many seconds."""
    before, began = await in_a_database(server, COMMITS), time.monotonic()
    await work
    await asyncio.sleep(FLUSHED_S)
    return await in_a_database(server, COMMITS) - before, time.monotonic() - began


def cpu_s(server: PostgresServer) -> float:
    """Return the CPU seconds that the server's processes have taken; those that ended are in their parent."""
    root = psutil.Process(server.pid)
    spent = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system + (times.children_user + times.children_system)
    return spent


async def idle_workers(server: PostgresServer, count: int, for_s: float) -> list[Figure]:
    """Return what so many workers cost that do nothing but live: heartbeats, sweeps, reads."""
    name = fresh()
    journals = [PostgresJournal(server.dsn, name=name) for _ in range(count)]
    async with Emulator(durations=("never",)) as service, AsyncExitStack() as stack:
        kie = await stack.enter_async_context(opened(service, PostgresJournal(server.dsn, name=name)))

        async def create_ms() -> float:
            return quantile(await timed_ms(lambda: kie.create(AVATAR, AVATAR_INPUT), 100), 0.5)

        await create_ms()
        alone_ms, cpu_before = await create_ms(), cpu_s(server)
        await asyncio.sleep(for_s)
        cpu_alone = cpu_s(server) - cpu_before
        for journal in journals:
            await journal.open()
            stack.push_async_callback(journal.aclose)
        living = [
            asyncio.create_task(_live(journal, number / count)) for number, journal in enumerate(journals)
        ]
        await asyncio.sleep(SWEEP_EVERY_S)
        cpu_before, commits = cpu_s(server), await in_a_database(server, COMMITS)
        await asyncio.sleep(for_s)
        cpu_crowded = cpu_s(server) - cpu_before
        commits = await in_a_database(server, COMMITS) - commits
        crowded_ms = await create_ms()
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)
    share = (cpu_crowded - cpu_alone) / for_s
    return [
        Figure(name=f"{count} idle workers, of a core of the server", values=[share * 100], unit="%"),
        Figure(name=f"{count} idle workers, transactions", values=[commits / for_s], unit="/s"),
        Figure(
            name=f"a create beside {count} idle workers takes longer by, p50",
            values=[crowded_ms - alone_ms],
            unit="ms",
        ),
    ]


async def _live(journal: PostgresJournal, phase: float) -> None:
    """Sweep and read, as the session of a worker does that has nothing to do."""
    await asyncio.sleep(phase * SWEEP_EVERY_S)
    assert journal.is_notified
    for turn in itertools.count():
        await journal.take_over()
        if turn % round(READ_EVERY_S / SWEEP_EVERY_S) == 0:
            await journal.list_deliveries()
        await asyncio.sleep(SWEEP_EVERY_S)


PARTS = ("creates", "added", "callbacks", "takeover", "server")


async def run(folder: Path, parts: Sequence[str], rounds: int) -> list[Figure]:
    """Measure all that was asked for on a server of their own."""
    with temporary_server(on_disk=True, max_connections="700") as server:
        figures: list[Figure] = []
        if "creates" in parts:
            figures += await against_the_limit(server, rounds)
        if "added" in parts:
            figures += await added_to_a_create(server, folder, 2 * rounds, 100)
        if "callbacks" in parts:
            figures += await added_to_a_callback(server, 300, 10.0)
        if "takeover" in parts:
            figures += await takeover(server, 3, 10)
        if "server" in parts:
            figures += await a_task_costs(server, 100)
            figures += await idle_workers(server, IDLE, IDLE_S)
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("cluster", __doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure less")
    asked = options.parse_args(argv)
    logging.getLogger("kie_async").setLevel(logging.ERROR)  # each close names what goes on
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder), asked.only, asked.rounds))
    return report(figures, check=asked.check, to=asked.json)
